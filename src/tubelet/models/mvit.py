"""MViTv2: improved multiscale vision transformers for classification and detection (Li et al. 2022).

A clip becomes overlapping tubelets of 3x7x7 pixels at strides of 2x4x4, and a cls token. Attention pools: queries, keys and values
go through a depthwise 3D convolution each, which makes fewer of them; where the queries become fewer the grid halves, and width and
heads double there. A score is moved by a learned vector for the distance in time, rows and columns, times the query; and what
attention gives has the pooled query added to it (residual pooling). The cls token is classified.

How ours differs: no bias tensor of all pairs is made for the positions. A query's products with the vectors of all distances along
one axis are few; they are appended to it, and to every key the places it has on the three axes as ones among zeros, so that the
ordinary product of attention adds them up. Attention is the usual fused one then, on d + t + h + w channels (96 + 22 in most
blocks at 16x224x224): half the time, and none of the memory. `cost` counts these channels, those that keep the values as wide too:
68.5 GMAC for S where the published count is 64.2, and 253 for B where it is 225; without them it is 64.2 and 224.5.

B batch, T frames, N tokens without the cls token, M of them after pooling, D width, A heads, d = D/A = 96, K classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.errors import ConfigError
from tubelet.models._keys import Table, count, to_ours, to_theirs
from tubelet.models._model import Model
from tubelet.models._tokens import Triple
from tubelet.models._transformer import MLP, Dropout, DropPath, LayerNorm, attend, drop_path_rates
from tubelet.records import ClipSpec
from tubelet.video.normalize import normalize

PAPER = "Li et al. 2022, arXiv:2112.01526"
CARRIED = "GMAC published, without the channels that carry positions through attention here"
NOTES = {"mvitv2_small": f"64.224 {CARRIED}", "mvitv2_base": f"225 {CARRIED}"}

VARIANTS: dict[str, dict[str, Any]] = {
    "mvitv2_small": dict(width=96, heads=1, blocks=(1, 2, 11, 2)),
    "mvitv2_base": dict(width=96, heads=1, blocks=(2, 3, 16, 3)),
}
CLIPS = {
    "mvitv2_small": ClipSpec(frames=16, stride_frames=4, mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225)),
    "mvitv2_base": ClipSpec(frames=32, stride_frames=3, mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225)),
}


def build(name: str, spec: ClipSpec, class_names: Sequence[str] = (), **options: Any) -> "MViT":
    """A freshly initialised model; with `class_names` it has a head."""
    return MViT(name, spec, tuple(class_names), **{**VARIANTS[name], **options})


def pooled(grid: Triple, stride: Triple) -> Triple:
    """The token grid that a pooling of this stride leaves."""
    t, h, w = (-(-size // step) for size, step in zip(grid, stride, strict=True))
    return t, h, w


def between(table: Tensor, queries: int, keys: int) -> Tensor:
    """The vectors for the distances along one axis, (queries, keys, d), from a table of distances (2n-1, d).

    Where keys are pooled more than queries, or less, distances are in steps of the finer of the two. A table of another size
    is interpolated.
    """
    wanted = 2 * max(queries, keys) - 1
    if len(table) != wanted:
        table = F.interpolate(table.T[None], size=wanted, mode="linear")[0].T
    q = torch.arange(queries, device=table.device) * max(keys / queries, 1.0)
    k = torch.arange(keys, device=table.device) * max(queries / keys, 1.0)
    return table[(q[:, None] - k + (keys - 1) * max(queries / keys, 1.0)).long()]


class Pool(nn.Module):
    """A depthwise 3x3x3 convolution of each head's tokens on their grid, then a norm; the cls token passes by the convolution."""

    def __init__(self, per_head: int, stride: Triple, eps: float) -> None:
        super().__init__()
        self.conv = nn.Conv3d(per_head, per_head, 3, stride, 1, groups=per_head, bias=False)
        self.norm = LayerNorm(per_head, eps=eps)

    def forward(self, x: Tensor, grid: Triple) -> Tensor:
        """(B,A,1+N,d) -> (B,A,1+M,d)."""
        cube = x[:, :, 1:].flatten(0, 1).unflatten(1, grid).permute(0, 4, 1, 2, 3)  # (B*A,d,T,H,W)
        y = self.conv(cube).flatten(2).transpose(1, 2).unflatten(0, x.shape[:2])
        return self.norm(torch.cat([x[:, :, :1], y], dim=2))


