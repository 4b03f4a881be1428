"""ViViT: published sizes, transformers' model 1 on the same random weights, torch's own encoder for the others, image weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet import models
from tubelet.errors import CheckpointError, ConfigError
from tubelet.models import vivit
from tubelet.models._tokens import patchify
from tubelet.records import ClipSpec
from tubelet.train import optim
from tubelet.video.normalize import normalize

from .small import clips, randomise, small

transformers = pytest.importorskip("transformers", reason="transformers (extra [hf]) is not installed")

SPEC = ClipSpec(frames=4, size=32)
SIZES = dict(width=48, depth=3, heads=4, patch=8, temporal_depth=2)


def ours_of(factorised: str = "none", classes: str = "abcde", spec: ClipSpec = SPEC, **options: object) -> vivit.ViViT:
    return vivit.build("vivit_base", spec, list(classes), **{**SIZES, "factorised": factorised, **options}).eval()


def theirs_of(tubelet: int = 2) -> nn.Module:
    config = transformers.VivitConfig(
        image_size=32, num_frames=4, tubelet_size=[tubelet, 8, 8], hidden_size=48, num_hidden_layers=3,
        num_attention_heads=4, intermediate_size=192, num_labels=5,
    )  # fmt: skip
    return transformers.VivitForVideoClassification(config).eval()


def pixel_values(frames: Tensor) -> Tensor:
    return normalize(frames, SPEC.mean, SPEC.std, colour_dim=2)


def image_state() -> dict[str, Tensor]:
    """Random weights of an image ViT in timm's layout, with 16 patches of 8x8 pixels."""
    shapes = {"cls_token": (1, 1, 48), "pos_embed": (1, 17, 48), "patch_embed.proj.weight": (48, 3, 8, 8)}
    shapes |= {
        "patch_embed.proj.bias": (48,),
        "norm.weight": (48,),
        "norm.bias": (48,),
        "head.weight": (7, 48),
        "head.bias": (7,),
    }
    for i in range(3):
        sizes = {
            "norm1": (48,),
            "attn.qkv": (144, 48),
            "attn.proj": (48, 48),
            "norm2": (48,),
            "mlp.fc1": (192, 48),
            "mlp.fc2": (48, 192),
        }
        for name, size in sizes.items():
            shapes |= {f"blocks.{i}.{name}.weight": size, f"blocks.{i}.{name}.bias": size[:1]}
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=generator) * 0.4 for name, shape in shapes.items()}


def torch_encoder(state: dict[str, Tensor], x: Tensor, blocks: str = "blocks", depth: int = 3) -> Tensor:
    """torch's own Transformer encoder with the weights of `state` (exact GELU)."""
    for i in range(depth):
        layer = nn.TransformerEncoderLayer(48, 4, 192, 0.0, F.gelu, 1e-6, batch_first=True, norm_first=True).train()
        names = {
            "self_attn.in_proj_": "attn.qkv.", "self_attn.out_proj.": "attn.proj.", "norm1.": "norm1.", "norm2.": "norm2.",
            "linear1.": "mlp.fc1.", "linear2.": "mlp.fc2.",
        }  # fmt: skip
        parts = ("weight", "bias")
        layer.load_state_dict({a + part: state[f"{blocks}.{i}.{b}{part}"] for a, b in names.items() for part in parts})
        x = layer(x)
    return x


PUBLISHED = {  # table 2 of the paper: parameters in millions, and GFLOPs, which count a little more than products
    "vivit_base": (88.9, 455.2, 9_834_496),
    "vivit_base_factorised_encoder": (115.1, 284.4, 614_912),
    "vivit_base_factorised_attention": (117.3, 372.3, 664_832),
    "vivit_base_factorised_dot_product": (88.9, 277.1, 664_832),
}


def test_published_sizes() -> None:
    with torch.device("meta"):
        built = {name: models.build(name, models.clip_of(name), [str(i) for i in range(400)]) for name in PUBLISHED}
    assert round(sum(p.numel() for p in built["vivit_base"].parameters()) / 1e6, 2) == 88.95
    for name, (params, gmacs, pairs) in PUBLISHED.items():
        cost = models.cost(built[name])
        assert cost["params"] / 1e6 == pytest.approx(params, abs=0.1)
        assert cost["gmacs"] == pytest.approx(gmacs, rel=0.01)
        assert built[name].attended_pairs() == pairs


