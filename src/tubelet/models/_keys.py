"""Weights under other names. A family states once which of ours is which of theirs; every key is accounted for, or CheckpointError
names all that are not.

A Table is {our name: their names}: one name, or those of several weights that ours holds one after another along dimension 0. Both
directions follow from it. `rename` takes one name for one, of which some may be missing.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from tubelet.errors import CheckpointError
from tubelet.models._tokens import Triple, linear_weight, resize_positions

Table = Mapping[str, tuple[str, ...]]


def to_ours(state: Mapping[str, Tensor], table: Table, where: str) -> dict[str, Tensor]:
    """Their state dict under our names. CheckpointError naming every weight that is missing or left over."""
    _check(state, [name for names in table.values() for name in names], where)
    return {
        ours: torch.cat([state[name] for name in theirs]) if len(theirs) > 1 else state[theirs[0]]
        for ours, theirs in table.items()
    }


def to_theirs(state: Mapping[str, Tensor], table: Table, where: str) -> dict[str, Tensor]:
    """Our state dict under their names: the inverse of `to_ours`, with the same errors."""
    _check(state, table, where)
    out: dict[str, Tensor] = {}
    for ours, theirs in table.items():
        pieces = [piece.clone() for piece in state[ours].chunk(len(theirs))] if len(theirs) > 1 else [state[ours]]
        out.update(zip(theirs, pieces, strict=True))
    return out


def count(names: Iterable[str], stem: str) -> int:
    """How many things are numbered after `stem` in these names, from 0 on."""
    numbers = (re.match(re.escape(stem) + r"(\d+)\.", name) for name in names)
    return 1 + max((int(found[1]) for found in numbers if found), default=-1)


def _check(state: Iterable[str], wanted: Iterable[str], where: str) -> None:
    has, wants = dict.fromkeys(state), dict.fromkeys(wanted)
    problems = [f"missing {key}" for key in wants if key not in has] + [f"left over {key}" for key in has if key not in wants]
    if problems:
        raise CheckpointError(f"these are not the weights of {where}: {'; '.join(problems)}")


def rename(state: Mapping[str, Tensor], names: Mapping[str, str], optional: Sequence[str] = ()) -> dict[str, Tensor]:
    """`state` with every key exchanged by `names`; CheckpointError naming every key that is left over and every one missing.

    optional: words; the weights that have one of them in their name may be missing, all together.
    """
    absent = {key for word in optional if not any(word in key for key in state) for key in names if word in key}
    left = [key for key in state if key not in names]
    problems = [f"left over {key}" for key in left]
    problems += [f"missing {key}{nearest(key, left)}" for key in names if key not in state and key not in absent]
    if problems:
        raise CheckpointError(f"{len(problems)} weights do not fit: {'; '.join(problems)}")
    return {names[key]: value for key, value in state.items()}


def nearest(key: str, left: Sequence[str]) -> str:
    """Which of those left over a missing weight may be, for a message."""
    near = get_close_matches(key, left, n=1, cutoff=0.75)
    return f" (left over is {near[0]})" if near else ""


def weights(modules: Mapping[str, str]) -> dict[str, str]:
    """Names of modules -> names of their weights and biases."""
    return {f"{a}.{part}": f"{b}.{part}" for a, b in modules.items() for part in ("weight", "bias")}


def inverse(names: Mapping[str, str]) -> dict[str, str]:
    return {theirs: ours for ours, theirs in names.items()}


VIT_BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")

# transformers' ViT and ViViT have qkv in three. Their files and, since version 5, their modules spell a block in two ways.
QKV = ("attn.q", "attn.k", "attn.v")
SPLIT_BLOCK = ("norm1", *QKV, "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
ON_DISK = (
    "layernorm_before", "attention.attention.query", "attention.attention.key", "attention.attention.value",
    "attention.output.dense", "layernorm_after", "intermediate.dense", "output.dense",
)  # fmt: skip
IN_MEMORY = (
    "layernorm_before", "attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", "layernorm_after",
    "mlp.fc1", "mlp.fc2",
)  # fmt: skip


def from_timm(state: Mapping[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """An image ViT's state dict in timm's layout, in the names of our ViTs (embed, blocks, norm, cls_token, pos_embed; norm_pre
    where it has one) and without its head. embed.weight is still (D,3,p,p).

    Raises CheckpointError naming every key that is left over or missing in a ViT of that many blocks with a cls token.
    """
    modules = {"patch_embed.proj": "embed", "norm_pre": "norm_pre", "norm": "norm", "head": "head"}
    modules |= {f"blocks.{i}.{name}": f"blocks.{i}.{name}" for i in range(blocks) for name in VIT_BLOCK}
    names = {"cls_token": "cls_token", "pos_embed": "pos_embed", **weights(modules)}
    return {key: value for key, value in rename(state, names, ["head.", "norm_pre."]).items() if not key.startswith("head.")}


def image_positions(table: Tensor, grid: Triple) -> Tensor:
    """The positions of an image ViT's patches (S',D), which are a square, interpolated to rows x columns: (S,D)."""
    side = round(table.shape[0] ** 0.5)
    if side**2 != len(table):
        raise CheckpointError(f"pos_embed has {len(table)} patches besides the cls token, wanted a square of them")
    return resize_positions(table, (1, side, side), (1, *grid[1:]))


def inflated(kernel: Tensor, frames: int, how: str) -> Tensor:
    """An image's kernel (D,3,p,p) as the weight of a Linear over tubelets of so many frames, (D,frames*p*p*3): that of the middle
    frame, the others zero (how="central"), or every frame's, divided by their number ("inflate")."""
    share = torch.full((frames,), 1 / frames) if how == "inflate" else torch.eye(frames)[frames // 2]
    return linear_weight(kernel[:, :, None] * share.to(kernel)[:, None, None])


def into(model: nn.Module, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of `model` with what was found in its place; CheckpointError naming every weight that is left
    over or of another shape."""
    own = model.state_dict()
    problems = [f"left over {key}" for key in found if key not in own]
    problems += [
        f"{key} is {tuple(value.shape)}, wanted {tuple(own[key].shape)}"
        for key, value in found.items()
        if key in own and value.shape != own[key].shape
    ]
    if problems:
        raise CheckpointError(f"{len(problems)} weights do not fit: {'; '.join(problems)}")
    return {**own, **found}
