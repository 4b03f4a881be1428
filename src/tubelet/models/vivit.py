"""ViViT: a video vision transformer (Arnab et al. 2021), all four of its models.

The clip is cut into tubelets, or with tubelet=1 its frames into patches ("uniform frame sampling"). What then attends to what
is `factorised`:

    "none"         model 1: all tokens with all; the cls token is classified
    "encoder"      model 2: an image ViT over the tokens of one slot; its cls tokens, one a slot, go through a second, temporal
                   encoder, whose cls token is classified. More parameters than model 1, fewer multiply-adds
    "attention"    model 3: a block attends among the tokens of a slot, then among those of a place; the mean token is classified
    "dot_product"  model 4: half of a block's heads attend within a slot, the others within a place; the mean token is classified

How ours differs: the tubelet embedding is a Linear over values in (t, y, x, colour) order instead of a Conv3d (see the maps at
the end); drop path drops a clip's whole branch; begun from an image model, model 3's temporal attention has only its output
projection at zero, in the paper all its weights, of which none would then learn.

B batch, T slots (frames / tubelet), S places (tubelets of a slot), N = T*S tokens, D width, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tubelet.errors import CheckpointError, ConfigError
from tubelet.find import choose
from tubelet.models import _keys
from tubelet.models._model import Model
from tubelet.models._tokens import Triple, conv_weight, grid_of, linear_weight, patchify, resize_positions
from tubelet.models._transformer import (
    MLP,
    BiasedAttention,
    Dropout,
    DropPath,
    LayerNorm,
    attend,
    drop_path_rates,
    products,
    split_heads,
)
from tubelet.records import ClipSpec
from tubelet.video.normalize import normalize

PAPER = "Arnab et al. 2021, arXiv:2103.15691"
EPS = 1e-6  # of every LayerNorm, in the original's and transformers' weights alike
EPS_PRE = 1e-5  # of CLIP's LayerNorms; before the first block values are small, and it counts
FACTORISED = ("none", "encoder", "attention", "dot_product")

BASE = dict(width=768, depth=12, heads=12)
VARIANTS: dict[str, dict[str, Any]] = {
    "vivit_base": dict(BASE),
    "vivit_base_factorised_encoder": dict(BASE, factorised="encoder"),
    "vivit_base_factorised_attention": dict(BASE, factorised="attention"),
    "vivit_base_factorised_dot_product": dict(BASE, factorised="dot_product"),
    "vivit_large_factorised_encoder": dict(width=1024, depth=24, heads=16, factorised="encoder"),
}
CLIPS = {name: ClipSpec(frames=32, stride_frames=2, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)) for name in VARIANTS}


def build(name: str, spec: ClipSpec, class_names: Sequence[str] = (), **options: Any) -> "ViViT":
    """A freshly initialised model; with `class_names` it has a head. options: see ViViT."""
    return ViViT(name, spec, tuple(class_names), **{**VARIANTS[name], **options})


class Block(nn.Module):
    """Attention and MLP, over (B,N,D); in models 3 and 4 over (B,T,S,D)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, gelu: str, drop_path: float, factorised: str = "none") -> None:
        super().__init__()
        self.factorised = factorised
        self.norm1 = LayerNorm(width, eps=EPS)
        self.attn = (DotProduct if factorised == "dot_product" else BiasedAttention)(width, heads)
        if factorised == "attention":
            self.temporal_norm1 = LayerNorm(width, eps=EPS)
            self.temporal_attn = BiasedAttention(width, heads)
        self.norm2 = LayerNorm(width, eps=EPS)
        self.mlp = MLP(width, int(width * mlp_ratio), gelu)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        if self.factorised == "attention":  # equations 4 and 5
            slots = self.norm1(x).flatten(0, 1)  # (B*T,S,D)
            x = x + self.drop_path(self.attn(slots).view(x.shape))
            x = x + self.drop_path(self.temporal_attn(self.temporal_norm1(x)))
        else:
            x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class DotProduct(nn.Module):
    """Factorised dot-product attention (section 3.3): the first half of the heads within a slot, the second within a place."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads or heads % 2:
            raise ConfigError(f"heads is {heads}: factorised dot-product attention needs an even number that divides {width}")
        self.size = width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B,T,S,D) -> the same shape."""
        b, t, s, _ = x.shape
        halves = products(x, self.qkv, 6)  # of queries, of keys and of values: (B,T,S,D/2)
        space = attend(*(split_heads(y.flatten(0, 1), self.size) for y in halves[0::2]))  # (B*T,A/2,S,d)
        time = attend(*(split_heads(y, self.size) for y in halves[1::2]))  # (B,S*A/2,T,d)
        seen = [space.transpose(1, 2).reshape(b, t, s, -1), time.transpose(1, 2).reshape(b, t, s, -1)]
        return self.proj(torch.cat(seen, dim=-1))


