"""What happens when? Class probabilities over a video of any length, as a table, a plot, subtitles, and segments per class.

    seen = timeline(model, "day.mp4")
    for segment in segments(seen): print(segment)

Sliding windows come from one stream, each frame decoded once. The probability of a class at a moment is the mean over the
windows that cover it. S moments, K classes.
"""

import contextlib
import csv
import html
import io
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tubelet.datasets._files import check_target
from tubelet.errors import CheckpointError, ConfigError, utf8
from tubelet.evaluate.grounding import Detection
from tubelet.find import choose
from tubelet.ground import suppress
from tubelet.models._model import Model
from tubelet.scan import STEP, Kept, Scan, scales, scan

SUFFIXES = (".png", ".svg", ".csv", ".srt", ".vtt", ".json")
MOST = 10_000_000  # moments: four months by seconds
LEVELS = tuple(round(0.1 * step, 1) for step in range(1, 10))  # of probability, for `detections`


@dataclass(frozen=True)
class Timeline:
    """Probabilities of the classes over one video.

    seconds float64 (S+1,): the borders of the S moments, the last one the end of the video; probabilities float32 (S,K).
    """

    path: str
    class_names: tuple[str, ...]
    seconds: Tensor
    probabilities: Tensor


@dataclass(frozen=True)
class Segment:
    """One class for a while: from when to when, in seconds, and its mean probability there."""

    label: str
    start_seconds: float
    end_seconds: float
    score: float


def timeline(
    model: Model,
    video: str | Path,
    every_seconds: float = 1.0,
    lengths: Sequence[float] = (),
    background: str = "",
    batch_size: int = 8,
    on_window: Callable[[int, int], object] | None = None,
    step: float = STEP,
    kept: Kept | None = None,
) -> Timeline:
    """Class probabilities of every `every_seconds` of a video. lengths: of the windows in seconds; () takes the model's clip. step:
    from one window to the next, relative to its length. kept: as in `scan`.

    background: the class of windows that hold nothing, or only a part of something. It is left out, and what remains of every
    moment is made to sum to 1: the less a window holds, the less it counts.

    CheckpointError for a model without classes, VideoError where the video cannot be read.
    """
    if not model.class_names:
        raise CheckpointError(f"{model.name} was never taught classes, so there is no timeline: give a fine-tuned model")
    if not 0 < every_seconds < math.inf:
        raise ConfigError(f"every_seconds is {every_seconds:g}: it must be a number above 0")
    if background:
        choose(background, model.class_names, "class")
    windows = scales(model, video, lengths, step)
    found = scan(model, video, windows if lengths else windows[:1], batch_size, on_window, kept)
    if found.duration / every_seconds > MOST:
        moments = f"{found.duration / every_seconds:.2g} moments of {found.duration:g} s"
        raise ConfigError(f"every_seconds is {every_seconds:g}: that makes {moments}, and {MOST:,} are the most")
    # At least one moment: the only frame of a file may be shown for no time at all.
    borders = np.append(np.arange(0, max(found.duration - 1e-6, 1e-9), every_seconds), found.duration)
    shown = [number for number, name in enumerate(model.class_names) if name != background]
    chances = over_time(found, borders)[:, shown]
    if background:
        chances = chances / chances.sum(dim=1, keepdim=True).clamp(min=1e-6)
    return Timeline(str(video), tuple(model.class_names[number] for number in shown), torch.from_numpy(borders), chances)


def over_time(found: Scan, borders: np.ndarray) -> Tensor:
    """float32 (S,K): for every moment the mean of the windows, each weighted by the seconds that it shares with the moment."""
    assert found.probabilities is not None
    start, end = found.seconds.numpy().T  # (W,) each
    chances = found.probabilities.double().numpy()
    # A window meets the moments first to last. Together they take the first one, then the next: memory grows with the windows.
    first = np.clip(np.searchsorted(borders, start, side="right") - 1, 0, len(borders) - 2)
    last = np.clip(np.searchsorted(borders, end, side="left") - 1, first, len(borders) - 2)
    total, seconds = np.zeros((len(borders) - 1, chances.shape[1])), np.zeros(len(borders) - 1)
    for at in range(int((last - first).max()) + 1):
        window = np.flatnonzero(first + at <= last)
        moment = first[window] + at
        shared = np.minimum(borders[moment + 1], end[window]) - np.maximum(borders[moment], start[window])
        shared = shared.clip(min=0)
        np.add.at(total, moment, shared[:, None] * chances[window])
        np.add.at(seconds, moment, shared)
    # A moment that no window covers (a frame rate that changes) has the nearest one.
    for moment in np.flatnonzero(seconds == 0):
        nearest = np.abs((borders[moment] + borders[moment + 1]) / 2 - (start + end) / 2).argmin()
        total[moment], seconds[moment] = chances[nearest], 1
    return torch.from_numpy(total / seconds[:, None]).float()


def segments(seen: Timeline, threshold: float = 0.5, shortest_seconds: float = 0.0) -> list[Segment]:
    """Where each class is at least as probable as `threshold`, in the order of time; neighbouring moments are one segment."""
    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold is {threshold:g}: it must be above 0 and at most 1")
    found = []
    times = seen.seconds.tolist()
    for number, name in enumerate(seen.class_names):
        chances = seen.probabilities[:, number]
        for first, last in _runs((chances >= threshold).tolist()):
            if times[last] - times[first] >= shortest_seconds:
                found.append(Segment(name, times[first], times[last], float(chances[first:last].mean())))
    return sorted(found, key=lambda one: (one.start_seconds, -one.score))


