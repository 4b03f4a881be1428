"""Frames of a video file: the frame you ask for is the frame that a full sequential decode gives, on every file.

Damaged files are a VideoError as soon as the damage is noticed: a file shorter than it says it is, a packet that the decoder
refuses, a frame that it marks as corrupt because parts of it are guessed. For mp4 and mkv that may be only when a frame near the
damage is asked for: an index is made without decoding. What a decoder repairs without a word is not noticed (HEVC headers, at
times). A recording that begins between two key frames is not damaged: its first frame is the first that can be decoded.

T frames asked for, F frames of the file, C colours, H height, W width.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tubelet.errors import ConfigError, VideoError
from tubelet.find import choose
from tubelet.records import Clip, Interpolation
from tubelet.video import _pyav, _torchcodec
from tubelet.video._index import Index, read_index
from tubelet.video._pyav import NotAsIndexed
from tubelet.video.resize import Box

BACKENDS = {"pyav": _pyav.read_frames, "torchcodec": _torchcodec.read_frames}


@dataclass(frozen=True)
class VideoInfo:
    """What a file holds. width and height are as shown (after rotation, before any pixel aspect ratio); fps is the average.

    frame_count is exact: the frames that a sequential decode gives, whatever the container says.
    """

    path: str
    frame_count: int
    fps: float
    duration_seconds: float
    width: int
    height: int
    rotation_degrees: int
    codec: str
    pixel_format: str
    container: str
    variable_frame_rate: bool


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """What the file holds; VideoError naming the file and what is wrong with it."""
    path = os.fspath(path)
    index = read_index(path)
    height, width = index.shown_size
    steps = np.diff(index.seconds)
    average = float(index.seconds[-1]) / len(steps) if len(steps) else index.duration_seconds
    tick = float(index.time_base)
    return VideoInfo(
        path=path,
        frame_count=len(index.seconds),
        fps=1 / average if average > 0 else 0.0,
        duration_seconds=index.duration_seconds,
        width=width,
        height=height,
        rotation_degrees=index.turns * 90,
        codec=index.codec,
        pixel_format=index.pixel_format,
        container=index.container,
        variable_frame_rate=bool(len(steps)) and bool(np.ptp(steps) > max(2.5 * tick, 0.05 * average)),
    )


def frame_times(path: str | os.PathLike[str]) -> Tensor:
    """Seconds of every frame, float64 (F,), in the order they are shown; the first is 0. VideoError as `probe`."""
    return torch.from_numpy(read_index(os.fspath(path)).seconds.copy())


def decode(
    path: str | os.PathLike[str],
    indices: Sequence[int] | np.ndarray | Tensor | None = None,
    *,
    seconds: Sequence[float] | np.ndarray | Tensor | None = None,
    short_side: int | None = None,
    size: tuple[int, int] | None = None,
    interpolation: Interpolation = "bilinear",
    approximate: bool = False,
    backend: str = "pyav",
    id: str = "",
) -> Clip:
    """The frames `indices` (any order, repeats allowed), or those shown at `seconds`, or all: RGB uint8 (T,3,H,W) and times.

    The rotation of the file is applied, alpha dropped, 10 bits made 8. `short_side` scales down (never up) to that short side,
    `size` = (height, width) to exactly that; frames of a file whose size changes are scaled to the first one's. `approximate`
    leaves out the deblocking filter of H.264, HEVC and VP8 (others have none to leave out): the same frames, faster, with
    blocks in them and errors that grow until the next key frame. `id` names the clip, by default the path.

    Errors: VideoError for a file that cannot be read and for frames or times outside of it; ConfigError for contradicting
    arguments; MissingExtraError where `backend` is not installed.
    """
    path = os.fspath(path)
    if indices is not None and seconds is not None:
        raise ConfigError("decode got both indices and seconds: give one of them, or neither for every frame")
    if short_side is not None and size is not None:
        raise ConfigError("decode got both short_side and size: give one of them, or neither for the size of the file")
    if any(pixels is not None and pixels < 1 for pixels in (short_side, *(size or ()))):
        raise ConfigError(f"decode got short_side={short_side}, size={size}: both are 1 pixel or more")
    read_frames = BACKENDS[choose(backend, BACKENDS, "video backend")]
    for certain in (False, True):
        index = read_index(path, certain)
        numbers = _numbers(path, index, indices, seconds)
        target = _target_size(index, short_side, size)
        try:
            frames = read_frames(path, index, [(numbers, None)], target, interpolation, approximate)[0]
        except NotAsIndexed:
            continue
        return Clip(frames, torch.from_numpy(index.seconds[numbers]), id or path)
    raise AssertionError("a certain index needs no second try")


def decode_cuts(
    path: str | os.PathLike[str],
    cuts: Sequence[tuple[Sequence[int] | np.ndarray, Box]],
    size: tuple[int, int],
    *,
    interpolation: Interpolation = "bilinear",
    approximate: bool = False,
    id: str = "",
) -> list[Clip]:
    """Several clips from one decode. Each cut is (frame numbers, box of the shown frame); each Clip has frames of `size` (H, W).

    A frame that several cuts want is decoded once, and only what lies within a box becomes RGB. The pixels are those of
    `decode`, cut and then resized. Errors as in `decode`; ConfigError for a box outside of the frame.
    """
    path = os.fspath(path)
    for certain in (False, True):
        index = read_index(path, certain)
        wanted = [(_numbers(path, index, numbers, None), box) for numbers, box in cuts]
        for _, box in wanted:
            (top, left, height, width), (frame_height, frame_width) = box, index.shown_size
            inside = 0 <= top <= frame_height - height and 0 <= left <= frame_width - width
            if min(height, width) < 1 or not inside:
                raise ConfigError(
                    f"{path}: a box of {height}x{width} pixels at row {top}, column {left} was asked for; the frame is "
                    f"{frame_height}x{frame_width}"
                )
        try:
            parts = _pyav.read_frames(path, index, wanted, size, interpolation, approximate)
        except NotAsIndexed:
            continue
        times = [torch.from_numpy(index.seconds[numbers]) for numbers, _ in wanted]
        return [Clip(frames, seconds, id or path) for frames, seconds in zip(parts, times, strict=True)]
    raise AssertionError("a certain index needs no second try")


def _numbers(path: str, index: Index, indices: object, seconds: object) -> np.ndarray:
    """The frame numbers asked for, int64 (T,), all within the file."""
    count = len(index.seconds)
    if seconds is not None:
        times = np.asarray(seconds, np.float64).reshape(-1)
        for time in times:
            if not -1e-6 <= time <= index.duration_seconds + 1e-6:
                raise VideoError(f"{path}: {time:g} s was asked for, the video shows 0 to {index.duration_seconds:g} s")
        # A microsecond of tolerance: 3 * 0.1 is not 0.3.
        return np.maximum(np.searchsorted(index.seconds, times + 1e-6, side="right") - 1, 0)
    if indices is None:
        return np.arange(count)
    numbers = np.asarray(indices)
    if numbers.size and numbers.dtype.kind not in "iu":
        raise ConfigError(f"decode got indices of type {numbers.dtype}: whole numbers are wanted; times go into seconds=")
    numbers = numbers.astype(np.int64).reshape(-1)
    for number in numbers:
        if not 0 <= number < count:
            raise VideoError(f"{path}: frame {number} was asked for, the video has {count} (0 to {count - 1})")
    return numbers


def _target_size(index: Index, short_side: int | None, size: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) of the frames to return, as shown."""
    if size is not None:
        return size
    height, width = index.shown_size
    if short_side is None or short_side >= min(height, width):
        return height, width
    scale = short_side / min(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))
