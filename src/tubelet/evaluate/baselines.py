"""What a result must beat: always the commonest class, chance, and the same model without pretraining on the same
budget."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet import models
from tubelet.errors import ConfigError
from tubelet.models._model import Model


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
    """The same encoder with fresh random weights, in eval mode on the same device: the floor for frozen features."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin = models.build_like(model, class_names=())
    return twin.eval().to(next(model.parameters()).device)


def random_initialisation(run_folder: str | Path) -> Path:
    """Train the run in `run_folder` again from random weights, all other settings equal; gives the folder of that run.

    It lives in RUN/random_init. Interrupted, it resumes; finished, nothing is trained. ConfigError when the folder
    holds no run that could be repeated.
    """
    from tubelet.train.config import TrainConfig
    from tubelet.train.loop import train

    folder = Path(run_folder)
    if not (folder / "config.yaml").is_file():
        raise ConfigError(
            f"{folder} holds no config.yaml, so its training cannot be repeated from random weights: "
            "give the run folder, or --no-baseline"
        )
    config = TrainConfig.from_yaml(folder / "config.yaml")
    return train(dataclasses.replace(config, init=None, out=str(folder / "random_init")))
