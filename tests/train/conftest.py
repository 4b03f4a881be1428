"""A run small enough for tests, on real videos, and the way to start it as a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tubelet.recipes import fine_tuning, pretraining
from tubelet.train.config import TrainConfig

SMALL: dict[str, Any] = {
    "model.name": "videomae_tiny",
    "model.options": {"patch": 8, "width": 32, "depth": 2, "heads": 2, "decoder_depth": 1, "decoder_width": 16, "decoder_heads": 2},
    "clip.size": 32, "clip.frames": 4, "clip.stride_frames": 2, "loader.batch_size": 4, "loader.repeats": 2, "loader.workers": 0,
    "optim.epochs": None, "optim.steps": 12, "run.log_every": 2, "run.validations": 2, "run.device": "cpu", "run.report": False,
}  # fmt: skip

Make = Callable[..., TrainConfig]


@pytest.fixture
def pretrain_config(motion_folder: Path, tmp_path: Path) -> Make:
    """Makes the configuration of a small pretraining run in tmp_path/<name>, with dotted settings changed."""

    def make(name: str = "run", **settings: Any) -> TrainConfig:
        return pretraining([str(motion_folder)], str(tmp_path / name), {**SMALL, **dotted(settings)})

    return make


@pytest.fixture
def finetune_config(motion_folder: Path, tmp_path: Path) -> Make:
    """The same for fine-tuning; `source` is the model to start from."""

    def make(name: str = "run", source: str | None = None, **settings: Any) -> TrainConfig:
        small = {key: value for key, value in SMALL.items() if source is None or not key.startswith(("model.", "clip."))}
        return fine_tuning(source, [str(motion_folder)], str(tmp_path / name), {**small, **dotted(settings)})

    return make


def dotted(settings: dict[str, Any]) -> dict[str, Any]:
    """optim__steps=3 -> {"optim.steps": 3}: a keyword cannot hold a dot."""
    return {name.replace("__", "."): value for name, value in settings.items()}


@pytest.fixture
def start(tmp_path: Path) -> Callable[[str], subprocess.Popen[str]]:
    """Starts a Python program as a process with one thread."""

    def run(program: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error::UserWarning"}
        return subprocess.Popen([sys.executable, "-c", program], text=True, cwd=tmp_path, env=environment,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip

    return run
