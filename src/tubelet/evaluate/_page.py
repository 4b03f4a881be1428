"""report.html: one file that opens offline, in light and dark. Everything is inline; the page may load nothing (see
its CSP)."""

import base64
import collections
import datetime
import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tubelet.evaluate._style import STYLE
from tubelet.show._figure import DOTS_PER_INCH
from tubelet.show.curves import curves

MEDIA = {".png": "image/png", ".gif": "image/gif", ".mp4": "video/mp4"}

Sections = Mapping[str, Any]


def page(folder: Path, sections: Sections, log: Sequence[Mapping[str, Any]]) -> str:
    """The whole page as text, from report.json's sections, the run's log, and the pictures in the folder."""
    parts: list[tuple[str, str, str]] = []  # (anchor, heading, body)

    def add(anchor: str, heading: str, body: str) -> None:
        if body:
            parts.append((anchor, heading, body))

    add("results", "Results", results(sections))
    add("retrieval", "Sentences and videos", retrieval(sections))
    add("probe", "Is it really video?", probe(folder, sections))
    add("ladder", "The ladder", ladder(sections))
    add("cost", "Accuracy against cost", pictures(folder, ["ladder"], LADDER))
    add("learning", "While training", pictures(folder, ["learning"], LEARNING))
    add("curves", "Learning curves", learning_curves(log))
    add("reconstructions", "Reconstructions", reconstructions(folder, sections))
    add("masks", "Masks", pictures(folder, ["masks"], MASKS))
    add("confusion", "Confusion matrix", pictures(folder, ["confusion"], CONFUSION))
    add("classes", "Classes one by one", classes(sections))
    add("map", "Embedding map", pictures(folder, ["embedding_map"], MAP))
    add("mistakes", "Worst mistakes", mistakes(folder, sections))
    add("attention", "Attention", pictures(folder, ["attention"], ATTENTION))
    add("missing", "Missing videos", missing(sections))
    add("timing", "Timing", timing(sections, log))
    add("environment", "Settings and environment", environment(folder, sections))
    name = html.escape(str(sections.get("name", folder.resolve().name)))
    nav = "".join(f'<a href="#{anchor}">{heading}</a>' for anchor, heading, _ in parts)
    body = "".join(f'<section id="{anchor}"><h2>{heading}</h2>{content}</section>' for anchor, heading, content in parts)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; media-src data:; '
        f"style-src 'unsafe-inline'\"><title>{name} · Tubelet report</title><style>{STYLE}</style></head><body>"
        f'<header><p class="kicker">Tubelet report</p><h1>{name}</h1>{subtitle(sections)}<nav>{nav}</nav></header>'
        f"<main>{body}</main></body></html>"
    )


LADDER = (
    "Every point is a model, the line through it the 95 % interval of its top-1, the dashed line chance. Cost grows to the right "
    "in the first and the third panel, speed in the second."
)
LEARNING = "The same held-out videos at every mark; the last weights are judged, whatever came before them."
MASKS = "Dimmed tubelets are hidden from the model. What leaks could be copied from the same place at another time."
ATTENTION = (
    "The first of the videos. Bright places are those that the last block reads from most, which need not be those that decide "
    "the answer."
)
CONFUSION = (
    "Rows are the true classes, columns what the model said first. Shade is the share of the row, the number counts videos."
)
MAP = (
    "Every point is a video; the plane is the two directions in which the embeddings differ most (principal "
    "components). Videos the model finds alike lie together. Two directions show only their share of the whole, "
    "given along the axes."
)


def subtitle(sections: Sections) -> str:
    model, data = sections.get("model", {}), sections.get("data", {})
    facts = []
    if model:
        facts.append(f"{text(model['name'])}, {model['params'] / 1e6:.1f} M parameters")
        facts.append(f"clips of {model['frames']} frames at {model['size']} × {model['size']}")
    if data:
        if data.get("part"):
            facts.append(text(data["part"]))
        facts.append(f"{data['evaluated']} of {data['asked']} videos evaluated, {data['clips']} × {data['crops']} views each")
    if "updated" in sections:
        facts.append(datetime.datetime.fromisoformat(sections["updated"]).strftime("%-d %B %Y, %H:%M"))
    return f'<p class="facts">{" · ".join(facts)}</p>'


