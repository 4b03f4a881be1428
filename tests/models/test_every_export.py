"""Every family leaves PyTorch, as a graph of torch's and of ONNX: a process that only opens the files gives the same answers."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tubelet import models
from tubelet.weights.export import export

from .small import clips, family_of, randomise, small

pytestmark = pytest.mark.filterwarnings("ignore")  # the exporters' own

FIRST_OF_FAMILY = sorted({family_of(name): name for name in sorted(models.variants(), reverse=True)}.values())
OPTIONS: dict[str, dict[str, dict[str, object]]] = {  # OpenCV is Python, which ONNX does not hold
    "torch": {},
    "onnx": {"two_stream_resnet18": dict(estimator="raft_small")},
}

# The process that opens them: all folders beside one another, the frames of each and what came of them.
PROGRAM = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from tubelet.weights.load import load_model

torch.set_num_threads(1)
for folder in sorted(Path(sys.argv[1]).iterdir()):
    frames = load_file(folder / "asked.safetensors")["frames"]
    try:
        out = load_model(folder / "graph")(frames)
    except Exception as error:
        (folder / "error.txt").write_text(f"{type(error).__name__}: {error}")
        continue
    save_file({key: out[key].contiguous() for key in ("logits", "embedding")}, folder / "answers.safetensors")
"""

Answers = dict[str, dict[str, Tensor] | str]


def opened_elsewhere(to: str, folder: Path) -> tuple[Answers, Answers]:
    """(by name, what each model gives for three clips; what its graph gives for them in another process, or why it does not)."""
    ours: Answers = {}
    for name in FIRST_OF_FAMILY:
        model = small(name, ("a", "b", "c"), **OPTIONS[to].get(name, {})).eval()
        randomise(model)
        frames = clips(model.spec, batch=3, seed=1)
        with torch.no_grad():
            out = model(frames)
        ours[name] = {"probabilities": out["logits"].softmax(-1), "embedding": out["embedding"]}
        (folder / name).mkdir()
        save_file({"frames": frames}, folder / name / "asked.safetensors")
        export(model, folder / name / "graph", to)
    subprocess.run([sys.executable, "-c", PROGRAM, str(folder)], check=True)
    theirs: Answers = {}
    for name in FIRST_OF_FAMILY:
        if (folder / name / "error.txt").exists():
            theirs[name] = (folder / name / "error.txt").read_text()
        else:
            found = load_file(folder / name / "answers.safetensors")
            theirs[name] = {"probabilities": found["logits"].softmax(-1), "embedding": found["embedding"]}
    return ours, theirs


@pytest.fixture(scope="module")
def of_torch(tmp_path_factory: pytest.TempPathFactory) -> tuple[Answers, Answers]:
    return opened_elsewhere("torch", tmp_path_factory.mktemp("torch"))


@pytest.fixture(scope="module")
def of_onnx(tmp_path_factory: pytest.TempPathFactory) -> tuple[Answers, Answers]:
    return opened_elsewhere("onnx", tmp_path_factory.mktemp("onnx"))


@pytest.mark.parametrize("name", FIRST_OF_FAMILY)
def test_a_graph_of_torchs_answers_in_another_process(name: str, of_torch: tuple[Answers, Answers]) -> None:
    ours, theirs = (side[name] for side in of_torch)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime (extra [export]) is not installed")
@pytest.mark.parametrize("name", FIRST_OF_FAMILY)
def test_an_onnx_graph_answers_in_another_process(name: str, of_onnx: tuple[Answers, Answers]) -> None:
    ours, theirs = (side[name] for side in of_onnx)
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4)
