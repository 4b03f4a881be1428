"""TimeSformer: is space-time attention all you need for video understanding? (Bertasius et al. 2021)

Every frame is cut into patches as an image ViT does. In a block of divided attention a patch first looks at the patches of the
same place in the other frames, then at those of its own frame; the cls token looks at every frame, and takes the mean of what
it saw. The cls token is classified.

How ours differs: tokens are in (t, y, x) order, in the original a place's moments lie side by side; in divided attention drop
path drops a clip's whole branch, in the original that of one place or frame; positions are interpolated linearly for other
clips than they were made for, in the original the nearest is taken. The original begins as an image ViT, with the time embedding
and `temporal_fc` at zero, and so does `from_image`. A model that begins from nothing has Xavier's first values in place of 0.02,
which are made for wide models, and both position tables begin as sines and cosines that tell moments and places apart.

B batch, T frames, S places (patches of a frame), N = T*S tokens, D width, K classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tubelet.find import choose
from tubelet.models import _keys
from tubelet.models._model import Model
from tubelet.models._tokens import (
    Triple,
    conv_weight,
    grid_of,
    linear_weight,
    patchify,
    resize_positions,
    separable_positions,
)
from tubelet.models._transformer import MLP, BiasedAttention, Dropout, DropPath, LayerNorm, drop_path_rates, init_mimetic
from tubelet.records import ClipSpec
from tubelet.video.normalize import normalize

PAPER = "Bertasius et al. 2021, arXiv:2102.05095"
EPS = 1e-6  # of every LayerNorm, in the original's and transformers' weights alike
ATTENTION = ("divided", "joint", "space")

BASE = dict(width=768, depth=12, heads=12)
VARIANTS: dict[str, dict[str, Any]] = {
    "timesformer_base": dict(BASE),
    "timesformer_hr": dict(BASE),
    "timesformer_long": dict(BASE),
    "timesformer_base_joint": dict(BASE, attention="joint"),
    "timesformer_base_space": dict(BASE, attention="space"),
}


def _clip(frames: int, stride: int, size: int) -> ClipSpec:
    return ClipSpec(frames=frames, stride_frames=stride, size=size, mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225))


CLIPS = {name: _clip(8, 32, 224) for name in VARIANTS}
CLIPS |= {"timesformer_hr": _clip(16, 16, 448), "timesformer_long": _clip(96, 4, 224)}


def build(name: str, spec: ClipSpec, class_names: Sequence[str] = (), **options: Any) -> "TimeSformer":
    """A freshly initialised model; with `class_names` it has a head. options: see TimeSformer."""
    return TimeSformer(name, spec, tuple(class_names), **{**VARIANTS[name], **options})


class Block(nn.Module):
    """Attention among all tokens it is given, or divided: in time, then in space (equations 7 to 9). Then an MLP."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, drop_path: float, divided: bool) -> None:
        super().__init__()
        self.divided = divided
        if divided:
            self.temporal_norm1 = LayerNorm(width, eps=EPS)
            self.temporal_attn = BiasedAttention(width, heads)
            self.temporal_fc = nn.Linear(width, width)
        self.norm1 = LayerNorm(width, eps=EPS)
        self.attn = BiasedAttention(width, heads)
        self.norm2 = LayerNorm(width, eps=EPS)
        self.mlp = MLP(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """(B,1+T*S,D), the cls token first -> the same shape."""
        x = self._in_time_then_in_space(x, frames) if self.divided else x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _in_time_then_in_space(self, x: Tensor, frames: int) -> Tensor:
        cls, patches = x[:, :1], x[:, 1:].unflatten(1, (frames, -1))  # (B,1,D), (B,T,S,D)
        moved = self.drop_path(self.temporal_attn(self.temporal_norm1(patches)))
        patches = patches + self.temporal_fc(moved)
        seen = torch.cat([cls[:, None].expand(-1, frames, -1, -1), patches], dim=2)  # (B,T,1+S,D)
        seen = self.attn(self.norm1(seen.flatten(0, 1))).view(seen.shape)
        seen = self.drop_path(seen)
        cls = cls + seen[:, :, 0].mean(dim=1, keepdim=True)
        return torch.cat([cls, (patches + seen[:, :, 1:]).flatten(1, 2)], dim=1)


SHARPNESS = 20.0  # how much more a token's query likes its own neighbour's key than one that has nothing to do with it


@torch.no_grad()
def look_to_neighbours(attention: BiasedAttention, axes: Sequence[tuple[int, int]]) -> list[int]:
    """First values of attention: every other head of a token looks one moment back, the rest one ahead, at its own place.

    axes: (first channel, number of them) in which `separable_positions` tells the time and, where tokens of several places attend
    together, the row and the column. Queries and keys read nothing else, and the queries turn the time by one moment. Gives the
    channels that are read. Values and what is made of them stay as they are, and so do rows of queries and keys that this leaves
    over: two zeros would never learn. Attention that prefers no direction of time at first hardly finds one: what it sees of a clip
    and of its reversal is the same.
    """
    query, key, _ = attention.qkv.weight.chunk(3)  # views
    pairs = min(attention.size // len(axes), axes[0][1]) // 2  # of a sine and a cosine of each axis, the quickest first
    if pairs == 0:
        return []
    gain = (SHARPNESS * attention.size**0.5 / pairs) ** 0.5
    for head, first in enumerate(range(0, query.shape[0], attention.size)):
        for axis, (channel, channels) in enumerate(axes):
            speeds = 100 ** (-2 * torch.arange(pairs, device=query.device) / channels)  # radians from one to the next
            angle = speeds * (0 if axis else 1 if head % 2 else -1)
            turns = torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)
            rows = slice(first + 2 * pairs * axis, first + 2 * pairs * (axis + 1))
            columns = slice(channel, channel + 2 * pairs)
            query[rows], key[rows] = 0, 0
            query[rows, columns] = gain * torch.block_diag(*turns)
            key[rows, columns] = gain * torch.eye(2 * pairs, device=key.device)
    return [channel + i for channel, _ in axes for i in range(2 * pairs)]


class TimeSformer(Model):
    """attention is "divided", "joint" (all tokens with all) or "space" (every frame alone, an image ViT whose cls tokens are
    averaged: it does not know the order of frames).

    patch is the pixels of one token; `position_grid` the grid (frames, rows, columns) that the position tables hold: the clip's
    that the model is built for, and kept when it is rebuilt for other clips, for which the tables are interpolated. first_values
    is "xavier" or "mimetic" (see _transformer.init_mimetic), from which a small model learns motion from fewer clips.
    """

    def __init__(
        self, name: str, spec: ClipSpec, class_names: tuple[str, ...] = (), *, width: int, depth: int, heads: int,
        attention: str = "divided", patch: int = 16, mlp_ratio: float = 4.0, drop_path: float = 0.0, dropout: float = 0.0,
        position_grid: Sequence[int] | None = None, first_values: str = "xavier",
    ) -> None:  # fmt: skip
        super().__init__()
        self.name, self.spec, self.class_names = name, spec, class_names
        self.width, self.depth, self.tubelet = width, depth, (1, patch, patch)
        self.attention = choose(attention, ATTENTION, "attention")
        grid = grid_of(name, (spec.frames, 3, spec.size, spec.size), self.tubelet)
        self.position_grid: Triple = grid if position_grid is None else (*position_grid,)  # type: ignore[assignment]
        self.options: dict[str, Any] = dict(
            width=width, depth=depth, heads=heads, attention=attention, patch=patch, mlp_ratio=mlp_ratio,
            drop_path=drop_path, dropout=dropout, position_grid=list(self.position_grid),
            first_values=choose(first_values, ("xavier", "mimetic"), "first_values"),
        )  # fmt: skip

        slots, rows, columns = self.position_grid
        self.embed = nn.Linear(patch * patch * 3, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + rows * columns, width))
        if attention != "space":
            self.time_embed = nn.Parameter(torch.empty(1, slots, width))
        rates = drop_path_rates(drop_path, depth)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, rate, attention == "divided") for rate in rates)
        self.norm = LayerNorm(width, eps=EPS)
        if class_names:
            self.dropout = Dropout(dropout)
            self.head = nn.Linear(width, len(class_names))
        self.init_weights()

    def init_weights(self) -> None:
        """Every first value: Xavier (or mimetic) for Linear layers, normal of 0.02 for the cls token and the head, 0 for biases,
        1 and 0 for norms.

        Both position tables add up to one of `separable_positions`: a third of the channels tells the time, the others the place.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" in name:
                nn.init.ones_(parameter)
            elif name in ("cls_token", "head.weight"):
                nn.init.trunc_normal_(parameter, std=0.02)
            elif name in ("pos_embed", "time_embed"):
                nn.init.zeros_(parameter)
            else:
                nn.init.xavier_uniform_(parameter)
        third = self.width // 6 * 2  # the channels of `separable_positions` that tell the time
        if self.options["first_values"] == "mimetic":
            axes = [(0, third), (third, third), (2 * third, self.width - 2 * third)]  # of `separable_positions`
            joint = self.options["attention"] == "joint"
            for name, module in self.named_modules():
                if isinstance(module, BiasedAttention):
                    init_mimetic(module.qkv, module.proj, self.options["heads"])
                    if name.endswith("temporal_attn") or (joint and name == "blocks.0.attn"):
                        read = look_to_neighbours(module, axes if joint else axes[:1])
                        self.embed.weight.detach()[[*range(third), *read]] = 0  # what is seen would drown the time
            if joint:  # a norm shrinks positions by what is seen, so that grey patches would draw the attention of all others
                self.embed.weight.detach().mul_(0.25)
        table = separable_positions(self.position_grid, self.width).unflatten(0, (self.position_grid[0], -1))  # (T,S,D)
        with torch.no_grad():
            self.pos_embed[0, 1:, third:] = table[0, :, third:]
            if self.options["attention"] != "space":
                self.time_embed[0, :, :third] = table[:, 0, :third]

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        """frames (B,T,C,H,W) 0..255 -> "tokens" (B,N,D) in (t, y, x) order; "embedding" (B,D), the cls token; "logits" (B,K)."""
        b = frames.shape[0]
        grid = grid_of(self.name, frames.shape, self.tubelet)
        patches = normalize(patchify(frames, self.tubelet), self.spec.mean, self.spec.std)  # (B,N,P)
        x = self.embed(patches) + self._positions(grid)  # (B,N,D)
        if self.attention == "space":
            x = x.reshape(b * grid[0], -1, self.width)  # (B*T,S,D)
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x, grid[0])
        if self.attention == "space":
            x = x.unflatten(0, (b, -1))  # (B,T,1+S,D)
            x = torch.cat([x[:, :, 0].mean(dim=1, keepdim=True), x[:, :, 1:].flatten(1, 2)], dim=1)
        x = self.norm(x)  # (B,1+N,D)
        out = {"tokens": x[:, 1:], "embedding": x[:, 0]}
        if self.class_names:
            out["logits"] = self.head(self.dropout(out["embedding"]))
        return out

    def _positions(self, grid: Triple) -> Tensor:
        """Of all tokens of a grid: (N,D)."""
        slots, rows, columns = self.position_grid
        places = resize_positions(self.pos_embed[0, 1:], (1, rows, columns), (1, *grid[1:]))
        if self.attention == "space":
            return places.repeat(grid[0], 1)
        moments = resize_positions(self.time_embed[0], (slots, 1, 1), (grid[0], 1, 1))
        return (moments[:, None] + places).flatten(0, 1)

    def depth_of(self, parameter: str) -> int:
        """0 embedding, positions and cls token, 1..depth blocks, depth+1 norm and head."""
        if parameter.startswith("blocks."):
            return int(parameter.split(".")[1]) + 1
        return self.depth + 1 if parameter.startswith(("norm.", "head.")) else 0

    def attended_pairs(self) -> int:
        """Patches with patches of one frame, and when divided with those of one place too; joint, all with all."""
        slots, rows, columns = grid_of(self.name, (self.spec.frames, 3, self.spec.size, self.spec.size), self.tubelet)
        places = rows * columns
        space, time = slots * places**2, places * slots**2
        return {"divided": space + time, "joint": (slots * places) ** 2, "space": space}[self.attention]

    def head_parameters(self) -> list[nn.Parameter]:
        """What stays trainable when everything but the head is frozen."""
        return list(self.head.parameters()) if self.class_names else []


# Weight-key maps -----------------------------------------------------------------------------------------------------

_TEMPORAL = ("temporal_norm1", "temporal_attn.qkv", "temporal_attn.proj", "temporal_fc")
_HUGGINGFACE_BLOCK = {
    "norm1": "layernorm_before", "attn.qkv": "attention.attention.qkv", "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
    "temporal_norm1": "temporal_layernorm", "temporal_attn.qkv": "temporal_attention.attention.qkv",
    "temporal_attn.proj": "temporal_attention.output.dense", "temporal_fc": "temporal_dense",
}  # fmt: skip
_OPTIONAL = ("temporal_", "time_embed", "head.")  # by attention, and without classes


def _original(depth: int) -> dict[str, str]:
    """Our names -> the original's."""
    modules = {"embed": "model.patch_embed.proj", "norm": "model.norm", "head": "model.head"}
    blocks = [f"blocks.{i}.{name}" for i in range(depth) for name in (*_keys.VIT_BLOCK, *_TEMPORAL)]
    modules |= {name: f"model.{name}" for name in blocks}
    return {name: f"model.{name}" for name in ("cls_token", "pos_embed", "time_embed")} | _keys.weights(modules)


