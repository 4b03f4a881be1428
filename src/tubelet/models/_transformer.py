"""The pre-norm Transformer block that the ViT families share. Nothing in here knows a paper's name.

B batch, N tokens, D width, A heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """LayerNorm in float32 whatever the autocast: its backward in bf16 loses most of the bias gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.normalized_shape, self.weight, self.bias, self.eps)


class Attention(nn.Module):
    """Joint self-attention with one fused qkv weight; queries and values have a bias, keys have none."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.empty(width))
        self.v_bias = nn.Parameter(torch.empty(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """(B,N,D) -> (B,N-first,D): what the tokens from `first` on take from all N."""
        q, k, v = self._heads(x, first)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def probabilities(self, x: Tensor) -> Tensor:
        """Who attends to whom: (B,A,N,N), rows sum to 1. For pictures; `forward` never builds it."""
        q, k, _ = self._heads(x)
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)

    @torch.no_grad()
    def init_mimetic(self) -> None:
        """First values that look like those of a trained Transformer (Trockman & Kolter 2023, arXiv:2305.09828).

        Every head's query-key product is near the identity (tokens attend to those like them, in place above all), and the
        value-projection product near its negative. Worth it where data or steps are few.
        """
        width = self.proj.weight.shape[0]
        per_head = width // self.heads
        eye = torch.eye(width, device=self.proj.weight.device)
        for head in range(self.heads):
            left, scale, right = torch.linalg.svd(0.7 * torch.randn_like(eye) / width**0.5 + 0.7 * eye)
            rows = slice(head * per_head, (head + 1) * per_head)
            root = scale[:per_head].sqrt()
            self.qkv.weight[:width][rows] = (left[:, :per_head] * root).T
            self.qkv.weight[width : 2 * width][rows] = root[:, None] * right[:per_head]
        left, scale, right = torch.linalg.svd(0.4 * torch.randn_like(eye) / width**0.5 - 0.4 * eye)
        self.proj.weight.copy_(left * scale.sqrt())
        self.qkv.weight[2 * width :] = scale.sqrt()[:, None] * right

    def _heads(self, x: Tensor, first: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B,A,N-first,D/A), keys and values (B,A,N,D/A)."""
        width, weight = x.shape[2], self.qkv.weight
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        if first == 0:
            q, k, v = F.linear(x, weight, bias).chunk(3, dim=2)
        else:
            q = F.linear(x[:, first:], weight[:width], bias[:width])
            k, v = F.linear(x, weight[width:], bias[width:]).chunk(2, dim=2)
        return self._split(q), self._split(k), self._split(v)

    def _split(self, x: Tensor) -> Tensor:
        """(B,N,D) -> (B,A,N,D/A), a view."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class DropPath(nn.Module):
    """Drops a sample's whole residual branch with probability `rate` while training (Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * keep / (1 - self.rate)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). The residual stream stays float32 under autocast."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, eps: float, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.norm2 = LayerNorm(width, eps=eps)
        self.mlp = MLP(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """(B,N,D) -> (B,N-first,D). Of a last block often not all is wanted: the tokens before `first` are only looked at."""
        x = x[:, first:] + self.drop_path(self.attn(self.norm1(x), first)).float()
        return x + self.drop_path(self.mlp(self.norm2(x))).float()


def drop_path_rates(highest: float, depth: int) -> list[float]:
    """Rates growing linearly from 0 at the first block to `highest` at the last."""
    return [highest * i / max(1, depth - 1) for i in range(depth)]
