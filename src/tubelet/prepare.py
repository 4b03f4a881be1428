"""A data set becomes a folder of small videos that decode fast, made once: what every later clip is cut from.

The folder is a data set like the one it was made from: the same relative paths, class folders, splits and table. It keeps a
record (`prepared.jsonl`, see `datasets/_prepared.py`), by which `prepare` goes on where it was stopped and every reader
notices a folder that is incomplete or older than its source.
"""

import contextlib
import os
import shlex
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm

from tubelet import datasets
from tubelet.datasets import _prepared, table
from tubelet.datasets._files import find_videos
from tubelet.datasets._prepared import Job, Made
from tubelet.datasets.split import content_hash
from tubelet.datasets.table import Part
from tubelet.errors import ConfigError, DataError, VideoError, printable
from tubelet.records import Dataset
from tubelet.video.decode import probe
from tubelet.video.guard import ended_by, run
from tubelet.video.reencode import reencode

SECONDS_PER_FRAME = 0.1  # of processor time, and as much for a megapixel of it: ten times what reading and writing take
MP4_SUFFIXES = (".mp4", ".m4v", ".mov")  # videos called so keep their name; others get .mp4 behind it


@dataclass(frozen=True)
class PrepareConfig:
    """How the videos are written.

    short_side  height or width, whichever is less, in pixels; smaller videos keep their size
    gop_frames  frames from one key frame to the next; 1, all of them, suits `segments` sampling and takes most space
    crf         x264's quality: lower is better and larger, by about 12 % a step
    trim        of every row of a table only the part from its start to its end, as a file of its own
    """

    short_side: int = 256
    gop_frames: int = 16
    crf: int = 18
    trim: bool = False

    def __post_init__(self) -> None:
        for name, least, most in (("short_side", 160, 320), ("gop_frames", 1, 300), ("crf", 0, 40)):
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be {least} to {most}")


@dataclass(frozen=True)
class Prepared:
    """What a folder holds. `made` has one entry a video, those that could not be read too (`Made.error`), in the order of
    the data set; `new` of them were written this time, and `removed` files whose source is gone from the data set."""

    folder: Path
    made: tuple[Made, ...]
    new: int
    removed: int

    @property
    def readable(self) -> list[Made]:
        return [one for one in self.made if not one.error]

    @property
    def left_out(self) -> list[Made]:
        return [one for one in self.made if one.error]

    def to_json(self) -> dict[str, Any]:
        """Counts, bytes of the files and of their sources, PSNR (None where there is no video), and what was left out."""
        good = self.readable
        worst = min(good, key=lambda one: one.psnr_db, default=None)
        return {
            "out": str(self.folder),
            "videos": len(self.made),
            "prepared": len(good),
            "new": self.new,
            "removed": self.removed,
            "bytes": sum(one.bytes for one in good),
            "source_bytes": sum(one.source_bytes for one in good),
            "psnr_mean_db": round(fmean(one.psnr_db for one in good), 2) if good else None,
            "psnr_worst_db": worst.psnr_db if worst else None,
            "psnr_worst": worst.path if worst else None,
            "left_out": [{"path": one.path, "source": one.source, "reason": one.error} for one in self.left_out],
        }

    def to_text(self) -> str:
        """The same, to read, without the names of what was left out."""
        facts = self.to_json()
        removed = f", {self.removed} removed" if self.removed else ""
        lines = [f"{self.folder}: {facts['prepared']} of {facts['videos']} videos, {self.new} of them new{removed}"]
        if self.readable:
            size, before = facts["bytes"], facts["source_bytes"]
            lines += [
                f"  size  {size / 1e6:.1f} MB, {size / before:.0%} of the source's {before / 1e6:.1f} MB",
                f"  PSNR  mean {facts['psnr_mean_db']:.1f} dB, worst {facts['psnr_worst_db']:.1f} dB ({facts['psnr_worst']})",
            ]
        return "\n".join(map(printable, lines))


def prepare_many(
    paths: Sequence[str | Path], out: str | Path, config: PrepareConfig | None = None, workers: int | None = None
) -> list[Prepared]:
    """`prepare` for one data set in `out`, for several in a folder of `out` each, called like theirs."""
    config = config or PrepareConfig()
    flags = [
        part
        for name, value in asdict(config).items()
        if value != getattr(PrepareConfig, name)
        for part in ([f"--{name}"] if value is True else [f"--{name.replace('_', '-')}", str(value)])
    ]
    command = shlex.join(["tubelet", "prepare", *map(str, paths), str(out), *flags])
    if len(paths) == 1:
        return [prepare(paths[0], out, config, workers, command)]
    names = [name or Path(path).stem for name, path in zip(datasets.source_names(paths), paths, strict=True)]
    return [prepare(path, Path(out) / name, config, workers, command) for path, name in zip(paths, names, strict=True)]


