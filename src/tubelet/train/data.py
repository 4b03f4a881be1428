"""Which videos a run learns from and which it is validated on, from its configuration alone."""

import hashlib
from dataclasses import replace
from pathlib import Path

import torch

from tubelet import datasets
from tubelet.errors import DataError
from tubelet.records import Dataset
from tubelet.train.config import DataConfig


def load(config: DataConfig, needs_labels: bool) -> tuple[Dataset, Dataset | None]:
    """(train, val) data sets.

    With labels there is always a validation side: `val`, or what `datasets.split` cuts off. Without, everything given is
    learned from, but for what `val_split` holds out and what `train_split` leaves out; val may be None. Raises DataError.
    """
    whole = _read(config.train, config.format, needs_labels)
    train, val = whole, None
    if config.val:
        train = _only(whole, config.train_split)
        val = _only(_read(config.val, config.format, needs_labels), config.val_split)
        if needs_labels:
            _same_classes(train, val)
    elif needs_labels or config.val_split:
        train, val = datasets.split(whole, config.train_split, config.val_split, config.val_fraction, config.split_seed)
    else:
        train = _only(whole, config.train_split)
    if config.limit is not None and config.limit < len(train.examples):
        order = torch.randperm(len(train.examples), generator=torch.Generator().manual_seed(config.split_seed)).tolist()
        train = replace(train, examples=tuple(train.examples[i] for i in sorted(order[: config.limit])))
    return train, val


def fingerprint(dataset: Dataset) -> str:
    """A short hash of the Examples (ids, labels, parts) and classes in order: equal when two runs read the same list."""
    digest = hashlib.blake2b(digest_size=8)
    for example in dataset.examples:
        digest.update(repr((example.id, example.label, example.start_seconds, example.end_seconds)).encode())
    digest.update(repr(dataset.classes).encode())
    return digest.hexdigest()


def absolute(config: DataConfig) -> DataConfig:
    """The same with absolute paths, so that a run can be repeated from any folder."""
    resolved = {side: tuple(str(Path(path).resolve()) for path in getattr(config, side)) for side in ("train", "val")}
    return replace(config, **resolved)  # type: ignore[arg-type]


def _read(paths: tuple[str, ...], format: str, needs_labels: bool) -> Dataset:
    """The labelled Examples of the data; all of them, their labels forgotten, where none is needed."""
    whole = datasets.read_many(paths, format)
    if needs_labels:
        return datasets.labelled(whole)
    return replace(whole, classes=(), examples=tuple(replace(example, label=None) for example in whole.examples))


def _only(dataset: Dataset, names: str | None) -> Dataset:
    """The Examples of the named splits (commas between); all where no name is given."""
    if not names:
        return dataset
    wanted = {name.strip() for name in names.split(",")}
    known = sorted({example.split for example in dataset.examples if example.split})
    if not wanted <= set(known):
        raise DataError(f"no split {sorted(wanted - set(known))[0]!r} in this data (known: {', '.join(known) or 'none'})")
    return replace(dataset, examples=tuple(example for example in dataset.examples if example.split in wanted))


def _same_classes(train: Dataset, val: Dataset) -> None:
    unseen = sorted({str(example.label) for example in val.examples} - {str(example.label) for example in train.examples})
    if unseen:
        raise DataError(f"validation has the label {unseen[0]!r}, which training never saw: leave it out, or train on it too")
