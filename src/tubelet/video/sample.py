"""Which frames of a video make one clip: frame numbers int64 (T,), from the ClipSpec and a Generator.

Modes (`ClipSpec.sampling`): "videomae" spreads T numbers over a window of T * stride frames as the original does, "stride"
takes exact multiples, "segments" takes one frame from each T-th of the video. A part of a file is `range_frames` = [first, end).
"""

import numpy as np
import torch

from tubelet.errors import VideoError
from tubelet.records import ClipSpec


def between(seconds: np.ndarray, start: float | None, end: float | None) -> range:
    """The numbers of the frames shown from `start` on and before `end`; None: from the first, to the last.

    seconds: rising times (T,) of all frames. VideoError where there is none in between.
    """
    first = 0 if start is None else int(np.searchsorted(seconds, start))
    stop = len(seconds) if end is None else int(np.searchsorted(seconds, end))
    if first >= stop:
        raise VideoError(
            f"no frame lies in the part {start or 0:g} s to {'the end' if end is None else f'{end:g} s'}; "
            f"the video lasts {float(seconds[-1]) if len(seconds) else 0:g} s"
        )
    return range(first, stop)


def span_frames(spec: ClipSpec) -> int:
    """Frames that a video must have so that nothing is padded."""
    if spec.sampling == "segments":
        return spec.frames
    return (spec.frames - 1) * spec.stride_frames + 1 if spec.sampling == "stride" else spec.window_frames


def window_indices(start: int, spec: ClipSpec, video_frames: int) -> np.ndarray:
    """int64 (T,): the clip whose window begins at frame `start` of a video of `video_frames`.

    "videomae": linspace over the window, at most its last frame, truncated: from 164 with stride 4 164 168 172 176 181 ... 227.
    """
    if spec.sampling == "stride":
        numbers = start + np.arange(spec.frames) * spec.stride_frames
    elif spec.sampling == "videomae":
        end = start + spec.window_frames
        numbers = np.linspace(start, end, spec.frames).clip(start, end - 1).astype(np.int64)
    else:
        numbers = start + np.arange(spec.frames)
    return _within(numbers.astype(np.int64), spec, video_frames)


def train_indices(
    video_frames: int, spec: ClipSpec, generator: torch.Generator, range_frames: tuple[int, int] | None = None
) -> tuple[np.ndarray, bool]:
    """(frame numbers int64 (T,), padded): a random window, or a random frame of each segment.

    padded: the video, or the range, is shorter than a clip and the short policy filled it. VideoError for an empty range, and
    for a short video under the policy "error".
    """
    first, count = _range(video_frames, range_frames)
    spare = count - span_frames(spec)
    if spare < 0:
        return first + window_indices(0, spec, count), True
    if spec.sampling == "segments":
        phase = torch.rand(spec.frames, generator=generator, dtype=torch.float64).numpy()
        return first + _segments(phase, spec, count), False
    start = int(torch.randint(spare + 1, (1,), generator=generator))
    return first + window_indices(start, spec, count), False


def view_indices(
    video_frames: int, spec: ClipSpec, clips: int, range_frames: tuple[int, int] | None = None, chosen: range | None = None
) -> list[tuple[np.ndarray, bool]]:
    """`clips` pairs (frame numbers int64 (T,), padded) for evaluation, spread evenly from the first window to the last; of them
    those at the places `chosen`, where it is given.

    One clip is the centre window, or the middle frame of each segment; several clips of segments take evenly spread phases. A
    video shorter than a clip gives the same padded clip every time. Errors as in `train_indices`.
    """
    assert clips >= 1, clips
    chosen = range(clips) if chosen is None else chosen
    first, count = _range(video_frames, range_frames)
    spare = count - span_frames(spec)
    if spare < 0:
        return [(first + window_indices(0, spec, count), True)] * len(chosen)
    if spec.sampling == "segments":
        phases = [np.full(spec.frames, (clip + 0.5) / clips) for clip in chosen]
        return [(first + _segments(phase, spec, count), False) for phase in phases]
    starts = np.linspace(0, spare, clips).round().astype(int) if clips > 1 else [spare // 2]
    return [(first + window_indices(int(starts[place]), spec, count), False) for place in chosen]


def _segments(phase: np.ndarray, spec: ClipSpec, count: int) -> np.ndarray:
    """One frame from each of T segments of `count` frames, as equal as whole frames allow, at `phase` in [0, 1) of each."""
    bounds = np.arange(spec.frames + 1) * count // spec.frames
    return bounds[:-1] + (phase * np.diff(bounds)).astype(np.int64)


def _range(video_frames: int, range_frames: tuple[int, int] | None) -> tuple[int, int]:
    """(first, count) of the frames that may be used."""
    first, end = range_frames or (0, video_frames)
    end = min(end, video_frames)
    if first < 0 or end <= first:
        raise VideoError(f"frames {first} to {end} of a video of {video_frames} frames: no frame in that range")
    return first, end - first


def _within(numbers: np.ndarray, spec: ClipSpec, video_frames: int) -> np.ndarray:
    """The short-clip policy, decided here only: what stands in for frames past the end of the video."""
    if numbers[-1] < video_frames:
        return numbers
    if spec.short == "repeat_last":
        return np.minimum(numbers, video_frames - 1)
    if spec.short == "loop":
        return numbers % video_frames
    raise VideoError(
        f"the video has {video_frames} frames and a clip spans {span_frames(spec)}: "
        "use a smaller stride or fewer frames, or short=repeat_last or loop"
    )