def detections(seen: Timeline, overlap: float = 0.5) -> dict[str, list[Detection]]:
    """{class: (video, start, end, score)}, best first: temporal action localisation, for `evaluate.grounding.localisation`.

    Segments at every threshold of LEVELS; of those that overlap a better one by an IoU above `overlap` the better is kept. The
    score is the mean probability inside, less half of that beside the segment (a margin of half its length to either side): a
    segment that goes on outside of its borders is not whole.
    """
    found: dict[str, list[Detection]] = {}
    times = seen.seconds.numpy()
    for number, name in enumerate(seen.class_names):
        chances = seen.probabilities[:, number].double().numpy()
        runs = sorted({run for level in LEVELS for run in _runs((chances >= level).tolist())})
        if not runs:
            continue
        scores = []
        for first, last in runs:
            margin = max(1, (last - first) // 2)
            beside = np.concatenate([chances[max(0, first - margin) : first], chances[last : last + margin]])
            scores.append(chances[first:last].mean() - 0.5 * (beside.mean() if len(beside) else 0.0))
        spans = np.array([(times[first], times[last]) for first, last in runs])
        kept = suppress(spans, np.array(scores), overlap)
        found[name] = [(seen.path, float(spans[i, 0]), float(spans[i, 1]), float(scores[i])) for i in kept]
    return found


def cues(seen: Timeline, threshold: float = 0.0) -> list[Segment]:
    """The most probable class of every moment, neighbours joined, where it reaches `threshold`: no two overlap."""
    highest, number = seen.probabilities.max(dim=1)
    found, times = [], seen.seconds.tolist()
    changes = [0, *(i for i in range(1, len(number)) if number[i] != number[i - 1]), len(number)]
    for first, last in pairwise(changes):
        for a, b in _runs((highest[first:last] >= threshold).tolist()):
            score = float(highest[first + a : first + b].mean())
            found.append(Segment(seen.class_names[int(number[first])], times[first + a], times[first + b], score))
    return found


def write(seen: Timeline, path: str | Path, threshold: float = 0.5) -> Path:
    """Write a timeline as the suffix says: .png, .svg (plot), .csv (a row a moment), .srt, .vtt (subtitles: the most probable
    class) or .json; whole or not at all. ConfigError for another suffix, CheckpointError where nothing can be written."""
    path = Path(path)
    check_suffix(path)
    suffix = path.suffix.lower()
    if suffix in (".png", ".svg"):
        from tubelet.show.timeline import picture

        content = picture(seen, suffix[1:])
    else:
        text = {".csv": to_csv, ".json": lambda one: to_json(one, threshold), ".srt": to_srt, ".vtt": to_vtt}[suffix](seen)
        content = utf8(text).encode()
    waiting = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        waiting.write_bytes(content)
        os.replace(waiting, path)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error}; choose a folder that you may write to"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            waiting.unlink()
    return path


def check_suffix(path: str | Path) -> None:
    """ConfigError for a name that no timeline can be written to, CheckpointError where another thing is in its place."""
    check_target(path)
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: a timeline is written as {', '.join(SUFFIXES)}, got {Path(path).suffix or 'no suffix'!r}")


def to_csv(seen: Timeline) -> str:
    """start_seconds, end_seconds and a column for each class."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["start_seconds", "end_seconds", *seen.class_names])
    times = seen.seconds.tolist()
    for start, end, chances in zip(times, times[1:], seen.probabilities.tolist(), strict=False):
        rows.writerow([f"{start:.3f}", f"{end:.3f}", *(f"{chance:.5f}" for chance in chances)])
    return text.getvalue()


def to_json(seen: Timeline, threshold: float = 0.5) -> str:
    """path, class_names, seconds (borders of the moments), probabilities (S lists of K) and segments."""
    return json.dumps(to_dict(seen, threshold), indent=1, ensure_ascii=False, allow_nan=False)


def to_dict(seen: Timeline, threshold: float = 0.5) -> dict[str, Any]:
    """What `to_json` writes."""
    return {
        "path": seen.path,
        "class_names": list(seen.class_names),
        "seconds": [round(time, 3) for time in seen.seconds.tolist()],
        "probabilities": [[round(chance, 5) for chance in row] for row in seen.probabilities.tolist()],
        "segments": [vars(one) for one in segments(seen, threshold)],
    }


def to_srt(seen: Timeline) -> str:
    """SubRip subtitles: the most probable class with its probability."""
    blocks = [
        f"{number}\n{_stamp(cue.start_seconds, ',')} --> {_stamp(cue.end_seconds, ',')}\n{_label(cue)}\n"
        for number, cue in enumerate(_visible(cues(seen)), 1)
    ]
    return "\n".join(blocks)


def to_vtt(seen: Timeline) -> str:
    """WebVTT subtitles, as `to_srt`."""
    blocks = [
        f"{_stamp(cue.start_seconds, '.')} --> {_stamp(cue.end_seconds, '.')}\n{html.escape(_label(cue), quote=False)}\n"
        for cue in _visible(cues(seen))
    ]
    return "\n".join(["WEBVTT\n", *blocks])


def _visible(found: Sequence[Segment]) -> list[Segment]:
    """Without those whose times are the same in milliseconds: a subtitle must end after it begins."""
    return [cue for cue in found if round(cue.end_seconds * 1000) > round(cue.start_seconds * 1000)]


def _label(cue: Segment) -> str:
    name = " ".join(cue.label.replace("-->", "→").split()) or "?"
    return f"{name} ({cue.score:.0%})"


def _stamp(seconds: float, mark: str) -> str:
    whole = round(seconds * 1000)
    return f"{whole // 3600000:02d}:{whole // 60000 % 60:02d}:{whole // 1000 % 60:02d}{mark}{whole % 1000:03d}"


def _runs(inside: Sequence[bool]) -> list[tuple[int, int]]:
    """[first, end) of every stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(inside, dtype=np.int8), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
