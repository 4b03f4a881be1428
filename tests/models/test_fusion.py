"""Ways to join frames: the toy networks layer by layer, receptive fields against gradients, published sizes, identities."""

import copy
import itertools
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from tubelet import models
from tubelet.errors import ConfigError
from tubelet.models._conv3d import output_size, receptive_field
from tubelet.models._resnet import Point
from tubelet.models.fusion import CLIPS, NETWORKS, Fusion
from tubelet.records import ClipSpec

from .small import clips, randomise, small

TOY = ClipSpec(frames=20, size=64)
CLASSES = ("a", "b", "c")


def toy(name: str, class_names: tuple[str, ...] = CLASSES) -> Fusion:
    model = models.build(name, models.clip_of(name), class_names).eval()
    assert isinstance(model, Fusion) and (model.spec.frames, model.spec.size) == (20, 64)
    randomise(model, 0.3)
    return model


def shapes(model: Fusion, frames: Tensor) -> dict[str, list[int]]:
    """What every convolution and pooling gives, by kind of layer, in order."""
    found: list[tuple[str, list[int]]] = []
    for module in model.modules():
        if hasattr(module, "kernel_size"):
            module.register_forward_hook(lambda layer, _, out: found.append((type(layer).__name__, list(out.shape))))
    model(frames)
    return {f"{i} {name}": shape for i, (name, shape) in enumerate(found)}


# Layer -> (shape that it gives of 3x20x64x64, receptive field), as the course slides that these networks come from have them.
TOYS = {
    "late_fusion_pool_toy": {
        "0 Conv2d": ([20, 12, 64, 64], (1, 3, 3)), "1 MaxPool2d": ([20, 12, 16, 16], (1, 6, 6)),
        "2 Conv2d": ([20, 24, 16, 16], (1, 14, 14)),
    },
    "late_fusion_fc_toy": {
        "0 Conv2d": ([20, 12, 64, 64], (1, 3, 3)), "1 MaxPool2d": ([20, 12, 16, 16], (1, 6, 6)),
        "2 Conv2d": ([20, 24, 16, 16], (1, 14, 14)),
    },
    "early_fusion_toy": {
        "0 Conv2d": ([1, 12, 64, 64], (20, 3, 3)), "1 MaxPool2d": ([1, 12, 16, 16], (20, 6, 6)),
        "2 Conv2d": ([1, 24, 16, 16], (20, 14, 14)),
    },
    "slow_fusion_toy": {
        "0 Conv3d": ([1, 12, 20, 64, 64], (3, 3, 3)), "1 MaxPool3d": ([1, 12, 5, 16, 16], (6, 6, 6)),
        "2 Conv3d": ([1, 24, 5, 16, 16], (14, 14, 14)),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", TOYS)
def test_the_toys_layer_by_layer(name: str) -> None:
    model = toy(name)
    assert shapes(model, clips(TOY, batch=1)) == {layer: shape for layer, (shape, _) in TOYS[name].items()}
    layers = [module for module in model.modules() if hasattr(module, "kernel_size")]
    for number, (_, field) in enumerate(TOYS[name].values(), start=1):
        t, h, w = receptive_field(layers[:number])
        assert (20 if model.joins == "early" else t, h, w) == field
    assert model.receptive_field() == field
    first = layers[0]
    assert (first.in_channels, first.out_channels) == ((60 if model.joins == "early" else 3), 12)


@pytest.mark.parametrize("name", sorted(CLIPS.keys() & TOYS.keys()))
def test_everything_is_seen_behind_the_last_layer(name: str) -> None:
    """Global pooling, or the layer that joins: the embedding has a gradient at each of 20x64x64 places."""
    model = toy(name)
    frames = seen_by(model, lambda out: out["embedding"].sum(), (20, 64, 64))
    assert frames.count_nonzero() == 20 * 64 * 64


def seen_by(model: Fusion, value, size: tuple[int, int, int]) -> Tensor:
    """(T,H,W): where a pixel moves a value of the output. All weights positive and poolings means, so that no path can hide."""
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d | nn.MaxPool3d):
                mean = nn.AvgPool2d if isinstance(child, nn.MaxPool2d) else nn.AvgPool3d
                setattr(module, name, mean(child.kernel_size, child.stride, child.padding))
            elif isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())  # it mixes the whole picture
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = max(1, parameter[0].numel())
            parameter.copy_((torch.rand(parameter.shape, generator=generator) + 0.5) / fan_in)
    frames = torch.full((1, size[0], 3, *size[1:]), 200.0, requires_grad=True)
    value(model(frames)).backward()
    assert frames.grad is not None
    return frames.grad[0].abs().sum(dim=1)


