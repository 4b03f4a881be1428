"""Where one shot of a video ends and the next begins: hard cuts, found by how much more than its neighbours a frame changes.

The change of frame t is the mean absolute difference to frame t-1 of pictures shrunk to 32x32 RGB, 0 to 255. A shot begins at
frame t where the change is at least LEAST_CHANGE and RATIO times the mean change of the WITHIN frames before and after it, so
that a fast pan or a running crowd is no cut. A picture that comes back after a flash is none either. Fades and dissolves are
not looked for. F frames of the file.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from tubelet.video import _pyav
from tubelet.video._index import read_index
from tubelet.video._pyav import NotAsIndexed
from tubelet.video.guard import each

SIDE = 32
LEAST_CHANGE = 5.0
RATIO = 5.0
WITHIN = 3
LEAST_FRAMES = 8  # of a shot
TOGETHER = 1000  # frames whose pictures travel together


@dataclass(frozen=True)
class Shots:
    """starts: the first frame of each shot, the first is 0. seconds float64 (F,): time of every frame. changes float32 (F,): how
    much each differs from the one before, the first not at all."""

    starts: tuple[int, ...]
    seconds: np.ndarray
    changes: np.ndarray


def find_shots(path: str | Path) -> Shots:
    """The shots of a video file, by one decode of all its frames. VideoError where it cannot be read."""
    pieces = each(str(path), _small_frames, str(path))
    seconds = next(pieces)
    changes, before = [np.zeros(1, np.float32)], np.empty((0, SIDE, SIDE, 3), np.uint8)
    for frames in pieces:
        frames = np.concatenate([before, frames])
        changes.append(frame_changes(frames))
        before = frames[-1:]
    found = np.concatenate(changes)
    return Shots(shot_starts(found), seconds, found)


def frame_changes(frames: np.ndarray) -> np.ndarray:
    """float32 (n-1,) from uint8 (n,H,W,C): the mean absolute difference of each frame to the one before."""
    return np.abs(np.diff(frames.astype(np.int16), axis=0)).mean(axis=(1, 2, 3), dtype=np.float32)


def told(frames: Iterable[tuple[int, av.VideoFrame]]) -> Iterator[tuple[int, av.VideoFrame, bool]]:
    """All (number, frame) of a video from its first one, each WITHIN frames later, and whether a shot begins with it; frame 0
    begins none."""
    shrink, before = VideoReformatter(), None
    changes: deque[np.float32] = deque(maxlen=2 * WITHIN + 1)
    waiting: deque[tuple[int, av.VideoFrame]] = deque()
    last = 0  # start of a shot

    def first() -> tuple[int, av.VideoFrame, bool]:
        nonlocal last
        number, frame = waiting.popleft()
        # Of the changes that are held, the last belongs to the last frame that waits.
        place = len(changes) - 1 - len(waiting)
        known = number - last >= LEAST_FRAMES and float(changes[place]) >= LEAST_CHANGE
        begins = known and bool(_unusual(np.array(changes))[place])
        last = number if begins else last
        return number, frame, begins

    for number, frame in frames:
        small = _small(shrink, frame)
        changes.append(np.float32(0) if before is None else frame_changes(np.stack([before, small]))[0])
        before = small
        waiting.append((number, frame))
        if len(waiting) > WITHIN:
            yield first()
    while waiting:
        yield first()


def shot_starts(changes: np.ndarray) -> tuple[int, ...]:
    """The first frames of the shots of a video whose frames change so much, (F,)."""
    starts = [0]
    for frame in np.flatnonzero(_unusual(changes)).tolist():
        if frame - starts[-1] >= LEAST_FRAMES:
            starts.append(frame)
    return tuple(starts)


def _unusual(changes: np.ndarray) -> np.ndarray:
    """bool (F,): where a frame changes much, and much more than those around it."""
    padded = np.pad(changes.astype(np.float64), WITHIN)
    around = np.lib.stride_tricks.sliding_window_view(padded, 2 * WITHIN + 1)
    known = np.lib.stride_tricks.sliding_window_view(np.pad(np.ones(len(changes)), WITHIN), 2 * WITHIN + 1).sum(axis=1) - 1
    usual = (around.sum(axis=1) - changes) / np.maximum(known, 1)
    return np.asarray((changes >= LEAST_CHANGE) & (changes >= RATIO * usual))


def _small_frames(done: int, path: str) -> Iterator[np.ndarray]:
    """For a worker: first the seconds of all frames, then the frames, uint8 (n,SIDE,SIDE,3), without what comes before piece
    `done`."""
    index = read_index(path)
    if not done:
        yield index.seconds
    first, shrink = max(0, done - 1) * TOGETHER, VideoReformatter()
    for certain in (False, True):
        held: list[np.ndarray] = []
        if certain:
            index = read_index(path, certain=True)
        try:
            for number, frame in _pyav.frames(path, index, list(range(first, len(index.seconds)))):
                held.append(_small(shrink, frame))
                if len(held) == TOGETHER or number + 1 == len(index.seconds):
                    first = number + 1
                    yield np.stack(held)
                    held = []
        except NotAsIndexed:
            continue
        return


def _small(shrink: VideoReformatter, frame: av.VideoFrame) -> np.ndarray:
    """uint8 (SIDE,SIDE,3)."""
    return shrink.reformat(frame, SIDE, SIDE, "rgb24", interpolation=Interpolation.AREA, threads=1).to_ndarray()
