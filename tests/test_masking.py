"""Masks: counts, leakage and the running cell, against formulas and the numbers of the papers."""

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tubelet import masking
from tubelet.errors import ConfigError

GRID = (8, 14, 14)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


grids = st.tuples(st.integers(2, 8), st.integers(2, 10), st.integers(2, 10))


@given(kind=st.sampled_from(sorted(masking.KINDS)), grid=grids, ratio=st.floats(0.26, 0.74), seed=st.integers(0, 99))
@example(kind="block", grid=(2, 5, 9), ratio=1 / 3, seed=0)  # 1/3 * 45 is 15, but 1/3 * 5 * 9 is a little less
def test_every_mask_hides_the_same_count_in_every_sample(kind: str, grid: masking.Grid, ratio: float, seed: int) -> None:
    slots, height, width = grid
    assume(kind != "frame" or int(ratio * slots) > 0)  # the error for that has its own test
    mask = masking.make(kind, grid, ratio, 3, generator(seed))
    assert mask.dtype == torch.bool and mask.shape == (3, slots * height * width)
    assert len(set(mask.sum(dim=1).tolist())) == 1
    per_slot = mask.view(3, slots, -1).sum(dim=2)
    if kind in ("tube", "random", "block"):
        assert (per_slot == int(ratio * (height * width))).all()
    if kind in ("tube", "block"):
        assert (mask.view(3, slots, -1) == mask.view(3, slots, -1)[:, :1]).all()
    if kind == "frame":
        assert ((per_slot == 0) | (per_slot == height * width)).all()
        assert (per_slot > 0).sum(dim=1).eq(int(ratio * slots)).all()


@given(kind=st.sampled_from(sorted(masking.KINDS)), seed=st.integers(0, 99))
def test_the_generator_decides(kind: str, seed: int) -> None:
    first = masking.make(kind, (4, 6, 6), 0.5, 2, generator(seed))
    assert torch.equal(first, masking.make(kind, (4, 6, 6), 0.5, 2, generator(seed)))


@pytest.mark.parametrize(("ratio", "visible"), [(0.9, 160), (0.95, 80)])
def test_tube_counts_of_the_paper(ratio: float, visible: int) -> None:
    mask = masking.make("tube", GRID, ratio, 2, generator())
    assert (~mask).sum(dim=1).tolist() == [visible, visible]


def leakage(mask: torch.Tensor) -> float:
    """P(a masked token has a visible twin at its position in some other slot)."""
    hidden = mask.view(len(mask), GRID[0], -1)
    twin = (~hidden).any(dim=1, keepdim=True).expand_as(hidden)
    return float((hidden & twin).sum() / hidden.sum())


@pytest.mark.parametrize(("ratio", "expected"), [(0.75, 0.867), (0.90, 0.522), (0.95, 0.302)])
def test_leakage_of_masks(ratio: float, expected: float) -> None:
    # 1 - ratio^7 for independent slots, up to the rounding of int(ratio*196)
    assert leakage(masking.make("random", GRID, ratio, 200, generator())) == pytest.approx(expected, abs=0.01)
    assert leakage(masking.make("tube", GRID, ratio, 20, generator())) == 0
    assert leakage(masking.make("frame", GRID, ratio, 20, generator())) == 1


def test_running_cell_keeps_two_of_every_cell_and_runs() -> None:
    kept = ~masking.make("running_cell", GRID, 0.5, 1, None).view(8, 14, 14)
    cells = kept.view(8, 7, 2, 7, 2).sum(dim=(2, 4))
    assert (cells == 2).all() and int(kept.sum()) == 784
    assert (kept[:4].sum(dim=0) == 2).all()  # over four slots every position has its turn equally often
    assert not torch.equal(kept[0], kept[1]) and torch.equal(kept[0], kept[4])


def test_block_masks_are_blocks() -> None:
    """A hidden position of a block mask has more hidden neighbours than one of a tube mask."""

    def neighbours(kind: str) -> float:
        plane = masking.make(kind, GRID, 0.5, 100, generator()).view(100, 8, 14, 14)[:, 0]
        return float((plane[:, 1:] & plane[:, :-1]).sum() / plane.sum())

    assert neighbours("block") > 1.5 * neighbours("tube")


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ConfigError, match="did you mean 'tube'"):
        masking.make("tubes", GRID, 0.9, 1)
    with pytest.raises(ConfigError, match=r"between 0 and 1, for example 0\.9"):
        masking.make("tube", GRID, 1.5, 1)
    with pytest.raises(ConfigError, match="hides nothing of a 8x1x2"):
        masking.make("tube", (8, 1, 2), 0.3, 1)
