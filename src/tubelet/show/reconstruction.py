"""What a masked autoencoder rebuilds: original, what it was shown, and two reconstructions that say what they are.

A model trained on normalised targets predicts each tubelet with its mean and contrast divided out, so its prediction
alone is not a picture. Two ways to make it one:

target-normalised  the TRUE mean and standard deviation of every masked tubelet are put back. It looks best, and part
                   of what is seen was never predicted.
honest             mean and standard deviation are taken from the nearest visible tubelets; nothing hidden is used.
                   For a model trained on plain pixels it is the prediction itself.

`neighbours` is the honest picture without any network: each hidden tubelet filled with the even colour of its visible
neighbours. A normalised target teaches no brightness, so the honest picture may stay close to it.

T frames, C colours, H height, W width, N tokens, M masked, V visible, P values per token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tubelet import masking
from tubelet.errors import ConfigError
from tubelet.models._model import Model
from tubelet.models._tokens import patchify, unpatchify
from tubelet.show._sheet import Row, pick, sheet, to_png
from tubelet.show.masks import hide

EPS = 1e-6
NEIGHBOURS = 4

ORIGINAL = ("original", "")
MASKED = ("what the model was shown", "")
TARGET = ("reconstruction, target-normalised", "true mean and contrast of every hidden tubelet put back")
HONEST = ("reconstruction, honest", "brightness and contrast guessed from visible neighbours; nothing hidden is used")
HONEST_PIXELS = ("reconstruction, honest", "the model predicts pixels; nothing is put back")


@dataclass(frozen=True)
class Reconstruction:
    """One clip, uint8 (T,C,H,W) each, with PSNR in dB on the masked pixels only.

    `target_normalized` is None for a model trained on plain pixels (there is nothing to put back).
    """

    original: Tensor
    masked: Tensor
    honest: Tensor
    target_normalized: Tensor | None
    mask: Tensor
    psnr: dict[str, float]


def psnr(original: Tensor, rebuilt: Tensor, masked_pixels: Tensor) -> float:
    """Peak signal-to-noise ratio in dB over the masked pixels only; infinite where they are equal.

    original, rebuilt uint8 (T,C,H,W); masked_pixels bool (T,1,H,W) or (T,C,H,W).
    """
    error = (original.double() - rebuilt.double()).square() / 255**2
    mean = error[masked_pixels.expand_as(original)].mean()
    return float(-10 * torch.log10(mean)) if mean > 0 else float("inf")


def neighbour_statistics(visible: Tensor, mask: Tensor, grid: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """(mean, std) of shape (M,1,C) for the masked tokens, guessed from the visible ones alone.

    visible float (V,Q,C), the pixels of the visible tokens. Each guess is the average over the 4 nearest visible tokens
    (distance over slots, rows and columns), weighted by 1/distance^2.
    """
    slots, rows, columns = (torch.arange(n, dtype=torch.float32) for n in grid)
    places = torch.cartesian_prod(slots, rows, columns)  # (N,3)
    distance = torch.cdist(places[mask], places[~mask])
    near, index = distance.topk(min(NEIGHBOURS, distance.shape[1]), dim=1, largest=False)
    weights = (1 / near.square()) / (1 / near.square()).sum(dim=1, keepdim=True)  # (M,k)
    mean, std = visible.mean(dim=1), visible.std(dim=1)  # (V,C)
    guessed_mean, guessed_std = ((values[index] * weights[..., None]).sum(dim=1)[:, None] for values in (mean, std))
    return guessed_mean, guessed_std


@torch.no_grad()
def reconstruct(
    model: Model,
    frames: Tensor,
    mask: Tensor | None = None,
    normalize_target: bool = True,
    kind: str = "tube",
    ratio: float = 0.9,
    seed: int = 0,
) -> Reconstruction:
    """Mask a clip (T,C,H,W) uint8 and let the model fill it in. mask bool (N,), or drawn as `kind` at `ratio`.

    normalize_target says what the model was trained to predict (masked.normalize_target of its run). Raises
    ConfigError for a model without a decoder.
    """
    tubelet = model.tubelet
    grid = (frames.shape[0] // tubelet[0], frames.shape[2] // tubelet[1], frames.shape[3] // tubelet[2])
    if mask is None:
        mask = masking.make(kind, grid, ratio, 1, torch.Generator().manual_seed(seed))[0]
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    out = model(frames[None].to(device), mask=mask[None].to(device))
    model.train(was_training)
    if "prediction" not in out:
        raise ConfigError(
            f"model {model.name!r} has no decoder and cannot reconstruct: give the model of a pretraining run, "
            "not of a fine-tuned one"
        )
    colours = frames.shape[1]
    predicted = out["prediction"][0].float().cpu().unflatten(1, (-1, colours))  # (M,Q,C)
    pixels = patchify(frames[None], tubelet)[0].float().unflatten(1, (-1, colours)) / 255  # (N,Q,C)
    hidden, visible = pixels[mask], pixels[~mask]
    guessed_mean, guessed_std = neighbour_statistics(visible, mask, grid)

    def picture(values: Tensor) -> Tensor:
        filled = pixels.clone()
        filled[mask] = values.clamp(0, 1)
        return unpatchify((filled * 255).round().byte().flatten(1)[None], grid, tubelet)[0]

    made = {"neighbours": picture(guessed_mean.expand_as(hidden))}
    if normalize_target:
        made["target_normalized"] = picture(
            predicted * (hidden.std(dim=1, keepdim=True) + EPS) + hidden.mean(dim=1, keepdim=True)
        )
        made["honest"] = picture(predicted * guessed_std + guessed_mean)
    else:
        made["honest"] = picture(predicted)
    where = unpatchify(mask.view(1, -1, 1).expand(1, -1, tubelet[0] * tubelet[1] * tubelet[2]), grid, tubelet)[0]
    return Reconstruction(
        original=frames,
        masked=hide(frames, mask, grid, tubelet),
        honest=made["honest"],
        target_normalized=made.get("target_normalized"),
        mask=mask,
        psnr={name: psnr(frames, rebuilt, where) for name, rebuilt in made.items()},
    )


def rows(result: Reconstruction) -> list[Row]:
    """The labelled rows of a strip: original, what was shown, target-normalised (where there is one), honest."""
    visible = f"{int((~result.mask).sum())} of {len(result.mask)} tubelets"
    made = [Row(result.original, *ORIGINAL), Row(result.masked, MASKED[0], visible)]
    if result.target_normalized is not None:
        remark = f"{TARGET[1]}  ·  {result.psnr['target_normalized']:.1f} dB on hidden pixels"
        made.append(Row(result.target_normalized, TARGET[0], remark))
    caption, remark = HONEST if result.target_normalized is not None else HONEST_PIXELS
    remark += f"  ·  {result.psnr['honest']:.1f} dB, neighbours alone {result.psnr['neighbours']:.1f} dB"
    return [*made, Row(result.honest, caption, remark)]


def strip(result: Reconstruction, seconds: Tensor | None = None, shown: int = 8) -> bytes:
    """PNG: the rows of a reconstruction, `shown` frames of each; seconds float (T,) head the columns."""
    chosen = pick(len(result.original), shown)
    columns = [] if seconds is None else [f"{float(seconds[i]):.2f} s" for i in chosen]
    return to_png(sheet([Row(row.frames[chosen], row.caption, row.remark) for row in rows(result)], columns))


def animation(result: Reconstruction, least_pixels: int = 160) -> Tensor:
    """uint8 (T,C,H',W'): the same, moving: panels side by side with their names above, ready for write_gif or
    write_video.

    H' and W' are even, as H.264 wants them.
    """
    made = rows(result)
    short = ["original", "shown to the model", "target-normalised", "honest"]
    names = short if len(made) == 4 else [*short[:2], "honest"]
    frames = []
    for t in range(len(result.original)):
        panels = Row(torch.stack([row.frames[t] for row in made]), "")
        picture = sheet([panels], names, least_pixels)
        frames.append(torch.from_numpy(picture).permute(2, 0, 1))
    moving = torch.stack(frames)
    return moving[..., : moving.shape[-2] // 2 * 2, : moving.shape[-1] // 2 * 2]
