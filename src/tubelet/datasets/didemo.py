"""DiDeMo: JSON, a list of descriptions of moments, each marked by four people or more in segments of 5 seconds.

[{"description": "the baby is first shown.", "video": "..._dc1a90b8ef.mov", "num_segments": 6, "times": [[1, 1], ...]}, ...]
"""

from collections import Counter
from pathlib import Path

from tubelet.datasets._moments import moments, opening, read_json, side, words
from tubelet.errors import DataError
from tubelet.records import Dataset, Query

SEGMENT_SECONDS = 5.0


def matches(path: str | Path) -> bool:
    """Whether `path` is such a file."""
    text = opening(path) if Path(path).suffix.lower() == ".json" else ""
    return text.lstrip().startswith("[") and '"num_segments"' in text


def queries(path: str | Path) -> list[Query]:
    """Every description; its spans are those that people marked, the one most of them agree on first."""
    found = []
    rows = read_json(path)
    if not isinstance(rows, list):
        raise DataError(f"{path}: wanted a list of descriptions, got a {type(rows).__name__}")
    for number, row in enumerate(rows):
        try:
            marked = Counter((first, last) for first, last in row["times"])
            spans = tuple((a * SEGMENT_SECONDS, (b + 1) * SEGMENT_SECONDS) for (a, b), _ in marked.most_common())
            duration = row["num_segments"] * SEGMENT_SECONDS
            found.append(
                Query(str(row["annotation_id"]), str(row["video"]), words(row["description"]), spans, duration, side(path))
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}, entry {number}: wanted annotation_id, video, description, num_segments, times") from error
    return found


def read(path: str | Path) -> Dataset:
    """Every description as one Example, at the span that most people marked."""
    best = [Query(one.id, one.video, one.text, one.spans[:1], one.duration, one.split) for one in queries(path)]
    return moments(path, best)
