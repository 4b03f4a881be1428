"""What moves in a clip, without what stands still: for few videos whose scenes would otherwise be learnt by heart.

T frames, C colours, H height, W width.
"""

import torch
from torch import Tensor

GREY = 128.0  # what a pixel that never changes becomes
SPREAD = 32.0  # uint8 steps of one standard deviation: four of them fit on either side of grey
NOISE = 4.0  # added to the standard deviation, in uint8 steps, so that a still clip does not become a picture of its noise


def subtract_background(frames: Tensor) -> Tensor:
    """uint8 (...,T,C,H,W) of each clip's deviation from its own mean frame: 128 + 32 * (x - mean_T x) / (std + 4).

    std is that of the whole clip's deviations, so brightness and contrast of the scene no longer count. Temporal-mean
    background subtraction, the simplest of its kind (Piccardi 2004, "Background subtraction techniques: a review", section 2).
    """
    deviation = frames.float()
    deviation = deviation - deviation.mean(dim=-4, keepdim=True)
    scale = SPREAD / (deviation.square().mean(dim=(-4, -3, -2, -1), keepdim=True).sqrt() + NOISE)
    return (deviation * scale + GREY).round_().clamp_(0, 255).to(torch.uint8)
