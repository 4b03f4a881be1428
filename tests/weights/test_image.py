"""Video models that begin from image models: equal to the image model where they must be, and nothing goes unsaid."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from tubelet import models
from tubelet.cli import main
from tubelet.errors import CheckpointError, ConfigError
from tubelet.models._resnet import ResNet
from tubelet.video.normalize import normalize
from tubelet.weights import files, image
from tubelet.weights.load import load_model

transformers = pytest.importorskip("transformers", reason="transformers (extra [hf]) is not installed")

SIZES = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=192, image_size=32, patch_size=8)
OPTIONS = dict(width=48, depth=2, heads=3, patch=8)
CLIP = dict(frames=4, size=32)
VIDEOMAE = dict(OPTIONS, decoder_width=12, decoder_depth=1, decoder_heads=2)


def randomise(model: nn.Module, scale: float = 0.3) -> nn.Module:
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape) * scale if "running_var" not in name else torch.rand(value.shape) + 0.5)
    return model.eval()


def vit(kind: str = "ViTModel", **options: object) -> nn.Module:
    """transformers' image model of that name with random weights."""
    config = getattr(transformers, kind.replace("Model", "Config").replace("ForImageClassification", "Config")
                     .replace("ForPreTraining", "Config"))  # fmt: skip
    return randomise(getattr(transformers, kind)(config(**SIZES, **options)))


