"""One safetensors file a step, written whole or not at all, and put back bit for bit. `weights.checkpoint` says what is in it.

The file is the same whatever the processes and however they divide the model: rank 0 writes whole tensors, and every process
reads them and takes its part. So any number of processes, DDP or FSDP2, continues what any other began.
"""

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tubelet.errors import CheckpointError
from tubelet.models._model import Model
from tubelet.train import parallel
from tubelet.weights.checkpoint import PATTERN, Checkpoint, checksum, newest, read
from tubelet.weights.fill import fill
from tubelet.weights.save import describe


@dataclass(frozen=True)
class Snapshot:
    """A run at one step, in memory of its own: training may go on while it is written. Holds tensors on rank 0 only."""

    description: dict[str, Any]
    state: dict[str, Any]
    tensors: dict[str, Tensor]


def snapshot(
    state: Mapping[str, Any],
    model: Model,
    optimizer: torch.optim.Optimizer,
    ema: Mapping[str, Tensor] | None = None,
) -> Snapshot:
    """Copy everything to the CPU, whole. All processes must ask."""
    held = {f"model.{name}": value for name, value in model.state_dict().items()}
    held |= {f"optimizer.{name}": value for name, value in _moments(optimizer).items()}
    held |= {f"ema.{name}": value for name, value in (ema or {}).items()}
    tensors = {}
    for name, value in held.items():
        whole = parallel.whole(value.detach())
        if not parallel.rank():
            tensors[name] = whole.to("cpu", copy=True).contiguous()
    return Snapshot(describe(model), dict(state), tensors)


def write(folder: Path, taken: Snapshot, keep: int = 2) -> Path:
    """Write `folder/step_<step>.safetensors`, remove all but the `keep` newest, and give the path.

    The file appears under its name only once it is complete and on the disk. Raises CheckpointError when it cannot be
    written (permissions, no space): then no part of it is left, and the older ones are untouched.
    """
    tensors, state = taken.tensors, taken.state
    metadata = {"model": json.dumps(taken.description), "state": json.dumps(state), "crc32": str(checksum(tensors))}
    path = folder / f"step_{state['step']:08d}.safetensors"
    draft = folder / f".{path.name}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, draft, metadata)
        _sync(draft)
        os.replace(draft, path)
        _sync(folder)
        _prune(folder, state["step"], keep)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):  # there may be no such folder
            draft.unlink()
        raise CheckpointError(
            f"cannot write the checkpoint {path}: {error}; make room or choose another --out, the checkpoints before it are whole"
        ) from error
    return path


class Writer:
    """Writes snapshots in a thread, one at a time, while training goes on. Does nothing but on rank 0."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tubelet-checkpoint")
        self._running: Future[Path] | None = None

    def begin(self, taken: Snapshot) -> None:
        """Write this one too, after the one before it."""
        self.wait()
        if not parallel.rank():
            self._running = self._thread.submit(write, self.folder, taken, self.keep)

    def check(self) -> None:
        """CheckpointError where the last one could not be written, as soon as that is known."""
        if self._running is not None and self._running.done():
            self.wait()

    def wait(self) -> None:
        """Until the last one is on the disk; CheckpointError where it could not be written."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def close(self) -> None:
        """Let the last one finish; whoever needs to know how has asked before."""
        self._thread.shutdown()


def load_latest(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The checkpoint to continue from, as `weights.checkpoint.newest` finds it on rank 0; what a killed run left half-written
    goes."""
    found = None
    if not parallel.rank():
        for draft in folder.glob(f".{PATTERN}.tmp"):
            draft.unlink()
        found = newest(folder, say)
    path = parallel.agree(found.path if found else None)
    return read(path) if path is not None and found is None else found


def restore(checkpoint: Checkpoint, model: Model, optimizer: torch.optim.Optimizer, ema: Mapping[str, Tensor] | None) -> None:
    """Put everything back in place, bit for bit; CheckpointError when the file is of another model or optimiser."""
    held = model.state_dict()
    fill(
        model, {name: parallel.part(value, held.get(name)) for name, value in checkpoint.part("model").items()}, checkpoint.path
    )
    saved = checkpoint.part("optimizer")
    state: dict[int, dict[str, Tensor]] = {}
    named = _named(optimizer) if saved else []  # nothing yet where no step had a readable video
    for index, (name, parameter) in enumerate(named):
        kinds = [kind for kind in ("step", "exp_avg", "exp_avg_sq") if f"{name}.{kind}" in saved]
        moments = {kind: saved.pop(f"{name}.{kind}") for kind in kinds}
        if len(kinds) < 3 or moments["exp_avg"].shape != parameter.shape:
            raise CheckpointError(f"{checkpoint.path} has no fitting optimiser state for {name}: it is of another run")
        state[index] = {k: value if k == "step" else parallel.part(value, parameter) for k, value in moments.items()}
    if saved:
        raise CheckpointError(f"{checkpoint.path} has optimiser state for {next(iter(saved))}, which this run does not train")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    averages = checkpoint.part("ema")
    if set(averages) != set(ema or {}):
        raise CheckpointError(f"{checkpoint.path} {'has a' if averages else 'has no'} moving average, unlike this run")
    for name, value in (ema or {}).items():
        value.copy_(parallel.part(averages[name], value))


def _named(optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
    return [pair for group in optimizer.param_groups for pair in zip(group["names"], group["params"], strict=True)]


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's state under the names of the parameters: `<name>.exp_avg`, `.exp_avg_sq`, `.step`."""
    return {f"{name}.{kind}": value for name, p in _named(optimizer) for kind, value in optimizer.state[p].items()}


def _prune(folder: Path, step: int, keep: int) -> None:
    """Remove all but the `keep` newest up to `step`, and any beyond it: those could not be read when the run resumed."""
    paths = sorted(folder.glob(PATTERN))
    newest = folder / f"step_{step:08d}.safetensors"
    for path in paths[: max(0, paths.index(newest) + 1 - keep)] + paths[paths.index(newest) + 1 :]:
        path.unlink()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
