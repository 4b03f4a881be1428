"""A file or folder of weights becomes named tensors: safetensors, PyTorch's own files, or shards of either with an index.

Files of PyTorch are pickles. They are read by torch's weights-only reader, which builds tensors, numbers and the few types
listed here and refuses everything else: nothing in a file is ever run.
"""

import argparse
import hashlib
import json
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tubelet.errors import CheckpointError
from tubelet.storage import utf8_name
from tubelet.weights import torchscript
from tubelet.weights.fill import refuse_strange

# How numpy writes a number and an array in a pickle; found so that the place may move between its versions.
NUMPY: list[Any] = [np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]]

# What official files hold beside tensors: the arguments of the run, and numbers of numpy in the state of an optimizer.
ALLOWED: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.ndarray,
    *{type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "b1")},
    *((make, f"numpy.{place}.{make.__name__}") for make in NUMPY for place in ("core.multiarray", "_core.multiarray")),
]
CONTAINERS = ("model", "module", "model_state", "state_dict", "model_state_dict", "model_ema", "target_encoder", "encoder")
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")  # left off where every key has them
DEEPEST = 8  # containers in one another; a dict may even hold itself
NAMES = ("model.safetensors", "pytorch_model.bin")
OLD = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")  # what PyTorch's files begin with that are no archive


@dataclass
class Source:
    """Weights as they lie in files, and what lies beside them.

    tensors    the weights, containers and wrappers' prefixes taken off
    files      what was read
    config     config.json of the folder, or the arguments of the run that were in the file; {} without either
    processor  preprocessor_config.json or video_preprocessor_config.json; {} without
    notes      what was taken off or passed over, to be said
    """

    path: Path
    tensors: dict[str, Tensor]
    files: list[Path]
    config: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read(path: str | Path) -> Source:
    """What a weight file or a folder with one holds. CheckpointError, one clear line, for anything else."""
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"no weights at {path}: name a file or a folder with {' or '.join(NAMES)}")
    files = _files(path) if path.is_dir() else [path]
    folder = path if path.is_dir() else path.parent
    source = Source(path, {}, files)
    for file in files:
        loaded, notes = _unwrapped(_load(file), file)
        source.notes += [note for note in notes if note not in source.notes]
        twice = sorted(set(loaded.tensors) & set(source.tensors))
        if twice:
            raise CheckpointError(f"{file} holds {twice[0]} again, which another shard has too: the shards are of two models")
        source.tensors.update(loaded.tensors)
        source.config |= loaded.arguments
    if not source.tensors:
        raise CheckpointError(f"{path} holds no weights")
    refuse_strange(source.tensors, path)
    source.tensors = _without_prefixes(source.tensors, source.notes)
    # Beside a single file lies what belongs to it only where there is no doubt which file that is.
    if path.is_dir() or path.name in NAMES:
        source.config |= _json(folder / "config.json")
        source.processor = _json(folder / "preprocessor_config.json") or _json(folder / "video_preprocessor_config.json")
    return source


