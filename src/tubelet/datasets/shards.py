"""Tars in the form of WebDataset: `00000001.mp4` beside `00000001.json`, videos being read where they lie.

    DIR/shards.parquet      the index that `tubelet prepare --pack` writes: a row for every Example, with all that is known of it
    DIR/shard-00000.tar     standard tars, which other readers of WebDataset and `tar` read as well

A folder of tars without an index, or a single tar, is gone through from header to header. There the label is in the json
(`label`, `class` or `cls`) or the text of a `.cls` file, a description in the json (`text` or `caption`) or a `.txt` file.

What the Examples of an index may and how they are sampled is what it was for the data set that was packed; without one, clips
may be flipped unless a class name may stand for a direction, and sampling is VideoMAE's.
"""

import json
import os
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from tubelet import storage
from tubelet.datasets._files import is_video, may_flip, natural
from tubelet.datasets.split import content_hash
from tubelet.errors import DataError
from tubelet.records import Dataset, Example

INDEX = "shards.parquet"
JOB = "pack.json"  # is there before the first tar, so that an unfinished folder is known as one
KNOWN = tuple(field.name for field in fields(Example) if field.name not in ("path", "id", "source"))
_LARGEST_TEXT = 1 << 20  # bytes of a json, cls or txt member that belongs to a video


def matches(path: str | Path) -> bool:
    """Whether `path` is a tar, a folder that has an index or tars at its top, or a remote folder."""
    path = os.fspath(path)
    if path.endswith(".tar"):
        return True
    if storage.is_remote(path):
        return not os.path.splitext(path)[1]
    folder = Path(path)
    return folder.is_dir() and ((folder / INDEX).is_file() or (folder / JOB).is_file() or any(_tars(folder)))


def read(path: str | Path) -> Dataset:
    """The Examples of packed videos; DataError where there is none, where packing is not finished, where a tar lacks bytes."""
    path = os.fspath(path)
    if path.endswith(".tar"):
        return _scanned([path])
    if storage.is_remote(path) or os.path.isfile(os.path.join(path, INDEX)):
        return _indexed(path)
    begun = job(Path(path))
    if begun is not None:
        raise DataError(f"{path} is not finished: repeat `{begun.get('command', 'tubelet prepare --pack')}`")
    return _scanned([str(tar) for tar in _tars(Path(path))])


def job(folder: Path) -> dict[str, Any] | None:
    """What is packed into a folder, and by which command; None where nothing is. DataError where that is damaged."""
    path = folder / JOB
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds {type(found).__name__}, wanted an object")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error}): remove {folder}, and repeat `tubelet prepare --pack`") from error
    return found


def altered(paths: Iterable[str]) -> set[str]:
    """Those of the paths that are videos in shards with an index here, and have other bytes than were packed."""
    wanted: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        tar = storage.tar_of(path)
        if tar is not None and not storage.is_remote(tar) and os.path.isfile(os.path.join(os.path.dirname(tar), INDEX)):
            wanted[os.path.dirname(tar)].add(path)
    found = set()
    for folder, those in wanted.items():
        import pyarrow.parquet as pq

        with open(os.path.join(folder, INDEX), "rb") as file:
            table = pq.read_table(file, columns=["shard", "member", "offset", "size", "checksum"])
        for *place, checksum in zip(*table.to_pydict().values(), strict=True):
            path = storage.part_of(os.path.join(folder, place[0]), *place[1:])
            if path in those and content_hash(path) != checksum:
                found.add(path)
    return found


def _tars(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.glob("*.tar")) if not path.name.startswith("."))


