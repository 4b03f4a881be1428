"""Train and validation sides: as named, as the data set says, or by group."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tubelet.datasets import split
from tubelet.datasets.split import by_group, equal_files
from tubelet.errors import ConfigError, DataError
from tubelet.records import Dataset, Example


def make(*rows: tuple[str | None, str | None, str | None], classes: tuple[str, ...] | None = None) -> Dataset:
    """Examples 0, 1, ... with (label, split, group)."""
    examples = tuple(Example(f"/v/{i}.mp4", f"{i}", label=a, split=b, group=c) for i, (a, b, c) in enumerate(rows))
    return Dataset(examples, classes or tuple(sorted({a for a, _, _ in rows if a})))


def ids(sides: tuple[Dataset, Dataset]) -> tuple[str, str]:
    return tuple("".join(example.id for example in side.examples) for side in sides)  # type: ignore[return-value]


SETS = make(("a", "train", None), ("a", "val", None), ("a", "test", None), ("a", None, None), ("a", "extra", None))
FOLDS = make(*[("a", f"fold{i}", None) for i in range(4)])


@pytest.mark.parametrize(
    ("dataset", "train", "val", "wanted"),
    [
        (SETS, None, None, ("034", "1")),
        (SETS, None, "test", ("0134", "2")),
        (SETS, "train", "test", ("0", "2")),
        (SETS, "train,extra", None, ("04", "1")),
        (SETS, "train, test", "val", ("02", "1")),
        (FOLDS, None, "fold2", ("013", "2")),
        (FOLDS, None, "fold1,fold3", ("02", "13")),
        (FOLDS, None, None, ("123", "0")),
        (make(("a", "train", None), ("a", "test", None)), None, None, ("0", "1")),
        (make(("a", "training", None), ("a", "Validation", None)), None, None, ("0", "1")),
    ],
)
def test_named_splits(dataset, train, val, wanted):
    assert ids(split(dataset, train, val)) == wanted


@pytest.mark.parametrize(
    ("dataset", "train", "val", "message"),
    [
        (FOLDS, "fold0", "fold0", "asked for on both sides"),
        (make(("a", None, None)), None, "val", "the data names no split"),
        (make(("a", "train", None)), "train", None, r"val side of the split is empty \(1 train, 0 val of 1\).*known: train"),
        (make(("a", None, None)), None, None, r"val side of the split is empty \(1 train, 0 val of 1\)"),
        (
            make(("a", "train", None), ("b", "val", None)),
            None,
            None,
            "validation has the label 'b', which training never saw",
        ),
        (
            make(*[("a", "train", None)], *[(c, "val", None) for c in "bcdef"]),
            None,
            None,
            "'b', 'c', 'd' and 2 more, which",
        ),
    ],
)
def test_impossible_splits_are_named(dataset, train, val, message):
    with pytest.raises(DataError, match=message):
        split(dataset, train, val)


@pytest.mark.parametrize("name", ["val", "validate", "eval", "Evaluation", "holdout", "dev", "testing"])
def test_what_is_held_out_is_never_trained_on(name):
    assert ids(split(make(("a", "train", None), ("a", name, None)))) == ("0", "1")


@pytest.mark.parametrize("names", [("train", "extra"), ("a", "b"), ("training", "0")])
def test_nothing_is_held_out_by_guess(names):
    with pytest.raises(DataError, match=rf"splits {', '.join(sorted(names))}, and none of them.*--data\.val-split"):
        split(make(*[("a", name, None) for name in names]))
    assert [len(side.examples) for side in split(make(*[("a", name, None) for name in names]), None, names[1])] == [1, 1]


def test_a_single_split_is_cut_by_group():
    assert [len(side.examples) for side in split(make(*[("a", "train", None)] * 10))] == [8, 2]


def test_each_part_of_a_union_keeps_its_own_split():
    rows = [("a", "train", "x"), ("b", "val", "x"), ("a", "fold0", "y"), ("b", "fold1", "y"), ("a", "fold2", "y")]
    rows += [("ab"[i % 2], None, "z") for i in range(10)]
    plain = make(("b", "train", None), *((label, name, None) for label, name, _ in rows))
    sources = ["x", *(source for _, _, source in rows)]
    union = replace(plain, examples=tuple(replace(e, source=str(s)) for e, s in zip(plain.examples, sources, strict=True)))
    for val, held in ((None, {"2", "3"}), ("fold2", {"2", "5"}), ("val,fold1", {"2", "4"})):
        train, test = split(union, None, val)
        assert {e.id for e in test.examples if e.source != "z"} == held
        assert sum(e.source == "z" for e in test.examples) == 2 and len(train.examples) + len(test.examples) == 16


def test_a_class_that_training_never_sees_can_be_dropped():
    dataset = make(("a", "train", None), ("b", "train", None), ("a", "val", None), ("c", "val", None))
    with pytest.raises(DataError, match=r"--data\.unseen-labels drop"):
        split(dataset)
    train, val = split(dataset, unseen_labels="drop")
    assert ids((train, val)) == ("01", "2") and train.classes == val.classes == ("a", "b")
    with pytest.raises(DataError, match="never saw"):  # nothing would be left
        split(make(("a", "train", None), ("b", "val", None)), unseen_labels="drop")


def test_an_unknown_split_offers_the_nearest():
    with pytest.raises(ConfigError, match="unknown split 'flod1': did you mean 'fold1'"):
        split(FOLDS, None, "flod1")


def test_classes_are_those_that_training_sees_in_the_old_order():
    dataset = make(("z", "train", None), ("b", "train", None), ("z", "val", None), ("q", "test", None), classes=("z", "q", "b"))
    train, val = split(dataset)
    assert train.classes == val.classes == ("z", "b")


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 12)), min_size=8, max_size=60),
    st.floats(0.1, 0.5),
    st.integers(0, 99),
)
def test_groups_stay_whole_and_training_keeps_every_label(rows, fraction, seed):
    dataset = make(*[(label, None, f"g{group}") for label, group in rows])
    train, val = by_group(dataset.examples, fraction, seed)
    assert sorted(e.id for e in train + val) == sorted(e.id for e in dataset.examples)
    assert not {e.group for e in train} & {e.group for e in val}
    assert {e.label for e in train} == {e.label for e in dataset.examples}
    again = by_group(list(reversed(dataset.examples)), fraction, seed)
    assert {e.id for e in again[1]} == {e.id for e in val}, "the order of the rows changed the split"


def test_every_class_is_held_out_in_proportion_and_the_seed_decides():
    dataset = make(*[(label, None, None) for label in "aaab" * 25])
    val = split(dataset, val_fraction=0.2, seed=3)[1]
    assert Counter(e.label for e in val.examples) == {"a": 15, "b": 5}
    assert split(dataset, seed=3)[1] == val and split(dataset, seed=4)[1] != val


def test_a_tiny_set_still_gets_one_validation_video():
    assert [len(side.examples) for side in split(make(*[("a", None, None)] * 2, *[("b", None, None)] * 2))] == [3, 1]
    assert [len(side.examples) for side in split(make(*[(None, None, None)] * 5))] == [4, 1]


def test_equal_files_and_parts_of_one_file_stay_together(tmp_path):
    contents = [b"one", b"two", b"one", b"six", b"", b""]
    for i, content in enumerate(contents):
        (tmp_path / f"{i}.mp4").write_bytes(content)
    paths = [str(tmp_path / f"{i}.mp4") for i in range(6)]
    assert equal_files([*paths, str(tmp_path / "missing.mp4"), paths[0]]) == [[paths[0], paths[2]]]
    examples = tuple(Example(path, f"{i}-{j}", label="ab"[i % 2]) for i, path in enumerate(paths) for j in range(2))
    for seed in range(10):
        train, val = split(Dataset(examples, ("a", "b")), val_fraction=0.4, seed=seed)
        sides = [{example.path for example in side.examples} for side in (train, val)]
        assert not sides[0] & sides[1]
        assert len({paths[0], paths[2]} & sides[0]) != 1


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0])
def test_impossible_fractions(fraction):
    with pytest.raises(DataError, match="must lie between 0 and 1"):
        split(make(*[("a", None, None)] * 4), val_fraction=fraction)
