"""V-JEPA 2's files: transformers' encoder and classifier, and the original's encoder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet.errors import CheckpointError
from tubelet.models import vjepa2
from tubelet.video.normalize import normalize
from tubelet.weights.layouts import POSITIVE, Description, Layout, State, count_blocks, example_clip, shape, supported, told

HEADS = {sizes["width"]: sizes["heads"] for sizes in vjepa2.VARIANTS.values()}
STEM = "vjepa2."  # which the encoder alone is saved without
WRAPPERS = "module.backbone."


def describe_original(state: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> Description:
    """Frames and size are told by nothing, and any will do: positions are rotary."""
    found = _shapes(state, "patch_embed.proj.weight", "blocks.")
    found.take_heads({}, HEADS, found.options["width"])
    return found


def describe_huggingface(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Description:
    """Heads, eps, frames and size are in config.json."""
    stem = STEM if any(key.startswith(STEM) for key in state) else ""
    supported(config, "hidden_act", {"gelu": "gelu"})
    supported(config, "qkv_bias", {True: True})
    found = _shapes(state, f"{stem}encoder.embeddings.patch_embeddings.proj.weight", f"{stem}encoder.layer.")
    found.take_heads(config, HEADS, found.options["width"])
    found.take("frames", config, "frames_per_clip")
    found.take("size", config, "crop_size")
    eps = told(config, "layer_norm_eps", POSITIVE)
    if eps is not None:
        found.options["eps"], found.inferred["eps"] = eps, "layer_norm_eps in config.json"
    else:
        found.assumed["eps"] = "1e-6, as published"
    found.take_classes(state, "classifier.weight")
    if found.classes:
        layers = count_blocks(state, "pooler.self_attention_layers.")
        found.options["pooler_depth"], found.inferred["pooler"] = layers, f"{layers} blocks before its query"
    if any(key.startswith(f"{stem}predictor.") for key in state):
        found.notes.append("the predictor of pretraining is left behind: only the encoder is used")
    return found


def _shapes(state: Mapping[str, Tensor], embed: str, blocks: str) -> Description:
    """What the shapes tell."""
    width, _, tubelet, patch, _ = shape(state, embed, 5)
    depth, ratio = count_blocks(state, blocks), shape(state, f"{blocks}0.mlp.fc1.weight", 2)[0] / width
    variants = {(sizes["width"], sizes["depth"]): name for name, sizes in vjepa2.VARIANTS.items()}
    found = Description(variants.get((width, depth), "vjepa2_large"))
    found.options = dict(width=width, depth=depth, tubelet=tubelet, patch=patch, mlp_ratio=ratio)
    found.inferred |= {"width, patch, tubelet": f"the shape of {embed}", "depth": f"{depth} blocks"}
    return found


def _from_original(state: State) -> State:
    """With the prefixes that all its weights have, so that they were left off."""
    return vjepa2.from_original({WRAPPERS + key.removeprefix(WRAPPERS): value for key, value in state.items()})


def _to_original(state: State, model: vjepa2.VJEPA2) -> State:
    if model.class_names:
        raise CheckpointError("the original layout of V-JEPA 2 holds an encoder; this model has a pooler and a head")
    return vjepa2.to_original(state, model.tubelet)


def config(model: vjepa2.VJEPA2) -> dict[str, Any]:
    """config.json of transformers."""
    has = model.options
    return {
        "model_type": "vjepa2",
        "architectures": ["VJEPA2ForVideoClassification" if model.class_names else "VJEPA2Model"],
        "crop_size": model.spec.size, "frames_per_clip": model.spec.frames, "in_chans": 3, "qkv_bias": True,
        "patch_size": has["patch"], "tubelet_size": has["tubelet"], "hidden_size": has["width"],
        "num_hidden_layers": has["depth"], "num_attention_heads": has["heads"], "mlp_ratio": has["mlp_ratio"],
        "num_pooler_layers": has["pooler_depth"], "layer_norm_eps": has["eps"], "hidden_act": "gelu",
    }  # fmt: skip


def compare(model: vjepa2.VJEPA2, folder: Path) -> float:
    """The largest difference of logits from transformers', which reads `folder`, on the same clip; without classes of tokens."""
    import transformers

    frames = example_clip(model)
    values, out = normalize(frames, model.spec.mean, model.spec.std, colour_dim=2), model(frames)
    if model.class_names:
        theirs = transformers.VJEPA2ForVideoClassification.from_pretrained(folder, dtype=torch.float32).eval()
        return float((theirs(values).logits - out["logits"]).abs().max())
    theirs = transformers.VJEPA2Model.from_pretrained(folder, dtype=torch.float32).eval()
    return float((theirs(values, skip_predictor=True).last_hidden_state - out["tokens"]).abs().max())


LAYOUTS = {
    "original": Layout(
        ("patch_embed.proj.weight", "blocks.0.attn.qkv.bias"), describe_original, _from_original, _to_original,
        container="encoder", without=("cls_token", "pos_embed"),
    ),
    "huggingface": Layout(
        ("*encoder.embeddings.patch_embeddings.proj.weight", "*encoder.layer.0.attention.query.weight"), describe_huggingface,
        vjepa2.from_huggingface, lambda state, model: vjepa2.to_huggingface(state, model.tubelet), config, compare,
        "VJEPA2VideoProcessor",
    ),
}  # fmt: skip
