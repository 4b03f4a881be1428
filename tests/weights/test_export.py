"""Exported graphs beside the models they came from, through the runtimes that deploy them."""

import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tubelet import models
from tubelet.cli import main
from tubelet.datasets import read_many
from tubelet.errors import CheckpointError, ConfigError, MissingExtraError
from tubelet.features import embed_video, fingerprint
from tubelet.models._model import Model
from tubelet.predict import predict
from tubelet.records import ClipSpec
from tubelet.weights.export import compare, export, noise
from tubelet.weights.load import load_model
from tubelet.weights.save import save

pytestmark = pytest.mark.filterwarnings("ignore")  # the exporters' own

SPEC = ClipSpec(frames=4, size=32)
NEEDS = {"torch": "torch", "onnx": "onnxruntime", "openvino": "openvino"}
KINDS = [
    pytest.param(to, marks=pytest.mark.skipif(importlib.util.find_spec(needs) is None, reason=f"{needs} is not installed"))
    for to, needs in NEEDS.items()
]


class Hostile:
    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.trap}",)


def model(classes: tuple[str, ...] = ("a", "b", "c")) -> Model:
    torch.manual_seed(0)
    made = models.build("videomae_tiny", SPEC, classes, width=48, depth=2, heads=2, decoder=False)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


