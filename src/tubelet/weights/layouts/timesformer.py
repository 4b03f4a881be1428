"""TimeSformer's files: the original's and transformers'.

An original file of space-only attention has the names of an image ViT's: it is one where the run's configuration in it, or the
caller, says so.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from tubelet.models import timesformer
from tubelet.video.normalize import normalize
from tubelet.weights.layouts import Description, Layout, State, count_blocks, example_clip, shape, square, supported

HEADS = {768: 12}
KINDS = {"divided_space_time": "divided", "joint_space_time": "joint", "space_only": "space"}
STEM = "timesformer."  # which a model alone, without a head, is saved without


def describe_original(state: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> Description:
    """Shapes tell everything but the heads, and how clips were cut: that the run's configuration says."""
    told = arguments.get("DATA")
    data = told if isinstance(told, Mapping) else {}
    found = _shapes(
        state, "patch_embed.proj.weight", "pos_embed", "time_embed", "blocks.", "temporal_fc.weight", "mlp.fc1.weight",
        {"num_frames": data.get("NUM_FRAMES")},
    )  # fmt: skip
    for name, theirs in {"stride_frames": "SAMPLING_RATE", "mean": "MEAN", "std": "STD"}.items():
        found.take(name, data, theirs, "the configuration of its run")
    found.take_heads({}, HEADS, found.options["width"])
    found.take_classes(state, "head.weight")
    return found


def _is_original(state: Mapping[str, Tensor], told: Mapping[str, Any]) -> bool:
    """An image ViT has no time embedding, and no run of TimeSformer."""
    return "time_embed" in state or "TIMESFORMER" in told or told.get("attention") == "space"


def _run(model: timesformer.TimeSformer) -> dict[str, Any]:
    """The configuration of a run, as the original keeps it in its files."""
    spec, kinds = model.spec, {ours: theirs for theirs, ours in KINDS.items()}
    data = {"NUM_FRAMES": spec.frames, "SAMPLING_RATE": spec.stride_frames, "TRAIN_CROP_SIZE": spec.size,
            "MEAN": list(spec.mean), "STD": list(spec.std)}  # fmt: skip
    run = {"DATA": data, "MODEL": {"NUM_CLASSES": len(model.class_names)},
           "TIMESFORMER": {"ATTENTION_TYPE": kinds[model.attention]}}  # fmt: skip
    return {"cfg": yaml.safe_dump(run)}


