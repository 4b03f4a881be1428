"""EgoSchema: five-way questions about clips of three minutes. A folder, or its `questions.json` or `subset_answers.json`.

    questions.json       [{"q_uid": "0074f737-...", "question": "...", "option 0": "...", ... "option 4": "..."}, ...]
    subset_answers.json  {"0074f737-...": 3, ...}: the answers that are public, 500 of 5,031
    uid_to_ego4d.json    {"0074f737-...": {"video_uid": "...", "starting_sec": 240, "ending_sec": 420}, ...}

What is not there is left open: without questions.json texts and choices are empty, without answers nobody knows them. Chance is
20 %.
"""

from pathlib import Path
from typing import Any

from tubelet.datasets._moments import questions as as_dataset
from tubelet.datasets._moments import read_json, words
from tubelet.errors import DataError
from tubelet.records import Dataset, Question

QUESTIONS, ANSWERS, SOURCES = "questions.json", "subset_answers.json", "uid_to_ego4d.json"


def matches(path: str | Path) -> bool:
    """Whether `path` is the folder or one of its files."""
    folder = Path(path)
    if folder.is_dir():
        return (folder / ANSWERS).is_file() or ((folder / QUESTIONS).is_file() and (folder / SOURCES).is_file())
    return folder.name in (QUESTIONS, ANSWERS)


def questions(path: str | Path) -> list[Question]:
    """Every question; of `subset_answers.json` those whose answer is known. DataError where a file is broken."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    asked = {}
    for number, row in enumerate(_read(folder / QUESTIONS, list)):
        try:
            asked[str(row["q_uid"])] = words(row["question"]), tuple(words(row[f"option {option}"]) for option in range(5))
        except (KeyError, TypeError) as error:
            wanted = "wanted q_uid, question, option 0 .. option 4"
            raise DataError(f"{folder / QUESTIONS}, entry {number}: {wanted} ({type(error).__name__}: {error})") from error
    answers = _read(folder / ANSWERS, dict)
    for id, answer in answers.items():
        if not isinstance(answer, int) or answer not in range(5):
            raise DataError(f"{folder / ANSWERS}, {id}: the answer is {answer!r}, wanted 0 to 4")
    ids = list(answers) if Path(path).name == ANSWERS or not asked else list(asked)
    if not ids:
        raise DataError(f"{path}: neither {QUESTIONS} nor {ANSWERS} holds a question")
    found = []
    for id in ids:
        text, choices = asked.get(id, ("", ()))
        found.append(Question(id, id, text, choices, answers.get(id)))
    return found


def sources(path: str | Path) -> dict[str, tuple[str, float, float]]:
    """{question: (video of Ego4D, start, end in seconds)} of uid_to_ego4d.json: what each clip was cut from."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    found = _read(folder / SOURCES, dict)
    try:
        return {id: (str(row["video_uid"]), float(row["starting_sec"]), float(row["ending_sec"])) for id, row in found.items()}
    except (KeyError, TypeError, ValueError) as error:
        wanted = "wanted video_uid, starting_sec, ending_sec of every question"
        raise DataError(f"{folder / SOURCES}: {wanted} ({type(error).__name__}: {error})") from error


def read(path: str | Path) -> Dataset:
    """Every question as an Example: the whole clip, with the question as its text."""
    return as_dataset(path, questions(path))


def _read(path: Path, kind: type) -> Any:
    found = read_json(path) if path.is_file() else kind()
    if not isinstance(found, kind):
        raise DataError(f"{path}: wanted a {kind.__name__} of questions, got a {type(found).__name__}")
    return found
