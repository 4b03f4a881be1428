"""What the convolutional families share: a batch norm that is the same on any number of processes, receptive fields and map sizes.

B batch, C channels, then time and place: (B,C,H,W) or (B,C,T,H,W).
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tubelet import share
from tubelet.models._tokens import Triple


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm of pictures or clips whose statistics are those of all processes' clips while training; keys as torch's."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        held = share.current(x.shape[0])  # len(x) would fix the batch size of an exported model
        if not self.training or len(held.counts) == 1:
            return super().forward(x)
        own = held.counts[held.rank]
        each = len(x) // max(1, own)  # rows a clip has; a blank clip counts nothing
        mine = x[: own * each].float()
        dims = [0, *range(2, x.ndim)]
        count = mine.new_tensor(mine.numel() // x.shape[1]).expand(1)
        sums = _Total.apply(torch.cat([mine.sum(dims), mine.square().sum(dims), count]))
        mean, square = sums[:-1].view(2, -1) / sums[-1]
        variance = square - mean.square()
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * sums[-1] / (sums[-1] - 1), momentum)
        shape = [1, -1] + [1] * (x.ndim - 2)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (x * scale.view(shape) + (self.bias - mean * scale).view(shape)).to(x.dtype)


class _Total(torch.autograd.Function):
    """The sum over all processes; what they all gain from it comes back to each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


def receptive_field(layers: Iterable[nn.Module]) -> Triple:
    """Frames, rows and columns of the input that one output of the last of these layers sees, which follow one another.

    Convolutions and poolings count, of pictures and of clips; every other module passes through. Global pooling has no kernel:
    leave it out, behind it everything is seen.
    """
    field, step = [1, 1, 1], [1, 1, 1]
    for layer in layers:
        if not hasattr(layer, "kernel_size"):
            continue
        kernel, stride, dilation = (_triple(layer, name) for name in ("kernel_size", "stride", "dilation"))
        for axis in range(3):
            field[axis] += (kernel[axis] - 1) * dilation[axis] * step[axis]
            step[axis] *= stride[axis]
    return field[0], field[1], field[2]


def output_size(layers: Iterable[nn.Module], size: Triple) -> Triple:
    """Frames, rows and columns that these layers, which follow one another, make of `size`; 0 or less where a kernel is larger
    than what is left. What counts is what counts for `receptive_field`."""
    for layer in layers:
        if not hasattr(layer, "kernel_size"):
            continue
        kernel, stride, dilation = (_triple(layer, name) for name in ("kernel_size", "stride", "dilation"))
        padding = _triple(layer, "padding", of_time=0)
        reach = [(k - 1) * d - 2 * p for k, d, p in zip(kernel, dilation, padding, strict=True)]
        t, h, w = ((n - r - 1) // s + 1 for n, r, s in zip(size, reach, stride, strict=True))
        size = (t, h, w)
    return size


def _triple(layer: nn.Module, name: str, of_time: int = 1) -> Triple:
    """A setting of a convolution or pooling as (time, height, width); layers of pictures leave time alone."""
    value = getattr(layer, name, 1)
    flat = isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d)
    values = (value,) * (2 if flat else 3) if isinstance(value, int) else tuple(value)
    return (of_time, *values) if flat else values  # type: ignore[return-value]
