"""What every model has beside what torch gives it, so that its users can be type-checked. docs/add-a-model.md explains it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tubelet.errors import ConfigError
from tubelet.models._tokens import Triple
from tubelet.records import ClipSpec

PRECISIONS = ("fp32", "bf16")  # of inference; see Model.precision


class Model(nn.Module):
    """The interface only: no weights, no forward. A family fills it in.

    options rebuilds the model together with name, spec and class_names; grid (tokens of a clip: slots, rows, columns) and
    grid_of (of any clip) are there where a model can be masked; width is the length of "embedding".
    """

    name: str
    spec: ClipSpec
    class_names: tuple[str, ...]
    options: dict[str, Any]
    depth: int
    width: int
    tubelet: Triple
    grid: Triple
    grid_of: Callable[..., Triple]
    reads_text: bool = False  # whether it has a text encoder

    @property
    def precision(self) -> str:
        """ "bf16" where its weights are bfloat16 (see `weights.load.load_model`), else "fp32"."""
        return "bf16" if next(self.parameters()).dtype == torch.bfloat16 else "fp32"

    def __call__(self, frames: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As torch's; in bf16 what comes out is float32 all the same. ConfigError for what is no batch of clips, whatever the
        family makes of clips."""
        own = f"it was built for {self.spec.frames} frames of {self.spec.size}x{self.spec.size} with 3 colours"
        if frames.ndim != 5:
            one = ", for one clip frames[None]" if frames.ndim == 4 else ""
            raise ConfigError(
                f"{self.name} got frames of shape {tuple(frames.shape)}; it takes clips (batch, frames, colours, height, width)"
                f"{one}; {own}"
            )
        t, c, h, w = frames.shape[1:]
        if min(t, c, h, w) < 1:  # the batch is left alone: to compare it would fix it in an exported graph
            raise ConfigError(
                f"{self.name} got clips of {t} frames of {w}x{h} with {c} colours, which hold nothing; {own} (clip.frames and "
                "clip.size)"
            )
        if self.precision == "fp32":
            return super().__call__(frames, *args, **kwargs)
        with torch.autocast(frames.device.type, torch.bfloat16):  # pixels and position tables meet the weights in their type
            return _widened(super().__call__(frames, *args, **kwargs))

    def init_weights(self) -> None:
        """Set every first value."""
        raise NotImplementedError

    def depth_of(self, parameter: str) -> int:
        """Where a parameter stands: 0 embedding, 1..depth blocks, depth + 1 what follows."""
        raise NotImplementedError

    def receptive_field(self) -> Triple | None:
        """Frames, rows and columns that one value of the last feature map sees, for convolutional families; computed."""
        return None

    def attended_pairs(self) -> int | None:
        """Pairs of a query and a key in one block, for families that attend (in one of each kind where kinds alternate); cls
        tokens are not counted."""
        return None

    def head_parameters(self) -> list[nn.Parameter]:
        """What stays trainable when everything but the head is frozen."""
        raise NotImplementedError

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids int64 (B,L), what `forward` takes as `text`; ConfigError without a text encoder."""
        raise ConfigError(f"{self.name} reads no text: a model that was taught with captions does (`tubelet align`)")

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """float32 (B,width) of unit length, one row a text, in the space of "embedding"; ConfigError without a text encoder."""
        return self.tokenize(texts)  # says so


def _widened(out: Any) -> Any:
    """The same with every bfloat16 tensor as float32."""
    if isinstance(out, dict):
        return {name: _widened(value) for name, value in out.items()}
    return out.float() if isinstance(out, Tensor) and out.dtype == torch.bfloat16 else out
