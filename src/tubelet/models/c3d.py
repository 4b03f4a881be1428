"""C3D: learning spatiotemporal features with 3D convolutional networks (Tran et al. 2015).

Eight 3x3x3 convolutions and five poolings, of which the first leaves time alone, then two fully connected layers and the head.

Two networks go by this name. They differ in the last pooling: on 16 frames of 112 pixels it leaves 3x3 places (`c3d`, 4608
inputs to fc6), or with a margin of zeros 4x4 (`c3d_padded`, 8192 inputs: the layout of the published Sports-1M weights).

How ours differs: no mean clip is subtracted, colours are normalised as everywhere else; fc8 is called `head`.

B batch, T frames, C colours, D width, K classes, N tokens (places of pool5).
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.errors import ConfigError
from tubelet.models._conv3d import output_size, receptive_field
from tubelet.models._model import Model
from tubelet.models._tokens import Triple
from tubelet.models._transformer import Dropout
from tubelet.records import ClipSpec
from tubelet.video.normalize import normalize

PAPER = "Tran et al. 2015, arXiv:1412.0767"

VARIANTS: dict[str, dict[str, Any]] = {
    "c3d": dict(channels=64, hidden=4096, margin=0),
    "c3d_padded": dict(channels=64, hidden=4096, margin=1),
}
CLIPS = dict.fromkeys(VARIANTS, ClipSpec(frames=16, size=112, stride_frames=1))


def build(name: str, spec: ClipSpec, class_names: Sequence[str] = (), **options: Any) -> "C3D":
    """A freshly initialised C3D; with `class_names` it has a head."""
    return C3D(name, spec, tuple(class_names), **{**VARIANTS[name], **options})


class C3D(Model):
    """channels after conv1 (conv5 has 8 times as many), hidden units of fc6 and fc7, margin of zeros around pool5's places."""

    def __init__(
        self, name: str, spec: ClipSpec, class_names: tuple[str, ...] = (), *, channels: int, hidden: int, margin: int,
        dropout: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__()
        if margin not in (0, 1):
            raise ConfigError(f"{name}: margin is {margin}; pool5 has a margin of 0 or 1 places")
        self.name, self.spec, self.class_names = name, spec, class_names
        self.options: dict[str, Any] = dict(channels=channels, hidden=hidden, margin=margin, dropout=dropout)
        self.depth, self.width = 9, hidden  # conv2 to fc7
        c = channels
        self.conv1 = nn.Conv3d(3, c, 3, padding=1)
        self.pool1 = nn.MaxPool3d((1, 2, 2))
        self.conv2 = nn.Conv3d(c, 2 * c, 3, padding=1)
        self.pool2 = nn.MaxPool3d(2)
        self.conv3a = nn.Conv3d(2 * c, 4 * c, 3, padding=1)
        self.conv3b = nn.Conv3d(4 * c, 4 * c, 3, padding=1)
        self.pool3 = nn.MaxPool3d(2)
        self.conv4a = nn.Conv3d(4 * c, 8 * c, 3, padding=1)
        self.conv4b = nn.Conv3d(8 * c, 8 * c, 3, padding=1)
        self.pool4 = nn.MaxPool3d(2)
        self.conv5a = nn.Conv3d(8 * c, 8 * c, 3, padding=1)
        self.conv5b = nn.Conv3d(8 * c, 8 * c, 3, padding=1)
        self.pool5 = nn.MaxPool3d(2, padding=(0, margin, margin))
        t, h, w = self._places(spec.frames, spec.size, spec.size)
        self.fc6 = nn.Linear(8 * c * t * h * w, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.dropout = Dropout(dropout)
        if class_names:
            self.head = nn.Linear(hidden, len(class_names))
        self.init_weights()

    def init_weights(self) -> None:
        """Kaiming with zero biases, a small head."""
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        if self.class_names:
            nn.init.trunc_normal_(self.head.weight, std=0.02)

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        """frames (B,T,C,H,W) 0..255 -> "tokens" (B,N,8 channels), the places of pool5; "embedding" (B,D), fc7's output; and
        "logits" (B,K)."""
        t, c, h, w = frames.shape[1:]
        if self._places(t, h, w, c) != self._places(self.spec.frames, self.spec.size, self.spec.size):
            raise ConfigError(
                f"{self.name} got clips of {t} frames of {w}x{h}, but its fc6 was made for {self.spec.frames} frames of "
                f"{self.spec.size}x{self.spec.size} (set clip.frames and clip.size alike, or train a new model)"
            )
        x = normalize(frames, self.spec.mean, self.spec.std, colour_dim=2).transpose(1, 2)  # (B,C,T,H,W)
        x = self.pool1(F.relu(self.conv1(x)))  # of 16 frames of 112 pixels: (B,64,16,56,56)
        x = self.pool2(F.relu(self.conv2(x)))  # (B,128,8,28,28)
        x = self.pool3(F.relu(self.conv3b(F.relu(self.conv3a(x)))))  # (B,256,4,14,14)
        x = self.pool4(F.relu(self.conv4b(F.relu(self.conv4a(x)))))  # (B,512,2,7,7)
        x = self.pool5(F.relu(self.conv5b(F.relu(self.conv5a(x)))))  # (B,512,1,3,3), or 4x4 with a margin
        out = {"tokens": x.flatten(2).mT}
        x = self.dropout(F.relu(self.fc6(x.flatten(1))))
        out["embedding"] = F.relu(self.fc7(x))
        if self.class_names:
            out["logits"] = self.head(self.dropout(out["embedding"]))
        return out

    def _places(self, frames: int, height: int, width: int, colours: int = 3) -> Triple:
        """What pool5 leaves of a clip; ConfigError where nothing is left or a pooling on the way would drop a rest."""
        left = output_size(self._path(), (frames, height, width))
        if colours != 3 or frames % 16 or height % 16 or width % 16 or min(left) < 1:
            least = 16 if self.options["margin"] else 32
            raise ConfigError(
                f"{self.name} got clips of {frames} frames of {width}x{height} with {colours} colours; it takes 3 colours, frames "
                f"divisible by 16, and sizes divisible by 16 from {least} on (set clip.frames and clip.size)"
            )
        return left

    def _path(self) -> list[nn.Module]:
        return [module for name, module in self.named_children() if name.startswith(("conv", "pool"))]

    def depth_of(self, parameter: str) -> int:
        """0 conv1, then layer by layer, depth+1 the head."""
        layers = ("conv1", "conv2", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b", "fc6", "fc7", "head")
        return layers.index(parameter.split(".")[0])

    def receptive_field(self) -> Triple:
        """Of pool5."""
        return receptive_field(self._path())

    def head_parameters(self) -> list[nn.Parameter]:
        """What stays trainable when everything but the head is frozen."""
        return list(self.head.parameters()) if self.class_names else []