def _indexed(folder: str) -> Dataset:
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = os.path.join(folder, INDEX)
    try:
        with storage.open_bytes(name) as file:
            table = pq.read_table(pa.PythonFile(file, mode="r"))
        about = json.loads(table.schema.metadata[b"tubelet.dataset"])
        columns = {column: table[column].to_pylist() for column in ("id", "shard", "member", "offset", "size", *KNOWN)}
    except FileNotFoundError as error:
        raise DataError(f"{folder} holds no {INDEX}: give a folder that `tubelet prepare --pack` wrote, or a table") from error
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{name} cannot be read ({error}): repeat `tubelet prepare --pack`") from error
    ends: dict[str, int] = {}
    examples = []
    for row in zip(*columns.values(), strict=True):
        values = dict(zip(columns, row, strict=True))
        shard, member, offset, size = (values.pop(key) for key in ("shard", "member", "offset", "size"))
        ends[shard] = max(ends.get(shard, 0), offset + size)
        examples.append(Example(storage.part_of(os.path.join(folder, shard), member, offset, size), **values))
    if not storage.is_remote(folder):
        for shard, end in ends.items():
            _check_there(os.path.join(folder, shard), end)
    return Dataset(tuple(examples), tuple(about["classes"]), about["may_flip"], about["sampling"])


def _check_there(tar: str, end: int) -> None:
    try:
        size = os.path.getsize(tar)
    except OSError as error:
        raise DataError(f"{tar} is missing: copy it again, or repeat `tubelet prepare --pack`") from error
    if size < end:
        raise DataError(
            f"{tar} is cut off ({size} of {end} bytes are there): copy it again, or repeat `tubelet prepare --pack`"
        )


def _scanned(tars: list[str]) -> Dataset:
    examples: list[Example] = []
    for tar in tars:
        prefix = f"{os.path.basename(tar).removesuffix('.tar')}/" if len(tars) > 1 else ""
        for name, offset, size, texts in samples(tar):
            facts = _facts(tar, texts)
            path = storage.part_of(tar, os.path.basename(name), offset, size)
            for one in [facts, *facts.pop("more", [])]:
                known = {key: one.get(key) for key in KNOWN}
                examples.append(Example(path, str(one.get("id") or prefix + name), **known))
    if not examples:
        raise DataError(f"{tars[0]} holds no video: wanted members such as 00000001.mp4 with 00000001.json beside them")
    classes = tuple(sorted({example.label for example in examples if example.label is not None}, key=natural))
    return Dataset(tuple(examples), classes, may_flip(classes))


def samples(tar: str) -> Iterator[tuple[str, int, int, dict[str, bytes]]]:
    """(name, offset, size) of every video of a tar and {suffix: text} of what is beside it: same name up to its first dot.

    DataError where it is no tar, or ends in the middle of a member.
    """
    key, video, texts = "", None, {}  # type: ignore[var-annotated]
    try:
        with storage.open_bytes(tar) as file, tarfile.open(fileobj=file, mode="r:") as members:
            end = storage.stat(tar)[0]
            for member in members:
                if not member.isreg():
                    continue
                if member.offset_data + member.size > end:
                    raise DataError(f"{tar} is cut off in the middle of {member.name}: copy it again")
                folder, name = os.path.split(member.name)
                stem, _, suffix = name.partition(".")
                if os.path.join(folder, stem) != key:
                    if video is not None:
                        yield (*video, texts)
                    key, video, texts = os.path.join(folder, stem), None, {}
                if is_video(member.name):
                    video = (member.name, member.offset_data, member.size)
                elif member.size <= _LARGEST_TEXT:
                    text = members.extractfile(member)
                    assert text is not None, member.name
                    texts[suffix.lower()] = text.read()
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{tar} cannot be read as a tar: {error}") from error
    if video is not None:
        yield (*video, texts)


def _facts(tar: str, texts: Mapping[str, bytes]) -> dict[str, Any]:
    """What the members beside a video say, by our names."""
    try:
        found = json.loads(texts.get("json", b"{}"))
        plain = {key: texts[key].decode().strip() for key in ("cls", "txt") if key in texts}
    except ValueError as error:
        raise DataError(f"{tar}: a json, cls or txt member is not UTF-8 text or not JSON: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{tar}: a json member holds {type(found).__name__}, wanted an object with a label")
    label = next((found[key] for key in ("label", "class", "cls") if found.get(key) is not None), plain.get("cls"))
    text = next((found[key] for key in ("text", "caption") if found.get(key) is not None), plain.get("txt"))
    return {**found, "label": None if label is None else str(label), "text": text}