def timm(extra: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """A ViT's random weights under timm's names."""
    shapes = {"cls_token": (1, 1, 48), "pos_embed": (1, 17, 48), "patch_embed.proj.weight": (48, 3, 8, 8), "norm.weight": (48,),
              "patch_embed.proj.bias": (48,), "norm.bias": (48,), "head.weight": (7, 48), "head.bias": (7,)}  # fmt: skip
    for i in range(2):
        for name, (out, into) in {
            "attn.qkv": (144, 48),
            "attn.proj": (48, 48),
            "mlp.fc1": (192, 48),
            "mlp.fc2": (48, 192),
        }.items():
            shapes |= {f"blocks.{i}.{name}.weight": (out, into), f"blocks.{i}.{name}.bias": (out,)}
        shapes |= {f"blocks.{i}.{norm}.{part}": (48,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
    return {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()} | (extra or {})


def as_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of transformers' ViT, as it has them in memory, under timm's names; written here independently of our maps."""
    out = {"cls_token": state["embeddings.cls_token"], "pos_embed": state["embeddings.position_embeddings"]}
    for part in ("weight", "bias"):
        out[f"patch_embed.proj.{part}"] = state[f"embeddings.patch_embeddings.projection.{part}"]
        out[f"norm.{part}"] = state[f"layernorm.{part}"]
        for i in range(2):
            ours, theirs = f"blocks.{i}.", f"layers.{i}."
            out[f"{ours}attn.qkv.{part}"] = torch.cat([state[f"{theirs}attention.{x}_proj.{part}"] for x in "qkv"])
            names = {"attn.proj": "attention.o_proj", "norm1": "layernorm_before", "norm2": "layernorm_after", "mlp.fc1": "mlp.fc1",
                     "mlp.fc2": "mlp.fc2"}  # fmt: skip
            out |= {f"{ours}{a}.{part}": state[f"{theirs}{b}.{part}"] for a, b in names.items()}
    return out


def saved(state: dict[str, Tensor], folder: Path, config: dict[str, object] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({key: value.contiguous().clone() for key, value in state.items()}, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def pictures(count: int = 2, size: int = 32) -> Tensor:
    return torch.randint(0, 256, (count, 1, 3, size, size), dtype=torch.uint8)


def values(model: models.Model, frames: Tensor) -> Tensor:
    """(B,1,C,H,W) as an image model sees them: (B,C,H,W)."""
    return normalize(frames, model.spec.mean, model.spec.std, colour_dim=2)[:, 0]


def on_disk(model: nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)  # type: ignore[operator]
    return folder


@pytest.mark.parametrize("spelling", ["memory", "disk"])
@pytest.mark.parametrize("kind", ["ViTModel", "ViTForImageClassification", "ViTMAEForPreTraining", "DeiTModel"])
def test_timesformer_of_one_frame_is_the_image_vit(kind: str, spelling: str, tmp_path: Path) -> None:
    extra = dict(decoder_hidden_size=12, decoder_num_hidden_layers=1, decoder_num_attention_heads=2, mask_ratio=0.0)
    theirs = vit(kind, **(extra if "MAE" in kind else {}))
    config = {**theirs.config.to_dict(), "id2label": None}
    path = on_disk(theirs, tmp_path / "vit") if spelling == "disk" else saved(theirs.state_dict(), tmp_path / "vit", {
        key: config[key] for key in ("num_attention_heads", "hidden_act")})  # fmt: skip
    ours, account = image.begin(path, "timesformer_base", dict(frames=1, size=32), options=OPTIONS)
    assert account["layout"] == "huggingface" and account["sha256"] == files.sha256([path / "model.safetensors"])
    named = set(account["left_behind"])
    heads = {"ViTModel": "pooler.dense.weight", "ViTForImageClassification": "classifier.weight",
             "ViTMAEForPreTraining": "decoder.decoder_pred.bias", "DeiTModel": "embeddings.distillation_token"}  # fmt: skip
    assert heads[kind] in named
    if kind == "DeiTModel":  # it has another token among the others, so that its outputs are not comparable
        table = theirs.state_dict()["embeddings.position_embeddings"]
        assert torch.equal(ours.state_dict()["pos_embed"], table[:, [0, *range(2, 18)]])
        return
    frames = pictures()
    encoder = theirs if kind == "ViTModel" else theirs.vit
    with torch.no_grad():
        if "MAE" in kind:  # which shuffles its tokens: noise that grows keeps them in order
            wanted = encoder(values(ours, frames), noise=torch.arange(16.0).expand(2, -1)).last_hidden_state
        else:
            wanted = encoder(values(ours, frames)).last_hidden_state
        out = ours(frames)
    torch.testing.assert_close(out["embedding"], wanted[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out["tokens"], wanted[:, 1:], rtol=1e-4, atol=1e-4)


def openai(theirs: nn.Module) -> dict[str, Tensor]:
    """A CLIP tower under OpenAI's names, written here independently of our maps, in half precision, and some of the text side."""
    state = theirs.state_dict()
    out = {"visual.class_embedding": state["embeddings.class_embedding"], "visual.proj": torch.zeros(48, 8),
           "visual.conv1.weight": state["embeddings.patch_embedding.weight"], "logit_scale": torch.ones(()),
           "visual.positional_embedding": state["embeddings.position_embedding.weight"], "text_projection": torch.ones(3, 3),
           "transformer.resblocks.0.ln_1.weight": torch.ones(3), "positional_embedding": torch.ones(3, 3)}  # fmt: skip
    for part in ("weight", "bias"):
        out[f"visual.ln_pre.{part}"], out[f"visual.ln_post.{part}"] = (
            state[f"pre_layrnorm.{part}"],
            state[f"post_layernorm.{part}"],
        )
        for i in range(2):
            ours, block = f"visual.transformer.resblocks.{i}.", f"encoder.layers.{i}."
            out[f"{ours}attn.in_proj_{part}"] = torch.cat([state[f"{block}self_attn.{x}_proj.{part}"] for x in "qkv"])
            names = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1",
                     "mlp.c_proj": "mlp.fc2"}  # fmt: skip
            out |= {f"{ours}{a}.{part}": state[f"{block}{b}.{part}"] for a, b in names.items()}
    return {key: value.half() for key, value in out.items()}


def test_timesformer_of_one_frame_is_the_vit_under_timm_s_names(tmp_path: Path) -> None:
    theirs = vit()
    path = saved(as_timm(theirs.state_dict()), tmp_path / "vit")
    ours, account = image.begin(path, "timesformer_base", dict(frames=1, size=32), options=OPTIONS)
    assert account["layout"] == "timm" and not account["left_behind"]
    frames = pictures()
    with torch.no_grad():
        wanted = theirs(values(ours, frames)).last_hidden_state
        torch.testing.assert_close(ours(frames)["tokens"], wanted[:, 1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["tower", "vision_model", "openai"])
def test_vivit_of_one_frame_is_the_clip_tower(layout: str, tmp_path: Path) -> None:
    theirs = vit("CLIPVisionModel")
    theirs.load_state_dict({key: value.half().float() for key, value in theirs.state_dict().items()})
    state = theirs.state_dict()
    if layout == "vision_model":
        state = {f"vision_model.{key}": value for key, value in state.items()} | {"visual_projection.weight": torch.ones(2, 2)}
        state |= {"text_model.final_layer_norm.weight": torch.ones(2), "logit_scale": torch.ones(())}
    path = saved(openai(theirs) if layout == "openai" else state, tmp_path / "clip")
    options = dict(OPTIONS, tubelet=1)
    ours, account = image.begin(path, "vivit_base", dict(frames=1, size=32), options=options)
    assert ours.options["gelu"] == "quick" and ours.options["norm_pre"] and ours.spec.mean == image.CLIP[0]
    assert any("quick GELU" in line for line in account["notes"])
    frames = pictures()
    with torch.no_grad():
        wanted = theirs(values(ours, frames))
        out = ours(frames)
    torch.testing.assert_close(out["embedding"], wanted.pooler_output, rtol=1e-4, atol=1e-4)
    for family in ("timesformer_base", "videomae_tiny"):
        with pytest.raises(CheckpointError, match="quick GELU and a LayerNorm before its first block, which .* begin a vivit"):
            image.begin(path, family, CLIP, options=OPTIONS)


@pytest.mark.parametrize("how", ["central", "inflate"])
@pytest.mark.parametrize("variant", ["vivit_base", "vivit_base_factorised_encoder", "videomae_tiny"])
def test_tubelets_see_the_middle_frame_or_the_mean_frame(variant: str, how: str, tmp_path: Path) -> None:
    state = timm()
    sizes = VIDEOMAE if variant == "videomae_tiny" else OPTIONS
    ours, account = image.begin(saved(state, tmp_path / "vit"), variant, CLIP, how, options=sizes | {"heads": 3})
    frames = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    seen: list[Tensor] = []
    hook = ours.embed.register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.no_grad():
        ours(frames)
    hook.remove()
    slots = normalize(frames, ours.spec.mean, ours.spec.std, colour_dim=2).unflatten(1, (2, 2))
    picture = (slots[:, :, 1] if how == "central" else slots.mean(dim=2)).flatten(0, 1)
    wanted = F.conv2d(picture, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=8)
    torch.testing.assert_close(seen[0], wanted.flatten(2).mT.reshape(2, 32, 48), rtol=1e-5, atol=1e-5)
    assert account["how"] == how and ("cls_token" in account["left_behind"]) == (variant == "videomae_tiny")


def test_videomae_s_blocks_are_the_image_vit_s_without_a_bias_of_keys(tmp_path: Path) -> None:
    state = timm()
    ours, account = image.begin(saved(state, tmp_path / "vit"), "videomae_tiny", CLIP, options=VIDEOMAE)
    with_keys, _ = image.begin(tmp_path / "vit", "vivit_base", CLIP, options=OPTIONS)
    assert state["blocks.0.attn.qkv.bias"][48:96].abs().min() > 0
    x = y = torch.randn(2, 5, 48)
    with torch.no_grad():
        for mine, theirs in zip(ours.blocks, with_keys.blocks, strict=True):
            x, y = mine(x), theirs(y)
    torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
    left = account["left_behind"]
    assert {"cls_token", "pos_embed", "blocks.0.attn.qkv.bias", "blocks.1.attn.qkv.bias", "head.weight", "head.bias"} == set(
        left
    )
    assert "softmax does not see" in left["blocks.1.attn.qkv.bias"]
    assert torch.equal(ours.state_dict()["norm.weight"], state["norm.weight"])
    assert all(name.startswith("decoder.") for name in account["new"]) and "decoder.mask_token" in account["new"]


def test_leftovers_of_mae_and_deit_are_named(tmp_path: Path) -> None:
    mae = {"mask_token": torch.ones(1, 1, 4), "decoder_embed.weight": torch.ones(4, 48), "decoder_pos_embed": torch.ones(1, 17, 4),
           "decoder_blocks.0.norm1.weight": torch.ones(4)}  # fmt: skip
    _, account = image.begin(saved(timm(mae), tmp_path / "mae"), "vivit_base", CLIP, options=OPTIONS)
    assert set(account["left_behind"]) == {*mae, "head.weight", "head.bias"}
    deit = {"dist_token": torch.ones(1, 1, 48), "head_dist.weight": torch.ones(7, 48), "pos_embed": torch.randn(1, 18, 48)}
    ours, account = image.begin(saved(timm(deit), tmp_path / "deit"), "timesformer_base", CLIP, options=OPTIONS)
    assert set(account["left_behind"]) == {"dist_token", "head_dist.weight", "head.weight", "head.bias"}
    assert torch.equal(ours.state_dict()["pos_embed"], deit["pos_embed"][:, [0, *range(2, 18)]])
    assert ours.spec.mean == image.IMAGENET[0]
    averaged = timm({"fc_norm.weight": torch.ones(48), "fc_norm.bias": torch.ones(48)})
    del averaged["norm.weight"], averaged["norm.bias"]
    _, account = image.begin(saved(averaged, tmp_path / "averaged"), "vivit_base_factorised_attention", CLIP, options=OPTIONS)
    assert {"fc_norm.bias", "cls_token"} <= set(account["left_behind"])
    assert any(line.startswith("new: norm begins at 1 and 0") for line in account["notes"])


def test_positions_of_other_sizes_are_interpolated_and_it_is_said(tmp_path: Path) -> None:
    saved(timm(), tmp_path / "vit")
    _, account = image.begin(tmp_path / "vit", "vivit_base", dict(frames=4, size=48), options=OPTIONS)
    assert "interpolated: positions of 4x4 patches to 6x6" in account["notes"]


RESNETS = [
    "cnn_lstm_resnet18",
    "single_frame_resnet18",
    "late_fusion_pool_resnet18",
    "early_fusion_resnet18",
    "two_stream_resnet18",
]


def resnet(layers: int = 18) -> ResNet:
    net = ResNet(layers, 8)
    randomise(net, 0.2)
    return net


def resnet_state(net: ResNet) -> dict[str, Tensor]:
    return net.state_dict() | {"fc.weight": torch.ones(5, net.width), "fc.bias": torch.ones(5)}


@pytest.mark.parametrize("variant", RESNETS)
def test_a_clip_of_equal_frames_gives_the_resnet_s_map(variant: str, tmp_path: Path) -> None:
    net = resnet()
    small = dict(channels=8, hidden=4) if variant.startswith("cnn") else dict(width=8)
    options = small | (dict(streams="both") if variant.startswith("two") else {})
    ours, account = image.begin(saved(resnet_state(net), tmp_path / "net"), variant, dict(frames=3, size=64), options=options)
    assert {"fc.weight", "fc.bias"} <= set(account["left_behind"]) and not any("conv" in name for name in account["new"])
    frames = pictures(size=64).expand(-1, 3, -1, -1, -1)
    with torch.no_grad():
        wanted = net(values(ours, frames))
        if variant.startswith("cnn"):
            got = ours.cnn(values(ours, frames))
        elif variant.startswith("two"):
            got = ours.spatial(values(ours, frames))
            flow, grey = torch.randn(2, 4, 64, 64), net.conv1.weight.mean(dim=1, keepdim=True)
            torch.testing.assert_close(ours.temporal.conv1(flow), F.conv2d(flow.sum(1, keepdim=True), grey, None, 2, 3))
        else:
            out = ours(frames)
            torch.testing.assert_close(out["embedding"], wanted.mean(dim=(2, 3)), rtol=1e-4, atol=1e-4)
            return
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_i3d_of_a_constant_clip_is_the_picture_network(tmp_path: Path) -> None:
    net = resnet(50)
    path = saved(resnet_state(net), tmp_path / "net")
    ours, account = image.begin(path, "i3d_r50", dict(frames=4, size=64), options=dict(width=8, time_padding="replicate"))
    assert account["how"] == "inflate" and account["new"] == []
    frames = pictures(size=64)
    with torch.no_grad():
        wanted = net(values(ours, frames)).mean(dim=(2, 3))
        got = ours(frames.expand(-1, 4, -1, -1, -1))["embedding"]
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_i3d_begins_from_googlenet(tmp_path: Path) -> None:
    like = models.build("i3d_inception", models.ClipSpec(frames=8, size=48), ["a"], width=8)
    state = {key.removeprefix("trunk."): value for key, value in like.state_dict().items() if key.startswith("trunk.")}
    state = {key: torch.randn(value.shape)[:, :, 0] if value.ndim == 5 else value for key, value in state.items()}
    state |= {"aux1.conv.conv.weight": torch.ones(3), "fc.weight": torch.ones(2, 128), "fc.bias": torch.ones(2)}
    path = saved(state, tmp_path / "net")
    ours, account = image.begin(path, "i3d_inception", dict(frames=8, size=48), options=dict(width=8))
    assert set(account["left_behind"]) == {"aux1.conv.conv.weight", "fc.weight", "fc.bias"} and ours.spec.mean == (
        0.5,
        0.5,
        0.5,
    )
    stem = ours.state_dict()["trunk.conv1.conv.weight"]
    torch.testing.assert_close(stem.sum(dim=2), state["conv1.conv.weight"])
    with pytest.raises(
        CheckpointError, match=r"is a GoogLeNet \(Inception-v1\), and i3d_r50 cannot begin from it: .*left over"
    ):
        image.begin(path, "i3d_r50", dict(frames=8, size=48), options=dict(width=8))


def test_what_does_not_fit_is_one_line_that_names_it(tmp_path: Path) -> None:
    odd = timm({"blocks.0.ls1.gamma": torch.ones(48), "blocks.1.norm2.weights": torch.ones(48)})
    del odd["blocks.1.norm2.weight"]
    saved(odd, tmp_path / "odd")
    for variant, sizes in {"vivit_base": OPTIONS, "timesformer_base": OPTIONS, "videomae_tiny": VIDEOMAE}.items():
        with pytest.raises(CheckpointError) as caught:
            image.begin(tmp_path / "odd", variant, CLIP, options=sizes)
        assert str(caught.value).endswith(
            "3 weights do not fit: left over blocks.0.ls1.gamma; left over blocks.1.norm2.weights; "
            "missing blocks.1.norm2.weight (left over is blocks.1.norm2.weights)"
        )
    alone = vit().state_dict()
    del alone["layers.1.attention.k_proj.bias"]
    with pytest.raises(
        CheckpointError, match=r"left over layers.1.attention.q_proj.bias; left over .*v_proj.bias; missing blocks"
    ):
        image.begin(saved(alone, tmp_path / "alone"), "vivit_base", CLIP, options=OPTIONS)
    saved(timm(), tmp_path / "vit")
    with pytest.raises(CheckpointError, match=r"is a ViT of width 48, .* mlp_ratio 4 \(timm layout\), vivit_base has width 96, "
                       r"depth 1, patch 16: name another model, or give --options width=48 --options depth=2"):  # fmt: skip
        image.begin(tmp_path / "vit", "vivit_base", CLIP, options=dict(width=96, depth=1))
    with pytest.raises(CheckpointError, match=r"nothing tells the heads of a ViT of width 48"):
        image.begin(tmp_path / "vit", "vivit_base", CLIP, options={"width": 48, "depth": 2, "patch": 8})
    saved(timm(), tmp_path / "told", {"num_attention_heads": 4, "hidden_act": "gelu"})
    with pytest.raises(CheckpointError, match=r"vivit_base has heads 12: name another model, or give --options heads=4$"):
        image.begin(tmp_path / "told", "vivit_base", CLIP, options=dict(width=48, depth=2, patch=8))
    _, account = image.begin(tmp_path / "told", "vivit_base", CLIP, options=OPTIONS)
    assert "heads: 3 as given, though the image model has 4" in account["notes"]
    with pytest.raises(CheckpointError, match="its MLPs have relu"):
        image.begin(saved(timm(), tmp_path / "relu", {"hidden_act": "relu"}), "vivit_base", CLIP, options=OPTIONS)
    with pytest.raises(CheckpointError, match="cnn_lstm_resnet18 begins from a CNN"):
        image.begin(tmp_path / "vit", "cnn_lstm_resnet18", CLIP)
    with pytest.raises(
        CheckpointError, match=r"\[2, 2, 2, 2\] basic blocks, and i3d_r50 cannot .* missing layer1.0.conv3.weight"
    ):
        saved(resnet_state(resnet()), tmp_path / "net")
        image.begin(tmp_path / "net", "i3d_r50", dict(frames=4, size=64), options=dict(width=8))
    with pytest.raises(CheckpointError, match="is a video model"):
        video = timm({"patch_embed.proj.weight": torch.ones(48, 3, 2, 8, 8)})
        image.begin(saved(video, tmp_path / "video"), "vivit_base", CLIP)
    with pytest.raises(CheckpointError, match="is in no layout of these: timm, huggingface, clip, openai, resnet, googlenet"):
        image.begin(saved({"a": torch.ones(1)}, tmp_path / "other"), "vivit_base", CLIP)
    with pytest.raises(ConfigError, match="c3d cannot begin from an image model: only frame_vit, vivit, timesformer"):
        image.begin(tmp_path / "vit", "c3d", CLIP)
    with pytest.raises(ConfigError, match="unknown model 'vivit_bas'"):
        image.begin(tmp_path / "vit", "vivit_bas", CLIP)
    with pytest.raises(ConfigError, match="cnn3d_lstm_resnet18 sees 4 frames at once: no picture network fits it"):
        image.begin(tmp_path / "net", "cnn3d_lstm_resnet18", dict(frames=4, size=64))
    with pytest.raises(ConfigError, match="single_frame is no 2D ResNet"):
        image.begin(tmp_path / "net", "single_frame", dict(frames=4, size=64))


BEGUN = {
    "vivit_base_factorised_encoder": dict(OPTIONS, temporal_depth=1), "timesformer_base": OPTIONS, "videomae_tiny": VIDEOMAE,
    "i3d_r50": dict(width=8), "cnn_lstm_resnet18": dict(channels=8), "two_stream_resnet18": dict(width=8, streams="spatial"),
    "late_fusion_pool_resnet18": dict(width=8), "late_fusion_fc_resnet18": dict(width=8),
}  # fmt: skip


@pytest.mark.parametrize("variant", BEGUN)
def test_the_command_writes_a_model_and_fine_tuning_starts_from_it(
    variant: str, motion_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = timm() if "depth" in BEGUN[variant] else resnet_state(resnet(50 if "50" in variant else 18))
    saved(state, tmp_path / "image")
    words = [word for name, value in BEGUN[variant].items() for word in ("--options", f"{name}={value}")]
    words += ["--clip", "frames=4", "--clip", "size=32"]
    assert main(["weights", "begin", str(tmp_path / "image"), str(tmp_path / "begun"), "--model", variant, *words]) == 0
    said = capsys.readouterr().out
    assert f"{variant} begun from a " in said and "left behind: " in said and "it tells the image model's classes" in said
    config = json.loads((tmp_path / "begun" / "config.json").read_text())
    assert config["trained"]["begun_from"] == "image" and config["class_names"] == []
    assert config["trained"]["sha256"] == files.sha256([tmp_path / "image" / "model.safetensors"])
    again = ["weights", "begin", str(tmp_path / "image"), str(tmp_path / "begun"), "--model", variant, *words]
    assert main(again) == 2 and "is there already" in capsys.readouterr().err
    begun = load_model(tmp_path / "begun").state_dict()
    code = main(["finetune", str(tmp_path / "begun"), str(motion_folder), "--out", str(tmp_path / "run"), "--optim.steps", "2",
                 "--optim.base-lr", "1e-6", "--loader.workers", "0", "--run.device", "cpu", "--run.report", "false"])  # fmt: skip
    printed = capsys.readouterr()
    assert code == 0, printed.err
    new = printed.err.partition("; new: ")[2].splitlines()[0].split(", ")
    assert set(new) == {"head.weight", "head.bias"} | (
        {"fc_norm.weight", "fc_norm.bias"} if variant == "videomae_tiny" else set()
    )
    tuned = load_model(tmp_path / "run").state_dict()
    same = [key for key in begun if key in tuned and tuned[key].is_floating_point() and "running" not in key]
    assert same and all(torch.allclose(begun[key], tuned[key], atol=1e-3) for key in same)


def test_the_command_needs_a_model_and_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(timm(), tmp_path / "vit")
    assert main(["weights", "begin", str(tmp_path / "vit"), str(tmp_path / "out")]) == 2
    assert "no video model named" in capsys.readouterr().err
    words = ["--model", "vivit_base", "--how", "centre", "--clip", "frames=4", "--clip", "size=32"]
    words += [word for name, value in OPTIONS.items() for word in ("--options", f"{name}={value}")]
    assert main(["weights", "begin", str(tmp_path / "vit"), str(tmp_path / "out"), *words]) == 2
    assert "did you mean 'central'" in capsys.readouterr().err and not (tmp_path / "out").exists()
    words[3] = "inflate"
    assert main(["weights", "begin", str(tmp_path / "vit"), str(tmp_path / "out"), *words, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["how"] == "inflate" and row["layout"] == "timm" and row["new"] == []
