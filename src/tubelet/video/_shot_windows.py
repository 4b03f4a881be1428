"""Windows within shots, from the one decode that finds the shots: for the worker of a `Stream`.

A window that ends before the open shot does is known as soon as its last frame is; the last of a shot, which ends with it, when
the next shot begins. Frames wait as they were decoded until no window of the open shot can need them any more, so only those
that a window shows are cropped and resized.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from tubelet.errors import VideoError
from tubelet.records import ClipSpec
from tubelet.video import _pyav
from tubelet.video._index import Index, read_index
from tubelet.video._pyav import NotAsIndexed
from tubelet.video.augment import view_boxes
from tubelet.video.shots import TOGETHER, WITHIN, told
from tubelet.video.stream import Window, Windows, decoded_index, part_frames, span_and_step, window_at, window_starts

WAITING_BYTES = 400_000_000  # of decoded frames: where windows span more (minutes of 4K), frames are resized as they come

Piece = tuple[list[Window], np.ndarray, Tensor, int]


def pieces(
    done: int, path: str, spec: ClipSpec, windows: Windows, part: tuple[float | None, float | None], skip: int
) -> Iterator[np.ndarray | Piece]:
    """For a worker: first the seconds of all frames, then (windows, numbers of frames that were not there yet, these frames
    uint8 (n,3,size,size), the first frame that a later window may show), without what comes before piece `done`."""
    index = read_index(path)
    if not done:
        yield index.seconds
    out = max(0, done - 1)
    for certain in (False, True):
        if certain:
            index = decoded_index(path, index)
        try:
            for piece in islice(_pieces(path, index, spec, windows, part, skip), out, None):
                out += 1
                yield piece
        except NotAsIndexed:
            continue
        return


def _pieces(
    path: str, index: Index, spec: ClipSpec, windows: Windows, part: tuple[float | None, float | None], skip: int
) -> Iterator[Piece]:
    start, end = part_frames(path, index.seconds, part)
    span, step = span_and_step(index.seconds, spec, windows)
    frames = _Frames(index, spec, span)
    shot, first, next_start = 0, start, start  # number of the open shot, its first frame within the part, of its next window
    found: list[Window] = []

    def window(at: int, shot_end: int) -> None:
        nonlocal skip
        try:
            made = window_at(index.seconds, spec, windows, span, (first, shot_end), at - first, shot)
        except VideoError as error:
            raise VideoError(f"{path}: {error}") from error
        if skip:
            skip -= 1
        else:
            found.append(made)

    def close(shot_end: int) -> None:
        """The windows that are left of the open shot."""
        for at in window_starts(shot_end - first, span, step)[(next_start - first) // step :].tolist():
            window(first + at, shot_end)

    seen = min(len(index.seconds), end + WITHIN)  # whether a shot begins with a frame is told by those around it
    for number, frame, begins in told(_pyav.frames(path, index, list(range(seen)))):
        if begins and number < end:
            if number > start:
                close(number)
            shot += 1
            first = next_start = max(number, start)
        if start <= number < end:
            frames.add(number, frame)
            while next_start + span <= number + 1:
                window(next_start, number + 1)
                next_start += step
        needed = max(first, min(number + 1, end) - span)  # no later window begins before this frame
        if found or number % TOGETHER == 0:  # a piece now and then also where no window ends: each has a limit of time
            yield found, *frames.of(found), needed
            found = []
        frames.drop(needed)
    close(end)
    yield found, *frames.of(found), end


class _Frames:
    """Decoded frames that windows may need."""

    def __init__(self, index: Index, spec: ClipSpec, span: int) -> None:
        self.index, self.spec, self.box = index, spec, view_boxes(*index.shown_size, spec, 1)[0]
        self.tools = _pyav.new_tools()
        self.waiting: dict[int, object] = {}  # by number: as decoded, or uint8 (1,3,size,size)
        self.sent: set[int] = set()
        height, width = index.stored_size
        self.at_once = (span + WITHIN) * height * width * 3 > WAITING_BYTES  # 1.5 bytes a pixel, 3 of ten bits

    def add(self, number: int, frame: object) -> None:
        self.waiting[number] = frame
        if self.at_once:
            self.waiting[number] = self._resized([number])

    def of(self, windows: list[Window]) -> tuple[np.ndarray, Tensor]:
        """Those that the windows show and that were not given before."""
        numbers = sorted({number for window in windows for number in window.numbers.tolist()} - self.sent)
        self.sent.update(numbers)
        if not numbers:
            return np.empty(0, np.int64), torch.empty(0)
        if self.at_once:
            return np.array(numbers), torch.cat([self.waiting[number] for number in numbers])  # type: ignore[misc]
        return np.array(numbers), self._resized(numbers)

    def drop(self, before: int) -> None:
        """Forget what lies before a frame."""
        for number in list(self.waiting):
            if number >= before:
                break
            del self.waiting[number]
            self.sent.discard(number)

    def _resized(self, numbers: list[int]) -> Tensor:
        size = (self.spec.size, self.spec.size)
        made = _pyav.Part(self.index, np.array(numbers), self.box, size, self.spec.interpolation, self.tools)
        for number in numbers:
            made.take(number, self.waiting[number])  # type: ignore[arg-type]
        return made.whole()
