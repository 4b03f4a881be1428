"""Pixels to tubelets and back. One place fixes the order of tokens (t, y, x) and of the values inside one (t, y, x, colour).

B batch, T frames, C colours, H height, W width, N tokens, P values of a token, D width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tubelet.errors import ConfigError

Triple = tuple[int, int, int]


def grid_of(name: str, shape: Sequence[int], tubelet: Triple) -> Triple:
    """Token grid (T slots, rows, columns) of clips of a shape (..., T,C,H,W); ConfigError when model `name` cannot divide them."""
    frames, colours, height, width = shape[-4:]
    t, h, w = tubelet
    if min(tubelet) < 1:
        raise ConfigError(f"{name}: its tokens are of {t} frames and {h}x{w} pixels: all must be 1 or more")
    if frames % t or height % h or width % w or colours != 3:
        raise ConfigError(
            f"{name} got clips of {frames} frames of {width}x{height} with {colours} colours; it takes 3 colours, "
            f"frames divisible by {t} and sizes divisible by {h} (set clip.frames and clip.size, or the model's patch)"
        )
    return frames // t, height // h, width // w


def patchify(frames: Tensor, tubelet: Triple) -> Tensor:
    """(B,T,C,H,W) -> (B,N,P), P = t*h*w*C in the order (t, y, x, colour); the dtype stays (uint8 stays uint8)."""
    b, frame_count, c, height, width = frames.shape
    t, h, w = tubelet
    cells = frames.reshape(b, frame_count // t, t, c, height // h, h, width // w, w)
    return cells.permute(0, 1, 4, 6, 2, 5, 7, 3).reshape(b, -1, t * h * w * c)


def unpatchify(tokens: Tensor, grid: Triple, tubelet: Triple) -> Tensor:
    """(B,N,P) -> (B,T,C,H,W): the inverse of `patchify` for a token grid (T slots, rows, columns)."""
    (slots, rows, columns), (t, h, w) = grid, tubelet
    cells = tokens.reshape(tokens.shape[0], slots, rows, columns, t, h, w, -1)
    return cells.permute(0, 1, 4, 7, 2, 5, 3, 6).reshape(tokens.shape[0], slots * t, -1, rows * h, columns * w)


class Places(NamedTuple):
    """What a mask says, as numbers of tokens that rise in every row. Made on the CPU, where a mask is drawn, so that no GPU is
    waited for to say how many they are."""

    visible: Tensor  # int64 (B,V): what the encoder sees
    predicted: Tensor  # int64 (B,M): what the decoder predicts

    def to(self, device: torch.device) -> "Places":
        """The same on a device."""
        return Places(on(device, self.visible), on(device, self.predicted))


def on(device: torch.device, tensor: Tensor) -> Tensor:
    """A tensor of the CPU on a device, which goes on working while it is copied."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def places(mask: Tensor, decoder_mask: Tensor | None = None) -> Places:
    """Where a mask, bool (B,N), leaves tokens visible, and where they are to be predicted: all that it hides, or what the
    `decoder_mask` does not. Every row must hide as many."""
    return Places(_numbers(~mask), _numbers(mask if decoder_mask is None else ~decoder_mask))


def _numbers(chosen: Tensor) -> Tensor:
    """bool (B,N) -> int64 (B,M)."""
    return chosen.nonzero()[:, 1].view(len(chosen), -1)


def gather(tokens: Tensor, chosen: Tensor) -> Tensor:
    """The chosen tokens of every sample: (B,N,...), int64 (B,M) -> (B,M,...)."""
    rows = chosen + tokens.shape[1] * torch.arange(len(tokens), device=tokens.device)[:, None]
    return tokens.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, chosen.shape)


