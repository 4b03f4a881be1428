"""Writes docs/benchmarks/index.md and its pictures from the JSON files beside it; a test fails when they differ.

    python benchmarks/page.py [--folder docs/benchmarks]

Of every benchmark the page has the table, and a picture of the first column whose name begins with "times" or "ratio",
with whiskers from "range": bars are grouped by the first column. Growth has curves with their exponents instead.
"""

import argparse
import io
import json
import re
from pathlib import Path
from typing import Any

import matplotlib
import measure
from growth import exponents
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tubelet.show._figure import LIGHT, PALETTE, new_figure, style

FOLDER = Path(__file__).parents[1] / "docs" / "benchmarks"
ASIDE = ("range", "note", "difference", "against")  # text columns that name nothing
PEER = "#b4bccb"
Rows = list[measure.Row]

# name of the JSON file -> (heading, what it says). In the order of the page.
SECTIONS = {
    "decode": ("From a file to one clip", "16 frames at stride 4 from a random place, as a square of 224 pixels, on one core."),
    "prepare": (
        "From prepared videos",
        "What `tubelet prepare` makes of a set once, against decoding the originals every time.",
    ),
    "load": (
        "Loading",
        "Batches of clips from files, by two workers. The ratio is of processor time a clip to that of the research recipe: "
        "every frame up to the window's end decoded, PIL for each frame, float32 made in the worker. "
        "“Waiting” is the share of time that a device taking this many clips a second stands still.",
    ),
    "pretrain": (
        "One step of pretraining",
        "From uint8 clips to updated weights, beside transformers (sdpa, fused AdamW) on equal weights, in one process that keeps "
        "what is freed; “a process each”: where only ours does. Dual masking is beside our own step without it.",
    ),
    "finetune": (
        "One step of fine-tuning",
        "From uint8 clips to updated weights, beside transformers (sdpa, fused AdamW) on equal weights, in one process that keeps "
        "what is freed; “a process each”: where only ours does. Where the other is compiled (torch.compile), ours is too.",
    ),
    "infer": (
        "Inference",
        "From uint8 clips to logits, beside transformers (sdpa) on equal weights; where it is compiled, ours is too; "
        "and the graphs that `tubelet export` makes of our model beside the model in PyTorch itself: above 1 the graph is faster.",
    ),
    "families": (
        "Every family",
        "From uint8 clips to logits, and to updated weights (AdamW), in clips per second of processor time on one core; beside "
        "transformers where it has the model, on equal weights.",
    ),
    "serve": (
        "The page's server",
        "Seconds from the first byte sent to the five classes, and what many clients get at once, beside `tubelet predict --engine "
        "local` on as many videos: videos per second.",
    ),
    "e2e": (
        "From files to trained weights",
        "Pretraining steps with all that belongs to them: our loader and model, beside transformers' model fed by a DataLoader "
        "around the research recipe. The ratio is of processor time a clip.",
    ),
    "gpu": (
        "On a GPU",
        "Pretraining steps at a mask of 90 % in bf16. MFU is the share of the operations that the card does in one large matrix "
        "product, measured beside; the shares are of the GPU's time.",
    ),
    "search": (
        "Search",
        "A library of vectors of 512 values, by `tubelet search`: the ten nearest with their metadata, from all vectors and from "
        "the approximate index. Recall is the share of the true ten nearest. “Clustered” has 100 vectors about each centre, "
        "“random” has no structure.",
    ),
    "growth": (
        "Growth",
        "Processor time and peak memory against what makes them grow. The exponent p says y ~ x^p, fitted over the whole "
        "curve: 0 is constant, 1 linear, 2 quadratic. “At the end” is the slope between the last two points, where fixed "
        "costs count least. “One clip of a file never seen” is linear because the file is indexed once; what “one clip” holds of a "
        "long video is that index. “All of it as vectors” stays below one portion of clips (64 MB), which are held together, so "
        "this curve does not show that memory is flat beyond; the log has what was tried.",
    ),
}

OPENING = """# Benchmarks

Tubelet beside what one would run today, measured by `make bench`: all ways in one process and in turn, one warm-up, then
medians over several rounds. A ratio above 1 says how many times faster we are, a range is that of the rounds. Ratios hold
on a busy machine, milliseconds do not. A range of a single number, or none, is a run of one round: a hint, no more. What was
tried on the way is in the [benchmark log](LOG.md).
"""


def pages(folder: Path) -> dict[str, str]:
    """File name -> text, of the page and its pictures, for the JSON files in `folder`."""
    made, text = {}, OPENING
    for name, (heading, opening) in SECTIONS.items():
        path = folder / f"{name}.json"
        if not path.exists():
            continue
        kept = json.loads(path.read_text(encoding="utf-8"))
        if "rows" not in kept:
            raise SystemExit(f"error: {path} has no rows: write it again with benchmarks/run.py --only {name}")
        figure = growth_figure(kept["rows"]) if name == "growth" else ratio_figure(kept["rows"])
        text += f"\n## {heading}\n\n{opening}\n\n"
        if figure is not None:
            made[f"{name}.svg"] = svg(figure)
            text += f"![{heading}: see the table]({name}.svg)\n\n"
        if name == "growth":
            text += f"{measure.table(exponents(kept['rows']))}\n"
        versions = ", ".join(f"{package} {version}" for package, version in kept["versions"].items())
        text += f"{measure.table(kept['rows'])}\n{kept['date']}: {kept['machine']}; {versions}.\n"
    return {"index.md": text, **made}


