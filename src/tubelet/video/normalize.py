"""The one place where frames stop being uint8."""

import torch
from torch import Tensor


def normalize(values: Tensor, mean: tuple[float, ...], std: tuple[float, ...], colour_dim: int = -1) -> Tensor:
    """float32 `(values / 255 - mean) / std` along `colour_dim`; values 0..255 (uint8, or float after mixup) of any shape."""
    shape = [1] * values.ndim
    shape[colour_dim] = len(mean)
    mean_ = torch.tensor(mean, dtype=torch.float32, device=values.device).view(shape)
    std_ = torch.tensor(std, dtype=torch.float32, device=values.device).view(shape)
    return (values.float() / 255 - mean_) / std_
