"""How commands print: a table for people, JSON for machines. Answers go to stdout, everything else to stderr."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tubelet.errors import printable, utf8


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] | Sequence[str] | None = None) -> None:
    """Print rows as aligned columns: text to the left, numbers to the right, None as "-".

    columns: which keys of a row, in order; a mapping gives the heading of each (default: every key of the first row).
    """
    if columns is None:
        columns = list(rows[0]) if rows else []
    headings = dict(columns) if isinstance(columns, Mapping) else {name: name for name in columns}
    if not headings:
        return
    cells = [[_cell(row.get(key)) for key in headings] for row in rows]
    right = [
        any(isinstance(row.get(key), int | float) for row in rows)
        and all(row.get(key) is None or isinstance(row.get(key), int | float) for row in rows)
        for key in headings
    ]
    widths = [max(map(len, column)) for column in zip(headings.values(), *cells, strict=True)]
    for line in [list(headings.values()), ["-" * width for width in widths], *cells]:
        padded = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        )
        print("  ".join(padded).rstrip())


def tell(line: str = "") -> None:
    """Print a line of an answer on stdout. It stays one line that no terminal obeys, whatever the names of files in it."""
    print(printable(line))


def emit_json(value: Any) -> None:
    """Print one JSON document on stdout, and nothing else may be printed there."""
    ascii = "utf" not in (sys.stdout.encoding or "utf-8").lower()  # another encoding may not have every letter
    print(utf8(json.dumps(value, indent=2, ensure_ascii=ascii, allow_nan=False)))


def note(message: str) -> None:
    """Print progress or a remark on stderr, where it cannot spoil the answer on stdout."""
    # print() writes the line and its end one after the other, and of several processes lines would run into each other.
    sys.stderr.write(f"{printable(message)}\n")
    sys.stderr.flush()


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".") if abs(value) < 1000 else f"{value:,.0f}"
    return printable(str(value))
