"""C3D: the published table shape by shape, its cost layer by layer, its two sizes."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tubelet import models
from tubelet.errors import ConfigError
from tubelet.records import ClipSpec

from .small import clips, randomise, small

# Tran et al. 2015: what every layer gives of 3x16x112x112, and its GMAC; 487 classes are Sports-1M's
TABLE = {
    "conv1": ((64, 16, 112, 112), 1.04),
    "pool1": ((64, 16, 56, 56), 0),
    "conv2": ((128, 16, 56, 56), 11.10),
    "pool2": ((128, 8, 28, 28), 0),
    "conv3a": ((256, 8, 28, 28), 5.55),
    "conv3b": ((256, 8, 28, 28), 11.10),
    "pool3": ((256, 4, 14, 14), 0),
    "conv4a": ((512, 4, 14, 14), 2.77),
    "conv4b": ((512, 4, 14, 14), 5.55),
    "pool4": ((512, 2, 7, 7), 0),
    "conv5a": ((512, 2, 7, 7), 0.69),
    "conv5b": ((512, 2, 7, 7), 0.69),
    "pool5": ((512, 1, 3, 3), 0),
    "fc6": ((4096,), None),
    "fc7": ((4096,), None),
    "head": ((487,), None),
}


def on_meta(name: str, classes: int) -> models.Model:
    with torch.device("meta"):
        return models.build(name, models.clip_of(name), [str(i) for i in range(classes)]).eval()


def test_the_table_of_the_paper() -> None:
    model = on_meta("c3d", 487)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, layer in model.named_children():
        layer.register_forward_hook(lambda _, __, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 16, 3, 112, 112, device="meta"))
    counts = {where.rpartition(".")[2]: sum(flops.values()) / 2e9 for where, flops in counter.get_flop_counts().items()}
    shapes.pop("dropout")
    assert shapes == {name: shape for name, (shape, _) in TABLE.items()}
    for name, (_, gmacs) in TABLE.items():
        if gmacs is not None:
            assert round(counts.get(name, 0), 2) == gmacs, name
    assert round(sum(counts[name] for name in ("fc6", "fc7", "head")), 3) == 0.038


@pytest.mark.parametrize(("name", "params", "inputs", "gmacs"), [
    ("c3d", 63.7, 4608, 38.53), ("c3d_padded", 78.4, 8192, 38.55),
])  # fmt: skip
def test_both_conventions_of_pool5(name: str, params: float, inputs: int, gmacs: float) -> None:
    model = on_meta(name, 101)
    cost = models.cost(model)
    assert round(cost["params"] / 1e6, 1) == params
    assert model.get_submodule("fc6").weight.shape == (4096, inputs)
    assert round(cost["gmacs"], 2) == gmacs


def test_against_torchs_own_layers() -> None:
    """The same network written down as one nn.Sequential, on the same random weights."""
    model = small("c3d_padded", ("a", "b", "c")).eval()
    randomise(model)
    layers: list[nn.Module] = []
    for name, layer in model.named_children():
        layers += [nn.Flatten()] if name == "fc6" else []
        layers += [layer] if name != "dropout" else []
        layers += [nn.ReLU()] if name.startswith(("conv", "fc")) else []
    frames = clips(model.spec)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1, 1) for x in (model.spec.mean, model.spec.std))
    wanted = nn.Sequential(*layers)((frames.transpose(1, 2) / 255 - mean) / std)
    torch.testing.assert_close(model(frames)["logits"], wanted)


@pytest.mark.parametrize(("name", "frames", "size", "places"), [
    ("c3d", 16, 32, 1), ("c3d", 32, 64, 8), ("c3d", 16, 96, 9), ("c3d_padded", 16, 16, 1), ("c3d_padded", 32, 112, 32),
])  # fmt: skip
def test_other_clips_that_divide(name: str, frames: int, size: int, places: int) -> None:
    model = models.build(name, ClipSpec(frames=frames, size=size), ("a", "b"), channels=4, hidden=8).eval()
    out = model(clips(model.spec, batch=1))
    assert out["tokens"].shape == (1, places, 32) and out["logits"].shape == (1, 2)


def test_dropout_only_while_training() -> None:
    model = small("c3d", ("a", "b"))
    randomise(model, 0.3)
    frames = clips(model.spec)
    assert not torch.equal(model.train()(frames)["logits"], model(frames)["logits"])
    assert torch.equal(model.eval()(frames)["logits"], model(frames)["logits"])


def test_clips_and_options_that_do_not_fit() -> None:
    model = small("c3d")
    with pytest.raises(ConfigError, match="c3d got clips of 8 frames of 32x30 with 3 colours; it takes 3 colours, frames divisible "
                       "by 16, and sizes divisible by 16 from 32 on .set clip.frames and clip.size"):  # fmt: skip
        model(torch.zeros(1, 8, 3, 30, 32))
    with pytest.raises(ConfigError, match="with 1 colours; it takes 3 colours"):
        model(torch.zeros(1, 16, 1, 32, 32))
    with pytest.raises(ConfigError, match="16 frames of 64x64, but its fc6 was made for 16 frames of 32x32"):
        model(torch.zeros(1, 16, 3, 64, 64))
    with pytest.raises(ConfigError, match="16 frames of 16x16 .* divisible by 16 from 32 on"):
        models.build("c3d", ClipSpec(frames=16, size=16))
    with pytest.raises(ConfigError, match="margin is 2; pool5 has a margin of 0 or 1"):
        small("c3d", margin=2)
