"""Classification of clips: cross-entropy, with label smoothing, mixup and CutMix.

B batch, K classes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from tubelet.errors import ConfigError
from tubelet.models._model import Model
from tubelet.records import Batch
from tubelet.train.mixup import mix

NEEDS_LABELS = True


@dataclass(frozen=True)
class ClassifyConfig:
    """How hard the targets are.

    label_smoothing  share of the target that is spread over all classes
    mixup, cutmix    the alpha of Beta(alpha, alpha) by which two clips of a batch are blended or pasted together; 0 is off.
                     CutMix helps on large sets; it can hide the moving part of a clip, so it is off unless asked for
    """

    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"classify.label_smoothing is {self.label_smoothing}: it must be 0 or more and below 1")
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ConfigError(f"classify.{name} is {getattr(self, name)}: it must be 0 (off) or more")


Config = ClassifyConfig


def loss(model: Model, batch: Batch, config: ClassifyConfig, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean cross-entropy against the (soft) targets, and {"accuracy": share of clips whose likeliest target is said}."""
    labels = _labels(batch)
    frames, targets = mix(
        batch.frames, labels, len(model.class_names), config.mixup, config.cutmix, config.label_smoothing, generator
    )
    logits = model(frames)["logits"].float()
    said, wanted = logits.detach().argmax(dim=1), targets.argmax(dim=1)
    return F.cross_entropy(logits, targets), {"accuracy": (said == wanted).float().mean()}


def measure(model: Model, batch: Batch, config: ClassifyConfig, generator: Generator) -> dict[str, Tensor]:
    """{"loss": (B,) cross-entropy with the hard label, "top1": (B,) 1 where the label is said}."""
    labels = _labels(batch)
    logits = model(batch.frames)["logits"].float()
    right = (logits.argmax(dim=1) == labels).to(torch.float32)
    return {"loss": F.cross_entropy(logits, labels, reduction="none"), "top1": right}


def _labels(batch: Batch) -> Tensor:
    if batch.labels is None:
        raise ConfigError("clips without labels cannot be classified: give labelled videos, or use `tubelet pretrain`")
    return batch.labels
