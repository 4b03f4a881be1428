"""TimeSformer: published sizes, transformers' on the same random weights, and the image ViT it comes from."""

import pytest
import torch
from torch import Tensor

from tubelet import models
from tubelet.errors import CheckpointError, ConfigError
from tubelet.models import _tokens, timesformer
from tubelet.records import ClipSpec
from tubelet.train import optim
from tubelet.video.normalize import normalize

from .small import clips, randomise, small

transformers = pytest.importorskip("transformers", reason="transformers (extra [hf]) is not installed")

SPEC = ClipSpec(frames=4, size=32)
SIZES = dict(width=48, depth=3, heads=3, patch=8)
KINDS = {"divided": "divided_space_time", "joint": "joint_space_time", "space": "space_only"}


def ours_of(attention: str, classes: str = "abcde", spec: ClipSpec = SPEC, **options: object) -> timesformer.TimeSformer:
    return timesformer.build("timesformer_base", spec, list(classes), **SIZES, attention=attention, **options).eval()


def theirs_of(attention: str) -> torch.nn.Module:
    config = transformers.TimesformerConfig(
        image_size=32, patch_size=8, num_frames=4, hidden_size=48, num_hidden_layers=3, num_attention_heads=3,
        intermediate_size=192, attention_type=KINDS[attention], num_labels=5,
    )  # fmt: skip
    return transformers.TimesformerForVideoClassification(config).eval()


def pixel_values(frames: Tensor) -> Tensor:
    return normalize(frames, SPEC.mean, SPEC.std, colour_dim=2)


def image_vit() -> torch.nn.Module:
    """transformers' image ViT with random weights."""
    config = transformers.ViTConfig(
        image_size=32, patch_size=8, hidden_size=48, num_hidden_layers=3, num_attention_heads=3, intermediate_size=192,
        layer_norm_eps=1e-6,
    )  # fmt: skip
    vit = transformers.ViTModel(config, add_pooling_layer=False).eval()
    randomise(vit, 0.4)
    return vit


def timm_state(vit: torch.nn.Module) -> dict[str, Tensor]:
    """Its weights under timm's names, written here independently of our maps."""
    state = vit.state_dict()
    out = {
        "cls_token": state["embeddings.cls_token"], "pos_embed": state["embeddings.position_embeddings"],
        "head.weight": torch.zeros(7, 48), "head.bias": torch.zeros(7),
    }  # fmt: skip
    for part in ("weight", "bias"):
        out[f"patch_embed.proj.{part}"] = state[f"embeddings.patch_embeddings.projection.{part}"]
        out[f"norm.{part}"] = state[f"layernorm.{part}"]
        for i in range(3):
            qkv = [state[f"layers.{i}.attention.{name}_proj.{part}"] for name in "qkv"]
            out[f"blocks.{i}.attn.qkv.{part}"] = torch.cat(qkv)
            out[f"blocks.{i}.attn.proj.{part}"] = state[f"layers.{i}.attention.o_proj.{part}"]
            out[f"blocks.{i}.norm1.{part}"] = state[f"layers.{i}.layernorm_before.{part}"]
            out[f"blocks.{i}.norm2.{part}"] = state[f"layers.{i}.layernorm_after.{part}"]
            out[f"blocks.{i}.mlp.fc1.{part}"] = state[f"layers.{i}.mlp.fc1.{part}"]
            out[f"blocks.{i}.mlp.fc2.{part}"] = state[f"layers.{i}.mlp.fc2.{part}"]
    return out


def test_published_sizes() -> None:
    """Parameters and pairs of FACTS; the paper's TFLOPs are of 3 views: 0.59, 5.11 and 7.14 (table 4)."""
    with torch.device("meta"):
        built = {name: models.build(name, models.clip_of(name), [str(i) for i in range(400)]) for name in timesformer.VARIANTS}
    assert round(sum(p.numel() for p in built["timesformer_base"].parameters()) / 1e6, 2) == 121.57
    pairs = {name: model.attended_pairs() for name, model in built.items()}
    assert pairs["timesformer_base"] == 319_872 and pairs["timesformer_base_joint"] == 2_458_624
    assert pairs["timesformer_base_space"] == 8 * 196**2
    for name, tflops in {"timesformer_base": 0.59, "timesformer_hr": 5.11, "timesformer_long": 7.14}.items():
        assert round(3 * models.cost(built[name])["gmacs"] / 1e3, 2) == tflops


@pytest.mark.parametrize("attention", KINDS)
def test_equals_transformers(attention: str) -> None:
    theirs, ours = theirs_of(attention), ours_of(attention)
    randomise(theirs, 0.4)
    ours.load_state_dict(timesformer.from_huggingface(theirs.state_dict()))
    frames = clips(SPEC)
    with torch.no_grad():
        wanted = theirs.timesformer(pixel_values(frames), output_hidden_states=True)
        out = ours(frames)
        if attention == "space":  # transformers leaves the frames apart; the paper averages their cls tokens before the norm
            cls = wanted.hidden_states[-1][:, 0].unflatten(0, (2, 4)).mean(dim=1)
            logits = theirs.classifier(theirs.timesformer.layernorm(cls))
            tokens = wanted.last_hidden_state[:, 1:].reshape(2, 4 * 16, 48)
        else:
            logits = theirs(pixel_values(frames)).logits
            tokens = wanted.last_hidden_state[:, 1:].unflatten(1, (16, 4)).transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close(out["tokens"], tokens, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out["logits"], logits, rtol=1e-5, atol=1e-5)


