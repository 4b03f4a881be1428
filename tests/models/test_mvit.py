"""MViTv2: pooling attention against its formula pair by pair, published sizes, torchvision's keys."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet import models
from tubelet.errors import CheckpointError, ConfigError
from tubelet.models import mvit
from tubelet.records import ClipSpec

from .small import randomise, small

GRID = (2, 4, 5)


def one_by_one(layer: mvit.PoolingAttention, x: Tensor) -> Tensor:
    """Pooling attention of one clip, written as the paper does: a score for every pair (equations 4 to 6)."""
    heads, width = layer.heads, layer.proj.weight.shape[0]
    parts = layer.qkv(x[0]).view(-1, 3, heads, width // heads)
    result = []
    for head in range(heads):
        pools = (layer.pool_q, layer.pool_k, layer.pool_v)
        (q, grid_q), (k, grid_k), (v, _) = (pooled(parts[:, i, head], pool) for i, pool in enumerate(pools))
        places_q, places_k = (list(itertools.product(*map(range, grid))) for grid in (grid_q, grid_k))
        scores = q @ k.T / (width // heads) ** 0.5
        moved = torch.zeros_like(scores)
        for (i, a), (j, b) in itertools.product(enumerate(places_q, 1), enumerate(places_k, 1)):
            for table, at, to, n, m in zip((layer.rel_t, layer.rel_h, layer.rel_w), a, b, grid_q, grid_k, strict=True):
                # the distance in steps of the finer grid, 0 for the most negative one
                moved[i, j] += q[i] @ table[int(at * max(m / n, 1) + (m - 1 - to) * max(n / m, 1))]
        y = (scores + moved).softmax(dim=-1) @ v
        result.append(torch.cat([y[:1], y[1:] + q[1:]]))
    return layer.proj(torch.cat(result, dim=-1))[None]


def pooled(x: Tensor, pool: mvit.Pool) -> tuple[Tensor, tuple[int, ...]]:
    """A head's tokens (1+N,d) after its convolution, channel by channel, and the norm; and their grid."""
    cube = x[1:].T.view(-1, 1, *GRID)
    channels = [
        F.conv3d(c[None], w[None], stride=pool.conv.stride, padding=1)[0] for c, w in zip(cube, pool.conv.weight, strict=True)
    ]
    y = torch.cat(channels)
    tokens = torch.cat([x[:1], y.flatten(1).T])
    return F.layer_norm(tokens, tokens.shape[1:], pool.norm.weight, pool.norm.bias, pool.norm.eps), tuple(y.shape[1:])


