"""What a set of videos holds and what is wrong with it, before an hour is spent on training."""

import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tubelet import datasets
from tubelet.datasets import shards
from tubelet.datasets.split import equal_files
from tubelet.errors import ConfigError, DataError, VideoError, printable
from tubelet.records import ClipSpec, Dataset, Example
from tubelet.train.config import DataConfig
from tubelet.train.data import divide
from tubelet.video.decode import VideoInfo, decode, probe
from tubelet.video.guard import run
from tubelet.video.sample import span_frames

LISTED = 10  # of anything that may be long, in the text


@dataclass(frozen=True)
class Spread:
    """Smallest, median and largest of a quantity."""

    least: float
    median: float
    most: float

    def __str__(self) -> str:
        return f"{self.least:g} to {self.most:g}, median {self.median:g}" if self.least != self.most else f"{self.least:g}"


@dataclass(frozen=True)
class Inspection:
    """The facts of a data set. `problems` would stop training; `warnings` would not, but are worth a look.

    Counts are of Examples (rows), `readable` of those whose file opens; spreads are over readable Examples.
    `too_short` has (id, frames) of those with fewer frames than the clip's window, `duplicates` lists of ids whose
    files are equal byte for byte, `straddling` (kind, name, splits) of groups and equal files that lie in more than
    one split. `sides` counts the readable Examples that fine-tuning would train on and hold out, by the data set they
    came from.
    """

    source: str
    examples: int
    readable: int
    hours: float
    window_frames: int
    short_policy: str
    classes: dict[str, int]
    splits: dict[str, dict[str, int]]  # split -> label -> count
    groups: int
    duration_seconds: Spread | None
    frame_count: Spread | None
    fps: Spread | None
    sizes: dict[str, int]
    codecs: dict[str, int]
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    too_short: list[tuple[str, int]] = field(default_factory=list)
    duplicates: list[list[str]] = field(default_factory=list)
    straddling: list[tuple[str, str, list[str]]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    sides: dict[str, dict[str, int]] = field(default_factory=dict)  # source -> "train" or "val" -> count
    problems: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values for `json.dumps`."""
        return asdict(self)

    def to_text(self) -> str:
        """A page to read: what would be used, then warnings, then problems."""
        unlabelled = self.examples - sum(self.classes.values())
        lines = [
            f"{self.source}: {_count(self.examples, 'video')}, {self.readable} readable, {self.hours:.2f} hours",
            *(f"  {name:<10}{value}" for name, value in self._facts() if value),
            "",
            *_balance(self.classes, self.splits, unlabelled),
        ]
        for source, counts in self.sides.items():
            where = f" of {source}" if source else ""
            lines.append(f"fine-tuning would train on {counts['train']}{where} and hold out {counts['val']}")
        for title, items in (
            ("unreadable", [f"{id}: {reason}" for id, reason in self.unreadable]),
            (
                f"shorter than a clip's window of {self.window_frames} frames (short policy: {self.short_policy})",
                [f"{id}: {_count(frames, 'frame')}" for id, frames in self.too_short],
            ),
            ("equal files", [" = ".join(ids) for ids in self.duplicates]),
            (
                "on more than one side of the split",
                [f"{kind} {name}: {', '.join(s)}" for kind, name, s in self.straddling],
            ),
        ):
            if items:
                lines += ["", f"{len(items)} {title}:", *(f"  {item}" for item in items[:LISTED])]
                lines += [f"  ... and {len(items) - LISTED} more (all in --json)"] if len(items) > LISTED else []
        lines += ["", *(f"warning: {text}" for text in self.warnings)] if self.warnings else []
        if self.problems:
            lines += ["", *(f"problem: {text}" for text in self.problems)]
        else:
            lines += ["", "No problem found: this can be trained on."]
        return "\n".join(map(printable, lines))

    def _facts(self) -> list[tuple[str, str]]:
        return [
            ("duration", f"{self.duration_seconds} seconds" if self.duration_seconds else ""),
            ("frames", str(self.frame_count or "")),
            ("fps", str(self.fps or "")),
            ("size", _most_common(self.sizes)),
            ("codec", _most_common(self.codecs)),
            ("groups", str(self.groups or "")),
        ]


def inspect(
    data: Dataset | str | Path,
    spec: ClipSpec | None = None,
    source: str = "",
    config: DataConfig | None = None,
    decode_all: bool = False,
) -> Inspection:
    """Open every video of a data set (or of the folder or table at a path) and look for what would hurt training.

    `spec` is the clip that training would cut and `config` how it would hold videos out; their defaults are used where
    none is given. DataError where there is nothing to look at. Files are opened and indexed; damage in the middle is
    only sure to be seen with `decode_all`, which takes every frame of them.
    """
    spec = spec or ClipSpec()
    if not isinstance(data, Dataset):
        source = source or str(data)
        data = datasets.read(data)
    examples = data.examples
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        probed = dict(pool.map(lambda path: _probe(path, decode_all), sorted({example.path for example in examples})))
    for path in shards.altered(path for path, info in probed.items() if isinstance(info, str)):
        probed[path] = (
            f"{probed[path]}; its bytes are not those that were packed: copy the shard again, or repeat `tubelet prepare --pack`"
        )
    infos: dict[str, VideoInfo] = {path: info for path, info in probed.items() if not isinstance(info, str)}
    readable = [example for example in examples if example.path in infos]
    unreadable = [(example.id, str(probed[example.path])) for example in examples if example.path not in infos]
    seconds = {example.id: _length_seconds(example, infos[example.path]) for example in readable}
    frames = {example.id: _length_frames(example, infos[example.path]) for example in readable}
    needed = span_frames(spec)
    too_short = [(id, count) for id, count in frames.items() if count < needed]
    same = equal_files(example.path for example in readable)
    ids = defaultdict(list)
    for example in examples:
        ids[example.path].append(example.id)
    inspection = Inspection(
        source=source or "data",
        examples=len(examples),
        readable=len(readable),
        hours=round(sum(seconds.values()) / 3600, 4),
        window_frames=needed,
        short_policy=spec.short,
        classes={name: sum(example.label == name for example in examples) for name in data.classes},
        splits=_splits(examples),
        groups=len({example.group for example in examples if example.group}),
        duration_seconds=_spread(seconds.values()),
        frame_count=_spread(frames.values()),
        fps=_spread(infos[example.path].fps for example in readable),
        sizes=_counts(f"{infos[example.path].width}x{infos[example.path].height}" for example in readable),
        codecs=_counts(infos[example.path].codec for example in readable),
        unreadable=unreadable,
        too_short=too_short,
        duplicates=[[id for path in paths for id in ids[path]] for paths in same],
        straddling=_straddling(examples, same),
    )
    inspection.warnings.extend(_warnings(inspection, data, same))
    inspection.problems.extend(_problems(inspection))
    if len(data.classes) > 1 and readable:
        try:
            sides = divide(replace(data, examples=tuple(readable)), config or DataConfig(), needs_labels=True)
        except (ConfigError, DataError) as error:
            inspection.problems.append(str(error))
        else:
            inspection.sides.update(_sides(*sides))
    return inspection


def _probe(path: str, decode_all: bool) -> tuple[str, VideoInfo | str]:
    try:
        info = run(path, probe, path)
        if decode_all:
            run(path, decode, path, short_side=8)
        return path, info
    except VideoError as error:
        return path, str(error).removeprefix(f"{path}: ")


def _length_seconds(example: Example, info: VideoInfo) -> float:
    end = info.duration_seconds if example.end_seconds is None else min(example.end_seconds, info.duration_seconds)
    return max(0.0, end - (example.start_seconds or 0.0))


def _length_frames(example: Example, info: VideoInfo) -> int:
    """Frames of the Example; of a part of a file, as many as its seconds hold at the file's average rate."""
    if example.start_seconds is None and example.end_seconds is None:
        return info.frame_count
    return round(_length_seconds(example, info) * info.fps)


def _splits(examples: Iterable[Example]) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for example in examples:
        if example.split:
            found[example.split][example.label or ""] += 1
    return {name: dict(found[name]) for name in sorted(found)}


def _straddling(examples: Iterable[Example], same: list[list[str]]) -> list[tuple[str, str, list[str]]]:
    copies = {path: paths[0] for paths in same for path in paths}
    sides: dict[tuple[str, str], set[str]] = defaultdict(set)
    for example in examples:
        if example.split:
            if example.group:
                sides["group", example.group].add(example.split)
            sides["file", copies.get(example.path, example.path)].add(example.split)
    return [(kind, name, sorted(splits)) for (kind, name), splits in sorted(sides.items()) if len(splits) > 1]


def _sides(train: Dataset, val: Dataset | None) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = defaultdict(lambda: {"train": 0, "val": 0})
    for name, side in (("train", train), ("val", val)):
        for example in side.examples if side else ():
            found[example.source][name] += 1
    return dict(found)


def _warnings(found: Inspection, data: Dataset, same: list[list[str]]) -> list[str]:
    texts = []
    if found.unreadable and found.readable:
        texts.append(f"{_count(len(found.unreadable), 'video')} cannot be read and will be skipped (and counted)")
    if found.too_short and found.short_policy != "error":
        texts.append(
            f"{_count(len(found.too_short), 'video')} shorter than {found.window_frames} frames: the clip is filled up by "
            f"{found.short_policy}; a smaller clip.stride_frames or clip.frames avoids it"
        )
    if found.straddling:
        texts.append(f"{len(found.straddling)} groups or equal files lie in more than one split: validation will look too good")
    labels: dict[str, set[str | None]] = defaultdict(set)
    copies = {path: paths[0] for paths in same for path in paths}
    for example in data.examples:
        if example.path in copies and example.label:
            labels[copies[example.path]].add(example.label)
    if any(len(names) > 1 for names in labels.values()):
        texts.append("some equal files carry different labels: one of them is wrong")
    counts = [count for count in found.classes.values() if count]
    if counts and max(counts) >= 10 * min(counts):
        texts.append(f"classes are uneven ({min(counts)} to {max(counts)} videos): read mean class accuracy, not top-1")
    bare = [example.id for example in data.examples if example.label is None]
    if found.classes and bare:
        names = ", ".join(bare[:3]) + (", ..." if len(bare) > 3 else "")
        texts.append(f"{_count(len(bare), 'video')} without a label ({names}): used for pretraining, left out of fine-tuning")
    return texts


def _problems(found: Inspection) -> list[str]:
    texts = []
    if not found.readable:
        texts.append("no video can be read")
    if found.short_policy == "error" and found.too_short:
        texts.append(f"{_count(len(found.too_short), 'video')} shorter than the clip, and the short policy is 'error'")
    if len(found.classes) == 1:
        texts.append(f"only one class, {next(iter(found.classes))!r}: a classifier needs two or more (pretraining does not)")
    return texts


def _balance(classes: dict[str, int], splits: dict[str, dict[str, int]], unlabelled: int) -> list[str]:
    if not classes and not splits:
        return ["no labels: for pretraining only"]
    names = [*classes, *([""] if unlabelled else [])]
    width = max(5, *(len(name or "(no label)") for name in names)) + 2
    lines = ["".join([f"{'class':<{width}}{'videos':>8}", *(f"{name:>{max(8, len(name) + 2)}}" for name in splits)])]
    for name in names:
        row = [f"{name or '(no label)':<{width}}{classes.get(name, unlabelled):>8}"]
        row += [f"{labels.get(name, 0):>{max(8, len(split) + 2)}}" for split, labels in splits.items()]
        lines.append("".join(row))
    return lines


def _spread(values: Iterable[float]) -> Spread | None:
    numbers = [round(float(value), 3) for value in values]
    return Spread(min(numbers), round(statistics.median(numbers), 3), max(numbers)) if numbers else None


def _counts(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())


def _most_common(counts: dict[str, int], shown: int = 5) -> str:
    parts = [f"{name} ({count})" for name, count in list(counts.items())[:shown]]
    return ", ".join(parts) + (f" and {len(counts) - shown} more" if len(counts) > shown else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
