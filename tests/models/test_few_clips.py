"""What helps a model that sees few clips: separable positions, mimetic first values, attention that looks to its neighbours."""

import numpy as np
import pytest
import torch

from tubelet import models
from tubelet.errors import ConfigError
from tubelet.models import _tokens, swin
from tubelet.models._transformer import Attention, init_mimetic
from tubelet.records import ClipSpec

SIZES = dict(width=48, depth=2, heads=3, decoder_width=24, decoder_depth=1, decoder_heads=3, patch=8)
SPEC = ClipSpec(frames=4, size=32)


def test_separable_positions_against_the_formula() -> None:
    table = _tokens.separable_positions((2, 3, 4), 20).view(2, 3, 4, 20).numpy()
    widths, first = (6, 6, 8), (0, 6, 12)
    for t, y, x in np.ndindex(2, 3, 4):
        for axis, place in enumerate((t, y, x)):
            for channel in range(widths[axis]):
                angle = place / 100 ** (2 * (channel // 2) / widths[axis])
                wanted = np.sin(angle) if channel % 2 == 0 else np.cos(angle)
                assert table[t, y, x, first[axis] + channel] == pytest.approx(wanted, abs=1e-6)


def test_tokens_at_one_place_look_alike() -> None:
    table = _tokens.separable_positions((4, 4, 4), 48).view(4, 16, 48)
    same_place = torch.nn.functional.cosine_similarity(table[0], table[1], dim=-1).mean()
    other_place = torch.nn.functional.cosine_similarity(table[0], table[1].roll(5, dims=0), dim=-1).mean()
    assert same_place > other_place + 0.05


def test_mimetic_first_values_attend_to_what_is_alike() -> None:
    torch.manual_seed(0)
    attention = Attention(48, 3)
    init_mimetic(attention.qkv, attention.proj, attention.heads)
    for head in range(3):
        rows = slice(16 * head, 16 * head + 16)
        product = attention.qkv.weight[:48][rows].T @ attention.qkv.weight[48:96][rows]
        diagonal, rest = product.diagonal().mean(), product[~torch.eye(48, dtype=torch.bool)].abs().mean()
        assert diagonal > 3 * rest
    through = attention.proj.weight @ attention.qkv.weight[96:]
    assert through.diagonal().mean().item() == pytest.approx(-0.4, abs=0.1)


def test_the_options_are_kept_and_checked() -> None:
    model = models.build("videomae_tiny", SPEC, **SIZES, positions="3d", first_values="mimetic")
    again = models.build_like(model)
    assert torch.equal(again.positions(48, (2, 4, 4), torch.device("cpu")), _tokens.separable_positions((2, 4, 4), 48))
    with pytest.raises(ConfigError, match="unknown positions '2d'"):
        models.build("videomae_tiny", SPEC, **SIZES, positions="2d")
    with pytest.raises(ConfigError, match="unknown first_values 'zeros'"):
        models.build("videomae_tiny", SPEC, **SIZES, first_values="zeros")


@pytest.mark.parametrize("name", ["timesformer_base", "vjepa2_large"])
def test_other_families_begin_mimetic_too(name: str) -> None:
    sizes = dict(width=48, depth=2, heads=3, patch=8)
    model = models.build(name, SPEC, **sizes, first_values="mimetic")
    assert models.build_like(model).options["first_values"] == "mimetic"
    products = [
        module.proj.weight @ module.qkv.weight[96:]
        for key, module in model.named_modules()
        if hasattr(module, "qkv") and "pooler" not in key
    ]
    assert len(products) == (4 if name == "timesformer_base" else 2)  # in time and in space
    assert all(product.diagonal().mean().item() == pytest.approx(-0.4, abs=0.1) for product in products)
    with pytest.raises(ConfigError, match="unknown first_values 'zeros'"):
        models.build(name, SPEC, **sizes, first_values="zeros")


def test_timesformer_begins_with_separable_positions() -> None:
    model = models.build("timesformer_base", SPEC, width=48, depth=1, heads=3, patch=8)
    grid = (SPEC.frames, SPEC.size // 8, SPEC.size // 8)
    torch.testing.assert_close(model._positions(grid), _tokens.separable_positions(grid, 48))


def attention_of(name: str, where: str, width: int, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a new mimetic model's first block: who looks at whom (..., A, queries, keys), and the weight of q, k and v."""
    torch.manual_seed(0)
    spec, seen = ClipSpec(frames=8, size=32), []
    model = models.build(name, spec, width=width, depth=2, heads=heads, patch=8, first_values="mimetic")
    attention = model.blocks[0].get_submodule(where)
    attention.register_forward_hook(lambda module, inputs, output: seen.append(module.qkv(inputs[0])))
    model(torch.randint(256, (2, 8, 3, 32, 32), dtype=torch.uint8))
    query, key, _ = (part.unflatten(-1, (heads, -1)).movedim(1, -2) for part in seen[0].chunk(3, dim=-1))  # (B,...,A,N,d)
    return (query @ key.mT * query.shape[-1] ** -0.5).softmax(dim=-1), attention.qkv.weight


@pytest.mark.parametrize(("width", "heads"), [(48, 4), (96, 4), (384, 4), (54, 6)])  # the last leaves a row of every head over
def test_mimetic_time_attention_of_timesformer_looks_one_moment_back_and_ahead(width: int, heads: int) -> None:
    weights, qkv = attention_of("timesformer_base", "temporal_attn", width, heads)  # (B,S,A,T,T)
    back, ahead = (weights.diagonal(by, -2, -1).mean(dim=(0, 1, 3)) for by in (-1, 1))  # (A,)
    assert (torch.stack([back[0::2], ahead[1::2]]) > 0.35).all()
    assert (back[0::2] > 3 * ahead[0::2]).all() and (ahead[1::2] > 3 * back[1::2]).all()
    queries, keys, _ = qkv.chunk(3)
    assert ((queries != 0).any(dim=1) & (keys != 0).any(dim=1)).all()  # no row that cannot learn


@pytest.mark.parametrize(("width", "heads"), [(96, 4), (192, 4)])
def test_mimetic_joint_attention_looks_at_its_own_place_one_moment_back_and_ahead(width: int, heads: int) -> None:
    weights, qkv = attention_of("timesformer_base_joint", "attn", width, heads)
    weights = weights[..., 1:, 1:]  # (B,A,N,N) without the cls token; 16 places a moment
    back, ahead = (weights.diagonal(by, -2, -1).mean(dim=(0, 2)) for by in (-16, 16))  # (A,)
    assert (torch.stack([back[0::2], ahead[1::2]]) > 0.3).all()  # each of 128 tokens would have 0.008
    assert (back[0::2] > 20 * ahead[0::2]).all() and (ahead[1::2] > 20 * back[1::2]).all()
    queries, keys, _ = qkv.chunk(3)
    assert ((queries != 0).any(dim=1) & (keys != 0).any(dim=1)).all()


def test_mimetic_windows_of_swin_look_one_slot_back_and_ahead() -> None:
    sizes = dict(width=16, heads=2, blocks=[1, 1], window=[4, 2, 2])
    model = models.build("swin_tiny", SPEC, **sizes, first_values="mimetic")
    assert models.build_like(model).options["first_values"] == "mimetic"
    for stage in model.stages:
        attention = stage[0].attn
        bias = attention.bias_table[swin.offset_index((4, 2, 2), (4, 2, 2))]  # (N,N,A), tokens in (t, y, x) order
        for head in range(attention.heads):
            liked = bias[4:12, :, head].argmax(dim=1)  # of the tokens of the second and third slot
            assert liked.tolist() == [token + (4 if head % 2 else -4) for token in range(4, 12)]
    assert model.stages[0][0].mlp.fc1.weight.std().item() == pytest.approx((2 / (16 + 64)) ** 0.5, rel=0.1)


def test_swin_begins_as_in_the_paper_unless_told_otherwise() -> None:
    model = models.build("swin_tiny", SPEC, width=16, heads=2, blocks=[1, 1], window=[4, 2, 2])
    assert model.stages[0][0].attn.bias_table.abs().max().item() < 0.1
    assert model.stages[0][0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)
    with pytest.raises(ConfigError, match="unknown first_values 'xavier'"):
        models.build("swin_tiny", SPEC, width=16, heads=2, blocks=[1, 1], first_values="xavier")
