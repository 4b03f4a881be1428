"""A data set becomes a few large tars with an index (see `datasets/shards.py`): millions of small files are slow to list, copy
and open. Videos keep their bytes; `tubelet prepare` without `--pack` is what makes them small.

Which videos a shard holds follows from their order and sizes alone, so shards are written side by side, and a run that was
stopped goes on with those that are missing. A shard is a draft until it has been read back and every checksum found again;
the index, written last, is what makes the folder a data set.
"""

import hashlib
import io
import json
import os
import shlex
import sys
import tarfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from tubelet import datasets, storage
from tubelet.datasets import shards
from tubelet.datasets._prepared import write_text
from tubelet.errors import ConfigError, DataError, utf8
from tubelet.prepare import hold
from tubelet.records import Dataset, Example


@dataclass(frozen=True)
class Packed:
    """What a folder holds: `videos` files with `examples` in `shards` tars, `new` of these written this time; bytes of the
    videos; left_out: (path, reason) of files that cannot be opened."""

    folder: Path
    videos: int
    examples: int
    shards: int
    new: int
    bytes: int
    left_out: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        named = [{"path": path, "reason": reason} for path, reason in self.left_out]
        return {**asdict(self), "folder": str(self.folder), "left_out": named}

    def to_text(self) -> str:
        return (
            f"{self.folder}: {self.videos} videos ({self.examples} examples, {self.bytes / 1e6:.1f} MB) in {self.shards} shards, "
            f"{self.new} of them new; every checksum was read back"
        )


@dataclass(frozen=True)
class _Video:
    """A file to be packed, `key` being its name in the tar without the suffix, and the Examples that are cut from it."""

    key: str
    path: str
    size: int
    examples: tuple[Example, ...]

    @property
    def member(self) -> str:
        return self.key + os.path.splitext(self.path)[1].lower()


@dataclass(frozen=True)
class _Member:
    """Where a video lies in its shard, and the checksum of its bytes (blake2b, 128 bits)."""

    name: str
    offset: int
    size: int
    checksum: str


def pack_many(paths: Sequence[str | Path], out: str | Path, shard_bytes: int, workers: int | None = None) -> list[Packed]:
    """`pack` for one data set in `out`, for several in a folder of `out` each, called like theirs."""
    command = shlex.join(["tubelet", "prepare", *map(str, paths), str(out), "--pack"])
    if len(paths) == 1:
        return [pack(paths[0], out, shard_bytes, workers, command)]
    names = [name or Path(path).stem for name, path in zip(datasets.source_names(paths), paths, strict=True)]
    return [pack(path, Path(out) / name, shard_bytes, workers, command) for path, name in zip(paths, names, strict=True)]


def pack(
    data: str | Path, out: str | Path, shard_bytes: int = 1 << 29, workers: int | None = None, command: str = ""
) -> Packed:
    """Copy the videos of the data set `data` into tars of about `shard_bytes` in the folder `out`, and write their index.

    `workers` threads, one per core by default, take a shard each. `command` is what readers tell the user to repeat.
    ConfigError where `out` was packed from other videos or with another size, DataError where it is another folder with
    something in it, where nothing can be opened, or where it cannot be written (no space left: whole shards stay).
    """
    if shard_bytes < 1:
        raise ConfigError(f"the shard size is {shard_bytes} bytes: it must be above 0")
    folder = Path(out)
    dataset = datasets.read(data)
    videos, left_out = _videos(dataset)
    if not videos:
        raise DataError(f"no video of {data} can be opened; the first: {left_out[0][0]}: {left_out[0][1]}")
    plan = _plan(videos, shard_bytes)
    digest = hashlib.blake2b(digest_size=8)
    for video in videos:
        digest.update(repr((video.key, storage.stat(video.path), video.examples)).encode())
    command = command or shlex.join(["tubelet", "prepare", str(data), str(out), "--pack"])
    _begin(
        folder, {"command": command, "data": storage.absolute(data), "shard_bytes": shard_bytes, "videos": digest.hexdigest()}
    )
    try:
        with hold(folder):
            written, new = _write_shards(folder, plan, workers)
            _write_index(folder, dataset, plan, written)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written ({error.strerror or error}): make room or choose another folder, and repeat the command; "
            "whole shards are not written again"
        ) from error
    examples, size = sum(len(video.examples) for video in videos), sum(video.size for video in videos)
    return Packed(folder, len(videos), examples, len(plan), new, size, tuple(left_out))


def _videos(dataset: Dataset) -> tuple[list[_Video], list[tuple[str, str]]]:
    """The files of a data set in its order, and (path, reason) of those that cannot be opened."""
    of_file: dict[str, list[Example]] = {}
    for example in dataset.examples:
        of_file.setdefault(example.path, []).append(example)
    videos, left_out = [], []
    for number, (path, examples) in enumerate(of_file.items()):
        try:
            size = storage.stat(path)[0]
        except OSError as error:
            left_out.append((path, (error.strerror or str(error)).lower()))
            continue
        if storage.is_plain(path) and not os.path.isfile(path):  # opening a pipe would wait for ever
            left_out.append((path, "is a pipe, a device or a folder, not a video file"))
        else:
            videos.append(_Video(f"{number:08d}", path, size, tuple(examples)))
    return videos, left_out


def _plan(videos: Sequence[_Video], shard_bytes: int) -> list[list[_Video]]:
    """The videos of every shard: as many as `shard_bytes` hold, at least one."""
    plan: list[list[_Video]] = [[]]
    held = 0
    for video in videos:
        if plan[-1] and held + video.size > shard_bytes:
            plan.append([])
            held = 0
        plan[-1].append(video)
        held += video.size
    return plan


