"""What a run leaves for people: log.jsonl, environment.json, optional TensorBoard events, and one progress line on stderr.

Of several processes only rank 0 writes and speaks.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from tubelet.errors import CheckpointError, MissingExtraError, printable
from tubelet.train import parallel

SECONDS_BETWEEN_LINES = 10  # of progress: no more often where stderr is no terminal, no more seldom anywhere


class Log:
    """log.jsonl of a run folder, one JSON object a line, `step` in each. Opening cuts it back to the step resumed from."""

    def __init__(self, folder: Path, step: int, tensorboard: bool = False) -> None:
        self.path, self.events = folder / "log.jsonl", None
        if parallel.rank():
            return
        kept = [line for line in _lines(self.path) if json.loads(line)["step"] <= step]
        try:
            draft = self.path.with_name(".log.jsonl.tmp")
            draft.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            os.replace(draft, self.path)
        except OSError as error:
            raise CheckpointError(f"cannot write {self.path}: {error.strerror}; choose another --out") from error
        if tensorboard:
            self.events = _tensorboard(folder, step)

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append one line."""
        if parallel.rank():
            return
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n")
        except OSError as error:
            raise CheckpointError(
                f"cannot write {self.path}: {error.strerror}; the last checkpoint is whole, repeat the command"
            ) from error
        if self.events is not None:
            for name, value in entry.items():
                if isinstance(value, int | float) and name != "step":
                    self.events.add_scalar(name, value, entry["step"])

    def close(self) -> None:
        if self.events is not None:
            self.events.close()


def last_entry(folder: Path) -> dict[str, Any]:
    """The last line of a run's log; {} when there is none."""
    lines = _lines(folder / "log.jsonl")
    return json.loads(lines[-1]) if lines else {}


def _lines(path: Path) -> list[str]:
    """The whole lines of a log; a last one that a kill cut off is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            break
        lines.append(line)
    return lines


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError('run.tensorboard needs TensorBoard: pip install "tubelet[log]"') from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step)


class Progress:
    """One line on stderr that says how far the run is and when it ends. On a terminal it is redrawn in place."""

    def __init__(self, steps: int, start: int) -> None:
        self.steps, self.start, self.began = steps, start, time.monotonic()
        self.redraws = sys.stderr.isatty()
        self.shown = 0.0

    def due(self) -> bool:
        """Whether nothing has been shown for so long that people begin to wonder."""
        return time.monotonic() - max(self.shown, self.began) >= SECONDS_BETWEEN_LINES

    def show(self, entry: Mapping[str, Any]) -> None:
        """Redraw from a log entry."""
        if parallel.rank():
            return
        step, now = entry["step"], time.monotonic()
        if not self.redraws and now - self.shown < SECONDS_BETWEEN_LINES and step != self.steps:
            return
        self.shown = now
        left = (self.steps - step) * (now - self.began) / max(1, step - self.start)
        known = {"loss": "loss {:.4g}", "accuracy": "accuracy {:.0%}", "val_top1": "val top-1 {:.1%}", "lr": "lr {:.2g}",
                 "clips_per_second": "{:.4g} clips/s", "waiting": "{:.0%} waiting for data"}  # fmt: skip
        parts = [shape.format(entry[name]) for name, shape in known.items() if name in entry]
        text = f"step {step}/{self.steps} ({step / self.steps:.0%})  {'  '.join(parts)}  {duration(left)} left"
        sys.stderr.write(f"\r\033[K{text}" if self.redraws else f"{text}\n")
        sys.stderr.flush()

    def close(self) -> None:
        if self.redraws and self.shown:
            sys.stderr.write("\n")


def say(message: str) -> None:
    """A remark to the person who watches, from the first process only; it may have lines."""
    if not parallel.rank():
        sys.stderr.write("".join(f"{printable(line)}\n" for line in message.split("\n")))
        sys.stderr.flush()


def duration(seconds: float) -> str:
    """ "45 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def environment(
    device: torch.device, precision: str, data: Mapping[str, Any], objective: Mapping[str, Any] = {}
) -> dict[str, Any]:
    """Versions, hardware, commit, the data's fingerprint and the objective's facts: what somebody needs to repeat a run."""
    versions = {name: metadata.version(name) for name in ("torch", "numpy", "av", "safetensors")}
    return {
        "tubelet": _version(),
        "commit": _commit(),
        "python": platform.python_version(),
        **versions,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": parallel.world(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": precision,
        "data": dict(data),
        "objective": dict(objective),
    }


def processor() -> str:
    """The name of the processor as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version() -> str:
    from tubelet import __version__

    return __version__


def _commit() -> str | None:
    """The commit of the source tree Tubelet runs from; None for an installed copy, whatever repository surrounds it."""
    here = Path(__file__).resolve()
    try:
        for words in (["ls-files", "--error-unmatch", here.name], ["rev-parse", "HEAD"]):
            done = subprocess.run(["git", *words], cwd=here.parent, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
