"""Frames become a file: H.264 in mp4, or an animated GIF. A file appears whole under its name or not at all."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream
from torch import Tensor

from tubelet.errors import VideoError

Frames = Tensor | np.ndarray


def write_video(
    path: str | os.PathLike[str],
    frames: Frames | Iterable[Frames],
    fps: float = 24,
    codec: str = "libx264",
    crf: int = 18,
    *,
    pixel_format: str = "yuv420p",
    preset: str = "veryfast",
    gop_frames: int | None = None,
) -> None:
    """Write frames, RGB uint8 (T,3,H,W), as a video of `fps` frames a second; the container follows the name (.mp4, .mkv ...).
    A long video comes as pieces of (T,3,H,W) one after another, of which only one is held.

    crf: quality, 0 (lossless) to 51. gop_frames: frames between key frames (default: the codec's own). Encoding is
    single-threaded, so that equal frames give equal files on every machine. VideoError for frames of another shape, odd sizes
    (yuv420p stores colour at half size) and a place that cannot be written to.
    """
    path = Path(path)
    pieces = (_check(path, piece) for piece in ((frames,) if isinstance(frames, Frames) else frames))
    first = next(pieces, None)
    if first is None:
        raise VideoError(f"{path}: there are no frames to write")
    height, width = first.shape[1:3]
    if pixel_format.startswith("yuv420") and (height % 2 or width % 2):
        raise VideoError(
            f"{path}: {pixel_format} needs an even height and width, got {height}x{width}: crop by a pixel or use yuv444p"
        )
    options = {"crf": str(crf), "preset": preset} if codec in ("libx264", "libx265") else {"crf": str(crf)}
    if codec == "libx264":  # its mbtree reads memory that nobody has written, and what it finds there changes the file
        options["x264-params"] = "mbtree=0"
    with _whole_file(path) as temporary, av.open(f"file:{temporary}", "w") as container:
        stream = container.add_stream(codec, rate=_rate(fps), options=options)
        assert isinstance(stream, VideoStream), codec
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.thread_count = 1
        if gop_frames is not None:
            stream.codec_context.gop_size = gop_frames
        for pixels in chain((first,), pieces):
            for picture in pixels:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_gif(path: str | os.PathLike[str], frames: Frames, fps: float = 8) -> None:
    """Write frames, RGB uint8 (T,3,H,W), as an endlessly repeating GIF with one palette made for these frames.

    GIF counts in hundredths of a second: fps is rounded to that, 50 at most. VideoError as in `write_video`.
    """
    path = Path(path)
    pixels = _check(path, frames)
    height, width = pixels.shape[1:3]
    step = max(2, round(100 / _rate(fps)))
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=Fraction(1, 100))
    split, palette, use = graph.add("split"), graph.add("palettegen"), graph.add("paletteuse", "dither=bayer:bayer_scale=3")
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    with _whole_file(path) as temporary, av.open(f"file:{temporary}", "w", format="gif") as container:
        stream = container.add_stream("gif", rate=_rate(100 / step))
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "pal8"
        stream.codec_context.time_base = Fraction(1, 100)
        for number, picture in enumerate(pixels):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number * step, Fraction(1, 100)
            source.push(frame)
        source.push(None)
        for _ in pixels:
            indexed = sink.pull()
            assert isinstance(indexed, av.VideoFrame)
            container.mux(stream.encode(indexed))
        container.mux(stream.encode())


def _rate(fps: float) -> Fraction:
    """Frames a second as a fraction; 23.976, 29.97 and 59.94 mean 24000/1001, 30000/1001 and 60000/1001."""
    whole = round(fps)
    if whole >= 10 and abs(fps - whole * 1000 / 1001) < 0.002:
        return Fraction(whole * 1000, 1001)
    rate = Fraction(fps).limit_denominator(1000)
    if rate <= 0:
        raise VideoError(f"fps is {fps}: it must be above 0")
    return rate


def _check(path: Path, frames: Frames) -> np.ndarray:
    """The frames as contiguous uint8 (T,H,W,3)."""
    array = frames.cpu().numpy() if isinstance(frames, Tensor) else np.asarray(frames)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] != 3 or 0 in array.shape:
        raise VideoError(f"{path}: got frames {array.dtype} {array.shape}, wanted uint8 (T, 3, H, W)")
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place when all went well and vanishes otherwise."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except (OSError, ValueError) as error:  # PyAV's errors are both
        raise VideoError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from error
    finally:
        temporary.unlink(missing_ok=True)
