"""QVHighlights: JSON lines, one question each, with all windows of the video that answer it (none in the hidden test).

{"qid": 2579, "query": "A girl ...", "duration": 150, "vid": "NUsG9BgSes0_210.0_360.0", "relevant_windows": [[82, 150]], ...}
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
            found.append(Query(str(row["qid"]), str(row["vid"]), words(row["query"]), sum(windows, ()), duration, side(path)))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}, line {number}: wanted a JSON object with qid, vid, query and duration ({error})"
            ) from error
    return found


def read(path: str | Path) -> Dataset:
    """Every window as an Example: a part of its video with a text; a question without windows is its whole video."""
    return moments(path, queries(path))
