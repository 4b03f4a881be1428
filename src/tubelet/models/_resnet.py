"""The picture network that families put on frames: ResNet-18/34/50 (He et al. 2016, arXiv:1512.03385), torchvision's keys.

B batch, D channels.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.models._conv3d import BatchNorm

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class Basic(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = BatchNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = BatchNorm(width)
        self.downsample = shortcut(width_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 (which strides), 1x1 to four times the width, and a shortcut."""

    expansion = 4

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 1, bias=False)
        self.bn1 = BatchNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = BatchNorm(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = BatchNorm(4 * width)
        self.downsample = shortcut(width_in, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x)))


def shortcut(width_in: int, width_out: int, stride: int) -> nn.Sequential | None:
    """What brings the input to the shape of the output; None where it has it."""
    if stride == 1 and width_in == width_out:
        return None
    return nn.Sequential(Point(width_in, width_out, stride), BatchNorm(width_out))


class Point(nn.Conv2d):
    """A 1x1 convolution without a bias that looks at every `stride`-th place."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__(width_in, width_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.in_channels > 8:
            return super().forward(x)
        # torch 2.13 on a CPU with AVX-512 writes beyond its memory in this gradient of few channels; the numbers are the same.
        return F.conv2d(x[:, :, :: self.stride[0], :: self.stride[1]], self.weight)


def stage(block: type[Basic] | type[Bottleneck], width_in: int, width: int, count: int, stride: int) -> nn.Sequential:
    """`count` blocks, of which the first one strides."""
    first = block(width_in, width, stride)
    return nn.Sequential(first, *(block(width * block.expansion, width, 1) for _ in range(count - 1)))


class ResNet(nn.Module):
    """`width` channels after the stem; the output has `self.width`. `colours` may be more than 3 (stacked frames or flow)."""

    def __init__(self, depth: int, width: int = 64, colours: int = 3) -> None:
        super().__init__()
        block = Bottleneck if depth == 50 else Basic
        self.width = 8 * width * block.expansion
        self.conv1 = nn.Conv2d(colours, width, 7, 2, 3, bias=False)
        self.bn1 = BatchNorm(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        one, two, three, four = BLOCKS[depth]
        self.layer1 = stage(block, width, width, one, stride=1)
        self.layer2 = stage(block, width * block.expansion, 2 * width, two, stride=2)
        self.layer3 = stage(block, 2 * width * block.expansion, 4 * width, three, stride=2)
        self.layer4 = stage(block, 4 * width * block.expansion, 8 * width, four, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W), normalised -> the map (B,D,H/32,W/32); its mean over place is the picture's feature."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def path(self) -> list[nn.Module]:
        """The layers of the longest way through, in order, for `receptive_field`."""
        return [module for name, module in self.named_modules() if "downsample" not in name]

    def init_weights(self) -> None:
        """Kaiming for convolutions, 1 and 0 for norms."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BatchNorm):
                module.reset_parameters()


def depth_of(parameter: str) -> int:
    """Where a parameter of a ResNet stands: 0 the stem, 1..4 its stages."""
    return int(parameter[5]) if parameter.startswith("layer") else 0
