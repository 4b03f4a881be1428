"""NExT-QA: CSV with one five-way question a row: video, frame_count, width, height, question, answer, qid, type, a0 .. a4."""

import csv
from pathlib import Path

from tubelet.datasets._moments import opening, side
from tubelet.datasets._moments import questions as as_dataset
from tubelet.errors import DataError
from tubelet.records import Dataset, Question


def matches(path: str | Path) -> bool:
    """Whether `path` is such a table."""
    first = opening(path).partition("\n")[0] if Path(path).suffix.lower() == ".csv" else ""
    return {"video", "question", "answer", "qid", "a0", "a4"} <= set(first.strip().split(","))


def questions(path: str | Path) -> list[Question]:
    """Every row; the id is VIDEO/QID. DataError naming a broken line."""
    found = []
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            for row in reader:
                choices = tuple(row.get(f"a{number}") or "" for number in range(5))
                answer = row.get("answer") or ""
                if answer not in ("0", "1", "2", "3", "4") or "" in choices:
                    raise DataError(f"{path}, line {reader.line_num}: wanted five choices a0 .. a4 and an answer from 0 to 4")
                id = f"{row['video']}/{row['qid']}"
                found.append(Question(id, row["video"], row["question"], choices, int(answer), split=side(path)))
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as NExT-QA: {error}") from error
    return found


def read(path: str | Path) -> Dataset:
    """Every question as an Example: the whole video, with the question as its text."""
    return as_dataset(path, questions(path))
