"""R(2+1)D: every 3D convolution of a ResNet is a 2D one in space and a 1D one in time with a ReLU between (Tran et al. 2018).

The two have as many weights as the 3D convolution they stand for (section 3.5) and twice the nonlinearities: 64 to 64 channels
take 3*3*3*64*64 = 110,592 either way, with 144 channels between.

r2plus1d_18 is torchvision's, key by key, with its 31,505,325 parameters: there both convolutions of a block have the middle width
of the first. The paper's formula, and the released 34-layer weights, give each its own (`middle="convolution"`): with it 18 layers
have 33.37 M.

B batch, C channels, T time, H height, W width, D width of the embedding.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.find import choose
from tubelet.models import _resnet
from tubelet.models._conv3d import BatchNorm
from tubelet.models._trunk import Trunk, TrunkModel, account, torchvision_keys
from tubelet.records import ClipSpec

PAPER = "Tran et al. 2018, arXiv:1711.11248"

VARIANTS: dict[str, dict[str, Any]] = {
    "r2plus1d_18": dict(layers=18, middle="block"),
    "r2plus1d_34": dict(layers=34, middle="convolution"),
}

# The statistics of Kinetics that torchvision's weights were trained with.
MEAN, STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
CLIPS = {
    "r2plus1d_18": ClipSpec(frames=16, size=112, stride_frames=2, mean=MEAN, std=STD),
    "r2plus1d_34": ClipSpec(frames=32, size=112, stride_frames=1, mean=MEAN, std=STD),
}


def build(name: str, spec: ClipSpec, class_names: Sequence[str] = (), **options: Any) -> "R2Plus1D":
    """A freshly initialised R(2+1)D; with `class_names` it has a head."""
    return R2Plus1D(name, spec, tuple(class_names), **{**VARIANTS[name], **options})


def middle_width(width_in: int, width_out: int) -> int:
    """Channels between the spatial and the temporal convolution that keep the weights of a 3x3x3 one (section 3.5)."""
    return 27 * width_in * width_out // (9 * width_in + 3 * width_out)


class Conv2Plus1D(nn.Sequential):
    """1x3x3, batch norm, ReLU, 3x1x1; the stride is shared between them."""

    def __init__(self, width_in: int, width_out: int, middle: int, stride: int) -> None:
        super().__init__(
            nn.Conv3d(width_in, middle, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
            BatchNorm(middle),
            nn.ReLU(),
            nn.Conv3d(middle, width_out, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False),
        )


class Basic(nn.Module):
    """Two (2+1)D convolutions, of which the first strides in time and space, and a shortcut."""

    def __init__(self, width_in: int, width: int, stride: int, middle: str) -> None:
        super().__init__()
        self.width_out = width
        first, own = middle_width(width_in, width), middle_width(width, width)
        second = first if middle == "block" else own
        self.conv1 = nn.Sequential(Conv2Plus1D(width_in, width, first, stride), BatchNorm(width), nn.ReLU())
        self.conv2 = nn.Sequential(Conv2Plus1D(width, width, second, 1), BatchNorm(width))
        self.downsample: nn.Sequential | None = None
        if stride > 1 or width_in != width:
            self.downsample = nn.Sequential(nn.Conv3d(width_in, width, 1, stride, bias=False), BatchNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.conv1(x)) + (x if self.downsample is None else self.downsample(x)))


class ResNet(Trunk):
    """(B,3,T,H,W) -> (B,8*width,T/8,H/16,W/16), table 1."""

    depth = 4

    def __init__(self, layers: int, width: int, middle: str) -> None:
        super().__init__()
        self.width = 8 * width
        stem = max(1, 45 * width // 64)  # 45 of 64: as few as the colours
        self.stem = nn.Sequential(
            nn.Conv3d(3, stem, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False), BatchNorm(stem), nn.ReLU(),
            nn.Conv3d(stem, width, (3, 1, 1), 1, (1, 0, 0), bias=False), BatchNorm(width), nn.ReLU(),
        )  # fmt: skip
        one, two, three, four = _resnet.BLOCKS[layers]
        self.layer1 = stage(width, width, one, 1, middle)
        self.layer2 = stage(width, 2 * width, two, 2, middle)
        self.layer3 = stage(2 * width, 4 * width, three, 2, middle)
        self.layer4 = stage(4 * width, 8 * width, four, 2, middle)

    def depth_of(self, parameter: str) -> int:
        return _resnet.depth_of(parameter)


def stage(width_in: int, width: int, count: int, stride: int, middle: str) -> nn.Sequential:
    """`count` blocks, of which the first one strides."""
    first = Basic(width_in, width, stride, middle)
    return nn.Sequential(first, *(Basic(width, width, 1, middle) for _ in range(count - 1)))


class R2Plus1D(TrunkModel):
    """layers 18 or 34; middle "block" or "convolution", whose channels decide the middle width (see the top); `width` channels
    behind the stem."""

    def __init__(
        self, name: str, spec: ClipSpec, class_names: tuple[str, ...] = (), *, layers: int, middle: str, width: int = 64,
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        choose(str(layers), ("18", "34"), "layers")
        trunk = ResNet(layers, width, choose(middle, ("block", "convolution"), "middle"))
        super().__init__(name, spec, class_names, trunk, dropout, dict(layers=layers, middle=middle, width=width))


# Weight-key maps -----------------------------------------------------------------------------------------------------
# torchvision's keys are those of our trunk, and its head is called `fc`.


def to_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict in the key layout of torchvision's r2plus1d_18."""
    return torchvision_keys(state)


def from_torchvision(state: Mapping[str, Tensor], like: R2Plus1D) -> dict[str, Tensor]:
    """torchvision's state dict as that of `like`, bit by bit; CheckpointError naming every weight that does not fit."""
    own = like.state_dict()
    theirs = account(state, torchvision_keys(own), f"of torchvision's {like.name}")
    return dict(zip(own, theirs.values(), strict=True))
