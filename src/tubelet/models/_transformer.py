"""The pre-norm Transformer block that the ViT families share. Nothing in here knows a paper's name.

B batch, N tokens, D width, A heads.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet import share
from tubelet.errors import ConfigError


class LayerNorm(nn.LayerNorm):
    """LayerNorm in the type of its weights whatever the autocast. They are float32 in training, for its backward in bf16 loses most
    of the bias gradient; a model that is bf16 as a whole keeps its residual stream so (torch computes inside in float32)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.to(self.weight.dtype), self.normalized_shape, self.weight, self.bias, self.eps)


PAIRS = 2**21  # of queries and keys at a time in the backward pass below: 4 MB in bf16


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v: (B,A,N,d) of queries (B,A,N,d), keys and values (B,A,M,d); bias, where there is one,
    broadcasts to (B,A,N,M). causal: query i sees keys 0..i only."""
    if causal:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    if bias is not None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
    if q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.requires_grad:
        return _AttentionInBF16.apply(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


class _AttentionInBF16(torch.autograd.Function):
    """torch's attention with another backward pass, for the CPU: torch's own takes two to ten times as long in bf16."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = F.scaled_dot_product_attention(q, k, v)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        saved = ctx.saved_tensors  # once: of a block that is computed again (run.recompute) they are not there a second time
        return _attention_backward(*saved, gradient)


# An operator of its own: torch.compile would unroll the loop over heads, and copy what is computed in place here.
@torch.library.custom_op("tubelet::attention_backward", mutates_args=())
def _attention_backward(q: Tensor, k: Tensor, v: Tensor, out: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values in bf16, from what attention gave and the gradient of it.

    The weights are computed again, of as many heads together as PAIRS allows, so that none are kept between the passes.
    """
    shapes = q.shape, k.shape, v.shape
    q, k, v, out, gradient = (x.flatten(0, 1).contiguous() for x in (q, k, v, out, gradient))  # (B*A,N,d)
    q = q * q.shape[2] ** -0.5
    along = (gradient.float() * out).sum(dim=2, keepdim=True).to(q.dtype)  # what softmax takes from every gradient of a row
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    together = min(len(q), max(1, PAIRS // (q.shape[1] * k.shape[1])))
    room = q.new_empty(2, together, q.shape[1], k.shape[1])
    for first in range(0, len(q), together):
        heads = slice(first, first + together)
        weights, scores = room[:, : len(q[heads])]
        torch.softmax(torch.bmm(q[heads], k[heads].mT, out=scores), dim=2, out=weights)
        torch.bmm(weights.mT, gradient[heads], out=dv[heads])
        torch.bmm(gradient[heads], v[heads].mT, out=scores).sub_(along[heads]).mul_(weights)  # their gradient
        torch.bmm(scores, k[heads], out=dq[heads])
        torch.bmm(scores.mT, q[heads], out=dk[heads])
    dq *= q.shape[2] ** -0.5
    return dq.view(shapes[0]), dk.view(shapes[1]), dv.view(shapes[2])


@_attention_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, out: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


class Attention(nn.Module):
    """Joint self-attention with one weight for qkv; queries and values have a bias, keys have none.

    Three products of it rather than one: their results lie in one piece each, which attention reads faster.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.empty(width))
        self.v_bias = nn.Parameter(torch.empty(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, first: int = 0, causal: bool = False) -> Tensor:
        """(B,N,D) -> (B,N-first,D): what the tokens from `first` on take from all N, or `causal` from those up to themselves."""
        q, k, v = self._heads(x, first)
        return self.proj(attend(q, k, v, causal=causal).transpose(1, 2).flatten(2))

    def probabilities(self, x: Tensor) -> Tensor:
        """Who attends to whom: (B,A,N,N), rows sum to 1. For pictures; `forward` never builds it."""
        q, k, _ = self._heads(x)
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)

    def _heads(self, x: Tensor, first: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B,A,N-first,D/A), keys and values (B,A,N,D/A)."""
        query, key, value = self.qkv.weight.chunk(3)
        q = F.linear(x[:, first:], query, self.q_bias)
        x = x.to(q.dtype)  # under autocast, where the next two would each make a copy of their own
        k, v = F.linear(x, key), F.linear(x, value, self.v_bias)
        return self._split(q), self._split(k), self._split(v)

    def _split(self, x: Tensor) -> Tensor:
        """(B,N,D) -> (B,A,N,D/A), a view."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class BiasedAttention(nn.Module):
    """Self-attention along the second axis, with one weight for qkv and a bias on all three."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"width is {width}, which heads={heads} does not divide")
        self.size = width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(B,N,...,D) -> the same shape. What lies between is kept apart, like more heads: of (B,T,S,D) every place s attends
        over its own T moments, without a copy. bias, where there is one, broadcasts to (B,A,N,N): -inf for what is not seen."""
        q, k, v = (split_heads(y, self.size) for y in products(x, self.qkv, 3))
        return self.proj(attend(q, k, v, bias).transpose(1, 2).reshape(x.shape))