@pytest.mark.parametrize(("name", "size", "options"), [
    ("single_frame", (2, 64, 64), dict(width=8, stages=4)),
    ("late_fusion_pool_toy", (4, 64, 64), {}),
    ("early_fusion_toy", (6, 64, 64), {}),
    ("slow_fusion_toy", (40, 48, 48), {}),
    ("slow_fusion_toy", (96, 96, 96), dict(width=1, stages=2)),
    ("single_frame_resnet18", (1, 512, 512), dict(width=1)),
    ("single_frame_resnet50", (1, 512, 512), dict(width=1)),
    ("early_fusion_resnet18", (3, 224, 224), dict(width=2, stages=3)),
    ("slow_fusion_resnet18", (64, 112, 112), dict(width=1, stages=3)),
    ("slow_fusion_resnet50", (64, 112, 112), dict(width=1, stages=2)),
])  # fmt: skip
def test_receptive_fields_are_where_gradients_reach(name: str, size: tuple[int, int, int], options: dict[str, int]) -> None:
    model = models.build(name, ClipSpec(frames=size[0], size=size[1]), **options)
    assert isinstance(model, Fusion)
    t, row, column = (n // 2 for n in output_size(model._path(), size))
    middle = {"slow": (0, ..., t, row, column), "early": (0, ..., row, column)}.get(model.joins, (t, ..., row, column))

    maps: list[Tensor] = []
    model.blocks[-1].register_forward_hook(lambda *given: maps.append(given[-1]))

    def value(_: dict[str, Tensor]) -> Tensor:
        return maps[-1][middle].sum()

    seen = seen_by(model, value, size)
    extent = [int((wide := seen.amax(dim=others).nonzero()).max() - wide.min()) + 1 for others in ((1, 2), (0, 2), (0, 1))]
    assert tuple(extent) == model.receptive_field()


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_of_maps_are_what_comes_out(name: str) -> None:
    model = small(name).eval()
    assert isinstance(model, Fusion)
    maps: list[Tensor] = []
    model.blocks[-1].register_forward_hook(lambda *given: maps.append(given[-1]))
    frames = (4,) if model.joins in ("early", "late fc") else (4, 9)
    sizes = ((32, 32),) if model.joins == "late fc" else ((32, 32), (37, 45))
    for t, (h, w) in itertools.product(frames, sizes):
        model(torch.zeros(1, t, 3, h, w))
        wanted = output_size(model._path(), (t, h, w))
        assert tuple(maps[-1].shape[2:]) == (wanted if model.joins == "slow" else wanted[1:])


# torchvision's counts for 1000 classes (400 and 16x112x112 for the 3D one); GMAC of one frame or clip
PUBLISHED = {
    "single_frame_resnet18": (1000, 11_689_512, 1.81),
    "single_frame_resnet50": (1000, 25_557_032, 4.09),
    "late_fusion_pool_resnet18": (1000, 11_689_512, 1.81),
    "slow_fusion_resnet18": (400, 33_371_472, 40.70),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    classes, params, gmacs = PUBLISHED[name]
    spec = CLIPS.get(name, ClipSpec(frames=1))
    with torch.device("meta"):
        model = models.build(name, spec, [str(i) for i in range(classes)])
    cost = models.cost(model)
    assert (cost["params"], round(cost["gmacs"], 2)) == (params, gmacs)


def bottlenecks(kernel: int, stem: int, width: int = 64) -> int:
    """Parameters of a ResNet-50 without its head, by the formula of He et al. 2016, whose middle convolutions have so many
    places and whose stem so many weights a channel."""
    total, width_in = stem * width + 2 * width, width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        middle = width << stage
        for block in range(blocks):
            weights = width_in * middle + kernel * middle**2 + middle * 4 * middle
            total += weights + 2 * (middle + middle + 4 * middle)
            total += 0 if block else width_in * 4 * middle + 2 * 4 * middle  # the shortcut
            width_in = 4 * middle
    return total


def test_parameters_of_those_of_50_layers() -> None:
    """As many as the formula says, which gives the published 25,557,032 of the picture network with 1,000 classes."""
    assert bottlenecks(9, 3 * 49) + 2048 * 1000 + 1000 == 25_557_032
    with torch.device("meta"):
        fc = models.build("late_fusion_fc_resnet50", ClipSpec(frames=4, size=64), CLASSES)
        slow = models.build("slow_fusion_resnet50", models.clip_of("slow_fusion_resnet50"), CLASSES)
    head = 2048 * len(CLASSES) + len(CLASSES)
    joined = 4 * 2048 * 2 * 2 * 2048 + 2048  # the maps of 4 frames, 2x2 places each
    assert sum(p.numel() for p in fc.parameters()) == bottlenecks(9, 3 * 49) + joined + head
    assert sum(p.numel() for p in slow.parameters()) == bottlenecks(27, 3 * 3 * 49) + head


# Identities --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, row in NETWORKS.items() if row[0] in ("single", "late pool")])
def test_order_does_not_matter_where_frames_are_averaged(name: str) -> None:
    model = small(name, CLASSES).eval()
    randomise(model)
    frames = clips(ClipSpec(frames=7, size=32))
    one, other = model(frames), model(frames[:, torch.randperm(7)])
    torch.testing.assert_close(one["logits"].softmax(-1), other["logits"].softmax(-1))
    torch.testing.assert_close(one["embedding"], other["embedding"])


@pytest.mark.parametrize("name", ["late_fusion_fc_toy", "early_fusion_toy", "slow_fusion_toy", "slow_fusion_resnet18"])
def test_order_matters_where_frames_are_joined(name: str) -> None:
    model = small(name, CLASSES).eval()
    randomise(model, 0.3)
    frames = clips(model.spec)
    one, other = model(frames)["embedding"], model(frames.flip(1))["embedding"]
    assert (one - other).abs().max() > 1e-3 * one.abs().max()


def test_single_frame_and_late_pooling_share_a_network() -> None:
    """On one frame, and with the same weights, they say the same."""
    single, late = (small(name, CLASSES).eval() for name in ("single_frame_resnet18", "late_fusion_pool_resnet18"))
    randomise(single)
    late.load_state_dict(single.state_dict())
    frames = clips(ClipSpec(frames=1, size=32))
    torch.testing.assert_close(single(frames)["logits"], late(frames)["logits"].log_softmax(-1))


@pytest.mark.parametrize("name", ["late_fusion_fc_toy", "late_fusion_fc_resnet18"])
def test_late_fusion_with_a_layer_takes_all_maps(name: str) -> None:
    spec = models.clip_of(name)
    with torch.device("meta"):
        model = models.build(name, spec, CLASSES)
    assert isinstance(model, Fusion)
    _, rows, columns = output_size(model._path(), (spec.frames, spec.size, spec.size))
    assert (rows, columns) == ((16, 16) if "toy" in name else (7, 7))
    assert model.fuse.in_features == spec.frames * model.width * rows * columns
    assert model.fuse.weight.shape[0] == model.width and model.head.in_features == model.width


def impulse_responses(layer: nn.Module, stack: bool) -> list[Tensor]:
    """What a layer says to a picture that flashes up in frame 8, and in frame 12, of 20 dark ones."""
    picture = torch.rand(1, 3, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    answers = []
    for moment in (8, 12):
        clip = torch.zeros(1, 3, 20, 16, 16)
        clip[:, :, moment : moment + 1] = picture
        answers.append(layer(clip.transpose(1, 2).flatten(1, 2) if stack else clip))
    return answers


def test_a_shift_in_time_is_a_shift_for_3d_convolutions_and_news_for_early_fusion() -> None:
    early, slow = toy("early_fusion_toy"), toy("slow_fusion_toy")
    sooner, later = impulse_responses(slow.stem, stack=False)
    assert sooner[:, :, 7:10].std() > 0
    torch.testing.assert_close(later[:, :, 11:14], sooner[:, :, 7:10])
    torch.testing.assert_close(later.roll(-4, dims=2), sooner)
    sooner, later = impulse_responses(early.stem, stack=True)
    assert (sooner - later).abs().max() > 0.1 * sooner.abs().max()
    # the whole net: frames later by its step in time move its inner slots by one
    video = clips(ClipSpec(frames=36, size=32), batch=1)
    first, second = (slow._maps(part.float().transpose(1, 2) / 255) for part in (video[:, :32], video[:, 4:]))
    torch.testing.assert_close(second[:, :, 2:5], first[:, :, 3:6])


def test_single_frame_is_taught_by_one_frame_of_each_clip() -> None:
    model = small("single_frame_resnet18", CLASSES).train()
    assert model(clips(model.spec))["tokens"].shape[1] == 1
    assert small("late_fusion_pool_resnet18", CLASSES).train()(clips(model.spec))["tokens"].shape[1] == 4


@pytest.mark.parametrize(("name", "shape", "message"), [
    ("single_frame_resnet18", (4, 1, 32, 32), "4 frames of 32x32 with 1 colours; it takes 3 colours, any number of frames"),
    ("late_fusion_fc_resnet18", (5, 3, 32, 32), "got clips of 5 frames .* exactly 4 frames and exactly 32x32 pixels"),
    ("late_fusion_fc_resnet18", (4, 3, 32, 40), "4 frames of 40x32 .* exactly 4 frames and exactly 32x32 pixels"),
    ("early_fusion_resnet18", (8, 3, 32, 32), "exactly 4 frames and any size from 1 on .set clip.frames and clip.size"),
    ("late_fusion_pool_toy", (4, 3, 8, 8), "4 frames of 8x8 .* any number of frames and any size from 16 on"),
    ("slow_fusion_toy", (3, 3, 32, 32), "got clips of 3 frames .* any number of frames and any size from 4 on"),
])  # fmt: skip
def test_clips_that_do_not_fit(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(name, CLASSES)(torch.zeros(2, *shape))


def test_models_that_cannot_be() -> None:
    with pytest.raises(
        ConfigError, match="early_fusion_resnet18: stages is 5, it must be 1 or more and for a ResNet at most 4"
    ):
        small("early_fusion_resnet18", stages=5)
    with pytest.raises(ConfigError, match="single_frame: stages is 0, it must be 1 or more"):
        small("single_frame", stages=0)
    with pytest.raises(ConfigError, match="slow_fusion_toy got clips of 2 frames"):
        models.build("slow_fusion_toy", ClipSpec(frames=2, size=32))


@pytest.mark.parametrize("channels", [4, 8, 16])
def test_a_strided_point_is_the_convolution(channels: int) -> None:
    """Few channels go another way, because torch's own crashes in their gradient on some processors."""
    torch.manual_seed(0)
    x = torch.randn(2, channels, 9, 12, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    point = Point(channels, 16, 2).double()
    ours = torch.autograd.grad(point(x).square().sum(), [x, point.weight])
    y = torch.einsum("oi,bihw->bohw", point.weight[:, :, 0, 0], x[:, :, ::2, ::2])
    theirs = torch.autograd.grad(y.square().sum(), [x, point.weight])
    torch.testing.assert_close(point(x), y)
    torch.testing.assert_close(ours, theirs)


def test_narrow_networks_train_on_decoded_clips() -> None:
    """In a process of its own: what is guarded against ends the process."""
    code = (
        "import torch\nfrom tubelet import models, ClipSpec\n"
        "model = models.build('single_frame', ClipSpec(frames=4, size=64), ['a', 'b'], width=8, stages=2)\n"
        "for _ in range(4):\n"
        "    clips = torch.randint(256, (4, 4, 64, 64, 3), dtype=torch.uint8).permute(0, 1, 4, 2, 3)\n"
        "    model(clips)['logits'].square().sum().backward()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
