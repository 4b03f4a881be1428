"""Charades-STA: one line a moment, `VIDEO START END##sentence`, times in seconds.

How long the videos are is taken from Charades' own `Charades_v1_train.csv` and `_test.csv` (columns id, length), or from a
`charades.json` ({"VIDEO": {"duration": ...}}), where they lie beside it.
"""

import csv
from pathlib import Path

from tubelet.datasets._moments import moments, opening, read_json, read_lines, side, spans
from tubelet.errors import DataError
from tubelet.records import Dataset, Query


def matches(path: str | Path) -> bool:
    """Whether `path` is such a list."""
    first = opening(path).partition("\n")[0] if Path(path).suffix.lower() == ".txt" else ""
    return len(first.partition("##")[0].split()) == 3 and "##" in first


def queries(path: str | Path) -> list[Query]:
    """Every line. A span that ends after its video is cut where the duration is known; one that ends before it begins is none.

    DataError naming a broken line.
    """
    durations = _durations(Path(path).parent)
    found = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        where, mark, text = line.partition("##")
        fields = where.split()
        if not mark or len(fields) != 3:
            raise DataError(f"{path}, line {number}: got {line[:60]!r}, wanted `VIDEO START END##sentence`")
        duration = durations.get(fields[0])
        times = spans(path, f"line {number}", fields[1], fields[2], duration)
        found.append(Query(f"{number}", fields[0], text.strip(), times, duration, side(path)))
    return found


def read(path: str | Path) -> Dataset:
    """Every line as an Example: a part of its video with a text."""
    return moments(path, queries(path))


def _durations(folder: Path) -> dict[str, float]:
    found = {}
    for name in ("charades.json", "Charades_v1_train.csv", "Charades_v1_test.csv"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            if path.suffix == ".json":
                found.update({video: float(about["duration"]) for video, about in read_json(path).items()})
            else:
                found.update({row["id"]: float(row["length"]) for row in csv.DictReader(read_lines(path))})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            wanted = '{"VIDEO": {"duration": SECONDS}}' if path.suffix == ".json" else "the columns id and length"
            raise DataError(f"{path}: wanted {wanted} ({type(error).__name__}: {error})") from error
    return found
