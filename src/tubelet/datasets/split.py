"""Which Examples are trained on and which are held out: by the data set's own split, else by group."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace

import torch

from tubelet.datasets._files import natural
from tubelet.errors import DataError
from tubelet.find import choose
from tubelet.records import Dataset, Example

VAL_NAMES = ("val", "validation", "valid", "dev")
TEST_NAMES = ("test", "testing")


def split(
    dataset: Dataset, train: str | None = None, val: str | None = None, val_fraction: float = 0.2, seed: int = 0
) -> tuple[Dataset, Dataset]:
    """(train, val) of a data set, with the classes that training sees, in the data set's order.

    `train` and `val` name splits of the data set, several with commas between. Only `val` given: training takes
    everything else but test. Neither given: the data set's own val is held out (test where there is no val; the first
    fold where there are only folds). A data set without splits is cut here: whole groups (else whole files; files of
    equal content stay together) go to val until it has about `val_fraction` of every class, in an order fixed by
    `seed`. DataError: an unknown split name, an empty side, an Example on both sides, or a label in val that training
    never saw.
    """
    names = sorted({example.split for example in dataset.examples if example.split}, key=natural)
    if train or val:
        train_names, val_names = _chosen(train, names), _chosen(val, names)
        if not val_names:
            val_names = [name for name in _held_out(names) if name not in train_names]
        train_names = train_names or _rest(names, val_names)
    else:
        val_names = _held_out(names)
        train_names = _rest(names, val_names)
    if val_names:
        both = sorted(set(train_names) & set(val_names))
        if both:
            raise DataError(f"split {both[0]!r} is asked for on both sides: train and val must differ")
        # Rows that name no split are extra training material, unless the training splits were chosen by name.
        trained = set(train_names) | (set() if train else {None, ""})
        train_side = [example for example in dataset.examples if example.split in trained]
        val_side = [example for example in dataset.examples if example.split in val_names]
    elif train:
        raise DataError(
            f"train split {train!r} leaves nothing to validate on: name a val split too (known: {', '.join(names)})"
        )
    else:
        train_side, val_side = by_group(dataset.examples, val_fraction, seed)
    return _checked(dataset, train_side, val_side)


def by_group(examples: Iterable[Example], val_fraction: float = 0.2, seed: int = 0) -> tuple[list[Example], list[Example]]:
    """(train, val) lists: groups stay whole, val has about `val_fraction` of every label, training keeps every
    label."""
    if not 0 < val_fraction < 1:
        raise DataError(f"val_fraction is {val_fraction}: it must lie between 0 and 1")
    examples = list(examples)
    units = _units(examples)
    total = Counter(example.label for example in examples)
    wanted = {label: count * val_fraction for label, count in total.items()}
    taken: Counter[str | None] = Counter()
    held: set[int] = set()
    generator = torch.Generator().manual_seed(seed)
    for i in torch.randperm(len(units), generator=generator).tolist():
        labels = Counter(examples[place].label for place in units[i])
        nearer = sum(abs(wanted[k] - taken[k] - n) - abs(wanted[k] - taken[k]) for k, n in labels.items())
        last_of_a_label = any(taken[label] + count == total[label] for label, count in labels.items())
        if (nearer < 0 or (not held and nearer <= 0)) and not last_of_a_label:
            held.update(units[i])
            taken.update(labels)
    if not held:  # too few for the fraction: hold out the smallest unit that training can spare
        for unit in sorted(units, key=len):
            labels = Counter(examples[place].label for place in unit)
            if all(count < total[label] for label, count in labels.items()):
                held.update(unit)
                break
    train = [example for i, example in enumerate(examples) if i not in held]
    val = [example for i, example in enumerate(examples) if i in held]
    return train, val


def content_hash(path: str) -> str | None:
    """A hash of a file's bytes (128 bits, hex), or None where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError:
        return None


def equal_files(paths: Iterable[str]) -> list[list[str]]:
    """Lists of paths whose files have equal bytes, in the order given. Only files of equal size are read."""
    by_size: dict[int, list[str]] = defaultdict(list)
    for path in dict.fromkeys(paths):
        try:
            by_size[os.path.getsize(path)].append(path)
        except OSError:
            continue
    equal: dict[str, list[str]] = defaultdict(list)
    for size, same_size in by_size.items():
        if len(same_size) > 1 and size > 0:
            for path in same_size:
                key = content_hash(path)
                if key is not None:
                    equal[key].append(path)
    return [same for same in equal.values() if len(same) > 1]


def _units(examples: list[Example]) -> list[list[int]]:
    """Places of the Examples that must stay together: same group, same file, or files of equal content."""
    parent = list(range(len(examples)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    copies = {path: same[0] for same in equal_files(example.path for example in examples) for path in same}
    first: dict[tuple[str, str], int] = {}
    for i, example in enumerate(examples):
        keys = [("file", copies.get(example.path, example.path))]
        if example.group:
            keys.append(("group", example.group))
        for key in keys:
            parent[root(i)] = root(first.setdefault(key, i))
    units: dict[int, list[int]] = defaultdict(list)
    for i in range(len(examples)):
        units[root(i)].append(i)
    # In the order of ids, so that the order of a table's rows or of a disk does not matter.
    return sorted(units.values(), key=lambda unit: min(examples[i].id for i in unit))


def _chosen(text: str | None, names: list[str]) -> list[str]:
    if not text:
        return []
    if not names:
        raise DataError(
            f"split {text!r} was asked for, but the data names no split: add a split column or train/ and val/ folders"
        )
    return [choose(name.strip(), names, "split") for name in text.split(",")]


def _held_out(names: list[str]) -> list[str]:
    for known in (VAL_NAMES, TEST_NAMES):
        found = [name for name in names if name.lower() in known]
        if found:
            return found
    return names[:1] if len(names) > 1 else []


def _rest(names: list[str], val_names: list[str]) -> list[str]:
    return [name for name in names if name not in val_names and name.lower() not in TEST_NAMES]


def _checked(dataset: Dataset, train: list[Example], val: list[Example]) -> tuple[Dataset, Dataset]:
    for side, name in ((train, "train"), (val, "val")):
        if not side:
            raise DataError(
                f"the {name} side of the split is empty ({len(train)} train, {len(val)} val of {len(dataset.examples)}): "
                "add videos, or name the splits"
            )
    seen = {example.label for example in train if example.label is not None}
    unseen = sorted({example.label for example in val if example.label is not None} - seen, key=natural)
    if unseen and dataset.classes:
        more = f" and {len(unseen) - 3} more" if len(unseen) > 3 else ""
        raise DataError(
            f"validation has the label {', '.join(repr(label) for label in unseen[:3])}{more}, which training never saw: "
            "move some of its videos to training, or leave it out"
        )
    classes = tuple(name for name in dataset.classes if name in seen)
    return replace(dataset, examples=tuple(train), classes=classes), replace(dataset, examples=tuple(val), classes=classes)