class PoolingAttention(nn.Module):
    """Attention of pooled queries, keys and values, with decomposed relative positions and a residual of the queries."""

    def __init__(
        self, width_in: int, width: int, heads: int, grid: Triple, stride_q: Triple, stride_kv: Triple, eps: float
    ) -> None:
        super().__init__()
        self.heads, self.stride_q, self.stride_kv = heads, stride_q, stride_kv
        self.qkv = nn.Linear(width_in, 3 * width)
        self.proj = nn.Linear(width, width)
        per_head = width // heads
        self.pool_q = Pool(per_head, stride_q, eps)
        self.pool_k, self.pool_v = Pool(per_head, stride_kv, eps), Pool(per_head, stride_kv, eps)
        finer = [2 * max(q, k) - 1 for q, k in zip(pooled(grid, stride_q), pooled(grid, stride_kv), strict=True)]
        self.rel_t, self.rel_h, self.rel_w = (nn.Parameter(torch.empty(distances, per_head)) for distances in finer)

    def forward(self, x: Tensor, grid: Triple) -> Tensor:
        """(B,1+N,D_in) on a grid -> (B,1+M,D) on the grid of the pooled queries."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B,A,1+N,d) each
        q, k, v = self.pool_q(q, grid), self.pool_k(k, grid), self.pool_v(v, grid)
        with_places = self._with_places(q, k, v, pooled(grid, self.stride_q), pooled(grid, self.stride_kv))
        out = attend(*with_places)[..., : v.shape[-1]]
        out = torch.cat([out[:, :, :1], out[:, :, 1:] + q[:, :, 1:]], dim=2)  # the cls token has no residual
        return self.proj(out.transpose(1, 2).flatten(2))

    def _with_places(self, q: Tensor, k: Tensor, v: Tensor, grid_q: Triple, grid_k: Triple) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values with t + h + w channels more, for `attend` to add q . (R_t + R_h + R_w) to the scores.

        The query's new channels are its products with R for every slot, row and column that a key may have, the key's are 1 for
        its own and 0 for the others. The cls token has zeros in both, values have zeros.
        """
        cube = q[:, :, 1:].unflatten(2, grid_q)
        sizes = zip(grid_q, grid_k, strict=True)
        tables = (between(table, *n) for table, n in zip((self.rel_t, self.rel_h, self.rel_w), sizes, strict=True))
        products = [
            torch.einsum(f"bathwd,{axis}kd->bathwk", cube, table.to(q.dtype)) for axis, table in zip("thw", tables, strict=True)
        ]
        places = torch.meshgrid(*(torch.arange(n, device=k.device) for n in grid_k), indexing="ij")
        ones = torch.cat([F.one_hot(place.flatten(), n) for place, n in zip(places, grid_k, strict=True)], dim=1)  # (M,t+h+w)
        more, per_head = ones.shape[1], q.shape[-1]
        # attend divides by the root of all channels: so much is given here, and that of the content taken
        moved = F.pad(torch.cat(products, dim=-1).flatten(2, 4), (0, 0, 1, 0)) * (per_head + more) ** 0.5
        q = torch.cat([q * (1 + more / per_head) ** 0.5, moved], dim=-1)
        k = torch.cat([k, F.pad(ones, (0, 0, 1, 0)).to(k.dtype).expand(*k.shape[:2], -1, -1)], dim=-1)
        return q, k, F.pad(v, (0, more))


