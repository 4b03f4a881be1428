"""Late fusion by a linear SVM."""

import sys

import pytest
import torch

from tubelet.errors import DataError, MissingExtraError
from tubelet.evaluate.linear_svm import fuse, stack
from tubelet.evaluate.multiview import Looks
from tubelet.evaluate.protocol import frozen_rows
from tubelet.records import Example


def streams(videos: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four classes of which one stream tells the first bit and the other, a thousand times as long, the second."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(videos) % 4
    one, other = torch.randn(2, videos, 6, generator=generator) * 0.3
    one[:, 0] += 2.0 * (labels // 2) - 1
    other[:, 0] += 2.0 * (labels % 2) - 1
    return one, 1000 * other, labels


def test_both_streams_tell_what_neither_tells_alone() -> None:
    one, other, labels = streams(80, 0)
    new_one, new_other, truth = streams(80, 1)
    together = fuse([one, other], labels, [new_one, new_other], 4)
    torch.testing.assert_close(together.sum(dim=1), torch.ones(80, dtype=torch.float64))
    assert (together.argmax(dim=1) == truth).double().mean() > 0.9
    for stored, asked in ((one, new_one), (other, new_other)):
        assert (fuse([stored], labels, [asked], 4).argmax(dim=1) == truth).double().mean() < 0.65


def test_every_part_has_length_one() -> None:
    one, other, _ = streams(5, 0)
    parts = stack([one, other]).view(5, 2, 6)
    torch.testing.assert_close(parts.norm(dim=2), torch.ones(5, 2, dtype=torch.float64))


def test_two_classes_and_a_class_without_videos() -> None:
    one, _, labels = streams(40, 0)
    scores = fuse([one], 2 * (labels // 2), [one], 3)
    assert (scores[:, 1] == 0).all() and (scores.argmax(dim=1) == 2 * (labels // 2)).double().mean() > 0.95
    with pytest.raises(DataError, match="two classes or more, and got 1"):
        fuse([one], torch.zeros(40), [one], 3)


def test_evaluation_has_a_row_of_it() -> None:
    one, other, labels = streams(40, 0)
    examples = tuple(Example(f"{i}.mp4", str(i), label="abcd"[int(label)]) for i, label in enumerate(labels))
    looks = Looks(examples, None, torch.cat([one, other], dim=1).double(), (), (), 0.0, 1, 1)
    (row,) = frozen_rows(looks, looks, "abcd", "pretrained", methods=("linear SVM",))
    assert row["name"] == "linear SVM" and row["top1"] > 0.9


def test_without_scikit_learn_the_error_has_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    one, _, labels = streams(8, 0)
    with pytest.raises(MissingExtraError, match=r"needs scikit-learn: pip install 'tubelet\[svm\]'"):
        fuse([one], labels, [one], 4)
