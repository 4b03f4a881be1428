"""I3D: a picture network inflated in time (Carreira & Zisserman 2017), ResNet-50 or Inception-v1.

Every kernel of a trained picture network is copied along time and divided by its length (section 2.4), so that a clip of equal
frames gives what the picture gave: exactly so where time is padded with the first and last slot (`time_padding="replicate"`);
the zeros that everybody pads with dim both ends of the clip. `inflate` does it, from the keys of torchvision and timm.

i3d_r50 is that of Wang et al. 2018 (section 4, "3x1x1") in its 8-frame form: the first kernel of every other block sees three
slots (of layer1 every one, as in their released networks), conv1 sees five, and time is halved once, after layer1. Pictures are
halved by the 3x3 convolution of a block, as torchvision's are. 28.04 M parameters, 37.53 GMAC at 8x256x256.

i3d_inception is the paper's own. How ours differs: it pads places evenly, as torchvision's GoogLeNet does, where TensorFlow puts
the odd pixel behind; batch norms have a scale; the head sees the mean over all time, where the paper takes the mean over windows
of two slots and so counts the first and last slot half.

B batch, C channels, T time, H height, W width, D width of the embedding.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.errors import ConfigError
from tubelet.find import choose
from tubelet.models import _resnet
from tubelet.models._conv3d import BatchNorm
from tubelet.models._tokens import Triple
from tubelet.models._trunk import Trunk, TrunkModel, account, torchvision_keys
from tubelet.records import ClipSpec

PAPER = "Carreira & Zisserman 2017, arXiv:1705.07750"

VARIANTS: dict[str, dict[str, Any]] = {"i3d_r50": dict(trunk="resnet50"), "i3d_inception": dict(trunk="inception_v1")}

HALF = (0.5, 0.5, 0.5)  # Inception was trained on values from -1 to 1, and so is torchvision's GoogLeNet
CLIPS = {
    "i3d_r50": ClipSpec(frames=8, stride_frames=8),
    "i3d_inception": ClipSpec(frames=64, stride_frames=1, mean=HALF, std=HALF),
}


def build(name: str, spec: ClipSpec, class_names: Sequence[str] = (), **options: Any) -> "I3D":
    """A freshly initialised I3D; with `class_names` it has a head."""
    return I3D(name, spec, tuple(class_names), **{**VARIANTS[name], **options})


class Conv(nn.Conv3d):
    """A convolution without bias, padded so that a stride of 1 keeps the size; in time with zeros or by repeating the ends."""

    def __init__(self, width_in: int, width_out: int, kernel: Triple, stride: Triple, time_padding: str) -> None:
        t, h, w = (k // 2 for k in kernel)
        super().__init__(width_in, width_out, kernel, stride, (t, h, w), bias=False)
        self.repeated = t if time_padding == "replicate" else 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.repeated:
            return super().forward(x)
        x = F.pad(x, (0, 0, 0, 0, self.repeated, self.repeated), mode="replicate")
        return F.conv3d(x, self.weight, None, self.stride, (0, *self.padding[1:]))


# ResNet-50 -----------------------------------------------------------------------------------------------------------


class LastNorm(BatchNorm):
    """The last norm of a block, which begins at 0 and the block as its shortcut: without that sixteen of them hardly learn anything
    from random values (Goyal et al. 2017, arXiv:1706.02677, section 5.1)."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.zeros_(self.weight)


class Bottleneck(nn.Module):
    """1x1x1 or 3x1x1, 1x3x3 (which strides), 1x1x1 to four times the width, and a shortcut."""

    def __init__(self, width_in: int, width: int, time: int, stride: int, time_padding: str) -> None:
        super().__init__()
        self.width_out = 4 * width
        self.conv1 = Conv(width_in, width, (time, 1, 1), (1, 1, 1), time_padding)
        self.bn1 = BatchNorm(width)
        self.conv2 = Conv(width, width, (1, 3, 3), (1, stride, stride), time_padding)
        self.bn2 = BatchNorm(width)
        self.conv3 = Conv(width, 4 * width, (1, 1, 1), (1, 1, 1), time_padding)
        self.bn3 = LastNorm(4 * width)
        self.downsample: nn.Sequential | None = None
        if stride > 1 or width_in != 4 * width:
            shortcut = Conv(width_in, 4 * width, (1, 1, 1), (1, stride, stride), time_padding)
            self.downsample = nn.Sequential(shortcut, BatchNorm(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x)))


