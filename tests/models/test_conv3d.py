"""Batch norm over processes against torch's on one, and receptive fields against what a gradient reaches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tubelet.models import _resnet
from tubelet.models._conv3d import BatchNorm, receptive_field

# One of several processes: its clips of a batch of 5, forwards and backwards; rank 0 writes what came of it.
PROGRAM = """
import json, sys
import torch, torch.distributed as dist
from safetensors.torch import save_file
from tubelet import share
from tubelet.models._conv3d import BatchNorm
from tubelet.train.parallel import recompute

dist.init_process_group("gloo")
rank, out, counts, again = dist.get_rank(), sys.argv[1], json.loads(sys.argv[2]), sys.argv[3] == "True"
torch.manual_seed(0)
norm, x, weights = BatchNorm(3), torch.randn(10, 3, 2, 4, 4) * 3 + 1, torch.randn(10, 3, 2, 4, 4)
with torch.no_grad():
    norm.weight.uniform_(0.5, 2), norm.bias.normal_()
if again:
    recompute(torch.nn.ModuleList([norm]))  # whose input and output alone are kept
with share.of(rank, counts):
    rows = share.current(5).rows
    mine = x[2 * rows.start : 2 * rows.stop].clone().requires_grad_()  # two rows a clip
    y = norm(mine)
    counted = y[: 2 * counts[rank]]
    (counted.square() * weights[2 * rows.start :][: len(counted)]).sum().backward()
for parameter in norm.parameters():
    dist.all_reduce(parameter.grad)
save_file({"y": counted.detach().contiguous(), "dx": mine.grad[: len(counted)].contiguous(), "dw": norm.weight.grad,
           "db": norm.bias.grad, **norm.state_dict()}, f"{out}/{rank}.safetensors")
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("counts", "again"),
    [((3, 2), False), ((5, 0), False), ((3, 2), True)],
    ids=["uneven", "a process without a clip", "computed again"],
)
def test_batch_norm_of_two_processes_is_that_of_one(counts: tuple[int, int], again: bool, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    done = subprocess.run(
        [*start, str(tmp_path), json.dumps(counts), str(again)], capture_output=True, text=True, timeout=200, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]

    torch.manual_seed(0)
    norm, x, weights = nn.BatchNorm3d(3), torch.randn(10, 3, 2, 4, 4) * 3 + 1, torch.randn(10, 3, 2, 4, 4)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2), norm.bias.normal_()
    x.requires_grad_()
    y = norm(x)
    (y.square() * weights).sum().backward()
    torch.testing.assert_close(torch.cat([one["y"] for one in said]), y.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([one["dx"] for one in said]), x.grad, rtol=1e-4, atol=1e-4)
    for one in said:
        torch.testing.assert_close(one["dw"], norm.weight.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(one["db"], norm.bias.grad, rtol=1e-4, atol=1e-4)
        for name, value in norm.state_dict().items():
            torch.testing.assert_close(one[name], value, rtol=1e-5, atol=1e-5)


def test_batch_norm_alone_is_torchs() -> None:
    ours, theirs = BatchNorm(4), nn.BatchNorm2d(4)
    x = torch.randn(3, 4, 5, 6)
    assert torch.equal(ours(x), theirs(x)) and torch.equal(ours.eval()(x), theirs.eval()(x))
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def reached(layers: nn.Module, shape: tuple[int, ...]) -> list[int]:
    """How far along each axis after colour the input reaches that the middle value of the output depends on."""
    x = torch.rand(shape, requires_grad=True)
    y = layers(x)
    y[(0, 0, *(size // 2 for size in y.shape[2:]))].backward()
    seen: Tensor = x.grad[0].abs().sum(0)  # type: ignore[index]
    spans = [seen.sum([other for other in range(seen.ndim) if other != axis]).nonzero() for axis in range(seen.ndim)]
    return [int(span.max() - span.min()) + 1 for span in spans]


def test_receptive_fields_are_what_a_gradient_reaches() -> None:
    clips = nn.Sequential(nn.Conv3d(2, 3, 3), nn.Conv3d(3, 3, (3, 5, 1), (2, 3, 1)), nn.ReLU(),
                          nn.AvgPool3d((1, 2, 2)), nn.Conv3d(3, 2, 3, dilation=(1, 2, 1)))  # fmt: skip
    for parameter in clips.parameters():
        nn.init.uniform_(parameter, 0.1, 1)  # above 0, so that nothing cancels or is cut off
    assert list(receptive_field(clips)) == reached(clips, (1, 2, 20, 64, 24))
    pictures = nn.Sequential(nn.Conv2d(2, 3, 3), nn.AvgPool2d(4), nn.Conv2d(3, 2, 3))
    for parameter in pictures.parameters():
        nn.init.uniform_(parameter, 0.1, 1)
    assert receptive_field(pictures) == (1, *reached(pictures, (1, 2, 48, 48))) == (1, 14, 14)


@pytest.mark.parametrize(("depth", "parameters"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
def test_resnets_have_their_published_sizes(depth: int, parameters: int) -> None:
    """As torchvision and timm print them for 1,000 classes."""
    with torch.device("meta"):
        net = _resnet.ResNet(depth)
        assert sum(p.numel() for p in [*net.parameters(), *nn.Linear(net.width, 1000).parameters()]) == parameters