def describe_huggingface(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Description:
    """Heads are in config.json, and the frames of space-only attention, which has no table of them."""
    stem = STEM if any(key.startswith(STEM) for key in state) else ""
    supported(config, "layer_norm_eps", {timesformer.EPS: timesformer.EPS})
    supported(config, "hidden_act", {"gelu": "gelu"})
    supported(config, "qkv_bias", {True: True})
    found = _shapes(
        state, f"{stem}embeddings.patch_embeddings.projection.weight", f"{stem}embeddings.position_embeddings",
        f"{stem}embeddings.time_embeddings", f"{stem}encoder.layer.", "temporal_dense.weight", "intermediate.dense.weight",
        config,
    )  # fmt: skip
    found.take_heads(config, HEADS, found.options["width"])
    found.take_classes(state, "classifier.weight")
    return found


def _shapes(
    state: Mapping[str, Tensor],
    embed: str,
    places: str,
    moments: str,
    blocks: str,
    temporal: str,
    hidden: str,
    config: Mapping[str, Any] | None = None,
) -> Description:
    """What the shapes tell."""
    width, _, patch, _ = shape(state, embed, 4)
    depth, ratio = count_blocks(state, blocks), shape(state, f"{blocks}0.{hidden}", 2)[0] / width
    attention = "divided" if f"{blocks}0.{temporal}" in state else "joint" if moments in state else "space"
    found = Description("", dict(width=width, depth=depth, patch=patch, mlp_ratio=ratio, attention=attention))
    found.inferred |= {
        "width, patch": f"the shape of {embed}",
        "depth": f"{depth} blocks",
        "attention": "the weights of a block",
    }
    side = square(shape(state, places, 3)[1] - 1)
    if side is not None:
        found.clip["size"], found.inferred["size"] = side * patch, f"the shape of {places}"
    if attention == "space":
        found.take("frames", config or {}, "num_frames")
    else:
        found.clip["frames"], found.inferred["frames"] = shape(state, moments, 3)[1], f"the shape of {moments}"
    slots = found.clip.get("frames", 8)
    found.options["position_grid"] = side and [slots, side, side]
    kinds = {name: sizes.get("attention", "divided") for name, sizes in timesformer.VARIANTS.items()}
    alike = [name for name, kind in kinds.items() if kind == attention]
    clips = {name: (timesformer.CLIPS[name].frames, timesformer.CLIPS[name].size) for name in alike}
    found.name = next((name for name in alike if clips[name] == (slots, found.clip.get("size"))), alike[0])
    return found


def _from_original(state: State) -> State:
    """With the prefix that all its weights have, so that it was left off."""
    return timesformer.from_original({f"model.{key.removeprefix('model.')}": value for key, value in state.items()})


def _from_huggingface(state: State) -> State:
    if not any(key.startswith(STEM) for key in state):
        state = {f"{STEM}{key}": value for key, value in state.items()}
    return timesformer.from_huggingface(state)


def config(model: timesformer.TimeSformer) -> dict[str, Any]:
    """config.json of transformers."""
    has = model.options
    kinds = {ours: theirs for theirs, ours in KINDS.items()}
    return {
        "model_type": "timesformer",
        "architectures": ["TimesformerForVideoClassification" if model.class_names else "TimesformerModel"],
        "image_size": model.spec.size, "num_frames": model.spec.frames, "num_channels": 3, "qkv_bias": True,
        "patch_size": has["patch"], "hidden_size": has["width"], "num_hidden_layers": has["depth"],
        "num_attention_heads": has["heads"], "intermediate_size": int(has["width"] * has["mlp_ratio"]),
        "attention_type": kinds[has["attention"]], "layer_norm_eps": timesformer.EPS, "hidden_act": "gelu",
    }  # fmt: skip


def compare(model: timesformer.TimeSformer, folder: Path) -> float:
    """The largest difference of logits from transformers', which reads `folder`, on the same clip; without classes of tokens.

    Of space-only attention too: transformers does not average its frames.
    """
    import transformers

    frames = example_clip(model)
    values, out = normalize(frames, model.spec.mean, model.spec.std, colour_dim=2), model(frames)
    if model.class_names and model.attention != "space":
        theirs = transformers.TimesformerForVideoClassification.from_pretrained(folder, dtype=torch.float32).eval()
        return float((theirs(values).logits - out["logits"]).abs().max())
    tokens = transformers.TimesformerModel.from_pretrained(folder, dtype=torch.float32).eval()(values).last_hidden_state[:, 1:]
    if model.attention == "space":  # (T,S,D)
        tokens = tokens.flatten(0, 1)[None]
    else:  # a place's moments lie side by side
        tokens = tokens.unflatten(1, (-1, model.spec.frames)).transpose(1, 2).flatten(1, 2)
    return float((tokens - out["tokens"]).abs().max())


LAYOUTS = {
    "original": Layout(
        ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.bias"), describe_original, _from_original,
        lambda state, model: timesformer.to_original(state), container="model_state", also=_is_original, beside=_run,
    ),
    "huggingface": Layout(
        ("*embeddings.cls_token", "*embeddings.patch_embeddings.projection.weight", "*layer.0.attention.attention.qkv.weight"),
        describe_huggingface, _from_huggingface, lambda state, model: timesformer.to_huggingface(state), config, compare,
        "VideoMAEImageProcessor",
    ),
}  # fmt: skip
