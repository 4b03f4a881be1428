"""Mixup and CutMix: targets must say exactly what the pixels show."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tubelet.errors import ConfigError
from tubelet.train.mixup import mix


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_value_clips(count: int) -> torch.Tensor:
    """Clip i has the value 10*i everywhere: what it was mixed with can be read off."""
    return (torch.arange(count, dtype=torch.uint8) * 10).view(-1, 1, 1, 1, 1).expand(-1, 2, 3, 20, 30).contiguous()


def test_without_mixing_targets_are_those_of_cross_entropy_with_smoothing():
    labels, logits = torch.tensor([0, 2, 1]), torch.randn(3, 4, generator=generator())
    frames = one_value_clips(3)
    same, targets = mix(frames, labels, 4, 0.0, 0.0, 0.1, generator())
    assert same is frames
    ours, theirs = F.cross_entropy(logits, targets), F.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(ours, theirs)


@given(st.integers(2, 6), st.floats(0.1, 3), st.integers(0, 999))
def test_mixup_targets_are_the_shares_of_the_pixels(count, alpha, seed):
    labels = torch.arange(count)
    frames, targets = mix(one_value_clips(count), labels, count, alpha, 0.0, 0.0, generator(seed))
    assert frames.is_floating_point()
    values = frames[:, 0, 0, 0, 0]
    torch.testing.assert_close(frames, values.view(-1, 1, 1, 1, 1).expand_as(frames))
    torch.testing.assert_close(values, targets @ (10.0 * labels.float()), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(targets.sum(1), torch.ones(count))
    assert (targets > 0).sum(1).max() <= 2


@given(st.integers(2, 6), st.floats(0.1, 3), st.integers(0, 999))
def test_cutmix_targets_are_the_areas_and_the_box_stands_still(count, alpha, seed):
    labels = torch.arange(count)
    source = one_value_clips(count)
    frames, targets = mix(source, labels, count, 0.0, alpha, 0.0, generator(seed))
    assert frames.dtype == torch.uint8
    assert torch.equal(frames, frames[:, :1, :1].expand_as(frames)), "the box differs between frames or colours"
    area = torch.stack([(frames[:, 0, 0] == 10 * i).float().mean((1, 2)) for i in range(count)], 1)
    torch.testing.assert_close(targets, area)
    assert torch.equal(source, one_value_clips(count))


def test_with_both_each_batch_takes_one_and_the_generator_decides():
    frames, labels = one_value_clips(4), torch.arange(4)
    kinds = [mix(frames, labels, 4, 0.8, 1.0, 0.1, generator(seed))[0].dtype for seed in range(60)]
    assert 15 < kinds.count(torch.uint8) < 45 and set(kinds) == {torch.uint8, torch.float32}
    first, again = (mix(frames, labels, 4, 0.8, 1.0, 0.1, generator(7)) for _ in range(2))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


def test_a_batch_of_one_is_not_mixed_and_none_is_fine():
    for count in (0, 1):
        frames, targets = mix(one_value_clips(count), torch.zeros(count, dtype=torch.int64), 3, 0.8, 1.0, 0.0, generator())
        assert len(frames) == count and targets.shape == (count, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [((-1.0, 0.0, 0.0), "mixup is -1"), ((0.0, -1.0, 0.0), "cutmix is -1"), ((0, 0, 1.0), "below 1")],
)
def test_impossible_strengths_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        mix(one_value_clips(2), torch.arange(2), 2, *settings, generator())