def sine_cosine_positions(count: int, width: int) -> Tensor:
    """Fixed 1-D table (count, width): sin at even, cos at odd channels, period 10000^(2i/width) (Vaswani et al., 3.5).

    Computed in float64 and cast once: in float32 the highest positions are off by 1e-5.
    """
    position = torch.arange(count, dtype=torch.float64)[:, None]
    channel = torch.arange(width)
    angle = position / 10000 ** (2 * (channel // 2).double() / width)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()


def separable_positions(grid: Triple, width: int) -> Tensor:
    """Fixed 3-D table (N, width): a third of the channels each for t, y and x, periods from 2 pi to 200 pi tokens.

    Tokens at one place, or at one moment, look alike in two thirds of their channels, so attention finds them at once; with
    one number for all three it first has to learn which numbers belong together, which takes thousands of steps.
    """
    third = width // 6 * 2
    tables = []
    for axis, channels in enumerate((third, third, width - 2 * third)):
        position = torch.arange(grid[axis], dtype=torch.float64)[:, None]
        channel = torch.arange(channels)
        angle = position / 100 ** (2 * (channel // 2).double() / channels)
        table = torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()
        tables.append(table.view(*(-1 if i == axis else 1 for i in range(3)), channels).expand(*grid, -1))
    return torch.cat(tables, dim=-1).reshape(-1, width)


def resize_positions(table: Tensor, trained: Triple, grid: Triple) -> Tensor:
    """A position table (N,D) of one token grid, interpolated trilinearly to another (M,D)."""
    if trained == grid:
        return table
    cube = table.view(*trained, -1).permute(3, 0, 1, 2)[None]
    cube = torch.nn.functional.interpolate(cube, size=grid, mode="trilinear", align_corners=False)
    return cube[0].permute(1, 2, 3, 0).reshape(-1, table.shape[1])


def stretching(old: int, new: int) -> Tensor:
    """float64 (new,old): values at `old` places, linearly interpolated to `new` ones; to fewer it is the pseudo-inverse of the way
    back, so that there and back changes nothing. A constant stays what it is."""
    if new < old:
        return torch.linalg.pinv(stretching(new, old))
    unit = torch.eye(old, dtype=torch.float64)[None]
    return torch.nn.functional.interpolate(unit, size=new, mode="linear", align_corners=False)[0].T


def resize_kernel(weight: Tensor, trained: Triple, tubelet: Triple) -> Tensor:
    """The weight of a Linear over tubelets of one size, (D, t*y*x*c), for tubelets of another: what is as long or as large in both
    gets the same answer. See `weights.resize` for which clips answer alike."""
    return _resized(
        weight.mT, tubelet, [torch.linalg.pinv(stretching(*pair)).T for pair in zip(trained, tubelet, strict=True)]
    ).mT


def resize_pixels(weight: Tensor, trained: Triple, tubelet: Triple) -> Tensor:
    """The weight (t*y*x*c, D) or bias (t*y*x*c,) of a Linear that gives tubelets, for those of another size: what it gave,
    stretched."""
    return _resized(weight, tubelet, [stretching(*pair) for pair in zip(trained, tubelet, strict=True)])


def _resized(values: Tensor, tubelet: Triple, along: Sequence[Tensor]) -> Tensor:
    """(t*y*x*c, ...) moved by a matrix (new,old) along t, y and x."""
    cells = values.double().reshape(*(matrix.shape[1] for matrix in along), 3, -1)
    cells = torch.einsum("tyxcd,ut,vy,wx->uvwcd", cells, *along)
    return cells.reshape(tubelet[0] * tubelet[1] * tubelet[2] * 3, *values.shape[1:]).to(values.dtype).contiguous()


def conv_weight(linear: Tensor, tubelet: Triple) -> Tensor:
    """The weight of a Linear over `patchify`'s values, (D, t*y*x*c), as that of the equal Conv3d: (D,c,t,y,x)."""
    return linear.view(linear.shape[0], *tubelet, -1).permute(0, 4, 1, 2, 3).contiguous()


def linear_weight(conv: Tensor) -> Tensor:
    """The weight of a Conv3d over tubelets, (D,c,t,y,x), as that of a Linear over `patchify`'s values: (D, t*y*x*c)."""
    return conv.permute(0, 2, 3, 4, 1).flatten(1).contiguous()
