"""Video Swin's files of torchvision."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tubelet.errors import CheckpointError
from tubelet.models import swin
from tubelet.models._tokens import Triple
from tubelet.weights.layouts import Description, Layout, State, count_blocks, shape, square

TABLE, INDEX = "features.0.0.attn.relative_position_bias_table", "features.0.0.attn.relative_position_index"


def describe(state: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> Description:
    """Frames and size are told by nothing; any will do."""
    width, _, tubelet, patch, _ = shape(state, "patch_embed.proj.weight", 5)
    stages = (count_blocks(state, "features.") + 1) // 2
    blocks = [count_blocks(state, f"features.{2 * stage}.") for stage in range(stages)]
    variants = {(sizes["width"], tuple(sizes["blocks"])): name for name, sizes in swin.VARIANTS.items()}
    found = Description(variants.get((width, tuple(blocks)), "swin_tiny"))
    ratio = shape(state, "features.0.0.mlp.0.weight", 2)[0] / width
    found.options = dict(width=width, heads=shape(state, TABLE, 2)[1], blocks=blocks, patch=patch, tubelet=tubelet)
    found.options |= dict(window=_window(state), mlp_ratio=ratio)
    found.inferred |= {
        "width, patch, tubelet": "the shape of patch_embed.proj.weight",
        "heads": f"the shape of {TABLE}",
        "blocks": " + ".join(map(str, blocks)),
        "window": f"{TABLE} and {INDEX}",
    }
    found.take_classes(state, "head.weight")
    return found


def _window(state: Mapping[str, Tensor]) -> list[int]:
    """Of which the stored index of offsets is: as many tokens, and a table of as many offsets."""
    tokens, offsets = shape(state, INDEX, 2)[0], shape(state, TABLE, 2)[0]
    for slots in range(1, tokens + 1):
        side = square(tokens // slots)
        if tokens % slots == 0 and side and (2 * slots - 1) * (2 * side - 1) ** 2 == offsets:
            window: Triple = (slots, side, side)
            index = swin.offset_index(window, window)
            other = [key for key in state if key.endswith("relative_position_index") and not state[key].equal(index)]
            if other:
                raise CheckpointError(f"{other[0]} numbers the offsets of a window of {window} in another way")
            return list(window)
    raise CheckpointError(f"{TABLE} of {offsets} offsets and {INDEX} of {tokens} tokens are of no window as high as wide")


def _write(state: State, model: swin.Swin) -> State:
    return swin.to_torchvision(state, model.tubelet, tuple(model.options["window"]))


LAYOUTS = {
    "torchvision": Layout(
        ("patch_embed.norm.weight", "features.0.0.attn.relative_position_bias_table", "features.0.0.attn.qkv.weight"),
        describe, swin.from_torchvision, _write,
    ),
}  # fmt: skip
