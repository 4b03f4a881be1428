"""The windows of a video of any length as Clips, one after another: every frame is decoded once although windows overlap.

A worker process (see `guard`) decodes the file from its first needed frame to its last and sends the frames that windows need,
cropped and resized as for evaluation; here they are held until no later window needs them. So memory does not grow with the
length of the file, no border between stretches is decoded twice, and a worker that dies goes on where it was. The index
of a file that proves nothing by its packets (AVI, GIF) takes one more decode before. Shots are found in the same decode.

F frames of the file, T frames of a clip, L frames that a window spans, s frames from one window to the next.
"""

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tubelet.errors import ConfigError, VideoError
from tubelet.find import choose
from tubelet.records import Clip, ClipSpec
from tubelet.video import _pyav
from tubelet.video._index import Index, read_index
from tubelet.video._pyav import NotAsIndexed
from tubelet.video.augment import view_boxes
from tubelet.video.background import subtract_background
from tubelet.video.guard import each
from tubelet.video.sample import span_frames, view_indices, window_indices

Kind = Literal["sliding", "uniform", "shots"]
KINDS = ("sliding", "uniform", "shots")
PIECE_BYTES = 8_000_000  # of resized frames that travel together, and about as much that waits for its last window


@dataclass(frozen=True)
class Windows:
    """Where the windows of a video lie.

    kind            "sliding" (from the first frame to the last), "uniform" (`count` spread evenly), "shots" (sliding within
                    each shot, at least one window a shot; see `video/shots.py`)
    window_seconds  what a window spans; None: what a clip of the model spans (frames x stride_frames)
    step_seconds    from one window to the next; None: half a window
    count           of "uniform"
    """

    kind: Kind = "sliding"
    window_seconds: float | None = None
    step_seconds: float | None = None
    count: int = 5

    def __post_init__(self) -> None:
        choose(self.kind, KINDS, "kind of windows")
        for name in ("window_seconds", "step_seconds", "count"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name} is {value:g}: it must be above 0, and finite")


SLIDING = Windows()


@dataclass(frozen=True, slots=True)
class Window:
    """One window: the frames first..last of the file, of which a clip shows `numbers`, int64 (T,).

    Seconds are the times of its first and last frame. shot: the number of its shot, 0 without shots. kind: which of several
    Windows it belongs to. padded: the video, or the shot, is shorter than a clip, and ClipSpec.short says what fills it.
    """

    numbers: np.ndarray
    first: int
    last: int
    start_seconds: float
    end_seconds: float
    shot: int = 0
    kind: int = 0
    padded: bool = False


