"""Two streams: a ResNet that sees single frames and one that sees how pixels move (Simonyan and Zisserman 2014).

spatial: every frame alone, the frames' probabilities averaged; in training one frame of each clip. temporal: the flow from each
frame to the next one, T-1 fields of x and y stacked to 2(T-1) channels (section 3.1). Both: the streams' probabilities averaged
(late fusion); `tubelet.evaluate.linear_svm.fuse` fuses by a linear SVM instead.

Ours differs: ResNets (`_resnet.py`) in the place of CNN-M; the streams are trained together, or each as a model of its own; flow
is computed from the frames that the model gets, after augmentation, so that a mirrored clip moves the other way. One Linear layer
judges both streams, each by its half of the weights; they share the bias.

B batch, T frames, S frames seen by the spatial stream, H height, W width, D width of a stream, K classes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet import share
from tubelet.errors import ConfigError
from tubelet.find import choose
from tubelet.models import _resnet, raft
from tubelet.models._conv3d import receptive_field
from tubelet.models._model import Model
from tubelet.models._tokens import Triple
from tubelet.models._trunk import account
from tubelet.records import ClipSpec
from tubelet.video import flow as classical
from tubelet.video.normalize import normalize

PAPER = "Simonyan and Zisserman 2014, arXiv:1406.2199"

VARIANTS: dict[str, dict[str, Any]] = {"two_stream_resnet18": dict(layers=18), "two_stream_resnet50": dict(layers=50)}
CLIPS = {name: ClipSpec(frames=11, stride_frames=1) for name in VARIANTS}  # ten fields of flow between neighbouring frames

STREAMS = {"both": ("spatial", "temporal"), "spatial": ("spatial",), "temporal": ("temporal",)}
LARGEST_PIXELS = 20.0  # flow is cut to -20..20 pixels and divided by 20


def build(name: str, spec: ClipSpec, class_names: Sequence[str] = (), **options: Any) -> "TwoStream":
    """Freshly initialised streams; with `class_names` they have a head."""
    return TwoStream(name, spec, tuple(class_names), **{**VARIANTS[name], **options})


# An operation of torch's, so that tracing and counting pass by what OpenCV does. An exported program calls it by name: who opens
# one imports this module first (`weights/pt2.py` does), and has OpenCV.
@torch.library.custom_op("tubelet::classical_flow", mutates_args=())
def classical_flow(frames: Tensor, estimator: str) -> Tensor:
    """float32 (B,T-1,2,H,W) of clips (B,T,3,H,W) with values 0..255, by `tubelet.video.flow`."""
    clips = frames.round().clamp(0, 255).to("cpu", torch.uint8)
    return torch.stack([classical.estimate(clip, estimator) for clip in clips]).to(frames.device)


@classical_flow.register_fake
def _(frames: Tensor, estimator: str) -> Tensor:
    b, t, _, height, width = frames.shape
    return frames.new_empty(b, t - 1, 2, height, width, dtype=torch.float32)


def stack_flow(flow: Tensor) -> Tensor:
    """Flow in pixels (B,T-1,2,H,W) -> (B,2(T-1),H,W): cut to 20 pixels, each field without its mean (which takes out most of the
    camera's own motion, section 3.1), over 20; x and y of one field follow one another (equation 1)."""
    flow = flow.float().clamp(-LARGEST_PIXELS, LARGEST_PIXELS)
    return ((flow - flow.mean(dim=(3, 4), keepdim=True)) / LARGEST_PIXELS).flatten(1, 2)


def _mean_of_logs(logs: Tensor, dim: int) -> Tensor:
    """The logarithm of the mean of what these are the logarithms of."""
    return logs.logsumexp(dim=dim) - math.log(logs.shape[dim])


class TwoStream(Model):
    """estimator is "dis" or "farneback" (OpenCV, extra `[flow]`), or a RAFT that is part of the model and stays as it is:
    "raft_small" or "raft_large", useful once it has weights (`--init-flow FILE`, or `tubelet.weights.flow.begin`).

    width is the number of channels after a ResNet's stem. Of what OpenCV does nothing is counted as GMAC.
    """

    tubelet = (1, 1, 1)

    def __init__(
        self, name: str, spec: ClipSpec, class_names: tuple[str, ...] = (), *, layers: int, streams: str = "both",
        estimator: str = "dis", width: int = 64,
    ) -> None:  # fmt: skip
        super().__init__()
        self.name, self.spec, self.class_names = name, spec, class_names
        self.options: dict[str, Any] = dict(layers=layers, streams=streams, estimator=estimator, width=width)
        self.streams = STREAMS[choose(streams, STREAMS, "streams")]
        choose(estimator, [*classical.ESTIMATORS, *raft.VARIANTS], "flow estimator")
        if layers not in _resnet.BLOCKS:
            raise ConfigError(f"{name}: layers is {layers}, a ResNet has {', '.join(map(str, _resnet.BLOCKS))}")
        if "temporal" in self.streams and spec.frames < 2:
            raise ConfigError(
                f"{name}: there is no flow in clips of 1 frame: set clip.frames to 2 or more, or streams to spatial"
            )
        self.depth = 4
        self.spatial = _resnet.ResNet(layers, width) if "spatial" in self.streams else None
        self.temporal: _resnet.ResNet | None = None
        self.raft: raft.RAFT | None = None
        if "temporal" in self.streams:
            self.temporal = _resnet.ResNet(layers, width, colours=2 * (spec.frames - 1))
            if estimator in raft.VARIANTS:
                clip = ClipSpec(frames=spec.frames, size=spec.size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
                self.raft = raft.build(estimator, clip).requires_grad_(False).eval()
        self.width = sum(stream.width for stream in (self.spatial, self.temporal) if stream is not None)
        if class_names:
            self.head = nn.Linear(self.width, len(class_names))
        self.init_weights()

    def init_weights(self) -> None:
        """As each part says; a small head."""
        for part in (self.spatial, self.temporal, self.raft):
            if part is not None:
                part.init_weights()
        if self.class_names:
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def train(self, mode: bool = True) -> "TwoStream":
        """As torch's; the RAFT within does not train."""
        super().train(mode)
        if self.raft is not None:
            self.raft.eval()
        return self

    def forward(self, frames: Tensor, flow: Tensor | None = None) -> dict[str, Tensor]:
        """frames (B,T,C,H,W) 0..255 -> "tokens" (B,S,width), a frame's feature beside that of the flow (S is 1 without a spatial
        stream, and in training); "embedding" (B,width), their mean; "logits" (B,K), the log of the averaged probabilities.

        flow (B,T-1,2,H,W) in pixels, x then y, of each frame to the next one: estimated where it is not given.
        """
        self._check_clip(frames)
        features = []  # of each stream, (B,S,D)
        if self.spatial is not None:
            features.append(self._see(self.spatial, self._shown(frames)))
        if self.temporal is not None:
            flow = self.flow(frames) if flow is None else flow
            features.append(self._see(self.temporal, stack_flow(flow)[:, None]))
        seen = max(each.shape[1] for each in features)
        tokens = torch.cat([each.expand(-1, seen, -1) for each in features], dim=2)
        out = {"tokens": tokens, "embedding": tokens.mean(dim=1)}
        if self.class_names:
            halves = self.head.weight.split([each.shape[2] for each in features], dim=1)
            judged = [F.linear(each, half, self.head.bias) for each, half in zip(features, halves, strict=True)]
            logs = [_mean_of_logs(each.log_softmax(dim=2), dim=1) for each in judged]
            out["logits"] = _mean_of_logs(torch.stack(logs), dim=0)
        return out

    @torch.no_grad()
    def flow(self, frames: Tensor) -> Tensor:
        """float32 (B,T-1,2,H,W) of frames (B,T,3,H,W) by the model's estimator, in pixels; MissingExtraError without OpenCV."""
        if self.raft is not None:
            return self.raft(frames)["flow"]
        return classical_flow(frames, self.options["estimator"])

    def _shown(self, frames: Tensor) -> Tensor:
        """What the spatial stream sees, (B,S,C,H,W): every frame, in training one of each clip."""
        if self.training:
            chosen = share.draw(lambda rows: torch.randint(frames.shape[1], (rows,), device=frames.device), len(frames))
            frames = frames[torch.arange(len(frames), device=frames.device), chosen][:, None]
        return normalize(frames, self.spec.mean, self.spec.std, colour_dim=2)

    @staticmethod
    def _see(stream: nn.Module, pictures: Tensor) -> Tensor:
        """(B,S,C,H,W) -> the features (B,S,D) of one stream."""
        return stream(pictures.flatten(0, 1)).mean(dim=(2, 3)).unflatten(0, pictures.shape[:2])

    def _check_clip(self, frames: Tensor) -> None:
        _, t, c, height, width = frames.shape
        wanted = self.spec.frames
        if c != 3 or (self.temporal is not None and t != wanted):
            raise ConfigError(
                f"{self.name} got clips of {t} frames of {width}x{height} with {c} colours; it takes 3 colours"
                + (f" and {wanted} frames, {2 * (wanted - 1)} channels of flow" if self.temporal is not None else "")
                + " (set clip.frames when it is built, or streams to spatial)"
            )

    def depth_of(self, parameter: str) -> int:
        """0 the stems and RAFT, 1..4 the ResNets' stages, 5 the head."""
        part, _, rest = parameter.partition(".")
        return 5 if part == "head" else 0 if part == "raft" else _resnet.depth_of(rest)

    def receptive_field(self) -> Triple:
        """Of the ResNets' last stage; the temporal stream sees all frames."""
        stream = self.spatial or self.temporal
        assert stream is not None
        _, rows, columns = receptive_field(stream.path())
        return 1 if self.temporal is None else self.spec.frames, rows, columns

    def head_parameters(self) -> list[nn.Parameter]:
        """What stays trainable when everything but the head is frozen."""
        return list(self.head.parameters()) if self.class_names else []


def from_image(model: TwoStream, state: Mapping[str, Tensor], how: str = "copy") -> dict[str, Tensor]:
    """A state dict for `model` whose streams begin as a picture network, given in torchvision's keys without its head.

    The temporal stream's first kernel is the picture's mean over colours, the same for all channels of flow ("cross-modality"
    initialisation, Wang et al. 2016, arXiv:1608.00859, section 3.2). CheckpointError naming every weight that does not fit.
    """
    choose(how, ("copy",), "way to begin from an image model")
    found = model.state_dict()
    if model.spatial is not None:
        fitting = account(state, model.spatial.state_dict(), f"of the spatial stream of {model.name}")
        found |= {f"spatial.{key}": value for key, value in fitting.items()}
    if model.temporal is not None:
        own = model.temporal.state_dict()
        grey = {"conv1.weight": state["conv1.weight"].mean(dim=1, keepdim=True).repeat(1, own["conv1.weight"].shape[1], 1, 1)}
        fitting = account({**state, **grey}, own, f"of the temporal stream of {model.name}")
        found |= {f"temporal.{key}": value for key, value in fitting.items()}
    return found
