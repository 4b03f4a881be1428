"""Folders and tables of videos -> Examples. One file here is one format, with `matches(path)` and `read(path)`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tubelet import find
from tubelet.datasets.split import split
from tubelet.errors import DataError
from tubelet.records import Dataset

__all__ = ["formats", "labelled", "read", "read_many", "split"]


def formats() -> list[str]:
    """Names of the formats that can be read."""
    return [name for name in find.names(__name__) if name != "split"]


def read(path: str | Path, format: str = "auto") -> Dataset:
    """The data set at `path`, by the format named, or by the one that recognises it; DataError where there is none."""
    if format != "auto":
        dataset: Dataset = find.module(__name__, find.choose(format, formats(), "data format")).read(path)
        return dataset
    if not Path(path).exists():
        raise DataError(f"{path} does not exist: give a folder of videos, or a table (CSV, TSV, `path label` lines)")
    # A folder matches any folder, so whatever else recognises it goes first.
    for name in sorted(formats(), key=lambda name: name == "folder"):
        module = find.module(__name__, name)
        if module.matches(path):
            dataset = module.read(path)
            return dataset
    raise DataError(f"{path} is neither a folder, a video nor a table: known formats are {', '.join(formats())}")


def read_many(paths: Sequence[str | Path], format: str = "auto") -> Dataset:
    """The union of several data sets: classes merged by name, ids and groups prefixed by the name of their folder.

    One path is `read(path)`, without a prefix. Clips may be flipped where every part allows it.
    """
    if not paths:
        raise DataError("no data given: name at least one folder of videos or table")
    parts = [read(path, format) for path in paths]
    if len(parts) == 1:
        return parts[0]
    examples = []
    for prefix, part in zip(_prefixes(paths), parts, strict=True):
        for example in part.examples:
            group = None if example.group is None else f"{prefix}/{example.group}"
            examples.append(replace(example, id=f"{prefix}/{example.id}", group=group))
    classes = tuple(dict.fromkeys(name for part in parts for name in part.classes))
    return Dataset(tuple(examples), classes, all(part.may_flip for part in parts), parts[0].sampling)


def labelled(dataset: Dataset) -> Dataset:
    """Only the Examples that have a label; DataError where there is none, or only one class."""
    examples = tuple(example for example in dataset.examples if example.label is not None)
    if not examples:
        raise DataError("no video has a label: put each class in a folder of its own, or give a table with a label column")
    if len(dataset.classes) < 2:
        raise DataError(f"there is only one class, {dataset.classes[0]!r}: a classifier needs two or more")
    return replace(dataset, examples=examples)


def _prefixes(paths: Sequence[str | Path]) -> list[str]:
    """A short name for each path, all different: of a table the name of its folder."""
    names: list[str] = []
    for path in paths:
        place = Path(path).resolve()
        name = (place.parent if place.is_file() else place).name or "data"
        count = 2
        unique = name
        while unique in names:
            unique, count = f"{name}-{count}", count + 1
        names.append(unique)
    return names
