"""V-JEPA 2: self-supervised video models enable understanding, prediction and planning (Assran et al. 2025).

The encoder, for inference and fine-tuning: tubelets, then pre-norm blocks whose queries and keys are turned by the token's time,
row and column (3D rotary positions) instead of adding a position table. With classes an attentive pooler follows: a few more
blocks, then one learned query takes what it wants from all tokens, and that is classified.

How ours differs: the tubelet embedding is a Linear over values in (t, y, x, colour) order instead of a Conv3d, one weight for
qkv, and angles are computed once for a token grid, from the grid of the clip at hand rather than from the size trained at.
First values grow as the width shrinks (Xavier): those of 0.02 are made for widths near 1,000. The predictor, which pretraining
needs, is not here.

B batch, T frames, C colours, H height, W width, N tokens, P values of a token, D width, A heads, d = D/A, K classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.errors import ConfigError
from tubelet.find import choose
from tubelet.models._keys import Table, count, to_ours, to_theirs, weights
from tubelet.models._model import Model
from tubelet.models._tokens import Triple, conv_weight, linear_weight, patchify
from tubelet.models._transformer import MLP, DropPath, LayerNorm, attend, drop_path_rates, init_mimetic
from tubelet.records import ClipSpec
from tubelet.video.normalize import normalize

PAPER = "Assran et al. 2025, arXiv:2506.09985"

VARIANTS: dict[str, dict[str, Any]] = {
    "vjepa2_large": dict(width=1024, depth=24, heads=16),
    "vjepa2_huge": dict(width=1280, depth=32, heads=16),
    "vjepa2_giant": dict(width=1408, depth=40, heads=22, mlp_ratio=48 / 11),
}
CLIPS = {name: ClipSpec(frames=64, size=256) for name in VARIANTS}

Turn = tuple[Tensor, Tensor]  # cosines and signed sines, (N,d) each


def build(name: str, spec: ClipSpec, class_names: Sequence[str] = (), **options: Any) -> "VJEPA2":
    """A freshly initialised encoder; with `class_names` it has a pooler and a head."""
    return VJEPA2(name, spec, tuple(class_names), **{**VARIANTS[name], **options})


def rotary_positions(grid: Triple, per_head: int) -> Turn:
    """cos and signed sin (N,d) by which `turn` moves a head's channels: a third for time, for rows and for columns each.

    A third is rounded down to an even number; the channels left over are not turned. Channels 2i and 2i+1 are moved as a pair,
    but by the angles of frequencies 2i and 2i+1 modulo half a third: so the published weights were trained.
    """
    third = per_head // 3 // 2 * 2
    frequency = 10000.0 ** -(torch.arange(third // 2, dtype=torch.float64) / (third / 2))
    places = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij"), dim=-1)
    angle = (places.view(-1, 3, 1) * frequency).repeat(1, 1, 2).flatten(1)  # (N, 3*third)
    angle = F.pad(angle, (0, per_head - 3 * third))
    sign = torch.ones(per_head, dtype=torch.float64)
    sign[::2] = -1
    return angle.cos().float(), (angle.sin() * sign).float()


def turn(x: Tensor, by: Turn) -> Tensor:
    """(B,A,N,d) -> (B,A,N,d): every channel times its cosine, plus its pair's other channel times the signed sine."""
    cos, sin = by
    turned = x * cos
    turned[..., 0::2].addcmul_(x[..., 1::2], sin[:, 0::2])
    turned[..., 1::2].addcmul_(x[..., 0::2], sin[:, 1::2])
    return turned.to(x.dtype)


class Attention(nn.Module):
    """Joint self-attention with one weight and one bias for qkv; queries and keys are turned where there are positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, positions: Turn | None = None) -> Tensor:
        # three products: their results lie in one piece each, which attention reads faster
        parts = zip(self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), strict=True)
        q, k, v = (_heads(F.linear(x, weight, bias), self.heads) for weight, bias in parts)
        if positions is not None:
            q, k = turn(q, positions), turn(k, positions)
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, eps: float, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.norm2 = LayerNorm(width, eps=eps)
        self.mlp = MLP(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, positions: Turn | None = None) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), positions))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Pooler(nn.Module):
    """All tokens in, one vector out: `depth` blocks without positions, then a learned query attends to what they give."""

    def __init__(self, width: int, heads: int, depth: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, heads, 4.0, eps) for _ in range(depth))
        self.norm1 = LayerNorm(width, eps=eps)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.norm2 = LayerNorm(width, eps=eps)
        self.mlp = MLP(width, 4 * width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B,N,D) -> (B,D)."""
        for block in self.blocks:
            tokens = block(tokens)
        k, v = self.kv(self.norm1(tokens)).chunk(2, dim=-1)
        q = self.q(self.query).expand(tokens.shape[0], -1, -1)  # as it was learned, without a norm
        q, k, v = (_heads(part, self.heads) for part in (q, k, v))
        x = self.query + attend(q, k, v).transpose(1, 2).flatten(2)  # no projection here
        return (x + self.mlp(self.norm2(x)))[:, 0]


