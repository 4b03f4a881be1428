"""The blocks' own arithmetic, beside torch's."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

from tubelet.models import _transformer
from tubelet.models._transformer import attend


def heads(seed: int, tokens: int, dtype: torch.dtype) -> Tensor:
    """(2 clips, 3 heads, tokens, 16), the same values in every dtype but for rounding, laid out as a projection leaves them."""
    x = torch.randn(2, tokens, 3 * 16, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16).to(dtype)
    return x.unflatten(2, (3, 16)).transpose(1, 2).detach().requires_grad_()


@pytest.mark.parametrize("asked", [50, 20])  # of 50 tokens: a last block asks for some only
@pytest.mark.parametrize("pairs", [_transformer.PAIRS, 4 * 50 * 50, 1])  # all heads at once, four and two, one by one
def test_attention_in_bf16_learns_what_float32_would(asked: int, pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_transformer, "PAIRS", pairs)

    def gradients(dtype: torch.dtype, attention) -> list[Tensor]:  # type: ignore[no-untyped-def]
        q, k, v = heads(1, asked, dtype), heads(2, 50, dtype), heads(3, 50, dtype)
        out = attention(q, k, v)
        out.backward(heads(4, asked, dtype).detach())
        return [out.detach(), q.grad, k.grad, v.grad]

    exact = gradients(torch.float32, F.scaled_dot_product_attention)
    ours, torchs = gradients(torch.bfloat16, attend), gradients(torch.bfloat16, F.scaled_dot_product_attention)
    assert torch.equal(ours[0], torchs[0])
    for wanted, mine, theirs in zip(exact[1:], ours[1:], torchs[1:], strict=True):
        off, usual = ((x.float() - wanted).norm() / wanted.norm() for x in (mine, theirs))
        assert off < 2.5 * usual + 1e-3 and off < 0.01  # rounding to 8 bits, no more


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_attention_in_bf16_compiled_is_one_operator() -> None:
    """The graphs that torch.compile makes, without the time it takes to compile them."""

    def gradients(attention) -> list[Tensor]:  # type: ignore[no-untyped-def]
        q, k, v = (heads(seed, 50, torch.bfloat16) for seed in (1, 2, 3))
        out = attention(q, k, v)
        out.sin().sum().backward()
        return [out.detach(), q.grad, k.grad, v.grad]

    graphs: list[list[str]] = []

    def keep(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph

    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    found = gradients(torch.compile(attend, fullgraph=True, backend=backend))
    for wanted, mine in zip(gradients(attend), found, strict=True):
        assert torch.equal(wanted, mine) and wanted.stride() == mine.stride()
    _, backward = graphs
    assert sum("attention_backward" in name for name in backward) == 1 and not any("bmm" in name for name in backward)
