"""Shots: known cuts between real or made clips are found, what only moves is none, and the numbers are those of a formula."""

import csv
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tubelet.errors import ConfigError, VideoError
from tubelet.records import ClipSpec
from tubelet.video import _pyav, _shot_windows
from tubelet.video._index import read_index
from tubelet.video.decode import decode, probe
from tubelet.video.guard import end_idle
from tubelet.video.resize import resize
from tubelet.video.shots import LEAST_CHANGE, LEAST_FRAMES, RATIO, WITHIN, find_shots, shot_starts, told
from tubelet.video.stream import Stream, Windows
from tubelet.video.write import write_video

LENGTHS = (20, 9, 31, 12, 28)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five shots of blocks of other colours that slide by a pixel a frame."""
    path = tmp_path_factory.mktemp("shots") / "v.mp4"
    generator = torch.Generator().manual_seed(1)
    pieces = []
    for length in LENGTHS:
        blocks = torch.randint(256, (3, 4, 8), dtype=torch.uint8, generator=generator)
        picture = resize(blocks[None], (64, 128), "bilinear")[0]
        pieces.append(torch.stack([picture[..., at : at + 64] for at in range(length)]))
    write_video(path, pieces, fps=25)
    return path


@given(arrays(np.float32, st.integers(1, 60), elements=st.floats(0, 60, width=32)))
def test_shots_begin_where_the_formula_says(changes: np.ndarray) -> None:
    changes[0] = 0
    starts = [0]
    for t in range(1, len(changes)):
        around = [float(changes[k]) for k in range(t - WITHIN, t + WITHIN + 1) if 0 <= k < len(changes) and k != t]
        usual = sum(around) / len(around)
        if changes[t] >= LEAST_CHANGE and changes[t] > RATIO * usual * (1 + 1e-9) and t - starts[-1] >= LEAST_FRAMES:
            starts.append(t)
    assert shot_starts(changes) == tuple(starts)


def test_known_cuts_are_found_and_motion_is_none(video: Path) -> None:
    shots = find_shots(video)
    assert shots.starts == (0, 20, 29, 60, 72)
    assert np.array_equal(shots.seconds, decode(video).seconds.numpy())
    small = decode(video).frames.permute(0, 2, 3, 1).float().reshape(100, 32, 2, 32, 2, 3).mean(dim=(2, 4)).numpy()
    by_formula = np.abs(np.diff(small, axis=0)).mean(axis=(1, 2, 3))
    assert np.abs(shots.changes[1:] - by_formula).max() < 1  # its own rounding of colours


def test_windows_stay_within_their_shot(video: Path) -> None:
    stream = Stream(video, ClipSpec(frames=4, stride_frames=4, size=24), Windows("shots"))
    ends = np.cumsum(LENGTHS)
    windows = [window for window, _ in stream]
    assert [window.shot for window in windows] == [0, 0, 1, 2, 2, 2, 3, 4, 4, 4] and stream.windows == windows
    for window in windows:
        shot = window.shot
        assert ends[shot] - LENGTHS[shot] <= window.first <= window.last < ends[shot]
        assert window.numbers.max() < ends[shot] and window.padded == (LENGTHS[shot] < 16)
    assert {window.last + 1 for window in stream.windows} >= set(ends.tolist())


@pytest.mark.parametrize(
    ("clip", "asked"),
    [
        ({"stride_frames": 4}, {}),
        ({"stride_frames": 1}, {"step_seconds": 0.04}),
        ({"stride_frames": 4, "short": "loop"}, {"step_seconds": 1.5}),  # some frames lie in no window
        ({"sampling": "segments"}, {"window_seconds": 0.5, "step_seconds": 0.1}),
        ({"stride_frames": 2, "background": "subtract"}, {"window_seconds": 60}),
    ],
)
@pytest.mark.parametrize("part", [(None, None), (0.9, 2.5), (1.24, None), (None, 0.3), (None, 1.14), (1.16, 2.38)])
def test_shots_found_on_the_way_give_the_windows_of_each_stretch(video: Path, clip: dict, asked: dict, part: tuple) -> None:
    """Beside a stream of its own for every shot, whose first and last frames are known from a decode before."""
    spec, shots = ClipSpec(frames=4, size=24, **clip), find_shots(video)
    times = [*shots.seconds[list(shots.starts)].tolist(), 1e9]
    expected = []
    for number, (begin, end) in enumerate(pairwise(times)):
        within = (max(begin, part[0] or 0), min(end, part[1] or 1e9))
        if within[0] < within[1]:
            expected += [(number, *pair) for pair in Stream(video, spec, Windows(**asked), within)]
    for skip in (0, 1, len(expected)):
        found = list(Stream(video, spec, Windows("shots", **asked), part, skip))
        assert len(found) == len(expected) - skip
        for (window, got), (number, wanted, frames) in zip(found, expected[skip:], strict=True):
            assert (window.first, window.last, window.shot, window.padded) == (wanted.first, wanted.last, number, wanted.padded)
            assert np.array_equal(window.numbers, wanted.numbers) and got.id == frames.id
            assert torch.equal(got.frames, frames.frames) and torch.equal(got.seconds, frames.seconds)


def test_every_frame_is_told_once_and_shots_as_of_the_whole_video(video: Path) -> None:
    index = read_index(str(video))
    for count in (1, 3, 5, 30, 100):
        rows = list(told(_pyav.frames(str(video), index, list(range(count)))))
        assert [number for number, *_ in rows] == list(range(count))
        starts = shot_starts(find_shots(video).changes[:count])
        assert [number for number, _, begins in rows if begins] == list(starts[1:])


def test_frames_that_take_much_memory_are_resized_as_they_come(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, asked = ClipSpec(frames=4, stride_frames=2, size=24), Windows("shots", step_seconds=0.1)
    usual = [clip.frames for _, clip in Stream(video, spec, asked)]
    end_idle()  # workers have the constants that they were made with
    monkeypatch.setattr(_shot_windows, "WAITING_BYTES", 0)
    try:
        for one, (_, clip) in zip(usual, Stream(video, spec, asked), strict=True):
            assert torch.equal(one, clip.frames)
    finally:
        end_idle()


@pytest.mark.parametrize(
    ("asked", "skip"), [({"step_seconds": 0.04}, 0), ({"step_seconds": 0.04}, 50), ({"step_seconds": 3.0}, 0)]
)
def test_decoded_frames_wait_for_one_window(video: Path, asked: dict, skip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while windows are skipped, and between windows that lie far apart."""
    waiting: list[int] = []

    class Counted(_shot_windows._Frames):
        def add(self, number: int, frame: object) -> None:
            super().add(number, frame)
            waiting.append(len(self.waiting))

    monkeypatch.setattr(_shot_windows, "_Frames", Counted)
    spec = ClipSpec(frames=4, stride_frames=2, size=24)
    found = list(_shot_windows.pieces(0, str(video), spec, Windows("shots", **asked), (None, None), skip))
    assert sum(len(piece[0]) for piece in found[1:]) > 0 and len(waiting) == sum(LENGTHS)
    assert max(waiting) <= spec.window_frames + 1


