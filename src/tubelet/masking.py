"""Which tokens the encoder does not see: bool (B,N), True = masked.

B batch, N tokens = T slots x S positions (t-major, then y, then x), S = H x W positions of one slot.
Every mask hides the same number of tokens in every sample, so that a batch stays one rectangular tensor.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tubelet.errors import ConfigError
from tubelet.find import choose

Grid = tuple[int, int, int]  # (T slots, H, W) in tokens


def make(kind: str, grid: Grid, ratio: float, batch: int, generator: torch.Generator | None = None) -> Tensor:
    """Mask of the given kind, bool (batch, T*H*W), True = masked.

    kind is one of `KINDS`; ratio in (0,1) is the part that is hidden. Raises ConfigError for an unknown kind (the nearest is
    offered) and for a ratio that would hide everything or nothing.
    """
    function = KINDS[choose(kind, KINDS, "mask")]
    if not 0 < ratio < 1:
        raise ConfigError(f"mask ratio is {ratio}: it must lie between 0 and 1, for example 0.9")
    mask = function(grid, ratio, batch, generator)
    hidden = int(mask[0].sum())
    if hidden in (0, mask.shape[1]):
        what = "nothing" if hidden == 0 else "everything"
        raise ConfigError(
            f"a {kind} mask at ratio {ratio} hides {what} of a {grid[0]}x{grid[1]}x{grid[2]} token grid: "
            "choose another ratio, a smaller patch or a larger clip"
        )
    return mask


def tube(grid: Grid, ratio: float, batch: int, generator: torch.Generator | None) -> Tensor:
    """The same int(ratio*S) positions in every slot (VideoMAE, section 3.3): a masked token has no visible twin in time."""
    slots, height, width = grid
    return _hide(height * width, ratio, batch, generator).repeat(1, slots)


def random(grid: Grid, ratio: float, batch: int, generator: torch.Generator | None) -> Tensor:
    """int(ratio*S) positions a slot, drawn anew for every slot."""
    slots, height, width = grid
    return _hide(height * width, ratio, batch * slots, generator).view(batch, -1)


def frame(grid: Grid, ratio: float, batch: int, generator: torch.Generator | None) -> Tensor:
    """int(ratio*T) whole slots; the others stay fully visible."""
    slots, height, width = grid
    return _hide(slots, ratio, batch, generator).repeat_interleave(height * width, dim=1)


def block(grid: Grid, ratio: float, batch: int, generator: torch.Generator | None) -> Tensor:
    """int(ratio*S) positions covered by rectangles, the same in every slot (the multi-block masks of V-JEPA, section 3.1).

    Rectangles of 1/8 to 1/2 of the frame are laid down until enough is covered; the last one is cut row by row to the count.
    """
    slots, height, width = grid
    wanted = int(ratio * (height * width))  # rounded as in _hide: 1/3 of 5x9 is 15 of 45
    masks = torch.zeros(batch, height, width, dtype=torch.bool)
    for mask in masks:
        while (missing := wanted - int(mask.sum())) > 0:
            area, aspect, down, right = torch.rand(4, generator=generator).tolist()
            area, aspect = (1 / 8 + 3 / 8 * area) * height * width, 0.5 * 4**aspect
            tall = min(height, max(1, round((area * aspect) ** 0.5)))
            wide = min(width, max(1, round((area / aspect) ** 0.5)))
            top, left = int(down * (height - tall + 1)), int(right * (width - wide + 1))
            fresh = torch.zeros_like(mask)
            fresh[top : top + tall, left : left + wide] = True
            fresh &= ~mask
            mask |= fresh & (fresh.flatten().cumsum(0).view(height, width) <= missing)
    return masks.view(batch, -1).repeat(1, slots)


def running_cell(grid: Grid, ratio: float, batch: int, generator: torch.Generator | None) -> Tensor:
    """round(4*ratio) positions of every 2x2 cell, running round the cell from slot to slot (VideoMAE V2, section 3.2).

    Meant for the decoder: what is not hidden is reconstructed. It is the same for every sample.
    """
    slots, height, width = grid
    turn = torch.tensor([[0, 1], [3, 2]])  # clockwise round the cell
    place = turn[torch.arange(height)[:, None] % 2, torch.arange(width)[None, :] % 2]
    phase = (place[None] - torch.arange(slots)[:, None, None]) % 4
    hidden = phase >= 4 - round(4 * ratio)
    return hidden.reshape(1, -1).expand(batch, -1).clone()


KINDS: dict[str, Callable[[Grid, float, int, torch.Generator | None], Tensor]] = {
    "tube": tube,
    "random": random,
    "frame": frame,
    "block": block,
    "running_cell": running_cell,
}


def _hide(places: int, ratio: float, rows: int, generator: torch.Generator | None) -> Tensor:
    """bool (rows, places) with int(ratio*places) True in every row, uniformly at random."""
    order = torch.rand(rows, places, generator=generator).argsort(dim=1)
    mask = torch.zeros(rows, places, dtype=torch.bool)
    return mask.scatter_(1, order[:, : int(ratio * places)], True)
