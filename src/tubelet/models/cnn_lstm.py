"""CNN and LSTM: long-term recurrent convolutional networks (Donahue et al. 2015).

A picture network turns every frame into a feature, or a 3D one every short window of frames (Baccouche et al. 2011), and an LSTM
reads the features in order. Many-to-one: its last state is classified. Many-to-many: every state is, which gives a label for
each frame that knows nothing of the frames to come, and the probabilities are averaged for the clip.

How ours differs: ResNets where the papers have CaffeNet and a small 3D network.

B batch, T frames, C colours, S steps of the LSTM (T / window), W frames of a window, D width, K classes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from tubelet.errors import ConfigError
from tubelet.find import choose
from tubelet.models import _resnet
from tubelet.models._conv3d import receptive_field
from tubelet.models._model import Model
from tubelet.models._resnet import ResNet
from tubelet.models._resnet3d import ResNet3d
from tubelet.models._tokens import Triple
from tubelet.models._trunk import account
from tubelet.records import ClipSpec
from tubelet.video.normalize import normalize

PAPER = "Donahue et al. 2015, arXiv:1411.4389"

VARIANTS: dict[str, dict[str, Any]] = {
    "cnn_lstm_resnet18": dict(cnn="resnet18", window=1, hidden=256, many_to_many=False),
    "cnn_lstm_resnet50": dict(cnn="resnet50", window=1, hidden=256, many_to_many=False),
    "cnn_lstm_resnet18_per_frame": dict(cnn="resnet18", window=1, hidden=256, many_to_many=True),
    "cnn3d_lstm_resnet18": dict(cnn="resnet18_3d", window=4, hidden=256, many_to_many=False),
}
CLIPS = {"cnn3d_lstm_resnet18": ClipSpec(frames=32, size=112, stride_frames=2)}

CNNS: dict[str, Callable[[int], ResNet | ResNet3d]] = {
    "resnet18": lambda channels: ResNet(18, channels),
    "resnet50": lambda channels: ResNet(50, channels),
    "resnet18_3d": ResNet3d,
}


def build(name: str, spec: ClipSpec, class_names: Sequence[str] = (), **options: Any) -> "CNNLSTM":
    """A freshly initialised model; with `class_names` it has a head."""
    return CNNLSTM(name, spec, tuple(class_names), **{**VARIANTS[name], **options})


class CNNLSTM(Model):
    """cnn is one of CNNS, with `channels` after its stem, and sees `window` frames at a time (1 where it is a picture network).

    hidden is the width of the LSTM and layers how many lie on one another. A frozen CNN keeps its weights and its running
    statistics, and stays in evaluation mode.
    """

    def __init__(
        self, name: str, spec: ClipSpec, class_names: tuple[str, ...] = (), *, cnn: str, window: int, hidden: int,
        many_to_many: bool, channels: int = 64, layers: int = 1, frozen: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.name, self.spec, self.class_names = name, spec, class_names
        self.options: dict[str, Any] = dict(
            cnn=choose(cnn, CNNS, "cnn"), window=window, hidden=hidden, many_to_many=many_to_many, channels=channels,
            layers=layers, frozen=frozen,
        )  # fmt: skip
        self.cnn = CNNS[cnn](channels)
        if window < 1 or (window > 1 and isinstance(self.cnn, ResNet)):
            raise ConfigError(f"{name}: window is {window}; it must be 1 for a picture network ({cnn}), 1 or more for a 3D one")
        self.depth, self.width = 5, hidden  # four stages, and the LSTM
        self._steps(spec.frames, 3)
        self.lstm = nn.LSTM(self.cnn.width, hidden, layers, batch_first=True)
        if class_names:
            self.head = nn.Linear(hidden, len(class_names))
        self.init_weights()
        self.cnn.requires_grad_(not frozen)
        self.train()

    def init_weights(self) -> None:
        """The CNN's; Xavier for what the LSTM takes in, orthogonal from state to state, remembering at first (a bias of 1 to
        forget gates, Jozefowicz et al. 2015); a small head."""
        self.cnn.init_weights()
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("weight_ih"):
                nn.init.xavier_uniform_(parameter)
            elif name.startswith("weight_hh"):
                nn.init.orthogonal_(parameter)
            else:
                nn.init.zeros_(parameter)
            if name.startswith("bias_ih"):
                with torch.no_grad():
                    parameter[self.width : 2 * self.width] = 1  # gates in torch's order: input, forget, cell, output
        if self.class_names:
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        """frames (B,T,C,H,W) 0..255 -> "tokens" (B,S,D), the LSTM's outputs; "embedding" (B,D), the last of them, or
        many-to-many their mean; "logits" (B,K).

        Many-to-many also "frame_logits" (B,S,K), a row a frame (a window where the CNN takes windows); logits are then the log
        of the mean probability.
        """
        b, t, c = frames.shape[:3]
        s = self._steps(t, c)
        x = normalize(frames, self.spec.mean, self.spec.std, colour_dim=2)
        if isinstance(self.cnn, ResNet):
            maps = self.cnn(x.flatten(0, 1))  # (BT,C,H,W) -> (BS,D',H',W')
        else:
            maps = self.cnn(x.unflatten(1, (s, -1)).flatten(0, 1).transpose(1, 2))  # (BS,C,W,H,W) -> (BS,D',W',H',W')
        features = maps.flatten(2).mean(dim=2).view(b, s, -1)
        tokens = self._lstm(features)
        many = self.options["many_to_many"]
        out = {"tokens": tokens, "embedding": tokens.mean(dim=1) if many else tokens[:, -1]}
        if self.class_names and many:
            out["frame_logits"] = self.head(tokens)
            out["logits"] = out["frame_logits"].log_softmax(dim=-1).logsumexp(dim=1) - math.log(s)
        elif self.class_names:
            out["logits"] = self.head(out["embedding"])
        return out

    def _lstm(self, x: Tensor) -> Tensor:
        """(B,S,D') -> (B,S,D). nn.LSTM's own forward reads its weights from a list beside them, which cannot be exported."""
        state = x.new_zeros(self.lstm.num_layers, x.shape[0], self.width)
        weights: list[Tensor] = list(self.lstm.parameters())
        out, _, _ = torch.lstm(x, (state, state), weights, True, self.lstm.num_layers, 0.0, self.training, False, True)
        return out

    def train(self, mode: bool = True) -> Self:
        """Training mode, or not; a frozen CNN stays in evaluation mode."""
        super().train(mode)
        if self.options["frozen"]:
            self.cnn.eval()
        return self

    def _steps(self, frames: int, colours: int) -> int:
        """Steps of the LSTM in a clip; ConfigError where it does not divide into windows."""
        window = self.options["window"]
        if frames % window or colours != 3:
            raise ConfigError(
                f"{self.name} got clips of {frames} frames with {colours} colours; it takes 3 colours and frames divisible by "
                f"{window} (set clip.frames, or the model's window)"
            )
        return frames // window

    def depth_of(self, parameter: str) -> int:
        """0 the CNN's stem, 1..4 its stages, 5 the LSTM, 6 the head."""
        if parameter.startswith("cnn."):
            return _resnet.depth_of(parameter.removeprefix("cnn."))
        return self.depth if parameter.startswith("lstm.") else self.depth + 1

    def receptive_field(self) -> Triple:
        """Of the CNN's last map: frames of one window at most. The LSTM then sees all windows up to its own."""
        t, h, w = receptive_field(self.cnn.path())
        return min(t, self.options["window"]), h, w

    def head_parameters(self) -> list[nn.Parameter]:
        """What stays trainable when everything but the head is frozen."""
        return list(self.head.parameters()) if self.class_names else []


def from_image(model: CNNLSTM, state: Mapping[str, Tensor], how: str = "copy") -> dict[str, Tensor]:
    """A state dict for `model` whose CNN is that of pictures, given in torchvision's keys without its head.

    CheckpointError naming every weight that does not fit; ConfigError where the CNN is a 3D one.
    """
    choose(how, ("copy",), "way to begin from an image model")
    if not isinstance(model.cnn, ResNet):
        raise ConfigError(f"the CNN of {model.name} sees {model.options['window']} frames at once: no picture network fits it")
    fitting = account(state, model.cnn.state_dict(), f"of the CNN in {model.name}")
    return model.state_dict() | {f"cnn.{key}": value for key, value in fitting.items()}
