"""The clip network that families put on frames where kernels reach over time: ResNet-18 in 3D (Tran et al. 2018, R3D-18), and
ResNet-50 with the bottlenecks of Hara et al. 2018 behind the same stem.

B batch, T frames, D channels.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.models._conv3d import BatchNorm
from tubelet.models._resnet import BLOCKS


class Basic(nn.Module):
    """Two 3x3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = BatchNorm(width)
        self.conv2 = nn.Conv3d(width, width, 3, 1, 1, bias=False)
        self.bn2 = BatchNorm(width)
        self.downsample = shortcut(width_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1x1, 3x3x3 (which strides), 1x1x1 to four times the width, and a shortcut."""

    expansion = 4

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(width_in, width, 1, bias=False)
        self.bn1 = BatchNorm(width)
        self.conv2 = nn.Conv3d(width, width, 3, stride, 1, bias=False)
        self.bn2 = BatchNorm(width)
        self.conv3 = nn.Conv3d(width, 4 * width, 1, bias=False)
        self.bn3 = BatchNorm(4 * width)
        self.downsample = shortcut(width_in, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x)))


def shortcut(width_in: int, width_out: int, stride: int) -> nn.Sequential | None:
    """What brings the input to the shape of the output; None where it has it."""
    if stride == 1 and width_in == width_out:
        return None
    return nn.Sequential(nn.Conv3d(width_in, width_out, 1, stride, bias=False), BatchNorm(width_out))


def stage(block: type[Basic] | type[Bottleneck], width_in: int, width: int, count: int, stride: int) -> nn.Sequential:
    """`count` blocks, of which the first one strides."""
    first = block(width_in, width, stride)
    return nn.Sequential(first, *(block(width * block.expansion, width, 1) for _ in range(count - 1)))


class ResNet3d(nn.Module):
    """`width` channels after the stem, 18 or 50 layers; the output has `self.width`. Stages 2 to 4 halve time together with the
    picture."""

    def __init__(self, width: int = 64, layers: int = 18) -> None:
        super().__init__()
        block = Bottleneck if layers == 50 else Basic
        self.width = 8 * width * block.expansion
        self.stem = nn.Sequential(nn.Conv3d(3, width, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False), BatchNorm(width), nn.ReLU())
        one, two, three, four = BLOCKS[layers]
        self.layer1 = stage(block, width, width, one, stride=1)
        self.layer2 = stage(block, width * block.expansion, 2 * width, two, stride=2)
        self.layer3 = stage(block, 2 * width * block.expansion, 4 * width, three, stride=2)
        self.layer4 = stage(block, 4 * width * block.expansion, 8 * width, four, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,T,H,W), normalised -> (B,D,T/8,H/16,W/16); its mean over time and place is the clip's feature."""
        return self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))

    def path(self) -> list[nn.Module]:
        """The layers of the longest way through, in order, for `receptive_field`."""
        return [module for name, module in self.named_modules() if "downsample" not in name]

    def init_weights(self) -> None:
        """Kaiming for convolutions, 1 and 0 for norms."""
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BatchNorm):
                module.reset_parameters()