def ratio_figure(rows: Rows) -> Figure | None:
    """One panel of bars for each value of the first column; None where no row has a ratio."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    column = next((name for name in columns if re.match("times|ratio", name)), None)
    drawn = [row for row in rows if column in row]
    if column is None or not drawn:
        return None
    plain = [name for name in columns if name not in ASIDE and all(isinstance(row.get(name), str) for row in drawn)]
    first, labels = (plain[0], plain[1:]) if len(plain) > 1 else (None, plain)
    groups: dict[str, dict[str, measure.Row]] = {}  # panel -> bar -> row
    for row in drawn:
        groups.setdefault(row[first] if first else "", {})[", ".join(row[name] for name in labels)] = row
    figure = new_figure(8, 0.6 + sum(0.55 + 0.34 * len(group) for group in groups.values()))
    panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=[len(g) + 0.6 for g in groups.values()])
    for axes, (group, members) in zip(panels[:, 0], groups.items(), strict=True):
        bars(axes, members, column)
        style(axes, LIGHT, group, grid="x")
    ratios = [row[column] for row in drawn]
    panels[-1, 0].set(xscale="log", xlim=(min(0.9, 0.8 * min(ratios)), 1.5 * max(2.0, *ratios)))
    panels[-1, 0].set_xlabel(f"{column} (to the right of the line at 1: faster)")
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200) if min(0.9, *ratios) <= tick <= 1.5 * max(ratios)]
    panels[-1, 0].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panels[-1, 0].minorticks_off()
    return figure


def bars(axes: Axes, rows: dict[str, measure.Row], column: str) -> None:
    """One bar for each name, from 1 to its ratio, ours in colour, with a whisker where the row has a range."""
    contrast = any("ours" in name for name in rows)
    for place, (name, row) in enumerate(rows.items()):
        value = row[column]
        axes.barh(place, value - 1, left=1, color=PALETTE[0] if "ours" in name or not contrast else PEER, height=0.66)
        ends = [float(end.replace(",", "")) for end in row["range"].split("-")] if row.get("range") else [value]
        axes.plot(ends, [place] * len(ends), color=LIGHT.text, linewidth=1.2, solid_capstyle="butt")
        axes.text(max(1, value, *ends), place, f"  {measure.number(value)}", va="center", color=LIGHT.text, fontsize=8.5)
    axes.axvline(1, color=LIGHT.quiet, linewidth=1)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()


# kind of a curve -> (heading, what x is)
KINDS = {
    "step": ("One pretraining step", "times the smallest"),
    "set": ("Starting with a set", "videos"),
    "video": ("One long video", "seconds of video"),
}


def growth_figure(rows: Rows) -> Figure:
    """Log-log curves, time on the left and memory on the right: one row of panels for each kind of curve."""
    curves: dict[str, dict[str, Rows]] = {}  # kind -> name -> points
    for row in rows:
        kind, _, name = row["curve"].partition(": ")
        curves.setdefault(kind, {}).setdefault(name, []).append(row)
    powers = {row["curve"]: row for row in exponents(rows)}
    figure = new_figure(9, 3.4 * len(curves))
    panels = figure.subplots(len(curves), 2, squeeze=False)
    for line, (kind, members) in zip(panels, curves.items(), strict=True):
        heading, across = KINDS[kind]
        for axes, (what, column, unit) in zip(line, (("time", "ms", "ms"), ("memory", "peak MB", "peak, MB")), strict=True):
            for colour, (name, points) in zip(PALETTE, members.items(), strict=False):
                x = [point["x"] / (points[0]["x"] if kind == "step" else 1) for point in points]
                y = [point[column] for point in points]
                label = f"{name}: {powers[f'{kind}: {name}'][f'{what}, p']:.2f}"
                axes.loglog(x, y, color=colour, marker="o", markersize=4, linewidth=1.7, label=label)
            style(axes, LIGHT, f"{heading}: {what}", grid="both")
            axes.set_ylabel(unit)
            axes.set_xlabel(across)
            axes.margins(y=0.7)  # room for the legend
            axes.tick_params(which="minor", length=0)
            axes.yaxis.set_minor_formatter("")
            legend = axes.legend(frameon=False, fontsize=8, labelcolor=LIGHT.text, title="exponent p", title_fontsize=8)
            legend.get_title().set_color(LIGHT.quiet)
            legend.set_alignment("left")
    return figure


def svg(figure: Figure) -> str:
    """The figure on white, the same text for the same numbers."""
    figure.patch.set(alpha=1, facecolor=LIGHT.page)
    buffer = io.StringIO()
    nothing: dict[str, Any] = {"Date": None, "Creator": None}
    with matplotlib.rc_context({"svg.hashsalt": "tubelet", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = re.sub(r"[ \t]+$", "", buffer.getvalue(), flags=re.MULTILINE)
    # Names that matplotlib derives from coordinates, whose last digits may differ: numbered as they come.
    names = {name: f"id{place}" for place, name in enumerate(dict.fromkeys(re.findall(r"\b[pmh][0-9a-f]{10}\b", text)))}
    return re.sub(r"\b[pmh][0-9a-f]{10}\b", lambda match: names[match[0]], text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the JSON files are and the page goes")
    folder = parser.parse_args().folder
    made = pages(folder)
    for stale in {path.name for path in folder.glob("*.svg")} - set(made):
        (folder / stale).unlink()
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")
    print(f"wrote {', '.join(made)} to {folder}")


if __name__ == "__main__":
    main()