@torch.no_grad()
def init_mimetic(qkv: nn.Linear, proj: nn.Linear, heads: int) -> None:
    """First values that look like those of a trained Transformer (Trockman & Kolter 2023, arXiv:2305.09828).

    Every head's query-key product is near the identity (tokens attend to those like them, in place above all), and the
    value-projection product near its negative. Worth it where data or steps are few.
    """
    width = proj.weight.shape[0]
    per_head = width // heads
    eye = torch.eye(width, device=proj.weight.device)
    for head in range(heads):
        left, scale, right = torch.linalg.svd(0.7 * torch.randn_like(eye) / width**0.5 + 0.7 * eye)
        rows = slice(head * per_head, (head + 1) * per_head)
        root = scale[:per_head].sqrt()
        qkv.weight[:width][rows] = (left[:, :per_head] * root).T
        qkv.weight[width : 2 * width][rows] = root[:, None] * right[:per_head]
    left, scale, right = torch.linalg.svd(0.4 * torch.randn_like(eye) / width**0.5 - 0.4 * eye)
    proj.weight.copy_(left * scale.sqrt())
    qkv.weight[2 * width :] = scale.sqrt()[:, None] * right


def products(x: Tensor, layer: nn.Linear, pieces: int) -> list[Tensor]:
    """layer(x) in `pieces` of equal width, each in a memory of its own, which attention reads faster than a part of one."""
    out: list[Tensor] = []
    for weight, bias in zip(layer.weight.chunk(pieces), layer.bias.chunk(pieces), strict=True):
        out.append(F.linear(x, weight, bias))
        x = x.to(out[0].dtype)  # under autocast, where every product would make a copy of its own
    return out


def split_heads(x: Tensor, size: int) -> Tensor:
    """(B,N,...,A*size) -> (B,...*A,N,size), a view."""
    return x.reshape(x.shape[0], x.shape[1], -1, size).transpose(1, 2)


class MLP(nn.Module):
    """approximate is F.gelu's: "none" for the exact function, "tanh" for what JAX calls gelu; or "quick" for x sigmoid(1.702 x)
    (Hendrycks & Gimpel 2016, section 2)."""

    def __init__(self, width: int, hidden: int, approximate: str = "none") -> None:
        super().__init__()
        self.approximate = approximate
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(
            x * torch.sigmoid(1.702 * x) if self.approximate == "quick" else F.gelu(x, approximate=self.approximate)
        )


class DropPath(nn.Module):
    """Drops a sample's whole residual branch with probability `rate` while training (Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        ones = [1] * (x.ndim - 1)
        keep = share.draw(lambda rows: torch.rand(rows, *ones, device=x.device), x.shape[0]) >= self.rate
        return x * keep / (1 - self.rate)


class Dropout(nn.Dropout):
    """Dropout that is the same on any number of processes."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return x * share.draw(lambda rows: F.dropout(torch.ones(rows, *x.shape[1:], device=x.device), self.p), x.shape[0])


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). The residual stream is of the type of the weights. float32 stays so under
    autocast: a sum takes the wider type."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, eps: float, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.norm2 = LayerNorm(width, eps=eps)
        self.mlp = MLP(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, first: int = 0, causal: bool = False) -> Tensor:
        """(B,N,D) -> (B,N-first,D). Of a last block often not all is wanted: the tokens before `first` are only looked at.
        causal (with first 0): no token sees a later one."""
        x = x[:, first:] + self.drop_path(self.attn(self.norm1(x), first, causal))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class BiasedBlock(nn.Module):
    """The block of CLIP's towers, or with `post` of BERT, which normalises after each sum in place of before each branch. gelu is
    "none", "tanh" or "quick" (see MLP)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, eps: float, gelu: str = "none", post: bool = False) -> None:
        super().__init__()
        self.post = post
        self.norm1 = LayerNorm(width, eps=eps)
        self.attn = BiasedAttention(width, heads)
        self.norm2 = LayerNorm(width, eps=eps)
        self.mlp = MLP(width, int(width * mlp_ratio), gelu)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(B,N,D) -> (B,N,D); bias: see BiasedAttention."""
        if self.post:
            x = self.norm1(x + self.attn(x, bias))
            return self.norm2(x + self.mlp(x))
        x = x + self.attn(self.norm1(x), bias)
        return x + self.mlp(self.norm2(x))


def drop_path_rates(highest: float, depth: int) -> list[float]:
    """Rates growing linearly from 0 at the first block to `highest` at the last."""
    return [highest * i / max(1, depth - 1) for i in range(depth)]