class Stream:
    """The windows of one file in order of their ends, each with its Clip: `for window, clip in Stream(path, spec)`, once.

    seconds float64 (F,): the time of every frame of the file. windows: all of them, also before they are decoded. Clips have
    frames uint8 (T,3,size,size) and the seconds of each; their id is that of the file and the window's seconds.

    windows: one Windows or several (scales), decoded together; those of shots come alone, and `windows` and len() know of them what
    was found so far. part: only what lies between these seconds. skip: as many
    windows are left out at the beginning, which are not decoded either. VideoError for a file that cannot be read, at once or
    when its damage is met; ConfigError for impossible Windows.
    """

    def __init__(
        self,
        path: str | Path,
        spec: ClipSpec,
        windows: Windows | Sequence[Windows] = SLIDING,
        part: tuple[float | None, float | None] = (None, None),
        skip: int = 0,
        id: str = "",
    ) -> None:
        self.path, self.spec, self.id = str(path), spec, id or str(path)
        kinds = (windows,) if isinstance(windows, Windows) else tuple(windows)
        self._found_on_the_way = any(one.kind == "shots" for one in kinds)
        self._pieces: Generator[Any, None, None]
        if self._found_on_the_way:
            from tubelet.video import _shot_windows

            if len(kinds) > 1:
                raise ConfigError(f"windows of shots come alone, got {len(kinds)} kinds of windows")
            self._pieces = each(self.path, _shot_windows.pieces, self.path, spec, kinds[0], part, skip)
            self.seconds, self.windows = next(self._pieces), list[Window]()
            part_frames(self.path, self.seconds, part)
        else:
            self._pieces = each(self.path, _pieces, self.path, spec, kinds, part, skip)
            self.seconds = next(self._pieces)[0]
            self.windows = _plan(self.path, self.seconds, spec, kinds, part)[skip:]

    def __len__(self) -> int:
        return len(self.windows)

    def close(self) -> None:
        """End the decoding before the last window."""
        self._pieces.close()

    def __iter__(self) -> Iterator[tuple[Window, Clip]]:
        with closing(self._pieces):
            yield from self._as_found() if self._found_on_the_way else self._as_planned()

    def _as_planned(self) -> Iterator[tuple[Window, Clip]]:
        # What no window from here on needs may go: the first frame that any of them needs.
        keep = np.minimum.accumulate([int(window.numbers.min()) for window in self.windows][::-1])[::-1].tolist()
        held: dict[int, Tensor] = {}
        for window, first in zip(self.windows, keep, strict=True):
            held = {number: frame for number, frame in held.items() if number >= first}
            while window.numbers.max() not in held:
                numbers, frames = next(self._pieces)
                held.update(zip(numbers.tolist(), frames, strict=True))
            yield window, self._clip(window, held)

    def _as_found(self) -> Iterator[tuple[Window, Clip]]:
        held: dict[int, Tensor] = {}
        for windows, numbers, frames, first in self._pieces:
            held.update(zip(numbers.tolist(), frames, strict=True))
            self.windows += windows
            for window in windows:
                yield window, self._clip(window, held)
            held = {number: frame for number, frame in held.items() if number >= first}

    def _clip(self, window: Window, held: dict[int, Tensor]) -> Clip:
        frames = torch.stack([held[number].permute(1, 2, 0) for number in window.numbers.tolist()]).permute(0, 3, 1, 2)
        if self.spec.background == "subtract":
            frames = subtract_background(frames)
        id = f"{self.id}@{window.start_seconds:.3f}-{window.end_seconds:.3f}"
        return Clip(frames, torch.from_numpy(self.seconds[window.numbers]), id)


