"""What befalls a run: real processes, real signals, real full and read-only disks. Afterwards the same command ends in the same
bits as a run that was left alone; nothing is lost but the steps since the last checkpoint.

Kills of threads, of other objectives and at other settings are in tests/train/test_resume.py.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tubelet.weights.checkpoint import read

PATIENCE = 280  # seconds until a process that does not get on is called a failure
STEPS = 24
TRIES = 5  # to be there before a run is over, on a machine with other things to do
SETTINGS = (
    "--clip.frames 4 --clip.size 32 --clip.stride-frames 2 --loader.batch-size 4 --loader.cache off --loader.workers 2 "
    "--optim.ema 0.9 --run.report false --run.log-every 1 --run.device cpu "
    "--model.options.patch 8 --model.options.width 32 --model.options.depth 2 --model.options.heads 2 "
    "--model.options.decoder-depth 1 --model.options.decoder-width 16 --model.options.decoder-heads 2"
)

EVERY_PROCESS = ("--loader.repeats", "2")  # of a batch of four has something to do then


def start(
    videos: Path, out: Path, *more: str, steps: int = STEPS, processes: int = 1, **environment: str
) -> "subprocess.Popen[str]":
    launch = ["launch", "--processes", str(processes), "--"] if processes > 1 else []
    command = [sys.executable, "-m", "tubelet", *launch, "pretrain", str(videos), "--out", str(out), *SETTINGS.split()]
    command += ["--optim.steps", str(steps), *(more or ("--run.checkpoint-every", "3"))]
    everything = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(command, env=everything, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Its exit code and what it said."""
    text = process.communicate(timeout=PATIENCE)[1]
    return process.returncode, text


pytestmark = pytest.mark.timeout(900)  # several runs a test, each with its PATIENCE


@pytest.fixture(scope="module")
def videos(motion_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(motion_folder, tmp_path_factory.mktemp("faults") / "videos"))


@pytest.fixture(scope="module")
def reference(videos: Path) -> Path:
    """A run that nothing befalls."""
    code, text = finish(start(videos, videos.parent / "reference"))
    assert code == 0, text
    return videos.parent / "reference"


