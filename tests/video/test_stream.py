"""Windows of long videos: the frames and times of a full decode, every frame decoded once, nothing left out at the end."""

import math
import os
import signal
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.errors import ConfigError, VideoError
from tubelet.records import ClipSpec
from tubelet.video import _pyav, guard
from tubelet.video.augment import view_boxes
from tubelet.video.background import subtract_background
from tubelet.video.decode import decode_cuts, probe
from tubelet.video.stream import Stream, Windows, plan, window_starts
from tubelet.video.write import write_video

SPEC = ClipSpec(frames=4, stride_frames=2, size=24)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 frames at 25 a second, a key frame every 20."""
    path = tmp_path_factory.mktemp("stream") / "v.mp4"
    frames = torch.randint(256, (150, 3, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_video(path, frames.repeat_interleave(8, 2).repeat_interleave(8, 3), fps=25, gop_frames=20)
    return path


def with_pauses(path: Path) -> Path:
    """40 frames at uneven times."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for number in range(40):
            picture = np.full((32, 48, 3), 6 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number * 33 + 400 * (number // 7), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def assert_equals_decode(path: Path, spec: ClipSpec, *windows: Windows) -> None:
    info = probe(path)
    box = view_boxes(info.height, info.width, spec, 1)[0]
    whole = decode_cuts(path, [(range(info.frame_count), box)], (spec.size, spec.size))[0]
    stream = Stream(path, spec, windows or Windows())
    count = 0
    for window, clip in stream:
        assert torch.equal(clip.frames, whole.frames[window.numbers])
        assert torch.equal(clip.seconds, whole.seconds[window.numbers])
        assert (window.start_seconds, window.end_seconds) == (whole.seconds[window.first], whole.seconds[window.last])
        count += 1
    assert count == len(stream) and max(window.last for window in stream.windows) == info.frame_count - 1


@given(st.integers(1, 3000), st.integers(1, 200), st.integers(1, 300))
def test_window_starts(frames: int, span: int, step: int) -> None:
    starts = window_starts(frames, span, step)
    assert len(starts) == (math.ceil((frames - span) / step) + 1 if frames >= span else 1)
    assert starts[0] == 0 and starts[-1] + span >= frames and np.all(np.diff(starts) > 0)
    assert np.array_equal(starts[:-1], np.arange(len(starts) - 1) * step)
    if step <= span <= frames:
        covered = np.zeros(frames, bool)
        for start in starts:
            covered[start : start + span] = True
        assert covered.all()


def test_a_step_beyond_the_video_leads_to_its_end() -> None:
    assert window_starts(100, 10, 10**30).tolist() == [0, 90] and window_starts(10, 10, 10**30).tolist() == [0]


def test_an_hour_has_the_windows_of_the_formula() -> None:
    seconds = np.arange(86_400) / 24
    spec = ClipSpec()
    assert len(plan(seconds, spec, [Windows()])) == math.ceil((86_400 - 64) / 32) + 1
    assert len(plan(seconds, spec, [Windows(step_seconds=1)])) == math.ceil((86_400 - 64) / 24) + 1
    [one] = plan(seconds, spec, [Windows("uniform", count=1)])
    assert (one.first, one.last) == ((86_400 - 64) // 2, (86_400 - 64) // 2 + 63)


@settings(max_examples=15)
@given(st.integers(1, 12), st.integers(1, 9), st.floats(0.01, 3), st.sampled_from(["videomae", "stride", "segments"]))
def test_clips_are_those_of_a_full_decode(video: Path, frames: int, stride: int, step: float, sampling: str) -> None:
    spec = ClipSpec(frames=frames, stride_frames=stride, size=24, sampling=sampling)  # type: ignore[arg-type]
    assert_equals_decode(video, spec, Windows(step_seconds=step))


def test_several_scales_come_from_one_decode(video: Path) -> None:
    scales = (Windows(step_seconds=0.2), Windows(window_seconds=2), Windows("uniform", count=3, window_seconds=1))
    assert_equals_decode(video, SPEC, *scales)
    windows = Stream(video, SPEC, scales).windows
    assert [sum(window.kind == kind for window in windows) for kind in range(3)] == [math.ceil(142 / 5) + 1, 5, 3]
    longest = next(window for window in windows if window.kind == 1)
    assert longest.numbers.tolist() == [6, 18, 31, 43] and (longest.first, longest.last) == (0, 49)


def test_uneven_times(tmp_path: Path) -> None:
    for name in ("v.mp4", "v.mkv"):
        path = with_pauses(tmp_path / name)
        assert probe(path).variable_frame_rate
        assert_equals_decode(path, SPEC, Windows(step_seconds=0.3))


@pytest.mark.parametrize(
    "name",
    [
        "decord/tests/test_data/unordered.mov",
        "decord/tests/test_data/video_270.mov",
        "drewnoakes/3gp/sample.3gp",
        "moviepy/media/transparent.webm",
        "moviepy/media/no_duration.webm",
        "torchcodec/test/resources/av1_video.mkv",
    ],
)
def test_odd_files(shared: Path, name: str) -> None:
    assert_equals_decode(shared / "data" / "odd_files" / name, SPEC, Windows(step_seconds=0.4))


@pytest.mark.parametrize(
    "windows",
    [
        (Windows(step_seconds=0.04),),
        (Windows(), Windows(window_seconds=3, step_seconds=0.1)),
        (Windows("shots", step_seconds=0.04),),
    ],
)
def test_every_packet_is_decoded_once(video: Path, windows: tuple[Windows, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    taken: list[int] = []
    read, take = _pyav._read_packets, _pyav.Part.take

    def counted(*args: object) -> object:
        for number, packet, decoder in read(*args):  # type: ignore[arg-type]
            fed.append(number)
            yield number, packet, decoder

    monkeypatch.setattr(_pyav, "_read_packets", counted)
    monkeypatch.setattr(_pyav.Part, "take", lambda self, number, frame: (taken.append(number), take(self, number, frame))[1])
    monkeypatch.setattr(guard, "_guarded", True)  # in this process, so that they can be counted
    monkeypatch.setattr("tubelet.video.stream.PIECE_BYTES", 7 * 24 * 24 * 3)
    stream = Stream(video, SPEC, windows)
    shown = sum(len(window.numbers) for window, _ in stream)
    needed = set(np.concatenate([window.numbers for window in stream.windows]).tolist())
    assert len(fed) == len(set(fed)) <= 150
    assert sorted(taken) == sorted(needed) and shown > 1.9 * len(taken)


@pytest.mark.parametrize("kind", ["sliding", "shots"])
def test_only_frames_of_windows_to_come_are_held(video: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_guarded", True)
    monkeypatch.setattr("tubelet.video.stream.PIECE_BYTES", 5 * 24 * 24 * 3)
    most = 0
    windows = iter(Stream(video, SPEC, Windows(kind, step_seconds=0.04)))
    for _ in windows:
        most = max(most, len(windows.gi_yieldfrom.gi_frame.f_locals["held"]))  # type: ignore[attr-defined]
    assert most <= SPEC.window_frames + 5


def test_a_short_video_is_one_padded_window(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", torch.zeros(5, 3, 32, 32, dtype=torch.uint8), fps=10)
    for windows in (Windows(), Windows("uniform", count=4)):
        [(window, clip)] = Stream(tmp_path / "v.mp4", SPEC, windows)
        assert window.padded and clip.seconds.tolist() == pytest.approx([0, 0.2, 0.4, 0.4]) and window.last == 4
    loop = ClipSpec(frames=4, stride_frames=2, size=24, short="loop")
    [(_, clip)] = Stream(tmp_path / "v.mp4", loop)
    assert clip.seconds.tolist() == pytest.approx([0, 0.2, 0, 0.2])
    with pytest.raises(VideoError, match=r"v.mp4: the video has 5 frames and a clip spans 8: use .* short=repeat_last or loop"):
        Stream(tmp_path / "v.mp4", ClipSpec(frames=4, stride_frames=2, size=24, short="error"))
    [(window, _)] = Stream(tmp_path / "v.mp4", SPEC, Windows(window_seconds=60))
    assert not window.padded and window.numbers.tolist() == [0, 1, 2, 4] and window.last == 4


def test_a_part_and_the_rest_after_a_stop(video: Path) -> None:
    every = list(Stream(video, SPEC, Windows(step_seconds=0.2)))
    rest = list(Stream(video, SPEC, Windows(step_seconds=0.2), skip=20))
    assert [clip.id for _, clip in rest] == [clip.id for _, clip in every][20:]
    assert all(torch.equal(a.frames, b.frames) for (_, a), (_, b) in zip(rest, every[20:], strict=True))
    assert list(Stream(video, SPEC, skip=1000)) == []
    windows = Stream(video, SPEC, part=(2.0, 3.0)).windows
    assert (windows[0].first, windows[-1].last) == (50, 74)
    with pytest.raises(VideoError, match="v.mp4: no frame lies in the part 9 s to the end; the video lasts 5.96 s"):
        Stream(video, SPEC, part=(9.0, None))


def test_a_reader_that_is_killed_costs_nothing(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tubelet.video.stream.PIECE_BYTES", 2 * 24 * 24 * 3)
    guard.end_idle()
    whole = [clip.frames for _, clip in Stream(video, SPEC)]
    pid = guard.run(str(video), os.getpid)  # the worker that will be used again
    found = []
    for number, (_, clip) in enumerate(Stream(video, SPEC)):
        if number == 4:
            os.kill(pid, signal.SIGKILL)
        found.append(clip.frames)
    assert guard.run(str(video), os.getpid) != pid
    assert len(found) == len(whole) and all(map(torch.equal, found, whole))


def test_damage_is_told_when_it_is_met(damaged: object) -> None:
    seen = 0
    with pytest.raises(VideoError, match="damaged"):
        for _ in Stream(damaged.path, SPEC, Windows(step_seconds=0.1)):  # type: ignore[attr-defined]
            seen += 1
    assert seen < 100


def test_a_reader_that_leaves_ends_the_worker(video: Path) -> None:
    guard.end_idle()
    stream = Stream(video, SPEC, Windows(step_seconds=0.04))
    next(iter(stream))
    stream.close()
    assert not guard._idle[os.getpid()]


def test_background_is_taken_away_clip_by_clip(video: Path) -> None:
    moving = ClipSpec(frames=4, stride_frames=2, size=24, background="subtract")
    for (_, ours), (_, plain) in zip(Stream(video, moving), Stream(video, SPEC), strict=True):
        assert torch.equal(ours.frames, subtract_background(plain.frames))


def test_impossible_windows_are_named() -> None:
    with pytest.raises(ConfigError, match="unknown kind of windows 'slidng': did you mean 'sliding'"):
        Windows("slidng")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="step_seconds is 0: it must be above 0"):
        Windows(step_seconds=0)