class Block(nn.Module):
    """Pooling attention and an MLP. The shortcut is pooled by maximum where the grid halves, projected where the width doubles."""

    def __init__(
        self, width_in: int, width: int, heads: int, grid: Triple, stride_q: Triple, stride_kv: Triple, mlp_ratio: float,
        eps: float, drop_path: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.norm1 = LayerNorm(width_in, eps=eps)
        self.attn = PoolingAttention(width_in, width, heads, grid, stride_q, stride_kv, eps)
        self.norm2 = LayerNorm(width, eps=eps)
        self.mlp = MLP(width, int(width * mlp_ratio))
        self.project = nn.Linear(width_in, width) if width != width_in else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, grid: Triple) -> tuple[Tensor, Triple]:
        """(B,1+N,D_in) on a grid -> (B,1+M,D) on another."""
        y = self.norm1(x)
        x = x if self.project is None else self.project(y)
        x = self._pool(x, grid) + self.drop_path(self.attn(y, grid))
        return x + self.drop_path(self.mlp(self.norm2(x))), pooled(grid, self.attn.stride_q)

    def _pool(self, x: Tensor, grid: Triple) -> Tensor:
        """The shortcut on the grid of the queries: the largest of the 3x3 neighbours where it halves."""
        stride = self.attn.stride_q
        if stride == (1, 1, 1):
            return x
        kernel = [step + 1 if step > 1 else 1 for step in stride]
        cube = x[:, 1:].unflatten(1, grid).permute(0, 4, 1, 2, 3)
        y = F.max_pool3d(cube, kernel, stride, [size // 2 for size in kernel])
        return torch.cat([x[:, :1], y.flatten(2).transpose(1, 2)], dim=1)


class MViT(Model):
    """blocks are those of each stage, width and heads those of the first; kv_stride is how much its keys are pooled."""

    tubelet = (2, 4, 4)

    def __init__(
        self, name: str, spec: ClipSpec, class_names: tuple[str, ...] = (), *, width: int, heads: int, blocks: Sequence[int],
        kv_stride: int = 8, mlp_ratio: float = 4.0, dropout: float = 0.0, drop_path: float = 0.0, eps: float = 1e-6,
        position_grid: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.name, self.spec, self.class_names = name, spec, class_names
        if width % heads:
            raise ConfigError(f"{name}: width is {width}, which heads={heads} does not divide")
        self.depth, self.width = sum(blocks), width * 2 ** (len(blocks) - 1)
        self.grid = self.grid_of(spec.frames, spec.size, spec.size)
        grid: Triple = self.grid if position_grid is None else (*position_grid,)  # type: ignore[assignment]
        self.options: dict[str, Any] = dict(
            width=width, heads=heads, blocks=list(blocks), kv_stride=kv_stride, mlp_ratio=mlp_ratio, dropout=dropout,
            drop_path=drop_path, eps=eps, position_grid=list(grid),
        )  # fmt: skip
        self.embed = nn.Conv3d(3, width, (3, 7, 7), self.tubelet, (1, 3, 3))
        self.cls_token = nn.Parameter(torch.empty(width))
        rates = iter(drop_path_rates(drop_path, self.depth))
        self.blocks = nn.ModuleList()
        width_in = width
        for stage, depth in enumerate(blocks):
            kv = max(1, kv_stride >> stage)  # of a coarser grid, keys are pooled less: as many are left
            for i in range(depth):
                step = 2 if stage > 0 and i == 0 else 1
                sizes = (width * 2**stage, heads * 2**stage, grid, (1, step, step), (1, kv, kv))
                self.blocks.append(Block(width_in, *sizes, mlp_ratio, eps, next(rates)))
                width_in, grid = width * 2**stage, pooled(grid, (1, step, step))
        self.norm = LayerNorm(self.width, eps=eps)
        if class_names:
            self.dropout = Dropout(dropout)
            self.head = nn.Linear(self.width, len(class_names))
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal of 0.02 for weights, positions and the cls token, 0 for biases, 1 and 0 for norms; convolutions as torch
        makes them."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm | nn.Conv3d):
                module.reset_parameters()
            elif isinstance(module, PoolingAttention):
                for table in (module.rel_t, module.rel_h, module.rel_w):
                    nn.init.trunc_normal_(table, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        """frames (B,T,C,H,W) 0..255 -> "tokens" (B,N,D) of the last stage; "embedding" (B,D), the cls token; "logits" (B,K)."""
        b, t, c, h, w = frames.shape
        grid = self.grid_of(t, h, w, c)
        values = normalize(frames, self.spec.mean, self.spec.std, colour_dim=2)
        x = self.embed(values.transpose(1, 2)).flatten(2).transpose(1, 2)  # (B,N,D)
        x = torch.cat([self.cls_token.expand(b, 1, -1), x], dim=1)
        for block in self.blocks:
            x, grid = block(x, grid)
        x = self.norm(x)
        out = {"tokens": x[:, 1:], "embedding": x[:, 0]}
        if self.class_names:
            out["logits"] = self.head(self.dropout(out["embedding"]))
        return out

    def grid_of(self, frames: int, height: int, width: int, colours: int = 3) -> Triple:
        """Token grid (T slots, rows, columns) of a clip behind the first convolution; ConfigError when it is not in colour."""
        if colours != 3:
            raise ConfigError(
                f"{self.name} got clips of {frames} frames of {width}x{height} with {colours} colours; it takes 3 colours, any "
                "number of frames and any size (clip.frames and clip.size are free; repeat one colour: frames.expand(-1, -1, 3, "
                "-1, -1))"
            )
        return pooled((frames, height, width), self.tubelet)

    def depth_of(self, parameter: str) -> int:
        """0 embedding and cls token, 1..depth blocks, depth+1 norm and head."""
        if parameter.startswith(("embed.", "cls_token")):
            return 0
        return int(parameter.split(".")[1]) + 1 if parameter.startswith("blocks.") else self.depth + 1

    def attended_pairs(self) -> int:
        """Of the first block: all tokens with the pooled ones."""
        kv = self.options["kv_stride"]
        keys = pooled(self.grid, (1, kv, kv))
        return self.grid[0] * self.grid[1] * self.grid[2] * keys[0] * keys[1] * keys[2]

    def head_parameters(self) -> list[nn.Parameter]:
        """What stays trainable when everything but the head is frozen."""
        return list(self.head.parameters()) if self.class_names else []


# Weight-key maps -----------------------------------------------------------------------------------------------------


def to_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict in the key layout of torchvision's mvit_v2_s."""
    return to_theirs(state, _torchvision(_projected(state), "head.weight" in state))


def from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of torchvision's mvit_v2_s in ours. CheckpointError naming every weight that is missing or left over."""
    return to_ours(state, _torchvision(_projected(state), "head.1.weight" in state))


_BLOCK = {"norm1": "norm1", "attn.qkv": "attn.qkv", "attn.proj": "attn.project.0", "norm2": "norm2"}
_BLOCK |= {"mlp.fc1": "mlp.0", "mlp.fc2": "mlp.3"} | {f"attn.pool_{x}.norm": f"attn.pool_{x}.norm_act.0" for x in "qkv"}


def _projected(state: dict[str, Tensor]) -> list[bool]:
    """Of every block, whether it projects its shortcut."""
    return [f"blocks.{i}.project.weight" in state for i in range(count(state, "blocks."))]


def _torchvision(projected: Sequence[bool], classifier: bool) -> Table:
    stems = {"embed": "conv_proj", "norm": "norm"} | ({"head": "head.1"} if classifier else {})
    names = {"cls_token": "pos_encoding.class_token"}
    for i, project in enumerate(projected):
        inside = _BLOCK | ({"project": "project"} if project else {})
        stems |= {f"blocks.{i}.{ours}": f"blocks.{i}.{theirs}" for ours, theirs in inside.items()}
        names |= {f"blocks.{i}.attn.pool_{x}.conv.weight": f"blocks.{i}.attn.pool_{x}.pool.weight" for x in "qkv"}
        names |= {f"blocks.{i}.attn.rel_{x}": f"blocks.{i}.attn.rel_pos_{x}" for x in "thw"}
    names |= {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in stems.items() for kind in ("weight", "bias")}
    return names
