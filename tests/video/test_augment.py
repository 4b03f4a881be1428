"""Crops, colours and RandAugment of clips: against Pillow where Pillow does the same, and properties elsewhere."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from tubelet.errors import ConfigError
from tubelet.records import ClipSpec
from tubelet.video import rand_augment as ra
from tubelet.video.augment import (
    MULTI_SCALES,
    AugmentConfig,
    cached_short_side,
    color_jitter,
    draw_box,
    multi_scale_box,
    random_resized_box,
    vary,
    view_boxes,
)
from tubelet.video.resize import cut, resize

EVERYTHING = AugmentConfig(flip=True, color_jitter=0.4, rand_augment="m7-n4-mstd0.5", erase=0.5)
CONFIGS = {
    "random_resized": AugmentConfig(),
    "multi_scale": AugmentConfig(crop="multi_scale"),
    "center": AugmentConfig(crop="center"),
    "everything": EVERYTHING,
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(seed: int = 0, height: int = 60, width: int = 80) -> torch.Tensor:
    """A smooth coloured picture with a sharp square, uint8 (3,H,W)."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    phase = torch.rand(3, 1, 1, generator=generator(seed)) * 6
    values = 0.5 + 0.4 * torch.sin(phase + 7 * x + 5 * y)
    values[:, height // 4 : height // 2, width // 4 : width // 2] *= 0.3
    return (values * 255).to(torch.uint8)


def clip(frames: int = 4, **size: int) -> torch.Tensor:
    return torch.stack([picture(seed, **size) for seed in range(frames)])


def as_pil(frame: torch.Tensor) -> Image.Image:
    return Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())


