"""Two small models and a server in this process, and one in a process of its own."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("fastapi", reason="the page needs the extra [serve]")
pytest.importorskip("httpx2", reason="the tests of the page need httpx2")

from starlette.testclient import TestClient

from tubelet import datasets, models
from tubelet.records import ClipSpec
from tubelet.weights.load import load_model
from tubelet.weights.save import save

SPEC = ClipSpec(frames=4, stride_frames=2, size=32)
SIZES = dict(depth=1, width=24, heads=2, patch=8)


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A classifier, another of single frames, and a masked autoencoder, all of random weights."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(3)
    made = {
        "classifier": models.build("videomae_tiny", SPEC, ("left", "right", "up"), **SIZES),
        "frames": models.build("single_frame", SPEC, ("left", "right", "up"), width=8, stages=2),
        "autoencoder": models.build("videomae_tiny", SPEC, **SIZES),
    }
    torch.nn.init.normal_(made["classifier"].head.weight)
    return {name: save(model, folder / name) for name, model in made.items()}


@pytest.fixture
def client(model_folders: dict[str, Path], tmp_path: Path) -> Iterator[TestClient]:
    """Asks the three models; uploads of at most 1 MB, 10 s and 0.1 megapixels."""
    from tubelet.web.app import make_app
    from tubelet.web.desk import Options
    from tubelet.web.uploads import Limits, Uploads
    from tubelet.web.work import open_model

    served = [open_model(path, name, "cpu") for name, path in model_folders.items()]
    uploads = Uploads(tmp_path / "uploads", Limits(megabytes=1, seconds=10, megapixels=0.1))
    with TestClient(make_app(served, uploads, Options(workers=2)), base_url="http://localhost:8765") as made:
        yield made


@pytest.fixture(scope="module")
def serve(model_folders: dict[str, Path]) -> Iterator[Callable[..., tuple[str, subprocess.Popen[str]]]]:
    """serve(*flags) -> (address, process): `tubelet serve` with the three models."""
    running: list[subprocess.Popen[str]] = []

    def start(*flags: str, **environment: str) -> tuple[str, subprocess.Popen[str]]:
        words = [
            sys.executable,
            "-W",
            "error",
            "-m",
            "tubelet",
            "serve",
            *map(str, model_folders.values()),
            "--port",
            "0",
            *flags,
        ]
        process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        )
        running.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            found = re.match(r"(http://\S+)", line)
            if found:
                return found[1], process
        raise AssertionError(f"the server ended with {process.wait()}")

    yield start
    for process in running:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture(scope="session")
def indexed(motion_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(videos, model that reads words, library)."""
    pytest.importorskip("lancedb", reason="a library needs the extra [search]")
    from tubelet.search import Index

    folder = tmp_path_factory.mktemp("library")
    videos = Path(shutil.copytree(motion_folder / "train", folder / "videos"))
    torch.manual_seed(1)
    made = models.build(
        "video_text_tiny", SPEC, video_options=SIZES | {"decoder": False}, text={"width": 24, "depth": 1, "heads": 2}, width=16
    )
    model = save(made, folder / "model")
    index = Index.create(folder / "index", load_model(model), model)
    index.add(load_model(model), datasets.read(videos).examples)
    return videos, model, folder / "index"
