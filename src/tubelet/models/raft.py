"""RAFT: optical flow refined step by step over the correlation of all pairs of cells (Teed and Deng 2020).

Two encoders turn 8x8 pixels into a cell. Every cell of a frame is compared with every cell of the next one; a convolutional GRU
then looks round the place where the flow so far leads, and corrects the flow, `updates` times. Sizes and names of weights are
torchvision's (raft_large, raft_small), so that its public weights load.

Ours takes a clip and gives the flow of each frame to the next one; every frame is encoded once. Frames whose sides are below 64
pixels or no multiple of 8 are padded with their edge, and the flow is cut again. The paper's network has no classes. Here a
cell's state and flow are a token, and with class names a head judges their mean: RAFT as a motion backbone.

B batch, T frames, P = B(T-1) pairs of frames, H and W pixels, h and w cells, C channels, r radius, D width, K classes.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.errors import CheckpointError, ConfigError
from tubelet.models._conv3d import BatchNorm
from tubelet.models._model import Model
from tubelet.records import ClipSpec
from tubelet.video.normalize import normalize

PAPER = "Teed and Deng 2020, arXiv:2003.12039"
CLASSES = 0  # the published size is that of the network without a head
NOTES = {"raft_large": "211.0 GMAC published: they bring the flow of all 12 updates to full size, here only the last one is"}

# small: bottleneck blocks, no norm in the context encoder, one 3x3 GRU, bilinear upsampling. widths: of the encoders' stages.
VARIANTS: dict[str, dict[str, Any]] = {
    "raft_large": dict(
        small=False, widths=(64, 64, 96, 128), features=256, hidden=128, context=128, radius=4, correlation_widths=(256, 192),
        flow_widths=(128, 64), motion=128, flow_hidden=256,
    ),
    "raft_small": dict(
        small=True, widths=(32, 32, 64, 96), features=128, hidden=96, context=64, radius=3, correlation_widths=(96,),
        flow_widths=(64, 32), motion=82, flow_hidden=128,
    ),
}  # fmt: skip
# Neighbouring frames of a video, values from -1 to 1, of the size for which torchvision prints its cost.
CLIPS = {name: ClipSpec(frames=2, stride_frames=1, size=512, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)) for name in VARIANTS}

CELL = 8  # pixels
LEVELS = 4  # of the correlation pyramid: the smallest frame has 8x8 cells, which the last level makes one


def build(name: str, spec: ClipSpec, class_names: Sequence[str] = (), **options: Any) -> "RAFT":
    """A freshly initialised RAFT; with `class_names` it has a head."""
    return RAFT(name, spec, tuple(class_names), **{**VARIANTS[name], **options})


def conv(width_in: int, width: int, kernel: int, stride: int = 1, norm: type[nn.Module] | None = None) -> nn.Sequential:
    """Convolution (with a bias, even before a norm), norm if any, ReLU."""
    layers: list[nn.Module] = [nn.Conv2d(width_in, width, kernel, stride, kernel // 2)]
    return nn.Sequential(*layers, *([] if norm is None else [norm(width)]), nn.ReLU())


class Residual(nn.Module):
    """Two 3x3 convolutions, or a bottleneck of a quarter of the width, each with a ReLU of its own, and a shortcut."""

    def __init__(self, width_in: int, width: int, stride: int, norm: type[nn.Module] | None, bottleneck: bool) -> None:
        super().__init__()
        if bottleneck:
            self.convnormrelu1 = conv(width_in, width // 4, 1, norm=norm)
            self.convnormrelu2 = conv(width // 4, width // 4, 3, stride, norm)
            self.convnormrelu3: nn.Module = conv(width // 4, width, 1, norm=norm)
        else:
            self.convnormrelu1 = conv(width_in, width, 3, stride, norm)
            self.convnormrelu2 = conv(width, width, 3, norm=norm)
            self.convnormrelu3 = nn.Identity()
        self.downsample = conv(width_in, width, 1, stride, norm)[:-1] if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.convnormrelu3(self.convnormrelu2(self.convnormrelu1(x)))
        return F.relu(self.downsample(x) + y)


class Encoder(nn.Module):
    """Frames (.,3,H,W) -> cells (.,C,h,w)."""

    def __init__(self, widths: Sequence[int], width: int, norm: type[nn.Module] | None, bottleneck: bool) -> None:
        super().__init__()
        stem, one, two, three = widths
        self.convnormrelu = conv(3, stem, 7, 2, norm)
        self.layer1 = self.stage(stem, one, 1, norm, bottleneck)
        self.layer2 = self.stage(one, two, 2, norm, bottleneck)
        self.layer3 = self.stage(two, three, 2, norm, bottleneck)
        self.conv = nn.Conv2d(three, width, 1)

    @staticmethod
    def stage(width_in: int, width: int, stride: int, norm: type[nn.Module] | None, bottleneck: bool) -> nn.Sequential:
        return nn.Sequential(Residual(width_in, width, stride, norm, bottleneck), Residual(width, width, 1, norm, bottleneck))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.layer3(self.layer2(self.layer1(self.convnormrelu(x)))))


def correlate(first: Tensor, second: Tensor) -> list[Tensor]:
    """Dot products of all cells (P,C,h,w) of two frames over sqrt(C): for every cell of the first a map of the second,
    (P*h*w,1,h,w), and that map at a half, a quarter and an eighth of its size (section 3.2)."""
    p, c, h, w = first.shape
    maps = (first.flatten(2).mT @ second.flatten(2) / c**0.5).view(p * h * w, 1, h, w)
    pyramid = [maps]
    for _ in range(LEVELS - 1):
        pyramid.append(F.avg_pool2d(pyramid[-1], 2))
    return pyramid


def look_up(pyramid: Sequence[Tensor], places: Tensor, radius: int) -> Tensor:
    """The correlations round `places` (P,2,h,w; x and y in cells of the second frame): (P, LEVELS * (2r+1)^2, h, w).

    Bilinear between the centres of cells, 0 outside (grid sampling with aligned corners, also where a map is one cell). Of the
    (2r+1)^2 neighbours those of one x follow one another: the weights know them in this order.
    """
    p, _, h, w = places.shape
    offsets = torch.arange(-radius, radius + 1, device=places.device, dtype=places.dtype)
    window = torch.stack(torch.meshgrid(offsets, offsets, indexing="ij"), dim=-1)  # [i,j] = (x offset i, y offset j)
    centres = places.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2)
    found = []
    for level, maps in enumerate(pyramid):
        at = centres / 2**level + window
        size = torch.tensor([maps.shape[3], maps.shape[2]], device=at.device)
        seen = F.grid_sample(maps.float(), (2 * at + 1) / size - 1, align_corners=False)
        found.append(seen.view(p, h, w, -1))
    return torch.cat(found, dim=-1).permute(0, 3, 1, 2)


class MotionEncoder(nn.Module):
    """Correlations and the flow so far -> what the GRU sees of them, the flow itself last."""

    def __init__(self, neighbours: int, correlation: Sequence[int], flow: Sequence[int], width: int) -> None:
        super().__init__()
        self.convcorr1 = conv(neighbours, correlation[0], 1)
        self.convcorr2 = conv(correlation[0], correlation[1], 3) if len(correlation) == 2 else nn.Identity()
        self.convflow1 = conv(2, flow[0], 7)
        self.convflow2 = conv(flow[0], flow[1], 3)
        self.conv = conv(correlation[-1] + flow[1], width - 2, 3)

    def forward(self, correlations: Tensor, flow: Tensor) -> Tensor:
        seen = torch.cat([self.convcorr2(self.convcorr1(correlations)), self.convflow2(self.convflow1(flow))], dim=1)
        return torch.cat([self.conv(seen), flow], dim=1)


class GRU(nn.Module):
    """A gated recurrent unit whose products are convolutions (equations 3 to 6)."""

    def __init__(self, width_in: int, width: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.convz = nn.Conv2d(width + width_in, width, kernel, padding=padding)
        self.convr = nn.Conv2d(width + width_in, width, kernel, padding=padding)
        self.convq = nn.Conv2d(width + width_in, width, kernel, padding=padding)

    def forward(self, hidden: Tensor, x: Tensor) -> Tensor:
        both = torch.cat([hidden, x], dim=1)
        update, keep = self.convz(both).sigmoid(), self.convr(both).sigmoid()
        new = self.convq(torch.cat([keep * hidden, x], dim=1)).tanh()
        return (1 - update) * hidden + update * new


class Recurrent(nn.Module):
    """One GRU of 3x3, or one along the rows and then one along the columns."""

    def __init__(self, width_in: int, width: int, small: bool) -> None:
        super().__init__()
        self.convgru1 = GRU(width_in, width, (3, 3) if small else (1, 5))
        self.convgru2 = None if small else GRU(width_in, width, (5, 1))

    def forward(self, hidden: Tensor, x: Tensor) -> Tensor:
        hidden = self.convgru1(hidden, x)
        return hidden if self.convgru2 is None else self.convgru2(hidden, x)


class FlowHead(nn.Module):
    """The GRU's state -> the change of the flow, in cells."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.conv2(F.relu(self.conv1(hidden)))


