"""V-JEPA 2 against transformers' on the same random weights, both ways, and its published sizes."""

import pytest
import torch
from torch import Tensor

from tubelet import models
from tubelet.errors import CheckpointError, ConfigError
from tubelet.models import vjepa2
from tubelet.records import ClipSpec
from tubelet.video.normalize import normalize

from .small import clips, randomise

transformers = pytest.importorskip("transformers", reason="transformers (extra [hf]) is not installed")

SPEC = ClipSpec(frames=6, size=32)
# heads of 16 channels: 4 turned by time, rows and columns each, 4 not turned; an MLP that is not 4 wide
SIZES = dict(width=48, depth=3, heads=3, patch=8, mlp_ratio=3.0, pooler_depth=2)


def theirs(kind: str) -> torch.nn.Module:
    config = transformers.VJEPA2Config(
        patch_size=8, crop_size=32, frames_per_clip=6, hidden_size=48, num_attention_heads=3, num_hidden_layers=3,
        mlp_ratio=3.0, num_pooler_layers=2, pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=1,
        num_labels=5,
    )  # fmt: skip
    model = getattr(transformers, kind)(config).eval()
    randomise(model)
    return model


def pixel_values(frames: Tensor) -> Tensor:
    return normalize(frames, SPEC.mean, SPEC.std, colour_dim=2)


def test_encoder_tokens() -> None:
    peer = theirs("VJEPA2Model")
    ours = vjepa2.build("vjepa2_large", SPEC, **SIZES).eval()
    ours.load_state_dict(vjepa2.from_huggingface(peer.state_dict()))
    with torch.no_grad():
        wanted = peer(pixel_values(clips(SPEC)), skip_predictor=True).last_hidden_state
        torch.testing.assert_close(ours(clips(SPEC))["tokens"], wanted, rtol=1e-5, atol=1e-5)


def test_classifier_logits_from_theirs() -> None:
    peer = theirs("VJEPA2ForVideoClassification")
    ours = vjepa2.build("vjepa2_large", SPEC, tuple("abcde"), **SIZES).eval()
    ours.load_state_dict(vjepa2.from_huggingface(peer.state_dict()))
    with torch.no_grad():
        wanted = peer(pixel_values(clips(SPEC))).logits
        torch.testing.assert_close(ours(clips(SPEC))["logits"], wanted, rtol=1e-5, atol=1e-5)


def test_classifier_logits_from_ours() -> None:
    ours = vjepa2.build("vjepa2_large", SPEC, tuple("abcde"), **SIZES).eval()
    randomise(ours)
    peer = theirs("VJEPA2ForVideoClassification")
    left = peer.load_state_dict(vjepa2.to_huggingface(ours.state_dict(), ours.tubelet), strict=False)
    assert not left.unexpected_keys and all(key.startswith("vjepa2.predictor.") for key in left.missing_keys)
    with torch.no_grad():
        wanted = peer(pixel_values(clips(SPEC))).logits
        torch.testing.assert_close(ours(clips(SPEC))["logits"], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("classes", [(), tuple("abcde")], ids=["encoder", "classifier"])
@pytest.mark.parametrize("layout", ["huggingface", "original"])
def test_round_trips_are_bit_identical(layout: str, classes: tuple[str, ...]) -> None:
    ours = vjepa2.build("vjepa2_large", SPEC, classes, **SIZES)
    randomise(ours)
    to, back = getattr(vjepa2, f"to_{layout}"), getattr(vjepa2, f"from_{layout}")
    if layout == "original" and classes:
        with pytest.raises(CheckpointError, match="left over pooler.query"):
            to(ours.state_dict(), ours.tubelet)
        return
    state = back(to(ours.state_dict(), ours.tubelet))
    assert state.keys() == ours.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in ours.state_dict().items())


def test_the_originals_layout() -> None:
    ours = vjepa2.build("vjepa2_large", SPEC, **SIZES)
    state = vjepa2.to_original(ours.state_dict(), ours.tubelet)
    assert state["module.backbone.patch_embed.proj.weight"].shape == (48, 3, 2, 8, 8)
    assert state["module.backbone.blocks.2.attn.qkv.bias"].shape == (144,)
    assert {"module.backbone.norm.weight", "module.backbone.blocks.0.mlp.fc2.weight"} <= state.keys()


def test_every_leftover_is_named() -> None:
    state = dict(theirs("VJEPA2Model").state_dict())
    del state["encoder.layer.1.attention.key.bias"]
    state["encoder.layer.1.gamma"] = torch.ones(1)
    with pytest.raises(CheckpointError, match=r"left over encoder.layer.1.gamma; missing encoder.layer.1.attention.key.bias$"):
        vjepa2.from_huggingface(state)


def test_positions_are_relative() -> None:
    """Moving a query and a key by the same step leaves their product. Heads of 6 channels: one pair and one frequency an axis."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 6, generator=generator).expand(2, 1, 1, 5 * 4 * 3, 6)
    by = vjepa2.rotary_positions((5, 4, 3), 6)
    scores = (vjepa2.turn(q, by) @ vjepa2.turn(k, by).mT).view(5, 4, 3, 5, 4, 3)
    assert scores.std() > 0.1
    torch.testing.assert_close(scores[0, 0, 0, 2, 1, 1], scores[2, 2, 1, 4, 3, 2])


# Published: millions of parameters of the encoders (the paper's 300 M, 600 M and 1 B), and tokens of a clip
@pytest.mark.parametrize(("name", "millions"), [("vjepa2_large", 300), ("vjepa2_huge", 600), ("vjepa2_giant", 1000)])
def test_published_parameters(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = models.build(name, models.clip_of(name))
        sizes = model.options
        peer = transformers.VJEPA2Model(
            transformers.VJEPA2Config(
                hidden_size=sizes["width"],
                num_hidden_layers=sizes["depth"],
                num_attention_heads=sizes["heads"],
                mlp_ratio=sizes["mlp_ratio"],
                patch_size=16,
                tubelet_size=2,
                crop_size=256,
                frames_per_clip=64,
            )
        )
    params = sum(p.numel() for p in model.parameters())
    assert params == sum(p.numel() for p in peer.encoder.parameters())
    assert params / 1e6 == pytest.approx(millions, rel=0.06)
    assert model.grid == (32, 16, 16) and model.attended_pairs() == 8192**2


def test_clips_that_do_not_divide() -> None:
    with pytest.raises(ConfigError, match=r"5 frames of 32x30 .* frames divisible by 2 and sizes divisible by 8"):
        vjepa2.build("vjepa2_large", SPEC, **SIZES)(torch.zeros(1, 5, 3, 30, 32, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="width is 45; heads=3 must divide it, into an even number of channels"):
        vjepa2.build("vjepa2_large", SPEC, **{**SIZES, "width": 45})
