"""Every number is compared with scikit-learn or with a formula written out in numpy."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from tubelet.errors import CheckpointError, DataError
from tubelet.evaluate import metrics


@st.composite
def predictions(draw):
    """Random probabilities (M,K) and labels (M,); with few distinct values there are many ties."""
    videos, classes = draw(st.integers(1, 40)), draw(st.integers(2, 9))
    seed, levels = draw(st.integers(0, 2**31)), draw(st.sampled_from([2, 5, 10**6]))
    generator = np.random.default_rng(seed)
    scores = generator.integers(1, levels + 1, (videos, classes)).astype(float)
    return scores / scores.sum(axis=1, keepdims=True), generator.integers(0, classes, videos)


@settings(deadline=None)
@given(predictions())
def test_confusion_accuracy_and_mean_class_accuracy_are_scikit_learns(pair):
    probabilities, labels = pair
    classes, guesses = probabilities.shape[1], probabilities.argmax(axis=1)
    ours = metrics.score(torch.from_numpy(probabilities), torch.from_numpy(labels))
    matrix = metrics.confusion_matrix(torch.from_numpy(probabilities), torch.from_numpy(labels))
    assert (matrix.numpy() == sk.confusion_matrix(labels, guesses, labels=range(classes))).all()
    assert ours["top1"] == pytest.approx(sk.accuracy_score(labels, guesses))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns about classes that are guessed and never true
        assert ours["mean_class_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, guesses))
    assert ours["videos"] == len(labels)


@settings(deadline=None)
@given(predictions(), st.integers(1, 8))
def test_top_k_is_the_place_in_a_stable_sort_and_agrees_with_top_1(pair, k):
    probabilities, labels = pair
    order = np.argsort(-probabilities, axis=1, kind="stable")
    expected = np.mean([label in order[row, :k] for row, label in enumerate(labels)])
    assert metrics.top_k(torch.from_numpy(probabilities), torch.from_numpy(labels), k) == pytest.approx(expected)
    score = metrics.score(torch.from_numpy(probabilities), torch.from_numpy(labels))
    assert score["top1"] <= score["top5"] <= 1
    matrix = metrics.confusion_matrix(torch.from_numpy(probabilities), torch.from_numpy(labels))
    assert int(matrix.diagonal().sum()) == round(score["top1"] * len(labels))


def test_top_k_is_scikit_learns_where_nothing_ties():
    generator = np.random.default_rng(0)
    probabilities, labels = generator.dirichlet(np.ones(7), 200), generator.integers(0, 7, 200)
    for k in (1, 2, 5):
        expected = sk.top_k_accuracy_score(labels, probabilities, k=k, labels=range(7))
        assert metrics.top_k(torch.from_numpy(probabilities), torch.from_numpy(labels), k) == pytest.approx(expected)


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_top_five_of_fewer_than_five_classes_is_always_right(classes):
    probabilities = torch.rand(30, classes, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    assert metrics.score(probabilities, torch.arange(30) % classes)["top5"] == 1


def test_a_model_that_always_says_the_same_scores_the_share_of_the_first_class():
    labels = torch.tensor([0, 0, 0, 1, 2, 3, 3, 3])
    assert metrics.score(torch.full((8, 4), 0.25), labels)["top1"] == pytest.approx(3 / 8)


def test_nan_is_an_error_that_counts_the_videos():
    probabilities = torch.full((4, 3), 1 / 3)
    probabilities[1, 2] = float("nan")
    with pytest.raises(CheckpointError, match="NaN or infinity for 1 of 4 videos"):
        metrics.score(probabilities, torch.zeros(4))


@pytest.mark.parametrize(
    ("probabilities", "labels", "said"),
    [
        (torch.zeros(0, 3), torch.zeros(0), "no labelled video"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), "labels reach from 0 to 3"),
        (torch.zeros(2, 3), torch.tensor([0, 1, 2]), "wanted one row of classes per label"),
    ],
)
def test_what_cannot_be_scored_is_said(probabilities, labels, said):
    with pytest.raises(DataError, match=said):
        metrics.score(probabilities, labels)


def test_classes_one_by_one():
    probabilities = torch.eye(4)[[0, 0, 1, 1, 1]]
    rows = metrics.per_class(metrics.confusion_matrix(probabilities, torch.tensor([0, 1, 1, 1, 2])), ("a", "b", "c", "d"))
    assert [row["accuracy"] for row in rows] == [1.0, pytest.approx(2 / 3), 0.0, None]
    assert [row["videos"] for row in rows] == [1, 3, 1, 0]
    assert [(row["mistaken_for"], row["mistaken_times"]) for row in rows] == [(None, 0), ("a", 1), ("b", 1), (None, 0)]


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_wilson_interval_solves_its_equation(pair):
    correct, count = pair
    low, high = metrics.wilson_interval(correct / count, count)
    assert 0 <= low <= correct / count + 1e-12 and correct / count - 1e-12 <= high <= 1
    for bound in (low, high):  # the bounds are where the share lies exactly z standard errors away
        if 1e-9 < bound < 1 - 1e-9:
            distance = abs(correct / count - bound)
            assert distance == pytest.approx(1.959963984540054 * np.sqrt(bound * (1 - bound) / count), rel=1e-6)
