"""A checkpoint is the same, bit for bit, whoever wrote it and whoever reads it: 1, 2 and 4 processes, DDP and FSDP2."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tubelet import models
from tubelet.records import ClipSpec
from tubelet.train import checkpoint, optim
from tubelet.train.config import OptimConfig
from tubelet.weights.checkpoint import read
from tubelet.weights.load import load_model

PATIENCE = 280  # seconds until processes that do not get on are called a failure
NAME = "step_00000009"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """alone/: written by one process. Sizes that no number divides, a buffer, a part that is not trained, a moving average."""
    options = dict(width=34, depth=2, heads=2, decoder_width=18, decoder_depth=1, decoder_heads=2, patch=8, vocabulary=5)
    model = models.build("videomae_tiny", ClipSpec(frames=4, size=32, stride_frames=1), ["a", "b", "c"], **options)
    for buffer in model.buffers():
        buffer.copy_(torch.randn_like(buffer))
    for p in model.embed.parameters():
        p.requires_grad_(False)
    optimizer = optim.adamw(model, OptimConfig())
    optim.set_lr(optimizer, 1e-3)
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.randn_like(p) if p.requires_grad else None
        optimizer.step()
    writer = checkpoint.Writer(tmp_path / "alone", keep=1)
    ema = {name: p.detach() * 2 for name, p in model.named_parameters() if p.requires_grad}
    writer.begin({"step": 9, "seconds": 0.5}, model, optimizer, ema)
    writer.wait()
    return tmp_path


def resave(folder: Path, processes: int, jobs: Sequence[tuple[str, str]]) -> None:
    """Each job names a checkpoint in `folder` and a way, "ddp" or "fsdp": it is read so and written to <name>-<way><processes>."""
    asked = [
        {"source": str(folder / name / NAME), "target": str(folder / f"{name}-{way}{processes}"), "way": way}
        for name, way in jobs
    ]
    (folder / "jobs.json").write_text(json.dumps(asked), encoding="utf-8")
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    program = [str(Path(__file__).with_name("resave.py")), str(folder / "jobs.json")]
    done = subprocess.run([sys.executable, *start, *program], capture_output=True, text=True, check=False, timeout=PATIENCE,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr


def assert_all_alike(folder: Path, count: int) -> None:
    wanted = read(folder / "alone" / NAME)
    values = wanted.everything()
    written = [path for path in folder.iterdir() if path.is_dir() and path.name != "alone"]
    assert len(written) == count
    for path in written:
        found = read(path / NAME)
        assert found.state == wanted.state and found.description == wanted.description
        ours = found.everything()
        assert ours.keys() == values.keys()
        assert [
            name for name in values if not torch.equal(ours[name], values[name]) or ours[name].dtype != values[name].dtype
        ] == []


def test_two_processes_and_back(folder: Path) -> None:
    resave(folder, 2, [("alone", "ddp"), ("alone", "fsdp"), ("alone-ddp2", "fsdp"), ("alone-fsdp2", "ddp")])
    resave(folder, 1, [("alone-ddp2", "ddp"), ("alone-fsdp2", "ddp")])
    assert_all_alike(folder, 6)
    for name in ("alone-ddp2", "alone-fsdp2"):
        written = folder / name / NAME
        assert sorted(os.listdir(written)) == ["checkpoint.json", "part_00001.safetensors", "part_00002.safetensors"]
        first, second = (path.stat().st_size for path in sorted(written.glob("part_*")))
        assert 0.8 < first / second < 1.25  # each wrote its share and nothing twice
        assert 0.9 < (first + second) / (folder / "alone" / NAME / "part_00001.safetensors").stat().st_size < 1.1
        loaded, wanted = (load_model(folder / one / NAME).state_dict() for one in (name, "alone"))
        assert all(torch.equal(loaded[key], wanted[key]) for key in wanted)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_four_processes_and_back(folder: Path) -> None:
    resave(folder, 2, [("alone", "ddp"), ("alone", "fsdp")])
    two = ["alone", "alone-ddp2", "alone-fsdp2"]
    resave(folder, 4, [(name, way) for name in two for way in ("ddp", "fsdp")])
    four = ["alone-ddp4", "alone-fsdp4"]
    resave(folder, 4, [("alone-ddp4", "fsdp"), ("alone-fsdp4", "ddp")])
    resave(folder, 2, [(name, way) for name in four for way in ("ddp", "fsdp")])
    resave(folder, 1, [(name, "ddp") for name in four])
    assert_all_alike(folder, 16)
