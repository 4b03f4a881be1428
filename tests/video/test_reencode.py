"""A re-encoded file has the frames of its source, all of them, in order, upright, each at its time. Every frame of the
sources here carries its number as black and white blocks, which are read back with plain PyAV."""

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.errors import VideoError
from tubelet.video._index import read_index
from tubelet.video.decode import decode, probe
from tubelet.video.reencode import reencode
from tubelet.video.write import write_video

BITS = 8


def picture(number: int, height: int, width: int) -> np.ndarray:
    """uint8 (H,W,3): smooth colours; the left half of the upper part holds `number`, a column of the width for a bit."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([(x * 2 + number) % 256, (y * 2) % 256, (x + y) // 2 % 256], -1).astype(np.uint8)
    for bit in range(BITS):
        pixels[: height // 2, bit * width // BITS : (bit + 1) * width // BITS] = 255 * (number >> bit & 1)
    return pixels


def number_in(pixels: np.ndarray) -> int:
    height, width = pixels.shape[:2]
    middles = [(2 * bit + 1) * width // (2 * BITS) for bit in range(BITS)]
    return sum(int(pixels[height // 4, middle].mean() > 127) << bit for bit, middle in enumerate(middles))


def source(
    path: Path,
    count: int = 40,
    size: tuple[int, int] = (64, 96),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    times: list[int] | None = None,
    time_base: Fraction = Fraction(1, 30),
    rotation: int = 0,
    options: dict[str, str] | None = None,
    sound: bool = False,
) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(1) / time_base, options={"threads": "1", **(options or {})})
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.time_base = stream.time_base = time_base
        if rotation:
            stream.set_display_rotation(rotation)
        audio = container.add_stream("aac", rate=8000, layout="mono") if sound else None
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            frame.pts, frame.time_base = number if times is None else times[number], time_base
            container.mux(stream.encode(frame))
        if audio:
            beep = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            beep.sample_rate = 8000
            container.mux(audio.encode(beep))
            container.mux(audio.encode())
        container.mux(stream.encode())
    return path


def sequential(path: Path) -> tuple[list[int], list[float], tuple[int, int]]:
    """(number carried, time) of every frame and the size, upright, by the plainest use of PyAV."""
    numbers, times = [], []
    with av.open(str(path)) as container:
        for frame in container.decode(container.streams.video[0]):
            pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
            numbers.append(number_in(pixels))
            times.append(frame.time)
    return numbers, times, pixels.shape[:2]


UNEVEN = np.cumsum([0] + [(1, 2, 30, 7)[i % 4] for i in range(39)]).tolist()
B_PICTURES = {"bf": "4", "b-pyramid": "normal"}
SOURCES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "h264": (".mp4", lambda p: source(p, options=B_PICTURES)),
    "with sound": (".mp4", lambda p: source(p, sound=True)),
    "uneven times": (".mkv", lambda p: source(p, times=UNEVEN, time_base=Fraction(1, 1000))),
    "starts late": (".mp4", lambda p: source(p, times=[100 + 3 * t for t in UNEVEN], time_base=Fraction(1, 90000))),
    "transport stream": (".ts", lambda p: source(p, options=B_PICTURES)),
    "open gop": (".mkv", lambda p: source(p, options={"x264-params": "open-gop=1:keyint=10:bframes=3"})),
    "avi": (".avi", lambda p: source(p, codec="mpeg4", time_base=Fraction(1001, 30000))),
    "vp9 of odd size": (".webm", lambda p: source(p, size=(61, 91), codec="libvpx-vp9", options={"cpu-used": "8"})),
    "10 bit": (".mp4", lambda p: source(p, pix_fmt="yuv420p10le")),
    "gif": (".gif", lambda p: source(p, codec="gif", pix_fmt="rgb8", time_base=Fraction(1, 100))),
    "one frame": (".mp4", lambda p: source(p, count=1)),
    "two frames": (".mov", lambda p: source(p, count=2)),
    "many frames": (".mp4", lambda p: source(p, count=255)),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_frame_comes_in_order_at_its_time(kind: str, tmp_path: Path) -> None:
    suffix, make = SOURCES[kind]
    path = make(tmp_path / f"source{suffix}")
    numbers, times, _ = sequential(path)
    assert numbers == list(range(len(numbers))), "the source of this test does not say what it should"
    done = reencode(str(path), tmp_path / "out.mp4")
    found, found_times, _ = sequential(tmp_path / "out.mp4")
    assert found == numbers and done.frames == len(numbers)
    assert np.allclose(np.array(found_times) - found_times[0], np.array(times) - times[0], atol=1e-6)
    assert sorted(os.listdir(tmp_path)) == ["out.mp4", path.name]
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_what_was_shown_turned_is_stored_upright(rotation: int, tmp_path: Path) -> None:
    path = source(tmp_path / "turned.mp4", count=9, rotation=rotation)
    reencode(str(path), tmp_path / "out.mp4")
    want, got = decode(path), decode(tmp_path / "out.mp4")
    assert got.frames.shape == want.frames.shape == (9, 3, *((64, 96) if rotation == 180 else (96, 64)))
    assert (got.frames.float() - want.frames.float()).abs().mean() < 6
    assert probe(tmp_path / "out.mp4").rotation_degrees == 0


@given(
    steps=st.lists(st.integers(40, 5000), min_size=0, max_size=40),
    ticks_a_second=st.sampled_from([1000, 12800, 90000]),
    gop_frames=st.integers(1, 20),
)
def test_any_times_are_kept(steps: list[int], ticks_a_second: int, gop_frames: int, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("times")
    times = np.cumsum([0, *steps]).tolist()
    path = source(folder / "s.mp4", len(times), (32, 48), times=times, time_base=Fraction(1, ticks_a_second))
    reencode(str(path), folder / "out.mp4", gop_frames=gop_frames)
    (numbers, want, _), (found, got, _) = sequential(path), sequential(folder / "out.mp4")
    assert found == numbers
    assert np.allclose(np.array(got) - got[0], np.array(want) - want[0], atol=1e-6)


def test_times_that_repeat_are_set_a_tick_apart(tmp_path: Path) -> None:
    times = [0, 40, 80, 81, 120]
    path = tmp_path / "repeated.mkv"
    even = source(tmp_path / "s.mkv", 5, times=times, time_base=Fraction(1, 1000))
    with av.open(str(even)) as read, av.open(str(path), "w", format="matroska") as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.size:
                packet.pts = 80 if packet.pts == 81 else packet.pts
                packet.stream = stream
                write.mux(packet)
    numbers, repeated, _ = sequential(path)
    assert len(numbers) == 5 and len(set(repeated)) == 4
    reencode(str(path), tmp_path / "out.mp4")
    found, got, _ = sequential(tmp_path / "out.mp4")
    assert found == numbers and len(set(got)) == 5
    assert np.allclose(np.array(got), np.array(repeated) - repeated[0], atol=2e-4)


@pytest.mark.parametrize(
    ("size", "short_side", "want"),
    [((64, 96), 48, (48, 72)), ((96, 64), 48, (72, 48)), ((64, 96), 256, (64, 96)), ((61, 91), 256, (60, 90))],
)
def test_scaled_down_never_up_and_to_even_sizes(
    size: tuple[int, int], short_side: int, want: tuple[int, int], tmp_path: Path
) -> None:
    path = source(tmp_path / "s.mkv", 3, size, pix_fmt="yuv444p")
    reencode(str(path), tmp_path / "out.mp4", short_side)
    assert sequential(tmp_path / "out.mp4")[2] == want


def test_psnr_is_that_of_the_frames_on_the_disk(tmp_path: Path) -> None:
    path = source(tmp_path / "s.mp4", 30)
    found = {}
    for crf in (10, 30):
        done = reencode(str(path), tmp_path / "out.mp4", 48, crf=crf)
        want, got = decode(path, size=(48, 72)).frames.double(), decode(tmp_path / "out.mp4").frames.double()
        found[crf] = done.psnr_db
        assert done.psnr_db == pytest.approx(float(10 * (255**2 / (want - got).square().mean()).log10()), abs=0.01)
    assert found[10] > found[30] + 1


def test_key_frames_and_frames_that_can_be_left_out(tmp_path: Path) -> None:
    path = source(tmp_path / "s.mp4", 65)
    for gop_frames in (16, 1):
        reencode(str(path), tmp_path / "out.mp4", gop_frames=gop_frames)
        index = read_index(str(tmp_path / "out.mp4"))
        assert index.packet is not None and index.offset is not None, "random access would decode from the first frame"
        assert sorted(index.packet_stamp[index.entries].tolist()) == index.stamps[::gop_frames].tolist()
        shown = np.argsort(index.packet_stamp)  # packets in the order of their frames
        leanless = index.droppable[shown]
        if gop_frames == 16:
            assert leanless.mean() > 0.6 and not leanless[::4].any()
        else:
            assert len(index.entries) == 65


def test_equal_files_give_equal_files(tmp_path: Path) -> None:
    """On noise, where x264's mbtree did not."""
    noise = torch.randint(0, 256, (100, 3, 96, 96), dtype=torch.uint8)
    write_video(tmp_path / "s.mp4", noise, fps=10)
    written = set()
    for _ in range(5):
        reencode(str(tmp_path / "s.mp4"), tmp_path / "out.mp4")
        written.add((tmp_path / "out.mp4").read_bytes())
    assert len(written) == 1


