"""Weights under other names. A family states once which of ours is which of theirs; every key is accounted for, or CheckpointError
names all that are not.

A Table is {our name: their name, or their names of several weights that ours holds one after another along dimension 0}. Both
directions follow from it.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, overload

import torch
from torch import Tensor, nn

from tubelet.errors import CheckpointError
from tubelet.models._tokens import Triple, linear_weight, resize_positions

Table = Mapping[str, str | tuple[str, ...]]


def to_ours(state: Mapping[str, Tensor], table: Table, optional: Sequence[str] = ()) -> dict[str, Tensor]:
    """Their state dict under our names. CheckpointError naming every weight that is left over and every one missing.

    optional: words; the weights that have one of them in our name may be missing, all together.
    """
    used = _without(table, optional, lambda ours: any(name in state for name in _theirs(table[ours])))
    _check(state, [name for ours in used for name in _theirs(table[ours])])
    out: dict[str, Tensor] = {}
    for ours in used:
        pieces = [state[name] for name in _theirs(table[ours])]
        if len({piece.shape[1:] if piece.ndim else None for piece in pieces}) > 1:
            raise CheckpointError(f"{' and '.join(_theirs(table[ours]))} are of different shapes")
        out[ours] = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    return out


def to_theirs(state: Mapping[str, Tensor], table: Table, optional: Sequence[str] = ()) -> dict[str, Tensor]:
    """Our state dict under their names: the inverse of `to_ours`, with the same errors."""
    used = _without(table, optional, lambda ours: ours in state)
    _check(state, used)
    out: dict[str, Tensor] = {}
    for ours in used:
        names = _theirs(table[ours])
        pieces = [piece.clone() for piece in state[ours].chunk(len(names))] if len(names) > 1 else [state[ours]]
        out.update(zip(names, pieces, strict=True))
    return out


def count(names: Iterable[str], stem: str) -> int:
    """How many things are numbered after `stem` in these names, from 0 on."""
    numbers = (re.match(re.escape(stem) + r"(\d+)\.", name) for name in names)
    return 1 + max((int(found[1]) for found in numbers if found), default=-1)


def _theirs(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _without(table: Table, optional: Sequence[str], there: Callable[[str], bool]) -> list[str]:
    """Our names in a table, but for those with a word of `optional` of which none is there."""
    absent = [word for word in optional if not any(there(ours) for ours in table if word in ours)]
    return [ours for ours in table if not any(word in ours for word in absent)]


def _check(state: Iterable[str], wanted: Sequence[str]) -> None:
    has, wants = dict.fromkeys(state), dict.fromkeys(wanted)
    left = [key for key in has if key not in wants]
    problems = [f"left over {key}" for key in left]
    problems += [f"missing {key}{nearest(key, left)}" for key in wants if key not in has]
    if problems:
        raise CheckpointError(f"{len(problems)} weights do not fit: {'; '.join(problems)}")


def nearest(key: str, left: Sequence[str]) -> str:
    """Which of those left over a missing weight may be, for a message. That of another block or layer is not this one misspelt."""
    near = get_close_matches(key, [one for one in left if re.sub(r"\d+", "", one) != re.sub(r"\d+", "", key)], n=1, cutoff=0.9)
    return f" (left over is {near[0]})" if near else ""


@overload
def weights(modules: Mapping[str, str]) -> dict[str, str]: ...
@overload
def weights(modules: Table) -> dict[str, str | tuple[str, ...]]: ...
def weights(modules: Table) -> Any:
    """A table of modules as one of their weights and biases."""
    table: dict[str, str | tuple[str, ...]] = {}
    for ours, theirs in modules.items():
        for part in ("weight", "bias"):
            names = tuple(f"{name}.{part}" for name in _theirs(theirs))
            table[f"{ours}.{part}"] = names[0] if isinstance(theirs, str) else names
    return table


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
    modules = {"embed": "patch_embed.proj", "norm_pre": "norm_pre", "norm": "norm", "head": "head"}
    modules |= {name: name for i in range(blocks) for name in (f"blocks.{i}.{part}" for part in VIT_BLOCK)}
    table = {"cls_token": "cls_token", "pos_embed": "pos_embed", **weights(modules)}
    return {key: value for key, value in to_ours(state, table, ["head.", "norm_pre."]).items() if not key.startswith("head.")}


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
