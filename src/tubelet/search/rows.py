"""What a library holds of one video: a row for every window, every minute and all of it."""

import datetime
import hashlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tubelet import storage
from tubelet.errors import utf8
from tubelet.features import Embedded, pool
from tubelet.records import Example
from tubelet.search import lance
from tubelet.search.lance import About

if TYPE_CHECKING:
    import pyarrow as pa


def item(example: Example) -> str:
    """What an Example is called in the library: the absolute path (as UTF-8), and which part of it."""
    start, end = example.start_seconds, example.end_seconds
    part = "" if start is None and end is None else f"@{start or 0:g}-{'' if end is None else format(end, 'g')}"
    return str(utf8(storage.absolute(example.path))) + part


def row_of(event: Embedded, state: str) -> dict[str, Any]:
    """One window, as it is stored."""
    example, window, name = event.example, event.window, item(event.example)
    return {
        "id": f"{name}@{window.start_seconds:.3f}-{window.end_seconds:.3f}#{window.first}",
        "item": name,
        "state": state,
        "per": "window",
        "path": storage.absolute(example.path),
        "label": example.label,
        "text": example.text,
        "date": _date(example.path),
        "start_seconds": window.start_seconds,
        "end_seconds": window.end_seconds,
        "shot": window.shot,
        "vector": event.vector.numpy(),
    }


def pooled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows for the minutes and for all of one video, from those of its windows."""
    starts, ends = [row["start_seconds"] for row in rows], [row["end_seconds"] for row in rows]
    vectors = torch.from_numpy(np.stack([row["vector"] for row in rows]))
    found = []
    for level, seconds in (("minute", 60.0), ("video", None)):
        for number, (start, end, vector) in enumerate(pool(starts, ends, vectors, seconds)):
            name = f"{rows[0]['item']}@{level}{number}"
            found.append(
                {
                    **rows[0],
                    "id": name,
                    "per": level,
                    "start_seconds": start,
                    "end_seconds": end,
                    "shot": 0,
                    "vector": vector.numpy(),
                }
            )
    return found


def state_of(example: Example) -> str:
    """Changes when the file, or what is said about it, does. OSError where there is no file."""
    size, version = storage.stat(example.path)
    said = hashlib.blake2b(repr((example.label, example.text)).encode(), digest_size=4).hexdigest()
    return f"{size} {version} {said}"


def _date(path: str) -> str | None:
    """When the file was changed last, by this machine's clock; None for what has no time."""
    try:
        return datetime.datetime.fromtimestamp(os.stat(path).st_mtime).isoformat(timespec="seconds")
    except (OSError, ValueError):
        return None


def as_table(rows: list[dict[str, Any]], about: About) -> "pa.Table":
    import pyarrow as pa

    columns_of = lance.schema(about)
    plain = list(columns_of)[:-1]
    columns = [pa.array([utf8(row[column.name]) for row in rows], column.type) for column in plain]
    flat = pa.array(np.concatenate([row["vector"] for row in rows]))
    return pa.table([*columns, pa.FixedSizeListArray.from_arrays(flat, about.width)], schema=columns_of)


def as_rows(table: "pa.Table") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.drop_columns(["vector"]).to_pylist()
    vectors = np.stack(table["vector"].to_numpy()).astype(np.float32)
    return [{**row, "vector": vector} for row, vector in zip(rows, vectors, strict=True)]
