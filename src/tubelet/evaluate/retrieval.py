"""Does a sentence find its video, and a video its sentence? Recall at 1, 5 and 10, median and mean rank, beside chance.

Every video is a candidate for every caption and the other way round. Several captions of one video are all right for it, and a
caption that several videos share is found with the first of them. Ties are given the middle: a wrong candidate with the very same
score counts half a place, so that a model that says the same of everything has the mean rank of chance and finds nothing first.

M videos, N captions, Q questions, C candidates, E width of the shared space.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.errors import DataError
from tubelet.evaluate.multiview import Looks
from tubelet.models._model import Model
from tubelet.records import Example

AT = (1, 5, 10)
DIRECTIONS = ("text to video", "video to text")


def ranks(scores: Tensor, right: Tensor) -> Tensor:
    """float64 (Q,): for each row of scores (Q,C) the place, from 1, of the best candidate that is right (bool (Q,C)); wrong ones
    with the same score count half. DataError where a row has no right candidate, or a score is NaN."""
    scores = scores.double()
    if not right.any(dim=1).all() or scores.isnan().any():
        raise DataError("a question has no right candidate, or a score is NaN: no rank can be told")
    best = scores.masked_fill(~right, -math.inf).amax(dim=1, keepdim=True)
    wrong = ~right
    before, level = (wrong & (scores > best)).sum(dim=1), (wrong & (scores == best)).sum(dim=1)
    return 1 + before.double() + level.double() / 2


def numbers(found: Tensor, candidates: int) -> dict[str, Any]:
    """recall_at_1, _5 and _10, median_rank, mean_rank, queries and candidates of ranks (Q,). The median of an even number of ranks
    is the mean of the two in the middle."""
    recalls = {f"recall_at_{k}": float((found <= k).double().mean()) for k in AT}
    middle = float(torch.quantile(found.double(), 0.5))
    return recalls | {"median_rank": middle, "mean_rank": float(found.mean()), "queries": len(found), "candidates": candidates}


def chance(right: Tensor) -> dict[str, Any]:
    """The same numbers, expected of random scores without ties: where c of C candidates are right, none of them is among the
    first k with the probability (C-c over k) / (C over k)."""
    candidates, counts = right.shape[1], Counter(right.sum(dim=1).tolist())
    queries = sum(counts.values())

    def reached(k: int) -> float:
        """The share of questions that are expected to have a right one among the first k: (C-c over k) / (C over k), a product."""
        missed = 0.0
        for c, times in counts.items():
            missed += times * math.prod((candidates - k - i) / (candidates - i) for i in range(min(c, candidates)))
        return 1 - missed / queries

    recalls = {f"recall_at_{k}": reached(min(k, candidates)) for k in AT}
    expected = sum(times * (candidates + 1) / (c + 1) for c, times in counts.items()) / queries
    # Of the ranks of all questions together, half are expected to be at most this.
    middle = 1 + bisect_left(range(1, candidates + 1), 0.5 - 1e-9, key=reached)
    even = middle < candidates and abs(reached(middle) - 0.5) < 1e-9
    return recalls | {"median_rank": middle + 0.5 * even, "mean_rank": expected, "queries": queries, "candidates": candidates}


def captions(examples: Sequence[Example]) -> tuple[list[int], list[str], Tensor]:
    """(for each different video the place of its first Example, the different captions, which belong together: bool (M,N))."""
    videos: dict[tuple[Any, ...], int] = {}
    texts: dict[str, int] = {}
    pairs, first = [], []
    for place, example in enumerate(examples):
        part = (example.path, example.start_seconds, example.end_seconds)
        if part not in videos:
            videos[part] = len(videos)
            first.append(place)
        pairs.append((videos[part], texts.setdefault(example.text or "", len(texts))))
    right = torch.zeros(len(videos), len(texts), dtype=torch.bool)
    right[tuple(zip(*pairs, strict=True))] = True
    return first, list(texts), right


def captioned(examples: Sequence[Example]) -> list[Example]:
    """Those with a caption."""
    return [example for example in examples if (example.text or "").strip()]


def rows(model: Model, looks: Looks, weights: str = "this model") -> list[dict[str, Any]]:
    """Four rows: both directions of the model on what it has looked at, and of chance. Each has `query` (the direction), `weights`
    and what `numbers` gives."""
    first, texts, right = captions(looks.examples)
    video = F.normalize(looks.embeddings[first].double(), dim=1)  # (M,E), several views averaged
    scores = video @ model.embed_text(texts).double().cpu().T  # (M,N)
    found = []
    for query, table, matches in zip(DIRECTIONS, (scores.T, scores), (right.T, right), strict=True):
        found.append({"query": query, "weights": weights, **numbers(ranks(table, matches), table.shape[1])})
        found.append({"query": query, "weights": "chance", **chance(matches)})
    return found