@pytest.mark.parametrize(
    ("stride_q", "stride_kv"), [((1, 1, 1), (1, 2, 2)), ((1, 2, 2), (1, 1, 1)), ((1, 2, 2), (1, 2, 2)), ((1, 1, 1), (1, 4, 4))]
)
def test_pooling_attention_is_the_papers_formula(stride_q: mvit.Triple, stride_kv: mvit.Triple) -> None:
    layer = mvit.PoolingAttention(8, 12, 2, GRID, stride_q, stride_kv, 1e-6)
    randomise(layer, 0.5)
    x = torch.randn(1, 1 + 40, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(layer(x, GRID), one_by_one(layer, x), rtol=1e-5, atol=1e-5)


def test_a_block_pools_and_projects_its_shortcut() -> None:
    block = mvit.Block(8, 16, 2, GRID, (1, 2, 2), (1, 1, 1), 4.0, 1e-6, 0.0)
    randomise(block, 0.3)
    with torch.no_grad():
        for layer in (block.attn.proj, block.mlp.fc2):
            layer.weight.zero_()
            layer.bias.zero_()
        x = torch.randn(1, 1 + 40, 8, generator=torch.Generator().manual_seed(1))
        y, grid = block(x, GRID)
        wide = block.project(block.norm1(x))
    assert grid == (2, 2, 3) and y.shape == (1, 1 + 12, 16)
    torch.testing.assert_close(y[:, 0], wide[:, 0])
    cube = wide[0, 1:].view(*GRID, 16)
    torch.testing.assert_close(y[0, 1:].view(2, 2, 3, 16)[1, 1, 1], cube[1, 1:4, 1:4].amax(dim=(0, 1)))


def test_distances_on_two_grids_and_another_table() -> None:
    table = torch.arange(13.0)[:, None]  # made for 7
    assert mvit.between(table, 7, 7)[2, 6].item() == 2 - 6 + 6
    assert mvit.between(table, 7, 4)[6, 0].item() == 11  # int(6 + 3 * 1.75): 1.75 fine steps a key
    assert mvit.between(table, 4, 7)[3, 6].item() == 5  # int(3 * 1.75) - 6 + 6
    grown = mvit.between(table, 14, 14)
    assert grown[0, 13].item() == 0 and grown[13, 0].item() == 12
    assert grown[5, 5].item() == pytest.approx(6)


def appended(name: str) -> float:
    """GMAC of the channels that carry the positions through attention, and of those that keep the values as wide."""
    frames, blocks = {"mvitv2_small": (16, (1, 2, 11, 2)), "mvitv2_base": (32, (2, 3, 16, 3))}[name]
    slots, size, total = frames // 2, 56, 0
    for stage, depth in enumerate(blocks):
        for block in range(depth):
            rows_q, rows_k = size // (2 if stage and not block else 1), size // (8 >> stage)
            pairs = (1 + slots * rows_q**2) * (1 + slots * rows_k**2)
            total += 2 * pairs * 2**stage * (slots + 2 * rows_k)
            size = rows_q
    return total / 1e9


# Published: parameters with 400 classes and GMAC. S: torchvision's 34,537,744 and 64.224; B: the paper's 51.2 M and 225
@pytest.mark.parametrize(("name", "millions", "gmacs"), [("mvitv2_small", 34.537744, 64.224), ("mvitv2_base", 51.2, 225)])
def test_published_parameters_and_gmacs(name: str, millions: float, gmacs: float) -> None:
    with torch.device("meta"):
        model = models.build(name, models.clip_of(name), [str(i) for i in range(400)])
    cost = models.cost(model)
    assert cost["params"] / 1e6 == pytest.approx(millions, rel=1e-9 if name == "mvitv2_small" else 1e-3)
    assert cost["gmacs"] - appended(name) == pytest.approx(gmacs, rel=1e-5 if name == "mvitv2_small" else 3e-3)


def test_attended_pairs_of_the_first_block() -> None:
    with torch.device("meta"):
        model = models.build("mvitv2_small", models.clip_of("mvitv2_small"))
    assert model.attended_pairs() == (8 * 56 * 56) * (8 * 7 * 7)


@pytest.mark.parametrize("shape", [(4, 32, 32), (5, 30, 50), (1, 8, 8)])
def test_any_clip_is_taken(shape: tuple[int, int, int]) -> None:
    model = small("mvitv2_small", ("a", "b")).eval()
    frames, height, width = shape
    clip = torch.randint(0, 256, (1, frames, 3, height, width), dtype=torch.uint8)
    assert model(clip)["tokens"].shape[1] == -(-frames // 2) * -(-height // 8) * -(-width // 8)


def test_only_colour_is_taken() -> None:
    with pytest.raises(ConfigError, match=r"mvitv2_small got clips of .* with 1 colours; it takes 3"):
        small("mvitv2_small")(torch.zeros(1, 4, 1, 32, 32, dtype=torch.uint8))


def test_a_rebuilt_model_keeps_its_tables_on_other_clips() -> None:
    model = small("mvitv2_small", ("a", "b")).eval()
    longer = models.build_like(model, spec=ClipSpec(frames=8, size=64)).eval()
    longer.load_state_dict(model.state_dict())
    clip = torch.randint(0, 256, (1, 8, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(longer(clip)["logits"], model(clip)["logits"])


def test_torchvisions_keys() -> None:
    with torch.device("meta"):
        model = models.build("mvitv2_small", models.clip_of("mvitv2_small"), [str(i) for i in range(400)])
    state = mvit.to_torchvision(model.state_dict())
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    assert shapes["conv_proj.weight"] == (96, 3, 3, 7, 7) and shapes["pos_encoding.class_token"] == (96,)
    assert shapes["blocks.14.attn.qkv.weight"] == (3 * 768, 384) and shapes["blocks.14.project.weight"] == (768, 384)
    assert shapes["blocks.14.attn.rel_pos_h"] == (27, 96) and shapes["blocks.0.attn.rel_pos_t"] == (15, 96)
    assert shapes["blocks.3.attn.pool_k.pool.weight"] == (96, 1, 3, 3, 3)
    assert shapes["blocks.3.attn.pool_k.norm_act.0.bias"] == (96,)
    assert shapes["blocks.15.attn.project.0.bias"] == (768,) and shapes["blocks.15.mlp.3.weight"] == (768, 3072)
    assert shapes["head.1.weight"] == (400, 768)
    assert sum(value.numel() for value in state.values()) == 34_537_744


def test_torchvision_round_trip_is_bit_identical() -> None:
    model = small("mvitv2_small", ("a", "b"))
    randomise(model)
    state = model.state_dict()
    theirs = mvit.to_torchvision(state)
    back = mvit.from_torchvision(theirs)
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)
    del theirs["blocks.0.attn.rel_pos_w"]
    with pytest.raises(CheckpointError, match=r"left over extra; missing blocks.0.attn.rel_pos_w$"):
        mvit.from_torchvision({**theirs, "extra": torch.ones(1)})
