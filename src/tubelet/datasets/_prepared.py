"""The record that `tubelet prepare` keeps in the folder it writes, and whether the folder is still what the record says.

`prepared.jsonl` holds JSON lines: first a `Job`, then one `Made` for every video. While videos are being prepared lines are
added as they are done, and a killed process may leave the last one half written; the finished record is written whole.
"""

import contextlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tubelet import storage
from tubelet.datasets._files import find_videos
from tubelet.datasets.split import content_hash
from tubelet.errors import DataError, utf8

NAME = "prepared.jsonl"
TABLE = "labels.csv"  # what the table that named the videos becomes


@dataclass(frozen=True)
class Job:
    """What is made from what. `command` is what to type to do it (again), `finished` false until every video is done.

    tables: where a table named the videos, `content_hash` of that table and of the one that was written here, by path. whole: every
    video that then lay below the folder `data` was taken, so another one is new.
    """

    data: str
    command: str
    settings: dict[str, Any]
    videos: int
    finished: bool = False
    tables: dict[str, str] = field(default_factory=dict)
    whole: bool = False


@dataclass(frozen=True)
class Made:
    """One prepared video: `path` below the folder, from the file `source`, which was of that size and age at the time.

    psnr_db is over the RGB values of all frames, against the source's frames at the same size, at most 99. `checksum` is
    that of the file (blake2b, 128 bits). Where the source cannot be read `error` says why, and there is no file.
    """

    path: str
    source: str
    source_bytes: int
    source_mtime_ns: int
    frames: int = 0
    psnr_db: float = 0.0
    bytes: int = 0
    checksum: str = ""
    error: str = ""

    def source_is_unchanged(self) -> bool | None:
        """Whether the source is as it was; None where it is not there any more."""
        try:
            stat = os.stat(self.source)
        except OSError:
            return None
        return (stat.st_size, stat.st_mtime_ns) == (self.source_bytes, self.source_mtime_ns)


def read(folder: Path) -> tuple[Job, dict[str, Made]] | None:
    """The record in a folder, by path; None where there is none. DataError where it is damaged."""
    path = folder / NAME
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    try:
        job = Job(**json.loads(lines[0]))
        # The last line has no end where the process was killed while it wrote it.
        made = [Made(**json.loads(line)) for line in lines[1:] if line.endswith("\n")]
    except (ValueError, TypeError, IndexError) as error:
        raise DataError(f"{path} is damaged: remove {folder} and repeat `tubelet prepare`") from error
    return job, {one.path: one for one in made}


def write(folder: Path, job: Job, made: Iterable[Made]) -> None:
    """Write the whole record, or leave the one that is there; OSError where that cannot be done."""
    write_text(folder / NAME, line(job) + "".join(line(one) for one in made))


def line(entry: Job | Made) -> str:
    """One line of the record."""
    return utf8(json.dumps(asdict(entry), ensure_ascii=False)) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all; OSError where that cannot be done."""
    draft = path.with_name(f".{path.name}.tmp")
    try:
        with open(draft, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def refuse_stale_above(paths: Iterable[str], but: str | Path) -> None:
    """As `refuse_stale`, for every prepared folder that one of these files lies in, however deep, except the one of `but`. Other
    files cost one look at each of the folders above them."""
    known: dict[str, str] = {}
    folders = {os.path.dirname(path) for path in paths if not storage.is_remote(path)}
    found = {_above(os.path.abspath(folder), known) for folder in folders}
    for folder in sorted(found - {"", os.path.abspath(_folder_of(but))}):
        refuse_stale(folder)


def mended(path: str) -> str:
    """What makes a prepared video anew that cannot be read, to be put behind the reason; "" for a video that was not prepared."""
    folder = "" if storage.is_remote(path) else _above(os.path.dirname(os.path.abspath(path)), {})
    record = read(Path(folder)) if folder else None
    if record is None or os.path.relpath(os.path.abspath(path), folder) not in record[1]:
        return ""
    return f"; it was prepared, and `{record[0].command}` makes it anew"


def _above(folder: str, known: dict[str, str]) -> str:
    """The prepared folder that an absolute folder is or lies in, "" where there is none; kept in `known`."""
    if folder not in known:
        above = os.path.dirname(folder)
        prepared = os.path.exists(os.path.join(folder, NAME))
        known[folder] = folder if prepared else _above(above, known) if above != folder else ""
    return known[folder]


def _folder_of(path: str | Path) -> Path:
    return Path(path) if os.path.isdir(path) else Path(path).parent


def refuse_stale(path: str | Path) -> None:
    """DataError where `path`, or the folder of the table `path`, was prepared and is not what it should be any more.

    That is: not finished, a video missing or of another size, a source changed since or new, a table missing or changed. It costs
    two `stat` calls a video and a look through the folder that it was made from; sources that are not there any more are not
    missed.
    """
    folder = _folder_of(path)
    record = read(folder)
    if record is None:
        return
    job, made = record
    repeat = f"repeat `{job.command}`"
    if not job.finished:
        raise DataError(f"{folder} is not finished ({len(made)} of {job.videos} videos are prepared): {repeat}")
    wrong = [problem for one in made.values() if (problem := _problem(folder, one))]
    wrong += _table_problems(folder, job) + _new_videos(job, made)
    if wrong:
        more = f", and {len(wrong) - 1} more like it" if len(wrong) > 1 else ""
        raise DataError(f"{folder} is out of date: {wrong[0]}{more}: {repeat}")


def _problem(folder: Path, made: Made) -> str:
    if not made.error:
        try:
            size = os.path.getsize(folder / made.path)
        except OSError:
            return f"{made.path} is missing"
        if size != made.bytes:
            return f"{made.path} has {size} of {made.bytes} bytes"
    return f"{made.source} has changed since {made.path} was made" if made.source_is_unchanged() is False else ""


def _table_problems(folder: Path, job: Job) -> list[str]:
    here = str(folder / TABLE)
    found: list[str] = []
    for path, checksum in job.tables.items():
        ours = path == TABLE
        now = content_hash(here if ours else path)
        if now is None and ours:
            found.append(f"{TABLE} is missing")
        elif now not in (None, checksum):
            found.append(
                f"{TABLE} is not what was written; correct the table it was made from" if ours else f"{path} has changed"
            )
    return found


def _new_videos(job: Job, made: dict[str, Made]) -> list[str]:
    known = {one.source for one in made.values()}
    with contextlib.suppress(OSError):
        below = [os.path.join(job.data, name) for name in find_videos(Path(job.data))] if job.whole else []
        return [f"{path} is new" for path in below if path not in known]
    return []
