"""Reading a run's checkpoints, for whoever needs the weights in them; `train.checkpoint` writes them and goes on from them.

A checkpoint is a folder. Its safetensors files hold `model.*` weights, `optimizer.*` moments and, where a moving average is kept,
`ema.*`, each file what one process wrote: whole tensors or parts of them. `checkpoint.json` holds what is no tensor: the
description of the model, the state of the run, the size of every tensor and the checksum of every file. Nothing is pickled.
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
from tubelet.storage import utf8_name

PATTERN = "step_" + 8 * "[0-9]"
OLD_PATTERN = "step_*.safetensors"  # one file each: what the first versions wrote
INDEX = "checkpoint.json"
FORMAT = "tubelet-checkpoint-1"
OFFSETS = "DCP_SHARDING_INFO"  # of a safetensors file: where its parts begin in the whole tensors, as torch's reader wants it


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds: what the model is, the state of the run (`step` and what else was saved), its files, and all tensors by
    name, without values (on the device "meta"): they are read when they are asked for."""

    path: Path
    description: dict[str, Any]
    state: dict[str, Any]
    files: list[str]
    tensors: dict[str, Tensor]

    def outline(self, part: str) -> dict[str, Tensor]:
        """The tensors called `part.*`, without that prefix and without values."""
        return {key.removeprefix(f"{part}."): value for key, value in self.tensors.items() if key.startswith(f"{part}.")}

    def part(self, part: str) -> dict[str, Tensor]:
        """The tensors called `part.*`, whole and without that prefix."""
        found = {key: torch.empty_like(value, device="cpu") for key, value in self.outline(part).items()}
        for file in self.files:
            pieces, metadata = read_tensors(self.path / file, f"{part}.")
            offsets = json.loads(metadata[OFFSETS])
            for key, piece in pieces.items():
                place = zip(offsets[key]["saved_offsets"], piece.shape, strict=True)
                found[key.removeprefix(f"{part}.")][tuple(slice(at, at + size) for at, size in place)] = piece
        return found

    def everything(self) -> dict[str, Tensor]:
        """All tensors, whole."""
        return {f"{part}.{key}": value for part in ("model", "optimizer", "ema") for key, value in self.part(part).items()}


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


def refuse_old(folder: Path) -> None:
    """CheckpointError where an earlier version has left checkpoints in `folder`, so that none is passed over in silence."""
    old = max(folder.glob(OLD_PATTERN), default=None)
    if old is not None:
        raise CheckpointError(
            f"{old} was written by an earlier version, whose checkpoints this one does not read: continue with that version, "
            f"choose another --out, or remove {folder} to start from the beginning"
        )


def is_ours(path: Path) -> bool:
    """Whether a folder is a checkpoint of a run, however damaged what is in it may be."""
    return (path / INDEX).exists() or (path.match(PATTERN) and (path / "part_00001.safetensors").exists())


def read(path: Path, verify: bool = True) -> Checkpoint:
    """One checkpoint, with `verify` the checksums of all its values; CheckpointError when it is damaged or not one of ours."""
    try:
        whole = json.loads((path / INDEX).read_text(encoding="utf-8"))
        content, expected = whole["content"], whole["crc32"]
        if checksum(content) != expected:
            raise CheckpointError(f"{path} is damaged: the checksum of {INDEX} does not match")
        if content["format"] != FORMAT:
            raise CheckpointError(f"{path} is of format {content['format']!r}; this version reads {FORMAT!r}")
        tensors = {
            name: torch.empty(entry["shape"], dtype=getattr(torch, entry["dtype"]), device="meta")
            for name, entry in content["tensors"].items()
        }
        for file, written in content["files"].items() if verify else ():
            if file_checksum(path / file) != written:
                raise CheckpointError(f"{path} is damaged: the checksum of {file} does not match")
        return Checkpoint(path, content["model"], content["state"], list(content["files"]), tensors)
    except OSError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged: {INDEX} is not what a run writes") from error


def read_tensors(path: str | Path, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors called `prefix*` and metadata of a safetensors file; CheckpointError for a missing, truncated or foreign file."""
    try:
        with utf8_name(path) as name, safe_open(name, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({error}); it may be truncated: copy it again"
        ) from error


def checksum(content: Mapping[str, Any]) -> int:
    """crc32 of what JSON can hold, the same before it is written and after it was read."""
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def file_checksum(path: Path) -> int:
    """crc32 of a file: what disks and copies damage, safetensors itself does not notice."""
    found = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found = zlib.crc32(block, found)
    return found