def _begin(folder: Path, job: Mapping[str, Any]) -> None:
    """Write what is packed here, or make sure that an earlier run packed the same."""
    before = shards.job(folder)
    if before is None:
        if folder.is_dir() and any(name != ".lock" for name in os.listdir(folder)):
            raise DataError(f"{folder} holds something that `tubelet prepare --pack` did not write: choose a new folder")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / shards.JOB, json.dumps(job, indent=2) + "\n")
        except OSError as error:
            raise DataError(f"{folder} cannot be written ({error.strerror or error}): choose another folder") from error
        return
    what = {"data": "other data", "shard_bytes": "another shard size", "videos": "videos that have changed since"}
    other = [words for key, words in what.items() if before.get(key) != job[key]]
    if other:
        raise ConfigError(f"{folder} was packed from {' and '.join(other)} (`{before.get('command')}`): choose another folder")


def _name(number: int) -> str:
    return f"shard-{number:05d}.tar"


def _write_shards(folder: Path, plan: list[list[_Video]], workers: int | None) -> tuple[dict[int, list[_Member]], int]:
    """The members of every shard, and how many shards were written now."""
    members: dict[int, list[_Member]] = {}
    new = 0
    stop = threading.Event()
    with (
        ThreadPoolExecutor(workers or os.cpu_count()) as pool,
        tqdm(total=len(plan), desc=f"packing {folder.name}", unit="shard", file=sys.stderr, disable=None) as bar,
    ):
        futures = {
            pool.submit(_write_shard, folder / _name(number), videos, stop): number for number, videos in enumerate(plan)
        }
        try:
            for future in as_completed(futures):
                members[futures[future]], is_new = future.result()
                new += is_new
                bar.update()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return members, new


def _write_shard(path: Path, videos: Sequence[_Video], stop: threading.Event) -> tuple[list[_Member], bool]:
    """Its members; whether it had to be written. An earlier one counts where every video in it still has its checksum."""
    if path.exists():
        found = _read_back(str(path), videos)
        if found is not None:
            return found, False
    draft = path.with_name(f".{path.name}.tmp")
    with open(draft, "wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for video in videos:
            if stop.is_set():
                raise DataError("stopped")
            _add(tar, video)
    with open(draft, "rb+") as whole:
        os.fsync(whole.fileno())
    found = _read_back(str(draft), videos)
    if found is None:
        raise DataError(f"{draft} does not read back as it was written: check the disk, and repeat the command")
    os.replace(draft, path)
    return found, True


def _add(tar: tarfile.TarFile, video: _Video) -> None:
    """The video and its json, in which labels and the like of its first Example stand where WebDataset looks for them."""
    info = tarfile.TarInfo(video.member)
    info.size = video.size
    with storage.open_bytes(video.path) as source:
        counted = _Hashing(source)
        try:
            tar.addfile(info, counted)  # type: ignore[arg-type]
        except OSError as error:
            if counted.count < video.size:
                raise DataError(f"{video.path} became shorter while it was packed: repeat the command") from error
            raise
    first, *more = (
        {key: utf8(value) for key in ("id", *shards.KNOWN) if (value := getattr(example, key)) is not None}
        for example in video.examples
    )
    facts = {**first, "checksum": counted.digest.hexdigest(), **({"more": more} if more else {})}
    text = json.dumps(facts, ensure_ascii=False).encode()
    info = tarfile.TarInfo(f"{video.key}.json")
    info.size = len(text)
    tar.addfile(info, io.BytesIO(text))


class _Hashing:
    """Reads from a file and hashes what it gave."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.count = file, hashlib.blake2b(digest_size=16), 0

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.digest.update(data)
        self.count += len(data)
        return data


def _read_back(tar: str, videos: Sequence[_Video]) -> list[_Member] | None:
    """The members of a shard; None unless they are these videos with the bytes that their json says."""
    found = []
    try:
        with open(tar, "rb") as file:
            for name, offset, size, texts in shards.samples(tar):
                file.seek(offset)
                digest, left = hashlib.blake2b(digest_size=16), size
                while left and (data := file.read(min(left, 1 << 20))):
                    digest.update(data)
                    left -= len(data)
                if json.loads(texts["json"]).get("checksum") != digest.hexdigest():
                    return None
                found.append(_Member(name, offset, size, digest.hexdigest()))
    except (DataError, KeyError, ValueError):  # not a whole tar of ours
        return None
    wanted = [(video.member, video.size) for video in videos]
    return found if [(member.name, member.size) for member in found] == wanted else None


def _write_index(folder: Path, dataset: Dataset, plan: list[list[_Video]], written: Mapping[int, list[_Member]]) -> None:
    """shards.parquet, whole or not at all: a row for every Example, in the order of the data set."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = {
        video.path: (_name(number), member)
        for number, videos in enumerate(plan)
        for video, member in zip(videos, written[number], strict=True)
    }
    rows = []
    for example in dataset.examples:
        if example.path in place:
            shard, member = place[example.path]
            where = {
                "shard": shard,
                "member": member.name,
                "offset": member.offset,
                "size": member.size,
                "checksum": member.checksum,
            }
            rows.append({"id": utf8(example.id), **where, **{key: utf8(getattr(example, key)) for key in shards.KNOWN}})
    numbers = {"offset": pa.int64(), "size": pa.int64(), "start_seconds": pa.float64(), "end_seconds": pa.float64()}
    about = {"classes": dataset.classes, "may_flip": dataset.may_flip, "sampling": dataset.sampling}
    schema = pa.schema(
        [(key, numbers.get(key, pa.string())) for key in rows[0]], metadata={"tubelet.dataset": json.dumps(about)}
    )
    draft = folder / f".{shards.INDEX}.tmp"
    try:
        with open(draft, "wb") as file:
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, folder / shards.INDEX)
    finally:
        draft.unlink(missing_ok=True)
