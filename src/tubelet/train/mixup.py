"""Mixup and CutMix of a batch of clips, with the soft targets that belong to it (arXiv 1710.09412 and 1905.04899).

B clips, T frames, C colours, H height, W width, K classes.
"""

import math

import numpy as np
import torch
from torch import Tensor

from tubelet import share
from tubelet.errors import ConfigError
from tubelet.train import parallel


def mix(
    frames: Tensor,
    labels: Tensor,
    classes: int,
    mixup: float,
    cutmix: float,
    label_smoothing: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """(frames, targets): clips 0..255 (B,T,C,H,W), each blended with another of the batch, and float targets (B,K).

    `mixup` and `cutmix` are the alpha of Beta(alpha, alpha); 0 turns one off, and with both on each batch takes one or
    the other by the toss of a coin. Mixup blends whole clips (float32 out), CutMix pastes one rectangle, the same in
    every frame, and counts the share of pixels that is really pasted (uint8 out). With neither, the frames come back
    untouched. A target is `1 - label_smoothing` on the labels plus `label_smoothing / K` on every class. `generator` is
    a CPU one. Among several processes the partner may be a clip of another one: they hand each other their frames.
    """
    for name, value in (("mixup", mixup), ("cutmix", cutmix)):
        if value < 0:
            raise ConfigError(f"{name} is {value}: it is the alpha of a Beta distribution, 0 (off) or more")
    if not 0 <= label_smoothing < 1:
        raise ConfigError(f"label_smoothing is {label_smoothing}: it must be 0 or more and below 1")
    targets = torch.nn.functional.one_hot(labels, classes).float()
    targets = targets * (1 - label_smoothing) + label_smoothing / classes
    use_cutmix = cutmix > 0 and (mixup == 0 or bool(torch.rand((), generator=generator) < 0.5))
    alpha = cutmix if use_cutmix else mixup
    held = share.current(len(frames))
    count, rows = held.total, held.rows
    if alpha == 0 or count < 2:
        return frames, targets
    # A cyclic shift: every clip gets another one as partner, never itself.
    shift = 1 + int(torch.randint(count - 1, (), generator=generator))
    seed = int(torch.randint(2**62, (), generator=generator))
    kept = np.random.default_rng(seed).beta(alpha, alpha, count)[rows]  # torch has no Beta that takes a Generator
    partners = (torch.arange(count)[rows] - shift).remainder(count).to(frames.device)
    others, other_targets = (parallel.gather_clips(whole)[partners] for whole in (frames, targets))
    if use_cutmix:
        centres = torch.rand(count, 2, generator=generator)[rows].tolist()
        frames, kept = _paste(frames, others, kept, centres)
    else:
        own_share = torch.tensor(kept, dtype=torch.float32, device=frames.device).view(-1, 1, 1, 1, 1)
        frames = others.float().lerp_(frames.float(), own_share)
    own_share = torch.tensor(kept, dtype=torch.float32, device=targets.device).view(-1, 1)
    return frames, torch.lerp(other_targets, targets, own_share)


def _paste(frames: Tensor, others: Tensor, kept: np.ndarray, centres: list[list[float]]) -> tuple[Tensor, np.ndarray]:
    """Clips with a rectangle of `others` around `centres` (y, x from 0 to 1), about `1 - kept` of the area, and the share
    of pixels that stayed their own."""
    frames = frames.clone()
    height, width = frames.shape[-2:]
    shares = np.empty_like(kept)
    for i, (y, x) in enumerate(centres):
        side = math.sqrt(1 - kept[i])
        h, w, cy, cx = side * height, side * width, y * height, x * width
        top, bottom = max(0, round(cy - h / 2)), min(height, round(cy + h / 2))
        left, right = max(0, round(cx - w / 2)), min(width, round(cx + w / 2))
        frames[i, ..., top:bottom, left:right] = others[i, ..., top:bottom, left:right]
        shares[i] = 1 - (bottom - top) * (right - left) / (height * width)
    return frames, shares
