"""Which videos a run learns from and which it is validated on, from its configuration alone."""

import hashlib
import math
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch

from tubelet import datasets, storage
from tubelet.datasets.split import with_seen_labels
from tubelet.errors import DataError
from tubelet.records import Dataset, Example
from tubelet.train.config import DataConfig
from tubelet.train.log import say


def load(config: DataConfig, needs_labels: bool, needs_text: bool = False) -> tuple[Dataset, Dataset | None]:
    """(train, val) data sets; what is left out and what comes near to being on both sides is said.

    With labels or captions there is always a validation side: `val`, or what `datasets.split` cuts off. Without, everything
    given is learned from, but for what `val_split` holds out and what `train_split` leaves out; val may be None. Raises
    DataError, also where captions are needed and an Example has none.
    """
    whole = datasets.read_many(config.train, config.format)
    others = datasets.read_many(config.val, config.format) if config.val else None
    train, val = divide(whole, config, needs_labels, others, needs_text)
    if needs_text:
        check_captions([*train.examples, *(val.examples if val else ())])
    for remark in _remarks([one for one in (whole, others) if one], train, val, needs_labels):
        say(remark)
    return _limited(train, config.limit, config.split_seed), val


def divide(
    whole: Dataset, config: DataConfig, needs_labels: bool, others: Dataset | None = None, needs_text: bool = False
) -> tuple[Dataset, Dataset | None]:
    """(train, val) of data that are read already, `others` for validation only. DataError where the two sides share a
    video, or training has fewer than two classes but needs labels."""
    prepared = datasets.labelled if needs_labels else _without_labels
    whole, val = prepared(whole), None
    if others is not None:
        others = datasets.labelled(others, least_classes=1) if needs_labels else _without_labels(others)
        train, val = _only(whole, config.train_split), _only(others, config.val_split)
        train, val = with_seen_labels(train, val, config.unseen_labels)
    elif needs_labels or needs_text or config.val_split:
        train, val = datasets.split(
            whole, config.train_split, config.val_split, config.val_fraction, config.split_seed, config.unseen_labels
        )
    else:
        train = _only(whole, config.train_split)
    if val is not None:
        _check_apart(train, val)
    return prepared(train), val


def check_captions(examples: Sequence[Example]) -> None:
    """DataError naming the first Example without a caption."""
    bare = [example.id for example in examples if not (example.text or "").strip()]
    if bare:
        raise DataError(
            f"{len(bare)} of {len(examples)} videos have no caption, the first is {bare[0]}: give a table with a column `text` or "
            "`caption`, filled in every row, or leave these videos out"
        )


def fingerprint(dataset: Dataset, with_texts: bool = False) -> str:
    """A short hash of the Examples (ids, labels, parts, captions where asked for) and classes in order: equal when two runs read
    the same list."""
    digest = hashlib.blake2b(digest_size=8)
    for example in dataset.examples:
        facts = (example.id, example.label, example.start_seconds, example.end_seconds)
        digest.update(repr((*facts, example.text) if with_texts else facts).encode())
    digest.update(repr(dataset.classes).encode())
    return digest.hexdigest()


def absolute(config: DataConfig) -> DataConfig:
    """The same with absolute paths, so that a run can be repeated from any folder."""
    resolved = {side: tuple(storage.absolute(path) for path in getattr(config, side)) for side in ("train", "val")}
    return replace(config, **resolved)  # type: ignore[arg-type]


def _without_labels(dataset: Dataset) -> Dataset:
    return replace(dataset, classes=(), examples=tuple(replace(example, label=None) for example in dataset.examples))


def _only(dataset: Dataset, names: str | None) -> Dataset:
    """The Examples of the named splits (commas between); all where no name is given."""
    if not names:
        return dataset
    wanted = {name.strip() for name in names.split(",")}
    known = sorted({example.split for example in dataset.examples if example.split})
    if not wanted <= set(known):
        raise DataError(f"no split {sorted(wanted - set(known))[0]!r} in this data (known: {', '.join(known) or 'none'})")
    return replace(dataset, examples=tuple(example for example in dataset.examples if example.split in wanted))


def _check_apart(train: Dataset, val: Dataset) -> None:
    """DataError where a video, or a part of one, is learned from and validated on."""
    trained: dict[str, list[Example]] = defaultdict(list)
    for example in train.examples:
        trained[os.path.realpath(example.path)].append(example)
    both = [
        example
        for example in val.examples
        if any(_overlap(example, other) for other in trained.get(os.path.realpath(example.path), ()))
    ]
    if both:
        raise DataError(
            f"{len(both)} of {len(val.examples)} validation videos are trained on too, the first is {both[0].path}: "
            "validate on other files, or leave --data.val out and let a part be held out"
        )


def _overlap(one: Example, other: Example) -> bool:
    ends = [math.inf if example.end_seconds is None else example.end_seconds for example in (one, other)]
    return (one.start_seconds or 0.0) < ends[1] and (other.start_seconds or 0.0) < ends[0]


def _remarks(read: list[Dataset], train: Dataset, val: Dataset | None, needs_labels: bool) -> list[str]:
    """What to know about a division before trusting numbers that come of it."""
    texts = []
    if needs_labels:
        given = [example for dataset in read for example in dataset.examples]
        bare = [example.id for example in given if example.label is None]
        unseen = [example for example in given if example.label is not None and example.label not in train.classes]
        if bare:
            texts.append(f"without a label, so left out: {_some(bare)}")
        if unseen:
            names = ", ".join(sorted({repr(example.label) for example in unseen}))
            texts.append(f"of a class that training never sees ({names}), so left out: {_some([e.id for e in unseen])}")
    if val is None:
        return texts
    counts = [Counter(example.source for example in side.examples) for side in (train, val)]
    sources = list(dict.fromkeys([*counts[0], *counts[1]]))
    if len(sources) > 1:
        parts = (f"{name or 'single files'} {counts[0][name]} and {counts[1][name]}" for name in sources)
        texts.append(f"trained on and held out: {', '.join(parts)} videos")
    shared = _footage(train) & _footage(val)
    if shared:
        texts.append(
            f"on both sides, so validation will look too good: {sorted(shared)[0]} (in all {len(shared)} groups or files)"
        )
    return texts


def _footage(dataset: Dataset) -> set[str]:
    """The groups of the Examples, and the files that they are parts of."""
    groups = {f"group {example.group}" for example in dataset.examples if example.group}
    return groups | {os.path.realpath(example.path) for example in dataset.examples}


def _some(ids: list[str]) -> str:
    return f"{len(ids)} video{'s' * (len(ids) > 1)} ({', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''})"


def _limited(dataset: Dataset, limit: int | None, seed: int) -> Dataset:
    """At most `limit` Examples, chosen by the seed, with every class in about its share and at least one of each."""
    examples = dataset.examples
    if limit is None or limit >= len(examples):
        return dataset
    if limit < max(1, len(dataset.classes)):
        raise DataError(f"data.limit is {limit}: it must be at least one video of each of {len(dataset.classes)} classes")
    total = Counter(example.label for example in examples)
    met: Counter[str | None] = Counter()
    ranked: list[tuple[float, int, int]] = []
    for place in torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist():
        label = examples[place].label
        ranked.append((met[label] / total[label], len(ranked), place))  # the first of every class come before all others
        met[label] += 1
    return replace(dataset, examples=tuple(examples[i] for i in sorted(place for *_, place in sorted(ranked)[:limit])))
