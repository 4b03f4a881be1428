"""Every frame asked for is the frame of a plain sequential decode, on every kind of file that we can make or were given."""

import csv
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tubelet.errors import ConfigError, MissingExtraError, VideoError
from tubelet.video import _index, _pyav
from tubelet.video.decode import decode, decode_cuts, frame_times, probe
from tubelet.video.resize import cut, resize
from tubelet.video.write import write_video

ODD_FILES = Path(__file__).resolve().parents[3] / "shared" / "data" / "odd_files"


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


Picture = tuple[tuple[int, int], bytes]  # (height, width) and a digest of the pixels: whole videos do not fit in memory


def digest(pixels: np.ndarray) -> Picture:
    return pixels.shape[:2], hashlib.blake2b(np.ascontiguousarray(pixels).data).digest()


def sequential(path: Path) -> tuple[list[Picture], list[float | None]]:
    """The reference: every frame as RGB, turned as its own metadata says, and its time, by the plainest use of PyAV."""
    frames, times = [], []
    with av.open(str(path)) as container:
        streams = [s for s in container.streams.video if "attached_pic" not in repr(s.disposition)]
        for frame in container.decode(streams[0]):
            frames.append(digest(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))))
            times.append(frame.time)
    return frames, times


def assert_like_sequential(path: Path) -> None:
    frames, times = sequential(path)
    info = probe(path)
    shape = (info.height, info.width)
    assert info.frame_count == len(frames) and shape == frames[0][0]
    seconds = frame_times(path)
    rng = np.random.default_rng(0)
    singles = {0, len(frames) - 1, *rng.integers(0, len(frames), 12 if np.prod(shape) < 100_000 else 3).tolist()}
    asked = [[number] for number in singles]
    asked += [sorted(rng.integers(0, len(frames), 5).tolist()), rng.integers(0, len(frames), 8).tolist()]
    asked += [list(range(start, len(frames), 4))[:16] for start in rng.integers(0, len(frames), 3)]
    asked += [list(range(start, min(start + 50, len(frames)))) for start in range(0, len(frames), 50)]
    asked += [None] if np.prod(shape) * len(frames) < 1e7 else []
    for numbers in asked:
        clip = decode(path, numbers)
        numbers = list(range(len(frames))) if numbers is None else numbers
        assert torch.equal(clip.seconds, seconds[numbers])
        for number, pixels in zip(numbers, clip.frames, strict=True):
            if frames[number][0] == shape:  # frames of another size are scaled to that of the first
                assert digest(pixels.permute(1, 2, 0).numpy()) == frames[number], (number, numbers)
    known = [t for t in times if t is not None]
    if len(known) == len(times) and all(b > a for a, b in pairwise(known)):
        assert np.allclose(seconds.numpy(), np.array(known) - known[0], atol=1e-9)


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
    "h264 in mov, slow": (
        ".mov",
        lambda p: encode(p, pictures(), options={"preset": "slow", "bf": "5", "b-pyramid": "normal"}),
    ),
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
    "times start again": (
        ".ts",
        lambda p: joined(p, lambda q, f: encode(q, f, options=X264), pictures(40), pictures(30)[::-1]),
    ),
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


def odd_files() -> list[str]:
    index = ODD_FILES / "index.csv"
    if not index.is_file():
        return []
    with index.open() as file:
        return [row["path"] for row in csv.DictReader(file)]


@pytest.mark.skipif(not odd_files(), reason=f"no collection of odd files at {ODD_FILES}")
@pytest.mark.parametrize("name", odd_files())
def test_odd_files_give_equal_frames_or_one_clear_error(name: str) -> None:
    path = ODD_FILES / name
    try:
        frames, _ = sequential(path)
        whole = bool(frames)
    except (av.FFmpegError, IndexError):
        whole = False
    if whole:
        assert_like_sequential(path)
        return
    with pytest.raises(VideoError) as caught:
        decode(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) > len(str(path)) + 15


