"""Numbers that say how good predictions are. M videos, K classes.

Every function takes `probabilities` float (M,K) and `labels` int (M,), and refuses NaN: a score computed from NaN is
a lie that looks like chance. Ties go to the lower class number everywhere (as torch.argmax does), so that top-1, the
confusion matrix and the per-class table always agree.
"""

import math
from typing import Any

import torch
from torch import Tensor

from tubelet.errors import CheckpointError, DataError


def check(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(float64 probabilities, int64 labels) on the CPU; DataError when nothing or nonsense came, CheckpointError for
    NaN."""
    probabilities, labels = probabilities.detach().cpu().double(), labels.detach().cpu().long()
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise DataError(
            f"got predictions {tuple(probabilities.shape)} and labels {tuple(labels.shape)}: "
            "wanted one row of classes per label"
        )
    if len(labels) == 0:
        raise DataError("no labelled video could be evaluated: a share of nothing is not a number")
    if not torch.isfinite(probabilities).all():
        broken = int((~torch.isfinite(probabilities)).any(dim=1).sum())
        raise CheckpointError(
            f"the model answers NaN or infinity for {broken} of {len(labels)} videos: its weights are broken; "
            "try an earlier checkpoint of the run"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= probabilities.shape[1]:
        raise DataError(
            f"labels reach from {int(labels.min())} to {int(labels.max())}, "
            f"but the model knows {probabilities.shape[1]} classes"
        )
    return probabilities, labels


def ranks(probabilities: Tensor, labels: Tensor) -> Tensor:
    """int64 (M,): how many classes come before the true one (0 = right at the first guess)."""
    probabilities, labels = check(probabilities, labels)
    true = probabilities.gather(1, labels[:, None])
    earlier = torch.arange(probabilities.shape[1])[None] < labels[:, None]
    return ((probabilities > true) | ((probabilities == true) & earlier)).sum(dim=1)


def top_k(probabilities: Tensor, labels: Tensor, k: int) -> float:
    """Share of videos whose true class is among the first min(k, K) guesses."""
    return float((ranks(probabilities, labels) < k).double().mean())


def confusion_matrix(probabilities: Tensor, labels: Tensor) -> Tensor:
    """int64 (K,K): row = true class, column = first guess."""
    probabilities, labels = check(probabilities, labels)
    classes = probabilities.shape[1]
    cells = labels * classes + probabilities.argmax(dim=1)
    return torch.bincount(cells, minlength=classes * classes).view(classes, classes)


def per_class(confusion: Tensor, class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """One row per class: name, videos, correct, accuracy (None where no video has that class) and what it is
    mistaken for."""
    rows = []
    for index, name in enumerate(class_names):
        videos, correct = int(confusion[index].sum()), int(confusion[index, index])
        wrong = confusion[index].clone()
        wrong[index] = 0
        mistaken = class_names[int(wrong.argmax())] if int(wrong.max()) else None
        accuracy = correct / videos if videos else None
        rows.append(
            {"class": name, "videos": videos, "correct": correct, "accuracy": accuracy, "mistaken_for": mistaken}
            | {"mistaken_times": int(wrong.max())}
        )
    return rows


def mean_class_accuracy(confusion: Tensor) -> float:
    """Mean of the accuracies of the classes that have videos: what accuracy would be if all classes were equally
    common."""
    videos = confusion.sum(dim=1)
    present = videos > 0
    return float((confusion.diagonal()[present].double() / videos[present].double()).mean())


def wilson_interval(share: float, count: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """(low, high), the 95 % interval of a share measured on `count` videos (Wilson 1927): honest on small validation
    sets."""
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def score(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """{"top1", "top5", "mean_class_accuracy", "top1_low", "top1_high", "videos"}; top5 is top-min(5, K)."""
    top1 = top_k(probabilities, labels, 1)
    low, high = wilson_interval(top1, len(labels))
    return {
        "top1": top1,
        "top5": top_k(probabilities, labels, 5),
        "mean_class_accuracy": mean_class_accuracy(confusion_matrix(probabilities, labels)),
        "top1_low": low,
        "top1_high": high,
        "videos": len(labels),
    }
