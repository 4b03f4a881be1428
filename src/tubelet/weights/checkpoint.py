"""Reading a run's checkpoints, for whoever needs the weights in them; `train.checkpoint` writes them and goes on from them.

A file holds `model.*` weights, `optimizer.*` moments and, where a moving average is kept, `ema.*`; its metadata holds the
description of the model, the state of the run as JSON and a checksum of all tensors. Nothing is ever unpickled.
"""

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tubelet.errors import CheckpointError

PATTERN = "step_*.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: what the model is, the state of the run (`step` and what else was saved), all tensors by name."""

    path: Path
    description: dict[str, Any]
    state: dict[str, Any]
    tensors: dict[str, Tensor]

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors called `name.*`, without that prefix."""
        return {key.removeprefix(f"{name}."): value for key, value in self.tensors.items() if key.startswith(f"{name}.")}


def newest(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint in `folder` that is whole, None when there is none yet.

    A damaged one is reported through `say` and passed over. CheckpointError when there are some and none can be read.
    """
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


def is_ours(path: Path) -> bool:
    """Whether a file is a checkpoint of a run, by what it says of itself, however damaged the rest may be."""
    try:
        with safe_open(path, "pt") as file:
            return "crc32" in (file.metadata() or {})
    except (OSError, SafetensorError, ValueError):
        return path.match(PATTERN)


def read(path: Path) -> Checkpoint:
    """One checkpoint, its checksum verified; CheckpointError when it is damaged or not one of ours."""
    tensors, metadata = read_tensors(path)
    try:
        description, state = json.loads(metadata["model"]), json.loads(metadata["state"])
        expected = int(metadata["crc32"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is not a tubelet checkpoint: name the run folder or the model folder") from error
    if checksum(tensors) != expected:
        raise CheckpointError(f"{path} is damaged: its checksum does not match")
    return Checkpoint(path, description, state, tensors)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; CheckpointError for a missing, truncated or foreign file."""
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({error}); it may be truncated: copy it again"
        ) from error


def checksum(tensors: Mapping[str, Tensor]) -> int:
    """crc32 of all values in the order of the names: what disks and copies damage, safetensors itself does not notice."""
    found = 0
    for name in sorted(tensors):
        found = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, found)
    return found
