"""Frames of one clip -> the square uint8 frames the model sees: random crops and colours in training, fixed crops in
evaluation.

Every frame of a clip gets the same parameters, so motion stays what it was. Everything stays uint8; pixels become
numbers in `video/normalize.py` only. T frames, C colours, H height, W width.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tubelet.errors import ConfigError
from tubelet.find import choose
from tubelet.records import ClipSpec
from tubelet.video import rand_augment
from tubelet.video.background import subtract_background
from tubelet.video.resize import Box

Crop = Literal["random_resized", "multi_scale", "center"]

MULTI_SCALES = (1.0, 0.875, 0.75, 0.66)  # sides of TSN's crops, in short sides (arXiv 1705.02953, section 3.2.3)
ERASE_AREA = (0.02, 1 / 3)  # of the frame; random erasing, arXiv 1708.04896
ERASE_RATIO = (0.3, 1 / 0.3)


@dataclass(frozen=True)
class AugmentConfig:
    """How a training clip is varied.

    crop          "random_resized" (any area and shape, see scale and ratio), "multi_scale" (corners and centre, four sizes)
                  or "center" (the evaluation crop)
    scale, ratio  area of a random_resized crop as a share of the frame; its width over its height
    flip          mirror half of the clips; only where a mirrored clip keeps its label
    color_jitter  strength of brightness, contrast and saturation changes, 0 to 1
    rand_augment  "" or timm's notation, e.g. "m7-n4-mstd0.5" (see `rand_augment.parse`)
    erase         share of the clips in which a rectangle is replaced by noise
    """

    crop: Crop = "random_resized"
    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = False
    color_jitter: float = 0.0
    rand_augment: str = ""
    erase: float = 0.0

    def __post_init__(self) -> None:
        choose(self.crop, ("random_resized", "multi_scale", "center"), "augment.crop")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"augment.scale is {self.scale}: it must be two rising shares of the frame, above 0 and up to 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(f"augment.ratio is {self.ratio}: it must be two rising width/height ratios above 0")
        for name in ("color_jitter", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augment.{name} is {getattr(self, name)}: it must lie between 0 and 1")
        if self.rand_augment:
            rand_augment.parse(self.rand_augment)


def draw_box(height: int, width: int, config: AugmentConfig, spec: ClipSpec, generator: torch.Generator) -> Box:
    """The part of a frame that a training clip shows, squeezed into the square."""
    if config.crop == "random_resized":
        return random_resized_box(height, width, config.scale, config.ratio, generator)
    if config.crop == "multi_scale":
        return multi_scale_box(height, width, generator)
    return view_boxes(height, width, spec, 1)[0]


def vary(frames: Tensor, config: AugmentConfig, spec: ClipSpec, generator: torch.Generator) -> Tensor:
    """uint8 (T,C,size,size) of the same: flip, RandAugment, colour jitter, background, erasing, in this order."""
    if config.flip and _uniform(0, 1, generator) < 0.5:
        frames = frames.flip(-1)
    if config.rand_augment:
        frames = rand_augment.rand_augment(frames, config.rand_augment, spec.mean, generator)
    if config.color_jitter:
        frames = color_jitter(frames, config.color_jitter, generator)
    if spec.background == "subtract":
        frames = subtract_background(frames)
    if config.erase and _uniform(0, 1, generator) < config.erase:
        frames = erase(frames, spec, generator)
    return frames


def view_boxes(height: int, width: int, spec: ClipSpec, crops: int) -> list[Box]:
    """The parts of a frame that evaluation looks at: `crops` squares, spread evenly along the long side; one is the centre.

    With `fit="stretch"` the whole frame is squeezed into the square, so every view is the same and only `crops=1` makes sense:
    ConfigError otherwise.
    """
    if crops < 1:
        raise ConfigError(f"{crops} crops per clip: there must be 1 or more")
    if spec.fit == "stretch":
        if crops > 1:
            raise ConfigError(f"{crops} crops per clip, but clip.fit is 'stretch', which has one view: ask for 1 crop")
        return [(0, 0, height, width)]
    side = min(height, width)
    shares = [0.5] if crops == 1 else [i / (crops - 1) for i in range(crops)]
    return [(round((height - side) * share), round((width - side) * share), side, side) for share in shares]


def cached_short_side(spec: ClipSpec, config: AugmentConfig) -> int:
    """Short side in pixels to keep decoded videos at, so that memory stays small and (nearly) no crop has to be enlarged.

    A random_resized crop of the smallest area is about sqrt(scale[0]) of the short side wide.
    """
    if config.crop == "center":
        return spec.size
    share = math.sqrt(config.scale[0]) if config.crop == "random_resized" else MULTI_SCALES[-1]
    return math.ceil(spec.size / share)


def random_resized_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator
) -> Box:
    """(top, left, height, width) of a box of random area and log-uniform shape; the largest centred one if ten tries
    miss.

    The Inception crop (arXiv 1409.4842, section 6), as in torchvision's RandomResizedCrop.
    """
    for _ in range(10):
        area = height * width * _uniform(*scale, generator)
        shape = math.exp(_uniform(math.log(ratio[0]), math.log(ratio[1]), generator))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            return _integer(height - h + 1, generator), _integer(width - w + 1, generator), h, w
    shape = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, round(height * shape)), min(height, round(width / shape))
    w, h = max(w, 1), max(h, 1)
    return (height - h) // 2, (width - w) // 2, h, w


def multi_scale_box(height: int, width: int, generator: torch.Generator) -> Box:
    """(top, left, height, width): sides from MULTI_SCALES at most one step apart, at a corner or the centre (TSN)."""
    sides = [max(1, round(min(height, width) * scale)) for scale in MULTI_SCALES]
    pairs = [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    h, w = pairs[_integer(len(pairs), generator)]
    places = [(0, 0), (0, width - w), (height - h, 0), (height - h, width - w), ((height - h) // 2, (width - w) // 2)]
    return *places[_integer(len(places), generator)], h, w


def color_jitter(frames: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation each times a factor from [1-strength, 1+strength]; uint8 (T,C,H,W).

    Contrast turns about the mean grey of the whole clip, so that it does not flicker. All three are linear in the
    colours: they become one matrix, and values are clipped once, at the end.
    """
    brightness, contrast, saturation = (_uniform(1 - strength, 1 + strength, generator) for _ in range(3))
    matrix = rand_augment.saturation_matrix(saturation) * (brightness * contrast)
    offset = (1 - contrast) * brightness * rand_augment.mean_grey(frames)
    return rand_augment.mix_colours(frames, matrix, offset)


def erase(frames: Tensor, spec: ClipSpec, generator: torch.Generator) -> Tensor:
    """The clip with one rectangle, the same in every frame, filled with noise that has the clip spec's mean and std."""
    height, width = frames.shape[-2:]
    top, left, h, w = random_resized_box(height, width, ERASE_AREA, ERASE_RATIO, generator)
    noise = torch.randn(3, h, w, generator=generator)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    frames = frames.clone()
    frames[..., top : top + h, left : left + w] = ((mean + std * noise) * 255).round().clamp(0, 255).to(torch.uint8)
    return frames


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), dtype=torch.float64, generator=generator).item()


def _integer(count: int, generator: torch.Generator) -> int:
    """One of 0..count-1."""
    return int(torch.randint(count, (), generator=generator))
