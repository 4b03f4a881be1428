"""Where bytes lie: in a file, in a part of a tar (`shard.tar::000001.mp4@1536+20480`), or behind an address such as s3://.

Paths travel as text; they are taken apart here and nowhere else. A part names its offset and size, so that whoever holds the
path can read the video, without an index and without going through the tar.
"""

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from tubelet.errors import ConfigError, MissingExtraError, utf8

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_PART = re.compile(r"(?P<tar>.+\.tar)::(?P<name>[^/]+)@(?P<offset>\d+)\+(?P<size>\d+)", re.DOTALL)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://")
BLOCK_BYTES = 1 << 20  # of an object are read at a time


def part_of(tar: str, name: str, offset: int, size: int) -> str:
    """The path of `size` bytes of a tar, those of its member `name`."""
    return f"{tar}::{name}@{offset}+{size}"


def tar_of(path: str) -> str | None:
    """The tar that the path is a part of."""
    part = _PART.fullmatch(path)
    return part["tar"] if part is not None else None


def is_remote(path: str | os.PathLike[str]) -> bool:
    return _ADDRESS.match(os.fspath(path)) is not None


def is_plain(path: str) -> bool:
    """Whether the path is one that other programs can open: neither a part of a tar nor an address."""
    return not is_remote(path) and _PART.fullmatch(path) is None


def absolute(path: str | os.PathLike[str]) -> str:
    """The same place, whatever the working directory is."""
    return os.fspath(path) if is_remote(path) else str(Path(path).resolve())


def join(folder: str, name: str) -> str:
    """`name` below `folder`, unless it is an address or an absolute path."""
    return name if is_remote(name) else os.path.join(folder, name)


def stat(path: str) -> tuple[int, object]:
    """(bytes, something that changes when they do); OSError. An object behind an address is asked about once a process."""
    part = _PART.fullmatch(path)
    if part is not None:
        size, version = stat(part["tar"])
        end = int(part["offset"]) + int(part["size"])
        if end > size:
            raise OSError(f"the tar is cut off: {size} of {end} bytes are there")
        return int(part["size"]), version
    if is_remote(path):
        return _remote_stat(path)
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


def exists(path: str) -> bool:
    try:
        stat(path)
    except OSError:
        return False
    return True


def open_bytes(path: str) -> BinaryIO:
    """The bytes at a path, to be read from any place; OSError."""
    part = _PART.fullmatch(path)
    if part is None:
        if is_remote(path):
            return cast(BinaryIO, _Part(_remote_file(path), path, 0, stat(path)[0]))
        return open(path, "rb")
    stat(path)  # is it all there?
    return cast(BinaryIO, _Part(open_bytes(part["tar"]), part["name"], int(part["offset"]), int(part["size"])))


@contextmanager
def utf8_name(path: str | os.PathLike[str]) -> Iterator[str]:
    """A name of the file that is UTF-8, as safetensors wants when it reads (not when it writes): its own, or that of the open
    file. OSError."""
    name = os.fspath(path)
    if utf8(name) == name:
        yield name
        return
    with open(path, "rb") as file:
        yield f"/dev/fd/{file.fileno()}"


def from_utf8(path: str) -> str:
    """The path that `utf8` was given for this one: that of a file with a name that is not UTF-8, else, as backslashes may be part
    of a name too, the path itself."""
    found = re.sub(r"\\udc([89a-f][0-9a-f])", lambda half: chr(0xDC00 + int(half[1], 16)), path)
    return found if found != path and exists(found) else path


class _Part(io.RawIOBase):
    """`size` bytes of an open file as a file of their own, which closes the other. `name` tells FFmpeg the suffix."""

    def __init__(self, file: BinaryIO, name: str, offset: int, size: int) -> None:
        self.file, self.name, self.offset, self.size, self.at = file, os.path.basename(name), offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}[whence]
        self.at = max(0, start + int(offset))
        return self.at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self.file.seek(self.offset + self.at)
        data = self.file.read(max(0, min(len(buffer), self.size - self.at)))
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self.file.close()
        super().close()


@cache
def _remote_stat(path: str) -> tuple[int, object]:
    system, place = _system(path)
    with _os_errors(path):
        found = system.info(place)
    return int(found["size"] or 0), str(found.get("ETag") or found.get("etag") or found.get("LastModified") or "")


def _remote_file(path: str) -> BinaryIO:
    """Read in ranges, as they are asked for."""
    system, place = _system(path)
    with _os_errors(path):
        return cast(BinaryIO, system.open(place, "rb", block_size=BLOCK_BYTES, cache_type="readahead"))


def _system(path: str) -> "tuple[AbstractFileSystem, str]":
    """fsspec's file system for an address, and the place in it."""
    import fsspec

    try:
        system, place = fsspec.core.url_to_fs(path)
    except ImportError as error:
        extra = {"s3": "'tubelet[s3]'", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}
        protocol = path.partition("://")[0]
        raise MissingExtraError(f"{path} needs a package: pip install {extra.get(protocol, protocol)}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; addresses begin with s3://, gs:// or hf://") from error
    return system, place


@contextmanager
def _os_errors(path: str) -> Iterator[None]:
    """What a file system of fsspec raises, as an OSError: each brings exceptions of its own (no credentials, no connection)."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist") from error
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
