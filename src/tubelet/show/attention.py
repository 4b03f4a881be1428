"""Where a model looks: the attention every tubelet receives in the last block, laid over the frames.

N tokens, T frames, C colours, H height, W width.
"""

import math
from inspect import signature

import torch
from matplotlib import colormaps
from torch import Tensor

from tubelet.models._model import Model
from tubelet.show._sheet import Row, pick, sheet, to_png

MOST_TOKENS = 2048  # whose weights are held at once: 270 MB with 16 heads


def can_be_shown(model: Model) -> bool:
    """Whether the model gives its attention on request, and for few enough tokens."""
    if "attention" not in signature(model.forward).parameters:
        return False
    spec = model.spec
    return math.prod(model.grid_of(spec.frames, spec.size, spec.size)) <= MOST_TOKENS


@torch.no_grad()
def received(model: Model, frames: Tensor) -> Tensor:
    """float (slots, rows, columns): mean attention each token receives, over heads and asking tokens; sums to 1.

    frames uint8 (T,C,H,W) of a model whose attention `can_be_shown`.
    """
    was_training = model.training
    model.eval()
    out = model(frames[None].to(next(model.parameters()).device), attention=True)
    model.train(was_training)
    grid = model.grid_of(frames.shape[0], frames.shape[2], frames.shape[3], frames.shape[1])
    return out["attention"][0].float().cpu().mean(dim=(0, 1)).view(grid)


def overlay(frames: Tensor, weights: Tensor, strength: float = 0.6) -> Tensor:
    """uint8 (T,C,H,W): frames darkened where little attention falls and tinted where much does.

    weights float (slots, rows, columns), stretched between their 2nd and 98th percentile over the clip.
    """
    low, high = weights.flatten().quantile(torch.tensor([0.02, 0.98]))
    scaled = ((weights - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    smooth = torch.nn.functional.interpolate(
        scaled[None, None], size=(frames.shape[0], *frames.shape[2:]), mode="trilinear", align_corners=False
    )[0, 0]
    tint = torch.from_numpy(colormaps["inferno"](smooth.numpy())[..., :3]).permute(0, 3, 1, 2).float() * 255
    return (frames.float() * (1 - strength) + tint * strength).round().clamp(0, 255).byte()


def attention(model: Model, frames: Tensor, shown: int = 8) -> bytes:
    """PNG: the clip, and under it the clip with the attention of the last block laid over it."""
    chosen = pick(len(frames), shown)
    tinted = overlay(frames, received(model, frames))
    rows = [
        Row(frames[chosen], "the clip"),
        Row(tinted[chosen], "attention received", "last block, mean over heads and queries"),
    ]
    return to_png(sheet(rows))
