"""I3D: published sizes, and the picture network that it was inflated from."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet import models
from tubelet.errors import CheckpointError, ConfigError
from tubelet.models import i3d
from tubelet.models._conv3d import BatchNorm
from tubelet.models._resnet import ResNet
from tubelet.records import ClipSpec
from tubelet.video.normalize import normalize

from .small import clips, small

CLASSES = [str(i) for i in range(400)]


def meta(name: str, spec: ClipSpec) -> i3d.I3D:
    with torch.device("meta"):
        model = models.build(name, spec, CLASSES)
    assert isinstance(model, i3d.I3D)
    return model


def lively(network: nn.Module) -> dict[str, Tensor]:
    """Its weights, with norms that are all different but near the identity, so that what goes in is still seen at the end."""
    generator = torch.Generator().manual_seed(2)
    state = dict(network.state_dict())
    for key, value in state.items():
        if value.ndim == 1:
            noise = 0.1 * torch.randn(value.shape, generator=generator)
            state[key] = noise + (1 if key.endswith(("weight", "running_var")) else 0)
    return state


def picture_state(name: str, classes: int) -> dict[str, Tensor]:
    """Random weights of the picture network that a small variant is inflated from, in torchvision's keys."""
    generator = torch.Generator().manual_seed(1)
    if name == "i3d_r50":
        network = ResNet(50, width=8)
        network.init_weights()
        state = lively(network)
    else:
        state = {key: value.sum(dim=2) if value.ndim == 5 else value for key, value in lively(small(name).trunk).items()}
    width = 256 if name == "i3d_r50" else 128
    state["fc.weight"] = torch.randn(classes, width, generator=generator)
    state["fc.bias"] = torch.randn(classes, generator=generator)
    return state


def resnet_features(state: dict[str, Tensor], x: Tensor) -> Tensor:
    network = ResNet(50, width=8).eval()
    network.load_state_dict({key: value for key, value in state.items() if not key.startswith("fc.")})
    return network(x)


