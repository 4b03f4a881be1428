"""A list of videos in a text file: CSV, TSV, space-separated or any other delimiter, with a header or without; or in JSON
lines or Parquet.

With a header, columns are found by name (see COLUMNS; others are ignored). Without one a row is `path`, `path label`,
`path frame_count label` (as in the lists for TSN) or `path label start end`. Paths are relative to the table's folder
and may hold spaces; labels are names or numbers. A folder with such a file at its top, called `labels.csv` or alike,
is that table, provided that a video it names exists: a list of class names may lie beside class folders. Tables and
videos may also lie behind addresses such as s3:// (see `storage.py`).

Clips may be flipped unless a class name may stand for a direction, or a column names the class of the reversed clip;
sampling is VideoMAE's.
"""

import csv
import io
import json
import os
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from tubelet import storage
from tubelet.datasets._files import VIDEO_SUFFIXES, is_video, may_flip, natural
from tubelet.errors import DataError
from tubelet.records import Dataset, Example

SUFFIXES = (".csv", ".tsv", ".txt", ".list", ".jsonl", ".parquet")
FILE_NAMES = ("labels", "annotations", "index", "videos")  # the table of a folder: one of these with one of SUFFIXES
COLUMNS = {
    "path": ("path", "video_path", "filepath", "file_path", "file", "filename", "file_name", "video", "video_id"),
    "label": ("label", "class", "class_name", "category", "target"),
    "text": ("text", "caption", "sentence", "description"),
    "group": ("group",),
    "split": ("split", "subset", "fold"),
    "start": ("start", "start_seconds", "start_time"),
    "end": ("end", "end_seconds", "end_time"),
    "reverse": ("reverse_label",),
}
DELIMITERS = "\t;|,"  # tried in this order, then spaces


def matches(path: str | Path) -> bool:
    """Whether `path` is a text table or a folder that holds one at its top."""
    folder = Path(path)
    return _table_of(folder) is not None if folder.is_dir() else folder.suffix.lower() in SUFFIXES


def read(path: str | Path) -> Dataset:
    """The rows of a table as Examples, in the table's order; DataError naming the file and line where it cannot be
    read.

    Whether the videos themselves exist is not looked at here (see `tubelet inspect`). A path without a suffix that
    names a video file once .mp4, .webm, ... is added gets it.
    """
    table = file_of(path)
    _, rows, columns = _rows(table)
    folder = os.path.dirname(table)
    names_in = lru_cache(_names)  # of a folder, listed once however many rows point into it
    examples: list[Example] = []
    seen: dict[str, int] = {}
    for line, row in rows:
        values = {name: row[place].strip() for name, place in columns.items() if place < len(row)}
        if not values.get("path"):
            raise DataError(f"{table}, line {line}: no path in {' '.join(row)!r}: every row must name a video")
        start, end = _seconds(table, line, values, "start"), _seconds(table, line, values, "end")
        if start is not None and end is not None and end <= start:
            raise DataError(f"{table}, line {line}: the part ends at {end:g} s, before or at its start {start:g} s")
        where = "" if start is None and end is None else f"@{start or 0:g}-{'' if end is None else format(end, 'g')}"
        name = values["path"].replace("\\", "/") + where
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:  # the same part twice, for instance with two captions
            name = f"{name}#{seen[name]}"
        examples.append(
            Example(
                _resolve(folder, values["path"], names_in),
                name,
                label=values.get("label") or None,
                text=values.get("text") or None,
                start_seconds=start,
                end_seconds=end,
                group=values.get("group") or None,
                split=values.get("split") or None,
            )
        )
    classes = tuple(sorted({example.label for example in examples if example.label is not None}, key=natural))
    return Dataset(tuple(examples), classes, may_flip(classes) and "reverse" not in columns)


Part = tuple[str, float | None, float | None]  # a video, and the seconds of it that are meant; None: from its start, to its end


