"""VideoMAE's files: the original's (pretraining and fine-tuned; VideoMAE V2's and MVD's are alike) and transformers'."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet import masking
from tubelet.errors import CheckpointError, ConfigError
from tubelet.models import videomae
from tubelet.video.normalize import normalize
from tubelet.weights.layouts import (
    COUNT,
    POSITIVE,
    YES_NO,
    Description,
    Layout,
    State,
    count_blocks,
    example_clip,
    has_tubelets,
    shape,
    supported,
    told,
)  # fmt: skip

HEADS = {192: 3, 384: 6, 512: 8, 640: 8, 768: 12, 1024: 16, 1280: 16, 1408: 16}  # of a width, which no shape tells
ARGUMENTS = {"frames": "num_frames", "size": "input_size", "stride_frames": "sampling_rate"}
CONFIG = {"frames": "num_frames", "size": "image_size"}


def describe_original(state: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> Description:
    """`arguments` of the run that wrote the file, where it has them."""
    stem = "encoder." if "encoder.patch_embed.proj.weight" in state else ""
    found = _shapes(
        state, f"{stem}patch_embed.proj.weight", f"{stem}blocks.", "mlp.fc1.weight", "decoder.blocks.", "head.weight"
    )
    for name, theirs in ARGUMENTS.items():
        found.take(name, arguments, theirs, "the arguments of its run")
    return _positions(found)


def describe_huggingface(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Description:
    """Heads and the eps of the norms are in config.json; without it they are assumed."""
    stem = "" if "embeddings.patch_embeddings.projection.weight" in state else "videomae."
    found = _shapes(
        state, f"{stem}embeddings.patch_embeddings.projection.weight", f"{stem}encoder.layer.", "intermediate.dense.weight",
        "decoder.decoder_layers.", "classifier.weight",
    )  # fmt: skip
    supported(config, "hidden_act", {"gelu": "gelu"})
    supported(config, "qkv_bias", {True: True})
    if found.classes and told(config, "use_mean_pooling", YES_NO) is False:
        raise CheckpointError("this classifier looks at its first token (use_mean_pooling is false), which is not supported")
    eps = told(config, "layer_norm_eps", POSITIVE) or 1e-12
    found.options |= dict(eps=eps, norm_eps=1e-5 if found.classes else eps, decoder_norm_eps=1e-5)
    heads = told(config, "num_attention_heads", COUNT)
    if heads is not None:
        found.options["heads"] = heads
        if "decoder_width" in found.options:
            found.options["decoder_heads"] = (
                told(config, "decoder_num_attention_heads", COUNT) or found.options["decoder_heads"]
            )
        found.assumed, found.inferred = {}, found.inferred | {"heads, eps": "config.json"}
    else:
        found.assumed["eps"] = f"{eps}, as usual"
    for name, theirs in CONFIG.items():
        found.take(name, config, theirs)
    return _positions(found)


def _positions(found: Description) -> Description:
    """The grid that the fixed table was made for, where frames and size are told: other clips are interpolated then."""
    if {"frames", "size"} <= found.clip.keys():
        side = found.clip["size"] // found.options["patch"]
        found.options["position_grid"] = [found.clip["frames"] // found.options["tubelet"], side, side]
    return found


def _shapes(
    state: Mapping[str, Tensor],
    embed: str,
    blocks: str,
    hidden: str,
    decoder: str,
    head: str,
    project: str = "encoder_to_decoder.weight",
) -> Description:
    """What the shapes tell."""
    width, _, tubelet, patch, _ = shape(state, embed, 5)
    depth = count_blocks(state, blocks)
    variants = {(sizes["width"], sizes["depth"]): name for name, sizes in videomae.VARIANTS.items()}
    found = Description(variants.get((width, depth), "videomae_base"))
    ratio = shape(state, f"{blocks}0.{hidden}", 2)[0] / width
    found.options = dict(width=width, depth=depth, patch=patch, tubelet=tubelet, mlp_ratio=ratio, heads=_heads(width, found))
    found.inferred |= {"width, patch, tubelet": f"the shape of {embed}", "depth": f"{depth} blocks"}
    if project in state:
        wide, deep = shape(state, project, 2)[0], count_blocks(state, decoder)
        found.options |= dict(decoder_width=wide, decoder_depth=deep, decoder_heads=_heads(wide, found))
        found.inferred["decoder"] = f"{deep} blocks of width {wide}"
    elif head in state:
        found.take_classes(state, head)
    else:
        found.options["decoder"] = False
        found.inferred["decoder"] = "none in the file"
    return found


def _heads(width: int, found: Description) -> int | None:
    """None where nothing tells."""
    if width in HEADS:
        found.assumed[f"heads of width {width}"] = f"{HEADS[width]}, as published"
    return HEADS.get(width)


def _run(model: videomae.VideoMAE) -> dict[str, Any]:
    """The arguments of a run, as the original keeps them; a plain dict, which every reader opens."""
    spec = {"frames": model.spec.frames, "size": model.spec.size, "stride_frames": model.spec.stride_frames}
    return {"args": {theirs: spec[ours] for ours, theirs in ARGUMENTS.items()}}


def config(model: videomae.VideoMAE) -> dict[str, Any]:
    """config.json of transformers; ConfigError for what transformers' VideoMAE cannot be."""
    has = model.options
    if has["positions"] != "1d":
        raise ConfigError(f"transformers' VideoMAE has no positions {has['positions']!r}, only '1d'")
    return {
        "model_type": "videomae",
        "architectures": ["VideoMAEForVideoClassification" if model.class_names else "VideoMAEForPreTraining"],
        "image_size": model.spec.size, "num_frames": model.spec.frames, "num_channels": 3, "qkv_bias": True,
        "patch_size": has["patch"], "tubelet_size": has["tubelet"], "hidden_size": has["width"],
        "num_hidden_layers": has["depth"], "num_attention_heads": has["heads"],
        "intermediate_size": int(has["width"] * has["mlp_ratio"]), "layer_norm_eps": has["eps"], "hidden_act": "gelu",
        "decoder_hidden_size": has["decoder_width"], "decoder_num_hidden_layers": has["decoder_depth"],
        "decoder_num_attention_heads": has["decoder_heads"],
        "decoder_intermediate_size": int(has["decoder_width"] * has["mlp_ratio"]),
        "use_mean_pooling": bool(model.class_names),
    }  # fmt: skip