@pytest.mark.parametrize("to", KINDS)
def test_an_exported_model_answers_as_the_model_does(to: str, motion_folder: Path, tmp_path: Path) -> None:
    made = model()
    parity = export(made, tmp_path / "out", to)
    assert parity.difference < 1e-4 and parity.agreement == 1
    graph = load_model(tmp_path / "out")
    assert (graph.class_names, graph.spec, graph.name) == (made.class_names, made.spec, made.name)
    for batch in (1, 3):
        frames = torch.stack(noise(made, batch))
        with torch.no_grad():
            ours, theirs = made(frames), graph(frames)
        torch.testing.assert_close(theirs["logits"].softmax(-1), ours["logits"].softmax(-1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(theirs["embedding"], ours["embedding"], rtol=1e-4, atol=1e-4)
    video = next(motion_folder.rglob("*.mp4"))
    answers = [predict(side, video, clips=2) for side in (made, graph)]
    assert [name for name, _ in answers[0].top] == [name for name, _ in answers[1].top]
    np.testing.assert_allclose(*([p for _, p in answer.top] for answer in answers), atol=1e-5)
    torch.testing.assert_close(embed_video(graph, video), embed_video(made, video), rtol=1e-3, atol=1e-4)
    assert fingerprint(graph) != fingerprint(made)


@pytest.mark.parametrize("to", KINDS)
def test_models_without_classes_and_of_one_clip_at_a_time(to: str, tmp_path: Path) -> None:
    made = model(())
    assert export(made, tmp_path / "out", to, dynamic_batch=False).agreement is None
    graph, frames = load_model(tmp_path / "out"), torch.stack(noise(made, 3))
    with torch.no_grad():
        out = graph(frames)
        torch.testing.assert_close(out["embedding"], made(frames)["embedding"], rtol=1e-4, atol=1e-4)
    assert "logits" not in out


def test_weights_in_8_bits(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime (extra [export]) is not installed")
    made = model()
    with torch.no_grad():
        made.head.weight.mul_(10)  # chances that differ, as of a model that was taught
    clips = noise(made, 8)
    parity = export(
        made, tmp_path / "int8", "onnx", int8=True, clips=clips, labels=[made(c[None])["logits"].argmax() for c in clips]
    )
    export(made, tmp_path / "float", "onnx")
    assert 0 < parity.difference < 0.1 and parity.agreement is not None and parity.agreement >= 0.99
    assert parity.accuracy == (1.0, 1.0)
    sizes = [(tmp_path / name / "model.onnx").stat().st_size for name in ("int8", "float")]
    assert sizes[0] < 0.6 * sizes[1]


def test_a_graph_of_another_model_is_found_out() -> None:
    other = model()
    with torch.no_grad():
        other.head.bias.add_(torch.tensor([3.0, 0.0, -3.0]))
    assert compare(model(), other, noise(other)).difference > 0.1
    assert compare(model(), model(), noise(other), labels=[0] * 8).difference == 0


def test_the_command(motion_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes = read_many([str(motion_folder)]).classes
    save(model(classes), tmp_path / "model")
    words = ["export", str(tmp_path / "model"), str(tmp_path / "out"), "--to", "torch"]
    assert main([*words, "--check", str(motion_folder), "--limit", "6", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["clips"] == 6 and said["difference"] < 1e-4 and said["accuracy"][0] == said["accuracy"][1]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["exported"]["parity"]["clips"] == 6
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err
    video = next(motion_folder.rglob("*.mp4"))
    assert main(["predict", str(tmp_path / "out"), str(video)]) == 0
    assert classes[0] in capsys.readouterr().out
    (tmp_path / "out" / "model.pt2").write_bytes(b"damaged")
    assert main(["predict", str(tmp_path / "out"), str(video)]) == 2
    assert "model.pt2 cannot be opened, it may be damaged: export the model again" in capsys.readouterr().err
    for words in (["weights", "inspect"], ["export"], ["weights", "convert"]):
        out = [] if words[-1] == "inspect" else [str(tmp_path / "again")]
        assert main([*words, str(tmp_path / "out"), *out]) == 2
        assert "is an exported graph, which only answers" in capsys.readouterr().err


def test_a_graph_that_would_run_code_is_refused_unread(tmp_path: Path) -> None:
    """Every place where torch unpickles or evaluates what it finds in such a file."""
    export(model(), tmp_path / "whole", "torch")
    trap, file = tmp_path / "trap", tmp_path / "whole" / "model.pt2"
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        graph = archive.read("model/models/model.json")
        weights = archive.read("model/data/weights/model_weights_config.json")
    assert b"stack_trace" not in graph
    bomb = io.BytesIO()
    torch.save({"x": Hostile(trap)}, bomb)
    code = f"__import__('os').system('touch {trap}')"
    bad = {
        "its example is no tensor": {"data/sample_inputs/model.pt": bomb.getvalue()},
        "model.embed.weight is a pickle": {
            "data/weights/model_weights_config.json": weights.replace(b'"use_pickle": false', b'"use_pickle": true', 1),
            "data/weights/weight_0": bomb.getvalue(),
        },
        "data/weights/model.pt": {"data/weights/model.pt": bomb.getvalue()},
        "data/aotinductor/model/x.so": {"data/aotinductor/model/x.so": b"x"},
        "a size is": {"models/model.json": re.sub(rb"Symbol\('s\d+'[^\"]*", code.encode(), graph)},
        "lines of Python": {"models/model.json": graph.replace(b'"guards_code": []', f'"guards_code": ["{code}"]'.encode())},
        "it calls torch.load": {"models/model.json": re.sub(rb"torch\.ops\.aten\.permute\.default", b"torch.load", graph)},
        "it calls torch.ops.aten.from_file": {
            "models/model.json": re.sub(rb"torch\.ops\.aten\.permute\.", b"torch.ops.aten.from_file.", graph)
        },
    }  # fmt: skip
    for words, changes in bad.items():
        with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(file, "w") as new:
            for name in {*old.namelist(), *(f"model/{change}" for change in changes)}:
                new.writestr(name, changes.get(name.removeprefix("model/")) or old.read(name))
        with pytest.raises(CheckpointError, match="model.pt2 holds more than a graph") as error:
            load_model(tmp_path / "whole")
        assert words in str(error.value) and "\n" not in str(error.value)
    assert not trap.exists()
    file.write_bytes(whole)
    assert load_model(tmp_path / "whole").class_names == ("a", "b", "c")


def test_a_graph_runs_on_the_cpu_whatever_the_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(model(), tmp_path / "out", "torch")
    graph = load_model(tmp_path / "out", "cuda")
    assert next(graph.parameters()).device.type == "cpu" and "it runs on the CPU" in capsys.readouterr().err


def test_damaged_folders_are_one_line(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime (extra [export]) is not installed")
    export(model(), tmp_path / "out", "onnx")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    for change, words in (
        ({"exported": {"to": "caffe"}}, "describes no exported graph .*'caffe'"), ({"exported": 3}, "describes no exported graph"),
        ({"clip": {"frame": 4}}, "unknown clip setting 'frame'"), ({"exported": {"to": "torch"}}, "has no model.pt2, which its"),
    ):  # fmt: skip
        (tmp_path / "out" / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError, match=words) as error:
            load_model(tmp_path / "out")
        assert "\n" not in str(error.value)
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    (tmp_path / "out" / "model.onnx").write_bytes((tmp_path / "out" / "model.onnx").read_bytes()[:999])
    with pytest.raises(CheckpointError, match="model.onnx cannot be opened, it may be damaged: export the model again"):
        load_model(tmp_path / "out")


def test_what_cannot_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="must be one of torch, onnx, openvino"):
        export(model(), tmp_path / "out", "caffe")
    with pytest.raises(ConfigError, match="--int8 is for --to onnx"):
        export(model(), tmp_path / "out", "torch", int8=True)
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tubelet\[openvino\]'"):
        export(model(), tmp_path / "out", "openvino")
    monkeypatch.setattr("tubelet.weights.export.LARGEST", {False: -1.0, True: 0.1})
    with pytest.raises(CheckpointError, match="the graph differs from the model by .*: nothing was written"):
        export(model(), tmp_path / "out", "torch")
    assert list(tmp_path.iterdir()) == []


def test_flow_by_opencv_leaves_pytorch_but_not_python(
    motion_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What OpenCV computes is an operation of ours: a process that only opens the graph must know it, and ONNX cannot hold it."""
    pytest.importorskip("cv2", reason="OpenCV (extra [flow]) is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime (extra [export]) is not installed")
    save(models.build("two_stream_resnet18", ClipSpec(frames=4, size=64), ("a", "b"), width=8).eval(), tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "onnx"), "--to", "onnx"]) == 2
    said = capsys.readouterr().err
    assert "calls tubelet.classical_flow" in said and "--to torch" in said and "estimator raft_small" in said
    assert said.count("\n") == 1 and sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "torch"), "--to", "torch"]) == 0
    video = str(next(motion_folder.rglob("*.mp4")))
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "model"), video, "--clips", "1", "--json"]) == 0
    ours = json.loads(capsys.readouterr().out)[0]["top"]
    words = [sys.executable, "-m", "tubelet", "predict", str(tmp_path / "torch"), video, "--clips", "1", "--json"]
    theirs = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)[0]["top"]
    assert [one["class"] for one in theirs] == [one["class"] for one in ours]
    np.testing.assert_allclose(*([one["probability"] for one in side] for side in (ours, theirs)), atol=1e-5)