def test_gradients_equal_transformers() -> None:
    theirs, ours = theirs_of("divided"), ours_of("divided")
    randomise(theirs, 0.4)
    ours.load_state_dict(timesformer.from_huggingface(theirs.state_dict()))
    frames, labels = clips(SPEC), torch.tensor([1, 3])
    torch.nn.functional.cross_entropy(theirs(pixel_values(frames)).logits, labels).backward()
    torch.nn.functional.cross_entropy(ours(frames)["logits"], labels).backward()
    wanted = timesformer.from_huggingface({name: p.grad for name, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-5)


def test_transformers_loads_ours(tmp_path) -> None:
    from safetensors.torch import save_file

    ours = ours_of("divided")
    randomise(ours)
    theirs_of("divided").save_pretrained(tmp_path)
    save_file(timesformer.to_huggingface(ours.state_dict()), tmp_path / "model.safetensors", {"format": "pt"})
    theirs = transformers.TimesformerForVideoClassification.from_pretrained(tmp_path).eval()
    frames = clips(SPEC)
    with torch.no_grad():
        torch.testing.assert_close(ours(frames)["logits"], theirs(pixel_values(frames)).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["original", "huggingface"])
@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("classes", ["", "ab"], ids=["bare", "classifier"])
def test_key_layouts_round_trip(layout: str, attention: str, classes: str) -> None:
    ours = ours_of(attention, classes)
    randomise(ours)
    state = ours.state_dict()
    written = getattr(timesformer, f"to_{layout}")(state)
    back = getattr(timesformer, f"from_{layout}")(written)
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)


def test_original_key_names() -> None:
    written = timesformer.to_original(ours_of("divided").state_dict())
    block = ("temporal_norm1", "temporal_attn.qkv", "temporal_attn.proj", "temporal_fc", "norm1", "attn.qkv", "attn.proj",
             "norm2", "mlp.fc1", "mlp.fc2")  # fmt: skip
    modules = ["patch_embed.proj", "norm", "head", *(f"blocks.{i}.{name}" for i in range(3) for name in block)]
    wanted = {f"model.{name}.{part}" for name in modules for part in ("weight", "bias")}
    assert set(written) == wanted | {"model.cls_token", "model.pos_embed", "model.time_embed"}
    assert written["model.time_embed"].shape == (1, 4, 48) and written["model.patch_embed.proj.weight"].shape == (48, 3, 8, 8)


def test_every_key_left_over_or_missing_is_named() -> None:
    state = timesformer.to_original(ours_of("divided").state_dict())
    state["model.blocks.1.ls1.gamma"] = state["model.extra"] = torch.zeros(1)
    del state["model.norm.bias"], state["model.blocks.2.temporal_fc.weight"]
    with pytest.raises(CheckpointError) as caught:
        timesformer.from_original(state)
    assert str(caught.value) == (
        "4 weights do not fit: left over model.blocks.1.ls1.gamma; left over model.extra; "
        "missing model.norm.bias; missing model.blocks.2.temporal_fc.weight"
    )