class ViViT(Model):
    """factorised: see the top. temporal_depth is the number of blocks of model 2's temporal encoder.

    patch and tubelet are the pixels and frames of one token. gelu is "tanh" (JAX's, so the published weights), "none" (exact, as
    in timm's image models) or "quick" (OpenAI's CLIP); norm_pre puts a LayerNorm before the first block, as all CLIP vision
    towers have. `position_grid` is the token grid that the position tables hold: the clip's that the model is
    built for, and kept when it is rebuilt for other clips, for which the tables are interpolated.
    """

    def __init__(
        self, name: str, spec: ClipSpec, class_names: tuple[str, ...] = (), *, width: int, depth: int, heads: int,
        factorised: str = "none", temporal_depth: int = 4, patch: int = 16, tubelet: int = 2, mlp_ratio: float = 4.0,
        drop_path: float = 0.0, dropout: float = 0.0, gelu: str = "tanh", norm_pre: bool = False,
        position_grid: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.name, self.spec, self.class_names = name, spec, class_names
        self.width, self.tubelet = width, (tubelet, patch, patch)
        self.factorised = choose(factorised, FACTORISED, "factorised")
        choose(gelu, ("tanh", "none", "quick"), "gelu")
        two = factorised == "encoder"
        self.spatial_depth, self.depth = depth, depth + two * temporal_depth
        grid = grid_of(name, (spec.frames, 3, spec.size, spec.size), self.tubelet)
        self.position_grid: Triple = grid if position_grid is None else (*position_grid,)  # type: ignore[assignment]
        self.options: dict[str, Any] = dict(
            width=width, depth=depth, heads=heads, factorised=factorised, temporal_depth=temporal_depth, patch=patch,
            tubelet=tubelet, mlp_ratio=mlp_ratio, drop_path=drop_path, dropout=dropout, gelu=gelu, norm_pre=norm_pre,
            position_grid=list(self.position_grid),
        )  # fmt: skip

        slots, rows, columns = self.position_grid
        places, has_cls = rows * columns, factorised in ("none", "encoder")
        self.embed = nn.Linear(tubelet * patch * patch * 3, width)
        self.pos_embed = nn.Parameter(torch.empty(1, has_cls + (1 if two else slots) * places, width))
        if has_cls:
            self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.norm_pre = LayerNorm(width, eps=EPS_PRE) if norm_pre else nn.Identity()
        rates = drop_path_rates(drop_path, self.depth)
        kind = factorised if not has_cls else "none"
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, gelu, rate, kind) for rate in rates[:depth])
        self.norm = LayerNorm(width, eps=EPS)
        if two:
            self.temporal_cls_token = nn.Parameter(torch.empty(1, 1, width))
            self.temporal_pos_embed = nn.Parameter(torch.empty(1, 1 + slots, width))
            self.temporal_blocks = nn.ModuleList(Block(width, heads, mlp_ratio, gelu, rate) for rate in rates[depth:])
            self.temporal_norm = LayerNorm(width, eps=EPS)
        if class_names:
            self.dropout = Dropout(dropout)
            self.head = nn.Linear(width, len(class_names))
        self.init_weights()

    def init_weights(self) -> None:
        """Every first value: Xavier for Linear layers, normal of 0.02 for tokens and positions, 0 for biases, 1 and 0 for norms."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" in name:
                nn.init.ones_(parameter)
            elif name.endswith(("cls_token", "pos_embed")):
                nn.init.trunc_normal_(parameter, std=0.02)
            else:
                nn.init.xavier_uniform_(parameter)

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        """Named tensors for frames (B,T*tubelet,C,H,W), 0..255.

        "tokens" are (B,N,D) in (t, y, x) order, of model 2 (B,T,D), one a slot; "embedding" (B,D) is the cls token, of models 3
        and 4 the mean token; "logits" (B,K) with classes.
        """
        grid = grid_of(self.name, frames.shape, self.tubelet)
        patches = normalize(patchify(frames, self.tubelet), self.spec.mean, self.spec.std)  # (B,N,P)
        run = {"none": self._joint, "encoder": self._two_encoders}.get(self.factorised, self._slots_and_places)
        tokens, embedding = run(self.embed(patches), grid)
        out = {"tokens": tokens, "embedding": embedding}
        if self.class_names:
            out["logits"] = self.head(self.dropout(embedding))
        return out

    def _joint(self, x: Tensor, grid: Triple) -> tuple[Tensor, Tensor]:
        """(B,N,D) -> tokens and their cls token."""
        x = x + resize_positions(self.pos_embed[0, 1:], self.position_grid, grid)
        x = self.norm_pre(_with_cls(self.cls_token, self.pos_embed, x))
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x[:, 1:], x[:, 0]

    def _two_encoders(self, x: Tensor, grid: Triple) -> tuple[Tensor, Tensor]:
        """(B,N,D) -> one token a slot (B,T,D) and their cls token."""
        slots, rows, columns = self.position_grid
        x = x.reshape(-1, grid[1] * grid[2], self.width)  # (B*T,S,D)
        x = x + resize_positions(self.pos_embed[0, 1:], (1, rows, columns), (1, *grid[1:]))
        x = self.norm_pre(_with_cls(self.cls_token, self.pos_embed, x))
        for block in self.blocks:
            x = block(x)
        x = self.norm(x[:, 0]).view(-1, grid[0], self.width)  # (B,T,D)
        x = x + resize_positions(self.temporal_pos_embed[0, 1:], (slots, 1, 1), (grid[0], 1, 1))
        x = _with_cls(self.temporal_cls_token, self.temporal_pos_embed, x)
        for block in self.temporal_blocks:
            x = block(x)
        x = self.temporal_norm(x)
        return x[:, 1:], x[:, 0]

    def _slots_and_places(self, x: Tensor, grid: Triple) -> tuple[Tensor, Tensor]:
        """(B,N,D) -> tokens and their mean."""
        x = x + resize_positions(self.pos_embed[0], self.position_grid, grid)
        x = self.norm_pre(x).unflatten(1, (grid[0], -1))  # (B,T,S,D)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x).flatten(1, 2)
        return x, x.mean(dim=1)

    def depth_of(self, parameter: str) -> int:
        """0 embedding, positions and cls token, 1.. blocks, then those of the temporal encoder, depth+1 last norm and head.

        What the temporal encoder begins with counts to its first block, the norm before it to the last spatial one.
        """
        if parameter.startswith("blocks."):
            return int(parameter.split(".")[1]) + 1
        if parameter.startswith("temporal_blocks."):
            return self.spatial_depth + int(parameter.split(".")[1]) + 1
        if parameter.startswith(("temporal_cls_token", "temporal_pos_embed")):
            return self.spatial_depth + 1
        if parameter.startswith("norm.") and self.factorised == "encoder":
            return self.spatial_depth
        return self.depth + 1 if parameter.startswith(("norm.", "temporal_norm.", "head.")) else 0

    def attended_pairs(self) -> int:
        """Model 1: all tokens with all. Models 3 and 4: those of a slot, and those of a place. Model 2: those of a slot, and the
        slots."""
        slots, rows, columns = grid_of(self.name, (self.spec.frames, 3, self.spec.size, self.spec.size), self.tubelet)
        places = rows * columns
        space, time = slots * places**2, slots**2
        return {"none": (slots * places) ** 2, "encoder": space + time}.get(self.factorised, space + places * time)

    def head_parameters(self) -> list[nn.Parameter]:
        """What stays trainable when everything but the head is frozen."""
        return list(self.head.parameters()) if self.class_names else []


def _with_cls(token: Tensor, positions: Tensor, x: Tensor) -> Tensor:
    """The cls token at the first of its positions, before x: (B,N,D) -> (B,1+N,D)."""
    return torch.cat([(token + positions[:, :1]).expand(x.shape[0], -1, -1), x], dim=1)


# Weight-key maps -----------------------------------------------------------------------------------------------------
# transformers has model 1 only.


def _huggingface(depth: int, stem: str, block: Sequence[str]) -> _keys.Table:
    """Our names -> transformers', which have qkv in three."""
    embeddings = "vivit.embeddings."
    theirs = dict(zip(_keys.SPLIT_BLOCK, block, strict=True))
    modules: dict[str, str | tuple[str, ...]] = {"embed": embeddings + "patch_embeddings.projection"}
    modules |= {"norm": "vivit.layernorm", "head": "classifier"}
    for i in range(depth):
        modules |= {f"blocks.{i}.{ours}": f"{stem}{i}.{theirs[ours]}" for ours in theirs if ours not in _keys.QKV}
        modules[f"blocks.{i}.attn.qkv"] = tuple(f"{stem}{i}.{theirs[one]}" for one in _keys.QKV)
    tables = {"cls_token": embeddings + "cls_token", "pos_embed": embeddings + "position_embeddings"}
    return {**tables, **_keys.weights(modules)}


