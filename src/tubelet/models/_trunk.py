"""What the deep 3D convolutional families share: a trunk of named layers one after another, and the classifier around it.

B batch, T frames, C colours, D width, K classes; a trunk's map is (B,D,T',H',W'), its N = T'H'W' places are the tokens.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tubelet.errors import CheckpointError, ConfigError
from tubelet.models import _keys
from tubelet.models._conv3d import BatchNorm, receptive_field
from tubelet.models._model import Model
from tubelet.models._tokens import Triple
from tubelet.models._transformer import Dropout
from tubelet.records import ClipSpec
from tubelet.video.normalize import normalize


class Trunk(nn.Sequential):
    """Named layers, (B,3,T,H,W) -> (B,D,T',H',W'): `width` is D, `depth` counts stages, `least` is the smallest clip it takes."""

    width: int
    depth: int
    least: Triple = (1, 1, 1)

    def depth_of(self, parameter: str) -> int:
        """Where a parameter stands: 0 the stem, 1..depth the stages."""
        raise NotImplementedError

    def path(self) -> list[nn.Module]:
        """The layers of the longest way through, in order, for `receptive_field`."""
        return [module for name, module in self.named_modules() if "downsample" not in name]


class TrunkModel(Model):
    """Normalise, trunk, mean over time and place, dropout, head."""

    tubelet = (1, 1, 1)

    def __init__(
        self, name: str, spec: ClipSpec, class_names: tuple[str, ...], trunk: Trunk, dropout: float, options: dict[str, Any]
    ) -> None:
        super().__init__()
        self.name, self.spec, self.class_names = name, spec, class_names
        self.options = {**options, "dropout": dropout}
        self.depth, self.width = trunk.depth, trunk.width
        self.trunk = trunk
        self.dropout = Dropout(dropout)
        self._check(spec.frames, spec.size, spec.size, 3)
        if class_names:
            self.head = nn.Linear(self.width, len(class_names))
        self.init_weights()

    def init_weights(self) -> None:
        """Kaiming for convolutions, 1 and 0 for norms, a small head."""
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, BatchNorm):
                module.reset_parameters()
        if self.class_names:
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        """frames (B,T,C,H,W) 0..255 -> "tokens" (B,N,D) in the order (t, y, x); "embedding" (B,D), their mean; "logits" (B,K).

        ConfigError for clips that the trunk cannot take.
        """
        _, t, c, h, w = frames.shape
        self._check(t, h, w, c)
        x = normalize(frames, self.spec.mean, self.spec.std, colour_dim=2).transpose(1, 2)  # (B,C,T,H,W)
        tokens = self.trunk(x).flatten(2).transpose(1, 2)
        out = {"tokens": tokens, "embedding": tokens.mean(dim=1)}
        if self.class_names:
            out["logits"] = self.head(self.dropout(out["embedding"]))
        return out

    def depth_of(self, parameter: str) -> int:
        """0 stem, 1..depth stages, depth+1 head."""
        return self.trunk.depth_of(parameter[6:]) if parameter.startswith("trunk.") else self.depth + 1

    def receptive_field(self) -> Triple | None:
        """Of the trunk's last layer."""
        return receptive_field(self.trunk.path())

    def head_parameters(self) -> list[nn.Parameter]:
        """What stays trainable when everything but the head is frozen."""
        return list(self.head.parameters()) if self.class_names else []

    def _check(self, frames: int, height: int, width: int, colours: int) -> None:
        t, h, w = self.trunk.least
        if colours != 3 or frames < t or height < h or width < w:
            raise ConfigError(
                f"{self.name} got clips of {frames} frames of {width}x{height} with {colours} colours; it takes 3 colours, {t} or "
                f"more frames and {w}x{h} pixels or more (set clip.frames and clip.size)"
            )


def torchvision_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a trunk and its head as torchvision calls them: without "trunk.", and the head `fc`."""
    return {f"fc.{key[5:]}" if key.startswith("head.") else key.removeprefix("trunk."): value for key, value in state.items()}


def account(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """`state` in the order of `wanted`; CheckpointError naming every missing, left-over and misshapen weight.

    The counters of batch norms, which older files lack and only an unset momentum reads, may be missing.
    """
    left = [key for key in state if key not in wanted]
    problems = [f"left over {key}" for key in left]
    out = {}
    for key, own in wanted.items():
        if key not in state and not key.endswith("num_batches_tracked"):
            problems.append(f"missing {key}{_keys.nearest(key, left)}")
        elif key in state and state[key].shape != own.shape:
            problems.append(f"{key} is {tuple(state[key].shape)}, wanted {tuple(own.shape)}")
        out[key] = state.get(key, own)
    if problems:
        raise CheckpointError(f"these are not the weights {what}: {'; '.join(problems)}")
    return out