def logged(run: Path) -> list[dict[str, float]]:
    log = run / "log.jsonl"
    return (
        [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")] if log.exists() else []
    )


def wait_for(process: "subprocess.Popen[str]", condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition() and process.poll() is None:
        assert time.monotonic() < end, "the process does not get on"
        time.sleep(0.002)


def wait_for_a_draft(process: "subprocess.Popen[str]", checkpoints: Path) -> None:
    """A checkpoint is being written; what was left of one before does not count."""
    for there in (False, True):
        wait_for(process, lambda there=there: any(checkpoints.glob(".step_*.tmp")) == there)  # type: ignore[misc]


def killed_at(videos: Path, run: Path, steps: int, **environment: str) -> None:
    """A run that is killed once it has logged `steps`; another one where it was over by then."""
    for _ in range(TRIES):
        process = start(videos, run, **environment)
        wait_for(process, lambda: len(logged(run)) >= steps)
        process.kill()
        text = process.communicate(timeout=PATIENCE)[1]
        if process.returncode == -signal.SIGKILL:
            return
        assert process.returncode == 0, text
        shutil.rmtree(run)
    raise AssertionError(f"{TRIES} runs were over before they were killed")


@contextmanager
def held(process: "subprocess.Popen[str]") -> Iterator[None]:
    """It stands still meanwhile."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def assert_same(run: Path, reference: Path) -> None:
    """The same weights, checkpoint and curve, bit for bit."""
    for everything in (lambda run: load_file(run / "model" / "model.safetensors"),
                       lambda run: read(run / "checkpoints" / f"step_{STEPS:08d}").everything()):  # fmt: skip
        ours, theirs = everything(run), everything(reference)
        assert ours.keys() == theirs.keys() and [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    kept = ("step", "loss", "lr", "skipped")
    curves = [[{name: entry[name] for name in kept} for entry in logged(folder)] for folder in (run, reference)]
    assert curves[0] == curves[1]


def workers_of(pid: int) -> list[int]:
    """Processes that a process started."""
    found = []
    for other in filter(str.isdigit, os.listdir("/proc")):
        try:
            if int(Path(f"/proc/{other}/stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(other))
        except OSError:
            continue
    return found


def test_loader_workers_that_are_killed_cost_nothing(videos: Path, reference: Path, tmp_path: Path) -> None:
    run, process, kills = tmp_path / "run", start(videos, tmp_path / "run"), 0
    wait_for(process, lambda: logged(run))
    for _ in range(4):
        wait_for(process, lambda: workers_of(process.pid))
        for worker in workers_of(process.pid):
            with suppress(ProcessLookupError):  # it may have ended by itself by now
                os.kill(worker, signal.SIGKILL)
                kills += 1
    code, text = finish(process)
    assert code == 0 and "left out" not in text, text
    assert kills
    assert_same(run, reference)


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[Path]:
    place.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_while_saving(videos: Path, reference: Path, tmp_path: Path) -> None:
    checkpoint = sum(path.stat().st_size for path in (reference / "checkpoints" / f"step_{STEPS:08d}").iterdir())
    with small_disk(tmp_path / "disk", int(2.6 * checkpoint) + 100_000) as disk:  # two are kept, a third is being written
        code, text = finish(start(videos, disk / "run"))
        assert code == 2 and "error: cannot write the checkpoint" in text and "Traceback" not in text, text
        left = sorted(path.name for path in (disk / "run" / "checkpoints").iterdir())
        assert left == ["step_00000003", "step_00000006"]
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        code, text = finish(start(videos, disk / "run"))
        assert code == 0 and "after step 6 of 24" in text, text
        assert_same(disk / "run", reference)


def test_a_full_disk_while_two_processes_save(videos: Path, reference: Path, tmp_path: Path) -> None:
    checkpoint = sum(path.stat().st_size for path in (reference / "checkpoints" / f"step_{STEPS:08d}").iterdir())
    with small_disk(tmp_path / "disk", int(2.6 * checkpoint) + 100_000) as disk:
        settings = ("--run.checkpoint-every", "3", *EVERY_PROCESS)
        code, text = finish(start(videos, disk / "run", *settings, processes=2))
        assert code == 2 and text.count("error: cannot write the checkpoint") == 1 and "Traceback" not in text, text
        left = sorted(path.name for path in (disk / "run" / "checkpoints").iterdir())
        assert left == ["step_00000003", "step_00000006"]
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        code, text = finish(start(videos, disk / "run", *settings))
        assert code == 0 and "after step 6 of 24" in text, text


def test_a_folder_that_becomes_read_only(videos: Path, reference: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64_000_000) as disk:
        run = disk / "run"
        process = start(videos, run)
        wait_for(process, lambda: len(logged(run)) >= 7)
        with held(process):
            subprocess.run(["mount", "--bind", run, run], check=True)  # a disk cannot be made so while a file on it is open
            subprocess.run(["mount", "-o", "remount,ro,bind", run], check=True)
        code, text = finish(process)
        assert code == 2 and "error: cannot write" in text and "Traceback" not in text, text
        code, text = finish(start(videos, run))
        assert code == 2 and "error: cannot write the run folder" in text and "Read-only" in text, text
        subprocess.run(["umount", "-l", run], check=True)
        code, text = finish(start(videos, run))
        assert code == 0 and "continuing" in text, text
        assert_same(run, reference)


def test_videos_that_are_deleted_or_replaced_on_the_way(videos: Path, reference: Path, tmp_path: Path) -> None:
    """The run goes on without them and names them; where it was stopped, it waits until they are put back."""
    mine = Path(shutil.copytree(videos, tmp_path / "videos"))
    gone, spoiled, other, last = sorted(mine.rglob("*.mp4"))[:4]
    large = "--clip.size 224 --clip.frames 16 --model.options.patch 56 --loader.batch-size 8 --run.checkpoint-every 9"
    process = start(mine, tmp_path / "on", *large.split(), steps=28)  # so large that the loader is not far ahead
    wait_for(process, lambda: len(logged(tmp_path / "on")) >= 3)
    with held(process):
        gone.unlink()
        spoiled.write_bytes(spoiled.read_bytes()[:500])
        os.replace(shutil.copy(last, tmp_path / "copy.mp4"), other)
    code, text = finish(process)
    assert code == 0, text
    skipped = [entry["skipped"] for entry in logged(tmp_path / "on")]
    assert skipped[2] == 0 < skipped[-1]
    assert {line.split(": ")[1] for line in text.splitlines() if line.startswith("left out")} == {
        path.relative_to(mine).as_posix() for path in (gone, spoiled)
    }
    shutil.copytree(videos, mine, dirs_exist_ok=True)

    killed_at(mine, tmp_path / "stopped", 8)
    gone.unlink()
    code, text = finish(start(mine, tmp_path / "stopped"))
    assert code == 2 and "the videos changed since this run began" in text and "put them back" in text, text
    shutil.copytree(videos, mine, dirs_exist_ok=True)
    code, text = finish(start(mine, tmp_path / "stopped"))
    assert code == 0, text
    assert_same(tmp_path / "stopped", reference)


def test_a_clock_that_jumps(videos: Path, reference: Path, tmp_path: Path) -> None:
    """Wall-clock time goes forwards and backwards by a day; the run is killed on the way."""
    (tmp_path / "sitecustomize.py").write_text(
        "import itertools, time\nreal, calls = time.time, itertools.count()\n"
        "time.time = lambda: real() + (86400, -86400, 0)[next(calls) % 3]\n"
        "time.time_ns = lambda: int(time.time() * 1e9)\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = tmp_path / "run"
    killed_at(videos, run, 8, PYTHONPATH=path)
    code, text = finish(start(videos, run, PYTHONPATH=path))
    assert code == 0 and "continuing" in text, text
    assert_same(run, reference)
    seconds = [entry["seconds"] for entry in logged(run)]
    assert seconds == sorted(seconds) and seconds[0] >= 0 and seconds[-1] < PATIENCE


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills(videos: Path, reference: Path, tmp_path: Path) -> None:
    """At random moments; every other one while a checkpoint is being written. A checkpoint follows every step."""
    run, chance, hits, within, lost = tmp_path / "run", random.Random(4), 0, 0, []
    folder = run / "checkpoints"
    while hits < 20:
        process, steps = start(videos, run, "--run.checkpoint-every", "1"), len(logged(run))
        if hits % 2:
            wait_for_a_draft(process, folder)
        else:
            wait_for(process, lambda steps=steps: len(logged(run)) > steps)  # type: ignore[misc]
            time.sleep(chance.random() * 0.05)
        process.kill()
        process.communicate(timeout=PATIENCE)
        assert process.returncode == -signal.SIGKILL, "it was done before it was killed 20 times"
        hits += 1
        within += any(folder.glob(".step_*.tmp"))
        saved = max((int(path.name[5:]) for path in folder.glob("step_*")), default=0)
        lost.append(len(logged(run)) - saved)
    code, text = finish(start(videos, run, "--run.checkpoint-every", "1"))
    assert code == 0, text
    print(f"20 kills, {within} within the writing of a checkpoint; steps done again: {lost}")
    assert within >= 3 and max(lost) <= 2  # the one that is being written, and the one after it
    assert_same(run, reference)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_of_two_is_killed_while_both_write(videos: Path, tmp_path: Path) -> None:
    """Rank 0 and rank 1 in turn; the other ends too, and the same command continues."""
    every = ("--run.checkpoint-every", "1", "--run.parallel", "fsdp", *EVERY_PROCESS)
    code, text = finish(start(videos, tmp_path / "reference", *every, processes=2))
    assert code == 0, text
    run, hits, within = tmp_path / "run", 0, 0
    folder = run / "checkpoints"
    while hits < 6:
        process, steps = start(videos, run, *every, processes=2), len(logged(run))
        wait_for(process, lambda steps=steps: len(logged(run)) > steps)  # type: ignore[misc]
        wait_for_a_draft(process, folder)
        pids = sorted(workers_of(process.pid))
        os.kill(pids[hits % 2], signal.SIGKILL)
        code, text = finish(process)
        assert code, "it was done before it was killed 6 times"
        assert text.count("error:") <= 1, text
        hits += 1
        within += any(folder.glob(".step_*.tmp"))
        assert all((path / "checkpoint.json").exists() for path in folder.glob("step_*"))
    code, text = finish(start(videos, run, *every, processes=2))
    assert code == 0 and "continuing" in text, text
    print(f"{hits} kills, {within} within the writing of a checkpoint")
    assert within >= 2
    assert_same(run, tmp_path / "reference")
