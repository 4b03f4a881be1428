"""Convolutional baselines that fuse frames late: what a video model must beat.

single_frame: a residual 2D CNN sees every frame alone; the frames' probabilities are averaged (Karpathy et al. 2014). Whatever
it gets right can be told without motion, and shuffling the frames changes nothing.

B batch, T frames, D width, K classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet import share
from tubelet.models._conv3d import receptive_field
from tubelet.models._model import Model
from tubelet.models._tokens import Triple
from tubelet.records import ClipSpec
from tubelet.video.normalize import normalize

PAPER = "Karpathy et al. 2014, CVPR"

VARIANTS: dict[str, dict[str, Any]] = {"single_frame": dict(width=32, stages=4)}


def build(name: str, spec: ClipSpec, class_names: Sequence[str] = (), **options: Any) -> "SingleFrame":
    """A freshly initialised CNN; with `class_names` it has a head."""
    return SingleFrame(name, spec, tuple(class_names), **{**VARIANTS[name], **options})


class Residual(nn.Module):
    """Two 3x3 convolutions with a shortcut; halves the picture and doubles the channels where asked (He et al. 2016)."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(8, width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(8, width_out)
        self.shortcut = nn.Conv2d(width_in, width_out, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class SingleFrame(Model):
    """GroupNorm instead of BatchNorm: a frame's answer does not depend on the other frames of the batch."""

    tubelet = (1, 1, 1)

    def __init__(self, name: str, spec: ClipSpec, class_names: tuple[str, ...] = (), *, width: int, stages: int) -> None:
        super().__init__()
        self.name, self.spec, self.class_names = name, spec, class_names
        self.options: dict[str, Any] = dict(width=width, stages=stages)
        self.depth, self.width = stages, width * 2 ** (stages - 1)
        self.stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        widths = [width * 2**i for i in range(stages)]
        self.blocks = nn.ModuleList(
            Residual(widths[max(0, i - 1)], widths[i], stride=1 if i == 0 else 2) for i in range(stages)
        )
        if class_names:
            self.head = nn.Linear(self.width, len(class_names))
        self.init_weights()

    def init_weights(self) -> None:
        """Kaiming for convolutions, 1 and 0 for norms, a small head."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.GroupNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        if self.class_names:
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        """frames (B,T,C,H,W) 0..255 -> "tokens" (B,T,D), one a frame; "embedding" (B,D), their mean; "logits" (B,K).

        logits are the log of the frames' averaged probabilities, so that their softmax is that average. In training each
        clip is judged by one of its frames (drawn with torch's generator): the others would teach it nothing new.
        """
        if self.training:
            chosen = share.draw(lambda rows: torch.randint(frames.shape[1], (rows,), device=frames.device), len(frames))
            frames = frames[torch.arange(frames.shape[0], device=frames.device), chosen][:, None]
        b, t = frames.shape[:2]
        x = self.stem(normalize(frames.flatten(0, 1), self.spec.mean, self.spec.std, colour_dim=1))
        for block in self.blocks:
            x = block(x)
        tokens = x.mean(dim=(2, 3)).view(b, t, -1)
        out = {"tokens": tokens, "embedding": tokens.mean(dim=1)}
        if self.class_names:
            out["logits"] = self.head(tokens).log_softmax(dim=-1).logsumexp(dim=1)
        return out

    def depth_of(self, parameter: str) -> int:
        """0 stem, 1..depth blocks, depth+1 head."""
        if parameter.startswith("stem."):
            return 0
        return int(parameter.split(".")[1]) + 1 if parameter.startswith("blocks.") else self.depth + 1

    def receptive_field(self) -> Triple:
        """Of the last residual block."""
        return receptive_field(module for name, module in self.named_modules() if "shortcut" not in name)

    def head_parameters(self) -> list[nn.Parameter]:
        """What stays trainable when everything but the head is frozen."""
        return list(self.head.parameters()) if self.class_names else []
