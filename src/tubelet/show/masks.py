"""What masks hide: a clip with its masked tubelets dimmed, one row per kind of mask.

B batch, T frames, C colours, N tokens, P values per token.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tubelet import masking
from tubelet.models._tokens import unpatchify
from tubelet.show._sheet import Row, pick, sheet, to_png

KINDS_SHOWN = (("tube", 0.75), ("tube", 0.9), ("random", 0.9), ("frame", 0.75), ("block", 0.75), ("running_cell", 0.5))


def pixel_mask(mask: Tensor, grid: tuple[int, int, int], tubelet: tuple[int, int, int]) -> Tensor:
    """bool (T,1,H,W), True where masked, of one clip's token mask bool (N,)."""
    tokens = mask.view(1, -1, 1).expand(1, len(mask), tubelet[0] * tubelet[1] * tubelet[2])
    return unpatchify(tokens, grid, tubelet)[0]


def hide(frames: Tensor, mask: Tensor, grid: tuple[int, int, int], tubelet: tuple[int, int, int]) -> Tensor:
    """uint8 (T,C,H,W): the frames with masked tubelets replaced by even grey."""
    return torch.where(pixel_mask(mask, grid, tubelet), torch.full_like(frames, 58), frames)


def leakage(mask: Tensor, grid: tuple[int, int, int]) -> float:
    """Share of masked tokens that can be seen at the same place in another slot of time. mask bool (N,); 0 for a
    tube mask."""
    slots = mask.view(grid[0], -1)
    seen_somewhere = (~slots).any(dim=0).expand_as(slots)
    return float(seen_somewhere[slots].double().mean()) if slots.any() else 0.0


def masks(
    frames: Tensor,
    tubelet: tuple[int, int, int],
    kinds: Sequence[tuple[str, float]] = KINDS_SHOWN,
    seed: int = 0,
    shown: int = 8,
) -> bytes:
    """PNG: the clip (T,C,H,W) uint8 as it is, then under each (kind, ratio) of mask; each row says how much of it
    leaks."""
    grid = (frames.shape[0] // tubelet[0], frames.shape[2] // tubelet[1], frames.shape[3] // tubelet[2])
    chosen = pick(len(frames), shown)
    rows = [
        Row(
            frames[chosen],
            "the clip",
            f"{grid[0]} x {grid[1]} x {grid[2]} tubelets of {tubelet[0]} x {tubelet[1]} x {tubelet[2]}",
        )
    ]
    for kind, ratio in kinds:
        mask = masking.make(kind, grid, ratio, 1, torch.Generator().manual_seed(seed))[0]
        leaks = f"{leakage(mask, grid):.0%} of the hidden places are visible at another time"
        remark = f"{int((~mask).sum())} of {len(mask)} tubelets visible; {leaks}"
        rows.append(Row(hide(frames, mask, grid, tubelet)[chosen], f"{kind.replace('_', ' ')} {ratio:.0%}", remark))
    return to_png(sheet(rows, least_pixels=72))
