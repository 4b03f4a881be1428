"""k-nearest-neighbour classification of frozen features: no training, so it shows what the features alone know.

N stored videos, M questions, D values per feature, K classes.
"""

import torch
from torch import Tensor

from tubelet.errors import DataError


def standardize(stored: Tensor, questions: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64, shifted and scaled per value by the mean and standard deviation of the STORED features alone.

    Features of masked autoencoders share a large common vector; without this every cosine is close to 1. A value
    that never changes in the stored features says nothing and becomes 0.
    """
    stored, questions = stored.double(), questions.double()
    mean, std = stored.mean(dim=0), stored.std(dim=0, unbiased=False)
    constant = std <= 1e-9 * stored.abs().amax(dim=0).clamp(min=1e-30)
    scale = torch.where(constant, torch.zeros_like(std), 1 / std.clamp(min=1e-300))
    return (stored - mean) * scale, (questions - mean) * scale


def knn(
    stored: Tensor, stored_labels: Tensor, questions: Tensor, classes: int, k: int = 5, temperature: float = 0.07
) -> Tensor:
    """float64 (M,K), rows sum to 1: votes of the k nearest stored videos by cosine, each weighted
    exp(cosine/temperature).

    k is at most N. The weighting is that of Wu et al. 2018 (instance discrimination). Features: float (N,D) and (M,D).
    """
    if len(stored) == 0:
        raise DataError("k-NN needs labelled training videos to compare with, and got none: give data with a training part")
    stored, questions = standardize(stored, questions)
    stored = torch.nn.functional.normalize(stored, dim=1)
    questions = torch.nn.functional.normalize(questions, dim=1)
    cosine, nearest = (questions @ stored.T).topk(min(k, len(stored)), dim=1)  # (M,k)
    weights = ((cosine - cosine[:, :1]) / temperature).exp()
    votes = torch.zeros(len(questions), classes, dtype=torch.float64)
    votes.scatter_add_(1, stored_labels.long()[nearest], weights)
    return votes / votes.sum(dim=1, keepdim=True)
