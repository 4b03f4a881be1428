"""Checkpoints of others, made here from random weights in each layout: they load whole or not at all, and say what they are."""

import argparse
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tubelet import models
from tubelet.cli import main
from tubelet.errors import CheckpointError
from tubelet.models import videomae
from tubelet.predict import predict
from tubelet.records import ClipSpec
from tubelet.weights import foreign
from tubelet.weights.average import average
from tubelet.weights.convert import convert
from tubelet.weights.inspect import inspect
from tubelet.weights.load import load_model
from tubelet.weights.save import save

SPEC = ClipSpec(frames=4, size=32)
SIZES = dict(width=192, depth=2, heads=3, decoder_width=192, decoder_depth=1, decoder_heads=3)
CLIP = dict(frames=4, size=32)


def model(classes: tuple[str, ...] = ("b", "a")) -> videomae.VideoMAE:
    torch.manual_seed(0)
    made = videomae.build("videomae_tiny", SPEC, classes, **SIZES)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made.eval()


def original(classes: tuple[str, ...] = ("b", "a")) -> dict[str, Tensor]:
    made = model(classes)
    return videomae.to_original(made.state_dict(), made.tubelet)


def assert_loads(path: Path, classes: int = 2) -> foreign.Account:
    """The very weights, whatever was around them."""
    names = ("b", "a")[:classes]
    loaded, account = foreign.read(path, foreign.Given(clip=CLIP))
    wanted = model(names).state_dict()
    assert loaded.state_dict().keys() == wanted.keys()
    assert all(torch.equal(value, wanted[key]) for key, value in loaded.state_dict().items())
    return account


CONTAINERS = {
    "bare": lambda state: state,
    "model": lambda state: {"model": state, "epoch": 3, "optimizer": {"state": {}}},
    "DeepSpeed": lambda state: {"module": state, "global_steps": 5},
    "DDP": lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
    "two containers": lambda state: {"model": {"state_dict": state}},
    "compiled": lambda state: {"model": {f"_orig_mod.module.{key}": value for key, value in state.items()}},
    "numbers of numpy": lambda state: {"model": state, "best": np.float64(0.8), "history": np.arange(3.0)},
}