def _huggingface(depth: int) -> dict[str, str]:
    """Our names -> transformers'."""
    stem = "timesformer.embeddings."
    modules = {"embed": stem + "patch_embeddings.projection", "norm": "timesformer.layernorm", "head": "classifier"}
    for i in range(depth):
        modules |= {f"blocks.{i}.{a}": f"timesformer.encoder.layer.{i}.{b}" for a, b in _HUGGINGFACE_BLOCK.items()}
    tables = {"cls_token": "cls_token", "pos_embed": "position_embeddings", "time_embed": "time_embeddings"}
    return {ours: stem + theirs for ours, theirs in tables.items()} | _keys.weights(modules)


def to_original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict in the key layout of the original files (what they hold under `model_state`)."""
    return _to(state, _original(_keys.count(state, "blocks.")))


def from_original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in the original's key layout, in ours; CheckpointError naming every key left over or missing."""
    return _from(state, _original(_keys.count(state, "model.blocks.")))


def to_huggingface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict in the key layout of transformers' TimesformerForVideoClassification."""
    return _to(state, _huggingface(_keys.count(state, "blocks.")))


def from_huggingface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' state dict in our key layout; CheckpointError naming every key left over or missing."""
    return _from(state, _huggingface(_keys.count(state, "timesformer.encoder.layer.")))


