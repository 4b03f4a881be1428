"""Videos and their captions: symmetric InfoNCE with a learned temperature (CLIP, arXiv:2103.00020, section 2.3), and beside it
video-text matching with hard negatives (ALBEF, Li et al. 2021, arXiv:2107.07651, section 3.2).

The other clips of the batch are the negatives, those of all processes: vectors are gathered, and gradients go back to where they
came from, so that several processes learn what one would.

B clips of this process, G of all processes, E width of the shared space.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from tubelet import share
from tubelet.errors import ConfigError
from tubelet.models._model import Model
from tubelet.records import Batch
from tubelet.seeds import derive
from tubelet.train import parallel

NEEDS_LABELS = False
NEEDS_TEXT = True


@dataclass(frozen=True)
class ContrastiveConfig:
    """What counts as a mismatch.

    same_text_matches  clips with the same caption are not negatives of each other; neither are several clips of one video
    matching           weight of video-text matching beside InfoNCE; 0 leaves it out (model.options.matching gives the model the
                       head that it needs)
    """

    same_text_matches: bool = True
    matching: float = 0.0

    def __post_init__(self) -> None:
        if self.matching < 0:
            raise ConfigError(f"contrastive.matching is {self.matching}: it must be 0 (off) or more, 1 is usual")


Config = ContrastiveConfig


def loss(model: Model, batch: Batch, config: ContrastiveConfig, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean InfoNCE (and matching) loss, and {"recall_at_1": share of clips nearer to their caption than to any other of the batch,
    "temperature": ()}; with matching also "matching_loss" and "matching_accuracy"."""
    found, temperature = _compare(model, batch, config, generator)
    numbers = {name: values.detach().mean() for name, values in found.items() if name != "loss"}
    return found["loss"].mean(), numbers | {"temperature": temperature.detach()}


def measure(model: Model, batch: Batch, config: ContrastiveConfig, generator: Generator) -> dict[str, Tensor]:
    """{"loss": (B,), "recall_at_1": (B,)}, each against the other clips of this batch: `tubelet evaluate` ranks all of them. With
    matching also "matching_loss" and "matching_accuracy"."""
    return _compare(model, batch, config, generator)[0]


def info_nce(scores: Tensor, own: slice = slice(None)) -> Tensor:
    """(B,): the mean of both directions' cross-entropy for the `own` pairs of all.

    scores (G,G), rows are videos, columns texts, pairs lie on the diagonal, -inf is no negative.
    """
    target = torch.arange(len(scores), device=scores.device)[own]
    to_text = F.cross_entropy(scores[own], target, reduction="none")
    to_video = F.cross_entropy(scores.T[own], target, reduction="none")
    return (to_text + to_video) / 2


def _compare(model: Model, batch: Batch, config: ContrastiveConfig, generator: Generator) -> tuple[dict[str, Tensor], Tensor]:
    """(what `measure` gives, the temperature ())."""
    if batch.texts is None:
        raise ConfigError("these clips have no captions: give a table with a column `text` or `caption`")
    own = share.current(len(batch.frames)).rows
    out = model(batch.frames, text=model.tokenize(batch.texts).to(batch.frames.device))
    both = parallel.gather_clips(torch.stack([out["embedding"], out["text"]], dim=1))  # (G,2,E)
    video, text = both.unbind(1)
    names = parallel.gather_clips(torch.tensor([derive(one) for one in batch.texts], device=text.device))
    pair = torch.eye(len(names), dtype=torch.bool, device=text.device)
    same = names[:, None] == names if config.same_text_matches else pair
    scores = (out["scale"] * video @ text.T).masked_fill(same & ~pair, float("-inf"))  # (G,G)
    nearest_other = scores[own].masked_fill(pair[own], float("-inf")).amax(dim=1)
    found = {"loss": info_nce(scores, own), "recall_at_1": (nearest_other < scores.diagonal()[own]).float()}
    if config.matching:
        found |= _matching(model, video, text, scores.masked_fill(same, float("-inf")), own, generator)
        found["loss"] = found["loss"] + config.matching * found["matching_loss"]
    return found, 1 / out["scale"]


def _matching(
    model: Model, video: Tensor, text: Tensor, negatives: Tensor, own: slice, generator: Generator
) -> dict[str, Tensor]:
    """ "matching_loss" (B,): the mean of three binary cross-entropies: a clip with its caption, with a wrong one, and its caption
    with a wrong clip. Which wrong ones is drawn, the likelier the more alike they are. "matching_accuracy" (B,).

    negatives (G,G): the scores, -inf for what is no wrong one. A clip without any is judged with its caption alone.
    """
    if not model.options["matching"]:
        raise ConfigError(
            f"contrastive.matching is on, but {model.name} was built without its head: add --model.options.matching true"
        )
    count = own.stop - own.start
    chance = share.draw(lambda rows: torch.rand(rows, 2, generator=generator), count).to(video.device)
    wrong_text = _drawn(negatives.detach()[own], chance[:, 0])
    wrong_video = _drawn(negatives.detach().T[own], chance[:, 1])
    videos = torch.stack([video[own], video[own], video[wrong_video]], dim=1)  # (B,3,E)
    texts = torch.stack([text[own], text[wrong_text], text[own]], dim=1)
    head: Any = model.matching
    logits = head[0](videos, texts).float()  # (B,3)
    target = torch.tensor([1.0, 0.0, 0.0], device=logits.device).expand_as(logits)
    counted = torch.stack(
        [target[:, 0] == 1, *[some.isfinite().any(dim=1) for some in (negatives[own], negatives.T[own])]], dim=1
    )
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    right = (logits > 0) == (target > 0)
    share_of = counted / counted.sum(dim=1, keepdim=True)
    return {"matching_loss": (each * share_of).sum(dim=1), "matching_accuracy": (right * share_of).sum(dim=1)}


def _drawn(scores: Tensor, chance: Tensor) -> Tensor:
    """int64 (B,): for each row of scores (B,G) a column drawn from their softmax; chance (B,) uniform in [0,1)."""
    sums = scores.double().softmax(dim=1).nan_to_num().cumsum(dim=1)  # nan: a row of nothing but -inf
    return (sums <= chance[:, None] * sums[:, -1:]).sum(dim=1).clamp(max=scores.shape[1] - 1)