def results(sections: Sections) -> str:
    """Big numbers of the first rows, then the whole table with bars and 95 % intervals."""
    rows = sections.get("results", [])
    if not rows:
        return ""
    best = [row for row in rows if row["top1"] is not None]
    # The first tile is the result, the others what it must beat: the same method from random weights, and the floor.
    shown = best[:1] + [
        row
        for row in best[1:]
        if row["weights"] in ("majority class", "chance")
        or (row["weights"] == "random initialisation" and row["name"] == best[0]["name"])
    ]
    tiles = "".join(
        f'<div class="tile{" lead" if index == 0 else ""}"><b>{percent(row["top1"])}</b><span>{title_of(row)}</span></div>'
        for index, row in enumerate(shown)
    )
    with_note = any(row.get("note") for row in rows)
    lines = "".join(result_line(row, with_note, row is best[0] if best else False) for row in rows)
    heads = ["", "Top-1", "", "Top-5", "Mean of classes", "Videos", "Views"] + ([""] if with_note else [])
    head = "".join(f"<th{'' if index in (0, 2, 7) else ' class=n'}>{name}</th>" for index, name in enumerate(heads))
    few = len(sections.get("classes", [])) if 0 < len(sections.get("classes", [])) < 5 else 0
    note = "The thin line over each bar is the 95 % interval of top-1 on this many videos."
    met = sections.get("data", {}).get("trained_on")
    if met:
        note += (
            f" <b>The model was trained on {met} of the evaluated videos: its numbers do not show how it does on new ones.</b>"
        )
    if few:
        note += f" With {few} classes, top-5 is top-{few}."
    return (
        f'<div class="tiles">{tiles}</div><div class="scroll"><table class="results"><thead><tr>{head}</tr></thead>'
        f'<tbody>{lines}</tbody></table></div><p class="note">{note}</p>'
    )


def retrieval(sections: Sections) -> str:
    """Recall and ranks in both directions beside chance."""
    if "retrieval" not in sections:
        return ""
    columns: list[tuple[str, Callable[[Mapping[str, Any]], str], bool]] = [
        ("", lambda row: text(f"{row['query']}, {row['weights']}"), False),
        *((f"R@{k}", lambda row, k=k: percent(row[f"recall_at_{k}"]), True) for k in (1, 5, 10)),
        ("Median rank", lambda row: f"{row['median_rank']:g}", True),
        ("Mean rank", lambda row: f"{row['mean_rank']:.1f}", True),
        ("Of", lambda row: str(row["candidates"]), True),
    ]
    note = "R@k: the share of questions answered among the first k. A wrong answer of the same score counts half a place."
    return f'{table(sections["retrieval"], columns)}<p class="note">{note}</p>'


def ladder(sections: Sections) -> str:
    """The best model, the first rung and chance as big numbers, then a line for every model that was compared."""
    if "ladder" not in sections:
        return ""
    rows = sections["ladder"]["rows"]
    numbered = [row for row in rows if row["top1"] is not None]
    floors = [row for row in numbered if row["weights"] in ("majority class", "chance")]
    compared = [row for row in numbered if row not in floors]
    best = max(compared, key=lambda row: row["top1"])
    shown = [best, *(row for row in compared[:1] if row is not best), *floors]
    tiles = "".join(
        f'<div class="tile{" lead" if row is best else ""}"><b>{percent(row["top1"])}</b>'
        f"<span>top-1, {text(row['name'])}</span></div>"
        for row in shown
    )
    columns = (
        "Top-1",
        "",
        "Mean of classes",
        "M parameters",
        "GMAC",
        "Clips/s",
        "in training",
        "Minutes",
        "Training clips",
        "",
    )
    head = "<th></th>" + "".join(f"<th{' class=n' if name else ''}>{name}</th>" for name in columns)
    lines = "".join(ladder_line(row, row is best) for row in rows)
    name, value = next(iter(sections["ladder"]["budget"].items()))
    note = (
        f"Every model had {value:,g} {name} of training, the same clips, augmentation and learning rate, and the same held-out "
        "videos, one view each. The thin line over each bar is the 95 % interval of top-1. Clips/s is inference from frames "
        "in memory, in batches, the models in turn; in training it includes loading. What does not beat a model "
        "of single frames has not shown that it uses motion."
    )
    return (
        f'<div class="tiles">{tiles}</div><div class="scroll"><table class="results"><thead><tr>{head}</tr></thead>'
        f'<tbody>{lines}</tbody></table></div><p class="note">{note}</p>'
    )