def googlenet_features(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """GoogLeNet written down from its table with torch's own picture operations."""

    def unit(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{name}.conv.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)
        norm = (state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.relu(F.batch_norm(x, *norm, eps=0.001))

    def inception(name: str, x: Tensor) -> Tensor:
        two = unit(f"{name}.branch2.1", unit(f"{name}.branch2.0", x))
        three = unit(f"{name}.branch3.1", unit(f"{name}.branch3.0", x))
        four = unit(f"{name}.branch4.1", F.max_pool2d(x, 3, 1, 1))
        return torch.cat([unit(f"{name}.branch1", x), two, three, four], dim=1)

    x = F.max_pool2d(unit("conv1", x, stride=2), 3, 2, ceil_mode=True)
    x = F.max_pool2d(unit("conv3", unit("conv2", x)), 3, 2, ceil_mode=True)
    x = F.max_pool2d(inception("inception3b", inception("inception3a", x)), 3, 2, ceil_mode=True)
    for letter in "abcde":
        x = inception(f"inception4{letter}", x)
    x = F.max_pool2d(x, 2, 2, ceil_mode=True)
    return inception("inception5b", inception("inception5a", x))


FEATURES = {"i3d_r50": resnet_features, "i3d_inception": googlenet_features}


def on_a_still(name: str, time_padding: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens by slot (B,T',N,D) and logits of an inflated network on clips of equal frames; the picture's own (B,N,D), logits."""
    state = picture_state(name, classes=3)
    model = small(name, ("a", "b", "c"), time_padding=time_padding).eval()
    assert isinstance(model, i3d.I3D)
    taken, left = i3d.inflate(state, model)
    assert left == []
    model.load_state_dict(taken)
    pictures = clips(model.spec)[:, :1]
    with torch.no_grad():
        out = model(pictures.expand(-1, model.spec.frames, -1, -1, -1))
        features = FEATURES[name](state, normalize(pictures[:, 0], model.spec.mean, model.spec.std, colour_dim=1))
    places = features.flatten(2).transpose(1, 2)
    logits = F.linear(places.mean(dim=1), state["fc.weight"], state["fc.bias"])
    return out["tokens"].unflatten(1, (-1, places.shape[1])), out["logits"], places, logits


@pytest.mark.parametrize("name", i3d.VARIANTS)
def test_a_still_clip_gives_what_the_picture_gives(name: str) -> None:
    tokens, logits, places, wanted = on_a_still(name, "replicate")
    scale = float(places.abs().max())
    for slot in range(tokens.shape[1]):
        torch.testing.assert_close(tokens[:, slot], places, rtol=1e-3, atol=1e-5 * scale)
    torch.testing.assert_close(logits, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", i3d.VARIANTS)
def test_zeros_beyond_the_ends_of_a_clip_change_what_it_gives(name: str) -> None:
    tokens, _, places, _ = on_a_still(name, "zero")
    assert (tokens[:, 0] - places).abs().max() > 0.01 * places.abs().max()


def test_a_kernel_is_copied_and_divided_by_its_length() -> None:
    state = picture_state("i3d_r50", classes=3)
    model = small("i3d_r50", ("a", "b", "c"))
    assert isinstance(model, i3d.I3D)
    kernel = i3d.inflate(state, model)[0]["trunk.conv1.weight"]
    assert kernel.shape == (8, 3, 5, 7, 7)
    for slot in range(5):
        assert torch.equal(kernel[:, :, slot], state["conv1.weight"] / 5)


def test_published_sizes_of_resnet50() -> None:
    """PyTorchVideo's model zoo, I3D R50 8x8: 28.04 M and 37.53 G, which counts five operations for every value of a batch norm."""
    model = meta("i3d_r50", ClipSpec(frames=8, size=256)).eval()
    cost = models.cost(model)
    values: list[int] = []
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.register_forward_hook(lambda _, __, out: values.append(out.numel()))
    model(torch.zeros(1, 8, 3, 256, 256, dtype=torch.uint8, device="meta"))
    assert round(cost["params"] / 1e6, 2) == 28.04
    assert round(cost["gmacs"] + 5 * sum(values) / 1e9, 2) == 37.53


def test_published_sizes_of_inception() -> None:
    """OpenVINO's model zoo counted the released network, whose norms have no scales: 12.69 M, and for 79 frames 278.98 GFLOP (two a
    MAC, and those of norms and poolings)."""
    model = meta("i3d_inception", ClipSpec(frames=79))
    scales = sum(p.numel() for name, p in model.named_parameters() if name.endswith("bn.weight"))
    cost = models.cost(model)
    assert round((cost["params"] - scales) / 1e6, 2) == 12.69
    assert 2 * cost["gmacs"] == pytest.approx(278.98, rel=0.005)


def test_shapes_of_the_papers_clips() -> None:
    """Figure 3 of the paper: 64 frames of 224 end in 8x7x7 places of 1024 channels."""
    clip = torch.zeros(1, 64, 3, 224, 224, dtype=torch.uint8, device="meta")
    assert meta("i3d_inception", models.clip_of("i3d_inception"))(clip)["tokens"].shape == (1, 8 * 7 * 7, 1024)
    assert meta("i3d_r50", models.clip_of("i3d_r50"))(clip[:, :8])["tokens"].shape == (1, 4 * 7 * 7, 2048)


@pytest.mark.parametrize("name", i3d.VARIANTS)
def test_the_head_stays_behind_where_it_must_or_is_told_to(name: str) -> None:
    state = picture_state(name, classes=5)
    model = small(name, ("a", "b", "c"))
    assert isinstance(model, i3d.I3D)
    head = ["fc.weight", "fc.bias"]
    taken, left = i3d.inflate(state, model)
    assert left == head and torch.equal(taken["head.weight"], model.head.weight)
    same = small(name, tuple("abcde"))
    assert isinstance(same, i3d.I3D)
    taken, left = i3d.inflate(state, same)
    assert left == [] and torch.equal(taken["head.weight"], state["fc.weight"])
    renamed = {key.replace("fc.", "head."): value for key, value in state.items()}
    assert torch.equal(i3d.inflate(renamed, same)[0]["head.bias"], state["fc.bias"])
    taken, left = i3d.inflate(state, same, drop_head=True)
    assert left == head and torch.equal(taken["head.weight"], same.head.weight)
    bare = small(name)
    assert isinstance(bare, i3d.I3D)
    taken, left = i3d.inflate(state, bare)
    assert left == head and taken.keys() == bare.state_dict().keys()


def test_auxiliary_heads_of_googlenet_are_left_behind_and_those_of_a_resnet_are_not() -> None:
    aux = {"aux1.conv.conv.weight": torch.zeros(2, 2, 1, 1), "aux2.fc1.bias": torch.zeros(2)}
    inception, resnet = small("i3d_inception", ("a", "b", "c")), small("i3d_r50", ("a", "b", "c"))
    assert isinstance(inception, i3d.I3D) and isinstance(resnet, i3d.I3D)
    assert i3d.inflate({**picture_state("i3d_inception", 3), **aux}, inception)[1] == list(aux)
    with pytest.raises(CheckpointError, match="left over aux1.conv.conv.weight; left over aux2.fc1.bias"):
        i3d.inflate({**picture_state("i3d_r50", 3), **aux}, resnet)


def test_every_weight_that_does_not_fit_is_named() -> None:
    model = small("i3d_r50", ("a", "b", "c"))
    assert isinstance(model, i3d.I3D)
    state = picture_state("i3d_r50", classes=3)
    for number in range(9):
        state[f"layer5.{number}.conv1.weight"] = torch.zeros(1)
    del state["layer1.0.bn1.weight"], state["bn1.num_batches_tracked"]
    state["conv1.weight"] = torch.zeros(8, 1, 7, 7)
    with pytest.raises(CheckpointError) as caught:
        i3d.inflate(state, model)
    text = str(caught.value)
    assert all(f"left over layer5.{number}.conv1.weight" in text for number in range(9))
    assert "missing layer1.0.bn1.weight" in text and "num_batches_tracked" not in text
    assert "left over is" not in text, "another layer's weight is not this one misspelt"
    assert "conv1.weight is (8, 1, 5, 7, 7), wanted (8, 3, 5, 7, 7)" in text
    with pytest.raises(CheckpointError, match="left over inception3a.branch1.conv.weight"):
        i3d.inflate(picture_state("i3d_inception", 3), model)


def test_bad_clips_and_options_are_named() -> None:
    model = small("i3d_inception")
    with pytest.raises(
        ConfigError, match=r"got clips of 2 frames of 48x14 with 1 colours; it takes 3 colours, 3 or more frames"
    ):
        model(torch.zeros(1, 2, 1, 14, 48))
    with pytest.raises(ConfigError, match=r"15x15 pixels or more \(set clip.frames and clip.size\)"):
        models.build("i3d_inception", ClipSpec(frames=8, size=14))
    with pytest.raises(ConfigError, match="unknown time_padding 'zeros': did you mean 'zero'"):
        small("i3d_r50", time_padding="zeros")
    with pytest.raises(ConfigError, match="width is 12; inception_v1 takes multiples of 8"):
        small("i3d_inception", width=12)


@pytest.mark.parametrize(("name", "shape"), [("i3d_r50", (1, 1, 1)), ("i3d_inception", (3, 15, 15))])
def test_the_smallest_clips_are_taken(name: str, shape: tuple[int, int, int]) -> None:
    frames, height, width = shape
    with torch.no_grad():
        tokens = small(name).eval()(torch.zeros(1, frames, 3, height, width))["tokens"]
    assert tokens.shape[1] == 1 and tokens.isfinite().all()