@pytest.mark.parametrize("case", ["equal frames", "one frame"])
def test_without_temporal_projection_it_is_the_image_vit(case: str) -> None:
    spec = ClipSpec(frames=1, size=32) if case == "one frame" else SPEC
    vit, ours = image_vit(), ours_of("divided", spec=spec)
    ours.load_state_dict(timesformer.from_image(ours, timm_state(vit)))
    picture = clips(ClipSpec(frames=1, size=32))
    frames = picture.expand(-1, spec.frames, -1, -1, -1)
    with torch.no_grad():
        wanted = vit(pixel_values(picture)[:, 0]).last_hidden_state
        out = ours(frames)
    torch.testing.assert_close(out["embedding"], wanted[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out["tokens"], wanted[:, 1:].repeat(1, spec.frames, 1), rtol=1e-5, atol=1e-5)


def test_space_only_is_the_image_vit_of_every_frame() -> None:
    vit, ours = image_vit(), ours_of("space")
    ours.load_state_dict(timesformer.from_image(ours, timm_state(vit)))
    frames = clips(SPEC)
    with torch.no_grad():
        wanted = vit(pixel_values(frames).flatten(0, 1)).last_hidden_state[:, 1:]
        out, shuffled = ours(frames), ours(frames[:, [2, 0, 3, 1]])
    torch.testing.assert_close(out["tokens"].reshape(8, 16, 48), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out["logits"], shuffled["logits"], rtol=1e-5, atol=1e-5)


def test_from_image_copies_spatial_attention_to_temporal() -> None:
    ours, state = ours_of("divided"), timm_state(image_vit())
    fresh = {key: value.clone() for key, value in ours.state_dict().items()}
    for how in ("zero", "copy"):
        made = timesformer.from_image(ours, state, how)
        assert torch.equal(made["blocks.1.temporal_attn.qkv.weight"], state["blocks.1.attn.qkv.weight"])
        assert torch.equal(made["blocks.2.temporal_norm1.bias"], state["blocks.2.norm1.bias"])
        assert not made["time_embed"].any() and torch.equal(made["head.weight"], fresh["head.weight"])
        assert made["blocks.0.temporal_fc.weight"].any() == (how == "copy")
    assert all(torch.equal(value, fresh[key]) for key, value in ours.state_dict().items())


def test_from_image_names_what_does_not_fit() -> None:
    ours, state = ours_of("divided"), timm_state(image_vit())
    deeper = {**state, "blocks.3.norm1.weight": torch.ones(48), "fc_norm.weight": torch.ones(48)}
    with pytest.raises(CheckpointError, match=r"2 weights .* left over blocks.3.norm1.weight; left over fc_norm.weight"):
        timesformer.from_image(ours, deeper)
    odd = {**state, "cls_token": torch.zeros(1, 1, 47), "patch_embed.proj.weight": torch.zeros(48, 3, 16, 16)}
    with pytest.raises(CheckpointError, match=r"cls_token is \(1, 1, 47\), wanted \(1, 1, 48\); embed.weight is \(48, 768\)"):
        timesformer.from_image(ours, odd)
    with pytest.raises(CheckpointError, match="pos_embed has 15 patches besides the cls token, wanted a square"):
        timesformer.from_image(ours, {**state, "pos_embed": torch.zeros(1, 16, 48)})
    with pytest.raises(ConfigError, match="unknown way to begin from an image model 'zeros': did you mean 'zero'"):
        timesformer.from_image(ours, state, "zeros")


@pytest.mark.parametrize("attention", ["divided", "joint"])
def test_it_knows_the_order_of_frames(attention: str) -> None:
    model = ours_of(attention)
    randomise(model, 0.4)
    frames = clips(SPEC)
    assert (model(frames)["logits"] - model(frames.flip(1))["logits"]).abs().max() > 1e-3


def test_positions_are_interpolated_for_other_clips() -> None:
    model = ours_of("divided")
    randomise(model)
    longer = models.build_like(model, spec=ClipSpec(frames=8, size=48)).eval()
    longer.load_state_dict(model.state_dict())
    assert longer.options == model.options and longer.attended_pairs() == 8 * 36**2 + 36 * 8**2
    assert longer(clips(longer.spec))["tokens"].shape == (2, 8 * 36, 48)
    got = longer._positions((8, 4, 4)).view(8, 16, 48)
    # half-pixel centres: moments at -0.25 (clamped), 0.25, 0.75, 1.25, ... of the four known ones
    time, space = model.time_embed[0], model.pos_embed[0, 1:]
    torch.testing.assert_close(got[0], time[0] + space)
    torch.testing.assert_close(got[2], 0.25 * time[0] + 0.75 * time[1] + space)


def test_positions_and_cls_token_do_not_decay() -> None:
    model = small("timesformer_base", ("a", "b"))
    still = {name for group in optim.groups(model, 0.1, 1.0) if group["weight_decay"] == 0 for name in group["names"]}  # type: ignore[attr-defined]
    assert {"pos_embed", "time_embed", "cls_token"} <= still and "embed.weight" not in still


def test_errors_say_what_fits() -> None:
    with pytest.raises(
        ConfigError, match=r"timesformer_base got clips of 4 frames of 30x32 .* sizes divisible by 8 \(set clip"
    ):
        small("timesformer_base")(torch.zeros(1, 4, 3, 32, 30))
    with pytest.raises(ConfigError, match="with 1 colours; it takes 3 colours"):
        small("timesformer_base")(torch.zeros(1, 4, 1, 32, 32))
    with pytest.raises(ConfigError, match="width is 25, which heads=2 does not divide"):
        small("timesformer_base", width=25)
    with pytest.raises(ConfigError, match="unknown attention 'dividet': did you mean 'divided'"):
        small("timesformer_base", attention="dividet")


def test_embedding_weights_and_convolutions_change_into_each_other() -> None:
    """Against torch's own convolution."""
    conv = torch.nn.Conv3d(3, 5, (2, 4, 4), (2, 4, 4), bias=False)
    frames = torch.randn(2, 4, 3, 8, 8)
    linear = _tokens.linear_weight(conv.weight)
    got = _tokens.patchify(frames, (2, 4, 4)) @ linear.T
    torch.testing.assert_close(got, conv(frames.transpose(1, 2)).flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)
    assert torch.equal(_tokens.conv_weight(linear, (2, 4, 4)), conv.weight)
