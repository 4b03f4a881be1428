"""Masked feature distillation: hide most tubelets of a clip, predict what frozen teachers make of them (MVD, Wang et al. 2022,
arXiv:2212.04500, section 3.2).

A teacher is any model folder whose tokens lie on a grid: a video model, or an image model that sees the frames one by one. Teachers
see the whole clip, learn nothing and are not saved; every teacher has a decoder of its own in the student, in place of that of
pixels. The teacher "pixels" is the tubelets themselves: then this is masked autoencoding.

How ours differs: a teacher's tokens may lie on another grid than the student's, they are averaged or repeated.

B batch, T frames, C colours, H height, W width, N tokens, M predicted tokens, D width of a teacher.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from tubelet.errors import ConfigError
from tubelet.models._model import Model
from tubelet.models._tokens import gather
from tubelet.objectives.masked import MaskedConfig, distances, masks, over_hidden, target
from tubelet.records import Batch
from tubelet.train.log import say

NEEDS_LABELS = False
PIXELS = "pixels"


@dataclass(frozen=True)
class DistillConfig(MaskedConfig):
    """Who teaches, and what is hidden.

    video_teacher, image_teacher  model folder, run folder or checkpoint of each, or "pixels"; at least one. A teacher of clips of
                                  fewer frames sees the clip in pieces, one of single frames (clip.frames 1) frame by frame
    video_weight, image_weight    how much the loss of each counts
    mask, ratio, decoder_mask, decoder_ratio, loss  as of `masked`
    normalize_target              each token's features are shifted and scaled to mean 0 and variance 1 before they are the target
                                  (of "pixels" as `masked` does it)
    """

    video_teacher: str = ""
    image_teacher: str = ""
    video_weight: float = 1.0
    image_weight: float = 1.0
    SECTION = "distill"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("video_weight", "image_weight"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"distill.{name} is {getattr(self, name)}: it must be above 0; leave a teacher out instead")


Config = DistillConfig


def teachers(config: DistillConfig) -> dict[str, tuple[str, float]]:
    """{"video" or "image": (path, weight)} of those that are given; ConfigError where none is."""
    named = {"video": (config.video_teacher, config.video_weight), "image": (config.image_teacher, config.image_weight)}
    found = {name: (path, weight) for name, (path, weight) in named.items() if path}
    if not found:
        raise ConfigError(
            "distill has no teacher: give a model folder as distill.video_teacher or distill.image_teacher "
            "(on the command line --distill.video-teacher PATH)"
        )
    return found


def options(config: DistillConfig) -> dict[str, Any]:
    """What a model needs for this objective alone: a decoder for the features of every teacher, none for pixels.

    The width of "pixels" is 0 here: a model puts its own number of values in.
    """
    widths = {name: 0 if path == PIXELS else _load(path, "cpu").width for name, (path, _) in teachers(config).items()}
    return {"teachers": widths, "decoder": False}


def facts(config: DistillConfig) -> dict[str, Any]:
    """{"teachers": the fingerprint of each by its path}."""
    from tubelet.features import fingerprint

    paths = [path for path, _ in teachers(config).values() if path != PIXELS]
    return {"teachers": {path: fingerprint(_load(path, "cpu")) for path in paths}}


def prepare(model: Model, clips: Iterator[Batch], config: DistillConfig, generator: Generator) -> None:
    """Nothing is learned; it says how the teachers' tokens come to the student's grid, where they do not lie on it."""
    for path, _ in teachers(config).values():
        if path != PIXELS:
            teacher = _load(path, "cpu")
            pieces = model.spec.frames // teacher.spec.frames
            grid = (pieces * teacher.grid[0], *teacher.grid[1:])
            if grid != model.grid:
                theirs, ours = ("x".join(map(str, one)) for one in (grid, model.grid))
                say(f"{path}: its {theirs} tokens of a clip are averaged or repeated to the student's {ours}")


def loss(model: Model, batch: Batch, config: DistillConfig, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of the teachers' losses, and {"<teacher>_loss": not weighted} where there are several."""
    found = measure(model, batch, config, generator)
    total = found.pop("loss").mean()
    return total, {name: values.detach().mean() for name, values in found.items()}


