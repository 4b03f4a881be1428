"""The clip network that families put on frames where kernels reach over time: ResNet-18 in 3D (Tran et al. 2018, R3D-18).

B batch, T frames, D channels.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.models._conv3d import BatchNorm


class Basic(nn.Module):
    """Two 3x3x3 convolutions and a shortcut."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = BatchNorm(width)
        self.conv2 = nn.Conv3d(width, width, 3, 1, 1, bias=False)
        self.bn2 = BatchNorm(width)
        self.downsample: nn.Sequential | None = None
        if stride > 1 or width_in != width:
            self.downsample = nn.Sequential(nn.Conv3d(width_in, width, 1, stride, bias=False), BatchNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet3d(nn.Module):
    """`width` channels after the stem; the output has `self.width`. Stages 2 to 4 halve time together with the picture."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.width = 8 * width
        self.stem = nn.Sequential(nn.Conv3d(3, width, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False), BatchNorm(width), nn.ReLU())
        self.layer1 = nn.Sequential(Basic(width, width, 1), Basic(width, width, 1))
        self.layer2 = nn.Sequential(Basic(width, 2 * width, 2), Basic(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(Basic(2 * width, 4 * width, 2), Basic(4 * width, 4 * width, 1))
        self.layer4 = nn.Sequential(Basic(4 * width, 8 * width, 2), Basic(8 * width, 8 * width, 1))

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
