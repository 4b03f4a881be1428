"""Video Swin: windows against dense attention, tokens that must not mix, published sizes, torchvision's keys."""

import itertools

import pytest
import torch
from torch import Tensor

from tubelet import models
from tubelet.errors import CheckpointError, ConfigError
from tubelet.models import swin
from tubelet.records import ClipSpec

from .small import randomise, small

WINDOW = (2, 3, 3)
# windows that divide the grid, that do not, and that are larger than it
GRIDS = [(4, 6, 6), (3, 8, 7), (1, 2, 9)]


def attention(shifted: bool) -> swin.WindowAttention:
    layer = swin.WindowAttention(8, 2, WINDOW, shifted)
    randomise(layer, 0.5)
    return layer


def cells(grid: tuple[int, ...], shifted: bool) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]], list[int]]:
    """Of the grid filled up to whole windows: the places, the cell of each, and the sizes."""
    window = [min(n, w) for n, w in zip(grid, WINDOW, strict=True)]
    shift = [w // 2 if shifted and n > w else 0 for n, w in zip(grid, WINDOW, strict=True)]
    sizes = [-(-n // w) * w for n, w in zip(grid, window, strict=True)]
    places = list(itertools.product(*map(range, sizes)))
    return places, [tuple((p - s) // w for p, s, w in zip(place, shift, window, strict=True)) for place in places], sizes


def dense(layer: swin.WindowAttention, x: Tensor, shifted: bool) -> Tensor:
    """The same by attention of all tokens with all, where only those of one cell see each other."""
    grid = x.shape[1:4]
    places, cell, sizes = cells(grid, shifted)
    full = x.new_zeros(len(x), *sizes, x.shape[-1])
    full[:, : grid[0], : grid[1], : grid[2]] = x
    q, k, v = layer.qkv(full.flatten(1, 3)).view(len(x), -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
    bias = torch.full((2, len(places), len(places)), -torch.inf)
    t, h, w = WINDOW
    table = layer.bias_table.view(2 * t - 1, 2 * h - 1, 2 * w - 1, 2)
    for i, j in itertools.product(range(len(places)), repeat=2):
        if cell[i] == cell[j]:
            offset = [a - b + n - 1 for a, b, n in zip(places[i], places[j], WINDOW, strict=True)]
            bias[:, i, j] = table[tuple(offset)]
    out = (q @ k.mT / 2 + bias).softmax(dim=-1) @ v
    out = layer.proj(out.transpose(1, 2).flatten(2)).view(full.shape)
    return out[:, : grid[0], : grid[1], : grid[2]]


@pytest.mark.parametrize("shifted", [False, True], ids=["regular", "shifted"])
@pytest.mark.parametrize("grid", GRIDS)
def test_windows_are_dense_attention_with_a_mask(grid: tuple[int, int, int], shifted: bool) -> None:
    layer = attention(shifted)
    x = torch.randn(2, *grid, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), dense(layer, x, shifted), rtol=1e-5, atol=1e-5)


def test_gradients_of_windows_are_those_of_dense_attention() -> None:
    layer = attention(shifted=True)
    x = torch.randn(1, 4, 6, 6, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    inputs = [x, *layer.parameters()]
    ours, theirs = (torch.autograd.grad((y * weights).sum(), inputs) for y in (layer(x), dense(layer, x, True)))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shifted", [False, True], ids=["regular", "shifted"])
def test_tokens_of_different_regions_never_mix(shifted: bool) -> None:
    """Another value of one token changes every token of its cell, and no bit of any other."""
    layer, grid = attention(shifted), (4, 6, 6)
    places, cell, _ = cells(grid, shifted)
    x = torch.randn(1, *grid, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = layer(x)
        for number in range(0, len(places), 7):
            other = x.clone()
            other[0][places[number]] += 1
            changed = (layer(other) != before).any(dim=-1)[0]
            assert [bool(changed[place]) for place in places] == [c == cell[number] for c in cell]


def test_merging_takes_four_neighbours_in_torchvisions_order() -> None:
    layer = swin.Merge(4, 1e-5)
    x = torch.randn(1, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    y = layer(x)
    zero = torch.zeros(4)
    assert y.shape == (1, 1, 2, 2, 8)
    one = torch.cat([x[0, 0, 0, 2], x[0, 0, 1, 2], x[0, 0, 0, 3], x[0, 0, 1, 3]])
    torch.testing.assert_close(y[0, 0, 0, 1], layer.reduction(layer.norm(one)))
    last = torch.cat([x[0, 0, 2, 2], zero, x[0, 0, 2, 3], zero])  # the odd row is filled up
    torch.testing.assert_close(y[0, 0, 1, 1], layer.reduction(layer.norm(last)))


# Published by torchvision: parameters with 400 classes, and GMAC, which are those of 16 frames
PUBLISHED = {"swin_tiny": (28_158_070, 43.88), "swin_small": (49_816_678, 82.84), "swin_base": (88_048_984, 140.67)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameters_and_gmacs(name: str) -> None:
    with torch.device("meta"):
        model = models.build(name, ClipSpec(frames=16), [str(i) for i in range(400)])
    cost = models.cost(model)
    assert (cost["params"], round(cost["gmacs"], 2)) == PUBLISHED[name]


def test_the_papers_gmacs_are_those_of_32_frames() -> None:
    with torch.device("meta"):
        model = models.build("swin_tiny", models.clip_of("swin_tiny"), [str(i) for i in range(400)])
    assert models.cost(model)["gmacs"] == pytest.approx(88, rel=5e-3)  # "88 G" in its table
    assert model.attended_pairs() == 2 * 8 * 8 * (8 * 7 * 7) ** 2


@pytest.mark.parametrize("shape", [(4, 32, 32), (5, 30, 50), (1, 8, 8)])
def test_any_clip_is_taken(shape: tuple[int, int, int]) -> None:
    model = small("swin_tiny", ("a", "b")).eval()
    frames, height, width = shape
    clip = torch.randint(0, 256, (1, frames, 3, height, width), dtype=torch.uint8)
    slots, rows, columns = -(-frames // 2), -(-height // 4), -(-width // 4)
    assert model(clip)["tokens"].shape[1] == slots * -(-rows // 2) * -(-columns // 2)


def test_only_colour_is_taken() -> None:
    with pytest.raises(ConfigError, match=r"swin_tiny got clips of .* with 1 colours; it takes 3"):
        small("swin_tiny")(torch.zeros(1, 4, 1, 32, 32, dtype=torch.uint8))


def test_torchvisions_keys() -> None:
    with torch.device("meta"):
        model = models.build("swin_tiny", ClipSpec(), [str(i) for i in range(400)])
    state = swin.to_torchvision(model.state_dict(), model.tubelet)
    assert state["patch_embed.proj.weight"].shape == (96, 3, 2, 4, 4)
    assert state["features.0.1.attn.relative_position_bias_table"].shape == (15 * 13 * 13, 3)
    assert state["features.4.5.attn.relative_position_index"].shape == (392, 392)
    assert state["features.1.reduction.weight"].shape == (192, 384)
    assert state["features.6.1.mlp.3.weight"].shape == (768, 3072)
    assert len(state) == 4 + 12 * 14 + 3 * 3 + 2 + 2


def test_torchvision_round_trip_is_bit_identical() -> None:
    model = small("swin_tiny", ("a", "b"))
    randomise(model)
    state = model.state_dict()
    theirs = swin.to_torchvision(state, model.tubelet, (2, 3, 3))
    back = swin.from_torchvision(theirs)
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)
    del theirs["features.1.norm.bias"]
    with pytest.raises(CheckpointError, match=r"left over extra; missing features.1.norm.bias$"):
        swin.from_torchvision({**theirs, "extra": torch.ones(1)})
