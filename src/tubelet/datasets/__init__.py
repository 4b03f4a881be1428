"""Folders and tables of videos -> Examples. One file here is one format, with `matches(path)` and `read(path)`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tubelet import find, storage
from tubelet.datasets._files import is_video
from tubelet.datasets._prepared import refuse_stale, refuse_stale_above
from tubelet.datasets.split import split
from tubelet.errors import DataError
from tubelet.records import Dataset, Example, Query, Question

__all__ = ["formats", "holds_questions", "labelled", "queries", "questions", "read", "read_many", "source_names", "split"]


def formats() -> list[str]:
    """Names of the formats that can be read."""
    return [name for name in find.names(__name__) if name != "split"]


def read(path: str | Path, format: str = "auto") -> Dataset:
    """The data set at `path`, by the format named, or by the one that recognises it.

    DataError where there is none, and where `tubelet prepare` made it and it is incomplete or older than its source.
    """
    remote = storage.is_remote(path)
    if not remote:
        refuse_stale(path)
    if format != "auto":
        return _fresh(find.module(__name__, find.choose(format, formats(), "data format")).read(path), path)
    if not remote and not Path(path).exists():
        raise DataError(f"{path} does not exist: give a folder of videos, or a table (CSV, TSV, `path label` lines)")
    # A folder matches any folder, so whatever else recognises it goes first.
    for name in sorted(formats(), key=lambda name: name == "folder"):
        module = find.module(__name__, name)
        if module.matches(path):
            return _fresh(module.read(path), path)
    raise DataError(f"{path} is neither a folder, a video nor a table: known formats are {', '.join(formats())}")


def _fresh(dataset: Dataset, path: str | Path) -> Dataset:
    """What was read at `path`, unless a video of it lies in a prepared folder that is not what it should be: DataError."""
    refuse_stale_above((example.path for example in dataset.examples), but=path)
    return dataset


def queries(path: str | Path) -> list[Query]:
    """The sentences of annotations of moments, each with all of its spans; DataError where no format recognises them."""
    found: list[Query] = _asked(path, "queries", "moments")
    return found


def questions(path: str | Path) -> list[Question]:
    """The multiple-choice questions at `path`; DataError where no format recognises them."""
    found: list[Question] = _asked(path, "questions", "multiple-choice questions")
    return found


def holds_questions(path: str | Path) -> bool:
    """Whether `questions` recognises what is at `path`."""
    return Path(path).exists() and any(module.matches(path) for module in _able("questions").values())


def _able(name: str) -> dict[str, Any]:
    """The formats that have a function called `name`."""
    modules = {one: find.module(__name__, one) for one in formats()}
    return {one: module for one, module in modules.items() if hasattr(module, name)}


def _asked(path: str | Path, name: str, what: str) -> Any:
    """What the function called `name` of the format that recognises `path` gives."""
    if not Path(path).exists():
        raise DataError(f"{path} does not exist: give annotations of {what}")
    able = _able(name)
    for module in able.values():
        if module.matches(path):
            return getattr(module, name)(path)
    raise DataError(f"{path} holds no {what} of a known format ({', '.join(able)})")


def read_many(paths: Sequence[str | Path], format: str = "auto") -> Dataset:
    """The union of several data sets: classes merged by name, ids and groups prefixed by the name of their folder, which
    is their `source` too.

    One path is `read(path)`, without a prefix; so is each path of a single video. A path given twice counts once. Clips
    may be flipped where every part allows it.
    """
    paths = list(dict.fromkeys(paths))
    if not paths:
        raise DataError("no data given: name at least one folder of videos or table")
    parts = [read(path, format) for path in paths]
    if len(parts) == 1:
        return parts[0]
    examples: list[Example] = []
    for source, part in zip(source_names(paths), parts, strict=True):
        examples += [_prefixed(example, source) for example in part.examples] if source else part.examples
    classes = tuple(dict.fromkeys(name for part in parts for name in part.classes))
    return Dataset(tuple(examples), classes, all(part.may_flip for part in parts), parts[0].sampling)


def labelled(dataset: Dataset, least_classes: int = 2) -> Dataset:
    """Only the Examples that have a label; DataError where there is none, or fewer classes than are needed."""
    examples = tuple(example for example in dataset.examples if example.label is not None)
    if not examples:
        raise DataError("no video has a label: put each class in a folder of its own, or give a table with a label column")
    if len(dataset.classes) < least_classes:
        raise DataError(f"there is only one class, {dataset.classes[0]!r}: a classifier needs two or more")
    return replace(dataset, examples=examples)


def _prefixed(example: Example, source: str) -> Example:
    group = None if example.group is None else f"{source}/{example.group}"
    return replace(example, id=f"{source}/{example.id}", group=group, source=source)


def source_names(paths: Sequence[str | Path]) -> list[str]:
    """A short name for each of several data sets, all different: of a table the name of its folder, of a single video ""."""
    names: list[str] = []
    taken: set[str] = set()
    used: Counter[str] = Counter()
    for path in paths:
        place = Path(path).resolve()
        name = (place.parent if place.is_file() else place).name or "data"
        if place.is_file() and is_video(place):
            names.append("")
            continue
        unique = name
        while unique in taken:
            used[name] += 1
            unique = f"{name}-{used[name] + 1}"
        taken.add(unique)
        names.append(unique)
    return names