def ladder_line(row: Mapping[str, Any], lead: bool) -> str:
    name = f"<b>{text(row['name'])}</b>"
    if row["weights"] != row["name"]:
        name += f'<span class="quiet under">{text(row["weights"])}</span>'
    if row["top1"] is None:
        return f'<tr><td>{name}</td><td class="quiet" colspan={3 + len(LADDER_NUMBERS)}>{text(row["note"])}</td></tr>'
    numbers = [percent(row["mean_class_accuracy"]), *(count(row.get(key), scale) for key, scale in LADDER_NUMBERS.items())]
    cells = "".join(f"<td class=n>{number}</td>" for number in numbers)
    kind = "lead" if lead else "floor" if row["weights"] in ("majority class", "chance") else ""
    return (
        f'<tr class="{kind}"><td>{name}</td><td class="n top">{percent(row["top1"])}</td><td class="bars">{bar(row)}</td>'
        f"{cells}</tr>"
    )


LADDER_NUMBERS = {"params": 1e6, "gmacs": 1, "clips_per_second": 1, "training_clips_per_second": 1, "training_seconds": 60,
                  "training_clips": 1}  # fmt: skip


def bar(row: Mapping[str, Any]) -> str:
    """Top-1 as a bar with its interval, where there is one."""
    low, high = row.get("top1_low"), row.get("top1_high")
    interval = ""
    if low is not None and high is not None:
        interval = f'<i style="left:{low:.2%};width:{high - low:.2%}" title="95 %: {percent(low)} to {percent(high)}"></i>'
    return f'<div class="bar"><span style="width:{row["top1"]:.2%}"></span>{interval}</div>'


def title_of(row: Mapping[str, Any]) -> str:
    """`top-1, fine-tuned after pretraining`: what was measured and where its weights come from."""
    if row["weights"] in (row["name"], "this model"):
        return f"top-1, {text(row['name'])}"
    where = "after pretraining" if row["weights"] == "pretrained" else f"from {row['weights']}"
    return f"top-1, {text(row['name'])} {text(where)}"


def result_line(row: Mapping[str, Any], with_note: bool, lead: bool) -> str:
    name = f"<b>{text(row['name'])}</b>"
    if row["weights"] != row["name"]:
        name += f'<span class="quiet under">{text(row["weights"])}</span>'
    note = f'<td class="quiet">{text(row.get("note") or "")}</td>' if with_note else ""
    if row["top1"] is None:
        none = "<td class=n>–</td>"
        return f"<tr><td>{name}</td>{none}<td></td>{none * 4}{note}</tr>"
    kind = "lead" if lead else "floor" if row["weights"] in ("majority class", "chance") else ""
    numbers = "".join(f"<td class=n>{percent(row.get(key))}</td>" for key in ("top5", "mean_class_accuracy"))
    videos = row.get("videos")
    views = f"{row['clips']} × {row['crops']}" if "clips" in row else ""
    return (
        f'<tr class="{kind}"><td>{name}</td><td class="n top">{percent(row["top1"])}</td>'
        f'<td class="bars">{bar(row)}</td>{numbers}'
        f"<td class=n>{'' if videos is None else videos}</td><td class=n>{views}</td>{note}</tr>"
    )


def learning_curves(log: Sequence[Mapping[str, Any]]) -> str:
    panels = log_panels(log)
    if not panels:
        return ""
    return f"<figure>{themed(curves(panels), curves(panels, dark=True), 'learning curves')}</figure>"


TITLES = {
    "loss": "Loss",
    "accuracy": "Accuracy",
    "lr": "Learning rate",
    "gradient_norm": "Gradient norm",
    "clips_per_second": "Clips per second",
    "waiting": "Share of time waiting for data",
}
NOT_DRAWN = ("step", "epoch", "seconds", "skipped", "padded", "val_videos")


