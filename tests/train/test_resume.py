"""Real processes, killed at random moments: the same command again ends in the same bits as a run that was left alone."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tubelet.train.config import TrainConfig
from tubelet.train.loop import train
from tubelet.weights.checkpoint import read

Make = Callable[..., TrainConfig]
PATIENCE = 280  # seconds until a process that does not get on is called a failure
TRIES = 5  # to be there before a run is over, on a machine with other things to do

# Everything that has a state is on: moving average, accumulation, drop path, mixup, clipping, repeated sampling, validation.
EVERYTHING = dict(
    optim__steps=30, optim__ema=0.9, optim__accumulate=2, optim__clip_gradient=1.0, optim__lr=1e-3, classify__mixup=0.5,
    model__options__drop_path=0.2, run__checkpoint_every=2, run__log_every=1, run__validations=3,
)  # fmt: skip


pytestmark = pytest.mark.timeout(900)  # several runs a test, each with its PATIENCE


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Starts processes from a server that has imported torch already: each is a real one, and quick to start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tubelet.train.loop"])
    return context


def final_state(run: Path) -> dict[str, torch.Tensor]:
    """Every tensor a finished run leaves: the model folder's and those of the last checkpoint."""
    last = sorted((run / "checkpoints").iterdir())[-1]
    return {**load_file(run / "model" / "model.safetensors"), **{f"last.{k}": v for k, v in read(last).everything().items()}}


def assert_same(run: Path, reference: Path) -> None:
    ours, theirs = final_state(run), final_state(reference)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    kept = ("step", "epoch", "loss", "lr", "gradient_norm", "skipped", "padded", "val_loss", "val_top1")
    curves = []
    for folder in (run, reference):
        entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        curves.append([{name: entry[name] for name in kept if name in entry} for entry in entries])
    assert curves[0] == curves[1]


def lines(run: Path) -> int:
    log = run / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def wait_for(process: BaseProcess, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition() and process.is_alive():
        assert time.monotonic() < end, "the process does not get on"
        time.sleep(0.002)


def kill_again_and_again(processes: ForkServerContext, config: TrainConfig, kills: int, seed: int, least: int) -> None:
    """Start the run until it ends by itself; the first `kills` times it is killed soon after a step, of which `least` must hit."""
    chance = random.Random(seed)
    for _ in range(TRIES):
        hits = 0
        for attempt in range(kills + 1):
            process = processes.Process(target=train, args=(config,))
            process.start()
            if attempt < kills:
                wanted = lines(Path(config.out)) + chance.randint(1, 6)
                wait_for(process, lambda wanted=wanted: lines(Path(config.out)) >= wanted)  # type: ignore[misc]
                time.sleep(chance.random() * 0.05)  # into the next step, a checkpoint being written, a validation...
                process.kill()
            process.join(PATIENCE)
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
            hits += 1
        assert process.exitcode == 0
        if hits >= least:
            return
        shutil.rmtree(config.out)
    raise AssertionError(f"{TRIES} runs were over before they were killed {least} times")


def stopped_at(processes: ForkServerContext, config: TrainConfig, steps: int, number: signal.Signals) -> int:
    """The exit code of a run that got a signal once it had logged `steps`; of another one where it was over by then."""
    for _ in range(TRIES):
        process = processes.Process(target=train, args=(config,))
        process.start()
        wait_for(process, lambda: lines(Path(config.out)) >= steps)
        if process.is_alive():
            os.kill(process.pid or 0, number)
        process.join(PATIENCE)
        if process.exitcode:
            return process.exitcode
        assert process.exitcode == 0, "the process does not end"
        shutil.rmtree(config.out)
    raise AssertionError(f"{TRIES} runs were over before the signal")


@pytest.mark.parametrize("changes", [
    {"loader__workers": 0}, {"loader__workers": 2}, {"loader__workers": 2, "loader__cache": "off"},
], ids=["no workers", "threads", "worker processes"])  # fmt: skip
def test_killed_and_repeated_equals_uninterrupted(
    processes: ForkServerContext, finetune_config: Make, changes: dict[str, object]
) -> None:
    reference = finetune_config("reference", **EVERYTHING)
    alone = processes.Process(target=train, args=(reference,))
    alone.start()
    alone.join(PATIENCE)
    assert alone.exitcode == 0
    config = finetune_config("killed", **{**EVERYTHING, **changes})
    kill_again_and_again(processes, config, kills=4, seed=len(changes), least=2)
    assert_same(Path(config.out), Path(reference.out))


def test_killed_pretraining_equals_uninterrupted(processes: ForkServerContext, pretrain_config: Make) -> None:
    settings = dict(
        optim__steps=30,
        optim__ema=0.9,
        run__checkpoint_every=3,
        run__log_every=1,
        masked__decoder_mask="running_cell",
        masked__ratio=0.75,
    )
    reference, config = pretrain_config("reference", **settings), pretrain_config("killed", **settings)
    alone = processes.Process(target=train, args=(reference,))
    alone.start()
    alone.join(PATIENCE)
    kill_again_and_again(processes, config, kills=3, seed=5, least=1)
    assert_same(Path(config.out), Path(reference.out))


def test_a_damaged_newest_checkpoint_costs_steps_and_nothing_else(
    processes: ForkServerContext, finetune_config: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    reference, config = finetune_config("reference", **EVERYTHING), finetune_config("damaged", **EVERYTHING)
    out = Path(config.out)
    alone = processes.Process(target=train, args=(reference,))
    alone.start()
    alone.join(PATIENCE)
    assert stopped_at(processes, config, 9, signal.SIGKILL) == -signal.SIGKILL
    newest = sorted((out / "checkpoints").glob("step_*"))[-1]
    part = newest / "part_00001.safetensors"
    part.write_bytes(part.read_bytes()[:-100])
    train(config)
    assert f"passing over a damaged checkpoint: {newest}" in capsys.readouterr().err
    assert_same(out, Path(reference.out))


def test_sigterm_saves_first(processes: ForkServerContext, finetune_config: Make) -> None:
    reference, config = (
        finetune_config("reference", **EVERYTHING),
        finetune_config("stopped", **{**EVERYTHING, "run__checkpoint_every": 1000}),
    )
    out = Path(config.out)
    assert stopped_at(processes, config, 3, signal.SIGTERM) != -signal.SIGTERM
    assert len(list((out / "checkpoints").iterdir())) == 1
    for one in (config, reference):
        again = processes.Process(target=train, args=(one,))
        again.start()
        again.join(PATIENCE)
    assert_same(out, Path(reference.out))


def test_ctrl_c_saves_says_so_and_exits_130(motion_folder: Path, tmp_path: Path) -> None:
    """The whole command in a process group of its own, as a terminal would stop it: worker processes get the signal too."""
    settings = "--clip.size 32 --clip.frames=4 --optim.steps 100000 --run.log-every 1 --loader.cache off --loader.workers 2"
    command = [
        sys.executable,
        "-m",
        "tubelet",
        "pretrain",
        str(motion_folder),
        "--out",
        str(tmp_path / "run"),
        *settings.split(),
    ]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    end = time.monotonic() + PATIENCE
    while lines(tmp_path / "run") < 3:
        assert process.poll() is None and time.monotonic() < end, process.stderr.read() if process.stderr else ""
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, text = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, text
    assert "saved: the same command continues" in text and "Traceback" not in text
    stopped = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])["step"]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step_{stopped:08d}"]