def with_paths(path: str | Path, names: Mapping[Part, str], trimmed: bool = False) -> str:
    """The table at `path` as CSV text for another folder, where `names` says how each of its videos is called there.

    Rows, their order, all other columns and, where a video keeps its name, how a row spells it stay as they are. trimmed: `names`
    has the parts that rows mean, which are files of their own there. The columns of start and end go, and rows without a group get
    their video as one: parts of one video must not be trained on and held out.
    """
    table = file_of(path)
    header, rows, columns = _rows(table)
    names_in = lru_cache(_names)
    width = max(len(header), *(len(row) for _, row in rows))
    if trimmed and "group" not in columns:
        header, columns, width = [*header, *[""] * (width - len(header)), "group"], columns | {"group": width}, width + 1
    kept = [place for place in range(width) if not trimmed or place not in (columns.get("start"), columns.get("end"))]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    if header:
        filled = header + [""] * (width - len(header))
        writer.writerow([filled[place] for place in kept])
    for line, row in rows:
        fields = row + [""] * (width - len(row))
        spelled = fields[columns["path"]].strip()
        video = _resolve(os.path.dirname(table), spelled, names_in)
        values = {name: fields[place].strip() for name, place in columns.items()} if trimmed else {}
        name = names[video, _seconds(table, line, values, "start"), _seconds(table, line, values, "end")]
        plain = not os.path.isabs(spelled) and ".." not in Path(spelled).parts
        if not plain or os.path.relpath(video, os.path.dirname(table)) != name:
            fields[columns["path"]] = name
        if trimmed:
            fields[columns["group"]] = values.get("group") or spelled
        writer.writerow([fields[place] for place in kept])
    return text.getvalue()


def file_of(path: str | Path) -> str:
    """The table at `path`: itself, or the one in a folder."""
    table = os.fspath(path)
    if os.path.isdir(table):
        found = _table_of(Path(table))
        if found is None:
            raise DataError(f"{table} holds no table: wanted labels.csv, .tsv or .txt at its top, naming videos that exist")
        table = str(found)
    if not storage.is_remote(table) and not os.path.exists(table):
        raise DataError(f"{table} does not exist: wanted a table of videos (CSV, TSV or `path label` lines)")
    return table


def _table_of(folder: Path) -> Path | None:
    candidates = (folder / (name + suffix) for name in FILE_NAMES for suffix in SUFFIXES)
    return next((path for path in candidates if path.is_file() and _names_a_video(path)), None)


def _names_a_video(table: Path) -> bool:
    """Whether a row names a file that exists; a CSV or TSV file that cannot be read counts, so that its error is seen."""
    try:
        _, rows, columns = _rows(str(table))
    except DataError:
        return table.suffix.lower() in (".csv", ".tsv")
    names_in = lru_cache(_names)
    named = (row[columns["path"]].strip() for _, row in rows if columns["path"] < len(row))
    return any(os.path.isfile(_resolve(str(table.parent), name, names_in)) for name in named)