def log_panels(log: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """{title: {line: (steps, values)}} of every number in the log that changes; `val_x` shares the panel of `x`,
    and `val_top1` that of `accuracy`."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for index, entry in enumerate(log):
        for key, value in entry.items():
            if key in NOT_DRAWN or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            steps, values = series.setdefault(key, ([], []))
            steps.append(float(entry.get("step", index)))
            values.append(float(value))
    order = list(TITLES)

    def plain(key: str) -> str:
        name = key.removeprefix("val_")
        return "accuracy" if name == "top1" else name

    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for key in sorted(series, key=lambda key: order.index(plain(key)) if plain(key) in order else len(order)):
        if len(set(series[key][1])) > 1:
            title = TITLES.get(plain(key), plain(key).replace("_", " ").capitalize())
            panels.setdefault(title, {})["validation" if key.startswith("val_") else "training"] = series[key]
    return panels


def reconstructions(folder: Path, sections: Sections) -> str:
    rows = sections.get("reconstructions", [])
    if not rows:
        return ""
    body = pictures(folder, ["reconstruction"], "The same clip, moving.")
    for index, row in enumerate(rows):
        caption = f"{text(row['id'])} · {text(row['mask'])} mask, {row['ratio']:.0%} hidden"
        body += pictures(folder, [f"reconstruction_{index}"], caption, escape=False)
    columns: list[tuple[str, Callable[[Mapping[str, Any]], str], bool]] = [
        ("Clip", lambda row: text(row["id"]), False),
        ("Honest", lambda row: decibel(row["psnr"].get("honest")), True),
        ("Neighbours alone", lambda row: decibel(row["psnr"].get("neighbours")), True),
        ("Target-normalised", lambda row: decibel(row["psnr"].get("target_normalized")), True),
    ]
    note = (
        "PSNR counts hidden pixels only. <b>Honest</b> uses nothing that was hidden; <b>neighbours alone</b> fills "
        "hidden tubelets with the colour of visible ones, without a model. "
        "<b>Target-normalised</b> gets the true mean and contrast of every hidden tubelet put back, so part of what it "
        "shows was never predicted."
    )
    return f'<p class="note">{note}</p>{body}{table(rows, columns)}'


def classes(sections: Sections) -> str:
    rows = sorted(sections.get("per_class", []), key=lambda row: -1 if row["accuracy"] is None else row["accuracy"])
    if not rows:
        return ""

    def accuracy(row: Mapping[str, Any]) -> str:
        if row["accuracy"] is None:
            return "no video"
        return f'<div class="bar"><span style="width:{row["accuracy"]:.2%}"></span></div>'

    def mistaken(row: Mapping[str, Any]) -> str:
        return f"{text(row['mistaken_for'])} ({row['mistaken_times']})" if row["mistaken_for"] is not None else ""

    return table(
        rows,
        [
            ("Class", lambda row: f"<b>{text(row['class'])}</b>", False),
            ("Accuracy", lambda row: percent(row["accuracy"]), True),
            ("", accuracy, False),
            ("Right", lambda row: f"{row['correct']} of {row['videos']}", True),
            ("Most often taken for", mistaken, False),
        ],
    )


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
            ("Stride", lambda row: str(row["stride_frames"]), True),
            ("Top-1", lambda row: percent(row["share"]), True),
            ("95 % interval", between, True),
            ("", lambda row: f'<span class="quiet">{"as trained" if trained(row) else shown(row)}</span>', False),
        ],
    )


def mistakes(folder: Path, sections: Sections) -> str:
    if "mistakes" not in sections:
        return ""
    if not sections["mistakes"]:
        return "<p>None: every video was classified correctly.</p>"
    return pictures(folder, ["mistakes"], "Wrong answers the model was most sure of, with the frames it saw.")


def missing(sections: Sections) -> str:
    if "data" not in sections:
        return ""
    asked, rows = sections["data"]["asked"], sections.get("missing", [])
    if not rows:
        return f"<p>None. All {asked} videos could be read, and every number divides by all of them.</p>"
    said = f"<p>{len(rows)} of {asked} videos could not be read. They are in no number above, and nothing took their place.</p>"
    return said + missing_table(rows)


def missing_table(rows: Sequence[Mapping[str, Any]]) -> str:
    return table(rows, [("Video", lambda row: text(row["id"]), False), ("Why", lambda row: text(row["reason"]), False)])


def timing(sections: Sections, log: Sequence[Mapping[str, Any]]) -> str:
    values: dict[str, Any] = {}
    last = dict(collections.ChainMap(*({**entry} for entry in reversed(log))))  # the newest value of every number
    for key, name in COUNTED.items():
        if key in last:
            values[name] = last[key]
    values |= sections.get("timing", {})
    return pairs({key: f"{value:,.1f}" if isinstance(value, float) else value for key, value in values.items()})


COUNTED = {
    "seconds": "training (seconds)",
    "clips_per_second": "training (clips per second)",
    "step": "training steps",
    "skipped": "videos skipped in training because they could not be read",
    "padded": "training clips longer than their video",
}


def environment(folder: Path, sections: Sections) -> str:
    body = ""
    facts = sections.get("environment", {})
    if (folder / "environment.json").is_file():
        facts = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    if facts:
        body += pairs(flat(facts))
    if "model" in sections:
        body += details("Model and clip", pairs(flat(sections["model"])))
    if (folder / "config.yaml").is_file():
        settings = (folder / "config.yaml").read_text(encoding="utf-8")
        body += details("Every setting of the run (config.yaml)", f"<pre>{text(settings)}</pre>")
    return body


# Pieces ------------------------------------------------------------


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