def _to(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    out = _keys.to_theirs(state, names, _OPTIONAL)
    values = out[names["embed.weight"]]
    patch = round((values.shape[1] // 3) ** 0.5)
    return {**out, names["embed.weight"]: conv_weight(values, (1, patch, patch)).squeeze(2)}


def _from(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    out = _keys.to_ours(state, names, _OPTIONAL)
    return {**out, "embed.weight": linear_weight(out["embed.weight"].unsqueeze(2))}


def from_image(model: TimeSformer, state: dict[str, Tensor], how: str = "zero") -> dict[str, Tensor]:
    """A state dict for `model` that begins as an image ViT, given in timm's layout (`patch_embed.proj.weight` (D,3,p,p), ...).

    Temporal attention begins as a copy of the spatial one, the time embedding at zero. how="zero" also sets `temporal_fc` to
    zero, so that every frame's patches are those of the image ViT (so the original, but for its first block); how="copy" leaves
    it to the model. The image's head is left behind, the model's kept.
    Raises CheckpointError naming every weight that does not fit.
    """
    choose(how, ("zero", "copy"), "way to begin from an image model")
    found = _keys.from_timm(state, model.depth)
    found["embed.weight"] = linear_weight(found["embed.weight"].unsqueeze(2))
    table = found["pos_embed"]
    found["pos_embed"] = torch.cat([table[:, :1], _keys.image_positions(table[0, 1:], model.position_grid)[None]], dim=1)
    for name, value in model.state_dict().items():
        if name == "time_embed" or (how == "zero" and "temporal_fc." in name):
            found[name] = torch.zeros_like(value)
        elif "temporal_norm1." in name or "temporal_attn." in name:
            found[name] = found[name.replace("temporal_", "")].clone()
    return _keys.into(model, found)
