"""What moves without what stands still: against a numpy formula, and that the scene and its light leave no trace."""

import dataclasses

import numpy as np
import pytest
import torch

from tubelet.errors import ConfigError
from tubelet.records import ClipSpec
from tubelet.video.augment import AugmentConfig, vary
from tubelet.video.background import subtract_background
from tubelet.views import load_views


def moving_square(scene: torch.Tensor, frames: int = 8, gain: float = 1.0) -> torch.Tensor:
    """uint8 (T,3,32,32): a square that crosses `scene`, lit `gain` times as brightly."""
    clip = scene.expand(frames, 3, 32, 32).clone()
    for t in range(frames):
        clip[t, :, 12:20, 3 * t : 3 * t + 6] += 60
    return (clip * gain).to(torch.uint8)


def flat(value: float) -> torch.Tensor:
    return torch.full((1, 3, 32, 32), value)


def test_it_is_the_formula():
    clips = torch.randint(0, 256, (2, 5, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for ours, clip in zip(subtract_background(clips), clips.numpy().astype(np.float64), strict=True):
        deviation = clip - clip.mean(axis=0)
        wanted = np.clip(np.round(128 + 32 * deviation / (np.sqrt((deviation**2).mean()) + 4)), 0, 255)
        assert np.abs(ours.numpy() - wanted).max() <= 1  # float32 may round a half the other way
        assert (ours.numpy() == wanted).mean() > 0.999


def test_neither_scene_nor_light_is_left():
    stripes = flat(40) + 50 * (torch.arange(32) % 8 < 4)
    reference = subtract_background(moving_square(flat(40))).int()
    assert (subtract_background(moving_square(stripes)).int() - reference).abs().max() <= 1
    assert (subtract_background(moving_square(flat(90))).int() - reference).abs().max() <= 1
    darker = subtract_background(moving_square(flat(40), gain=0.5)).int()
    assert (darker - reference).abs().float().mean() < 0.1 * (reference - 128).abs().float().mean() + 2


def test_a_still_clip_is_grey_and_its_noise_stays_small():
    assert (subtract_background(flat(77).to(torch.uint8).expand(6, 3, 32, 32)) == 128).all()
    noise = torch.randint(100, 103, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert (subtract_background(noise).int() - 128).abs().max() <= 16


def test_training_and_evaluation_clips_have_it_subtracted_clip_by_clip(motion_folder):
    path = next((motion_folder / "val").rglob("*.mp4"))
    spec = ClipSpec(frames=4, sampling="segments", size=32)
    subtracted = dataclasses.replace(spec, background="subtract")
    views, _ = load_views(path, spec, clips=3)
    ours, _ = load_views(path, subtracted, clips=3)
    for view, ours_ in zip(views, ours, strict=True):
        assert torch.equal(ours_, subtract_background(view))
    config = AugmentConfig(flip=True, color_jitter=0.4, rand_augment="m7-n4-mstd0.5")
    for seed in range(5):
        plain, moved = (vary(views[0], config, s, torch.Generator().manual_seed(seed)) for s in (spec, subtracted))
        assert torch.equal(moved, subtract_background(plain))


def test_one_frame_has_nothing_that_moves():
    with pytest.raises(ConfigError, match=r"clip.background is 'subtract' with clip.frames 1"):
        ClipSpec(frames=1, background="subtract")
