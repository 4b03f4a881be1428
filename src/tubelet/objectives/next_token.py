"""Next-token prediction: the encoder reads a clip as discrete tokens, in the order t, y, x, and tells each from those before it.

The tokens are those of a codebook (`models/_codebook.py`): every tubelet stands for the nearest of `vocabulary` tubelets, which
k-means finds among the clips of training before the first step and which the model keeps. A token goes into the encoder as the
pixels of its codeword, so the encoder is the one that masking, captions and fine-tuning teach; only attention is causal.

B batch, T slots, S tokens of a slot, N tokens, P values of a token, W words of the vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from tubelet.errors import ConfigError
from tubelet.models._model import Model
from tubelet.models._tokens import patchify
from tubelet.records import Batch
from tubelet.train.log import say

NEEDS_LABELS = False


@dataclass(frozen=True)
class NextTokenConfig:
    """The vocabulary, and how it is found.

    vocabulary  number of different tokens; to guess among them costs ln(vocabulary)
    samples     tubelets of training clips that the codebook is made from
    iterations  of k-means at most
    """

    vocabulary: int = 512
    samples: int = 20_000
    iterations: int = 20

    def __post_init__(self) -> None:
        for name, low in (("vocabulary", 2), ("samples", self.vocabulary), ("iterations", 1)):
            if getattr(self, name) < low:
                what = " (next_token.vocabulary, one sample a word)" if name == "samples" else ""
                raise ConfigError(f"next_token.{name} is {getattr(self, name)}: it must be {low} or more{what}")


Config = NextTokenConfig


def options(config: NextTokenConfig) -> dict[str, Any]:
    """What a model needs for this objective alone: a vocabulary, and no decoder."""
    return {"vocabulary": config.vocabulary, "decoder": False}


def prepare(model: Model, clips: Iterator[Batch], config: NextTokenConfig, generator: Generator) -> None:
    """Fit the codebook on tubelets of training clips, at most a quarter of the tubelets of a clip; one that came with the model
    stays. It says how well the words stand for the tubelets."""
    vocabulary = _of(model).vocabulary
    if vocabulary.codebook.any():
        return
    found: list[Tensor] = []
    held = 0
    for batch in clips:
        for frames in batch.frames:
            tubelets = patchify(frames[None], model.tubelet)[0]
            some = torch.randperm(len(tubelets), generator=generator)[: max(1, len(tubelets) // 4)]
            found.append(tubelets[some])
            held += len(some)
        if held >= config.samples:
            break
    if not found:
        return  # not one clip could be read: the run will say so
    samples = torch.cat(found)[: config.samples]
    error = vocabulary.fit(samples, config.iterations, generator)
    spread = float((samples.float() / 255).var(dim=0, unbiased=False).mean())
    say(
        f"{config.vocabulary} codewords from {len(samples):,} tubelets: mean squared error {error:.5f} of pixels in [0,1], "
        f"{error / max(spread, 1e-12):.1%} of their variance"
    )


def loss(model: Model, batch: Batch, config: NextTokenConfig, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean cross-entropy of every token but the first, and {"token_accuracy": share of them that are told}."""
    found = measure(model, batch, config, generator)
    return found["loss"].mean(), {"token_accuracy": found["token_accuracy"].mean()}


def measure(model: Model, batch: Batch, config: NextTokenConfig, generator: Generator) -> dict[str, Tensor]:
    """Of each clip (B,): "loss", the mean cross-entropy of tokens 1..N-1; "token_accuracy", the share of them that are told; and
    "copy_accuracy", the share of the tokens of slots 1..T-1 that are those of the slot before: what anyone could guess."""
    _of(model)
    out = model(batch.frames, next_token=True)
    ids, logits = out["token_ids"], out["token_logits"].float()
    wanted = ids[:, 1:]
    found = {
        "loss": F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none").mean(dim=1),
        "token_accuracy": (logits.detach().argmax(dim=2) == wanted).float().mean(dim=1),
    }
    slots, rows, columns = model.grid
    if slots > 1:
        same = ids[:, rows * columns :] == ids[:, : -rows * columns]
        found["copy_accuracy"] = same.float().mean(dim=1)
    return found


def _of(model: Model) -> Any:
    """The model as one that has a vocabulary; ConfigError where it has none."""
    if getattr(model, "vocabulary", None) is None:
        raise ConfigError(
            f"{model.name} has no vocabulary of tokens: pretrain a videomae model without classes, with the option vocabulary (512)"
        )
    return model
