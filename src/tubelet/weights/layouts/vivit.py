"""ViViT's files of transformers (model 1), as they lie on disk and as its version 5 spells them in memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet.models import vivit
from tubelet.video.normalize import normalize
from tubelet.weights.layouts import (
    Description,
    Layout,
    State,
    count_blocks,
    example_clip,
    has_tubelets,
    shape,
    square,
    supported,
)

HEADS = {768: 12, 1024: 16}
GELU = {"gelu_fast": "tanh", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "none"}
STEM = "vivit."  # which a model alone, without a head, is saved without


def describe(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Description:
    """Heads and frames are in config.json; without it they are assumed, and the size follows from the number of positions."""
    stem = STEM if any(key.startswith(STEM) for key in state) else ""
    embed, table = f"{stem}embeddings.patch_embeddings.projection.weight", f"{stem}embeddings.position_embeddings"
    on_disk = any(key.startswith(f"{stem}encoder.layer.") for key in state)
    blocks, hidden = ("encoder.layer.", "intermediate.dense.weight") if on_disk else ("layers.", "mlp.fc1.weight")
    width, _, tubelet, patch, _ = shape(state, embed, 5)
    supported(config, "layer_norm_eps", {vivit.EPS: vivit.EPS})
    supported(config, "qkv_bias", {True: True})
    depth, ratio = count_blocks(state, stem + blocks), shape(state, f"{stem}{blocks}0.{hidden}", 2)[0] / width
    found = Description("vivit_base", dict(width=width, depth=depth, tubelet=tubelet, patch=patch, mlp_ratio=ratio))
    found.options["gelu"] = supported(config, "hidden_act", GELU)
    found.inferred |= {"width, patch, tubelet": f"the shape of {embed}", "depth": f"{depth} blocks"}
    if "hidden_act" in config:
        found.inferred["gelu"] = "hidden_act in config.json"
    else:
        found.assumed["gelu"] = "by tanh, as published"
    found.take_heads(config, HEADS, width)
    found.take("frames", config, "num_frames")
    slots = found.clip.get("frames", vivit.CLIPS[found.name].frames) // tubelet
    side = square((shape(state, table, 3)[1] - 1) // slots)
    if side is not None:
        found.clip["size"], found.inferred["size"] = side * patch, f"the shape of {table}, of {slots} slots"
    found.options["position_grid"] = side and [slots, side, side]
    found.take_classes(state, "classifier.weight")
    if _pooler(state):
        found.notes.append("the pooler behind the cls token is left behind: no classifier uses it")
    return found


def _pooler(state: Mapping[str, Tensor]) -> list[str]:
    """Of a model alone, which nothing published was trained with."""
    return [key for key in state if key.removeprefix(STEM).startswith("pooler.")]


def _read(state: State) -> State:
    state = {key: value for key, value in state.items() if key not in _pooler(state)}
    if not any(key.startswith(STEM) for key in state):
        state = {f"{STEM}{key}": value for key, value in state.items()}
    return vivit.from_huggingface(state)


def config(model: vivit.ViViT) -> dict[str, Any]:
    """config.json of transformers."""
    has = model.options
    return {
        "model_type": "vivit",
        "architectures": ["VivitForVideoClassification" if model.class_names else "VivitModel"],
        "image_size": model.spec.size, "num_frames": model.spec.frames, "num_channels": 3, "qkv_bias": True,
        "tubelet_size": list(model.tubelet), "hidden_size": has["width"], "num_hidden_layers": has["depth"],
        "num_attention_heads": has["heads"], "intermediate_size": int(has["width"] * has["mlp_ratio"]),
        "layer_norm_eps": vivit.EPS, "hidden_act": "gelu_fast" if has["gelu"] == "tanh" else "gelu",
    }  # fmt: skip


def compare(model: vivit.ViViT, folder: Path) -> float:
    """The largest difference of logits from transformers', which reads `folder`, on the same clip; without classes of tokens."""
    import transformers

    frames = example_clip(model)
    values, out = normalize(frames, model.spec.mean, model.spec.std, colour_dim=2), model(frames)
    if model.class_names:
        theirs = transformers.VivitForVideoClassification.from_pretrained(folder, dtype=torch.float32).eval()
        return float((theirs(values).logits - out["logits"]).abs().max())
    theirs = transformers.VivitModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32).eval()
    return float((theirs(values).last_hidden_state[:, 1:] - out["tokens"]).abs().max())


LAYOUTS = {
    "huggingface": Layout(
        ("*embeddings.cls_token", "*embeddings.patch_embeddings.projection.weight", "*layer*.0.attention.*q*.weight"),
        describe, _read, lambda state, model: vivit.to_huggingface(state, model.tubelet), config, compare,
        "VivitImageProcessor", without=("*attention.qkv.weight",), also=has_tubelets,
    ),
}  # fmt: skip
