"""Masked autoencoding: hide most tubelets of a clip, predict their pixels (VideoMAE, arXiv 2203.12602, section 3.2).

B batch, T frames, C colours, H height, W width, N tokens, M predicted tokens, P values of a token, K pixels of a token.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from tubelet import masking, share
from tubelet.errors import ConfigError
from tubelet.find import choose
from tubelet.models._model import Model
from tubelet.models._tokens import Places, Triple, gather, on, patchify, places
from tubelet.records import Batch

NEEDS_LABELS = False


class _SquaredError(torch.autograd.Function):
    """Mean of (prediction - wanted)^2 over the last dimension, as F.mse_loss and mean would give it.

    Those two hold six tensors of the prediction's size on the way forward and back, where a step's memory peaks; this two.
    """

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, wanted: Tensor) -> Tensor:
        difference = prediction - wanted
        ctx.save_for_backward(difference)
        ctx.dtype = prediction.dtype
        return torch.linalg.vector_norm(difference, dim=-1).square() / difference.shape[-1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        scale = gradient * (2 / difference.shape[-1])
        return torch.mul(difference, scale[..., None], out=torch.empty_like(difference, dtype=ctx.dtype)), None


# (prediction, wanted), both (B,M,P) -> (B,M)
DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": _SquaredError.apply,
    "l1": lambda prediction, wanted: F.l1_loss(prediction.float(), wanted, reduction="none").mean(dim=2),
    "smooth_l1": lambda prediction, wanted: F.smooth_l1_loss(prediction.float(), wanted, reduction="none").mean(dim=2),
}


@dataclass(frozen=True)
class MaskedConfig:
    """What is hidden and how a prediction is judged.

    mask, ratio       which tokens the encoder does not see (a name in `masking.KINDS`) and which part of them
    decoder_mask      "" reconstructs every hidden token; "running_cell" (VideoMAE V2) leaves `decoder_ratio` of all tokens
    decoder_ratio     out of the reconstruction, which makes the decoder cheaper
    loss              "mse", "l1" or "smooth_l1"
    normalize_target  each hidden tubelet's pixels are normalised per colour before they are the target; this learns better
                      features, but the model never learns brightness
    """

    mask: str = "tube"
    ratio: float = 0.9
    decoder_mask: str = ""
    decoder_ratio: float = 0.5
    loss: Literal["mse", "l1", "smooth_l1"] = "mse"
    normalize_target: bool = True
    SECTION = "masked"

    def __post_init__(self) -> None:
        choose(self.mask, masking.KINDS, "mask")
        if self.decoder_mask:
            choose(self.decoder_mask, masking.KINDS, "decoder mask")
        choose(self.loss, DISTANCES, "masked loss")
        for name in ("ratio", "decoder_ratio"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(
                    f"{self.SECTION}.{name} is {getattr(self, name)}: it must lie between 0 and 1, for example 0.9"
                )


Config = MaskedConfig


def loss(model: Model, batch: Batch, config: MaskedConfig, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean distance between predicted and true values of the hidden tokens, and {} (the loss says it all)."""
    return measure(model, batch, config, generator)["loss"].mean(), {}


def measure(model: Model, batch: Batch, config: MaskedConfig, generator: Generator) -> dict[str, Tensor]:
    """{"loss": (B,)}, each clip's mean distance over its hidden and reconstructed tokens. The masks come from `generator`."""
    at, hidden = masks(model, batch, config, generator)
    out = model(batch.frames, mask=at)
    if "prediction" not in out:
        raise ConfigError(f"{model.name} has no decoder to predict hidden pixels with: pretrain a model without classes")
    wanted = target(batch.frames, at.predicted, model.tubelet, config.normalize_target)
    return {"loss": over_hidden(distances(out["prediction"], wanted, config), hidden)}


def masks(model: Model, batch: Batch, config: MaskedConfig, generator: Generator) -> tuple[Places, Tensor | None]:
    """(which tokens of a batch are seen and which predicted, bool (B,M) which of these the encoder does not see or None where it
    sees none), drawn."""
    if not hasattr(model, "grid"):
        raise ConfigError(f"{model.name} has no tokens that could be hidden: pretrain a videomae model")

    def drawn(kind: str, ratio: float) -> Tensor:
        return share.draw(lambda rows: masking.make(kind, model.grid, ratio, rows, generator), len(batch.frames))

    mask, device = drawn(config.mask, config.ratio), batch.frames.device
    if not config.decoder_mask:
        return places(mask).to(device), None
    at = places(mask, drawn(config.decoder_mask, config.decoder_ratio))
    # The running cell also reconstructs tokens that the encoder saw: they teach nothing and are not counted.
    return at.to(device), on(device, gather(mask, at.predicted))


def over_hidden(distance: Tensor, hidden: Tensor | None) -> Tensor:
    """(B,): the mean over hidden tokens of the distances (B,M) of predicted ones."""
    if hidden is None:
        return distance.mean(dim=1)
    return (distance * hidden).sum(dim=1) / hidden.sum(dim=1).clamp(min=1)


def target(frames: Tensor, predicted: Tensor, tubelet: Triple, normalize: bool) -> Tensor:
    """What the predicted tokens should be: float32 (B,M,P), values in the order (t, y, x, colour).

    frames (B,T,C,H,W) 0..255, predicted int64 (B,M). Pixels in [0,1]; with `normalize`, (x - mean) / (std + 1e-6) per tubelet
    and colour over its K pixels, with the unbiased variance taken in a second pass, as the original implementation does.
    """
    tokens = gather(patchify(frames, tubelet), predicted).float().div_(255)
    if not normalize:
        return tokens
    # In place and a row of the tubelet at a time: a new tensor for every step, or runs of three values, take three times as long.
    colours, width = frames.shape[2], tubelet[2]
    rows, pixels = tokens.unflatten(2, (-1, width * colours)), tokens.unflatten(2, (-1, colours))  # views; (B,M,K,C)
    rows.sub_(pixels.mean(dim=2, keepdim=True).repeat(1, 1, 1, width))
    deviation = torch.linalg.vector_norm(pixels, dim=2, keepdim=True) / (pixels.shape[2] - 1) ** 0.5
    rows.div_((deviation + 1e-6).repeat(1, 1, 1, width))
    return tokens


def distances(prediction: Tensor, wanted: Tensor, config: MaskedConfig) -> Tensor:
    """(B,M): the mean distance of each token's P values, in float32."""
    return DISTANCES[config.loss](prediction, wanted)