class VJEPA2(Model):
    """patch and tubelet are the pixels and frames of one token; pooler_depth the pooler's blocks before its query. first_values is
    "xavier" or "mimetic" (see _transformer.init_mimetic), from which a small encoder learns motion from fewer clips."""

    def __init__(
        self, name: str, spec: ClipSpec, class_names: tuple[str, ...] = (), *, width: int, depth: int, heads: int,
        mlp_ratio: float = 4.0, pooler_depth: int = 3, patch: int = 16, tubelet: int = 2, drop_path: float = 0.0,
        eps: float = 1e-6, first_values: str = "xavier",
    ) -> None:  # fmt: skip
        super().__init__()
        self.name, self.spec, self.class_names = name, spec, class_names
        self.options: dict[str, Any] = dict(
            width=width, depth=depth, heads=heads, mlp_ratio=mlp_ratio, pooler_depth=pooler_depth, patch=patch,
            tubelet=tubelet, drop_path=drop_path, eps=eps,
            first_values=choose(first_values, ("xavier", "mimetic"), "first_values"),
        )  # fmt: skip
        self.width, self.depth, self.tubelet = width, depth, (tubelet, patch, patch)
        if width % heads or width // heads % 2:
            raise ConfigError(f"{name}: width is {width}; heads={heads} must divide it, into an even number of channels each")
        self.grid = self.grid_of(spec.frames, spec.size, spec.size)
        self.embed = nn.Linear(tubelet * patch * patch * 3, width)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, eps, rate) for rate in drop_path_rates(drop_path, depth))
        self.norm = LayerNorm(width, eps=eps)
        if class_names:
            self.pooler = Pooler(width, heads, pooler_depth, eps)
            self.head = nn.Linear(width, len(class_names))
        self._positions: dict[tuple[Triple, torch.device], Turn] = {}  # tables already made; never saved
        self.init_weights()

    def init_weights(self) -> None:
        """Xavier (or mimetic) for Linear layers, truncated normal of 0.02 for the pooler's query and the head, 0 for biases,
        1 and 0 for norms."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        if self.options["first_values"] == "mimetic":
            for block in self.blocks:
                assert isinstance(block, Block)
                init_mimetic(block.attn.qkv, block.attn.proj, block.attn.heads)
        if self.class_names:
            nn.init.trunc_normal_(self.pooler.query, std=0.02)
            nn.init.trunc_normal_(self.head.weight, std=0.02)

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        """frames (B,T,C,H,W) 0..255 -> "tokens" (B,N,D); "embedding" (B,D), what the pooler gives or else the tokens' mean;
        "logits" (B,K)."""
        t, c, h, w = frames.shape[1:]
        positions = self.positions(self.grid_of(t, h, w, c), frames.device)
        x = self.embed(normalize(patchify(frames, self.tubelet), self.spec.mean, self.spec.std))  # (B,N,D)
        for block in self.blocks:
            x = block(x, positions)
        tokens = self.norm(x)
        if not self.class_names:
            return {"tokens": tokens, "embedding": tokens.mean(dim=1)}
        embedding = self.pooler(tokens)
        return {"tokens": tokens, "embedding": embedding, "logits": self.head(embedding)}

    def positions(self, grid: Triple, device: torch.device) -> Turn:
        """The cosines and sines of a token grid on a device."""
        key = (grid, device)
        if key not in self._positions:
            cos, sin = rotary_positions(grid, self.width // self.options["heads"])
            self._positions[key] = cos.to(device), sin.to(device)
        return self._positions[key]

    def grid_of(self, frames: int, height: int, width: int, colours: int = 3) -> Triple:
        """Token grid (T slots, rows, columns) of a clip; ConfigError when it does not divide into tubelets."""
        t, h, w = self.tubelet
        if frames % t or height % h or width % w or colours != 3:
            raise ConfigError(
                f"{self.name} got clips of {frames} frames of {width}x{height} with {colours} colours; it takes 3 colours, "
                f"frames divisible by {t} and sizes divisible by {h} (set clip.frames and clip.size, or the model's patch)"
            )
        return frames // t, height // h, width // w

    def depth_of(self, parameter: str) -> int:
        """0 embedding, 1..depth blocks, depth+1 the norm, the pooler and the head."""
        if parameter.startswith("embed."):
            return 0
        return int(parameter.split(".")[1]) + 1 if parameter.startswith("blocks.") else self.depth + 1

    def attended_pairs(self) -> int:
        """Of joint attention: all tokens with all."""
        return (self.grid[0] * self.grid[1] * self.grid[2]) ** 2

    def head_parameters(self) -> list[nn.Parameter]:
        """What stays trainable when everything but the head is frozen; the pooler is then as it was first."""
        return list(self.head.parameters()) if self.class_names else []


def _heads(x: Tensor, heads: int) -> Tensor:
    """(B,N,D) -> (B,A,N,d), a view."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


