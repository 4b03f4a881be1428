"""Convolutional networks that differ in where they join the frames (Karpathy et al. 2014): what a video model must beat.

single_frame       a picture network judges every frame alone; the frames' probabilities are averaged
late_fusion_pool   the same network; the frames' features are averaged, then classified
late_fusion_fc     the same network; a fully connected layer sees the maps of all frames at once
early_fusion       all frames are stacked as colours: the first convolution joins them, and time is gone
slow_fusion        every convolution also reaches over time, so that the frames are joined step by step (a 3D CNN)

Whatever the first two get right can be told without motion: shuffling the frames changes nothing. Each comes in several sizes:
"toy", two convolutions that can be followed by hand; ResNet-18 and 50; and `single_frame` itself, a small residual network.

How ours differs: the paper's networks are AlexNets, on two frames where they fuse late; slow fusion is the 3D ResNet-18 of Tran
et al. 2018 (or its bottleneck kin with 50 layers), whose stages reach over time where the paper's first three layers do.

B batch, T frames, C colours, D width, K classes, N tokens; H' and W' rows and columns of the last map.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet import share
from tubelet.errors import ConfigError
from tubelet.find import choose
from tubelet.models._conv3d import BatchNorm, output_size, receptive_field
from tubelet.models._model import Model
from tubelet.models._resnet import Point, ResNet
from tubelet.models._resnet3d import ResNet3d
from tubelet.models._tokens import Triple
from tubelet.models._trunk import account
from tubelet.records import ClipSpec
from tubelet.video.normalize import normalize

PAPER = "Karpathy et al. 2014, CVPR"


def build(name: str, spec: ClipSpec, class_names: Sequence[str] = (), **options: Any) -> "Fusion":
    """A freshly initialised CNN; with `class_names` it has a head."""
    return Fusion(name, spec, tuple(class_names), **{**VARIANTS[name], **options})


# Trunks --------------------------------------------------------------------------------------------------------------
# Each gives a stem, its stages and the width of its last map, for pictures of so many colours or, "3d", for clips.

Trunk = tuple[nn.Module, Sequence[nn.Module], int]


class Residual(nn.Module):
    """Two 3x3 convolutions with a shortcut; halves the picture and doubles the channels where asked (He et al. 2016).

    GroupNorm instead of BatchNorm: a frame's answer does not depend on the other frames of the batch.
    """

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(8, width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(8, width_out)
        self.shortcut = Point(width_in, width_out, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def small(colours: int, width: int, stages: int) -> Trunk:
    """Residual blocks on the whole picture: for small ones."""
    stem = nn.Conv2d(colours, width, 3, 1, 1, bias=False)
    widths = [width << i for i in range(stages)]
    return stem, [Residual(widths[max(0, i - 1)], widths[i], stride=1 if i == 0 else 2) for i in range(stages)], widths[-1]


def toy(colours: int, width: int, stages: int) -> Trunk:
    """A convolution, then a pooling over 4x4 and a convolution in each stage."""
    stem = nn.Sequential(nn.Conv2d(colours, width, 3, padding=1), nn.ReLU())
    widths = [width << i for i in range(stages + 1)]
    steps = [nn.Sequential(nn.MaxPool2d(4), nn.Conv2d(a, b, 3, padding=1), nn.ReLU()) for a, b in itertools.pairwise(widths)]
    return stem, steps, widths[-1]


def toy_3d(colours: int, width: int, stages: int) -> Trunk:
    """The toy whose kernels and poolings reach over time as far as over the picture."""
    stem = nn.Sequential(nn.Conv3d(colours, width, 3, padding=1), nn.ReLU())
    widths = [width << i for i in range(stages + 1)]
    steps = [nn.Sequential(nn.MaxPool3d(4), nn.Conv3d(a, b, 3, padding=1), nn.ReLU()) for a, b in itertools.pairwise(widths)]
    return stem, steps, widths[-1]


def resnet18(colours: int, width: int, stages: int) -> Trunk:
    """The first stages of ResNet-18, whose stem shrinks the picture to a quarter."""
    return first_stages(ResNet(18, width, colours), stages)


def resnet50(colours: int, width: int, stages: int) -> Trunk:
    """The first stages of ResNet-50."""
    return first_stages(ResNet(50, width, colours), stages)


def resnet18_3d(colours: int, width: int, stages: int) -> Trunk:
    """The first stages of the 3D ResNet-18; the second to fourth halve time as well."""
    return first_stages(ResNet3d(width), stages)


def resnet50_3d(colours: int, width: int, stages: int) -> Trunk:
    """The first stages of the 3D ResNet-50."""
    return first_stages(ResNet3d(width, 50), stages)


def first_stages(net: ResNet | ResNet3d, stages: int) -> Trunk:
    """Each stage is twice as wide as the one before it."""
    stem = net.stem if isinstance(net, ResNet3d) else nn.Sequential(net.conv1, net.bn1, nn.ReLU(), net.maxpool)
    return stem, [net.layer1, net.layer2, net.layer3, net.layer4][:stages], net.width >> max(0, 4 - stages)


# variant -> how frames are joined, trunk, width of its stem, stages
NETWORKS = {
    "single_frame": ("single", small, 32, 4),
    "single_frame_resnet18": ("single", resnet18, 64, 4),
    "single_frame_resnet50": ("single", resnet50, 64, 4),
    "late_fusion_pool_toy": ("late pool", toy, 12, 1),
    "late_fusion_pool_resnet18": ("late pool", resnet18, 64, 4),
    "late_fusion_pool_resnet50": ("late pool", resnet50, 64, 4),
    "late_fusion_fc_toy": ("late fc", toy, 12, 1),
    "late_fusion_fc_resnet18": ("late fc", resnet18, 64, 4),
    "late_fusion_fc_resnet50": ("late fc", resnet50, 64, 4),
    "early_fusion_toy": ("early", toy, 12, 1),
    "early_fusion_resnet18": ("early", resnet18, 64, 4),
    "early_fusion_resnet50": ("early", resnet50, 64, 4),
    "slow_fusion_toy": ("slow", toy_3d, 12, 1),
    "slow_fusion_resnet18": ("slow", resnet18_3d, 64, 4),
    "slow_fusion_resnet50": ("slow", resnet50_3d, 64, 4),
}
VARIANTS: dict[str, dict[str, Any]] = {name: dict(width=row[2], stages=row[3]) for name, row in NETWORKS.items()}
CLIPS = {name: ClipSpec(frames=20, size=64) for name in VARIANTS if name.endswith("_toy")}
# The paper's two frames, 15 apart: its layer that joins would have 3.3 billion weights for the maps of 16.
CLIPS["late_fusion_fc_resnet50"] = ClipSpec(frames=2, stride_frames=15)
CLIPS |= dict.fromkeys(("slow_fusion_resnet18", "slow_fusion_resnet50"), ClipSpec(frames=16, size=112, stride_frames=1))


class Fusion(Model):
    """A trunk, and one of the five ways to join frames, which is the variant's.

    width is that of the trunk's stem, stages how many follow (4 is all of a ResNet).
    """

    tubelet = (1, 1, 1)

    def __init__(self, name: str, spec: ClipSpec, class_names: tuple[str, ...] = (), *, width: int, stages: int) -> None:
        super().__init__()
        self.name, self.spec, self.class_names = name, spec, class_names
        self.options: dict[str, Any] = dict(width=width, stages=stages)
        self.joins, trunk = NETWORKS[name][:2]
        self.stem, blocks, self.width = trunk(3 * spec.frames if self.joins == "early" else 3, width, max(1, stages))
        if stages != len(blocks):
            raise ConfigError(f"{name}: stages is {stages}, it must be 1 or more and for a ResNet at most 4")
        self.blocks = nn.ModuleList(blocks)
        self.depth = stages
        self._check(spec.frames, 3, spec.size, spec.size)
        if self.joins == "late fc":
            _, rows, columns = output_size(self._path(), (spec.frames, spec.size, spec.size))
            self.fuse = nn.Linear(spec.frames * self.width * rows * columns, self.width)
        if class_names:
            self.head = nn.Linear(self.width, len(class_names))
        self.init_weights()

    def init_weights(self) -> None:
        """Kaiming for convolutions and the layer that joins, 1 and 0 for norms, a small head."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.GroupNorm | BatchNorm):
                module.reset_parameters()
        if self.joins == "late fc":
            nn.init.kaiming_normal_(self.fuse.weight, nonlinearity="relu")
            nn.init.zeros_(self.fuse.bias)
        if self.class_names:
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        """frames (B,T,C,H,W) 0..255 -> "tokens" (B,N,D), "embedding" (B,D), "logits" (B,K).

        A token is a frame, or where frames are joined before the end a place of the last map. The embedding is their mean, and
        with `late_fusion_fc` the output of the layer that joins them.

        single_frame's logits are the log of the frames' averaged probabilities, so that their softmax is that average. In
        training each clip is judged by one of its frames (drawn with torch's generator): the others would teach it nothing new.
        """
        self._check(*frames.shape[1:])
        if self.joins == "single" and self.training:
            chosen = share.draw(lambda rows: torch.randint(frames.shape[1], (rows,), device=frames.device), len(frames))
            frames = frames[torch.arange(frames.shape[0], device=frames.device), chosen][:, None]
        b, t = frames.shape[:2]
        x = normalize(frames, self.spec.mean, self.spec.std, colour_dim=2)
        if self.joins == "early":
            tokens = self._maps(x.flatten(1, 2)).flatten(2).mT  # (B,TC,H,W) -> (B,D,H',W') -> (B,H'W',D)
        elif self.joins == "slow":
            tokens = self._maps(x.transpose(1, 2)).flatten(2).mT  # (B,C,T,H,W) -> (B,D,T',H',W') -> (B,T'H'W',D)
        else:
            maps = self._maps(x.flatten(0, 1)).unflatten(0, (b, t))  # (B,T,D,H',W')
            tokens = maps.mean(dim=(3, 4))  # (B,T,D)
        out = {"tokens": tokens, "embedding": tokens.mean(dim=1)}
        if self.joins == "late fc":
            out["embedding"] = F.relu(self.fuse(maps.flatten(1)))
        if self.class_names and self.joins == "single":
            out["logits"] = self.head(tokens).log_softmax(dim=-1).logsumexp(dim=1)
        elif self.class_names:
            out["logits"] = self.head(out["embedding"])
        return out

    def _maps(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x

    def _check(self, t: int, c: int, h: int, w: int) -> None:
        """ConfigError for clips that do not fit."""
        made_for = (self.spec.frames, self.spec.size, self.spec.size)
        frames, size = "any number of frames", "any size"
        fits = c == 3 and min(output_size(self._path(), (t, h, w))) > 0
        if self.joins in ("early", "late fc"):
            fits, frames = fits and t == made_for[0], f"exactly {made_for[0]} frames"
        if self.joins == "late fc":
            fits, size = fits and (h, w) == made_for[1:], f"exactly {made_for[1]}x{made_for[2]} pixels"
        if not fits:
            smallest = next(n for n in itertools.count(1) if min(output_size(self._path(), (n, n, n))) > 0)
            raise ConfigError(
                f"{self.name} got clips of {t} frames of {w}x{h} with {c} colours; it takes 3 colours, {frames} and {size} from "
                f"{smallest} on (set clip.frames and clip.size, or the model's stages)"
            )

    def _path(self) -> list[nn.Module]:
        """The layers of the longest way through, in order."""
        shortcuts = ("shortcut", "downsample")
        return [module for name, module in self.named_modules() if not any(word in name for word in shortcuts)]

    def depth_of(self, parameter: str) -> int:
        """0 stem, 1..depth blocks, depth+1 what follows."""
        if parameter.startswith("stem."):
            return 0
        return int(parameter.split(".")[1]) + 1 if parameter.startswith("blocks.") else self.depth + 1

    def receptive_field(self) -> Triple:
        """Of the last block, before the mean over all places."""
        field = receptive_field(self._path())
        return (self.spec.frames, *field[1:]) if self.joins == "early" else field

    def head_parameters(self) -> list[nn.Parameter]:
        """What stays trainable when everything but the head is frozen."""
        return list(self.head.parameters()) if self.class_names else []


def from_image(model: Fusion, state: Mapping[str, Tensor], how: str = "copy") -> dict[str, Tensor]:
    """A state dict for `model` whose 2D ResNet begins as that of pictures, given in torchvision's keys without its head.

    how is "copy". Early fusion's first kernel sees every frame with the picture's, divided by their number, so that a clip of equal
    frames gives the picture's map. A layer that joins the frames keeps the model's values.
    CheckpointError naming every weight that does not fit; ConfigError for networks that are no 2D ResNet.
    """
    if NETWORKS[model.name][1] not in (resnet18, resnet50):
        raise ConfigError(f"{model.name} is no 2D ResNet: begin single_frame_resnet18 or another with resnet18 or resnet50")
    choose(how, ("copy",), "way to begin from an image model")
    if model.joins == "early":
        frames = model.spec.frames
        state = {**state, "conv1.weight": (state["conv1.weight"] / frames).repeat(1, frames, 1, 1)}
    own = model.state_dict()
    parts = {"stem.0.": "conv1.", "stem.1.": "bn1.", **{f"blocks.{i}.": f"layer{i + 1}." for i in range(model.depth)}}
    names = {key: new + key.removeprefix(old) for key in own for old, new in parts.items() if key.startswith(old)}
    fitting = account(state, {theirs: own[ours] for ours, theirs in names.items()}, f"of the ResNet in {model.name}")
    return own | {ours: fitting[theirs] for ours, theirs in names.items()}
