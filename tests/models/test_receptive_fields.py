"""The receptive field of every deep 3D network is exactly what a gradient reaches, axis by axis."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tubelet import models
from tubelet.models._conv3d import BatchNorm, receptive_field

from .small import small


def network(name: str, **sizes: object) -> nn.Module:
    """The convolutions of a model, as thin as they come, in float64: the edge of a deep network's field weighs 1e-60."""
    model = small(name, **sizes).eval()
    if name.startswith("c3d"):
        return nn.Sequential(*model._path()).double()  # type: ignore[operator]
    return (model.cnn if "lstm" in name else model.trunk).double()  # type: ignore[union-attr,operator]


def open_all(net: nn.Module) -> None:
    """Weights above 0 and means in the place of maxima, so that no path cancels, is cut off or hides."""
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d | nn.MaxPool3d):
                flat = isinstance(child, nn.MaxPool2d)
                mean = (nn.AvgPool2d if flat else nn.AvgPool3d)(child.kernel_size, child.stride, 0, child.ceil_mode)
                edge = np.broadcast_to(child.padding, 2 if flat else 3)[::-1].repeat(2).tolist()
                # Padded apart: what is smaller than its kernel before it is padded, a mean of torch's does not take.
                setattr(module, name, nn.Sequential((nn.ConstantPad2d if flat else nn.ConstantPad3d)(edge, 0.0), mean))
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, BatchNorm):
            module.reset_parameters()
            nn.init.ones_(module.weight)  # some begin at 0


def reached(net: nn.Module, shape: tuple[int, ...], axis: int) -> int:
    """How many places of the input along an axis move the middle of the output in any channel (some see less)."""
    x = torch.ones(1, 3, *shape, dtype=torch.float64, requires_grad=True)
    y: Tensor = net(x)
    (gradient,) = torch.autograd.grad(y[(0, ..., *(size // 2 for size in y.shape[2:]))].sum(), x)
    others = [other for other in range(x.ndim) if other != axis + 2]
    seen = gradient.abs().sum(others).nonzero()
    return int(seen.max() - seen.min()) + 1


@pytest.mark.parametrize(("name", "sizes", "wanted"), [
    ("c3d", dict(channels=1), (76, 150, 150)),
    ("i3d_r50", dict(width=1), None),
    ("i3d_inception", dict(width=8), None),
    ("r2plus1d_18", dict(width=1), None),
    ("r2plus1d_34", dict(width=1), None),
    ("cnn_lstm_resnet18", dict(channels=1), (1, 435, 435)),
    ("cnn_lstm_resnet50", dict(channels=1), (1, 427, 427)),
    ("cnn3d_lstm_resnet18", dict(channels=1), None),
])  # fmt: skip
def test_it_is_exactly_what_a_gradient_reaches(name: str, sizes: dict[str, object], wanted: tuple[int, ...] | None) -> None:
    net = network(name, **sizes)
    field = receptive_field(net.modules() if name.startswith("c3d") else net.path())  # type: ignore[operator]
    model = small(name, **sizes)
    if "lstm" in name:  # a step of the LSTM is given `window` frames
        assert model.receptive_field() == (min(field[0], model.options["window"]), *field[1:])
    else:
        assert model.receptive_field() == field
    assert wanted is None or field == wanted
    open_all(net)
    pictures = name in ("cnn_lstm_resnet18", "cnn_lstm_resnet50")
    for axis in (1, 2) if pictures else (0, 1) if name == "i3d_inception" else (0, 1, 2):
        long = -(-2 * field[axis] // 32) * 32 + 64
        shape = [16, 32, 32]
        shape[axis] = long
        found = reached(net, tuple(shape[1:]), axis - 1) if pictures else reached(net, tuple(shape), axis)
        assert found == field[axis], f"axis {axis}"


def test_every_family_with_a_field_is_here_or_in_its_own_file() -> None:
    """The others: fusion has its own test, two_stream's are the ResNets of cnn_lstm, nonlocal blocks see everything."""
    with_field = {name for name in models.variants() if small(name).receptive_field() is not None}
    families = {models.variants()[name].__name__.rpartition(".")[2] for name in with_field}
    assert families <= {"c3d", "i3d", "r2plus1d", "cnn_lstm", "fusion", "two_stream", "nonlocal_net"}