def test_what_cannot_be_read_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    whole = source(tmp_path / "s.mp4").read_bytes()
    (tmp_path / "s.mp4").unlink()
    (tmp_path / "text.mp4").write_text("not a video")
    damaged = bytearray(whole)
    damaged[len(whole) // 2 : len(whole) // 2 + 300] = bytes(range(250, 100, -1)) * 2
    (tmp_path / "damaged.mp4").write_bytes(damaged)
    for name, reason in (("text.mp4", "not a readable video"), ("damaged.mp4", "damaged"), ("no.mp4", "no such file")):
        with pytest.raises(VideoError, match=f"{name}: .*{reason}"):
            reencode(str(tmp_path / name), tmp_path / "out.mp4")
    assert sorted(os.listdir(tmp_path)) == ["damaged.mp4", "text.mp4"]


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    path = source(tmp_path / "s.mp4")
    with pytest.raises(OSError):
        reencode(str(path), tmp_path / "no" / "out.mp4")
    assert os.listdir(tmp_path) == ["s.mp4"]


def test_odd_files(shared: Path, tmp_path: Path) -> None:
    """Real files of many kinds: counted by plain PyAV before and after."""
    seen = 0
    for path in sorted((shared / "data" / "odd_files").rglob("*")):
        if not path.is_file() or path.suffix == ".csv" or not 1000 < path.stat().st_size < 200_000:
            continue
        try:
            reencode(str(path), tmp_path / "out.mp4", 160)
        except VideoError:
            continue
        counts = []
        for each in (path, tmp_path / "out.mp4"):
            with av.open(str(each)) as container:
                streams = [s for s in container.streams.video if "attached_pic" not in repr(s.disposition)]
                counts.append(sum(1 for _ in container.decode(streams[0])))
        assert counts[0] == counts[1], path
        seen += 1
    assert seen > 20