@pytest.mark.parametrize("layout", ["memory", "disk"])
@pytest.mark.parametrize("tubelet", [1, 2])
def test_model_1_equals_transformers(layout: str, tubelet: int, tmp_path) -> None:
    from safetensors.torch import load_file

    theirs, ours = theirs_of(tubelet), ours_of(tubelet=tubelet)
    randomise(theirs, 0.4)
    state = theirs.state_dict()
    if layout == "disk":
        theirs.save_pretrained(tmp_path)
        state = load_file(tmp_path / "model.safetensors")
    assert any(key.startswith("vivit.layers." if layout == "memory" else "vivit.encoder.layer.") for key in state)
    ours.load_state_dict(vivit.from_huggingface(state))
    frames = clips(SPEC)
    with torch.no_grad():
        wanted, out = theirs(pixel_values(frames), output_hidden_states=True), ours(frames)
        tokens = theirs.vivit(pixel_values(frames)).last_hidden_state
    torch.testing.assert_close(out["logits"], wanted.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([out["embedding"][:, None], out["tokens"]], 1), tokens, rtol=1e-5, atol=1e-5)


def test_transformers_loads_ours(tmp_path) -> None:
    from safetensors.torch import save_file

    ours = ours_of()
    randomise(ours, 0.4)
    theirs_of().save_pretrained(tmp_path)
    save_file(vivit.to_huggingface(ours.state_dict(), ours.tubelet), tmp_path / "model.safetensors", {"format": "pt"})
    theirs = transformers.VivitForVideoClassification.from_pretrained(tmp_path).eval()
    frames = clips(SPEC)
    with torch.no_grad():
        torch.testing.assert_close(ours(frames)["logits"], theirs(pixel_values(frames)).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("classes", ["", "ab"], ids=["bare", "classifier"])
def test_huggingface_round_trip_is_bit_identical(classes: str) -> None:
    ours = ours_of(classes=classes)
    randomise(ours)
    state = ours.state_dict()
    back = vivit.from_huggingface(vivit.to_huggingface(state, ours.tubelet))
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)


def test_every_key_left_over_or_missing_is_named() -> None:
    ours = ours_of()
    state = vivit.to_huggingface(ours.state_dict(), ours.tubelet)
    state["vivit.pooler.dense.weight"] = torch.zeros(1)
    del state["vivit.encoder.layer.1.attention.attention.key.bias"], state["vivit.layernorm.bias"]
    with pytest.raises(CheckpointError) as caught:
        vivit.from_huggingface(state)
    assert str(caught.value) == (
        "3 weights do not fit: left over vivit.pooler.dense.weight; missing vivit.layernorm.bias; "
        "missing vivit.encoder.layer.1.attention.attention.key.bias"
    )
    with pytest.raises(CheckpointError, match="left over temporal_cls_token"):
        vivit.to_huggingface(ours_of("encoder").state_dict(), ours.tubelet)