def from_pil(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def augment(frames: torch.Tensor, config: AugmentConfig, spec: ClipSpec, chance: torch.Generator) -> torch.Tensor:
    """A training clip of decoded frames, as the loader makes it: a drawn box, resized, varied."""
    box = draw_box(*frames.shape[-2:], config, spec, chance)
    return vary(resize(cut(frames, box), (spec.size, spec.size), spec.interpolation), config, spec, chance)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_a_clip_becomes_a_square_and_equal_frames_stay_equal(name, fit):
    spec = ClipSpec(frames=5, size=32, fit=fit)
    still = picture(1)[None].expand(5, -1, -1, -1)
    for seed in range(20):
        out = augment(still, CONFIGS[name], spec, generator(seed))
        assert out.dtype == torch.uint8 and out.shape == (5, 3, 32, 32)
        assert torch.equal(out, out[:1].expand_as(out)), "frames of one clip got different parameters"


@pytest.mark.parametrize("name", CONFIGS)
def test_the_generator_decides_everything_and_the_source_is_left_alone(name):
    spec, frames = ClipSpec(frames=4, size=32), clip()
    before = frames.clone()
    torch.manual_seed(1)
    first = augment(frames, CONFIGS[name], spec, generator(3))
    torch.manual_seed(2)
    assert torch.equal(first, augment(frames, CONFIGS[name], spec, generator(3)))
    assert torch.equal(frames, before)
    if name != "center":
        assert not all(torch.equal(first, augment(frames, CONFIGS[name], spec, generator(seed))) for seed in range(4, 8))


def test_memory_order_changes_no_pixel():
    frames = clip()
    other = frames.contiguous(memory_format=torch.channels_last)
    for interpolation in ("bilinear", "bicubic", "area"):
        spec = ClipSpec(frames=4, size=33, interpolation=interpolation)
        for seed in range(5):
            ours = augment(frames, EVERYTHING, spec, generator(seed))
            assert torch.equal(ours, augment(other, EVERYTHING, spec, generator(seed)))


@given(st.integers(1, 400), st.integers(1, 400), st.floats(0.01, 1), st.floats(1, 4), st.integers(0, 999))
def test_boxes_lie_inside_the_frame(height, width, scale, ratio, seed):
    boxes = [
        random_resized_box(height, width, (scale, 1.0), (1 / ratio, ratio), generator(seed)),
        multi_scale_box(height, width, generator(seed)),
    ]
    for top, left, h, w in boxes:
        assert h >= 1 and w >= 1 and 0 <= top <= height - h and 0 <= left <= width - w


def test_random_resized_boxes_have_the_area_and_shape_asked_for():
    boxes = [random_resized_box(480, 640, (0.2, 0.8), (3 / 4, 4 / 3), generator(seed)) for seed in range(1000)]
    areas = torch.tensor([h * w / (480 * 640) for _, _, h, w in boxes])
    shapes = torch.tensor([w / h for _, _, h, w in boxes]).log()
    assert 0.19 < areas.min() < 0.22 and 0.75 < areas.max() < 0.81
    assert shapes.abs().max() < math.log(4 / 3) + 0.02 and abs(shapes.mean()) < 0.03


def test_multi_scale_boxes_are_tsns():
    boxes = {multi_scale_box(100, 200, generator(seed)) for seed in range(2000)}
    sides = [round(100 * scale) for scale in MULTI_SCALES]
    assert {h for _, _, h, _ in boxes} == set(sides)
    steps = {abs(sides.index(h) - sides.index(w)) for _, _, h, w in boxes}
    assert steps == {0, 1}
    assert len({(h, w) for _, _, h, w in boxes}) == 10
    assert len(boxes) > 40


def test_one_crop_is_the_centre_and_three_go_from_end_to_end():
    spec = ClipSpec(frames=2, size=32)
    assert view_boxes(32, 64, spec, 1) == [(0, 16, 32, 32)]
    assert view_boxes(32, 64, spec, 3) == [(0, 0, 32, 32), (0, 16, 32, 32), (0, 32, 32, 32)]
    assert view_boxes(64, 32, spec, 3) == [(0, 0, 32, 32), (16, 0, 32, 32), (32, 0, 32, 32)]
    assert view_boxes(50, 50, spec, 2) == [(0, 0, 50, 50)] * 2


@given(st.integers(8, 120), st.integers(8, 120), st.integers(1, 5))
def test_views_of_any_frame_are_squares_inside_it(height, width, crops):
    boxes = view_boxes(height, width, ClipSpec(), crops)
    assert len(boxes) == crops
    for top, left, h, w in boxes:
        assert h == w == min(height, width) and 0 <= top <= height - h and 0 <= left <= width - w


def test_stretch_shows_the_whole_frame_and_has_one_view():
    spec = ClipSpec(frames=1, size=16, fit="stretch")
    assert view_boxes(48, 96, spec, 1) == [(0, 0, 48, 96)]
    with pytest.raises(ConfigError, match="'stretch', which has one view"):
        view_boxes(48, 96, spec, 3)


@pytest.mark.parametrize("size", [(32, 32), (90, 120), (17, 50)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resizing_agrees_with_pillow(interpolation, size):
    frames = clip(2)
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    wanted = torch.stack([from_pil(as_pil(frame).resize(size[::-1], method)) for frame in frames])
    ours = resize(frames, size, interpolation)
    assert (ours.int() - wanted.int()).abs().max() <= (1 if interpolation == "bilinear" else 3)


def test_the_cached_size_is_enough_for_the_smallest_crop():
    assert cached_short_side(ClipSpec(size=224), AugmentConfig(crop="center")) == 224
    assert cached_short_side(ClipSpec(size=64), AugmentConfig(scale=(0.5, 1.0))) == 91
    assert cached_short_side(ClipSpec(size=224), AugmentConfig(crop="multi_scale")) * MULTI_SCALES[-1] >= 224


def test_flip_mirrors_about_half_of_the_clips():
    frames, spec = clip(2, height=32, width=32), ClipSpec(frames=2, size=32)
    config = AugmentConfig(crop="center", flip=True)
    outs = [augment(frames, config, spec, generator(seed)) for seed in range(200)]
    flipped = sum(torch.equal(out, frames.flip(-1)) for out in outs)
    assert flipped + sum(torch.equal(out, frames) for out in outs) == 200 and 70 < flipped < 130


def test_colour_jitter_keeps_a_grey_clip_grey_and_strength_bounds_it():
    grey = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    for seed in range(20):
        out = color_jitter(grey, 0.3, generator(seed)).int()
        assert (out - out[:, :1]).abs().max() <= 1 and out.min() >= 69 and out.max() <= 131
    assert torch.equal(color_jitter(clip(), 1e-6, generator()), clip())


def test_erasing_replaces_one_rectangle_the_same_in_every_frame():
    frames, spec = torch.zeros(3, 3, 40, 40, dtype=torch.uint8), ClipSpec(frames=3, size=40)
    config = AugmentConfig(crop="center", erase=1.0)
    for seed in range(20):
        out = augment(frames, config, spec, generator(seed))
        assert torch.equal(out, out[:1].expand_as(out))
        rows, columns = (out[0].amax(0) > 0).nonzero().T
        area = int((rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)) / 1600
        assert 0.01 < area < 0.36
    assert torch.equal(augment(frames, AugmentConfig(crop="center"), spec, generator()), frames)


PIL_TWINS = {
    "autocontrast": (ra.autocontrast, ImageOps.autocontrast),
    "equalize": (ra.equalize, ImageOps.equalize),
    "invert": (ra.invert, ImageOps.invert),
    "posterize": (lambda x: ra.posterize(x, 3), lambda i: ImageOps.posterize(i, 3)),
    "solarize": (lambda x: ra.solarize(x, 100), lambda i: ImageOps.solarize(i, 100)),
    "saturation": (lambda x: ra.saturation(x, 1.6), lambda i: ImageEnhance.Color(i).enhance(1.6)),
    "contrast": (lambda x: ra.contrast(x, 0.4), lambda i: ImageEnhance.Contrast(i).enhance(0.4)),
    "brightness": (lambda x: ra.brightness(x, 1.7), lambda i: ImageEnhance.Brightness(i).enhance(1.7)),
    "sharpness": (lambda x: ra.sharpness(x, 0.2), lambda i: ImageEnhance.Sharpness(i).enhance(0.2)),
    "rotate": (
        lambda x: ra.rotate(x, 20, torch.full((3, 1, 1), 60.0)),
        lambda i: i.rotate(20, Image.Resampling.BILINEAR, fillcolor=(60, 60, 60)),
    ),
    "translate": (
        lambda x: ra.affine(x, ((1, 0, 7.0), (0, 1, -3.0)), torch.full((3, 1, 1), 60.0)),
        lambda i: i.transform(
            i.size, Image.Transform.AFFINE, (1, 0, 7, 0, 1, -3), Image.Resampling.BILINEAR, fillcolor=(60, 60, 60)
        ),
    ),
}


@pytest.mark.parametrize("name", PIL_TWINS)
def test_operations_agree_with_pillow(name):
    ours, pillow = PIL_TWINS[name]
    for seed in range(3):
        frame = picture(seed)
        difference = (ours(frame[None])[0].int() - from_pil(pillow(as_pil(frame))).int()).abs()
        if name in ("rotate", "translate"):  # Pillow does not blend its border with the fill
            difference = difference.float().flatten(1).sort(1).values[:, : int(0.9 * 4800)]
        assert difference.max() <= 2, f"{name}: off by {int(difference.max())}"


@pytest.mark.parametrize("name", ra.OPERATIONS)
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_every_operation_keeps_shape_and_kind_and_its_source(name, level):
    frames = clip(3, height=20, width=30)
    before = frames.clone()
    for sign in (1, -1):
        out = ra.OPERATIONS[name](frames, level, sign, torch.full((3, 1, 1), 128.0))
        assert out.dtype == torch.uint8 and out.shape == frames.shape
    assert torch.equal(frames, before)
    if level == 0 and name not in ("autocontrast", "equalize", "invert", "posterize"):
        assert (out.int() - frames.int()).abs().max() <= 1, "no strength must mean no change"


@pytest.mark.parametrize("text", ["m7-n4-mstd0.5", "rand-m7-n4-mstd0.5-inc1"])
def test_timms_notation_is_read(text):
    assert ra.parse(text) == ra.RandAugmentConfig(7, 4, 0.5)


@pytest.mark.parametrize("text", ["m11", "seven", "m7-n0", "m7-n1.5", "m7-n4-mstd", "m7-inc0", "m7--n2"])
def test_what_is_not_its_notation_is_an_error_that_shows_it(text):
    with pytest.raises(ConfigError, match=r"rand_augment is .*(written|write it like|must be 0 to 10)"):
        AugmentConfig(rand_augment=text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": "centre"}, "did you mean 'center'"),
        ({"scale": (0.0, 1.0)}, "two rising shares"),
        ({"scale": (0.9, 0.5)}, "two rising shares"),
        ({"ratio": (2.0, 1.0)}, "two rising width/height"),
        ({"color_jitter": 1.5}, "between 0 and 1"),
        ({"erase": -0.1}, "between 0 and 1"),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        AugmentConfig(**settings)
