"""What tests share: one thread per test process, tiny real videos made on the spot, and the way to data beside the clone."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

# Several test processes share the cores. Set before torch is imported, and inherited by the processes that tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import pytest
import torch
from hypothesis import settings

if TYPE_CHECKING:
    from tubelet.records import Example

# Everybody runs the same examples, and a slow machine is no failure. To look for new ones: HYPOTHESIS_PROFILE=search.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

ROOT = Path(__file__).parents[1]

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """Tests that draw from torch's global generator draw the same values in any order."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def motion_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real MP4 files of 16 frames of 32x32: train/ (4 a class) and val/ (2 a class) of two classes, 4 in unlabelled/."""
    from tubelet.video.synthetic import write_motion_set

    folder = tmp_path_factory.mktemp("motion")
    return write_motion_set(folder, ("translate_left", "translate_right"), train=4, val=2, unlabelled=4, frames=16, size=32)


@pytest.fixture
def damaged(tmp_path: Path) -> "Example":
    """120 frames of which the last quarter cannot be decoded, which only those who decode it find out."""
    from tubelet.records import Example
    from tubelet.video._index import read_index
    from tubelet.video.write import write_video

    path = tmp_path / "damaged.mp4"
    write_video(path, torch.randint(256, (120, 3, 32, 32), dtype=torch.uint8), fps=10)
    index, data = read_index(str(path)), bytearray(path.read_bytes())
    assert index.offset is not None
    for start, size in zip(index.offset[90:].tolist(), index.size[90:].tolist(), strict=True):
        data[start + 6 : start + size] = b"\xff" * (size - 6)  # the header of a packet, read without decoding, stays
    path.write_bytes(data)
    return Example(str(path), "damaged")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real videos and reference tensors that may lie beside the clone; the test is skipped where they do not."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no folder `shared` with real videos and reference tensors beside the repository")
    return folder
