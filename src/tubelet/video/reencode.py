"""One video file becomes a small one that decodes fast: the same frames at the same times, upright, smaller, without sound.

H.264 without CABAC and without deblocking (x264's `fastdecode`), a key frame every `gop_frames`, and between the frames that
others lean on always three that nothing leans on. A clip of every fourth frame so skips most frames that it does not show, in
a file that every player can play: nearly as fast as four separate streams of every fourth frame, at half their size.
"""

import io
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from tubelet.errors import VideoError
from tubelet.video._index import Index, decoded_seconds, read_index
from tubelet.video._pyav import NotAsIndexed, all_frames
from tubelet.video.sample import between

LEAST_TICKS = 10_000  # a second: repeated times are set apart by one tick
MOST_TICKS = 1_000_000
BEST_PSNR = 99.0


@dataclass(frozen=True)
class Reencoded:
    """frames written; psnr_db over the RGB values of all of them, at most 99."""

    frames: int
    psnr_db: float


Seconds = tuple[float | None, float | None]


def reencode(
    path: str, out: Path, short_side: int = 256, gop_frames: int = 16, crf: int = 18, part: Seconds = (None, None)
) -> Reencoded:
    """Write `out`, an mp4 file of exactly the frames that a sequential decode of `path` gives, each at its own time.

    short_side: scaled down to it, never up; height and width are made even. gop_frames: frames between key frames, 1 makes
    every frame one. crf: quality, 0 (lossless) to 51. part: only the frames shown from the first of these seconds on and before
    the second, at their times after the first of them. Encoding is single-threaded, so that equal files give equal files.
    What is on the disk is decoded, counted and compared before this returns; a caller that may be killed gives a draft.

    VideoError for a file that cannot be read or encoded, OSError where `out` cannot be written: then nothing is left of it.
    """
    try:
        index = read_index(path)
        try:
            return _encode(path, index, out, short_side, gop_frames, crf, part)
        except (VideoError, NotAsIndexed):  # the index, made without decoding, may have promised too much
            return _encode(path, read_index(path, certain=True), out, short_side, gop_frames, crf, part)
    except BaseException as error:
        out.unlink(missing_ok=True)
        if isinstance(error, av.FFmpegError):
            raise VideoError(f"{path}: cannot be encoded again ({error.strerror})") from error
        raise