class ResNet50(Trunk):
    """(B,3,T,H,W) -> (B,32*width,T/2,H/32,W/32)."""

    depth = 4
    left_behind = ()

    def __init__(self, width: int, time_padding: str) -> None:
        super().__init__()
        self.width = 32 * width
        self.conv1 = Conv(3, width, (5, 7, 7), (1, 2, 2), time_padding)
        self.bn1 = BatchNorm(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        self.layer1 = stage(width, width, (3, 3, 3), 1, time_padding)
        self.pool_time = nn.MaxPool3d((2, 1, 1), ceil_mode=True)  # an odd last slot stays
        self.layer2 = stage(4 * width, 2 * width, (3, 1, 3, 1), 2, time_padding)
        self.layer3 = stage(8 * width, 4 * width, (3, 1, 3, 1, 3, 1), 2, time_padding)
        self.layer4 = stage(16 * width, 8 * width, (1, 3, 1), 2, time_padding)

    def depth_of(self, parameter: str) -> int:
        return _resnet.depth_of(parameter)


def stage(width_in: int, width: int, times: tuple[int, ...], stride: int, time_padding: str) -> nn.Sequential:
    """A block for each of `times`, the slots that its first kernel sees; the first one strides."""
    first = Bottleneck(width_in, width, times[0], stride, time_padding)
    return nn.Sequential(first, *(Bottleneck(4 * width, width, time, 1, time_padding) for time in times[1:]))


# Inception-v1 --------------------------------------------------------------------------------------------------------


class Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, width_in: int, width: int, kernel: int, stride: int, time_padding: str) -> None:
        super().__init__()
        self.conv = Conv(width_in, width, (kernel,) * 3, (stride,) * 3, time_padding)
        self.bn = BatchNorm(width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Inception(nn.Module):
    """Four branches side by side: 1x1x1; 1x1x1 and 3x3x3; the same, thinner; max pooling and 1x1x1.

    widths: of the branches' convolutions in that order, (1x1x1, 1x1x1, 3x3x3, 1x1x1, 3x3x3, 1x1x1).
    """

    def __init__(self, width_in: int, widths: Sequence[int], time_padding: str) -> None:
        super().__init__()
        one, two_in, two, three_in, three, four = widths
        self.width_out = one + two + three + four
        self.branch1 = Unit(width_in, one, 1, 1, time_padding)
        self.branch2 = nn.Sequential(Unit(width_in, two_in, 1, 1, time_padding), Unit(two_in, two, 3, 1, time_padding))
        self.branch3 = nn.Sequential(Unit(width_in, three_in, 1, 1, time_padding), Unit(three_in, three, 3, 1, time_padding))
        self.branch4 = nn.Sequential(nn.MaxPool3d(3, 1, 1), Unit(width_in, four, 1, 1, time_padding))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], dim=1)


# Szegedy et al. 2014, table 1. The last branch's 5x5 is 3x3 in the networks that were released, and so in the paper's figure 3.
INCEPTIONS = {
    "inception3a": (64, 96, 128, 16, 32, 32), "inception3b": (128, 128, 192, 32, 96, 64),
    "inception4a": (192, 96, 208, 16, 48, 64), "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64), "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128), "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
}  # fmt: skip


