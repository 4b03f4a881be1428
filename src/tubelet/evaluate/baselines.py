"""What a result must beat: always the commonest class, chance, and the same model without pretraining on the same
budget."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet import models
from tubelet.errors import ConfigError
from tubelet.models._model import Model
from tubelet.train.config import TrainConfig


def majority_class(labels: Tensor, classes: int) -> Tensor:
    """float64 (K,): how common each class is among `labels` int (M,). Its largest entry is the majority guess."""
    counts = torch.bincount(labels.long(), minlength=classes).double()
    return counts / counts.sum()


def chance(classes: int) -> dict[str, Any]:
    """The results line of guessing at random: 1/K, and min(5, K)/K within five guesses."""
    top5 = min(5, classes) / classes
    return {
        "name": "chance",
        "weights": "chance",
        "note": f"one of {classes} classes",
        "top1": 1 / classes,
        "top5": top5,
    } | {"mean_class_accuracy": 1 / classes}


def untrained(model: Model, seed: int = 0) -> Model:
    """The same encoder with fresh random weights, in eval mode on the same device and in the same precision: the floor for frozen
    features."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin = models.build_like(model, class_names=())
    twin = twin.eval().to(next(model.parameters()).device)
    return twin.bfloat16() if model.precision == "bf16" else twin


def random_initialisation(run_folder: str | Path) -> Path:
    """Train the run in `run_folder` again from random weights on the same budget; gives the folder of that run.

    It lives in RUN/random_init. Interrupted, it resumes; finished, nothing is read but that folder. ConfigError when
    the folder holds no run that could be repeated.
    """
    from tubelet.train.loop import train

    folder = Path(run_folder)
    if not (folder / "config.yaml").is_file():
        raise ConfigError(
            f"{folder} holds no config.yaml, so its training cannot be repeated from random weights: "
            "give the run folder, or --no-baseline"
        )
    twin = folder / "random_init"
    return twin if (twin / "model" / "config.json").is_file() else train(twin_config(folder))


def twin_config(run_folder: Path) -> TrainConfig:
    """The settings of the run from random initialisation: those it began with, else the run's without what it started from.

    Layer decay goes too: it holds back the lower layers, which helps pretrained weights and hampers random ones.
    """
    twin = run_folder / "random_init"
    if (twin / "config.yaml").is_file():
        return replace(TrainConfig.from_yaml(twin / "config.yaml"), out=str(twin))
    config = TrainConfig.from_yaml(run_folder / "config.yaml")
    return replace(config, init=None, out=str(twin), optim=replace(config.optim, layer_decay=1.0))


def twin_note(run_folder: Path) -> str:
    """What the results table says about the twin: what was the same as in the run, and what was not."""
    mine, twin = TrainConfig.from_yaml(run_folder / "config.yaml").optim, twin_config(run_folder).optim
    if mine.freeze:
        return "frozen random features, only the head was trained"
    if twin.layer_decay < 1:
        held = f"held back by layer decay {twin.layer_decay:g} (to train it without: remove random_init/)"
        return f"the same training without pretraining, {held}"
    instead = f", layer decay 1 in place of {mine.layer_decay:g}" if mine.layer_decay < 1 else ""
    return f"the same training without pretraining{instead}"