def _even_size(index: Index, short_side: int) -> tuple[int, int]:
    """(height, width) to write: at most `short_side`, and even, because colour is stored at half size."""
    scale = min(1.0, short_side / min(index.shown_size))
    height, width = (max(2, min(round(side * scale / 2), side // 2) * 2) for side in index.shown_size)
    return height, width


def _encode(path: str, index: Index, out: Path, short_side: int, gop_frames: int, crf: int, part: Seconds) -> Reencoded:
    size, (time_base, ticks) = _even_size(index, short_side), _ticks(index)
    last = max(1, round(Fraction(index.duration_seconds - index.seconds[-1]) / time_base))
    lengths = [*(b - a for a, b in pairwise(ticks)), last]
    wanted = _wanted(path, index, part)
    ticks = [ticks[number] - ticks[wanted.start] for number in wanted]
    length_at = dict(zip(ticks, lengths[wanted.start : wanted.stop], strict=True))
    with _Output(out, "wb") as file:
        with file.telling(), av.open(file, "w", format="mp4") as container:
            stream = _stream(container, index, size, gop_frames, crf, time_base)
            comparison = _Comparison(stream.codec_context.extradata)

            def write(packets: list[av.Packet]) -> None:
                for packet in packets:
                    packet.duration = length_at[packet.pts or 0]
                    comparison.take(packet)
                    container.mux(packet)

            for tick, pixels in zip(ticks, all_frames(path, index, size, wanted=wanted), strict=True):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = tick, time_base
                comparison.waiting.append(pixels)
                write(stream.encode(frame))
            write(stream.encode())
            comparison.take(None)
        os.fsync(file.fileno())
    _verify(path, out, np.array(ticks) * float(time_base), len(comparison.waiting))
    mean = comparison.squared_error / (len(ticks) * size[0] * size[1] * 3)
    return Reencoded(len(ticks), min(BEST_PSNR, float(10 * np.log10(255**2 / max(mean, 1e-9)))))


def _wanted(path: str, index: Index, part: Seconds) -> range:
    """The frames of a part of the video; an Example's part is found in the same way."""
    try:
        return between(index.seconds, *part)
    except VideoError as error:
        raise VideoError(f"{path}: {error}") from error


class _Output(io.FileIO):
    """A file for FFmpeg to write to, which remembers why it could not be written: PyAV only says that a callback failed."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        left = memoryview(data)
        try:
            while left:
                left = left[super().write(left) :]
        except OSError as error:
            self.error = error
            raise
        return len(data)

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Raise what was remembered in the place of FFmpeg's error."""
        try:
            yield
        except av.FFmpegError:
            if self.error is not None:
                raise self.error from None
            raise


class _Comparison:
    """The frames that go into an encoder beside those that its packets give back, while they are made.

    waiting: RGB uint8 (H,W,3) frames whose packets have not come yet; frames come back in the order they went in.
    """

    def __init__(self, extradata: bytes | None) -> None:
        decoder = av.CodecContext.create("h264", "r")
        assert isinstance(decoder, av.VideoCodecContext)
        decoder.extradata = extradata
        decoder.thread_count = 1
        self.decoder, self.converter = decoder, VideoReformatter()
        self.waiting: deque[np.ndarray] = deque()
        self.squared_error = 0.0

    def take(self, packet: av.Packet | None) -> None:
        """Decode a packet, or what is left at the end, and add up the errors."""
        for frame in self.decoder.decode(packet):
            back = self.converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
            error = np.subtract(back, self.waiting.popleft(), dtype=np.float32).ravel()
            self.squared_error += float(error @ error)


def _ticks(index: Index) -> tuple[Fraction, list[int]]:
    """(time base, presentation time of every frame in it): those of the source, from 0, in ticks fine enough for all of them.

    Times that repeat, which no encoder takes, are set a tick apart.
    """
    base = index.time_base
    scale = -(-LEAST_TICKS // base.denominator)
    fine = Fraction(1, min(base.denominator * scale, MOST_TICKS))
    ticks = [round(int(stamp) * base / fine) for stamp in index.stamps - index.stamps[0]]
    if any(b <= a for a, b in pairwise(ticks)):
        for place in range(1, len(ticks)):
            ticks[place] = max(ticks[place], ticks[place - 1] + 1)
    return fine, ticks


def _stream(
    container: av.container.OutputContainer,
    index: Index,
    size: tuple[int, int],
    gop_frames: int,
    crf: int,
    time_base: Fraction,
) -> VideoStream:
    between = min(3, gop_frames - 1)
    # x264 with mbtree and without b-adapt encodes equal frames differently from run to run; without mbtree it does not, and
    # files of equal PSNR are as large.
    options: dict[str, object] = {
        "crf": str(crf),
        "preset": "veryfast",
        "tune": "fastdecode",
        "x264-params": f"bframes={between}:b-adapt=0:b-pyramid=none:scenecut=0:open-gop=0:mbtree=0",
    }
    rate = Fraction(len(index.seconds) / index.duration_seconds if index.duration_seconds > 0 else 25)
    stream = container.add_stream("libx264", rate=max(Fraction(1), min(Fraction(1000), rate.limit_denominator(1000))))
    assert isinstance(stream, VideoStream)
    stream.options = options
    stream.height, stream.width = size
    stream.pix_fmt = "yuv420p"
    stream.codec_context.thread_count = 1
    stream.codec_context.gop_size = gop_frames
    stream.codec_context.time_base = time_base
    stream.time_base = time_base
    stream.codec_context.open()
    return stream


def _verify(path: str, out: Path, seconds: np.ndarray, lost: int) -> None:
    """Decode all of what lies on the disk: every frame must be there, at its time."""
    found = decoded_seconds(str(out))
    if lost or len(found) != len(seconds):
        raise VideoError(f"{path}: cannot be encoded again ({len(found) - lost} of {len(seconds)} frames came back)")
    off = float(np.abs(found - seconds).max())
    if off > 1e-6:
        raise VideoError(f"{path}: cannot be encoded again (a frame came back {off:g} s off its time)")
