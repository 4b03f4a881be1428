"""The tensors in a TorchScript archive, as OpenAI's files of CLIP are, without running anything in it.

Opening such an archive as torch does compiles and runs its code. Here the code stays unread: `data.pkl` says which attributes every
module has, and is read by an unpickler for which a module is a bag of attributes and a tensor a piece of `data/NUMBER`. It builds
nothing else; an archive that asks for more is refused.
"""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet.errors import CheckpointError

MOST = 100_000  # attributes, each named by its path; OpenAI's have some thousand


def is_archive(file: Path) -> bool:
    """Whether a file is a TorchScript archive: unlike a saved state dict it has constants and code."""
    if not zipfile.is_zipfile(file):
        return False
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def read(file: Path) -> dict[str, Tensor]:
    """Its parameters and buffers by name, as the module's state dict has them. CheckpointError, one line, for an archive that is
    damaged or holds anything but modules, tensors and plain values."""
    try:
        with zipfile.ZipFile(file) as archive:
            root = next(name for name in archive.namelist() if name.endswith("/constants.pkl")).partition("/")[0]
            with archive.open(f"{root}/data.pkl") as stream:
                reader = _Reader(stream, archive, root, file)
                top = reader.load()
    except CheckpointError:
        raise
    except Exception as error:  # reading what is damaged fails in every way there is
        what = " ".join(str(error).split())[:120] or type(error).__name__
        raise CheckpointError(f"{file} is a TorchScript archive that cannot be read ({what}): copy it again") from error
    found: dict[str, Tensor] = {}
    waiting, seen = [("", top)], 0
    while waiting:
        stem, one = waiting.pop()
        for name, value in vars(one).items() if isinstance(one, reader.module) else ():
            seen += 1
            if seen > MOST:
                raise CheckpointError(f"{file} is a TorchScript archive of more than {MOST} attributes: no model is so large")
            if isinstance(value, Tensor):
                found[f"{stem}{name}"] = value
            elif isinstance(value, reader.module):
                waiting.append((f"{stem}{name}.", value))
    return found


class _Reader(pickle.Unpickler):
    """Knows how tensors and modules are written, and refuses every other name."""

    def __init__(self, stream: Any, archive: zipfile.ZipFile, root: str, file: Path) -> None:
        super().__init__(stream)
        self.archive, self.root, self.file = archive, root, file
        # Whatever class the archive names: attributes are put in. It is made anew each time, as a pickle may change it.
        self.module = type("Module", (), {})

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return self.module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch" and name in _KINDS:
            return _KINDS[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" and name in (
            "build_intlist",
            "build_doublelist",
            "build_boollist",
            "build_tensorlist",
        ):
            return list
        if (module, name) == ("torch.jit._pickle", "restore_type_tag"):
            return _untagged
        raise CheckpointError(
            f"{self.file} is a TorchScript archive that holds more than weights (it asks for {module}.{name}), which is never run: "
            "save its state dict alone, best as safetensors"
        )

    def persistent_load(self, pid: Any) -> Tensor:
        """The values of a storage, flat."""
        _, kind, key, _, count = pid
        record = self.archive.getinfo(f"{self.root}/data/{key}")
        if record.compress_type != zipfile.ZIP_STORED or record.file_size != count * kind.itemsize:
            raise ValueError(f"data/{key} is not of {count} values of {kind}")
        return torch.frombuffer(bytearray(self.archive.read(record)), dtype=kind) if count else torch.empty(0, dtype=kind)


_KINDS = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16, "CharStorage": torch.int8,
    "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


def _tensor(values: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> Tensor:
    """A view of a storage; what repeats its values is refused, it may have any size."""
    found = values.as_strided(size, stride, offset)
    if found.numel() > values.numel():
        raise ValueError(f"a tensor of {tuple(size)} from {values.numel()} values")
    return found.contiguous()


def _untagged(value: Any, kind: str) -> Any:
    """A list or dict, without the name of its type."""
    return value
