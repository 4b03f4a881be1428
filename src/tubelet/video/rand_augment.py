"""RandAugment for clips: a few random image operations, the same ones with the same strength on every frame.

arXiv 1909.13719, with timm's notation and "increasing" strengths. Statistics (autocontrast, equalize, contrast) are
taken over the whole clip, so that a varied clip does not flicker. Where each value only depends on itself, the
operation is a table of 256 values. uint8 (T,C,H,W) in and out.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.errors import ConfigError

PROBABILITY = 0.5  # of each chosen operation, as in timm
MAX_MAGNITUDE = 10.0
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in every "convert to grey"


@dataclass(frozen=True)
class RandAugmentConfig:
    """`operations` per clip, each of strength `magnitude` (0..10) plus normal noise of `magnitude_std`."""

    magnitude: float
    operations: int
    magnitude_std: float


def parse(text: str) -> RandAugmentConfig:
    """`"m7-n4-mstd0.5"` (timm's notation; a leading `rand-` and `inc1` are allowed) as numbers; ConfigError
    otherwise."""
    values = {"m": 9.0, "n": 2.0, "mstd": 0.0, "inc": 1.0}
    for part in text.removeprefix("rand-").split("-"):
        match = re.fullmatch(r"(mstd|inc|m|n)(\d+(?:\.\d+)?)", part)
        if match is None:
            raise ConfigError(f"augment.rand_augment is {text!r}: {part!r} is not understood; write it like 'm7-n4-mstd0.5'")
        values[match[1]] = float(match[2])
    if values["m"] > MAX_MAGNITUDE or values["n"] != int(values["n"]) or values["n"] < 1 or values["inc"] != 1:
        raise ConfigError(f"augment.rand_augment is {text!r}: m must be 0 to 10, n a whole number from 1, inc (if given) 1")
    return RandAugmentConfig(values["m"], int(values["n"]), values["mstd"])


def rand_augment(frames: Tensor, text: str, fill: tuple[float, ...], generator: torch.Generator) -> Tensor:
    """`frames` after the operations that `text` asks for; `fill` (per colour, 0..1) is what moves in at the borders."""
    config = parse(text)
    fill_ = torch.tensor(fill).view(3, 1, 1) * 255
    names = list(OPERATIONS)
    for choice in torch.randint(len(names), (config.operations,), generator=generator).tolist():
        use, sign = torch.rand(2, generator=generator).tolist()
        magnitude = config.magnitude + config.magnitude_std * float(torch.randn((), generator=generator))
        level = min(max(magnitude, 0.0), MAX_MAGNITUDE) / MAX_MAGNITUDE
        if use < PROBABILITY:
            frames = OPERATIONS[names[choice]](frames, level, 1 if sign < 0.5 else -1, fill_)
    return frames


def autocontrast(frames: Tensor) -> Tensor:
    """Each colour stretched so that the clip's darkest value is 0 and its brightest 255."""
    values = torch.arange(256, dtype=torch.float64)
    tables = []
    for c in range(3):
        low, high = int(frames[:, c].min()), int(frames[:, c].max())
        tables.append(torch.floor((values - low) * (255 / (high - low))) if high > low else values)
    return look_up(frames, torch.stack(tables))


def equalize(frames: Tensor) -> Tensor:
    """Each colour with a flat histogram over the clip (Pillow's ImageOps.equalize)."""
    tables = []
    for c in range(3):
        counts = torch.from_numpy(np.bincount(frames[:, c].numpy().ravel(), minlength=256))
        used = counts[counts > 0]
        step = int((counts.sum() - used[-1]) // 255)
        flat = len(used) < 2 or step == 0
        tables.append(torch.arange(256) if flat else (counts.cumsum(0) - counts + step // 2) // step)
    return look_up(frames, torch.stack(tables))


def invert(frames: Tensor) -> Tensor:
    return 255 - frames


def posterize(frames: Tensor, bits: int) -> Tensor:
    """Only the top `bits` bits of each value."""
    return frames & (0xFF << (8 - bits) & 0xFF)


def solarize(frames: Tensor, threshold: int) -> Tensor:
    """Values from `threshold` up are inverted."""
    values = torch.arange(256)
    return look_up(frames, torch.where(values >= threshold, 255 - values, values))


def solarize_add(frames: Tensor, add: int) -> Tensor:
    """Values below 128 get `add`."""
    values = torch.arange(256)
    return look_up(frames, torch.where(values < 128, values + add, values))


def contrast(frames: Tensor, factor: float) -> Tensor:
    """Away from (factor above 1) or towards the mean grey of the clip."""
    return look_up(frames, torch.lerp(torch.tensor(float(round(mean_grey(frames)))), torch.arange(256.0), factor).round())


def brightness(frames: Tensor, factor: float) -> Tensor:
    return look_up(frames, (torch.arange(256) * factor).round())


def saturation(frames: Tensor, factor: float) -> Tensor:
    """Away from (factor above 1) or towards each pixel's own grey."""
    return mix_colours(frames, saturation_matrix(factor))


def sharpness(frames: Tensor, factor: float) -> Tensor:
    """Blend with a 3x3 smoothed copy (Pillow's SMOOTH kernel; borders as they are)."""
    if min(frames.shape[-2:]) < 3:
        return frames
    kernel = torch.tensor([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]]) / 13
    channels = frames.shape[1]
    values = frames.float()
    smooth = F.conv2d(values, kernel.expand(channels, 1, 3, 3), groups=channels).round_()
    out = frames.clone()
    out[..., 1:-1, 1:-1] = _uint8(smooth.lerp_(values[..., 1:-1, 1:-1], factor))
    return out


def affine(frames: Tensor, matrix: tuple[tuple[float, float, float], tuple[float, float, float]], fill: Tensor) -> Tensor:
    """Bilinear warp: output pixel (x, y), counted from the centre, shows input pixel matrix @ (x, y, 1); `fill`
    outside."""
    height, width = frames.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    places = torch.stack([x, y, torch.ones_like(x)], -1) @ torch.tensor(matrix).T  # (H,W,2)
    places = places * 2 / torch.tensor([width, height])  # pixels -> the -1..1 of grid_sample(align_corners=False)
    grid = places.expand(len(frames), -1, -1, -1)
    moved = F.grid_sample(frames.float().sub_(fill), grid, align_corners=False)  # outside is 0, which then becomes fill
    return _uint8(moved.add_(fill))


def rotate(frames: Tensor, degrees: float, fill: Tensor) -> Tensor:
    """Counter-clockwise about the centre."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return affine(frames, ((cos, -sin, 0.0), (sin, cos, 0.0)), fill)


def look_up(frames: Tensor, table: Tensor) -> Tensor:
    """`table[value]` for every value: one table (256,) or one per colour (3,256), clipped to 0..255."""
    tables = table.clamp(0, 255).to(torch.uint8).numpy()
    values = frames.numpy()
    if tables.ndim == 1:
        return torch.from_numpy(np.take(tables, values))
    out = torch.empty_like(frames)
    for c in range(3):
        out[:, c] = torch.from_numpy(np.take(tables[c], values[:, c]))
    return out


def mix_colours(frames: Tensor, matrix: Tensor, offset: float = 0.0) -> Tensor:
    """`matrix` (3,3) times the colours of each pixel, plus `offset`; rounded and clipped."""
    pixels = frames.permute(0, 2, 3, 1).reshape(-1, 3).float() @ matrix.T
    return _uint8(pixels.add_(offset)).view(len(frames), *frames.shape[-2:], 3).permute(0, 3, 1, 2)


def saturation_matrix(factor: float) -> Tensor:
    """(3,3) that moves colours away from (factor above 1) or towards their grey."""
    return torch.lerp(torch.tensor(LUMA).expand(3, 3), torch.eye(3), factor)


def mean_grey(frames: Tensor) -> float:
    """Mean luma of a clip. Summed in whole numbers, so that the number of threads cannot change it."""
    sums = [int(frames[:, c].sum()) for c in range(3)]
    return sum(weight * total for weight, total in zip(LUMA, sums, strict=True)) * 3 / frames.numel()


def _uint8(values: Tensor) -> Tensor:
    """Rounded and clipped in place, then uint8."""
    return values.round_().clamp_(0, 255).to(torch.uint8)


# name -> (frames, level 0..1, sign, fill) -> frames. Ranges are timm's: 30 degrees, shear 0.3, shift 0.45 of the side,
# colour factors 1 +- 0.9, down to no bits and threshold 0; with its "increasing" strengths.
OPERATIONS: dict[str, Callable[[Tensor, float, int, Tensor], Tensor]] = {
    "autocontrast": lambda x, level, sign, fill: autocontrast(x),
    "equalize": lambda x, level, sign, fill: equalize(x),
    "invert": lambda x, level, sign, fill: invert(x),
    "rotate": lambda x, level, sign, fill: rotate(x, sign * 30 * level, fill),
    "posterize": lambda x, level, sign, fill: posterize(x, 4 - int(4 * level)),
    "solarize": lambda x, level, sign, fill: solarize(x, 256 - min(256, int(256 * level))),
    "solarize_add": lambda x, level, sign, fill: solarize_add(x, min(128, int(110 * level))),
    "saturation": lambda x, level, sign, fill: saturation(x, 1 + sign * 0.9 * level),
    "contrast": lambda x, level, sign, fill: contrast(x, 1 + sign * 0.9 * level),
    "brightness": lambda x, level, sign, fill: brightness(x, 1 + sign * 0.9 * level),
    "sharpness": lambda x, level, sign, fill: sharpness(x, 1 + sign * 0.9 * level),
    "shear_x": lambda x, level, sign, fill: affine(x, ((1.0, sign * 0.3 * level, 0.0), (0.0, 1.0, 0.0)), fill),
    "shear_y": lambda x, level, sign, fill: affine(x, ((1.0, 0.0, 0.0), (sign * 0.3 * level, 1.0, 0.0)), fill),
    "translate_x": lambda x, level, sign, fill: affine(
        x, ((1.0, 0.0, sign * 0.45 * level * x.shape[-1]), (0.0, 1.0, 0.0)), fill
    ),
    "translate_y": lambda x, level, sign, fill: affine(
        x, ((1.0, 0.0, 0.0), (0.0, 1.0, sign * 0.45 * level * x.shape[-2])), fill
    ),
}