def sha256(files: list[Path]) -> str:
    """Of the files' bytes, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


@dataclass
class _Loaded:
    tensors: dict[str, Tensor]
    arguments: dict[str, Any]


def _files(folder: Path) -> list[Path]:
    for name in NAMES:
        index = folder / f"{name}.index.json"
        if index.exists():
            return _shards(folder, index)
        if (folder / name).exists():
            return [folder / name]
    others = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".pth", ".pt", ".bin"))
    if len(others) == 1:
        return others
    found = f"it holds {', '.join(file.name for file in others[:4])}: name one" if others else "it holds no weight file"
    raise CheckpointError(f"{folder} has no {' or '.join(NAMES)}, and {found}")


def _shards(folder: Path, index: Path) -> list[Path]:
    try:
        names = sorted({Path(name).name for name in _json(index)["weight_map"].values()})
    except (KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is no index of shards: it has no weight_map of files") from error
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise CheckpointError(f"{index} names {len(names)} shards, and {_some(missing)} is not there: copy all of them")
    return [folder / name for name in names]


def _load(file: Path) -> Any:
    """What a file holds, by what it begins with."""
    try:
        with open(file, "rb") as stream:
            start = stream.read(32)
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error
    if start[8:9] == b"{":
        try:
            with utf8_name(file) as name, safe_open(name, "pt") as opened:
                return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError) as error:
            raise CheckpointError(
                f"{file} is not a readable safetensors file ({error}); it may be truncated: copy it again"
            ) from error
    if start[:4] != b"PK\x03\x04" and start[:1] != b"\x80":
        raise CheckpointError(f"{file} holds no weights: neither safetensors nor a PyTorch file (.pth, .pt, .bin)")
    if start[:1] == b"\x80" and OLD not in start:
        raise CheckpointError(
            f"{file} is a pickle that PyTorch did not write; it may hold code and is not opened: save the state dict with "
            "torch.save, or best as safetensors"
        )
    if torchscript.is_archive(file):
        return torchscript.read(file)
    try:
        with torch.serialization.safe_globals(ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kinds of tensors that are refused afterwards
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL:? (\S+)", str(error))
        if named is None:
            raise CheckpointError(
                f"{file} is a damaged pickle ({' '.join(str(error).split())[:120]}): copy it again"
            ) from error
        what = f"it asks for {named[1]}"
        raise CheckpointError(
            f"{file} holds more than weights ({what}), which is never run: save its state dict alone, best as safetensors"
        ) from error
    except Exception as error:  # reading what is damaged fails in every way there is
        raise CheckpointError(f"{file} cannot be read ({' '.join(str(error).split())[:120]}); it may be truncated") from error


def _unwrapped(held: Any, file: Path) -> tuple[_Loaded, list[str]]:
    """The tensors, out of the containers that trainers put around them, and the run's arguments."""
    notes: list[str] = []
    arguments: dict[str, Any] = {}
    for depth in range(DEEPEST + 1):
        if not isinstance(held, Mapping):
            raise CheckpointError(f"{file} holds a {type(held).__name__}, no state dict (names and tensors)")
        if isinstance(held.get("args"), argparse.Namespace):
            arguments |= vars(held["args"])
        elif isinstance(held.get("args"), Mapping):
            arguments |= held["args"]
        if isinstance(held.get("cfg"), str):
            arguments |= _yaml(held["cfg"])
        inside = [name for name in CONTAINERS if isinstance(held.get(name), Mapping) and held[name]]
        if not inside:
            break
        if depth == DEEPEST:
            raise CheckpointError(f"{file} has more than {DEEPEST} containers around its weights: save the state dict alone")
        also = f" ({', '.join(inside[1:])} passed over)" if len(inside) > 1 else ""
        notes.append(f"taken from {inside[0]!r}{also}")
        held = held[inside[0]]
    others = [name for name, value in held.items() if not isinstance(value, Tensor)]
    tensors = {str(name): value for name, value in held.items() if isinstance(value, Tensor)}
    if others and len(others) >= len(tensors):
        raise CheckpointError(f"{file} holds {_some(list(map(str, others)))}, no state dict (names and tensors)")
    if others:
        notes.append(f"no weights, passed over: {_some(list(map(str, others)))}")
    return _Loaded(tensors, arguments), notes


def _yaml(text: str) -> dict[str, Any]:
    """The configuration that PySlowFast and what grew from it write into their files; {} where it is none."""
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _without_prefixes(tensors: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    while True:
        for prefix in PREFIXES:
            if all(key.startswith(prefix) for key in tensors):
                notes.append(f"prefix {prefix!r} left off")
                tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
                break
        else:
            return tensors


def _json(file: Path) -> dict[str, Any]:
    """A JSON object; {} where there is no such file."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} is no JSON object")
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
