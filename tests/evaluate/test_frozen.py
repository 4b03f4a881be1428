"""k-NN and linear probe against scikit-learn on the same features."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from tubelet.errors import DataError
from tubelet.evaluate.knn import knn, standardize
from tubelet.evaluate.linear_probe import L2_CHOICES, choose_l2, fit, folds, footage, linear_probe
from tubelet.records import Example


def clusters(seed: int, videos: int = 60, width: int = 12, classes: int = 4, spread: float = 1.0):
    """Features (N,D) round one centre per class, with a large common vector as embeddings have; labels (N,)."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, videos)
    labels[:classes] = np.arange(classes)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    return 20 + centres[labels] + spread * generator.normal(size=(videos, width)), labels


def test_standardizing_is_scikit_learns_and_a_constant_value_becomes_zero():
    features, _ = clusters(0)
    features[:, 3] = 7.5
    asked, _ = clusters(1)
    ours = standardize(torch.from_numpy(features), torch.from_numpy(asked))
    scaler = StandardScaler().fit(features)
    for got, expected in zip(ours, (scaler.transform(features), scaler.transform(asked)), strict=True):
        expected[:, 3] = 0
        np.testing.assert_allclose(got, expected, atol=1e-10)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_knn_is_scikit_learns(k):
    features, labels = clusters(2)
    asked, _ = clusters(3, videos=25)
    scaler = StandardScaler().fit(features)
    reference = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
    expected = reference.fit(scaler.transform(features), labels).predict_proba(scaler.transform(asked))
    ours = knn(torch.from_numpy(features), torch.from_numpy(labels), torch.from_numpy(asked), 4, k)
    np.testing.assert_allclose(ours, expected, atol=1e-8)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_knn_gives_probabilities_and_ignores_scale_and_offset_of_features(seed, k):
    features, labels = (torch.from_numpy(array) for array in clusters(seed, videos=10))
    votes = knn(features, labels, features, 4, k)
    assert torch.allclose(votes.sum(dim=1), torch.ones(10, dtype=torch.float64))
    assert torch.allclose(knn(3 * features - 50, labels, 3 * features - 50, 4, k), votes, atol=1e-6)
    if k == 1:
        assert (votes.argmax(dim=1) == labels).all()


@pytest.mark.parametrize("l2", L2_CHOICES)
def test_the_probe_is_scikit_learns_logistic_regression(l2):
    features, labels = clusters(4)
    asked, _ = clusters(5, videos=20)
    scaler = StandardScaler().fit(features)
    reference = LogisticRegression(C=1 / (len(labels) * l2), tol=1e-10, max_iter=10_000)
    expected = reference.fit(scaler.transform(features), labels).predict_proba(scaler.transform(asked))
    ours = linear_probe(torch.from_numpy(features), torch.from_numpy(labels), torch.from_numpy(asked), 4, l2)
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_the_probe_stands_at_a_minimum():
    features, labels = clusters(6)
    train, _ = standardize(torch.from_numpy(features), torch.from_numpy(features))
    weight, bias = (value.requires_grad_() for value in fit(train, torch.from_numpy(labels), 4, 0.01))
    loss = torch.nn.functional.cross_entropy(train @ weight.T + bias, torch.from_numpy(labels))
    (loss + 0.005 * weight.square().sum()).backward()
    assert float(weight.grad.abs().max()) < 1e-5 and float(bias.grad.abs().max()) < 1e-5


def test_strength_is_chosen_without_the_questions_and_noise_asks_for_more():
    clear, labels = (torch.from_numpy(array) for array in clusters(7, spread=0.2))
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=clear.shape))
    nobody = [None] * len(labels)
    assert choose_l2(noise, labels, 4, nobody) == max(L2_CHOICES)
    assert choose_l2(clear, labels, 4, nobody) < max(L2_CHOICES)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c", "d", "e", "f", None]), st.integers(0, 2)), min_size=1, max_size=60))
def test_a_group_is_never_in_two_folds_and_no_class_in_one_alone(rows):
    groups, labels = zip(*rows, strict=True)
    fold = folds(torch.tensor(labels), groups)
    units = {group: label for group, label in reversed(rows) if group}  # a group counts for the class of its first row
    for name in units:
        assert len({int(f) for f, group in zip(fold, groups, strict=True) if group == name}) == 1
    for label in set(labels):
        alone = [int(f) for f, row in zip(fold, rows, strict=True) if row == (None, label)]
        whole = [int(fold[groups.index(name)]) for name, of in units.items() if of == label]
        sizes = Counter(alone + whole)
        assert not sizes or max(sizes.values()) - min(sizes[f] for f in range(5)) <= 1


def test_parts_of_a_file_share_a_fold(tmp_path):
    (tmp_path / "link.mp4").symlink_to(tmp_path / "a.mp4")
    parts = [
        Example(str(tmp_path / name), f"{name}@{i}", start_seconds=float(i)) for name in ("a.mp4", "b.mp4") for i in range(3)
    ]
    parts += [Example(str(tmp_path / "link.mp4"), "link"), Example("c.mp4", "c", group="b"), Example("d.mp4", "d", group="b")]
    together = footage(parts)
    assert [together.index(one) for one in together] == [0, 0, 0, 3, 3, 3, 0, 7, 7]
    assert folds(torch.zeros(9, dtype=torch.long), together).tolist() == [0, 0, 0, 1, 1, 1, 0, 2, 2]


def test_without_training_videos_both_say_so():
    nothing, asked = torch.zeros(0, 3), torch.zeros(2, 3)
    for method in (knn, linear_probe):
        with pytest.raises(DataError, match="training"):
            method(nothing, torch.zeros(0), asked, 2)
