"""Ranks and recalls equal what numpy counts one by one, ties and shared captions included."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.errors import DataError
from tubelet.evaluate import retrieval
from tubelet.records import Example


def reference(scores: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """By sorting: the best right candidate stands in the middle of all wrong ones of its score."""
    places = []
    for row, truth in zip(scores, right, strict=True):
        best = max(score for score, true in zip(row, truth, strict=True) if true)
        wrong = sorted((score for score, true in zip(row, truth, strict=True) if not true), reverse=True)
        first = sum(score > best for score in wrong)
        last = sum(score >= best for score in wrong)
        places.append(1 + (first + last) / 2)
    recalls = {f"recall_at_{k}": np.mean([place <= k for place in places]) for k in (1, 5, 10)}
    return recalls | {"median_rank": np.median(places), "mean_rank": np.mean(places)}


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31), st.booleans())
def test_numbers_are_those_of_numpy(queries: int, candidates: int, seed: int, coarse: bool) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(0, 4, (queries, candidates)) / 2 if coarse else random.standard_normal((queries, candidates))
    right = random.random((queries, candidates)) < 0.3
    right[np.arange(queries), random.integers(0, candidates, queries)] = True
    found = retrieval.numbers(retrieval.ranks(torch.from_numpy(scores), torch.from_numpy(right)), candidates)
    wanted = reference(scores, right)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)
    assert (found["queries"], found["candidates"]) == (queries, candidates)


def test_chance_is_what_random_scores_come_to() -> None:
    random = np.random.default_rng(0)
    right = random.random((6, 14)) < 0.2
    right[:, 3] = True
    found = [reference(random.standard_normal(right.shape), right) for _ in range(4000)]
    chance = retrieval.chance(torch.from_numpy(right))
    for name in ("recall_at_1", "recall_at_5", "recall_at_10", "mean_rank"):
        assert chance[name] == pytest.approx(np.mean([row[name] for row in found]), rel=0.05)
    one = retrieval.chance(torch.eye(100, dtype=torch.bool))
    assert [one[name] for name in ("recall_at_1", "recall_at_5", "recall_at_10", "median_rank", "mean_rank")] == pytest.approx(
        [0.01, 0.05, 0.1, 50.5, 50.5]
    )


@given(st.integers(1, 15), st.integers(1, 30), st.integers(0, 2**31))
def test_chance_is_the_formula_counted_out(queries: int, candidates: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    right = random.random((queries, candidates)) < 0.2
    right[np.arange(queries), random.integers(0, candidates, queries)] = True

    def reached(k: int) -> float:
        return float(np.mean([1 - math.comb(candidates - c, k) / math.comb(candidates, k) for c in right.sum(axis=1).tolist()]))

    found = retrieval.chance(torch.from_numpy(right))
    for k in (1, 5, 10):
        assert found[f"recall_at_{k}"] == pytest.approx(reached(min(k, candidates)))
    middle = next(k for k in range(1, candidates + 1) if reached(k) >= 0.5 - 1e-9)
    even = middle < candidates and abs(reached(middle) - 0.5) < 1e-9
    assert found["median_rank"] == middle + 0.5 * even
    assert found["mean_rank"] == pytest.approx(np.mean([(candidates + 1) / (c + 1) for c in right.sum(axis=1)]))
    assert (found["queries"], found["candidates"]) == (queries, candidates)


def test_chance_of_thousands_of_questions() -> None:
    right = torch.eye(5000, dtype=torch.bool)
    right[:2500, :3] = True
    found = retrieval.chance(right)
    assert found["recall_at_10"] == pytest.approx(
        (
            2497 * (1 - math.comb(4996, 10) / math.comb(5000, 10))
            + 3 * (1 - math.comb(4997, 10) / math.comb(5000, 10))
            + 2500 * 0.002
        )
        / 5000
    )


def test_aligned_pairs_are_all_first_and_equal_scores_are_chance() -> None:
    eye = torch.eye(20)
    assert retrieval.numbers(retrieval.ranks(eye, eye.bool()), 20)["recall_at_1"] == 1
    flat = retrieval.numbers(retrieval.ranks(torch.ones(20, 20), eye.bool()), 20)
    assert (flat["recall_at_1"], flat["recall_at_10"], flat["mean_rank"]) == (0, 0, 10.5)


def test_captions_and_videos_that_belong_to_several() -> None:
    rows = [("a.mp4", "left"), ("b.mp4", "right"), ("a.mp4", "to the left"), ("c.mp4", "right")]
    first, texts, right = retrieval.captions([Example(path, str(i), text=text) for i, (path, text) in enumerate(rows)])
    assert (first, texts) == ([0, 1, 3], ["left", "right", "to the left"])
    assert right.tolist() == [[True, False, True], [False, True, False], [False, True, False]]


def test_nonsense_is_refused() -> None:
    with pytest.raises(DataError, match="no right candidate"):
        retrieval.ranks(torch.zeros(2, 2), torch.tensor([[True, False], [False, False]]))
    with pytest.raises(DataError, match="NaN"):
        retrieval.ranks(torch.full((1, 2), math.nan), torch.tensor([[True, False]]))
