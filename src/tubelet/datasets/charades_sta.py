"""Charades-STA: one line a moment, `VIDEO START END##sentence`, times in seconds.

How long the videos are is taken from Charades' own `Charades_v1_train.csv` and `_test.csv` (columns id, length), or from a
`charades.json` ({"VIDEO": {"duration": ...}}), where they lie beside it.
"""

import csv
from pathlib import Path

from tubelet.datasets._moments import moments, opening, read_json, side, spans
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
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    found = []
    for number, line in enumerate(lines, 1):
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
    if (folder / "charades.json").is_file():
        found = {video: float(about["duration"]) for video, about in read_json(folder / "charades.json").items()}
    for name in ("Charades_v1_train.csv", "Charades_v1_test.csv"):
        if (folder / name).is_file():
            with open(folder / name, newline="", encoding="utf-8") as file:
                found.update({row["id"]: float(row["length"]) for row in csv.DictReader(file)})
    return found
