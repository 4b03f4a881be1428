"""Sampling: known numbers, and what must hold for every video length and setting."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.errors import VideoError
from tubelet.records import ClipSpec
from tubelet.video.sample import span_frames, train_indices, view_indices, window_indices

SPECS = st.builds(
    ClipSpec,
    frames=st.integers(1, 24),
    sampling=st.sampled_from(["videomae", "stride", "segments"]),
    stride_frames=st.integers(1, 9),
    short=st.sampled_from(["repeat_last", "loop"]),
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_videomae_window_is_the_published_one() -> None:
    expected = [164, 168, 172, 176, 181, 185, 189, 193, 198, 202, 206, 210, 215, 219, 223, 227]
    assert window_indices(164, ClipSpec(), 300).tolist() == expected


def test_stride_window_takes_exact_multiples() -> None:
    assert window_indices(10, ClipSpec(sampling="stride", frames=5, stride_frames=3), 30).tolist() == [10, 13, 16, 19, 22]


def test_segments_in_evaluation_take_the_middle_of_each() -> None:
    spec = ClipSpec(sampling="segments", frames=4)
    assert view_indices(40, spec, 1)[0][0].tolist() == [5, 15, 25, 35]
    assert [numbers.tolist() for numbers, _ in view_indices(40, spec, 2)] == [[2, 12, 22, 32], [7, 17, 27, 37]]


def test_short_policies() -> None:
    short = {"sampling": "stride", "frames": 5, "stride_frames": 2}
    assert window_indices(0, ClipSpec(**short, short="repeat_last"), 6).tolist() == [0, 2, 4, 5, 5]
    assert window_indices(0, ClipSpec(**short, short="loop"), 6).tolist() == [0, 2, 4, 0, 2]
    with pytest.raises(VideoError, match="has 6 frames and a clip spans 9: use a smaller stride"):
        train_indices(6, ClipSpec(**short, short="error"), generator())
    assert train_indices(9, ClipSpec(**short, short="error"), generator())[0].tolist() == [0, 2, 4, 6, 8]


def test_an_empty_range_is_an_error() -> None:
    for range_frames in ((5, 5), (20, 30), (-1, 5)):
        with pytest.raises(VideoError, match="no frame in that range"):
            train_indices(20, ClipSpec(), generator(), range_frames)


@given(SPECS, st.integers(1, 400), st.integers(0, 2**31), st.data())
def test_training_clips_lie_in_the_range_and_repeat_with_the_seed(
    spec: ClipSpec, count: int, seed: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, count - 1))
    end = data.draw(st.integers(first + 1, count + 5))
    numbers, padded = train_indices(count, spec, generator(seed), (first, end))
    assert numbers.shape == (spec.frames,) and numbers.dtype == np.int64
    assert first <= numbers.min() and numbers.max() < min(end, count)
    assert padded == (min(end, count) - first < span_frames(spec))
    if not padded:
        assert (np.diff(numbers) >= (1 if spec.sampling == "segments" else spec.stride_frames - 1)).all()
        if spec.sampling == "stride":
            assert (np.diff(numbers) == spec.stride_frames).all()
    again, _ = train_indices(count, spec, generator(seed), (first, end))
    assert np.array_equal(numbers, again)


@given(SPECS, st.integers(1, 400), st.integers(1, 7))
def test_views_go_from_the_first_window_to_the_last(spec: ClipSpec, count: int, clips: int) -> None:
    views = view_indices(count, spec, clips)
    assert len(views) == clips
    for numbers, padded in views:
        assert numbers.shape == (spec.frames,) and numbers.min() >= 0 and numbers.max() < count
        assert padded == (count < span_frames(spec))
    starts = [numbers[0] for numbers, _ in views]
    assert starts == sorted(starts)
    if spec.sampling != "segments" and count >= span_frames(spec):
        spare = count - span_frames(spec)
        if clips == 1:
            assert starts == [spare // 2]
        else:
            assert starts[0] == 0 and starts[-1] == spare
            assert np.ptp(np.diff(starts)) <= 1


@given(SPECS, st.integers(1, 200), st.integers(1, 5), st.integers(0, 50))
def test_a_part_of_a_file_is_sampled_like_a_file(spec: ClipSpec, count: int, clips: int, first: int) -> None:
    whole = view_indices(count, spec, clips)
    part = view_indices(first + count + 9, spec, clips, (first, first + count))
    for (numbers, padded), (shifted, padded_too) in zip(whole, part, strict=True):
        assert np.array_equal(numbers + first, shifted) and padded == padded_too


def test_every_start_and_every_frame_of_a_segment_is_reached() -> None:
    spec = ClipSpec(sampling="stride", frames=4, stride_frames=2)
    starts = {int(train_indices(12, spec, generator(seed))[0][0]) for seed in range(200)}
    assert starts == {0, 1, 2, 3, 4, 5}
    segments = ClipSpec(sampling="segments", frames=3)
    seen = np.stack([train_indices(9, segments, generator(seed))[0] for seed in range(200)])
    assert [set(column.tolist()) for column in seen.T] == [{0, 1, 2}, {3, 4, 5}, {6, 7, 8}]
