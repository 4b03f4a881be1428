"""report.html: one file that opens offline, in light and dark. Everything is inline; the page may load nothing (see
its CSP)."""

import collections
import datetime
import html
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tubelet.evaluate._html import (
    count,
    decibel,
    details,
    flat,
    missing_table,
    pairs,
    percent,
    pictures,
    table,
    text,
    themed,
)
from tubelet.evaluate._page_probe import probe
from tubelet.evaluate._style import STYLE
from tubelet.show.curves import curves

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
        if data.get("precision", "fp32") != "fp32":
            facts.append(f"computed in {text(data['precision'])}")
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
    if row.get("note"):
        name += f'<span class="quiet under">{text(row["note"])}</span>'
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
    views += ", bf16" if row.get("precision") == "bf16" else ""
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
