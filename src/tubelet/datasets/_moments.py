"""What the readers of questions about videos share: reading JSON, finding the videos, and Query or Question -> Example."""

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tubelet.datasets._files import TEST_NAMES, TRAIN_NAMES, VAL_NAMES, is_video
from tubelet.errors import DataError
from tubelet.records import Dataset, Example, Query, Question


def read_json(path: str | Path) -> Any:
    """What a JSON file holds; DataError with the file where it cannot be read."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file; DataError where it cannot be read, or is not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8: {error}") from error


@lru_cache(maxsize=8)
def opening(path: str | Path, characters: int = 4096) -> str:
    """The first characters of a text file, "" where it is none: enough to recognise a format."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read(characters)
    except (OSError, UnicodeDecodeError):
        return ""


def side(path: str | Path) -> str | None:
    """The split that a file name speaks of ("train", "val", "test"), or None."""
    words = re.findall(r"[a-z]+", Path(path).stem.lower())
    for name, words_for_it in (("train", TRAIN_NAMES), ("val", VAL_NAMES), ("test", TEST_NAMES)):
        if any(word in words_for_it for word in words):
            return name
    return None


def spans(path: str | Path, where: str, start: Any, end: Any, duration: float | None = None) -> tuple[tuple[float, float], ...]:
    """((start, end),) in seconds, cut at the end of the video; () where that leaves nothing, as where a line says 8 to 7 seconds.

    DataError where they are no times.
    """
    try:
        first, last = float(start), min(float(end), duration or float("inf"))
    except (TypeError, ValueError):
        first = last = -1.0
    if not (0 <= first < float("inf") and 0 <= last < float("inf")):
        raise DataError(f"{path}, {where}: the moment {start!r} to {end!r}: wanted two times in seconds")
    return ((first, last),) if first < last else ()


def words(text: Any) -> str:
    """A sentence with single spaces; TypeError where it is none."""
    if not isinstance(text, str):
        raise TypeError(f"{text!r} is no sentence")
    return " ".join(text.split())


def moments(path: str | Path, queries: Sequence[Query]) -> Dataset:
    """One Example a span, its text the query's; videos are looked for beside the annotations and in a folder `videos` there."""
    examples = []
    for query in queries:
        found: Sequence[tuple[float | None, float | None]] = query.spans or [(None, None)]
        for start, end in found:
            examples.append((query.video, query.text, start, end, query.split))
    return _dataset(path, examples)


def questions(path: str | Path, asked: Sequence[Question]) -> Dataset:
    """One Example a question, its text the question itself."""
    return _dataset(path, [(one.video, one.text, one.start_seconds, one.end_seconds, one.split) for one in asked])


def _dataset(path: str | Path, rows: Sequence[tuple[str, str, float | None, float | None, str | None]]) -> Dataset:
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    there = {os.path.splitext(name)[0]: str(place / name) for place in (folder / "videos", folder) for name in _videos(place)}
    examples, seen = [], Counter[str]()
    for video, text, start, end, split in rows:
        stem = os.path.splitext(video)[0] if is_video(video) else video
        id = video if start is None else f"{video}@{start:g}-{end:g}"
        seen[id] += 1
        examples.append(
            Example(
                path=there.get(stem, str(folder / (video if is_video(video) else f"{video}.mp4"))),
                id=id if seen[id] == 1 else f"{id}#{seen[id]}",
                text=text or None,
                start_seconds=start,
                end_seconds=end,
                group=video,
                split=split,
            )
        )
    # Sentences speak of left and right.
    return Dataset(tuple(examples), may_flip=False)


def _videos(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if is_video(name))
    except OSError:
        return []