def measure(model: Model, batch: Batch, config: DistillConfig, generator: Generator) -> dict[str, Tensor]:
    """{"loss": (B,)}, each clip's mean distance over its hidden and predicted tokens, and of several teachers "<teacher>_loss"."""
    given = teachers(config)
    at, hidden = masks(model, batch, config, generator)
    out = model(batch.frames, mask=at)
    missing = [name for name in given if f"prediction_{name}" not in out]
    if missing:
        raise ConfigError(
            f"{model.name} has no decoder for the features of the {missing[0]} teacher: pretrain a videomae model without classes"
        )
    losses: dict[str, Tensor] = {}
    for name, (path, _) in given.items():
        if path == PIXELS:
            wanted = target(batch.frames, at.predicted, model.tubelet, config.normalize_target)
        else:
            wanted = gather(features(path, batch.frames, model), at.predicted)
            if config.normalize_target:
                wanted = F.layer_norm(wanted, wanted.shape[-1:])
        losses[name] = over_hidden(distances(out[f"prediction_{name}"], wanted, config), hidden)
    terms = [weight * losses[name] if weight != 1 else losses[name] for name, (_, weight) in given.items()]
    total = sum(terms[1:], start=terms[0])
    return {"loss": total} | ({f"{name}_loss": value for name, value in losses.items()} if len(losses) > 1 else {})


@torch.no_grad()
def features(path: str, frames: Tensor, student: Model) -> Tensor:
    """float32 (B,N,D): the tokens of the teacher at `path` of clips (B,T,C,H,W), on the student's grid.

    A teacher of fewer frames sees consecutive pieces; of another size, resized frames. Where its grid is finer than the student's
    its tokens are averaged, where it is coarser repeated.
    """
    teacher = _load(path, str(frames.device))
    _check(teacher, path, student)
    b, t = frames.shape[:2]
    spec = teacher.spec
    pieces = frames.reshape(b * (t // spec.frames), spec.frames, *frames.shape[2:])
    if pieces.shape[-1] != spec.size:
        flat = pieces.flatten(0, 1).float()
        flat = F.interpolate(flat, size=(spec.size, spec.size), mode="bilinear", antialias=True, align_corners=False)
        pieces = flat.view(*pieces.shape[:3], spec.size, spec.size)
    tokens = teacher(pieces)["tokens"].float()  # (B * pieces, N', D)
    cube = tokens.view(b, -1, *teacher.grid[1:], tokens.shape[2]).permute(0, 4, 1, 2, 3)  # (B,D,slots,rows,columns)
    return F.adaptive_avg_pool3d(cube, student.grid).flatten(2).transpose(1, 2)


def _check(teacher: Model, path: str, student: Model) -> None:
    """ConfigError for a teacher that cannot be shown the student's clips."""
    frames, background = student.spec.frames, student.spec.background
    if not hasattr(teacher, "grid"):
        raise ConfigError(
            f"the teacher {path} is a {teacher.name}, whose tokens lie on no grid: take a Transformer, such as videomae"
        )
    if frames % teacher.spec.frames:
        raise ConfigError(
            f"the teacher {path} sees {teacher.spec.frames} frames, which do not divide the {frames} of a clip: set --clip.frames"
        )
    if background != teacher.spec.background:
        raise ConfigError(
            f"the teacher {path} was taught with clip.background {teacher.spec.background!r}, the clips are cut with "
            f"{background!r}: set --clip.background {teacher.spec.background}"
        )


def _load(path: str, device: str) -> Model:
    """The frozen teacher, loaded once for each device."""
    return _loaded(str(Path(path).resolve()) if Path(path).exists() else path, device)


@lru_cache(maxsize=4)
def _loaded(path: str, device: str) -> Model:
    from tubelet.weights.load import load_model

    return load_model(path, device).eval().requires_grad_(False)
