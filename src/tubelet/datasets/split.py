"""Which Examples are trained on and which are held out: by the data set's own split, else by group."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import torch

from tubelet import storage
from tubelet.datasets._files import TEST_NAMES, TRAIN_NAMES, VAL_NAMES, natural
from tubelet.errors import DataError
from tubelet.find import choose
from tubelet.records import Dataset, Example

Sides = tuple[list[Example], list[Example]]
UnseenLabels = Literal["error", "drop"]


def split(
    dataset: Dataset,
    train: str | None = None,
    val: str | None = None,
    val_fraction: float = 0.2,
    seed: int = 0,
    unseen_labels: UnseenLabels = "error",
) -> tuple[Dataset, Dataset]:
    """(train, val) of a data set, with the classes that training sees.

    `train` and `val` name splits of the data set, several with commas between. Only `val` given: training takes
    everything else but test. Neither given: the data set's own val is held out (test where there is no val; the first
    fold where there are only folds). A data set without splits is cut here: whole groups (else whole files; files of
    equal content stay together) go to val until it has about `val_fraction` of every class, in an order fixed by
    `seed`. Of a union each source follows its own splits, as far as the names given are not among them; sources without
    splits are cut together. `unseen_labels` says what becomes of a label in val that training never saw. DataError: an
    unknown split name, splits of which none is known to be held out, an empty side, a split on both sides, or such a
    label under "error".
    """
    known = _names(dataset.examples)
    train_names, val_names = _chosen(train, known), _chosen(val, known)
    both = sorted(set(train_names) & set(val_names))
    if both:
        raise DataError(f"split {both[0]!r} is asked for on both sides: train and val must differ")
    sources: dict[str, list[Example]] = defaultdict(list)
    for example in dataset.examples:
        sources[example.source].append(example)
    sides: Sides = ([], [])
    uncut: list[Example] = []
    for examples in sources.values():
        named = _by_name(examples, train_names, val_names)
        if named is None:
            uncut += examples
        else:
            sides[0].extend(named[0])
            sides[1].extend(named[1])
    if uncut:
        cut = by_group(uncut, val_fraction, seed)
        sides[0].extend(cut[0])
        sides[1].extend(cut[1])
    for side, name in zip(sides, ("train", "val"), strict=True):
        if not side:
            raise DataError(
                f"the {name} side of the split is empty ({len(sides[0])} train, {len(sides[1])} val of "
                f"{len(dataset.examples)}): add videos, or name the splits (known: {', '.join(known) or 'none'})"
            )
    first, second = (replace(dataset, examples=tuple(side)) for side in sides)
    return with_seen_labels(first, second, unseen_labels)


def with_seen_labels(train: Dataset, val: Dataset, unseen_labels: UnseenLabels = "error") -> tuple[Dataset, Dataset]:
    """Both sides with the classes that training has; Examples of val with another label are an error or dropped."""
    seen = {example.label for example in train.examples}
    classes = tuple(name for name in train.classes if name in seen)
    unseen = sorted({str(example.label) for example in val.examples if example.label not in {*seen, None}}, key=natural)
    kept = val.examples
    if unseen and unseen_labels == "drop":
        kept = tuple(example for example in val.examples if example.label in seen)
    if (unseen and unseen_labels == "error") or not kept:
        more = f" and {len(unseen) - 3} more" if len(unseen) > 3 else ""
        raise DataError(
            f"validation has the label {', '.join(repr(label) for label in unseen[:3])}{more}, which training never saw: "
            "move some of its videos to training, or leave them out with --data.unseen-labels drop"
        )
    return replace(train, classes=classes), replace(val, examples=kept, classes=classes)


def by_group(examples: Iterable[Example], val_fraction: float = 0.2, seed: int = 0) -> Sides:
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
        with storage.open_bytes(path) as file:
            digest = hashlib.blake2b(digest_size=16)
            while data := file.read(1 << 20):
                digest.update(data)
            return digest.hexdigest()
    except OSError:
        return None


def equal_files(paths: Iterable[str]) -> list[list[str]]:
    """Lists of paths whose files have equal bytes, in the order given. Only files of equal size are read."""
    by_size: dict[int, list[str]] = defaultdict(list)
    for path in dict.fromkeys(paths):
        try:
            by_size[storage.stat(path)[0]].append(path)
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


def _by_name(examples: list[Example], train_names: list[str], val_names: list[str]) -> Sides | None:
    """(train, val) lists of one source by the splits asked for, as far as it has them, else by its own; None where nothing
    says what is held out."""
    names = _names(examples)
    wanted = [name for name in train_names if name in names]
    held = [name for name in val_names if name in names]
    held = held or [name for name in _held_out(names) if name not in wanted]
    if not wanted and not held:
        return None
    # Rows that name no split are extra training material, unless the training splits were chosen by name.
    trained = wanted or [name for name in names if name not in held and name.lower() not in TEST_NAMES] + [""]
    return (
        [example for example in examples if (example.split or "") in trained],
        [example for example in examples if example.split in held],
    )


def _names(examples: Iterable[Example]) -> list[str]:
    return sorted({example.split for example in examples if example.split}, key=natural)


def _held_out(names: list[str]) -> list[str]:
    """The splits that nobody means to train on; none where all is for training. DataError where that is anyone's guess."""
    for known in (VAL_NAMES, TEST_NAMES):
        found = [name for name in names if name.lower() in known]
        if found:
            return found
    if len(names) < 2 or all(name.lower() in TRAIN_NAMES for name in names):
        return []
    if all(re.fullmatch(r"(fold[ _-]?)?\d+", name.lower()) for name in names):
        return names[:1]
    raise DataError(
        f"the data has the splits {', '.join(names)}, and none of them is called val or test: "
        "say which to hold out with --data.val-split"
    )
