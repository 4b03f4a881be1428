"""Every family leaves PyTorch, as a graph of torch's and of ONNX: a process that only opens the files gives the same answers."""

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tubelet import models
from tubelet.weights.export import export

from .small import clips, family_of, randomise, small

pytestmark = pytest.mark.filterwarnings("ignore")  # the exporters' own
needs_onnx = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime (extra [export]) is not installed"
)

FIRST_OF_FAMILY = sorted({family_of(name): name for name in sorted(models.variants(), reverse=True)}.values())
OPTIONS: dict[str, dict[str, dict[str, object]]] = {  # OpenCV is Python, which ONNX does not hold
    "torch": {},
    "onnx": {"two_stream_resnet18": dict(estimator="raft_small")},
}

QUICK = ("cnn3d_lstm_resnet18", "early_fusion_resnet18", "two_stream_resnet18", "videomae_base")  # the others are slow

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
    save_file({"chances": out["logits"].softmax(-1), "embedding": out["embedding"].contiguous()}, folder / "theirs.safetensors")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported")


def exported(name: str, to: str, folder: Path) -> Path:
    """Where the graph of a small model is, beside what it is asked and what the model answers."""
    place = folder / to / name
    if not (place / "ours.safetensors").exists():
        model = small(name, ("a", "b", "c"), **OPTIONS[to].get(name, {})).eval()
        randomise(model)
        frames = clips(model.spec, batch=3, seed=1)
        with torch.no_grad():
            out = model(frames)
        export(model, place / "graph", to)
        save_file({"frames": frames}, place / "asked.safetensors")
        save_file(
            {"chances": out["logits"].softmax(-1), "embedding": out["embedding"].contiguous()}, place / "ours.safetensors"
        )
    return place


def check_elsewhere(names: Sequence[str], to: str, folder: Path) -> None:
    places = {name: exported(name, to, folder) for name in names}
    subprocess.run([sys.executable, "-c", PROGRAM, str(folder / to)], check=True)
    errors = {name: (place / "error.txt").read_text() for name, place in places.items() if (place / "error.txt").exists()}
    assert not errors
    for name, place in places.items():
        ours, theirs = load_file(place / "ours.safetensors"), load_file(place / "theirs.safetensors")
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", QUICK)
def test_it_leaves_pytorch_as_a_graph_of_torchs(name: str, folder: Path) -> None:
    assert (exported(name, "torch", folder) / "graph" / "model.pt2").exists()


def test_torchs_graphs_answer_in_another_process(folder: Path) -> None:
    check_elsewhere(QUICK, "torch", folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FIRST_OF_FAMILY if name not in QUICK])
def test_the_others_leave_pytorch_as_a_graph_of_torchs(name: str, folder: Path) -> None:
    assert (exported(name, "torch", folder) / "graph" / "model.pt2").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_of_torchs_graphs_answer_in_another_process(folder: Path) -> None:
    check_elsewhere(FIRST_OF_FAMILY, "torch", folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_onnx
@pytest.mark.parametrize("name", FIRST_OF_FAMILY)
def test_it_leaves_pytorch_as_an_onnx_graph(name: str, folder: Path) -> None:
    assert (exported(name, "onnx", folder) / "graph" / "model.onnx").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_onnx
def test_onnx_graphs_answer_in_another_process(folder: Path) -> None:
    check_elsewhere(FIRST_OF_FAMILY, "onnx", folder)
