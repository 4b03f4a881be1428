"""What a library answers: which stretches are nearest to a vector, of those that a filter leaves, and a picture of them.

D width of the vectors.
"""

import datetime
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tubelet import storage
from tubelet.errors import ConfigError, VideoError, printable, utf8
from tubelet.search.lance import quoted
from tubelet.video.decode import decode
from tubelet.video.guard import run

Level = Literal["window", "minute", "video"]
LEVELS = ("window", "minute", "video")
PROBES = 160  # cells that a query looks at: of a million vectors 16 %, which found .953 of the nearest ten in clustered ones
ALL_CELLS = 1_000_000
REFINE = 5  # times as many candidates as are asked for are compared by their whole vectors


@dataclass(frozen=True)
class Hit:
    """One answer: a stretch of a file and how near it is, the cosine of its vector and the question's, -1 to 1.

    windows: how many of the stretches that were looked at overlap it in the same file, itself among them. gone: the file is no
    longer there.
    """

    path: str
    start_seconds: float
    end_seconds: float
    score: float
    label: str | None
    text: str | None
    date: str | None
    shot: int
    windows: int
    gone: bool


@dataclass(frozen=True)
class Filter:
    """Which stretches are looked at. path: a file, a folder, or a pattern with * and ?. label: exactly so. since, until: dates of
    the files in any form of ISO 8601, such as 2026-11-21, 2026-W47 or 2026-11-21T18:30Z, both included as far as they are given: a
    day to its end, a minute to its end. Without a zone they are by this machine's clock."""

    path: str = ""
    label: str = ""
    since: str = ""
    until: str = ""

    def __post_init__(self) -> None:
        for name in ("since", "until"):
            value = getattr(self, name)
            try:
                _ = value and _times(value)
            except (ValueError, OverflowError) as error:
                raise ConfigError(f"{name} is {value!r}: a date such as 2026-11-21 or 2026-11-21T18:30 is wanted") from error

    def sql(self) -> list[str]:
        """Conditions on the columns of the table."""
        found = []
        if self.path:
            place = utf8(self.path if self.path.startswith("*") else folder(self.path))
            if any(letter in place for letter in "*?"):
                pattern = "".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in place)
                found.append(f"regexp_like(path, {quoted(f'^(?s:{pattern})$')})")
            else:
                inside = [f"starts_with(path, {quoted(place.rstrip('/') + more)})" for more in ("/", "::")]  # :: in a tar
                found.append(f"(path = {quoted(place)} OR {' OR '.join(inside)})")
        if self.label:
            found.append(f"label = {quoted(self.label)}")
        if self.since:
            found.append(f"date >= {quoted(_times(self.since)[0].isoformat())}")
        if self.until:
            found.append(f"date < {quoted(_times(self.until)[1].isoformat())}")
        return found


def nearest(table: Any, query: np.ndarray, top: int, per: Level, only: Filter | None, exact: bool) -> list[Hit]:
    """The `top` rows of a level that are nearest to a unit vector (D,) and pass the filter, the best first; of those that overlap
    in one file only the best."""
    where = " AND ".join([f"per = '{per}'", *(only.sql() if only else ())])
    asked = 4 * min(top, table.count_rows()) + 20
    while True:
        found = _rows(table, query, where, asked, exact or per != "window")
        hits = _distinct(found, top)
        if len(hits) == top or len(found) < asked:
            return hits
        asked *= 4


def _rows(table: Any, query: np.ndarray, where: str, count: int, exact: bool) -> list[dict[str, Any]]:
    columns = ["path", "start_seconds", "end_seconds", "shot", "label", "text", "date", "_distance"]

    def ask(cells: int) -> list[dict[str, Any]]:
        asked = table.search(query, vector_column_name="vector").distance_type("cosine").where(where, prefilter=True)
        near = asked.nprobes(cells).refine_factor(REFINE) if cells else asked.bypass_vector_index()
        rows: list[dict[str, Any]] = near.limit(count).select(columns).to_list()
        return rows

    rows = ask(0 if exact else PROBES)
    # A filter may leave too few answers in the nearest cells, as a rare label does: then all are looked at.
    return rows if exact or len(rows) == count or not table.list_indices() else ask(ALL_CELLS)


def _distinct(rows: list[dict[str, Any]], top: int) -> list[Hit]:
    """The best of the rows, nearest first, of those that overlap in one file only the best."""
    best: list[dict[str, Any]] = []
    overlapping: list[int] = []
    for row in rows:
        for number, other in enumerate(best):
            apart = row["start_seconds"] >= other["end_seconds"] or row["end_seconds"] <= other["start_seconds"]
            if row["path"] == other["path"] and (not apart or row["start_seconds"] == other["start_seconds"]):
                overlapping[number] += 1
                break
        else:
            if len(best) < top:
                best.append(row)
                overlapping.append(1)
    there = {path: storage.exists(storage.from_utf8(path)) for path in {row["path"] for row in best}}
    return [
        Hit(
            path=row["path"],
            start_seconds=row["start_seconds"],
            end_seconds=row["end_seconds"],
            score=1 - row["_distance"],
            label=row["label"],
            text=row["text"],
            date=row["date"],
            shot=row["shot"],
            windows=count,
            gone=not there[row["path"]],
        )
        for row, count in zip(best, overlapping, strict=True)
    ]


def contact_sheet(hits: Sequence[Hit], shown: int = 8) -> bytes:
    """PNG with one row for each hit: `shown` frames of its seconds, its rank, score, file and times. Grey where a file is gone."""
    from tubelet.show.contact_sheet import contact_sheet as sheet

    rows = []
    for number, hit in enumerate(hits, 1):
        remark = f"{hit.start_seconds:.2f}-{hit.end_seconds:.2f} s" + (f", {hit.label}" if hit.label else "")
        try:
            seconds = np.linspace(hit.start_seconds, hit.end_seconds, shown)
            path = storage.from_utf8(hit.path)
            clip = run(path, decode, path, seconds=seconds, short_side=96)
            frames = clip.frames
        except VideoError:
            frames = torch.full((shown, 3, 96, 128), 64, dtype=torch.uint8)
            remark += ", the file is gone" if hit.gone else ", the file cannot be read"
        rows.append((frames, f"{number}  {hit.score:.3f}  {printable(os.path.basename(hit.path))}", remark))
    return sheet(rows, shown)


def _times(value: str) -> tuple[datetime.datetime, datetime.datetime]:
    """(first moment, first moment after it) of a date in ISO 8601 with or without a time, by this machine's clock and without a
    zone, as dates are stored. ValueError or OverflowError where it is none."""
    start = datetime.datetime.fromisoformat(value.strip())
    parts = re.fullmatch(r"(\d{4}-?\d\d-?\d\d|\d{4}-?W\d\d(?:-?\d)?)(?:.(.*))?", value.strip(), re.DOTALL)
    if parts is None:
        raise ValueError(f"{value!r} is no date")
    if parts[2]:
        digits = sum(letter.isdigit() for letter in re.split("[Z+-]", parts[2])[0])
        lasts = datetime.timedelta(seconds={2: 3600, 4: 60}.get(digits, 1))
    else:
        lasts = datetime.timedelta(days=7 if re.fullmatch(r"\d{4}-?W\d\d", parts[1]) else 1)
    if start.tzinfo is not None:
        start = start.astimezone().replace(tzinfo=None)
    whole = start.replace(microsecond=0)
    return start, whole + lasts if whole < datetime.datetime.max - lasts else datetime.datetime.max


def folder(place: str | Path) -> str:
    """The absolute path or address without a slash at its end."""
    return storage.absolute(place).rstrip("/") or "/"
