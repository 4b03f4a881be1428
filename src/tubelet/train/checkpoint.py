"""One safetensors file a step, written whole or not at all, and put back bit for bit. `weights.checkpoint` says what is in it."""

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tubelet.errors import CheckpointError
from tubelet.models._model import Model
from tubelet.weights.checkpoint import PATTERN, Checkpoint, checksum, newest
from tubelet.weights.load import fill
from tubelet.weights.save import describe


def save(
    folder: Path,
    state: Mapping[str, Any],
    model: Model,
    optimizer: torch.optim.Optimizer,
    ema: Mapping[str, Tensor] | None = None,
    keep: int = 2,
) -> Path:
    """Write `folder/step_<state["step"]>.safetensors`, remove all but the `keep` newest, and give the path.

    The file appears under its name only once it is complete and on the disk. Raises CheckpointError when it cannot be
    written (permissions, no space): then no part of it is left, and the older ones are untouched.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"optimizer.{name}": value for name, value in _moments(optimizer).items()}
    tensors |= {f"ema.{name}": value for name, value in (ema or {}).items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {"model": json.dumps(describe(model)), "state": json.dumps(dict(state)), "crc32": str(checksum(tensors))}
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


def load_latest(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The checkpoint to continue from, as `weights.checkpoint.newest` finds it; what a killed run left half-written goes."""
    for draft in folder.glob(f".{PATTERN}.tmp"):
        draft.unlink()
    return newest(folder, say)


def restore(checkpoint: Checkpoint, model: Model, optimizer: torch.optim.Optimizer, ema: Mapping[str, Tensor] | None) -> None:
    """Put everything back in place, bit for bit; CheckpointError when the file is of another model or optimiser."""
    fill(model, checkpoint.part("model"), checkpoint.path)
    saved = checkpoint.part("optimizer")
    state: dict[int, dict[str, Tensor]] = {}
    named = _named(optimizer) if saved else []  # nothing yet where no step had a readable video
    for index, (name, parameter) in enumerate(named):
        moments = {kind: saved.pop(f"{name}.{kind}", None) for kind in ("step", "exp_avg", "exp_avg_sq")}
        if any(value is None for value in moments.values()) or moments["exp_avg"].shape != parameter.shape:  # type: ignore[union-attr]
            raise CheckpointError(f"{checkpoint.path} has no fitting optimiser state for {name}: it is of another run")
        state[index] = moments  # type: ignore[assignment]
    if saved:
        raise CheckpointError(f"{checkpoint.path} has optimiser state for {next(iter(saved))}, which this run does not train")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    averages = checkpoint.part("ema")
    if set(averages) != set(ema or {}):
        raise CheckpointError(f"{checkpoint.path} {'has a' if averages else 'has no'} moving average, unlike this run")
    for name, value in (ema or {}).items():
        value.copy_(averages[name])


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