class InceptionV1(Trunk):
    """(B,3,T,H,W) -> (B,16*width,T/8,H/32,W/32), figure 3. Poolings keep the rest where a size does not divide."""

    depth = len(INCEPTIONS)
    least = (3, 15, 15)  # below, a pooling would have nothing to pool
    left_behind = ("aux1.", "aux2.")  # heads half-way up, which only help to train the picture network

    def __init__(self, width: int, time_padding: str) -> None:
        super().__init__()
        if width % 8:
            raise ConfigError(f"width is {width}; inception_v1 takes multiples of 8 (64 is the paper's)")
        self.width = 16 * width
        self.conv1 = Unit(3, width, 7, 2, time_padding)
        self.maxpool1 = nn.MaxPool3d((1, 3, 3), (1, 2, 2), ceil_mode=True)
        self.conv2 = Unit(width, width, 1, 1, time_padding)
        self.conv3 = Unit(width, 3 * width, 3, 1, time_padding)
        self.maxpool2 = nn.MaxPool3d((1, 3, 3), (1, 2, 2), ceil_mode=True)
        width_in = 3 * width
        for name, widths in INCEPTIONS.items():
            block = Inception(width_in, [n * width // 64 for n in widths], time_padding)
            self.add_module(name, block)
            width_in = block.width_out
            if name == "inception3b":
                self.maxpool3 = nn.MaxPool3d(3, 2, ceil_mode=True)
            if name == "inception4e":
                self.maxpool4 = nn.MaxPool3d(2, 2, ceil_mode=True)

    def depth_of(self, parameter: str) -> int:
        return ["", *INCEPTIONS].index(parameter[:11]) if parameter.startswith("inception") else 0

    def path(self) -> list[nn.Module]:
        """Through the second branches; the third and fourth see as much."""
        return [module for name, module in self.named_modules() if not {"branch1", "branch3", "branch4"} & {*name.split(".")}]


# The model, and how a picture network becomes one --------------------------------------------------------------------

TRUNKS = {"resnet50": ResNet50, "inception_v1": InceptionV1}


class I3D(TrunkModel):
    """trunk "resnet50" or "inception_v1", of `width` channels behind its first convolution; time_padding "zero" or "replicate"."""

    trunk: ResNet50 | InceptionV1

    def __init__(
        self, name: str, spec: ClipSpec, class_names: tuple[str, ...] = (), *, trunk: str, width: int = 64,
        time_padding: str = "zero", dropout: float = 0.0,
    ) -> None:  # fmt: skip
        made = TRUNKS[choose(trunk, TRUNKS, "trunk")](width, choose(time_padding, ("zero", "replicate"), "time_padding"))
        options: dict[str, Any] = dict(trunk=trunk, width=width, time_padding=time_padding)
        super().__init__(name, spec, class_names, made, dropout, options)


def from_image(model: I3D, state: Mapping[str, Tensor], how: str = "inflate") -> dict[str, Tensor]:
    """A state dict for `model` that begins as a picture network, by `inflate`; the picture's heads are left behind."""
    choose(how, ("inflate",), "way to begin from an image model")
    return inflate(state, model, drop_head=True)[0]


def inflate(pictures: Mapping[str, Tensor], like: I3D, drop_head: bool = False) -> tuple[dict[str, Tensor], list[str]]:
    """A picture network's weights as those of `like`, for its load_state_dict, and the names of those that were left behind.

    pictures   state dict in torchvision's keys: ResNet-50's, which are timm's too, or GoogLeNet's; its head `fc.` or `head.`
    drop_head  leave its head behind; so it is, too, where it tells another number of classes. The head of `like` then stays

    A kernel (D,C,h,w) becomes (D,C,t,h,w), t copies over t (Carreira & Zisserman 2017, section 2.4). GoogLeNet's auxiliary heads
    are left behind. CheckpointError names every other weight that has no place, is missing or of another shape.

        state, left = inflate(torch.load("resnet50.pth", weights_only=True), model)
        model.load_state_dict(state)
    """
    own = like.state_dict()
    wanted = torchvision_keys(own)
    heads = [key for key in pictures if key.startswith(("fc.", "head."))]
    if not drop_head:
        drop_head = not any(pictures[key].shape[0] == len(like.class_names) for key in heads)
    left = [key for key in pictures if key.startswith(like.trunk.left_behind) or (drop_head and key in heads)]
    state = {key: value for key, value in wanted.items() if drop_head and key.startswith("fc.")}
    for key, value in pictures.items():
        if key in left:
            continue
        name = f"fc.{key.partition('.')[2]}" if key in heads else key
        if value.ndim == 4 and name in wanted and wanted[name].ndim == 5:
            times = wanted[name].shape[2]
            value = (value / times)[:, :, None].repeat(1, 1, times, 1, 1)
        state[name] = value
    fitting = account(state, wanted, f"of the picture network in {like.name}")
    return dict(zip(own, fitting.values(), strict=True)), left