def prepare(
    data: str | Path, out: str | Path, config: PrepareConfig | None = None, workers: int | None = None, command: str = ""
) -> Prepared:
    """Write every readable video of the data set `data`, re-encoded, and its table into the folder `out`.

    Each file appears whole or not at all, and what is finished and unchanged is not done again. `workers` threads, one
    per core by default, take a video each, with a process that reads and writes it (see `video/guard.py`). `command` is
    what readers tell the user to repeat.

    ConfigError where `out` was prepared with other settings or from other data, DataError where it is another folder with
    something in it, lies in `data`, or cannot be written (no space left: what is finished stays).
    """
    config, folder = config or PrepareConfig(), Path(out)
    dataset = datasets.read(data)
    names = _names(Path(data), dataset, config.trim)
    if config.trim and (not table.matches(data) or all(part[1:] == (None, None) for part in names)):
        raise ConfigError(f"{data} has no parts of videos to trim to: wanted a table with a start and an end, or no --trim")
    job = Job(
        os.path.abspath(data), command or shlex.join(["tubelet", "prepare", str(data), str(out)]), asdict(config), len(names)
    )
    before = _begun(folder, job)
    try:
        with hold(folder):
            for leftover in folder.rglob(".*.tmp.mp4"):  # of a process that was killed
                leftover.unlink()
            gone = before.keys() - set(names.values())
            for name in gone:
                (folder / name).unlink(missing_ok=True)
            made, new = _make(folder, job, names, {name: before[name] for name in before.keys() - gone}, config, workers)
            tables = {}
            if table.matches(data):
                source = table.file_of(data)
                tables[os.path.abspath(source)] = content_hash(source) or ""
                _prepared.write_text(folder / _prepared.TABLE, table.with_paths(data, names, config.trim))
                tables[_prepared.TABLE] = content_hash(str(folder / _prepared.TABLE)) or ""
            whole = {os.path.join(data, name) for name in find_videos(Path(data))} == {video for video, _, _ in names}
            _prepared.write(folder, replace(job, finished=True, tables=tables, whole=whole), made)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written ({error.strerror or error}): make room or choose another folder, and repeat the command; "
            "what is finished is not done again"
        ) from error
    return Prepared(folder, tuple(made), new, len(gone))


def _names(data: Path, dataset: Dataset, trim: bool) -> dict[Part, str]:
    """What becomes a file -> its path below the new folder: as it is below the data set, so that ids stay the same.

    Below what they have in common where a table names videos outside its own folder. A part that is trimmed to has its seconds
    behind the name, as in the Example's id: `a@3-7.5.mp4`.
    """
    parts = list(
        dict.fromkeys(
            (one.path, one.start_seconds, one.end_seconds) if trim else (one.path, None, None) for one in dataset.examples
        )
    )
    videos = list(dict.fromkeys(video for video, _, _ in parts))
    root = os.path.abspath(data if data.is_dir() else data.parent)
    places = {video: os.path.relpath(os.path.abspath(video), root) for video in videos}
    if any(place.startswith(os.pardir) for place in places.values()):
        root = os.path.commonpath([os.path.dirname(os.path.abspath(video)) for video in videos])
        places = {video: os.path.relpath(os.path.abspath(video), root) for video in videos}
    names = {
        video: Path(place).as_posix() + ("" if place.lower().endswith(MP4_SUFFIXES) else ".mp4")
        for video, place in places.items()
    }
    taken: dict[str, str] = {}
    for video, name in names.items():
        if name in taken and places[video] != places[taken[name]]:
            raise DataError(f"{taken[name]} and {video} would both become {name}: rename one of them")
        taken[name] = video
    found: dict[Part, str] = {}
    owner: dict[str, Part] = {}
    for part in parts:
        found[part] = name = _part_name(names[part[0]], *part[1:])
        first = owner.setdefault(name, part)
        if (names[first[0]], *first[1:]) != (names[part[0]], *part[1:]):
            raise DataError(f"{first[0]} and {part[0]} would both become {name}: rename one of them")
    return found


