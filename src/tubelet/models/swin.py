"""Video Swin Transformer (Liu et al. 2022): attention inside small windows of space and time, which every second block shifts.

A clip becomes tubelets of 2x4x4; blocks attend inside windows of 8x7x7 tokens, with a learned bias for every offset between two
tokens; between stages 2x2 neighbours in a frame merge into one token of twice the width. Shifted windows let neighbouring ones
exchange what they know: they lie half a window further, and those that the border cuts stay cut.

How ours differs: the tubelet embedding is a Linear over values in (t, y, x, colour) order instead of a Conv3d; windows that
the border cuts alike attend together, so that there are at most eight masks and not one a window. On clips smaller than a window
the window shrinks, as in the paper, and the bias is that of the true offset, where the original takes the first rows of its
table (the same unless rows or columns shrink). Clips that do not divide are filled up with zeros, which are attended to.

B batch, T slots, H rows, W columns, D width, A heads, d = D/A, N tokens of a window, n windows, K classes.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.errors import ConfigError
from tubelet.find import choose
from tubelet.models._keys import Table, count, to_ours, to_theirs
from tubelet.models._model import Model
from tubelet.models._tokens import Triple, conv_weight, linear_weight, patchify
from tubelet.models._transformer import MLP, DropPath, LayerNorm, attend, drop_path_rates
from tubelet.records import ClipSpec
from tubelet.video.normalize import normalize

PAPER = "Liu et al. 2022, arXiv:2106.13230"

# heads are those of the first stage: they double with the width, 32 channels each
VARIANTS: dict[str, dict[str, Any]] = {
    "swin_tiny": dict(width=96, heads=3, blocks=(2, 2, 6, 2)),
    "swin_small": dict(width=96, heads=3, blocks=(2, 2, 18, 2)),
    "swin_base": dict(width=128, heads=4, blocks=(2, 2, 18, 2)),
}
CLIPS = {name: ClipSpec(frames=32, stride_frames=2) for name in VARIANTS}


def build(name: str, spec: ClipSpec, class_names: Sequence[str] = (), **options: Any) -> "Swin":
    """A freshly initialised model; with `class_names` it has a head."""
    return Swin(name, spec, tuple(class_names), **{**VARIANTS[name], **options})


def offset_index(window: Triple, full: Triple) -> Tensor:
    """Which row of the bias table of a `full` window holds the offset from one token of `window` to another: int (N,N)."""
    places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in window), indexing="ij"), dim=-1).flatten(0, 2)
    t, h, w = (places[:, None] - places[None] + torch.tensor(full) - 1).unbind(dim=-1)
    return (t * (2 * full[1] - 1) + h) * (2 * full[2] - 1) + w


def severed(window: Triple, shift: Triple, cut: tuple[bool, bool, bool]) -> Tensor:
    """Which pairs of tokens do not belong together in a window that the border cuts along some axes: bool (N,N).

    The clip is rolled, so that such a window holds the last w - s slices of the clip and behind them its first s.
    """
    behind = [(torch.arange(w) >= w - s) & c for w, s, c in zip(window, shift, cut, strict=True)]
    side = torch.stack(torch.meshgrid(*behind, indexing="ij"), dim=-1).flatten(0, 2)
    return (side[:, None] != side[None]).any(dim=-1)


class WindowAttention(nn.Module):
    """Self-attention inside windows; `shifted` moves them by half a window along every axis that holds more than one."""

    def __init__(self, width: int, heads: int, window: Triple, shifted: bool) -> None:
        super().__init__()
        self.heads, self.window, self.shifted = heads, window, shifted
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        t, h, w = window
        self.bias_table = nn.Parameter(torch.empty((2 * t - 1) * (2 * h - 1) * (2 * w - 1), heads))
        self._tables: dict[tuple[Any, ...], Tensor] = {}  # index and masks already made; never saved

    def forward(self, x: Tensor) -> Tensor:
        """(B,T,H,W,D) -> the same."""
        window, shift = self.fit(x.shape[1:4])
        padded = F.pad(x, [0, 0, *(n for size, w in zip(x.shape[3:0:-1], window[::-1], strict=True) for n in (0, -size % w))])
        rolled = padded.roll([-s for s in shift], dims=(1, 2, 3)) if any(shift) else padded
        counts = [size // w for size, w in zip(padded.shape[1:4], window, strict=True)]
        qkv = self.qkv(_split(rolled, window))  # (B,n_t,n_h,n_w,N,3D)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).transpose(-4, -2).unbind(dim=-3)  # (B,n_t,n_h,n_w,A,N,d)

        index = self._table(x.device, offset_index, window, self.window)
        bias = self.bias_table[index].permute(2, 0, 1)  # (A,N,N)
        # along an axis that is shifted the border cuts the last window: up to eight kinds of windows
        kinds = [((slice(-1), False), (slice(-1, None), True)) if s else ((slice(None), False),) for s in shift]
        out = torch.empty_like(v)
        for (t, cut_t), (h, cut_h), (w, cut_w) in product(*kinds):
            here, cut = (slice(None), t, h, w), (cut_t, cut_h, cut_w)
            seen = bias.masked_fill(self._table(x.device, severed, window, shift, cut), -torch.inf) if any(cut) else bias
            queries, keys, values = (part[here].flatten(0, 3) for part in (q, k, v))
            out[here] = attend(queries, keys, values, seen).view(v[here].shape)
        y = _join(self.proj(out.transpose(-3, -2).flatten(-2)), counts, window)
        y = y.roll(shift, dims=(1, 2, 3)) if any(shift) else y
        return y[:, : x.shape[1], : x.shape[2], : x.shape[3]]

    def fit(self, grid: Sequence[int]) -> tuple[Triple, Triple]:
        """Window and shift on a token grid: no larger than the grid, and not shifted where one window holds all."""
        axes = list(zip(grid, self.window, strict=True))
        window = tuple(min(size, w) for size, w in axes)
        return window, tuple(w // 2 if self.shifted and size > w else 0 for size, w in axes)  # type: ignore[return-value]

    def _table(self, device: torch.device, make: Any, *args: Any) -> Tensor:
        key = (device, make, *args)
        if key not in self._tables:
            self._tables[key] = make(*args).to(device)
        return self._tables[key]


def _split(x: Tensor, window: Triple) -> Tensor:
    """(B,T,H,W,D) -> (B,n_t,n_h,n_w,N,D)."""
    for axis, size in zip((1, 3, 5), window, strict=True):
        x = x.unflatten(axis, (-1, size))
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6)


def _join(x: Tensor, counts: Sequence[int], window: Triple) -> Tensor:
    """(B,n_t,n_h,n_w,N,D) -> (B,T,H,W,D): the inverse."""
    b, d = x.shape[0], x.shape[-1]
    sizes = [n * w for n, w in zip(counts, window, strict=True)]
    return x.unflatten(4, window).permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, *sizes, d)


@torch.no_grad()
def look_to_neighbours(attention: WindowAttention) -> None:
    """First values of a bias table: 0 for the same place one slot before (every other head) or after it, and 2 less for every step
    away from there."""
    device = attention.bias_table.device
    steps = torch.meshgrid(*(torch.arange(1 - n, n, device=device) for n in attention.window), indexing="ij")
    offset = torch.stack(steps).flatten(1)  # (3,rows): from what is seen to who sees it
    for head in range(attention.heads):
        slots = offset[0] + 1 if head % 2 else offset[0] - 1
        attention.bias_table[:, head] = -2.0 * (slots.abs() + offset[1:].abs().sum(dim=0))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), of (B,T,H,W,D)."""

    def __init__(self, width: int, heads: int, window: Triple, shifted: bool, mlp_ratio: float, eps: float, drop_path: float):
        super().__init__()
        self.norm1 = LayerNorm(width, eps=eps)
        self.attn = WindowAttention(width, heads, window, shifted)
        self.norm2 = LayerNorm(width, eps=eps)
        self.mlp = MLP(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Merge(nn.Module):
    """2x2 neighbours in a frame become one token of twice the width: (B,T,H,W,D) -> (B,T,H/2,W/2,2D)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.norm = LayerNorm(4 * width, eps=eps)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[3] % 2, 0, x.shape[2] % 2))
        four = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(four, dim=-1)))


class Swin(Model):
    """blocks are those of each stage, width and heads those of the first; window in tokens, patch and tubelet in pixels and
    frames. first_values is "normal", the paper's, or "mimetic" (see init_weights), from which a narrow model learns motion from
    fewer clips."""

    def __init__(
        self, name: str, spec: ClipSpec, class_names: tuple[str, ...] = (), *, width: int, heads: int, blocks: Sequence[int],
        window: Sequence[int] = (8, 7, 7), patch: int = 4, tubelet: int = 2, mlp_ratio: float = 4.0, drop_path: float = 0.0,
        eps: float = 1e-5, first_values: str = "normal",
    ) -> None:  # fmt: skip
        super().__init__()
        self.name, self.spec, self.class_names = name, spec, class_names
        self.options: dict[str, Any] = dict(
            width=width, heads=heads, blocks=list(blocks), window=list(window), patch=patch, tubelet=tubelet,
            mlp_ratio=mlp_ratio, drop_path=drop_path, eps=eps,
            first_values=choose(first_values, ("normal", "mimetic"), "first_values"),
        )  # fmt: skip
        if width % heads:
            raise ConfigError(f"{name}: width is {width}, which heads={heads} does not divide")
        self.depth, self.width, self.tubelet = sum(blocks), width * 2 ** (len(blocks) - 1), (tubelet, patch, patch)
        self.grid = self.grid_of(spec.frames, spec.size, spec.size)
        self.embed = nn.Linear(tubelet * patch * patch * 3, width)
        self.embed_norm = LayerNorm(width, eps=eps)
        rates = iter(drop_path_rates(drop_path, self.depth))
        size: Triple = (*window,)  # type: ignore[assignment]
        self.stages = nn.ModuleList(
            nn.ModuleList(Block(width * 2**s, heads * 2**s, size, i % 2 == 1, mlp_ratio, eps, next(rates)) for i in range(n))
            for s, n in enumerate(blocks)
        )
        self.merges = nn.ModuleList(Merge(width * 2**s, eps) for s in range(len(blocks) - 1))
        self.norm = LayerNorm(self.width, eps=eps)
        if class_names:
            self.head = nn.Linear(self.width, len(class_names))
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal of 0.02 for weights and bias tables, 0 for biases, 1 and 0 for norms.

        Mimetic: Xavier's values for all but the head, since 0.02 is made for wide models; and as in trained ones windows begin by
        looking close by, every other head one slot back, the rest one ahead.
        """
        mimetic = self.options["first_values"] == "mimetic"
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                if mimetic and name != "head":
                    nn.init.xavier_uniform_(module.weight)
                else:
                    nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, WindowAttention):
                if mimetic:
                    look_to_neighbours(module)
                else:
                    nn.init.trunc_normal_(module.bias_table, std=0.02)

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        """frames (B,T,C,H,W) 0..255 -> "tokens" (B,N,D) of the last stage; "embedding" (B,D), their mean; "logits" (B,K)."""
        t, c, h, w = frames.shape[1:]
        grid = self.grid_of(t, h, w, c)
        values = normalize(frames, self.spec.mean, self.spec.std, colour_dim=2)
        short = [-size % step for size, step in zip((t, h, w), self.tubelet, strict=True)]
        if any(short):
            values = F.pad(values, (0, short[2], 0, short[1], 0, 0, 0, short[0]))
        x = self.embed_norm(self.embed(patchify(values, self.tubelet))).unflatten(1, grid)  # (B,T,H,W,D)
        for number, stage in enumerate(self.stages):
            if number > 0:
                x = self.merges[number - 1](x)
            for block in stage:  # type: ignore[attr-defined]
                x = block(x)
        tokens = self.norm(x).flatten(1, 3)
        out = {"tokens": tokens, "embedding": tokens.mean(dim=1)}
        if self.class_names:
            out["logits"] = self.head(out["embedding"])
        return out

    def grid_of(self, frames: int, height: int, width: int, colours: int = 3) -> Triple:
        """Token grid (T slots, rows, columns) of a clip, the last ones filled up; ConfigError when it is not in colour."""
        if colours != 3:
            raise ConfigError(
                f"{self.name} got clips of {frames} frames of {width}x{height} with {colours} colours; it takes 3 colours, any "
                "number of frames and any size (clip.frames and clip.size are free; repeat one colour: frames.expand(-1, -1, 3, "
                "-1, -1))"
            )
        t, h, w = self.tubelet
        return -(-frames // t), -(-height // h), -(-width // w)

    def depth_of(self, parameter: str) -> int:
        """0 embedding, 1..depth blocks, a merging with the block that follows, depth+1 norm and head."""
        kind, _, rest = parameter.partition(".")
        if kind.startswith("embed"):
            return 0
        if kind not in ("stages", "merges"):
            return self.depth + 1
        stage, block = (int(number) if number.isdigit() else 0 for number in rest.split(".")[:2])
        return sum(self.options["blocks"][: stage + (kind == "merges")]) + block + 1

    def attended_pairs(self) -> int:
        """Of a block of the first stage whose windows are not shifted: all tokens of a window with all of it."""
        window = [min(size, w) for size, w in zip(self.grid, self.options["window"], strict=True)]
        windows = [-(-size // w) for size, w in zip(self.grid, window, strict=True)]
        return windows[0] * windows[1] * windows[2] * (window[0] * window[1] * window[2]) ** 2

    def head_parameters(self) -> list[nn.Parameter]:
        """What stays trainable when everything but the head is frozen."""
        return list(self.head.parameters()) if self.class_names else []


# Weight-key maps -----------------------------------------------------------------------------------------------------


def to_torchvision(state: dict[str, Tensor], tubelet: Triple, window: Triple = (8, 7, 7)) -> dict[str, Tensor]:
    """Our state dict in the key layout of torchvision's swin3d models, with the index of offsets that they store."""
    state = {**state, "embed.weight": conv_weight(state["embed.weight"], tubelet)}
    blocks = [count(state, f"stages.{stage}.") for stage in range(count(state, "stages."))]
    out = to_theirs(state, _torchvision(blocks, "head.weight" in state))
    tables = [key for key in out if key.endswith(_BIAS)]
    return out | {key.removesuffix(_BIAS) + _INDEX: offset_index(window, window) for key in tables}


def from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of torchvision's swin3d models in ours. CheckpointError naming every weight missing or left over."""
    state = {key: value for key, value in state.items() if not key.endswith(_INDEX)}
    blocks = [count(state, f"features.{2 * stage}.") for stage in range((count(state, "features.") + 1) // 2)]
    out = to_ours(state, _torchvision(blocks, "head.weight" in state))
    return {**out, "embed.weight": linear_weight(out["embed.weight"])}


_BIAS, _INDEX = "relative_position_bias_table", "relative_position_index"
_BLOCK = {
    **{
        f"{stem}.{kind}": f"{stem}.{kind}"
        for stem in ("norm1", "attn.qkv", "attn.proj", "norm2")
        for kind in ("weight", "bias")
    },
    **{f"mlp.fc{i}.{kind}": f"mlp.{j}.{kind}" for i, j in ((1, 0), (2, 3)) for kind in ("weight", "bias")},
    "attn.bias_table": f"attn.{_BIAS}",
}


def _torchvision(blocks: Sequence[int], classifier: bool) -> Table:
    """Stages stand at the even places of their `features`, the mergings between them."""
    stems = {"embed": "patch_embed.proj", "embed_norm": "patch_embed.norm", "norm": "norm"}
    stems |= {"head": "head"} if classifier else {}
    names = {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in stems.items() for kind in ("weight", "bias")}
    for stage, depth in enumerate(blocks):
        for i, (ours, theirs) in product(range(depth), _BLOCK.items()):
            names[f"stages.{stage}.{i}.{ours}"] = f"features.{2 * stage}.{i}.{theirs}"
        if stage > 0:
            for part in ("norm.weight", "norm.bias", "reduction.weight"):
                names[f"merges.{stage - 1}.{part}"] = f"features.{2 * stage - 1}.{part}"
    return names