def window_starts(frames: int, span: int, step: int) -> np.ndarray:
    """int64 (n,): first frames of windows of `span` every `step` frames, the last one moved back to end with the last frame:
    n = ceil((frames - span) / step) + 1, or 1 where `frames` is less than `span`."""
    spare = max(0, frames - span)
    step = min(step, max(1, spare))  # a longer one leads to the end too, and may be beyond 64 bits
    return np.minimum(np.arange(-(-spare // step) + 1, dtype=np.int64) * step, spare)


def plan(
    seconds: np.ndarray, spec: ClipSpec, kinds: Sequence[Windows], range_frames: tuple[int, int] | None = None
) -> list[Window]:
    """Every sliding or uniform Window of a video whose frames are shown at `seconds`, in order of their ends.

    The frames of a window are those of `sample.window_indices`; where window_seconds is given, or the clips of the model are
    cut in segments, the middle frame of each T-th of the window. VideoError as there.
    """
    a, b = range_frames or (0, len(seconds))
    found = []
    for kind, windows in enumerate(kinds):
        span, step = span_and_step(seconds, spec, windows)
        if windows.kind == "uniform":
            spare = max(0, b - a - span)
            many = windows.count if spare else 1
            starts = np.linspace(0, spare, many).round().astype(np.int64) if many > 1 else np.array([spare // 2])
        else:
            starts = window_starts(b - a, span, step)
        found += [window_at(seconds, spec, windows, span, (a, b), start, 0, kind) for start in starts.tolist()]
    return sorted(found, key=lambda window: (window.last, window.first, window.kind))


def span_and_step(seconds: np.ndarray, spec: ClipSpec, windows: Windows) -> tuple[int, int]:
    """Frames that a window spans, and from one to the next."""
    steps = np.diff(seconds)
    frame_seconds = float(steps.mean()) if len(steps) and steps.mean() > 0 else 1.0
    span = span_frames(spec) if spec.sampling != "segments" else spec.window_frames
    if windows.window_seconds is not None:
        span = max(1, round(windows.window_seconds / frame_seconds))
    step = span / 2 if windows.step_seconds is None else windows.step_seconds / frame_seconds
    return span, max(1, round(step))


def window_at(
    seconds: np.ndarray,
    spec: ClipSpec,
    windows: Windows,
    span: int,
    stretch: tuple[int, int],
    start: int,
    shot: int = 0,
    kind: int = 0,
) -> Window:
    """The window that begins `start` frames into a stretch of frames [a, b)."""
    a, b = stretch
    first, end = a + start, min(a + start + span, b)
    if windows.window_seconds is None and spec.sampling != "segments":
        numbers, padded = window_indices(start, spec, b - a) + a, b - a < span
    else:
        numbers, padded = view_indices(b, _in_segments(spec), 1, (first, end))[0]
    return Window(numbers, first, end - 1, float(seconds[first]), float(seconds[end - 1]), shot, kind, padded)


def _in_segments(spec: ClipSpec) -> ClipSpec:
    return ClipSpec(frames=spec.frames, sampling="segments", short=spec.short)


def part_frames(path: str, seconds: np.ndarray, part: tuple[float | None, float | None]) -> tuple[int, int]:
    """(first, end) of the frames between two times; VideoError where there are none."""
    start = 0 if part[0] is None else int(np.searchsorted(seconds, part[0]))
    end = len(seconds) if part[1] is None else int(np.searchsorted(seconds, part[1]))
    if start >= end:
        raise VideoError(
            f"{path}: no frame lies in the part {part[0] or 0:g} s to {'the end' if part[1] is None else f'{part[1]:g} s'}; "
            f"the video lasts {seconds[-1]:g} s"
        )
    return start, end


def _plan(
    path: str, seconds: np.ndarray, spec: ClipSpec, kinds: Sequence[Windows], part: tuple[float | None, float | None]
) -> list[Window]:
    """`plan` for a part in seconds, with the file in front of what is wrong."""
    try:
        return plan(seconds, spec, kinds, part_frames(path, seconds, part))
    except VideoError as error:
        raise VideoError(str(error) if str(error).startswith(path) else f"{path}: {error}") from error


def _pieces(
    done: int,
    path: str,
    spec: ClipSpec,
    kinds: Sequence[Windows],
    part: tuple[float | None, float | None],
    skip: int,
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """For a worker: first (seconds of all frames, nothing), then (frame numbers, frames uint8 (n,3,size,size)) in rising order,
    without what comes before piece `done`."""
    index = read_index(path)
    if not done:
        yield index.seconds, torch.empty(0)
    windows = _plan(path, index.seconds, spec, kinds, part)[skip:]
    if not windows:
        return
    wanted = np.unique(np.concatenate([window.numbers for window in windows]))
    del windows  # of hours, thousands of small things
    together = max(1, PIECE_BYTES // (spec.size**2 * 3))
    pieces = [wanted[at : at + together] for at in range(0, len(wanted), together)][max(0, done - 1) :]
    for certain in (False, True):
        if certain:
            index = decoded_index(path, index)
        try:
            while pieces:
                for frames in _frames(path, index, spec, pieces):
                    yield pieces.pop(0), frames
        except NotAsIndexed:
            continue
        return


def _frames(path: str, index: Index, spec: ClipSpec, pieces: list[np.ndarray]) -> Iterator[Tensor]:
    box = view_boxes(*index.shown_size, spec, 1)[0]
    yield from _pyav.each_piece(path, index, list(pieces), box, (spec.size, spec.size), spec.interpolation)


def decoded_index(path: str, index: Index) -> Index:
    """The index by decoding all of the file; windows that are out already must stay what they are."""
    certain = read_index(path, certain=True)
    if not np.array_equal(certain.seconds, index.seconds):
        raise VideoError(
            f"{path}: damaged: its header tells of {len(index.seconds)} frames and {len(certain.seconds)} can be decoded, or at "
            "other times; `tubelet prepare` makes a sound copy"
        )
    return certain