def _part_name(name: str, start: float | None, end: float | None) -> str:
    if start is None and end is None:
        return name
    stem, suffix = os.path.splitext(name)
    return f"{stem}@{start or 0:.12g}-{'' if end is None else format(end, '.12g')}{suffix}"


def _begun(folder: Path, job: Job) -> dict[str, Made]:
    """What an earlier run has made in the folder, after making sure that it was one like this one."""
    real, data = os.path.realpath(folder), os.path.realpath(job.data)
    if os.path.isdir(data) and (real + os.sep).startswith(data + os.sep):
        raise DataError(f"{folder} lies in {job.data}, whose videos would then be read twice: choose a folder beside it")
    found = _prepared.read(folder)
    if found is None:
        if folder.is_dir() and any(name != ".lock" for name in os.listdir(folder)):
            raise DataError(
                f"{folder} holds something, and no {_prepared.NAME} that says `tubelet prepare` wrote it: remove it, or choose a "
                "new folder"
            )
        return {}
    before, made = found
    settings = asdict(PrepareConfig()) | before.settings  # an older version knew fewer
    other = [f"{name} {value}, not {job.settings[name]}" for name, value in settings.items() if value != job.settings[name]]
    if other:
        raise ConfigError(f"{folder} was prepared with {', '.join(other)}: choose another folder, or repeat `{before.command}`")
    if before.data != job.data:
        raise ConfigError(f"{folder} was prepared from {before.data}, not {job.data}: choose another folder")
    return made


def _make(
    folder: Path, job: Job, names: dict[Part, str], before: dict[str, Made], config: PrepareConfig, workers: int | None
) -> tuple[list[Made], int]:
    """Every video of the data set, from an earlier run or now, and how many were written now."""
    _prepared.write(folder, job, before.values())
    done: dict[str, Made] = {}
    once = {name: part for part, name in names.items()}  # a table may spell one path in two ways
    stop = threading.Event()
    with (
        ThreadPoolExecutor(workers or os.cpu_count()) as pool,
        open(folder / _prepared.NAME, "a", encoding="utf-8") as record,
        tqdm(total=len(once), desc=f"preparing {folder.name}", unit="video", file=sys.stderr, disable=None) as bar,
    ):
        futures = [pool.submit(_make_one, folder, name, part, before.get(name), config, stop) for part, name in names.items()]
        try:
            for future in as_completed(futures):
                made = future.result()
                done[made.path] = made
                if made is not before.get(made.path):
                    record.write(_prepared.line(made))
                    record.flush()
                bar.update()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    new = sum(made is not before.get(name) and not made.error for name, made in done.items())
    return [done[name] for name in once], new


def _make_one(folder: Path, name: str, part: Part, before: Made | None, config: PrepareConfig, stop: threading.Event) -> Made:
    """One file: `before` itself where that still holds."""
    out, (video, *seconds) = folder / name, part
    # A source that is not there any more (an archive taken away) is no reason to lose what was made from it.
    if before and not before.error and before.source_is_unchanged() is not False and content_hash(str(out)) == before.checksum:
        return before
    source = os.path.abspath(video)
    size = age = 0
    with contextlib.suppress(OSError):  # a file that is not there is said so below
        stat = os.stat(source)
        size, age = stat.st_size, stat.st_mtime_ns
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{os.getpid()}.{threading.get_ident()}.tmp.mp4")
    try:
        info = run(video, probe, video)
        patience = SECONDS_PER_FRAME * info.frame_count * (1 + info.width * info.height / 1e6)
        settings = (config.short_side, config.gop_frames, config.crf, tuple(seconds))
        with ended_by(stop):
            done = run(video, reencode, video, draft, *settings, more_seconds=patience)
        os.replace(draft, out)
    except VideoError as error:
        out.unlink(missing_ok=True)
        return Made(name, source, size, age, error=str(error).removeprefix(f"{video}: "))
    finally:
        draft.unlink(missing_ok=True)  # of a process that was ended
    checksum = content_hash(str(out))
    assert checksum is not None, out
    return Made(name, source, size, age, done.frames, round(done.psnr_db, 2), out.stat().st_size, checksum)


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Make the folder and keep every other process that prepares out of it, until the block or the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as handle:
        try:
            import fcntl
        except ImportError:  # Windows has no flock; there two runs in one folder are the user's to avoid
            yield
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"another process is writing {folder}: wait for it, or choose another folder") from error
        yield
