"""A long run neither grows nor leaves anything open. 2,000 steps take minutes: `pytest -m slow tests/faults`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Memory and open files of the run, and its processes, every 50 steps; and of the process once the run is over.
PROGRAM = """
import json, os, sys
from pathlib import Path
from tubelet.recipes import pretraining
from tubelet.train.loop import train
from tubelet.video.guard import end_idle

def field(pid, number):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[number])

def children():
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            found += [int(pid)] if field(pid, 1) == os.getpid() else []
        except OSError:
            continue
    return found

def look(step):
    workers = children()
    links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")]
    seen.append({
        "step": step, "megabytes": field("self", 21) * os.sysconf("SC_PAGE_SIZE") / 1e6, "files": len(links),
        "sockets": sum(link.startswith("socket:") for link in links), "processes": len(workers),
        "workers' megabytes": sum(field(pid, 21) for pid in workers) * os.sysconf("SC_PAGE_SIZE") / 1e6,
    })

videos, out, steps, *words = sys.argv[1:]
config = pretraining([videos], out, json.loads(words[0]))
seen = []
look(0)
train(config, lambda step, numbers: look(step) if step % 50 == 0 and step <= int(steps) else None)
end_idle()
look(int(steps) + 1)
print(json.dumps(seen))
"""
SETTINGS = {
    "model.name": "videomae_tiny", "clip.size": 64, "clip.frames": 16, "clip.stride_frames": 1, "loader.batch_size": 4,
    "model.options": {
        "patch": 16, "width": 32, "depth": 2, "heads": 2, "decoder_depth": 1, "decoder_width": 16, "decoder_heads": 2,
    },
    "loader.repeats": 1, "loader.cache": "off", "loader.workers": 2, "optim.epochs": None, "optim.ema": 0.9, "run.log_every": 10,
    "run.checkpoint_every": 100, "run.device": "cpu", "run.report": False,
}  # fmt: skip


def soak(videos: Path, out: Path, steps: int, more: int) -> tuple[float, list[dict[str, float]]]:
    """(growth in megabytes per 1,000 steps over the second half, by least squares; everything seen).

    The run goes on for some steps `more`: towards its end the loader has nothing left to make ahead, and memory falls.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(videos), str(out), str(steps), json.dumps(SETTINGS | {"optim.steps": steps + more})],
        capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    half = [look for look in seen if steps // 2 <= look["step"] <= steps]
    mean = sum(look["step"] for look in half) / len(half)
    spread = sum((look["step"] - mean) ** 2 for look in half)
    return 1000 * sum((look["step"] - mean) * look["megabytes"] for look in half) / spread, seen


def check(videos: Path, out: Path, steps: int, more: int, most_megabytes: float | None) -> None:
    """most_megabytes: of growth per 1,000 steps; None where a run is too short for more than the filling of its buffers."""
    slope, seen = soak(videos, out, steps, more)
    start, middle, end, after = seen[0], seen[len(seen) // 2], seen[-2], seen[-1]
    print(f"{steps} steps: {slope:+.2f} MB per 1,000 steps", start, middle, end, after, sep="\n")
    assert most_megabytes is None or slope < most_megabytes
    assert end["processes"] <= 2 and end["files"] <= middle["files"] + 2 and end["sockets"] <= 2
    assert (after["processes"], after["sockets"]) == (0, 0) and after["files"] <= start["files"] + 1


@pytest.mark.timeout(900)
def test_a_run_leaves_nothing_open(motion_folder: Path, tmp_path: Path) -> None:
    check(motion_folder, tmp_path / "run", 150, more=0, most_megabytes=None)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_thousand_steps_in_constant_memory(motion_folder: Path, tmp_path: Path) -> None:
    check(motion_folder, tmp_path / "run", 2000, more=400, most_megabytes=2)