def _from_huggingface(state: State) -> State:
    """With or without the prefix that a model alone, without a head, is saved without."""
    if "embeddings.patch_embeddings.projection.weight" in state:
        state = {f"videomae.{key}": value for key, value in state.items()}
    return videomae.from_huggingface(state)


def compare(model: videomae.VideoMAE, folder: Path) -> float:
    """The largest difference between the outputs of a model and of transformers', which reads `folder`, on the same clip."""
    import transformers

    frames = example_clip(model)
    values = normalize(frames, model.spec.mean, model.spec.std, colour_dim=2)
    if model.class_names:
        theirs = transformers.VideoMAEForVideoClassification.from_pretrained(folder, dtype=torch.float32).eval()
        return float((theirs(values).logits - model(frames)["logits"]).abs().max())
    if model.decoder is None:
        theirs = transformers.VideoMAEModel.from_pretrained(folder, dtype=torch.float32).eval()
        return float((theirs(values).last_hidden_state - model(frames)["tokens"]).abs().max())
    theirs = transformers.VideoMAEForPreTraining.from_pretrained(folder, dtype=torch.float32).eval()
    mask = masking.make("tube", model.grid, 0.75, 1)
    return float((theirs(values, bool_masked_pos=mask).logits - model(frames, mask=mask)["prediction"]).abs().max())


LAYOUTS = {
    "original": Layout(
        ("*patch_embed.proj.weight", "*blocks.0.attn.q_bias"), describe_original, videomae.from_original,
        lambda state, model: videomae.to_original(state, model.tubelet), container="model", beside=_run,
    ),
    "huggingface": Layout(
        ("*embeddings.patch_embeddings.projection.weight", "*encoder.layer.0.attention.attention.query.weight"),
        describe_huggingface, _from_huggingface,
        lambda state, model: videomae.to_huggingface(state, model.tubelet), config, compare, "VideoMAEImageProcessor",
        without=("*cls_token",), also=has_tubelets,
    ),
}  # fmt: skip
