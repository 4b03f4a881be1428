"""The report's sections of `tubelet probe`: is it really video?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tubelet.evaluate._html import between, missing_table, percent, pictures, points, table, text

Sections = Mapping[str, Any]


def probe(folder: Path, sections: Sections) -> str:
    """The verdict, each order of frames, classes that are each other's reversal, and the saturation curve."""
    found = sections.get("probe")
    if not found:
        return ""
    gap, direction = found["single_frame_gap"], found["direction"]
    pairs = [row for row in found["pairs"] if row["share"] is not None]
    tiles = [
        (f"{100 * gap['gap']:+.1f}", f"points over one frame repeated ({points(gap)})"),
        (percent(direction["share"]), f"forward over reversed, {direction['videos']} videos ({between(direction)})"),
    ]
    if pairs:
        tiles.append((percent(pairs[-1]["share"]), f"direction of pairs, both ways ({between(pairs[-1])})"))
    if single := found.get("single_frame_model"):
        tiles.append((f"{100 * single['gap']['gap']:+.1f}", f"points over {text(single['name'])} ({points(single['gap'])})"))
    tops = "".join(
        f'<div class="tile{"" if index else " lead"}"><b>{number}</b><span>{said}</span></div>'
        for index, (number, said) in enumerate(tiles)
    )
    count = f"{found['asked'] - len(found['missing'])} of {found['asked']} videos"
    facts = f"{text(found['part'])}: {count}, {found['clips']} × {found['crops']} views each, "
    facts += f"answers of {text(found['judged_by'])}." + (f" <b>{text(found['note'])}.</b>" if found["note"] else "")
    if found["subtracted"]:
        facts += " The mean frame of the clip was subtracted before: even one frame carries something of the others."
    orders = table(
        found["orders"],
        [
            ("Frames", lambda row: f"<b>{text(row['order'])}</b>", False),
            ("Top-1", lambda row: percent(row["share"]), True),
            ("95 % interval", between, True),
            ("", lambda row: f'<div class="bar"><span style="width:{row["share"]:.2%}"></span></div>', False),
            ("Lost", lambda row: "" if row["order"] == "as given" else f"{100 * row['drop']['gap']:.1f}", True),
            ("95 % interval", lambda row: "" if row["order"] == "as given" else points(row["drop"]), True),
        ],
    )
    body = f'<p><b>{text(found["verdict"])}</b></p><p class="note">{facts}</p><div class="tiles">{tops}</div>{orders}'
    body += pictures(folder, ["orders"], "One video in each order, and what the model said of it.")
    body += f"<h3>Forward and backward</h3><p>{FORWARD}</p>{reversals(found)}"
    body += "<h3>How many frames it needs</h3>" + pictures(folder, ["saturation"], SATURATION) + frame_counts(found)
    return body + (f"<h3>Missing</h3>{missing_table(found['missing'])}" if found["missing"] else "")


FORWARD = (
    "Forward over reversed: how often the true class is more probable for the clip than for the clip played backwards. Where the "
    "reversal of one class is another class, the clip should be taken for the one and its reversal for the other, of these two. "
    "A model that does not know the order of frames scores exactly 50 % in both, because the same answer to both is half right."
)
SATURATION = (
    "Vertical lines are 95 % intervals. A hollow point: the model cannot take so few frames, so each was repeated to fill its "
    "clip. Clips that most videos are too short for are in the table only. The model is not trained again for other clips than its "
    "own: where it falls, it may be unused to them rather than in want of frames."
)


def reversals(found: Sections) -> str:
    """Pairs of classes that are each other's reversal, the total last."""
    if not found["pairs"]:
        return (
            "<p>No pair of classes was named (--pairs), and the model takes no two classes for each other when their clips are "
            "played backwards.</p>"
        )
    lines = table(
        found["pairs"],
        [
            ("Pair", lambda row: " ↔ ".join(map(text, row["pair"])) if row["pair"] else "<b>all pairs</b>", False),
            ("Videos", lambda row: str(row["videos"]), True),
            ("Clips", lambda row: percent(row["forward"]), True),
            ("Reversals", lambda row: percent(row["reversed"]), True),
            ("Both", lambda row: f"<b>{percent(row['share'])}</b>", True),
            ("95 % interval", between, True),
        ],
    )
    own = (
        "The pairs were found by playing clips backwards and asking the model itself: it is judged where it does best. "
        "Name them with --pairs for an even comparison of models."
    )
    return lines + ("" if found["pairs_given"] else f'<p class="note">{own}</p>')


def frame_counts(found: Sections) -> str:
    def shown(row: Sections) -> str:
        padded = f"{row['padded']} of {row['videos']} videos are shorter" if row["padded"] else ""
        filled = f"each frame repeated to fill {found['trained_frames']}" if row["filled"] else ""
        return text(row["why"]) if "why" in row else "; ".join(filter(None, (filled, padded)))

    def trained(row: Sections) -> bool:
        return (row["frames"], row["stride_frames"]) == (found["trained_frames"], found["trained_stride_frames"])

    return table(
        found["saturation"],
        [
            ("Frames", lambda row: f"<b>{row['frames']}</b>" if trained(row) else str(row["frames"]), True),
            ("Stride", lambda row: str(row["stride_frames"] or "segments"), True),
            ("Top-1", lambda row: percent(row["share"]), True),
            ("95 % interval", between, True),
            ("", lambda row: f'<span class="quiet">{"as trained" if trained(row) else shown(row)}</span>', False),
        ],
    )
