"""Model folders: bit-identical round trips, every key accounted for, nothing half-written."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tubelet
from tubelet import classify, models
from tubelet.errors import CheckpointError
from tubelet.feature_store import Stored
from tubelet.records import ClipSpec
from tubelet.weights import files
from tubelet.weights.export import export
from tubelet.weights.load import load_model, transfer
from tubelet.weights.save import save

SPEC = ClipSpec(frames=4, size=32, stride_frames=2, sampling="segments", mean=(0.5, 0.4, 0.3))
SIZES = dict(width=24, depth=2, heads=2, decoder_width=12, decoder_depth=1, decoder_heads=2, patch=8)


def pretraining() -> torch.nn.Module:
    return models.build("videomae_tiny", SPEC, **SIZES)


def classifier(names: tuple[str, ...] = ("b", "a")) -> torch.nn.Module:
    return models.build("videomae_tiny", SPEC, names, **SIZES)


@pytest.mark.parametrize("make", [pretraining, classifier, lambda: models.build("single_frame", SPEC, ("x", "y"), width=8)])
def test_round_trip(make, tmp_path: Path) -> None:
    model = make()
    save(model, tmp_path / "m", {"data": "clips"})
    back = load_model(tmp_path / "m")
    assert (back.name, back.spec, back.class_names) == (model.name, SPEC, model.class_names) and not back.training
    assert all(torch.equal(back.state_dict()[key], value) for key, value in model.state_dict().items())
    assert json.loads((tmp_path / "m" / "config.json").read_text())["trained"] == {"data": "clips"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]
    save(make(), tmp_path / "m")  # replaces, leaves nothing beside it
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_folders_whose_names_are_not_utf8_are_read_back(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"na\xffme")
    model = classifier()
    save(model, folder, {"averaged": str(folder)})
    for back in (load_model(folder).state_dict(), files.read(folder / "model.safetensors").tensors):
        assert all(torch.equal(back[key], value) for key, value in model.state_dict().items())
    stored = Stored(tuple("abcd"), tuple("abcd"), torch.randn(4, 6), "fingerprint", "model")
    classify.save(classify.fit(stored, {"a": "x", "b": "y", "c": "x", "d": "y"}), folder / "head")
    assert classify.load(folder / "head").classes == ("x", "y")
    with pytest.raises(CheckpointError, match="is not UTF-8, and graphs are written to no other name"):
        export(model, folder / "graph", "torch")


@pytest.mark.parametrize("words", ["convert model out", "convert model out.pth --to original"])
def test_a_disk_that_is_full_is_one_line_and_nothing_is_left(words: str, tmp_path: Path) -> None:
    save(classifier(), tmp_path / "model")
    shell = f"ulimit -f 4; exec {shlex.quote(sys.executable)} -m tubelet weights {words}"  # of 1024 bytes
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: cannot write ") and done.stderr.count("\n") == 1, done
    assert done.stderr.endswith("nothing was changed\n") and [path.name for path in tmp_path.iterdir()] == ["model"]


def test_public_load(tmp_path: Path) -> None:
    save(classifier(), tmp_path / "run" / "model")
    model = tubelet.load(tmp_path / "run")
    assert model.class_names == ("b", "a") and model.spec == SPEC


def test_transfer_takes_the_encoder_and_names_what_is_new() -> None:
    source, target = pretraining(), classifier()
    fresh = transfer(source, target)
    assert fresh == ["fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"]
    assert torch.equal(target.state_dict()["blocks.1.mlp.fc1.weight"], source.state_dict()["blocks.1.mlp.fc1.weight"])
    other = classifier(("b", "a", "c"))
    assert transfer(target, other) == ["head.weight", "head.bias"]
    assert transfer(target, classifier()) == []


def test_transfer_refuses_another_model() -> None:
    narrow = models.build("videomae_tiny", SPEC, **{**SIZES, "width": 12})
    with pytest.raises(CheckpointError, match=r"of another model.*embed.weight is \(12, 384\), wanted \(24, 384\)"):
        transfer(narrow, classifier())
    with pytest.raises(CheckpointError, match="weights are of videomae_tiny, the run wants single_frame"):
        transfer(pretraining(), models.build("single_frame", SPEC, ("a", "b")))
    shallow = models.build("videomae_tiny", SPEC, **{**SIZES, "depth": 1})
    with pytest.raises(CheckpointError, match=r"blocks\.1\..* is not in the weights"):
        transfer(shallow, classifier())
    with pytest.raises(CheckpointError, match=r"hold blocks\.1\..* no place for"):
        transfer(pretraining(), models.build("videomae_tiny", SPEC, ("a", "b"), **{**SIZES, "depth": 1}))


def test_broken_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    folder = save(classifier(), tmp_path / "m")
    weights = folder / "model.safetensors"
    good = weights.read_bytes()

    def refused(words: str, path: Path = folder) -> None:
        with pytest.raises(CheckpointError, match=words) as error:
            load_model(path)
        assert "\n" not in str(error.value)

    refused("no model at .*nowhere", tmp_path / "nowhere")
    refused("it holds no weight file", tmp_path)
    for size in (0, 5, len(good) // 2):
        weights.write_bytes(good[:size])
        refused("not a readable safetensors file")
    weights.write_bytes(good)
    assert load_model(weights).class_names == ("b", "a")  # its config.json lies beside it
    state = load_file(weights)
    state["stranger"] = state.pop("head.bias")
    save_file(state, weights)
    refused("missing head.bias; left over stranger")
    (folder / "config.json").write_text('{"format": "tubelet-model-0"}')
    refused("is of format 'tubelet-model-0'; this version reads")
    (folder / "config.json").write_text('{"format": "tubelet-model-1"}')
    refused("does not describe a tubelet model: 'clip'")
    (folder / "config.json").write_text("not json")
    refused("cannot read")


def test_a_folder_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot write the model folder .*; nothing was changed"):
        save(classifier(), blocked / "m")
    assert blocked.read_text() == "in the way" and list(tmp_path.iterdir()) == [blocked]
