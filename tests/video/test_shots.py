"""Shots: known cuts between real or made clips are found, what only moves is none, and the numbers are those of a formula."""

import csv
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tubelet.records import ClipSpec
from tubelet.video.decode import decode, probe
from tubelet.video.resize import resize
from tubelet.video.shots import LEAST_CHANGE, LEAST_FRAMES, RATIO, WITHIN, find_shots, shot_starts
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
    assert [window.shot for window in stream.windows] == [0, 0, 1, 2, 2, 2, 3, 4, 4, 4]
    for window, _ in stream:
        shot = window.shot
        assert ends[shot] - LENGTHS[shot] <= window.first <= window.last < ends[shot]
        assert window.numbers.max() < ends[shot] and window.padded == (LENGTHS[shot] < 16)
    assert {window.last + 1 for window in stream.windows} >= set(ends.tolist())


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
