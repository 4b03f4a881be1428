"""QVHighlights: JSON lines, one question each, with all windows of the video that answer it (none in the hidden test), and how
good a highlight three people find each clip of 2 s in them: 0 (very bad) to 4 (very good).

{"qid": 2579, "query": "A girl ...", "duration": 150, "vid": "NUsG9BgSes0_210.0_360.0", "relevant_windows": [[82, 150]],
 "relevant_clip_ids": [41, ...], "saliency_scores": [[1, 1, 2], ...]}
"""

import json
from pathlib import Path

from tubelet.datasets._moments import moments, opening, read_lines, side, spans, words
from tubelet.errors import DataError
from tubelet.records import Dataset, Query


def matches(path: str | Path) -> bool:
    """Whether `path` is such a file."""
    first = opening(path).partition("\n")[0] if Path(path).suffix.lower() == ".jsonl" else ""
    return '"vid"' in first and '"query"' in first


def queries(path: str | Path) -> list[Query]:
    """Every question, its spans in the order of the file. DataError naming a broken line."""
    found = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            duration = float(row["duration"])
            windows = [spans(path, f"line {number}", a, b, duration) for a, b in row.get("relevant_windows", ())]
            given = zip(row.get("relevant_clip_ids", ()), row.get("saliency_scores", ()), strict=True)
            saliency = tuple((_number(clip, None), tuple(_number(score, 4) for score in scores)) for clip, scores in given)
            found.append(
                Query(str(row["qid"]), str(row["vid"]), words(row["query"]), sum(windows, ()), duration, side(path), saliency)
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}, line {number}: wanted a JSON object with qid, vid, query and duration ({error})"
            ) from error
    return found


def _number(value: object, most: int | None) -> int:
    """A whole number from 0 to `most`; ValueError where it is none."""
    if type(value) is not int or value < 0 or (most is not None and value > most):
        raise ValueError(f"{value!r} is no whole number from 0{'' if most is None else f' to {most}'}")
    return value


def read(path: str | Path) -> Dataset:
    """Every window as an Example: a part of its video with a text; a question without windows is its whole video."""
    return moments(path, queries(path))
