"""Every frame asked for is the frame of a plain sequential decode, on every kind of file that we can make or were given."""

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tubelet.errors import ConfigError, MissingExtraError, VideoError
from tubelet.video import _index
from tubelet.video.decode import decode, frame_times, probe
from tubelet.video.write import write_video

ODD_FILES = Path(__file__).parents[3] / "shared" / "data" / "odd_files"


def pictures(count: int = 60, height: int = 48, width: int = 64) -> np.ndarray:
    """(T,H,W,3) moving texture: every frame differs from every other, everywhere."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    frames = []
    for t in range(count):
        waves = [np.sin((x * (1 + c) + y * (2 - c) + 9 * t) / 7 + c) + np.cos((x - y * c - 5 * t) / 5) for c in range(3)]
        frames.append(np.stack([110 + 50 * w + 0.5 * t for w in waves], -1).clip(0, 255).astype(np.uint8))
        frames[-1][: height // 4, : width // 4] = 4 * t % 256
    return np.stack(frames)


def encode(
    path: Path,
    frames: np.ndarray,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    *,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    times: list[int] | None = None,
    time_base: Fraction = Fraction(1, 30),
    gop: int = 12,
    rotation: int = 0,
    matrix: list[int] | None = None,
    format: str | None = None,
    edit: Callable[[list[av.Packet]], list[av.Packet]] | None = None,
) -> Path:
    """Encode with PyAV alone, leaving every knob open; `edit` sees all packets before they are written."""
    with av.open(str(path), "w", format=format, options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=Fraction(1) / time_base, options={"threads": "1", **(options or {})})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], pix_fmt
        stream.codec_context.gop_size = gop
        stream.codec_context.time_base = time_base
        stream.time_base = time_base
        if rotation:
            stream.set_display_rotation(rotation)
        if matrix:
            stream.set_display_matrix(matrix)
        packets = []
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24" if picture.shape[-1] == 3 else "rgba")
            frame.pts, frame.time_base = number if times is None else times[number], time_base
            packets += stream.encode(frame)
        packets += stream.encode()
        for packet in edit(packets) if edit else packets:
            container.mux(packet)
    return path


def sequential(path: Path) -> tuple[list[np.ndarray], list[float | None]]:
    """The reference: every frame as RGB, turned as its own metadata says, and its time, by the plainest use of PyAV."""
    frames, times = [], []
    with av.open(str(path)) as container:
        streams = [s for s in container.streams.video if "attached_pic" not in repr(s.disposition)]
        for frame in container.decode(streams[0]):
            frames.append(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))
            times.append(frame.time)
    return frames, times


def assert_like_sequential(path: Path) -> None:
    frames, times = sequential(path)
    info = probe(path)
    assert info.frame_count == len(frames)
    assert (info.height, info.width) == frames[0].shape[:2]
    everything = decode(path)
    shape = everything.frames.shape[2:]
    same_size = [i for i, frame in enumerate(frames) if frame.shape[:2] == shape]
    for i in same_size:
        assert np.array_equal(everything.frames[i].permute(1, 2, 0).numpy(), frames[i]), f"frame {i} of all"
    rng = np.random.default_rng(0)
    asked = [[i] for i in {0, len(frames) - 1, *rng.integers(0, len(frames), 12).tolist()}]
    asked += [sorted(rng.integers(0, len(frames), 5).tolist()), rng.integers(0, len(frames), 8).tolist()]
    asked += [list(range(start, len(frames), 4))[:16] for start in rng.integers(0, len(frames), 4)]
    for numbers in asked:
        clip = decode(path, numbers)
        assert torch.equal(clip.frames, everything.frames[numbers]), numbers
        assert torch.equal(clip.seconds, everything.seconds[numbers])
    assert torch.equal(everything.seconds, frame_times(path))
    known = [t for t in times if t is not None]
    if len(known) == len(times) and all(b > a for a, b in zip(times, times[1:], strict=False)):
        assert np.allclose(everything.seconds.numpy(), np.array(times) - times[0], atol=1e-9)


X264 = {"crf": "20", "preset": "veryfast"}


def shift(by: int) -> Callable[[list[av.Packet]], list[av.Packet]]:
    def edit(packets: list[av.Packet]) -> list[av.Packet]:
        for packet in packets:
            packet.pts, packet.dts = packet.pts + by, packet.dts + by
        return packets

    return edit


def same_time_twice(packets: list[av.Packet]) -> list[av.Packet]:
    packets[20].pts = packets[21].pts
    return packets


def no_first_key(packets: list[av.Packet]) -> list[av.Packet]:
    return packets[5:]


def start_at_second_key(packets: list[av.Packet]) -> list[av.Packet]:
    return packets[[i for i, p in enumerate(packets) if p.is_keyframe][1] :]


def joined(path: Path, make: Callable[[Path, np.ndarray], Path], *parts: np.ndarray) -> Path:
    pieces = [make(path.with_name(f"part{i}{path.suffix}"), part) for i, part in enumerate(parts)]
    path.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    return path


def two_streams(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=30, options=X264) for _ in range(2)]
        for number, stream in enumerate(streams):
            stream.width, stream.height, stream.pix_fmt = 64 + 32 * number, 48, "yuv420p"
        for t in range(20):
            for number, stream in enumerate(streams):
                picture = pictures(1, 48, 64 + 32 * number)[0] // (2 - number) + t
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    return path


def many_times(count: int) -> list[int]:
    """Rising by 1, 2, 3 or 7 ticks in turn."""
    return np.cumsum([0] + [(1, 2, 3, 7)[i % 4] for i in range(count - 1)]).tolist()


def with_alpha() -> np.ndarray:
    frames = pictures(30)
    return np.concatenate([frames, np.roll(frames[..., :1], 20, 2)], -1)


MILLI = Fraction(1, 1000)
KINDS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "h264": (".mp4", lambda p: encode(p, pictures(), options=X264)),
    "h264 in mkv": (".mkv", lambda p: encode(p, pictures(), options=X264)),
    "h264 in mov, slow": (".mov", lambda p: encode(p, pictures(), options={"preset": "slow", "bf": "5", "b-pyramid": "normal"})),
    "no b pictures": (".mp4", lambda p: encode(p, pictures(), options=X264 | {"bf": "0"})),
    "intra only": (".mp4", lambda p: encode(p, pictures(), options=X264, gop=1)),
    "one frame": (".mp4", lambda p: encode(p, pictures(1), options=X264)),
    "two frames": (".mkv", lambda p: encode(p, pictures(2), options=X264)),
    "long gop": (".mp4", lambda p: encode(p, pictures(150), options=X264, gop=1000)),
    "open gop": (".mp4", lambda p: encode(p, pictures(), options=X264 | {"x264-params": "open-gop=1:keyint=10:bframes=3"})),
    "open gop mkv": (".mkv", lambda p: encode(p, pictures(), options=X264 | {"x264-params": "open-gop=1:keyint=10"})),
    "open gop ts": (".ts", lambda p: encode(p, pictures(), options=X264 | {"x264-params": "open-gop=1:keyint=10"})),
    "intra refresh": (".mp4", lambda p: encode(p, pictures(), options=X264 | {"x264-params": "intra-refresh=1:keyint=10"})),
    "interlaced": (".mp4", lambda p: encode(p, pictures(), options=X264 | {"x264-params": "tff=1"})),
    "lossless 4:4:4": (".mp4", lambda p: encode(p, pictures(), pix_fmt="yuv444p", options={"qp": "0"})),
    "rgb": (".mp4", lambda p: encode(p, pictures(), "libx264rgb", "rgb24", options={"qp": "0"})),
    "10 bit": (".mp4", lambda p: encode(p, pictures(), pix_fmt="yuv420p10le", options=X264)),
    "full range": (".mp4", lambda p: encode(p, pictures(), pix_fmt="yuvj420p", options=X264)),
    "grey": (".mkv", lambda p: encode(p, pictures(), pix_fmt="gray", options=X264)),
    "odd size": (".mp4", lambda p: encode(p, pictures(30, 37, 51), pix_fmt="yuv444p", options=X264)),
    "odd size vp9": (".webm", lambda p: encode(p, pictures(30, 37, 51), "libvpx-vp9", options={"cpu-used": "8"})),
    "hevc": (".mp4", lambda p: encode(p, pictures(), "libx265", options={"x265-params": "log-level=none:keyint=12"})),
    "hevc closed 10 bit": (
        ".mkv",
        lambda p: encode(
            p, pictures(), "libx265", "yuv420p10le", options={"x265-params": "log-level=none:keyint=12:open-gop=0"}
        ),
    ),
    "hevc layers": (
        ".mp4",
        lambda p: encode(p, pictures(), "libx265", options={"x265-params": "log-level=none:temporal-layers=3:keyint=20"}),
    ),
    "hevc ts": (".ts", lambda p: encode(p, pictures(), "libx265", options={"x265-params": "log-level=none:keyint=12"})),
    "hevc from an open start": (
        ".mkv",
        lambda p: encode(
            p, pictures(), "libx265", options={"x265-params": "log-level=none:keyint=12"}, edit=start_at_second_key
        ),
    ),
    "av1": (".mp4", lambda p: encode(p, pictures(40, 64, 64), "libsvtav1", options={"preset": "12"}, gop=16)),
    "av1 in mkv": (".mkv", lambda p: encode(p, pictures(40, 64, 64), "libsvtav1", options={"preset": "12"}, gop=16)),
    "vp8 with hidden frames": (
        ".webm",
        lambda p: encode(p, pictures(), "libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "4"}),
    ),
    "vp9 with hidden frames": (
        ".webm",
        lambda p: encode(p, pictures(), "libvpx-vp9", options={"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "4"}),
    ),
    "vp9 in mp4": (".mp4", lambda p: encode(p, pictures(), "libvpx-vp9", options={"cpu-used": "8"})),
    "alpha": (".webm", lambda p: encode(p, with_alpha(), "libvpx-vp9", "yuva420p", options={"auto-alt-ref": "0"})),
    "alpha png": (".mov", lambda p: encode(p, with_alpha(), "png", "rgba")),
    "mpeg-ts": (".ts", lambda p: encode(p, pictures(100), options=X264, gop=25)),
    "mpeg2 ts": (".ts", lambda p: encode(p, pictures(), "mpeg2video", options={"bf": "2"})),
    "mpeg2 ps": (".mpg", lambda p: encode(p, pictures(), "mpeg2video", time_base=Fraction(1, 25), options={"bf": "2"})),
    "mpeg4 with b pictures in avi": (".avi", lambda p: encode(p, pictures(), "mpeg4", options={"bf": "2"})),
    "mpeg4 in avi": (".avi", lambda p: encode(p, pictures(), "mpeg4", options={"bf": "0"})),
    "mpeg4 in mp4": (".mp4", lambda p: encode(p, pictures(), "mpeg4", options={"bf": "2"})),
    "h264 in avi": (".avi", lambda p: encode(p, pictures(), options=X264)),
    "h264 in flv": (".flv", lambda p: encode(p, pictures(), options=X264)),
    "mjpeg": (".avi", lambda p: encode(p, pictures(30), "mjpeg", "yuvj422p")),
    "ffv1": (".mkv", lambda p: encode(p, pictures(30), "ffv1")),
    "prores": (".mov", lambda p: encode(p, pictures(20), "prores_ks", "yuv422p10le")),
    "qtrle": (".mov", lambda p: encode(p, pictures(30), "qtrle", "rgb24")),
    "gif": (".gif", lambda p: encode(p, pictures(20), "gif", "rgb8", time_base=Fraction(1, 10))),
    "raw h264, no time stamps": (".h264", lambda p: encode(p, pictures(), options=X264)),
    "variable rate": (".mp4", lambda p: encode(p, pictures(), options=X264, times=many_times(60))),
    "variable rate mkv": (".mkv", lambda p: encode(p, pictures(), options=X264, times=many_times(60), time_base=MILLI * 40)),
    "late start": (".mp4", lambda p: encode(p, pictures(), options=X264, times=list(range(45, 105)))),
    "late start mkv": (".mkv", lambda p: encode(p, pictures(), options=X264, times=list(range(45, 105)))),
    "edit list": (".mp4", lambda p: encode(p, pictures(), options=X264, edit=shift(-17))),
    "edit list, no b pictures": (".mp4", lambda p: encode(p, pictures(), options=X264 | {"bf": "0"}, edit=shift(-20))),
    "edit list hevc": (
        ".mp4",
        lambda p: encode(p, pictures(), "libx265", options={"x265-params": "log-level=none:keyint=12"}, edit=shift(-17)),
    ),
    "negative start, ignored edit list": (
        ".mp4",
        lambda p: encode(p, pictures(), options=X264, container_options={"use_editlist": "0"}),
    ),
    "fragmented": (
        ".mp4",
        lambda p: encode(p, pictures(), options=X264, container_options={"movflags": "frag_keyframe+empty_moov"}),
    ),
    "fast start": (".mp4", lambda p: encode(p, pictures(), options=X264, container_options={"movflags": "faststart"})),
    "mkv of unknown length": (".mkv", lambda p: encode(p, pictures(), options=X264, container_options={"live": "1"})),
    "one time stamp twice": (".mkv", lambda p: encode(p, pictures(), options=X264 | {"bf": "0"}, edit=same_time_twice)),
    "from the middle ts": (".ts", lambda p: encode(p, pictures(), options=X264, edit=start_at_second_key)),
    "rotated 90": (".mp4", lambda p: encode(p, pictures(20), options=X264, rotation=90)),
    "rotated 180": (".mp4", lambda p: encode(p, pictures(20), options=X264, rotation=180)),
    "rotated -90": (".mov", lambda p: encode(p, pictures(20), options=X264, rotation=-90)),
    "two streams": (".mp4", two_streams),
    "times start again": (".ts", lambda p: joined(p, lambda q, f: encode(q, f, options=X264), pictures(40), pictures(30)[::-1])),
    "size changes": (
        ".h264",
        lambda p: joined(p, lambda q, f: encode(q, f, options=X264), pictures(20), pictures(20, 96, 80)),
    ),
    "size changes ts": (
        ".ts",
        lambda p: joined(p, lambda q, f: encode(q, f, options=X264), pictures(20), pictures(20, 96, 80)),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_of_a_sequential_decode(kind: str, tmp_path: Path) -> None:
    suffix, make = KINDS[kind]
    assert_like_sequential(make(tmp_path / f"video{suffix}"))
