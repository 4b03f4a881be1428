"""Several models on the same labelled videos under one budget: `tubelet compare DATA`.

A rung is one line of the table: its name, the model, and a pretrained one to start from, if any.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tubelet import find, models
from tubelet.errors import ConfigError
from tubelet.loading import LoaderConfig
from tubelet.objectives.classify import ClassifyConfig
from tubelet.recipes._budget import epochs_for, fitting_stride
from tubelet.records import ClipSpec, Dataset
from tubelet.train.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig, read_value, with_settings
from tubelet.train.data import absolute
from tubelet.video.augment import AugmentConfig
from tubelet.weights.load import load_model

# What is compared unless something else is asked for, in the order of the table: a variant and the sizes at which two CPU cores
# train it on 16 frames of 64 pixels within minutes. The first is what every other must beat. A variant that is asked for by
# name and stands here has these sizes too.
_VIT = {"width": 96, "depth": 4, "heads": 4, "patch": 8}
LADDER: dict[str, dict[str, Any]] = {
    "single_frame": {"width": 16, "stages": 4},
    "late_fusion_pool_resnet18": {"width": 16},
    "late_fusion_fc_resnet18": {"width": 16, "stages": 3},  # four leave a small picture one place
    "early_fusion_resnet18": {"width": 16},
    "slow_fusion_resnet18": {"width": 16},
    "c3d": {"channels": 16, "hidden": 128},
    "i3d_r50": {"width": 16},
    "r2plus1d_18": {"width": 16},
    "nonlocal_r2plus1d_18": {"net_options": {"width": 16}},
    "two_stream_resnet18": {"width": 16},
    "cnn_lstm_resnet18": {"channels": 16, "hidden": 64},
    "timesformer_base": {**_VIT, "first_values": "mimetic"},
    "vivit_base": _VIT,
    "mvitv2_small": {"width": 24, "heads": 1, "blocks": [1, 2, 2], "kv_stride": 4},
    "swin_tiny": {"width": 24, "heads": 2, "blocks": [2, 2, 2], "window": [4, 4, 4], "first_values": "mimetic"},
    "vjepa2_large": {**_VIT, "pooler_depth": 1, "first_values": "mimetic"},
    "videomae_tiny": {**_VIT, "positions": "3d", "first_values": "mimetic"},
}
OUTSIDE = r"(?![^\[{]*[\]}])"  # of a [list] or a {mapping}
# Settings that the command decides by other means.
DECIDED = {"out": "--out", "objective": "tubelet pretrain", "init": "--init", "model.name": "--models",
           "model.options": "--models NAME:option=value", "optim.epochs": "--clips or --minutes",
           "optim.steps": "--clips or --minutes", "data.train": "the paths of the command"}  # fmt: skip


@dataclass(frozen=True)
class Rung:
    """One of the models that are compared. `name` is that of its folder; `init` is a run or model folder to start from."""

    name: str
    model: ModelConfig
    init: str | None = None


def rungs(chosen: str = "", inits: Sequence[str] = ()) -> list[Rung]:
    """The models meant by "single_frame,wide=videomae_tiny:width=192:depth=6"; all of LADDER for "".

    Each is `[NAME=]VARIANT[:option=value]...`. inits: "NAME=FOLDER", the pretrained model that a rung starts from, which
    decides its variant and options. Raises ConfigError and CheckpointError.
    """
    found = [_rung(word.strip()) for word in re.split("," + OUTSIDE, chosen or ",".join(LADDER))]
    names = [rung.name for rung in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(f"--models names {twice!r} twice: give one of them a name of its own, for example other={twice}")
    for word in inits:
        name, equals, folder = word.partition("=")
        if not equals or not folder:
            raise ConfigError(f"--init is {word!r}, expected NAME=FOLDER with NAME one of {', '.join(names)}")
        place = names.index(find.choose(name, names, "model of --init"))
        network = load_model(folder)
        found[place] = Rung(name, ModelConfig(network.name, dict(network.options)), str(Path(folder).resolve()))
    return found


def _rung(word: str) -> Rung:
    first, *options = re.split(":" + OUTSIDE, word)
    name, equals, variant = first.partition("=")
    variant = find.choose(variant if equals else name, models.variants(), "model", "tubelet models")
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise ConfigError(f"--models has {first!r}: a name is that of a folder, of letters, digits and .+-_")
    sizes = dict(LADDER.get(variant, {}))
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise ConfigError(f"--models has {word!r}: after a colon option=value was expected, got {option!r}")
        key = find.choose(key, models.options_of(variant), f"option of {variant}")
        try:
            sizes[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(
                f"--models has {option!r}, whose value is no YAML: write [1, 2] or {{width: 16}} whole"
            ) from error
    return Rung(name, ModelConfig(variant, sizes))


def ladder(
    data: Sequence[str], out: str, dataset: Dataset, chosen: Sequence[Rung], clips: int | None = None,
    settings: Mapping[str, Any] = {},
) -> list[tuple[str, TrainConfig]]:  # fmt: skip
    """(name, run) of every rung, in `out`/name: the same videos, clips, batches and number of training clips for all.

    clips: how many each is trained on; None: each video 100 times, 20,000 in all at most. settings: dotted, for every run.
    One learning rate for all; a pretrained model gets layer decay.

    Command: `tubelet compare DATA`. Cost: the clips over what `tubelet compare` measures, a few minutes a model on 2 cores.
    """
    for name in settings:
        plain = "model.options" if name.startswith("model.options.") else name
        if plain in DECIDED:
            raise ConfigError(f"{name} is not one setting for all models: use {DECIDED[plain]}")
    frames = read_value(int, settings.get("clip.frames", 16), "clip.frames")
    clip = ClipSpec(frames=frames, sampling=dataset.sampling, size=64, stride_frames=fitting_stride(dataset.examples, frames))
    videos = len(dataset.examples)
    clips = clips or videos * epochs_for(20_000, videos, 1, 1, 100)
    made = []
    for rung in chosen:
        run = TrainConfig(
            out=str(Path(out) / rung.name),
            objective="classify",
            init=rung.init,
            data=DataConfig(train=tuple(data)),
            clip=clip,
            augment=AugmentConfig(flip=dataset.may_flip),
            loader=LoaderConfig(batch_size=32),  # different videos: Transformers learn less of each one twice
            model=rung.model,
            classify=ClassifyConfig(label_smoothing=0.1),
            optim=OptimConfig(lr=1e-3, min_lr=1e-5, steps=1, warmup="10%", clip_gradient=1.0, betas=(0.9, 0.999),
                              layer_decay=0.75 if rung.init else 1.0),
            run=RunConfig(validations=5),
        )  # fmt: skip
        run = with_settings(run, settings)
        steps = math.ceil(clips / run.clips_per_step)
        made.append((rung.name, replace(run, data=absolute(run.data), optim=replace(run.optim, steps=steps))))
    return made
