"""The one place where frames stop being uint8."""

import torch
from torch import Tensor


def normalize(values: Tensor, mean: tuple[float, ...], std: tuple[float, ...], colour_dim: int = -1) -> Tensor:
    """float32 `(values / 255 - mean) / std`; values 0..255 (uint8, or float after mixup) of any shape.

    Along `colour_dim` the colours lie one after another, as often as they fit: a flattened patch may be given as it is.
    """
    shape, often = [1] * values.ndim, values.shape[colour_dim] // len(mean)
    shape[colour_dim] = len(mean) * often
    # Filled where the values are: a tensor copied from here would wait for the GPU in every step.
    mean_, std_ = (
        torch.stack([torch.full((), x, device=values.device) for x in each]).repeat(often).view(shape) for each in (mean, std)
    )
    return (values.float() / 255).sub_(mean_).div_(std_)