def test_model_2_is_two_encoders_of_torch() -> None:
    ours = ours_of("encoder", gelu="none")
    randomise(ours, 0.4)
    state, frames = ours.state_dict(), clips(SPEC)
    with torch.no_grad():
        x = patchify(pixel_values(frames), (2, 8, 8)) @ state["embed.weight"].T + state["embed.bias"]
        x = torch.cat([state["cls_token"].expand(4, -1, -1), x.reshape(4, 16, 48)], dim=1) + state["pos_embed"]
        x = torch_encoder(state, x)[:, 0]
        x = F.layer_norm(x, (48,), state["norm.weight"], state["norm.bias"], 1e-6).view(2, 2, 48)
        x = torch.cat([state["temporal_cls_token"].expand(2, -1, -1), x], dim=1) + state["temporal_pos_embed"]
        x = torch_encoder(state, x, "temporal_blocks", 2)
        x = F.layer_norm(x, (48,), state["temporal_norm.weight"], state["temporal_norm.bias"], 1e-6)
        out = ours(frames)
    torch.testing.assert_close(out["embedding"], x[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out["tokens"], x[:, 1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tubelet", [1, 2])
def test_model_3_without_temporal_attention_is_a_vit_of_every_frame(tubelet: int) -> None:
    """As it begins from an image model; with tubelets the "frames" are the middle ones."""
    ours, image = ours_of("attention", gelu="none", tubelet=tubelet), image_state()
    ours.load_state_dict(vivit.from_image(ours, image))
    frames = clips(SPEC)
    with torch.no_grad():
        pictures = pixel_values(frames)[:, tubelet // 2 :: tubelet].flatten(0, 1)
        x = F.conv2d(pictures, image["patch_embed.proj.weight"], image["patch_embed.proj.bias"], stride=8)
        x = torch_encoder(image, x.flatten(2).transpose(1, 2) + image["pos_embed"][:, 1:])
        wanted = F.layer_norm(x, (48,), image["norm.weight"], image["norm.bias"], 1e-6).view(2, -1, 48)
        out = ours(frames)
    torch.testing.assert_close(out["tokens"], wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out["embedding"], wanted.mean(dim=1), rtol=1e-5, atol=1e-5)


def test_model_3_attends_within_slots_then_within_places() -> None:
    """Against torch's own multi-head attention."""
    block = vivit.Block(48, 4, 4.0, "none", 0.0, "attention")
    randomise(block, 0.4)
    x = torch.randn(2, 3, 5, 48)

    def torch_attention(attention: nn.Module, x: Tensor) -> Tensor:
        theirs = nn.MultiheadAttention(48, 4, batch_first=True)
        names = {"in_proj_weight": "qkv.weight", "in_proj_bias": "qkv.bias"}
        names |= {f"out_proj.{part}": f"proj.{part}" for part in ("weight", "bias")}
        theirs.load_state_dict({a: attention.state_dict()[b] for a, b in names.items()})
        return theirs(x, x, x, need_weights=False)[0]

    with torch.no_grad():
        y = x + torch_attention(block.attn, block.norm1(x).flatten(0, 1)).view(x.shape)
        by_place = block.temporal_norm1(y).transpose(1, 2).flatten(0, 1)
        y = y + torch_attention(block.temporal_attn, by_place).view(2, 5, 3, 48).transpose(1, 2)
        y = y + block.mlp(block.norm2(y))
        torch.testing.assert_close(block(x), y, rtol=1e-5, atol=1e-5)


def test_model_4_is_masked_joint_attention() -> None:
    """Half of the heads see only their slot, half only their place: torch's attention over all tokens under a mask a head."""
    attention = vivit.DotProduct(48, 4)
    randomise(attention, 0.4)
    x = torch.randn(2, 3, 5, 48)
    slot, place = torch.arange(15) // 5, torch.arange(15) % 5
    same_slot, same_place = slot[:, None] == slot, place[:, None] == place
    with torch.no_grad():
        q, k, v = attention.qkv(x.flatten(1, 2)).view(2, 15, 3, 4, 12).permute(2, 0, 3, 1, 4)
        mask = torch.stack([same_slot, same_slot, same_place, same_place])
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(2, 15, 48)
        wanted = attention.proj(seen).view(x.shape)
        torch.testing.assert_close(attention(x), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frames", [2, 3, 4])
def test_tubelet_embeddings_that_begin_from_an_image_model(frames: int) -> None:
    """central: the image embedding of frame floor(t/2); inflate: that of the mean frame; against torch's convolution."""
    spec = ClipSpec(frames=2 * frames, size=32)
    model, image = ours_of(spec=spec, tubelet=frames), image_state()
    pixels = pixel_values(clips(spec))
    slots = pixels.unflatten(1, (2, frames))
    values = patchify(pixels, model.tubelet)
    for how, picture in {"central": slots[:, :, frames // 2], "inflate": slots.mean(dim=2)}.items():
        made = vivit.from_image(model, image, how)
        got = values @ made["embed.weight"].T + made["embed.bias"]
        wanted = F.conv2d(picture.flatten(0, 1), image["patch_embed.proj.weight"], image["patch_embed.proj.bias"], stride=8)
        torch.testing.assert_close(got, wanted.flatten(2).transpose(1, 2).reshape(2, 32, 48), rtol=1e-5, atol=1e-5)
    untouched = vivit.from_image(model, image, "random")
    assert all(torch.equal(untouched[key], model.state_dict()[key]) for key in ("embed.weight", "embed.bias", "head.weight"))


def test_positions_of_an_image_model_are_repeated_over_time() -> None:
    image = image_state()
    table = image["pos_embed"][0]
    joint = vivit.from_image(ours_of(), image)
    assert torch.equal(joint["pos_embed"][0], torch.cat([table, table[1:]]))
    assert torch.equal(joint["cls_token"], image["cls_token"])
    for factorised in ("attention", "dot_product"):
        made = vivit.from_image(ours_of(factorised), image)
        assert torch.equal(made["pos_embed"][0], table[1:].repeat(2, 1)) and "cls_token" not in made
    two = vivit.from_image(ours_of("encoder"), image)
    assert torch.equal(two["pos_embed"][0], table) and torch.equal(two["cls_token"], image["cls_token"])


@pytest.mark.parametrize("factorised", vivit.FACTORISED)
def test_image_weights_arrive_and_the_key_bias_with_them(factorised: str) -> None:
    model, image = ours_of(factorised), image_state()
    model.load_state_dict(vivit.from_image(model, image))
    for key in ("blocks.2.attn.qkv.bias", "blocks.0.attn.qkv.weight", "blocks.1.mlp.fc2.bias", "norm.weight"):
        assert torch.equal(model.state_dict()[key], image[key])


def test_image_positions_are_interpolated_to_another_grid() -> None:
    model, image = ours_of(spec=ClipSpec(frames=4, size=48)), image_state()
    made = vivit.from_image(model, image)["pos_embed"][0, 1:37]
    table = image["pos_embed"][:, 1:].view(1, 4, 4, 48).permute(0, 3, 1, 2)
    wanted = F.interpolate(table, size=(6, 6), mode="bilinear", align_corners=False)[0].flatten(1).T
    torch.testing.assert_close(made, wanted)


def test_from_image_names_what_does_not_fit() -> None:
    model, image = ours_of(), image_state()
    with pytest.raises(CheckpointError, match=r"2 weights .*: left over pre_logits.fc.bias; missing blocks.0.norm1.bias"):
        odd = {**image, "pre_logits.fc.bias": torch.zeros(1)}
        del odd["blocks.0.norm1.bias"]
        vivit.from_image(model, odd)
    with pytest.raises(CheckpointError, match=r"1 weights .* blocks.1.norm2.bias is \(47,\), wanted \(48,\)"):
        vivit.from_image(model, {**image, "blocks.1.norm2.bias": torch.zeros(47)})
    with pytest.raises(ConfigError, match="unknown way to begin from an image model 'centre'"):
        vivit.from_image(model, image, "centre")


@pytest.mark.parametrize("factorised", vivit.FACTORISED)
def test_other_clips_than_it_was_built_for(factorised: str) -> None:
    model = ours_of(factorised)
    longer = models.build_like(model, spec=ClipSpec(frames=8, size=48)).eval()
    longer.load_state_dict(model.state_dict())
    assert longer.options == model.options
    tokens = longer(clips(longer.spec))["tokens"]
    assert tokens.shape == (2, 4 if factorised == "encoder" else 4 * 36, 48) and tokens.isfinite().all()


@pytest.mark.parametrize("factorised", vivit.FACTORISED)
def test_it_knows_the_order_of_frames(factorised: str) -> None:
    model = ours_of(factorised)
    randomise(model, 0.4)
    frames = clips(SPEC)
    assert (model(frames)["logits"] - model(frames.flip(1))["logits"]).abs().max() > 1e-3


@pytest.mark.parametrize("factorised", vivit.FACTORISED)
def test_drop_path_only_while_training(factorised: str) -> None:
    model = ours_of(factorised, drop_path=0.5)
    randomise(model, 0.4)
    frames = clips(SPEC)
    plain = ours_of(factorised)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(frames)["logits"], plain(frames)["logits"])
    torch.manual_seed(0)
    assert any(not torch.equal(model.train()(frames)["logits"], plain(frames)["logits"]) for _ in range(8))


def test_depth_runs_through_both_encoders() -> None:
    model = small("vivit_base_factorised_encoder", ("a", "b"))
    depths = {
        "embed.weight": 0, "cls_token": 0, "pos_embed": 0, "blocks.1.norm1.bias": 2, "norm.weight": 2,
        "temporal_cls_token": 3, "temporal_pos_embed": 3, "temporal_blocks.0.mlp.fc1.bias": 3, "temporal_norm.bias": 4,
        "head.bias": 4,
    }  # fmt: skip
    assert {name: model.depth_of(name) for name in depths} == depths and model.depth == 3
    still = {name for group in optim.groups(model, 0.1, 1.0) if group["weight_decay"] == 0 for name in group["names"]}  # type: ignore[attr-defined]
    assert {"pos_embed", "temporal_pos_embed", "cls_token", "temporal_cls_token"} <= still and "embed.weight" not in still


def test_errors_say_what_fits() -> None:
    with pytest.raises(
        ConfigError, match=r"vivit_base got clips of 5 frames of 32x32 .* frames divisible by 2 .*\(set clip.frames"
    ):
        small("vivit_base")(torch.zeros(1, 5, 3, 32, 32))
    with pytest.raises(ConfigError, match="heads is 3: factorised dot-product attention needs an even number that divides 24"):
        small("vivit_base_factorised_dot_product", heads=3)
    with pytest.raises(ConfigError, match="width is 25, which heads=2 does not divide"):
        small("vivit_base", width=25)
    with pytest.raises(ConfigError, match="unknown factorised 'encodr': did you mean 'encoder'"):
        small("vivit_base", factorised="encodr")