@pytest.mark.parametrize("kind", ["pretraining", "fine-tuned"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_original_files_in_every_container(container: str, kind: str, tmp_path: Path) -> None:
    classes = 2 if kind == "fine-tuned" else 0
    state = original(("b", "a")[:classes])
    torch.save(CONTAINERS[container](state), tmp_path / "file.pth")
    account = assert_loads(tmp_path / "file.pth", classes)
    assert (account.family, account.layout, account.found.classes) == ("videomae", "original", classes)
    torch.save(CONTAINERS[container](state), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_loads(tmp_path / "old.pth", classes)


def test_the_arguments_of_the_run_are_read_and_nothing_is_run(tmp_path: Path) -> None:
    arguments = argparse.Namespace(num_frames=4, input_size=32, sampling_rate=2, nb_classes=2)
    torch.save({"model": original(), "args": arguments}, tmp_path / "file.pth")
    loaded, account = foreign.read(tmp_path / "file.pth")
    assert (loaded.spec.frames, loaded.spec.size, loaded.spec.stride_frames) == (4, 32, 2)
    assert (
        account.found.inferred["frames"] == "num_frames in the arguments of its run" and "frames" not in account.found.assumed
    )


class Hostile:
    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.trap}",)


BAD = ("cut", "cut old", "pickle", "text", "list", "nothing", "unknown layout", "mixed", "NaN", "lacking", "more", "shape",
       "missing shard", "empty folder", "nowhere")  # fmt: skip


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """name -> (a file or folder, what is said of it)."""
    whole = folder / "whole.pth"
    torch.save({"model": original()}, whole)
    made = {
        name: folder / f"{name}.pth"
        for name in ("cut", "cut old", "pickle", "text", "list", "nothing", "foreign", "mixed", "nan")
    }
    made["cut"].write_bytes(whole.read_bytes()[:2000])
    torch.save({"model": original()}, made["cut old"], _use_new_zipfile_serialization=False)
    made["cut old"].write_bytes(made["cut old"].read_bytes()[:900])
    torch.save({"model": original(), "x": Hostile(folder / "trap")}, made["pickle"])
    made["text"].write_text("no weights")
    torch.save([1, 2], made["list"])
    torch.save({}, made["nothing"])
    torch.save({"conv.weight": torch.ones(2)}, made["foreign"])
    mixed = original() | {"embeddings.patch_embeddings.projection.weight": torch.ones(1)}
    torch.save(mixed | {"encoder.layer.0.attention.attention.query.weight": torch.ones(1)}, made["mixed"])
    torch.save(original() | {"head.bias": torch.tensor([0.0, float("nan")])}, made["nan"])
    torch.save({key: value for key, value in original().items() if key != "blocks.1.norm2.weight"}, folder / "lacking.pth")
    torch.save(original() | {"blocks.0.attn.extra": torch.ones(1)}, folder / "more.pth")
    torch.save(original() | {"head.bias": torch.ones(3)}, folder / "shape.pth")
    (folder / "shards").mkdir()
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (folder / "shards" / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"a": torch.ones(1)}, folder / "shards" / "one.safetensors")
    (folder / "empty").mkdir()
    return {name: (path, words) for name, path, words in [
        ("cut", made["cut"], "may be truncated"),
        ("cut old", made["cut old"], "damaged pickle|may be truncated"),
        ("pickle", made["pickle"], r"holds more than weights \(it asks for posix.system\), which is never run"),
        ("text", made["text"], "neither safetensors nor a PyTorch file"),
        ("list", made["list"], "holds a list, no state dict"),
        ("nothing", made["nothing"], "holds no weights"),
        ("unknown layout", made["foreign"], "in no layout that is known .* begin conv.weight"),
        ("mixed", made["mixed"], r"mixes the layouts of videomae \(original\) and videomae \(huggingface\)"),
        ("NaN", made["nan"], r"head.bias is not finite"),
        ("lacking", folder / "lacking.pth", "missing blocks.1.norm2.weight"),
        ("more", folder / "more.pth", "left over blocks.0.attn.extra"),
        ("shape", folder / "shape.pth", r"head.bias is \(3,\), wanted \(2,\)"),
        ("missing shard", folder / "shards", "names 2 shards, and two.safetensors is not there"),
        ("empty folder", folder / "empty", "it holds no weight file"),
        ("nowhere", folder / "nowhere", "no weights at"),
    ]}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_get_one_line_and_nothing_is_written(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, words = bad_files(tmp_path)[name]
    with pytest.raises(CheckpointError, match=words) as error:
        foreign.read(path, foreign.Given(clip=CLIP))
    assert "\n" not in str(error.value)
    clip = ["--clip", "frames=4", "--clip", "size=32"]
    assert main(["weights", "convert", str(path), str(tmp_path / "out"), *clip]) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 1 and said.strip().count("\n") <= 1 and "Traceback" not in said
    assert not (tmp_path / "out").exists() and not (tmp_path / "trap").exists()


def test_the_decoder_is_left_behind_where_the_caller_says_so(tmp_path: Path) -> None:
    torch.save(original(()), tmp_path / "file.pth")
    whole, _ = foreign.read(tmp_path / "file.pth", foreign.Given(clip=CLIP))
    encoder, account = foreign.read(tmp_path / "file.pth", foreign.Given(clip=CLIP, options={"decoder": False}))
    left = [key for key in whole.state_dict() if key.startswith("decoder.")]
    assert f"left behind, as asked: the decoder ({len(left)} weights)" in account.notes
    assert encoder.state_dict().keys() == whole.state_dict().keys() - set(left)
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in encoder.state_dict().items())


NOTHING = ["heads=many", "width=1.5", "patch=0", "tubelet=-1", "decoder=3", "position_grid=3", "position_grid=[1,2]"]
NOTHING += ["frames=four", "size=[1]", "mean=0.5", "std=[a,b,c]", "sampling=often"]


@pytest.mark.parametrize("option", NOTHING)
def test_options_that_are_nothing_are_one_line(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(original(), tmp_path / "file.pth")
    flag = "--clip" if option.partition("=")[0] in ClipSpec.__dataclass_fields__ else "--options"
    assert main(["weights", "convert", str(tmp_path / "file.pth"), str(tmp_path / "out"), flag, option]) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 1 and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_a_nearest_name_is_offered(tmp_path: Path) -> None:
    state = original()
    state["blocks.1.norm2.weights"] = state.pop("blocks.1.norm2.weight")
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"missing blocks.1.norm2.weight \(left over is blocks.1.norm2.weights\)"):
        foreign.read(tmp_path / "file.pth", foreign.Given(clip=CLIP))


def test_heads_that_nothing_tells_are_asked_for(tmp_path: Path) -> None:
    narrow = videomae.build("videomae_tiny", SPEC, ("a", "b"), **{**SIZES, "width": 48, "heads": 4})
    torch.save(videomae.to_original(narrow.state_dict(), narrow.tubelet), tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"nothing tells the heads of this .* --options heads=..."):
        foreign.read(tmp_path / "file.pth", foreign.Given(clip=CLIP))
    assert inspect(tmp_path / "file.pth")["loads"] is False
    loaded, _ = foreign.read(tmp_path / "file.pth", foreign.Given(clip=CLIP, options={"heads": 4}))
    assert loaded.options["heads"] == 4


@pytest.mark.parametrize("classes", [(), ("b", "a")], ids=["pretraining", "classifier"])
@pytest.mark.parametrize("to", ["original", "huggingface"])
def test_there_and_back_is_bit_identical(to: str, classes: tuple[str, ...], tmp_path: Path) -> None:
    made = model(classes)
    out = tmp_path / ("file.pth" if to == "original" else "folder")
    proof = convert(made, out, to)
    assert proof.round_trip == len(made.state_dict())
    back, account = foreign.read(out, foreign.Given(clip=CLIP if to == "original" else {}))
    assert all(torch.equal(value, back.state_dict()[key]) for key, value in made.state_dict().items())
    if to == "huggingface":
        pytest.importorskip("transformers", reason="transformers (extra [hf]) is not installed")
        assert proof.difference is not None and proof.difference < 1e-5
        assert back.class_names == classes and back.spec == SPEC
        assert not account.found.assumed.keys() - {"stride_frames"}


def test_folders_of_transformers_in_shards_and_bin(tmp_path: Path) -> None:
    convert(model(), tmp_path / "one", "huggingface")
    state = load_file(tmp_path / "one" / "model.safetensors")
    beside = {name: (tmp_path / "one" / name).read_text() for name in ("config.json", "preprocessor_config.json")}
    for kind in ("shards", "bin"):
        folder = tmp_path / kind
        folder.mkdir()
        for name, text in beside.items():
            (folder / name).write_text(text)
        if kind == "bin":
            torch.save(state, folder / "pytorch_model.bin")
            continue
        parts = {key: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, key in enumerate(sorted(state))}
        for file in set(parts.values()):
            save_file({key: state[key] for key in state if parts[key] == file}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    for folder in (tmp_path / "shards", tmp_path / "bin"):
        loaded = load_model(folder)
        assert loaded.class_names == ("b", "a") and loaded.spec == SPEC
        assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model().state_dict().items())


def test_class_names_are_given_told_or_missing_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": original(), "args": argparse.Namespace(num_frames=4, input_size=32)}, tmp_path / "file.pth")
    assert load_model(tmp_path / "file.pth").class_names == ("class 0", "class 1")
    assert "class names: none: nothing names its 2 classes" in capsys.readouterr().err
    (tmp_path / "names.txt").write_text("left\nright\n")
    named, _ = foreign.read(tmp_path / "file.pth", foreign.Given(classes=str(tmp_path / "names.txt")))
    assert named.class_names == ("left", "right")
    (tmp_path / "names.txt").write_text("left\nright\nup\n")
    with pytest.raises(CheckpointError, match="a head of 2 classes, and 3 names are given"):
        foreign.read(tmp_path / "file.pth", foreign.Given(classes=str(tmp_path / "names.txt")))
    with pytest.raises(CheckpointError, match="cannot read the class list nowhere.txt .* or one of kinetics400, ssv2"):
        foreign.read(tmp_path / "file.pth", foreign.Given(classes="nowhere.txt"))


def test_inspect_says_what_was_told_by_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": original(())}, tmp_path / "file.pth")
    assert main(["weights", "inspect", str(tmp_path / "file.pth"), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["family"], row["layout"], row["loads"], row["classes"]) == ("videomae", "original", True, 0)
    assert row["inferred"]["depth"] == "2 blocks" and row["assumed"]["frames"] == "16, as published"
    assert row["params"] == sum(p.numel() for p in model(()).parameters()) and len(row["sha256"]) == 64
    assert main(["weights", "inspect", str(tmp_path / "file.pth")]) == 0
    assert "layout      original" in capsys.readouterr().out


def test_convert_overwrites_nothing_and_names_what_it_cannot(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(CheckpointError, match="is there already"):
        convert(model(), tmp_path / "there", "huggingface")
    with pytest.raises(CheckpointError, match="is one file: name it .pth"):
        convert(model(), tmp_path / "folder", "original")
    with pytest.raises(
        CheckpointError, match="single_frame cannot be written in the layout 'huggingface': there is none but tubelet's own"
    ):
        convert(models.build("single_frame", SPEC, ("a",), width=8), tmp_path / "folder", "huggingface")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]


def test_predictions_of_a_model_without_class_names_say_so(motion_folder: Path, tmp_path: Path) -> None:
    torch.save({"model": original(), "args": argparse.Namespace(num_frames=4, input_size=32)}, tmp_path / "file.pth")
    video = next(motion_folder.rglob("*.mp4"))
    answer = predict(load_model(tmp_path / "file.pth"), video, clips=1)
    assert any("nobody told this model the names of its classes" in warning for warning in answer.warnings)
    assert not predict(model(), video, clips=1).warnings


@pytest.mark.parametrize(("name", "count", "some"), [
    ("kinetics400", 400, {0: "abseiling", 5: "archery", 399: "zumba"}),
    ("ssv2", 174, {0: "Approaching something with your camera", 93: "Pushing something from left to right",
                   94: "Pushing something from right to left", 173: "Wiping something off of something"}),
])  # fmt: skip
def test_class_lists_ship(name: str, count: int, some: dict[int, str]) -> None:
    names = foreign.class_list(name)
    assert len(names) == len(set(names)) == count and {number: names[number] for number in some} == some


def test_a_hub_id_comes_from_the_cache_with_its_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cache as huggingface_hub keeps it, made by hand; there is no network in tests."""
    pytest.importorskip("huggingface_hub", reason="huggingface_hub (extra [hf]) is not installed")
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    revision = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "models--someone--videomae" / "snapshots" / revision
    convert(model(), folder, "huggingface")
    refs = tmp_path / "models--someone--videomae" / "refs"
    refs.mkdir()
    (refs / "main").write_text(revision)
    monkeypatch.chdir(tmp_path)
    for hub_id in ("someone/videomae", f"someone/videomae@{revision}"):
        loaded = load_model(hub_id)
        assert loaded.class_names == ("b", "a") and f"{hub_id}: revision {revision}" in capsys.readouterr().err
    assert main(["weights", "convert", "someone/videomae", str(tmp_path / "ours")]) == 0
    kept = json.loads((tmp_path / "ours" / "config.json").read_text())["trained"]
    assert kept["converted_from"] == "someone/videomae" and kept["revision"] == revision and len(kept["sha256"]) == 64
    save(model(), tmp_path / "models--someone--own" / "snapshots" / revision)
    (tmp_path / "models--someone--own" / "refs").mkdir()
    (tmp_path / "models--someone--own" / "refs" / "main").write_text(revision)
    assert main(["weights", "convert", "someone/own", str(tmp_path / "own")]) == 0
    kept = json.loads((tmp_path / "own" / "config.json").read_text())["trained"]
    weights = (tmp_path / "models--someone--own" / "snapshots" / revision / "model.safetensors").read_bytes()
    assert kept == {
        "converted_from": "someone/own", "revision": revision, "sha256": hashlib.sha256(weights).hexdigest(),
    }  # fmt: skip
    for missing in ("someone/else", "someone/videomae@v2"):
        with pytest.raises(CheckpointError, match=f"no model at {missing}: .*the hub cannot be reached"):
            load_model(missing)


def test_the_average_of_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = []
    for number in range(3):
        made.append(model())
        torch.manual_seed(number)
        for parameter in made[-1].parameters():
            torch.nn.init.normal_(parameter)
        save(made[-1], tmp_path / str(number))
    paths = [str(tmp_path / str(number)) for number in range(3)]
    states = [one.state_dict() for one in made]
    for decay, weights in ((None, (1 / 3, 1 / 3, 1 / 3)), (0.9, (0.81, 0.09, 0.1))):
        mean = average(paths, decay).state_dict()
        for name in mean:
            wanted = sum(weight * state[name].double() for weight, state in zip(weights, states, strict=True))
            torch.testing.assert_close(mean[name], wanted.float(), rtol=1e-6, atol=1e-6)
    assert main(["weights", "average", *paths, str(tmp_path / "mean")]) == 0
    assert load_model(tmp_path / "mean").class_names == ("b", "a")
    save(model(("a", "b")), tmp_path / "other")
    assert main(["weights", "average", paths[0], str(tmp_path / "other"), str(tmp_path / "none")]) == 2
    assert "has another class_names than" in capsys.readouterr().err and not (tmp_path / "none").exists()
    assert main(["weights", "average", paths[0], str(tmp_path / "none")]) == 2
    assert "tubelet weights average RUN RUN ... OUT" in capsys.readouterr().err