def to_huggingface(state: Mapping[str, Tensor], tubelet: Triple) -> dict[str, Tensor]:
    """Model 1's state dict in the key layout of transformers' Vivit files. CheckpointError for those of models 2 to 4."""
    state = {**state, "embed.weight": conv_weight(state["embed.weight"], tubelet)}
    table = _huggingface(_keys.count(state, "blocks."), "vivit.encoder.layer.", _keys.ON_DISK)
    return _keys.to_theirs(state, table, ["head."])


def from_huggingface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' Vivit state dict, as on disk or as in memory, in our key layout (model 1).

    Raises CheckpointError naming every key left over or missing.
    """
    stem, block = "vivit.encoder.layer.", _keys.ON_DISK
    if not any(key.startswith(stem) for key in state):
        stem, block = "vivit.layers.", _keys.IN_MEMORY
    out = _keys.to_ours(state, _huggingface(_keys.count(state, stem), stem, block), ["head."])
    return {**out, "embed.weight": linear_weight(out["embed.weight"])}


def from_image(model: ViViT, state: Mapping[str, Tensor], how: str = "central") -> dict[str, Tensor]:
    """A state dict for `model` that begins as an image ViT, given in timm's layout (`patch_embed.proj.weight` (D,3,p,p), ...).

    The image's kernel (section 3.4) becomes the middle frame of a tubelet's, the others zero (how="central"); or every frame's,
    divided by their number ("inflate"); or is left behind ("random"). Its positions are repeated over time. Model 3's temporal
    attention begins at zero, so that the model is a ViT of every slot; model 2's temporal encoder and the head keep the model's
    values. Models 3 and 4 leave the image's cls token behind, all of them its head.
    Raises CheckpointError naming every weight that does not fit.
    """
    choose(how, ("central", "inflate", "random"), "way to begin from an image model")
    if ("norm_pre.weight" in state) != model.options["norm_pre"]:
        has = "has" if "norm_pre.weight" in state else "has no"
        raise CheckpointError(
            f"the image model {has} norm_pre, {model.name} is built with norm_pre={model.options['norm_pre']}"
        )
    found = _keys.from_timm(state, model.spatial_depth)
    if how == "random":
        del found["embed.weight"], found["embed.bias"]
    else:
        found["embed.weight"] = _keys.inflated(found["embed.weight"], model.tubelet[0], how)
    table = found["pos_embed"]
    places = _keys.image_positions(table[0, 1:], model.position_grid)
    if model.factorised != "encoder":
        places = places.repeat(model.position_grid[0], 1)
    if model.factorised in ("none", "encoder"):
        places = torch.cat([table[0, :1], places])
    else:
        del found["cls_token"]
    found["pos_embed"] = places[None]
    for name, value in model.state_dict().items():
        if "temporal_attn.proj." in name:
            found[name] = torch.zeros_like(value)
    return _keys.into(model, found)


def left_behind(model: ViViT, how: str = "central") -> dict[str, str]:
    """What `from_image` leaves of an image ViT, by pattern of its names in timm's layout, and why."""
    left = {}
    if how == "random":
        left["patch_embed.proj.*"] = "the embedding of tubelets keeps its first values"
    if model.factorised not in ("none", "encoder"):
        left["cls_token"] = "the mean token is classified"
    return left
