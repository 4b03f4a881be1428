"""Published sizes, and the identities of a masked autoencoder."""

import pytest
import torch
from torch import nn

from tubelet import masking, models
from tubelet.errors import ConfigError
from tubelet.models import _tokens, videomae
from tubelet.models._transformer import Block
from tubelet.records import ClipSpec

from .small import SMALL, SPEC, small


def clips(batch: int = 2, frames: int = 4, height: int = 32, width: int = 32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, frames, 3, height, width), dtype=torch.uint8, generator=generator)


# Published: parameters in millions and GMAC of the classifiers (400 classes, 16x224x224)
PUBLISHED = {
    "videomae_small": (22.0, 56.9),
    "videomae_base": (86.5, 180.3),
    "videomae_large": (304.3, 596.8),
    "videomae_huge": (632.1, 1191),
}


def test_published_parameters_and_gmacs() -> None:
    rows = {row["name"]: row for row in models.list_models(["videomae"])}
    assert set(PUBLISHED) <= set(rows)
    for name, (params, gmacs) in PUBLISHED.items():
        assert round(rows[name]["params"] / 1e6, 1) == params
        assert rows[name]["gmacs"] == pytest.approx(gmacs, rel=5e-4)
        assert (rows[name]["frames"], rows[name]["size"]) == (16, 224)


@pytest.mark.parametrize(("name", "gmacs"), [("videomae_large", 3956), ("videomae_huge", 7395)])
def test_published_gmacs_at_320(name: str, gmacs: float) -> None:
    with torch.device("meta"):
        model = models.build(name, ClipSpec(frames=32, size=320), [str(i) for i in range(400)])
    assert models.cost(model)["gmacs"] == pytest.approx(gmacs, rel=5e-4)


def test_pretraining_forward_costs_what_the_paper_says() -> None:
    with torch.device("meta"):
        base = models.build("videomae_base", ClipSpec())
    mask = masking.make("tube", base.grid, 0.9, 1, torch.Generator().manual_seed(0))
    # 14.06 encoder on 160 tokens + 18.65 decoder blocks on 1568 tokens, plus what that leaves out: embedding 160 tokens,
    # the projection and the pixel head; less what the last block spares for the 160 tokens that are not predicted: their
    # query, their output projection and MLP, and their rows of both products of attention
    embedding, projection, head = 160 * 1536 * 768, 160 * 768 * 384, 1408 * 384 * 1536
    spared = 160 * (2 + 8) * 384**2 + 2 * 160 * 1568 * 384
    rest = (embedding + projection + head - spared) / 1e9
    assert models.cost(base, mask)["gmacs"] == pytest.approx(14.06 + 18.65 + rest, rel=1e-3)


def test_the_encoder_never_sees_a_masked_pixel() -> None:
    model = small("videomae_tiny").eval()
    frames = clips()
    mask = masking.make("tube", model.grid, 0.75, 2, torch.Generator().manual_seed(3))
    tokens = _tokens.patchify(frames, model.tubelet)
    tokens[mask] = 255 - tokens[mask]
    changed = _tokens.unpatchify(tokens, model.grid, model.tubelet)
    assert not torch.equal(changed, frames)
    one, other = model(frames, mask=mask), model(changed, mask=mask)
    assert torch.equal(one["tokens"], other["tokens"]) and torch.equal(one["prediction"], other["prediction"])


def test_running_cell_predictions_equal_the_full_decoders_where_the_decoder_sees_the_same() -> None:
    """With nothing hidden from the decoder but what the encoder saw, V2's path is the ordinary one."""
    model = small("videomae_tiny").eval()
    mask = masking.make("tube", model.grid, 0.5, 2, torch.Generator().manual_seed(3))
    plain, dual = model(clips(), mask=mask), model(clips(), mask=mask, decoder_mask=~mask)
    assert torch.equal(plain["prediction"], dual["prediction"]) and torch.equal(plain["predicted"], dual["predicted"])


def test_image_mae_is_one_slot() -> None:
    """T=1 in tokens: 49 of 196 visible at 75 %."""
    model = models.build("videomae_tiny", ClipSpec(frames=1), tubelet=1, width=24, heads=2, depth=1)
    mask = masking.make("random", model.grid, 0.75, 1)
    assert model.grid == (1, 14, 14)
    assert model(clips(1, 1, 224, 224), mask=mask)["tokens"].shape[1] == 49


@pytest.mark.parametrize("shape", [(4, 32, 32), (8, 32, 32), (4, 48, 32), (2, 64, 40)])
def test_any_divisible_clip_is_taken(shape: tuple[int, int, int]) -> None:
    model = small("videomae_tiny", ("a", "b")).eval()
    frames, height, width = shape
    tokens = model(clips(1, *shape))["tokens"]
    assert tokens.shape[1] == frames // 2 * (height // 8) * (width // 8)


