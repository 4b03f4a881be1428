"""Linear probe: multinomial logistic regression on frozen features, solved to convergence (no learning rate to tune).

N training videos, M questions, D values per feature, K classes.
"""

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tubelet.errors import DataError
from tubelet.evaluate.knn import standardize
from tubelet.records import Example

L2_CHOICES = (1e-3, 1e-2, 1e-1, 1.0)


def fit(features: Tensor, labels: Tensor, classes: int, l2: float, tolerance: float = 1e-7) -> tuple[Tensor, Tensor]:
    """(weight (K,D), bias (K,)) in float64 that minimise mean cross-entropy + l2/2 * |weight|^2; the bias is not
    penalised.

    The same as scikit-learn's LogisticRegression with C = 1 / (N * l2). It stops where no gradient is above `tolerance`.
    """
    features, labels = features.double(), labels.long()
    weight = torch.zeros(classes, features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=500, tolerance_grad=tolerance, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        value = torch.nn.functional.cross_entropy(features @ weight.T + bias, labels) + l2 / 2 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(loss)
    return weight.detach(), bias.detach()


def footage(examples: Sequence[Example]) -> list[str]:
    """What each Example must share a fold with: its group, or else the file that it is a part of."""
    return [example.group or os.path.realpath(example.path) for example in examples]


def folds(labels: Tensor, groups: Sequence[str | None], count: int = 5) -> Tensor:
    """int64 (N,): the fold of each row. One group is never in two folds; rows without a group are one each. They are dealt out
    class by class, a group by the class of its first row."""
    fold = torch.zeros(len(labels), dtype=torch.long)
    place: dict[str, int] = {}
    dealt: dict[int, int] = {}
    for index, (label, group) in enumerate(zip(labels.tolist(), groups, strict=True)):
        if group is None or group not in place:
            fold[index] = dealt.get(label, 0) % count
            dealt[label] = dealt.get(label, 0) + 1
            if group is not None:
                place[group] = int(fold[index])
        else:
            fold[index] = place[group]
    return fold


def choose_l2(features: Tensor, labels: Tensor, classes: int, groups: Sequence[str | None]) -> float:
    """The strength of L2_CHOICES with the lowest cross-validated loss on the training videos; 0.1 where they cannot
    be split."""
    fold = folds(labels, groups)
    used = [f for f in fold.unique() if 0 < int((fold == f).sum()) < len(fold)]
    if len(used) < 2:
        return 0.1
    losses = []
    for l2 in L2_CHOICES:
        total = 0.0
        for f in used:
            train, held = standardize(features[fold != f], features[fold == f])
            weight, bias = fit(train, labels[fold != f], classes, l2, tolerance=1e-4)  # enough to compare strengths
            total += float(torch.nn.functional.cross_entropy(held @ weight.T + bias, labels[fold == f], reduction="sum"))
        losses.append(total)
    return L2_CHOICES[losses.index(min(losses))]


def linear_probe(
    features: Tensor,
    labels: Tensor,
    questions: Tensor,
    classes: int,
    l2: float | None = None,
    groups: Sequence[str | None] | None = None,
) -> Tensor:
    """float64 (M,K) probabilities of the questions (M,D), from a probe fitted on features (N,D) with labels (N,): see
    `fitted`."""
    return fitted(features, labels, classes, l2, groups)(questions)


def fitted(
    features: Tensor,
    labels: Tensor,
    classes: int,
    l2: float | None = None,
    groups: Sequence[str | None] | None = None,
) -> Callable[[Tensor], Tensor]:
    """What turns questions (M,D) into float64 (M,K) probabilities: a probe fitted once on features (N,D) with labels (N,).

    l2 None: chosen by 5-fold cross-validation inside the training videos (by group where groups are known). Features
    are standardised with the training videos' statistics.
    """
    if len(features) == 0:
        raise DataError("the linear probe needs labelled training videos, and got none: give data with a training part")
    labels = labels.long()
    if l2 is None:
        l2 = choose_l2(features, labels, classes, groups if groups is not None else [None] * len(labels))
    weight, bias = fit(standardize(features, features)[0], labels, classes, l2)
    return lambda questions: (standardize(features, questions)[1] @ weight.T + bias).softmax(dim=1)