def _rows(table: str) -> tuple[list[str], list[tuple[int, list[str]]], dict[str, int]]:
    """The header (or []), (line number, fields) of every row that is not empty, and the place of each known column."""
    try:
        with storage.open_bytes(table) as file:
            data = file.read()
    except OSError as error:
        raise DataError(f"{table} cannot be read: {error.strerror or error}") from error
    suffix = os.path.splitext(table)[1].lower()
    if suffix == ".parquet":
        return _with_names(table, _parquet_rows(table, data))
    try:
        text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig").read()  # any line ending as "\n"
    except UnicodeDecodeError as error:
        raise DataError(f"{table} is not a text table: byte {error.start} is not UTF-8; save it as UTF-8 text") from error
    if suffix == ".jsonl":
        return _with_names(table, _json_rows(table, text))
    if "\0" in text:
        raise DataError(f"{table} is not a text table: it holds binary data")
    delimiter = _delimiter(text)
    if delimiter:
        reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter, skipinitialspace=True)
        try:
            rows = [(reader.line_num, row) for row in reader if any(field.strip() for field in row)]
        except csv.Error as error:
            raise DataError(f"{table}, line {reader.line_num}: {error}") from error
    else:
        rows = [(i, _split_spaces(line)) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not rows:
        raise DataError(f"{table} is empty: wanted a header such as `path,label` and one row per video")
    columns, header = _header(rows[0][1]), []
    if columns:
        header, rows = rows[0][1], rows[1:]
        if not rows:
            raise DataError(f"{table} has a header but no row: wanted one row per video")
        if "path" not in columns:
            raise DataError(f"{table} has the columns {', '.join(columns)}, but none called path (or file, video, ...)")
    else:
        columns = _columns_without_header(table, [row for _, row in rows])
    return header, rows, columns


def _with_names(
    table: str, rows: list[tuple[int, dict[str, Any]]]
) -> tuple[list[str], list[tuple[int, list[str]]], dict[str, int]]:
    """Rows of values by name, as `_rows` gives them: as text, "" where there is none."""
    header = list(dict.fromkeys(name for _, row in rows for name in row))
    columns = _header(header)
    if not rows:
        raise DataError(f"{table} is empty: wanted one row per video")
    if "path" not in columns:
        raise DataError(f"{table} has the columns {', '.join(header) or 'none'}, but none called path (or file, video, ...)")
    fields = [["" if row.get(name) is None else str(row[name]) for name in header] for _, row in rows]
    return header, [(line, values) for (line, _), values in zip(rows, fields, strict=True)], columns


def _parquet_rows(table: str, data: bytes) -> list[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return list(enumerate(pq.read_table(pa.BufferReader(data)).to_pylist(), 1))
    except pa.ArrowException as error:
        raise DataError(f"{table} is not a Parquet table: {error}") from error


def _json_rows(table: str, text: str) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{table}, line {number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f'{table}, line {number}: wanted an object such as {{"path": "a.mp4", "label": "wave"}}')
        rows.append((number, row))
    return rows


def _delimiter(text: str) -> str:
    """The delimiter by which the first lines all have the same number of fields, at least two; "" for spaces or one
    column."""
    lines = [line for line in text.splitlines() if line.strip()][:50]
    for delimiter in DELIMITERS:
        try:
            counts = {len(row) for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True)}
        except csv.Error:
            continue
        if len(counts) == 1 and counts.pop() > 1:
            return delimiter
    # Ragged rows (an optional last column): trust a header.
    return next((d for d in DELIMITERS if len(lines) > 1 and len(_header(lines[0].split(d))) > 1), "")


_ANY_SUFFIX = "|".join(re.escape(suffix) for suffix in sorted(VIDEO_SUFFIXES, key=len, reverse=True))
_PATH_THEN_REST = re.compile(
    rf"""\s*(?:"(?P<quoted>[^"]+)"|(?P<path>.+?(?:{_ANY_SUFFIX})))(?:\s+(?P<rest>.*?))?\s*$""", re.IGNORECASE
)


def _split_spaces(line: str) -> list[str]:
    """Fields of a space-separated line: a path up to its video suffix may hold spaces; what follows is numbers or one
    name."""
    match = _PATH_THEN_REST.match(line)
    if match is None:
        return line.split()
    rest = (match["rest"] or "").strip().strip('"')
    fields = rest.split()
    if not all(_is_number(field) for field in fields):
        fields = [rest]
    return [match["quoted"] or match["path"], *fields]


def _header(row: list[str]) -> dict[str, int]:
    """{our name: place} when the first row is a header, which is when it names a known column and no video file; else
    {}."""
    if any(is_video(field.strip()) for field in row):
        return {}
    names = [field.strip().lower() for field in row]
    found = {}
    for ours, theirs in COLUMNS.items():
        place = next((names.index(name) for name in theirs if name in names), None)
        if place is not None:
            found[ours] = place
    return found


def _columns_without_header(table: str, rows: list[list[str]]) -> dict[str, int]:
    width = max(len(row) for row in rows)
    if width == 1:
        return {"path": 0}
    if width == 2:
        return {"path": 0, "label": 1}
    if width == 3 and all(len(row) == 3 and row[1].isdecimal() and row[2].isdecimal() for row in rows):
        return {"path": 0, "label": 2}  # path frame_count label
    if width == 4 and all(len(row) == 4 and _is_number(row[2]) and _is_number(row[3]) for row in rows):
        return {"path": 0, "label": 1, "start": 2, "end": 3}
    raise DataError(
        f"{table} has {width} columns and no header, so what they mean is not known; add a first line such as "
        f"`path,label,split` (known columns: {', '.join(COLUMNS)})"
    )


def _resolve(folder: str, name: str, names_in: Callable[[str], frozenset[str]]) -> str:
    path = storage.join(folder, name)
    if os.path.splitext(path)[1]:
        return path
    place, stem = os.path.split(path)
    there = names_in(place)
    suffixes = (".mp4", ".webm", ".avi", ".mkv", ".mov")
    return next((path + suffix for suffix in suffixes if stem + suffix in there and stem not in there), path)


def _names(folder: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()


def _seconds(table: str, line: int, values: dict[str, str], name: str) -> float | None:
    text = values.get(name)
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise DataError(f"{table}, line {line}: {name} is {text!r}: wanted seconds, 0 or more")
    return seconds


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\d+(\.\d+)?", text) is not None