def test_a_worker_that_dies_among_shots_goes_on(video: Path) -> None:
    spec, asked = ClipSpec(frames=4, stride_frames=2, size=24), Windows("shots", step_seconds=0.1)
    whole = list(Stream(video, spec, asked))
    pieces = list(_shot_windows.pieces(0, str(video), spec, asked, (None, None), 0))
    for done in (1, 2, len(pieces) // 2, len(pieces)):
        rest = list(_shot_windows.pieces(done, str(video), spec, asked, (None, None), 0))
        assert len(rest) == len(pieces) - done
        for (windows, numbers, frames, keep), again in zip(pieces[done:], rest, strict=True):
            assert [w.first for w in windows] == [w.first for w in again[0]] and keep == again[3]
            assert np.array_equal(numbers, again[1]) and torch.equal(frames, again[2])
    assert sum(len(piece[0]) for piece in pieces[1:]) == len(whole)


def test_shots_come_alone_and_bad_parts_are_one_line(video: Path) -> None:
    with pytest.raises(ConfigError, match="windows of shots come alone, got 2 kinds of windows"):
        Stream(video, ClipSpec(), [Windows("shots"), Windows()])
    with pytest.raises(VideoError, match="no frame lies in the part 99 s to the end"):
        Stream(video, ClipSpec(), Windows("shots"), (99, None))
    with pytest.raises(VideoError, match=r"v.mp4: the video has 9 frames and a clip spans 1\d"):
        list(Stream(video, ClipSpec(frames=4, stride_frames=4, size=24, short="error"), Windows("shots")))


def test_real_clips_joined(shared: Path, tmp_path: Path) -> None:
    chance, root = random.Random(5), shared / "data"
    pieces = []
    for name in ("egogestar", "ucf101_20c", "fights"):
        rows = list(csv.DictReader((root / name / "labels.csv").read_text().splitlines()))
        for row in chance.sample(rows, 8):
            first = chance.randrange(5)
            last = min(probe(root / name / row["path"]).frame_count, first + chance.randrange(20, 40))
            pieces.append(decode(root / name / row["path"], range(first, last), size=(72, 96)).frames)
    chance.shuffle(pieces)
    true = np.cumsum([0, *map(len, pieces[:-1])]).tolist()
    write_video(tmp_path / "v.mp4", pieces, fps=25, crf=28)
    found = find_shots(tmp_path / "v.mp4").starts
    right = len(set(found) & set(true))
    print(f"precision {right / len(found):.3f}, recall {right / len(true):.3f} of {len(true)} shots")
    assert right >= 0.9 * len(true) and right >= 0.85 * len(found)  # clips may have cuts of their own
