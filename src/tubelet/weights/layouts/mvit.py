"""MViTv2's files of torchvision."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor

from tubelet.models import mvit
from tubelet.weights.layouts import Description, Layout, count_blocks, shape


def describe(state: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> Description:
    """Frames and size are told by the tables of distances, how much keys are pooled by nothing."""
    width = shape(state, "conv_proj.weight", 5)[0]
    depth, ratio = count_blocks(state, "blocks."), shape(state, "blocks.0.mlp.0.weight", 2)[0] / width
    # A stage begins where the shortcut is projected.
    begins = [0, *(i for i in range(depth) if f"blocks.{i}.project.weight" in state), depth]
    blocks = [end - begin for begin, end in pairwise(begins)]
    variants = {(sizes["width"], tuple(sizes["blocks"])): name for name, sizes in mvit.VARIANTS.items()}
    found = Description(variants.get((width, tuple(blocks)), "mvitv2_small"))
    distances = [shape(state, f"blocks.0.attn.rel_pos_{axis}", 2) for axis in "thw"]
    found.options = dict(width=width, heads=width // distances[0][1], blocks=blocks, mlp_ratio=ratio)
    grid = [(count + 1) // 2 for count, _ in distances]
    found.options["position_grid"] = grid
    found.clip |= {"frames": grid[0] * mvit.MViT.tubelet[0], "size": grid[1] * mvit.MViT.tubelet[1]}
    found.inferred |= {
        "width": "the shape of conv_proj.weight",
        "heads, frames, size": "the shapes of blocks.0.attn.rel_pos_*",
        "blocks": " + ".join(map(str, blocks)),
    }
    found.assumed["kv_stride"] = "8, as published"
    found.take_classes(state, "head.1.weight")
    return found


LAYOUTS = {
    "torchvision": Layout(
        ("conv_proj.weight", "pos_encoding.class_token", "blocks.0.attn.rel_pos_t"), describe, mvit.from_torchvision,
        lambda state, model: mvit.to_torchvision(state),
    ),
}  # fmt: skip
