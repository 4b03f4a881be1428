"""One safetensors file a step, written whole or not at all; nothing is ever unpickled.

A file holds `model.*` weights, `optimizer.*` moments and, where a moving average is kept, `ema.*`; its metadata holds the
description of the model, the state of the run as JSON and a checksum of all tensors.
"""

import contextlib
import json
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tubelet.errors import CheckpointError
from tubelet.models._model import Model
from tubelet.weights.load import fill, read_tensors
from tubelet.weights.save import describe

PATTERN = "step_*.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: the state of the run (`step` and what else was saved) and all tensors by name."""

    path: Path
    state: dict[str, Any]
    tensors: dict[str, Tensor]

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors called `name.*`, without that prefix."""
        return {key.removeprefix(f"{name}."): value for key, value in self.tensors.items() if key.startswith(f"{name}.")}


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
    metadata = {"model": json.dumps(describe(model)), "state": json.dumps(dict(state)), "crc32": str(_checksum(tensors))}
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
    """The newest checkpoint that is whole, None when there is none yet.

    A damaged one is reported through `say` and passed over. CheckpointError when there are some and none can be read.
    """
    for draft in folder.glob(f".{PATTERN}.tmp"):  # of a run that was killed while it wrote
        draft.unlink()
    paths = sorted(folder.glob(PATTERN), reverse=True)
    for path in paths:
        try:
            return read(path)
        except CheckpointError as error:
            say(f"passing over a damaged checkpoint: {error}")
    if paths:
        raise CheckpointError(
            f"none of the {len(paths)} checkpoints in {folder} can be read: remove them to start from the beginning"
        )
    return None


def read(path: Path) -> Checkpoint:
    """One checkpoint, its checksum verified; CheckpointError when it is damaged or not one of ours."""
    tensors, metadata = read_tensors(path)
    try:
        state, checksum = json.loads(metadata["state"]), int(metadata["crc32"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of a training run") from error
    if _checksum(tensors) != checksum:
        raise CheckpointError(f"{path} is damaged: its checksum does not match")
    return Checkpoint(path, state, tensors)


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


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    """crc32 of all values in the order of the names: what disks and copies damage, safetensors itself does not notice."""
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, checksum)
    return checksum


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
