"""Checkpoints are whole or not there; what comes back is what was saved, bit for bit."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tubelet import models
from tubelet.errors import CheckpointError
from tubelet.records import ClipSpec
from tubelet.train import checkpoint, optim
from tubelet.train.config import OptimConfig
from tubelet.weights.load import load_model

SPEC = ClipSpec(frames=4, size=32, stride_frames=1)
SMALL = dict(width=32, depth=2, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2, patch=8)


def trained(steps: int = 2, **options: int) -> tuple[torch.nn.Module, torch.optim.Optimizer, dict[str, torch.Tensor]]:
    model = models.build("videomae_tiny", SPEC, ["a", "b"], **{**SMALL, **options})
    optimizer = optim.adamw(model, OptimConfig())
    optim.set_lr(optimizer, 1e-3)
    for _ in range(steps):
        model(torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8))["logits"].square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer, {name: p.detach() * 2 for name, p in model.named_parameters()}


def save(folder: Path, state: dict, model, optimizer, ema=None, keep: int = 2) -> Path:  # type: ignore[no-untyped-def, type-arg]
    writer = checkpoint.Writer(folder, keep)
    writer.begin(state, model, optimizer, ema)
    writer.wait()
    return folder / f"step_{state['step']:08d}"


def moments(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [value for state in optimizer.state_dict()["state"].values() for value in state.values()]


def silent(message: str) -> None:
    raise AssertionError(message)


def test_round_trip_is_bit_identical(tmp_path: Path) -> None:
    model, optimizer, ema = trained()
    state = {"step": 7, "seconds": 1.5, "skipped": 0, "padded": 2}
    path = save(tmp_path, state, model, optimizer, ema)
    assert path.name == "step_00000007" and os.listdir(tmp_path) == [path.name]
    found = checkpoint.load_latest(tmp_path, silent)
    assert found is not None and found.state == state
    other, other_optimizer, other_ema = trained(steps=0)
    other_ema = {name: torch.zeros_like(value) for name, value in other_ema.items()}
    checkpoint.restore(found, other, other_optimizer, other_ema)
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert len(moments(optimizer)) == len(moments(other_optimizer)) == 3 * len(list(model.parameters()))
    assert all(
        torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(moments(optimizer), moments(other_optimizer), strict=True)
    )
    assert all(torch.equal(ema[name], other_ema[name]) for name in ema)


def test_a_checkpoint_is_a_model_that_loads(tmp_path: Path) -> None:
    model, optimizer, _ = trained()
    path = save(tmp_path, {"step": 1}, model, optimizer)
    frames = torch.randint(0, 256, (1, 4, 3, 32, 32), dtype=torch.uint8)
    for place in (path, path / "part_00001.safetensors"):
        assert torch.equal(load_model(place)(frames)["logits"], model.eval()(frames)["logits"])
    assert sorted(os.listdir(path)) == [
        "checkpoint.json",
        "part_00001.safetensors",
    ]  # readable by anyone: no pickle, plain names
    with safe_open(path / "part_00001.safetensors", "pt") as file:
        assert "model.embed.weight" in file.keys() and "optimizer.embed.weight.exp_avg" in file.keys()  # noqa: SIM118
    assert json.loads((path / "checkpoint.json").read_text())["content"]["state"] == {"step": 1}


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    model, optimizer, ema = trained()
    wanted = {name: value.clone() for name, value in model.state_dict().items()}
    writer = checkpoint.Writer(tmp_path, keep=2)
    writer.begin({"step": 1}, model, optimizer, ema)
    for tensor in (*model.parameters(), *ema.values(), *moments(optimizer)):
        tensor.detach().fill_(float("nan"))
    writer.wait()
    found = checkpoint.load_latest(tmp_path, silent)
    assert found is not None and all(torch.equal(found.part("model")[name], wanted[name]) for name in wanted)
    assert all(bool(value.isfinite().all()) for value in found.everything().values())
    writer.close()


def test_a_checkpoint_that_could_not_be_written_is_said_by_whoever_comes_next(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model, optimizer, _ = trained(steps=1)

    def later(writer: checkpoint.Writer) -> None:
        while True:
            writer.check()

    for ask in (checkpoint.Writer.wait, lambda writer: writer.begin({"step": 2}, model, optimizer), later):
        writer = checkpoint.Writer(tmp_path / "file" / "checkpoints", keep=2)
        writer.begin({"step": 1}, model, optimizer)
        with pytest.raises(CheckpointError, match="cannot write the checkpoint .*choose another --out"):
            ask(writer)
        writer.close()
        writer.check()  # it was said once


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    model, optimizer, _ = trained()
    for step in (1, 2, 3, 30):
        save(tmp_path, {"step": step}, model, optimizer, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["step_00000003", "step_00000030"]


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "nothing left": lambda path: path.write_bytes(b""),
    "half left": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "last byte missing": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "a bit at the beginning": lambda path: flip(path, 12),
    "a bit near the end": lambda path: flip(path, -30),
    "another text": lambda path: path.write_text("not a checkpoint"),
    "not there": lambda path: path.unlink(),
}


@pytest.fixture(params=[f"{damage}: {file}" for damage in DAMAGES for file in ("part_00001.safetensors", "checkpoint.json")])
def damage(request: pytest.FixtureRequest) -> Callable[[Path], object]:
    """Damages a file of a checkpoint."""
    kind, file = request.param.split(": ")
    return lambda folder: DAMAGES[kind](folder / file)


def test_a_damaged_newest_is_reported_and_passed_over(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    model, optimizer, _ = trained()
    save(tmp_path, {"step": 1}, model, optimizer)
    damage(save(tmp_path, {"step": 2}, model, optimizer))
    said: list[str] = []
    found = checkpoint.load_latest(tmp_path, said.append)
    assert found is not None and found.state["step"] == 1
    assert len(said) == 1 and "step_00000002" in said[0] and "passing over a damaged checkpoint" in said[0]
    save(tmp_path, {"step": 2}, model, optimizer)
    assert checkpoint.load_latest(tmp_path, silent) is not None


def test_a_model_is_loaded_from_the_newest_that_is_whole(
    tmp_path: Path,
    damage,  # type: ignore[no-untyped-def]
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, optimizer, _ = trained()
    save(tmp_path / "checkpoints", {"step": 1}, model, optimizer)
    damage(save(tmp_path / "checkpoints", {"step": 2}, model, optimizer))
    assert torch.equal(load_model(tmp_path).state_dict()["head.weight"], model.state_dict()["head.weight"])
    assert "passing over a damaged checkpoint" in capsys.readouterr().err


def test_a_model_is_loaded_with_its_moving_average(tmp_path: Path) -> None:
    model, optimizer, ema = trained()
    path = save(tmp_path / "checkpoints", {"step": 1}, model, optimizer, {"head.weight": ema["head.weight"]})
    for place in (tmp_path, path):
        loaded = load_model(place).state_dict()
        assert torch.equal(loaded["head.weight"], ema["head.weight"])
        assert torch.equal(loaded["embed.weight"], model.state_dict()["embed.weight"])


def test_loading_a_model_leaves_the_draft_of_a_run_that_goes_on(tmp_path: Path) -> None:
    model, optimizer, _ = trained()
    save(tmp_path / "checkpoints", {"step": 1}, model, optimizer)
    draft = tmp_path / "checkpoints" / ".step_00000002.tmp"
    draft.mkdir()
    load_model(tmp_path)
    assert draft.exists()


def test_a_damaged_one_beyond_the_resumed_step_goes_with_the_next_save(tmp_path: Path) -> None:
    model, optimizer, _ = trained()
    save(tmp_path, {"step": 1}, model, optimizer)
    for step in (3, 9):
        (save(tmp_path, {"step": step}, model, optimizer, keep=9) / "checkpoint.json").unlink()
    save(tmp_path, {"step": 3}, model, optimizer)
    assert sorted(os.listdir(tmp_path)) == ["step_00000001", "step_00000003"]


def test_all_damaged_is_an_error(tmp_path: Path) -> None:
    model, optimizer, _ = trained()
    (save(tmp_path, {"step": 1}, model, optimizer) / "part_00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints in .* can be read"):
        checkpoint.load_latest(tmp_path, lambda message: None)


def test_drafts_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    for name in (".step_00000001.tmp", ".step_00000001.old.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part_00001.safetensors").write_text("half")
    assert checkpoint.load_latest(tmp_path, silent) is None
    assert os.listdir(tmp_path) == []


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    model, optimizer, _ = trained()
    save(tmp_path, {"step": 1}, model, optimizer)
    found = checkpoint.load_latest(tmp_path, silent)
    assert found is not None
    wider, its_optimizer, _ = trained(steps=0, width=64)
    with pytest.raises(CheckpointError, match="another model"):
        checkpoint.restore(found, wider, its_optimizer, None)


def test_a_checkpoint_with_another_moving_average(tmp_path: Path) -> None:
    model, optimizer, ema = trained()
    save(tmp_path, {"step": 1}, model, optimizer)
    found = checkpoint.load_latest(tmp_path, silent)
    assert found is not None
    with pytest.raises(CheckpointError, match="has no moving average, unlike this run"):
        checkpoint.restore(found, model, optimizer, ema)


def test_a_checkpoint_of_a_run_that_trained_other_parameters(tmp_path: Path) -> None:
    model, optimizer, _ = trained()
    save(tmp_path, {"step": 1}, model, optimizer)
    found = checkpoint.load_latest(tmp_path, silent)
    frozen, _, _ = trained(steps=0)
    optim.freeze_all_but_head(frozen)
    assert found is not None
    with pytest.raises(CheckpointError, match="which this run does not train"):
        checkpoint.restore(found, frozen, optim.adamw(frozen, OptimConfig()), None)


def test_a_full_disk_leaves_the_older_ones_whole(tmp_path: Path) -> None:
    """In a process of its own whose files may not grow beyond 100 kB: the system then refuses the write as on a full disk."""
    program = (
        "import resource, signal, sys; from pathlib import Path\n"
        "import torch\n"
        "from tubelet import models; from tubelet.errors import CheckpointError; from tubelet.records import ClipSpec\n"
        "from tubelet.train import checkpoint, optim; from tubelet.train.config import OptimConfig\n"
        f"model = models.build('videomae_tiny', ClipSpec(frames=4, size=32), ['a', 'b'], **{SMALL!r})\n"
        "optimizer = optim.adamw(model, OptimConfig()); folder = Path(sys.argv[1])\n"
        "def save(step): writer = checkpoint.Writer(folder, 2); writer.begin({'step': step}, model, optimizer); writer.wait()\n"
        "save(1)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    save(2)\n"
        "except CheckpointError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cannot write the checkpoint" in done.stdout and "make room" in done.stdout
    assert os.listdir(tmp_path) == ["step_00000001"]
    assert checkpoint.load_latest(tmp_path, silent) is not None


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_really_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        model, optimizer, _ = trained()
        save(disk / "checkpoints", {"step": 1}, model, optimizer)
        (disk / "filler").write_bytes(b"x" * 300_000)
        with pytest.raises(CheckpointError, match="cannot write the checkpoint"):
            save(disk / "checkpoints", {"step": 2}, model, optimizer)
        assert os.listdir(disk / "checkpoints") == ["step_00000001"]
        assert checkpoint.load_latest(disk / "checkpoints", silent) is not None
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_files_of_an_earlier_version_are_not_passed_over_in_silence(tmp_path: Path) -> None:
    old = tmp_path / "checkpoints" / "step_00000007.safetensors"
    old.parent.mkdir()
    old.touch()
    for place in (tmp_path, old):
        with pytest.raises(CheckpointError, match="step_00000007.* was written by an earlier version"):
            load_model(place)