def test_positions_are_recomputed_for_a_new_model_and_interpolated_for_a_trained_one() -> None:
    long = ClipSpec(frames=8, size=32)
    fresh = models.build("videomae_tiny", long, **SMALL["videomae"][1])
    grown = models.build_like(small("videomae_tiny"), spec=long)
    table = _tokens.sine_cosine_positions(4 * 16, 24)
    assert torch.equal(fresh.positions(24, (4, 4, 4), torch.device("cpu")), table)
    got = grown.positions(24, (4, 4, 4), torch.device("cpu")).view(4, 16, 24)
    known = _tokens.sine_cosine_positions(2 * 16, 24).view(2, 16, 24)
    # half-pixel centres: slots at -0.25 (clamped to 0), 0.25, 0.75, 1.25 (clamped to 1) of the two known ones
    for slot, share in enumerate((0.0, 0.25, 0.75, 1.0)):
        torch.testing.assert_close(got[slot], known[0] * (1 - share) + known[1] * share)


def test_position_table_against_the_formula() -> None:
    import numpy as np

    position, channel = np.meshgrid(np.arange(50), np.arange(16), indexing="ij")
    angle = position / np.power(10000, 2 * (channel // 2) / 16)
    wanted = np.where(channel % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32)
    np.testing.assert_allclose(_tokens.sine_cosine_positions(50, 16).numpy(), wanted, rtol=0, atol=1e-7)


def test_patches_hold_their_values_in_the_order_t_y_x_colour() -> None:
    frames = torch.arange(4 * 3 * 16 * 16).view(1, 4, 3, 16, 16)
    tokens = _tokens.patchify(frames, (2, 8, 8))
    assert tokens.shape == (1, 8, 384)
    token = tokens[0, 4 + 2].view(2, 8, 8, 3)  # slot 1, row 1, column 0
    assert token[1, 3, 5, 2] == frames[0, 2 + 1, 2, 8 + 3, 5]
    assert torch.equal(_tokens.unpatchify(tokens, (2, 2, 2), (2, 8, 8)), frames)


def test_the_tokens_at_places_are_those_that_a_mask_chooses() -> None:
    chosen = masking.make("random", (2, 3, 4), 0.5, 3, torch.Generator().manual_seed(0))
    tokens = torch.arange(3 * 24 * 5).view(3, 24, 5)
    wanted = torch.stack([sample[rows] for sample, rows in zip(tokens, chosen, strict=True)])
    assert torch.equal(_tokens.gather(tokens, _tokens.places(~chosen).visible), wanted)


@pytest.mark.parametrize("first", [1, 5, 11])
def test_a_block_asked_for_its_last_tokens_gives_the_last_of_all(first: int) -> None:
    torch.manual_seed(0)
    block = Block(24, heads=3, mlp_ratio=4.0, eps=1e-6)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.2)
    x = torch.randn(2, 12, 24, requires_grad=True)
    inputs = [x, *block.parameters()]
    last, every = block(x, first=first), block(x)[:, first:]
    torch.testing.assert_close(last, every, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(last)
    gradients = [torch.autograd.grad((out * weights).sum(), inputs) for out in (last, every)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_attention_and_layers_on_request() -> None:
    model = small("videomae_tiny").eval()
    out = model(clips(), layers=(1, 2), attention=True)
    assert out["attention"].shape == (2, 2, 32, 32)
    torch.testing.assert_close(out["attention"].sum(-1), torch.ones(2, 2, 32))
    torch.testing.assert_close(model.norm(out["layer_2"]), out["tokens"])
    assert out["layer_1"].shape == (2, 32, 24)


def test_drop_path_only_while_training() -> None:
    model = small("videomae_tiny", ("a", "b"), drop_path=0.5)
    torch.manual_seed(0)
    train = [model(clips())["tokens"] for _ in range(8)]
    assert any(not torch.equal(train[0], other) for other in train[1:])
    plain = small("videomae_tiny", ("a", "b"))
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(clips())["tokens"], plain.eval()(clips())["tokens"])


def test_single_frame_model_does_not_know_the_order() -> None:
    model = small("single_frame", ("a", "b", "c")).eval()
    nn.init.normal_(model.head.weight)
    frames = clips(frames=8)
    one, other = model(frames)["logits"].softmax(-1), model(frames[:, torch.randperm(8)])["logits"].softmax(-1)
    torch.testing.assert_close(one, other)
    each = torch.stack([model(frames[:, [t]])["logits"].softmax(-1) for t in range(8)]).mean(dim=0)
    torch.testing.assert_close(one, each)


def test_errors_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown model 'videomae_smal': did you mean 'videomae_small'"):
        models.build("videomae_smal", SPEC)
    with pytest.raises(ConfigError, match="unknown option of videomae_tiny 'widht': did you mean 'width'"):
        models.build("videomae_tiny", SPEC, widht=3)
    with pytest.raises(ConfigError, match=r"5 frames of 32x30 .* frames divisible by 2 and sizes divisible by 8"):
        small("videomae_tiny")(clips(1, 5, 30, 32))
    with pytest.raises(ConfigError, match="width is 25, which heads=2 does not divide"):
        videomae.build("videomae_tiny", SPEC, **{**SMALL["videomae"][1], "width": 25})
    with pytest.raises(ConfigError, match="decoder_depth is 0, a decoder needs at least 1 block"):
        small("videomae_tiny", decoder_depth=0)


def test_the_giant_of_videomae_v2() -> None:
    """Published: 1,013 M parameters, 2048 tokens of 14x14 pixels; its decoder is 4 blocks of 512 channels."""
    with torch.device("meta"):
        model = models.build("videomae_giant", ClipSpec(), [str(i) for i in range(400)])
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(1012.5, abs=0.6)
    assert model.grid == (8, 16, 16)