class MaskPredictor(nn.Module):
    """The GRU's state -> for every pixel of a cell the weights of the 3x3 cells round it, before softmax."""

    def __init__(self, width_in: int) -> None:
        super().__init__()
        self.convrelu = conv(width_in, 256, 3)
        self.conv = nn.Conv2d(256, 9 * CELL * CELL, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        return 0.25 * self.conv(self.convrelu(hidden))  # the published weights were trained with this factor


def upsample_convex(flow: Tensor, weights: Tensor) -> Tensor:
    """Flow in cells (P,2,h,w) -> in pixels (P,2,H,W): each pixel a convex combination of the 3x3 cells round its own, by the
    softmax of weights (P, 9*8*8, h, w) (section 3.3)."""
    p, _, h, w = flow.shape
    shares = weights.view(p, 1, 9, CELL, CELL, h, w).softmax(dim=2)
    cells = F.unfold(CELL * flow, 3, padding=1).view(p, 2, 9, 1, 1, h, w)
    return (shares * cells).sum(dim=2).permute(0, 1, 4, 2, 5, 3).reshape(p, 2, CELL * h, CELL * w)


class RAFT(Model):
    """`flows` gives all estimates of the flow, coarse to fine; forward, embedding and classes use the last one."""

    tubelet = (2, CELL, CELL)

    def __init__(
        self, name: str, spec: ClipSpec, class_names: tuple[str, ...] = (), *, small: bool, widths: Sequence[int],
        features: int, hidden: int, context: int, radius: int, correlation_widths: Sequence[int], flow_widths: Sequence[int],
        motion: int, flow_hidden: int, updates: int = 12,
    ) -> None:  # fmt: skip
        super().__init__()
        self.name, self.spec, self.class_names = name, spec, class_names
        self.options: dict[str, Any] = dict(
            small=small, widths=list(widths), features=features, hidden=hidden, context=context, radius=radius,
            correlation_widths=list(correlation_widths), flow_widths=list(flow_widths), motion=motion,
            flow_hidden=flow_hidden, updates=updates,
        )  # fmt: skip
        if updates < 1:
            raise ConfigError(f"{name}: updates is {updates}, the flow needs 1 or more (12 in training, 12 to 32 after it)")
        self._check_clip(spec.frames, 3)
        self.hidden, self.radius, self.updates = hidden, radius, updates
        self.depth, self.width = 1, hidden + 2
        self.feature_encoder = Encoder(widths, features, nn.InstanceNorm2d, bottleneck=small)
        self.context_encoder = Encoder(widths, hidden + context, None if small else BatchNorm, bottleneck=small)
        self.update_block = nn.ModuleDict(
            {
                "motion_encoder": MotionEncoder(LEVELS * (2 * radius + 1) ** 2, correlation_widths, flow_widths, motion),
                "recurrent_block": Recurrent(context + motion, hidden, small),
                "flow_head": FlowHead(hidden, flow_hidden),
            }
        )
        self.mask_predictor = None if small else MaskPredictor(hidden)
        if class_names:
            self.head = nn.Linear(self.width, len(class_names))
        self.init_weights()

    def init_weights(self) -> None:
        """Kaiming for the encoders' convolutions, torch's own for the others, 1 and 0 for norms, a small head."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | BatchNorm):
                module.reset_parameters()
        for module in (*self.feature_encoder.modules(), *self.context_encoder.modules()):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if self.class_names:
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        """frames (B,T,C,H,W) 0..255 -> "flow" (B,T-1,2,H,W), in pixels, x then y, of each frame to the next one; "tokens"
        (B,(T-1)hw,D), a cell's state and its mean flow in cells; "embedding" (B,D), their mean; "logits" (B,K)."""
        b, t = frames.shape[:2]
        for cells, hidden in self._refine(frames):  # noqa: B007
            pass  # only the last is wanted, and none of the others is kept
        flow = self._upsample(cells, hidden)
        tokens = torch.cat([hidden, F.avg_pool2d(flow, CELL) / CELL], dim=1)  # (P,D,h,w)
        tokens = tokens.view(b, t - 1, self.width, -1).transpose(2, 3).reshape(b, -1, self.width)
        out = {"flow": self._cut(flow, frames), "tokens": tokens, "embedding": tokens.mean(dim=1)}
        if self.class_names:
            out["logits"] = self.head(out["embedding"])
        return out

    def flows(self, frames: Tensor) -> list[Tensor]:
        """The flow after each update, coarse to fine, each as "flow" of `forward`: use the last."""
        return [self._cut(self._upsample(cells, hidden), frames) for cells, hidden in self._refine(frames)]

    def _refine(self, frames: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """After each update: the flow in cells (P,2,h,w), and the state of the GRU (P,C,h,w)."""
        b, t, c = frames.shape[:3]
        self._check_clip(t, c)
        x = normalize(frames, self.spec.mean, self.spec.std, colour_dim=2).flatten(0, 1)
        x = F.pad(x, self._padding(*frames.shape[3:]), mode="replicate")
        seen = self.feature_encoder(x).unflatten(0, (b, t))
        pyramid = correlate(seen[:, :-1].flatten(0, 1), seen[:, 1:].flatten(0, 1))
        hidden, context = self.context_encoder(x.unflatten(0, (b, t))[:, :-1].flatten(0, 1)).split(
            [self.hidden, self.options["context"]], dim=1
        )
        hidden, context = hidden.tanh(), context.relu()
        rows, columns = (torch.arange(n, device=x.device, dtype=x.dtype) for n in hidden.shape[2:])
        start = torch.stack(torch.meshgrid(columns, rows, indexing="xy"))  # (2,h,w): x, y of every cell
        flow = torch.zeros_like(start).expand(hidden.shape[0], -1, -1, -1)
        for _ in range(self.updates):
            flow = flow.detach()  # gradients go through each update alone (section 3.3)
            correlations = look_up(pyramid, start + flow, self.radius)
            motion = self.update_block["motion_encoder"](correlations, flow)
            hidden = self.update_block["recurrent_block"](hidden, torch.cat([context, motion], dim=1))
            flow = flow + self.update_block["flow_head"](hidden)
            yield flow, hidden

    def _upsample(self, cells: Tensor, hidden: Tensor) -> Tensor:
        """Flow in cells (P,2,h,w) -> in pixels (P,2,H,W), of the padded frames."""
        if self.mask_predictor is not None:
            return upsample_convex(cells, self.mask_predictor(hidden).to(cells.dtype))
        return CELL * F.interpolate(cells, scale_factor=CELL, mode="bilinear", align_corners=True)

    def _cut(self, flow: Tensor, frames: Tensor) -> Tensor:
        """Flow (P,2,H,W) of padded frames -> (B,T-1,2,H,W) of the frames as they came."""
        b, t, _, height, width = frames.shape
        left, _, top, _ = self._padding(height, width)
        return flow[:, :, top : top + height, left : left + width].unflatten(0, (b, t - 1))

    @staticmethod
    def _padding(height: int, width: int) -> tuple[int, int, int, int]:
        """Pixels to add at the left, right, top and bottom."""
        rows, columns = (max(-n % CELL, CELL * 2 ** (LEVELS - 1) - n) for n in (height, width))
        return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2

    def _check_clip(self, frames: int, colours: int) -> None:
        if frames < 2 or colours != 3:
            raise ConfigError(
                f"{self.name} got clips of {frames} frame{'s' * (frames != 1)} with {colours} colours; flow needs 3 colours and "
                "2 frames or more (set clip.frames)"
            )

    def depth_of(self, parameter: str) -> int:
        """0 the encoders, 1 what refines the flow, 2 the head."""
        return (
            0 if parameter.startswith(("feature_encoder.", "context_encoder.")) else 2 if parameter.startswith("head.") else 1
        )

    def attended_pairs(self) -> int:
        """Pairs of cells that are correlated."""
        left, right, top, bottom = self._padding(self.spec.size, self.spec.size)
        cells = (self.spec.size + top + bottom) * (self.spec.size + left + right) // CELL**2
        return (self.spec.frames - 1) * cells**2

    def head_parameters(self) -> list[nn.Parameter]:
        """What stays trainable when everything but the head is frozen."""
        return list(self.head.parameters()) if self.class_names else []


# Weight-key maps -----------------------------------------------------------------------------------------------------


def from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of torchvision's raft_large or raft_small, in our layout, which is the same but for a head.

    CheckpointError naming every key that is missing, left over or of another shape.
    """
    name = "raft_large" if any(key.startswith("mask_predictor.") for key in state) else "raft_small"
    with torch.device("meta"):
        own = build(name, CLIPS[name]).state_dict()
    problems = [f"missing {key}" for key in own if key not in state] + [f"left over {key}" for key in state if key not in own]
    problems += [
        f"{key} is {tuple(state[key].shape)}, wanted {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if problems:
        raise CheckpointError(f"the weights are not torchvision's {name}: {'; '.join(problems)}")
    return dict(state)