# Weight-key maps -----------------------------------------------------------------------------------------------------


def to_huggingface(state: dict[str, Tensor], tubelet: Triple) -> dict[str, Tensor]:
    """Our state dict in the key layout of transformers: VJEPA2ForVideoClassification's with classes, else VJEPA2Model's encoder."""
    state = {**state, "embed.weight": conv_weight(state["embed.weight"], tubelet)}
    table = _huggingface(count(state, "blocks."), count(state, "pooler.blocks."), "head.weight" in state)
    return to_theirs(state, table)


def from_huggingface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of transformers' VJEPA2Model or VJEPA2ForVideoClassification, in ours; the predictor is left behind.

    CheckpointError naming every weight that is missing or left over.
    """
    classifier = "classifier.weight" in state
    state = {key: value for key, value in state.items() if not key.removeprefix("vjepa2.").startswith("predictor.")}
    depth = count(state, "vjepa2.encoder.layer." if classifier else "encoder.layer.")
    table = _huggingface(depth, count(state, "pooler.self_attention_layers."), classifier)
    out = to_ours(state, table)
    return {**out, "embed.weight": linear_weight(out["embed.weight"])}


def to_original(state: dict[str, Tensor], tubelet: Triple) -> dict[str, Tensor]:
    """Our encoder's state dict in the key layout of the original checkpoints' `encoder`; a pooler and head have no place there."""
    state = {**state, "embed.weight": conv_weight(state["embed.weight"], tubelet)}
    return to_theirs(state, _original(count(state, "blocks.")))


def from_original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The `encoder` or `target_encoder` of an original checkpoint, in ours. CheckpointError naming every leftover."""
    out = to_ours(state, _original(count(state, "module.backbone.blocks.")))
    return {**out, "embed.weight": linear_weight(out["embed.weight"])}


_LAYERS = ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


def _original(depth: int) -> Table:
    layers = (f"blocks.{i}.{layer}" for i in range(depth) for layer in (*_LAYERS, "attn.qkv"))
    stems = {"embed": "patch_embed.proj", "norm": "norm"} | {layer: layer for layer in layers}
    return weights({ours: f"module.backbone.{theirs}" for ours, theirs in stems.items()})


def _huggingface(depth: int, pooler_depth: int, classifier: bool) -> Table:
    encoder, pooler = "vjepa2.encoder." if classifier else "encoder.", "pooler.cross_attention_layer."
    stems: dict[str, str | tuple[str, ...]] = {"embed": f"{encoder}embeddings.patch_embeddings.proj"}
    stems["norm"] = f"{encoder}layernorm"
    for i in range(depth):
        block = f"{encoder}layer.{i}."
        stems[f"blocks.{i}.attn.qkv"] = tuple(f"{block}attention.{part}" for part in ("query", "key", "value"))
        stems |= {f"blocks.{i}.{layer}": block + layer.replace("attn.", "attention.") for layer in _LAYERS}
    if not classifier:
        return weights(stems)
    stems["head"] = "classifier"
    for i in range(pooler_depth):
        block = f"pooler.self_attention_layers.{i}."
        stems[f"pooler.blocks.{i}.attn.qkv"] = tuple(f"{block}self_attn.{part}_proj" for part in "qkv")
        stems |= {
            f"pooler.blocks.{i}.{layer}": block + layer.replace("attn.", "self_attn.out_").replace("norm", "layer_norm")
            for layer in _LAYERS
        }
    stems["pooler.q"] = f"{pooler}cross_attn.q_proj"
    stems["pooler.kv"] = (f"{pooler}cross_attn.k_proj", f"{pooler}cross_attn.v_proj")
    stems |= {f"pooler.{x}": pooler + x.replace("norm", "layer_norm") for x in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")}
    return {**weights(stems), "pooler.query": "pooler.query_tokens"}
