"""Pieces of HTML that the report is put together from: pictures inline, tables, numbers as text."""

import base64
import html
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tubelet.show._figure import DOTS_PER_INCH

MEDIA = {".png": "image/png", ".gif": "image/gif", ".mp4": "video/mp4"}


def pictures(folder: Path, stems: Sequence[str], caption: str, escape: bool = True) -> str:
    """Figures of those pictures/ files that exist: STEM.light.png with STEM.dark.png, or one STEM.(mp4|gif|png) for
    both."""
    body = ""
    for stem in stems:
        light, dark = (folder / "pictures" / f"{stem}.{theme}.png" for theme in ("light", "dark"))
        if light.is_file() and dark.is_file():
            body += themed(light.read_bytes(), dark.read_bytes(), stem)
            continue
        for suffix in (".mp4", ".gif", ".png"):
            path = folder / "pictures" / f"{stem}{suffix}"
            if path.is_file():
                uri = data_uri(path.read_bytes(), suffix)
                if suffix == ".mp4":
                    body += f'<video src="{uri}" autoplay loop muted playsinline controls></video>'
                else:
                    body += f'<img class="sheet" src="{uri}" alt="{text(stem)}">'
                break
    return f"<figure>{body}<figcaption>{text(caption) if escape else caption}</figcaption></figure>" if body else ""


def data_uri(content: bytes, suffix: str) -> str:
    return f"data:{MEDIA[suffix]};base64,{base64.b64encode(content).decode()}"


def themed(light: bytes, dark: bytes, name: str) -> str:
    """One figure, PNG bytes in two inks, at its drawn size; the browser shows the one that fits the page."""
    width = int.from_bytes(light[16:20], "big") * 96 // DOTS_PER_INCH  # a PNG says its width there; CSS has 96 px an inch
    source = f'<source srcset="{data_uri(dark, ".png")}" media="(prefers-color-scheme: dark)">'
    image = f'<img src="{data_uri(light, ".png")}" width="{width}" alt="{text(name.replace("_", " "))}">'
    return f"<picture>{source}{image}</picture>"


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, Callable[[Mapping[str, Any]], str], bool]]) -> str:
    """A table of `columns` (heading, cell as HTML, is it a number)."""
    head = "".join(f"<th{' class=n' if number else ''}>{text(heading)}</th>" for heading, _, number in columns)
    lines = "".join(
        "<tr>" + "".join(f"<td{' class=n' if number else ''}>{cell(row)}</td>" for _, cell, number in columns) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def missing_table(rows: Sequence[Mapping[str, Any]]) -> str:
    return table(rows, [("Video", lambda row: text(row["id"]), False), ("Why", lambda row: text(row["reason"]), False)])


def pairs(values: Mapping[str, Any]) -> str:
    """Names and values in two quiet columns."""
    return (
        "<dl>" + "".join(f"<dt>{text(key)}</dt><dd>{text(value)}</dd>" for key, value in values.items()) + "</dl>"
        if values
        else ""
    )


def details(summary: str, body: str) -> str:
    return f"<details><summary>{text(summary)}</summary>{body}</details>"


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists become comma-separated."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return out


def percent(share: float | None) -> str:
    return "–" if share is None else f"{share * 100:.1f} %"


def between(row: Mapping[str, Any]) -> str:
    """The 95 % interval of a share."""
    return "–" if row["low"] is None else f"{100 * row['low']:.1f} – {100 * row['high']:.1f} %"


def points(gap: Mapping[str, Any]) -> str:
    """The 95 % interval of a difference, in points."""
    return f"{100 * gap['low']:+.1f} to {100 * gap['high']:+.1f}"


def count(value: float | None, scale: float = 1) -> str:
    """Three digits that matter, of value / scale."""
    if value is None:
        return "–"
    value /= scale
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def decibel(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.1f} dB"


def text(value: Any) -> str:
    return html.escape(str(value))