@pytest.mark.parametrize("kind", ["h264", "h264 in mkv", "open gop", "hevc", "av1", "vp9 in mp4", "edit list", "variable rate"])
def test_common_files_are_indexed_without_decoding_and_read_in_place(kind: str, tmp_path: Path) -> None:
    suffix, make = KINDS[kind]
    path = str(make(tmp_path / f"video{suffix}"))
    index = _index.read_index(path)
    assert index.packet is not None and index.offset is not None
    for start in range(0, len(index.seconds), 7):
        decode(path, list(range(start, len(index.seconds), 9))[:4])
    assert _index.read_index(path) is index  # no answer had to fall back to a decode from the start


def test_gop_of_a_wanted_frame_only_is_decoded_and_droppable_packets_are_left_out(tmp_path: Path) -> None:
    from tubelet.video._pyav import _runs

    index = _index.read_index(str(encode(tmp_path / "v.mp4", pictures(60), options=X264 | {"sc_threshold": "0"}, gop=12)))
    assert index.entries.tolist() == [0, 12, 24, 36, 48]
    assert index.packet is not None
    assert [first for first, _ in _runs(index, [30, 31, 50])] == [24, 48]
    assert index.droppable.any()


def as_stored(path: Path) -> torch.Tensor:
    """uint8 (T,3,H,W) of the pictures as they lie in the file, before any turning."""
    with av.open(str(path)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def test_mirrored_and_rotated_pictures_are_shown_as_the_matrix_says(tmp_path: Path) -> None:
    one = 1 << 16
    frames = pictures(10)
    matrices = {  # rows (a b u)(c d v)(x y w) of the display matrix: x' = a x + c y, y' = b x + d y, y downwards
        "mirrored": ([-one, 0, 0, 0, one, 0, 0, 0, 1 << 30], lambda plain: plain.flip(3)),
        "upside down": ([one, 0, 0, 0, -one, 0, 0, 0, 1 << 30], lambda plain: plain.flip(2)),
        "transposed": ([0, one, 0, one, 0, 0, 0, 0, 1 << 30], lambda plain: plain.transpose(2, 3)),
        "clockwise": ([0, one, 0, -one, 0, 0, 0, 0, 1 << 30], lambda plain: plain.rot90(-1, (2, 3))),
        "anticlockwise": ([0, -one, 0, one, 0, 0, 0, 0, 1 << 30], lambda plain: plain.rot90(1, (2, 3))),
    }
    for name, (matrix, turned) in matrices.items():
        path = encode(tmp_path / f"{name}.mp4", frames, options=X264, matrix=matrix)
        expected = turned(as_stored(path))  # of this file: x264 may write equal pictures in different bits
        assert torch.equal(decode(path).frames, expected), name
        assert (probe(path).height, probe(path).width) == tuple(expected.shape[2:]), name
    small = decode(tmp_path / "clockwise.mp4", [3], size=(40, 20)).frames
    assert small.shape == (1, 3, 40, 20)
    upright = resize(as_stored(tmp_path / "clockwise.mp4")[3:4], (20, 40), "bilinear")
    assert (small.rot90(1, (2, 3)).int() - upright.int()).abs().max() <= 1  # rows or columns first: rounding


def test_cover_pictures_are_not_video_and_do_not_hide_it(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    tone_with_cover(path, with_video=False)
    with pytest.raises(VideoError, match="no video stream"):
        probe(path)
    tone_with_cover(path, with_video=True)
    assert probe(path).frame_count == 12 and probe(path).width == 64


def tone_with_cover(path: Path, with_video: bool) -> None:
    """An mp4 with a tone, a cover picture (an attached picture comes first where the file has no video) and perhaps video."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=30, options=X264) if with_video else None
        tone = container.add_stream("aac", rate=44100)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        if video is not None:
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        picture = av.VideoFrame.from_ndarray(pictures(1, 32, 32)[0], format="rgb24")
        picture.pts = 0
        container.mux(cover.encode(picture))
        container.mux(cover.encode())
        if video is not None:
            for frame in pictures(12):
                container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(video.encode())
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        silence.sample_rate = 44100
        container.mux(tone.encode(silence))
        container.mux(tone.encode())


def audio_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        silence.sample_rate = 44100
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def part_of(path: Path, share: float, **options: object) -> Path:
    encode(path, pictures(), **{"options": X264, **options})
    return written(path, path.read_bytes()[: int(path.stat().st_size * share)])


def zeroed(path: Path) -> Path:
    data = bytearray(encode(path, pictures(), options=X264, container_options={"movflags": "faststart"}).read_bytes())
    middle = len(data) * 3 // 4
    data[middle : middle + 3000] = bytes(3000)
    return written(path, bytes(data))


BAD: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "missing": ("a.mp4", lambda p: p, "no such file or directory"),
    "folder": ("a.mp4", lambda p: (p.mkdir(), p)[1], "is a folder"),
    "zero bytes": ("a.mp4", lambda p: written(p, b""), "empty"),
    "text": ("a.mp4", lambda p: written(p, b"this is no video\n" * 40), "not a readable video file"),
    "noise": ("a.mp4", lambda p: written(p, np.random.default_rng(0).bytes(5000)), "not a readable video file|no video"),
    "playlist": ("a.mp4", lambda p: written(p, b"ffconcat version 1.0\nfile /etc/hostname\n"), "video"),
    "audio only": ("a.mp4", audio_only, r"no video stream \(the file holds: audio\)"),
    "cut off mp4": ("a.mp4", lambda p: part_of(p, 0.5), "cut off: .* of .* bytes"),
    "cut off fast start": (
        "a.mp4",
        lambda p: part_of(p, 0.7, container_options={"movflags": "faststart"}),
        "cut off: .* of .* bytes",
    ),
    "cut off mkv": ("a.mkv", lambda p: part_of(p, 0.7), "cut off: .* of .* bytes"),
    "cut off avi": ("a.avi", lambda p: part_of(p, 0.7, codec="mpeg4", options={}), "cut off: .* of .* bytes"),
    "only a header": ("a.mp4", lambda p: part_of(p, 0.01), "cut off|not a readable"),
    "damaged": ("a.mp4", zeroed, "damaged: "),
    "first bytes of an mkv": ("a.mkv", lambda p: written(p, b"\x1aE\xdf\xa3"), "not a readable video file"),
    "box longer than any file": ("a.mp4", lambda p: written(p, b"\0\0\0\1ftyp" + b"\xff" * 8), "cut off: 16 of .* bytes"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_give_one_line_that_names_the_file_and_the_reason(kind: str, tmp_path: Path) -> None:
    name, make, expected = BAD[kind]
    path = make(tmp_path / name)
    for action in (probe, frame_times, decode, lambda p: decode(p, [0])):
        with pytest.raises(VideoError, match=expected) as caught:
            action(path)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
@pytest.mark.parametrize("locked", ["file", "folder"])
def test_what_may_not_be_read_is_one_line(locked: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = encode(Path(folder) / "a.mp4", pictures(4))
        path.chmod(0o000 if locked == "file" else 0o644)
        Path(folder).chmod(0o000 if locked == "folder" else 0o755)
        user = os.geteuid()
        if user == 0:  # root may read anything: look as nobody
            os.seteuid(65534)
        try:
            with pytest.raises(VideoError, match=r"a\.mp4: .*[Pp]ermission denied"):
                probe(path)
        finally:
            os.seteuid(user)
            Path(folder).chmod(0o755)


def test_damage_is_either_noticed_or_changes_nothing(tmp_path: Path) -> None:
    data = encode(tmp_path / "whole.mp4", pictures(), options=X264, container_options={"movflags": "faststart"}).read_bytes()
    noticed = 0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        broken = bytearray(data)
        at = int(rng.integers(len(data) // 3, len(data)))
        broken[at : at + 4] = rng.bytes(len(broken[at : at + 4]))
        path = written(tmp_path / f"broken{seed}.mp4", bytes(broken))
        with av.open(str(path)) as container:
            container.streams.video[0].codec_context.thread_count = 1  # how damage is concealed depends on the threads
            reference = []
            try:
                for frame in container.decode(video=0):
                    reference.append(torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1))
            except av.FFmpegError:
                noticed += 1
        for start in range(0, 60, 5):
            try:
                clip = decode(path, [start, min(start + 4, 59)])
            except VideoError as error:
                assert "damaged" in str(error)
                noticed += 1
                continue
            assert torch.equal(clip.frames[0], reference[start])
    assert noticed


def test_nothing_is_printed_about_bad_or_odd_files(tmp_path: Path) -> None:
    paths = [zeroed(tmp_path / "zeroed.mp4"), written(tmp_path / "text.mp4", b"no video" * 99)]
    paths.append(
        encode(tmp_path / "open.ts", pictures(), options=X264 | {"x264-params": "open-gop=1:keyint=10"}, edit=no_first_key)
    )
    code = (
        "import sys\nfrom tubelet.video.decode import decode\nfrom tubelet.errors import VideoError\n"
        "for path in sys.argv[1:]:\n    try:\n        decode(path)\n    except VideoError:\n        pass\n"
    )
    source = str(Path(_index.__file__).parents[2])
    env = os.environ | {"PYTHONPATH": source}
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True, env=env, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_recording_from_between_key_frames_starts_with_its_first_decodable_frame(tmp_path: Path) -> None:
    path = encode(tmp_path / "cut.ts", pictures(), options=X264, edit=no_first_key)
    assert_like_sequential(path)
    assert probe(path).frame_count == 48


def test_probe_tells_what_the_file_holds(tmp_path: Path) -> None:
    info = probe(encode(tmp_path / "v.mp4", pictures(60), options=X264, rotation=90))
    assert (info.frame_count, info.width, info.height, info.rotation_degrees) == (60, 48, 64, 90)
    assert (info.codec, info.pixel_format, info.variable_frame_rate) == ("h264", "yuv420p", False)
    assert info.fps == pytest.approx(30) and info.duration_seconds == pytest.approx(2)
    info = probe(encode(tmp_path / "vfr.mp4", pictures(41), options=X264, times=many_times(41)))
    assert info.variable_frame_rate and info.fps == pytest.approx(30 / 3.25)
    assert probe(encode(tmp_path / "v.mkv", pictures(30), options=X264)).variable_frame_rate is False  # milliseconds round
    assert probe(encode(tmp_path / "a.mkv", pictures(10, 64, 64), "libsvtav1", options={"preset": "12"})).codec == "av1"
    assert probe(encode(tmp_path / "e.mp4", pictures(), options=X264, edit=shift(-17))).frame_count == 43


def test_seconds_give_the_frame_shown_then(tmp_path: Path) -> None:
    path = encode(tmp_path / "v.mp4", pictures(20), options=X264, times=many_times(20))
    times = frame_times(path)
    assert times[0] == 0 and times.dtype == torch.float64
    frames = decode(path).frames
    middle = [(a + b) / 2 for a, b in zip(times[:-1].tolist(), times[1:].tolist(), strict=True)]
    clip = decode(path, seconds=middle)
    assert torch.equal(clip.frames, frames[:-1]) and torch.equal(clip.seconds, times[:-1])
    assert torch.equal(decode(path, seconds=times).frames, frames)
    end = probe(path).duration_seconds
    assert torch.equal(decode(path, seconds=[end, 0.0]).frames, frames[[19, 0]])
    for wrong in (-0.5, end + 0.1, float("nan")):
        with pytest.raises(VideoError, match="was asked for, the video shows 0 to"):
            decode(path, seconds=[wrong])


def test_sizes_and_interpolations(tmp_path: Path) -> None:
    path = encode(tmp_path / "v.mp4", pictures(5, 72, 128), options=X264)
    whole = decode(path).frames
    assert decode(path, short_side=36).frames.shape == (5, 3, 36, 64)
    assert decode(path, short_side=50).frames.shape == (5, 3, 50, 89)
    assert torch.equal(decode(path, short_side=500).frames, whole)  # never larger than the file
    assert decode(path, size=(90, 33)).frames.shape == (5, 3, 90, 33)
    small = torch.nn.functional.interpolate(whole.float(), (36, 64), mode="area")
    for interpolation in ("bilinear", "bicubic", "area"):
        scaled = decode(path, size=(36, 64), interpolation=interpolation).frames
        assert (scaled.float() - small).abs().mean() < 12, interpolation
    assert decode(path, [1, 2], id="name").id == "name" and decode(path, [1]).id == str(path)


def test_asking_for_what_is_not_there(tmp_path: Path) -> None:
    path = encode(tmp_path / "v.mp4", pictures(5), options=X264)
    for wrong in ([5], [0, -1], torch.tensor([99])):
        with pytest.raises(VideoError, match=r"was asked for, the video has 5 \(0 to 4\)"):
            decode(path, wrong)
    with pytest.raises(ConfigError, match="both indices and seconds"):
        decode(path, [0], seconds=[0.0])
    with pytest.raises(ConfigError, match="both short_side and size"):
        decode(path, [0], short_side=3, size=(3, 3))
    with pytest.raises(ConfigError, match="1 pixel or more"):
        decode(path, [0], short_side=0)
    with pytest.raises(ConfigError, match="whole numbers"):
        decode(path, [0.5])
    with pytest.raises(ConfigError, match="did you mean 'pyav'"):
        decode(path, [0], backend="pyva")
    assert decode(path, []).frames.shape == (0, 3, 48, 64)


def test_a_file_that_changes_is_indexed_anew(tmp_path: Path) -> None:
    path = encode(tmp_path / "v.mp4", pictures(10), options=X264)
    assert probe(path).frame_count == 10
    encode(path, pictures(14), options=X264)
    assert probe(path).frame_count == 14


def test_names_that_look_like_addresses(tmp_path: Path) -> None:
    for name in ("a:b.mp4", "http:x.mp4", "50%d.mp4", "ein Löwe ✓.mp4", "-.mp4"):
        path = tmp_path / name
        write_video(path, torch.from_numpy(pictures(3)).permute(0, 3, 1, 2))
        assert decode(path).frames.shape == (3, 3, 48, 64)


def test_torchcodec_gives_the_same_frames_or_says_how_to_install_it(tmp_path: Path) -> None:
    path = encode(tmp_path / "v.mp4", pictures(30), options=X264)
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        with pytest.raises(MissingExtraError, match=r"pip install 'tubelet\[torchcodec\]'"):
            decode(path, [0], backend="torchcodec")
        return
    for kind in ("h264", "rotated 90", "mpeg-ts", "edit list", "variable rate", "open gop", "hevc"):
        suffix, make = KINDS[kind]
        path = make(tmp_path / f"{kind}{suffix}")
        ours, theirs = decode(path, [7, 3, 12]), decode(path, [7, 3, 12], backend="torchcodec")
        assert (ours.frames.float() - theirs.frames.float()).abs().mean() < 2, kind
        assert torch.equal(ours.seconds, theirs.seconds)


@pytest.mark.skipif(not odd_files(), reason=f"no collection of odd files at {ODD_FILES}")
def test_torchcodec_gives_the_same_frames_of_odd_files() -> None:
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        pytest.skip("torchcodec, an extra that needs FFmpeg's shared libraries, cannot be imported here")
    compared = 0
    for name in odd_files():
        try:
            count = probe(ODD_FILES / name).frame_count
            ours = decode(ODD_FILES / name, [0, count // 2, count - 1])
        except VideoError:
            continue
        theirs = decode(ODD_FILES / name, [0, count // 2, count - 1], backend="torchcodec")
        assert (ours.frames.float() - theirs.frames.float()).abs().mean() < 2, name
        assert torch.equal(ours.seconds, theirs.seconds), name
        compared += 1
    assert compared > 50


def random_boxes(height: int, width: int, count: int, seed: int) -> list[tuple[int, int, int, int]]:
    """Boxes inside a frame: any corner, odd ones too, one of them a single pixel and one the whole frame."""
    rng = np.random.default_rng(seed)
    boxes = [(0, 0, height, width), (height - 1, width - 1, 1, 1)]
    for _ in range(count):
        top, left = int(rng.integers(height)), int(rng.integers(width))
        boxes.append((top, left, int(rng.integers(1, height - top + 1)), int(rng.integers(1, width - left + 1))))
    return boxes


def assert_cuts_are_parts_of_whole_frames(path: Path, seed: int) -> None:
    """Unscaled boxes of `decode_cuts` against the same boxes of whole frames: which frames, and which pixels."""
    info = probe(path)
    rng = np.random.default_rng(seed)
    # swscale converts an odd number of lines, and more than 8 bits, in another way, which blends neighbouring colours.
    exact = info.height % 2 == 0 and "p10" not in info.pixel_format
    for box in random_boxes(info.height, info.width, 4, seed):
        top, left, height, width = box
        numbers = [rng.integers(0, info.frame_count, count).tolist() for count in (5, 1, 3)]
        cuts = [(numbers[0], box), (numbers[1], (top, left, height, width)), (numbers[2], (0, 0, height, width))]
        for (asked, part), clip in zip(cuts, decode_cuts(path, cuts, (height, width)), strict=True):
            whole = decode(path, asked)
            wanted = whole.frames[:, :, part[0] : part[0] + height, part[1] : part[1] + width]
            difference = (clip.frames.int() - wanted.int()).abs().float()
            assert torch.equal(clip.seconds, whole.seconds) and clip.frames.shape == wanted.shape
            assert difference.max() == 0 if exact else difference.mean() < 12, (box, part, difference.mean())


# Frames of another size than the first have another part cut out and scaled; see the test below.
@pytest.mark.parametrize("as_large", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "size changes" not in kind])
def test_cuts_are_parts_of_whole_frames(kind: str, as_large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if as_large:  # boxes are cut off before they are converted, and few frames are scaled at a time
        monkeypatch.setattr(_pyav, "CROPPED_PIXELS", 0)
        monkeypatch.setattr(_pyav, "CLIP_BYTES", 0)
    suffix, make = KINDS[kind]
    assert_cuts_are_parts_of_whole_frames(make(tmp_path / f"video{suffix}"), len(kind))


@pytest.mark.skipif(not odd_files(), reason=f"no collection of odd files at {ODD_FILES}")
@pytest.mark.parametrize("name", odd_files())
def test_cuts_of_odd_files_are_whole_frames_cut_and_resized(name: str) -> None:
    """Where the frames can be decoded and keep their size. A box converted by itself may blend colours at its edges another way
    (odd sizes, more than 8 bits): a mean of 2 levels once it is resized."""
    path, size = ODD_FILES / name, (40, 56)
    try:
        info = probe(path)
        numbers = np.linspace(0, info.frame_count - 1, 3).astype(int)
        whole = decode(path, numbers)
    except VideoError as error:  # then a part of it cannot be had either
        with pytest.raises(VideoError, match=re.escape(str(error).split(":")[0])):
            decode_cuts(path, [([0], (0, 0, 2, 2))], size)
        return
    boxes = [*random_boxes(info.height, info.width, 3, len(name))[2:], (0, 0, info.height, info.width)]
    for box, clip in zip(boxes, decode_cuts(path, [(numbers, box) for box in boxes], size), strict=True):
        wanted = resize(cut(whole.frames, box), size, "bilinear")
        assert torch.equal(clip.seconds, whole.seconds)
        assert (clip.frames.float() - wanted.float()).abs().mean() < 2, box


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("rotation", [0, 90])
def test_cuts_are_cropped_and_resized_as_pillow_does_it(interpolation: str, rotation: int, tmp_path: Path) -> None:
    path = encode(tmp_path / "v.mp4", pictures(20, 96, 128), options=X264, rotation=rotation)
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    with av.open(str(path)) as container:
        shown = [np.rot90(frame.to_ndarray(format="rgb24"), rotation // 90) for frame in container.decode(video=0)]
    for box in random_boxes(*shown[0].shape[:2], 6, rotation):
        top, left, height, width = box
        for size in ((40, 40), (70, 33)):
            clip = decode_cuts(path, [([3, 3, 17], box)], size, interpolation=interpolation)[0]
            for number, frame in zip([3, 3, 17], clip.frames, strict=True):
                image = Image.fromarray(shown[number][top : top + height, left : left + width])
                wanted = torch.from_numpy(np.array(image.resize(size[::-1], method))).permute(2, 0, 1)
                assert (frame.int() - wanted.int()).abs().max() <= (1 if interpolation == "bilinear" else 3), (box, size)


@pytest.mark.parametrize("kind", ["size changes", "size changes ts", "odd size"])
def test_a_box_of_everything_is_the_whole_frame(kind: str, tmp_path: Path) -> None:
    suffix, make = KINDS[kind]
    path = make(tmp_path / f"video{suffix}")
    info = probe(path)
    numbers = list(range(0, info.frame_count, 3))
    clip = decode_cuts(path, [(numbers, (0, 0, info.height, info.width))], (24, 24))[0]
    assert torch.equal(clip.frames, decode(path, numbers, size=(24, 24)).frames)
    part = decode_cuts(path, [(numbers, (8, 16, 20, 30))], (20, 30))[0].frames  # of the same place in larger pictures
    whole = decode(path, numbers).frames[:, :, 8:28, 16:46]
    assert (part.float() - whole.float()).abs().mean() < 12


@pytest.mark.parametrize("box", [(0, 0, 49, 64), (-1, 0, 4, 4), (0, 60, 8, 5), (0, 0, 0, 8)])
def test_a_box_outside_of_the_frame_is_named(box: tuple[int, int, int, int], tmp_path: Path) -> None:
    path = encode(tmp_path / "v.mp4", pictures(5), options=X264)
    with pytest.raises(ConfigError, match=r"v\.mp4: a box of .* was asked for; the frame is 48x64"):
        decode_cuts(path, [([0], box)], (8, 8))


@pytest.mark.parametrize(
    "kind", ["h264", "mpeg-ts", "hevc", "edit list", "open gop", "vp8 with hidden frames", "raw h264, no time stamps"]
)
def test_approximate_frames_are_the_same_frames(kind: str, tmp_path: Path) -> None:
    """Other pixels, yet each is nearer to the exact frame of its number than to any other."""
    suffix, make = KINDS[kind]
    path = make(tmp_path / f"video{suffix}")
    exact = decode(path)
    wanted = list(range(1, len(exact.frames), 4))
    clip = decode(path, wanted, approximate=True)
    assert torch.equal(clip.seconds, exact.seconds[wanted])
    distance = torch.cdist(clip.frames.flatten(1).float(), exact.frames.flatten(1).float(), p=1)
    assert distance.argmin(1).tolist() == wanted and distance.min() > 0


def test_a_packet_that_holds_nothing_is_no_end(tmp_path: Path) -> None:
    """A picture that stays as it is may be an empty packet (Theora): it is no picture, and those after it come."""

    def emptied(packets: list[av.Packet]) -> list[av.Packet]:
        empty = av.Packet(0)
        empty.pts, empty.dts, empty.time_base, empty.stream = (
            packets[5].pts,
            packets[5].dts,
            packets[5].time_base,
            packets[5].stream,
        )
        return [*packets[:5], empty, *packets[6:]]

    path = encode(tmp_path / "a.nut", pictures(20), "mjpeg", "yuvj422p", edit=emptied)
    with av.open(str(path)) as container:
        packets = list(container.demux(video=0))
        assert [i for i, packet in enumerate(packets) if not packet.size] == [5, 20]  # the last one ends the file
        decoder = container.streams.video[0].codec_context
        frames = [frame.to_ndarray(format="rgb24") for packet in packets if packet.size for frame in decoder.decode(packet)]
    assert probe(str(path)).frame_count == len(frames) == 19
    clip = decode(str(path), np.arange(19))
    assert np.array_equal(clip.frames.permute(0, 2, 3, 1).numpy(), np.stack(frames))
