"""Accuracy against what it costs: one small panel each for GMAC, speed and parameters, a point for every model, named, or
numbered where they are many."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from tubelet.show._figure import DARK, LIGHT, PALETTE, Ink, new_figure, style, to_png

# number of a row -> (what the axis says, what it is divided by)
PANELS = {
    "gmacs": ("GMAC a clip", 1.0),
    "clips_per_second": ("clips a second, inference", 1.0),
    "params": ("million parameters", 1e6),
}
LABEL_SIZE = 8
NAMED = 8  # of more models the points have numbers, in the order of the table, and the names stand below
# Where a name may stand, best first: points right of and above its point, and the side of the text that is there.
PLACES = [
    (8, 0, "left"), (-8, 0, "right"), (0, 10, "center"), (0, -10, "center"),
    *((right, up, side) for far in (14, 24, 34, 46) for up in (far, -far) for right, side in ((10, "left"), (-10, "right"))),
]  # fmt: skip
Point = tuple[float, float, str]  # across, up, name


def ladder(rows: Sequence[Mapping[str, Any]], dark: bool = False) -> bytes:
    """PNG of `rows` (see `compare.Comparison`): top-1 with its 95 % interval, up, against each of PANELS, across and logarithmic.

    The dashed line is chance. A row without top-1, or without the number of a panel, is not drawn there.
    """
    ink = DARK if dark else LIGHT
    chance = next((row["top1"] for row in rows if row["weights"] == "chance"), None)
    drawn = [row for row in rows if row["top1"] is not None and "params" in row]
    numbered = len(drawn) > NAMED
    names = {row["name"]: str(number) if numbered else row["name"] for number, row in enumerate(drawn, start=1)}
    figure = new_figure(10.4, 4.4 + (0.06 * len(drawn) if numbered else 0))
    panels = figure.subplots(1, len(PANELS), sharey=True)
    points: dict[str, list[Point]] = {
        key: [(row[key] / scale, 100 * row["top1"], names[row["name"]]) for row in drawn if row.get(key)]
        for key, (_, scale) in PANELS.items()
    }
    colours = dict(zip((row["name"] for row in drawn), itertools.cycle(PALETTE), strict=False))
    for axes, (key, (label, scale)) in zip(panels, PANELS.items(), strict=True):
        for row in drawn:
            if row.get(key):
                x, colour = row[key] / scale, colours[row["name"]]
                axes.plot([x, x], [100 * row["top1_low"], 100 * row["top1_high"]], color=colour, alpha=0.35, linewidth=1.5)
                axes.plot(x, 100 * row["top1"], "o", color=colour, markersize=6)
        if chance is not None:
            axes.axhline(100 * chance, color=ink.quiet, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xscale("log")
        axes.set_xlabel(label)
        axes.margins(x=0.25, y=0.08)
        style(axes, ink, "Top-1, %" if axes is panels[0] else "", grid="y")
        plain_ticks(axes)
    if numbered:
        points_of = [Line2D([], [], marker="o", linestyle="", markersize=6, color=colour) for colour in colours.values()]
        figure.legend(
            points_of, [f"{number}  {name}" for name, number in names.items()], loc="outside lower center", ncols=5, frameon=False,
            labelcolor=ink.text, fontsize=LABEL_SIZE, handletextpad=0.1, columnspacing=1.2,
        )  # fmt: skip
    figure.canvas.draw()  # puts the axes in their places; names go where these leave room
    for axes, key in zip(panels, PANELS, strict=True):
        put_names(axes, points[key], ink)
    return to_png(figure)


def plain_ticks(axes: Axes) -> None:
    """2, 5, 10 in place of powers of ten, and no more than fit."""
    low, high = axes.get_xlim()
    decades = math.log10(high / low)
    steps = (1, 1.5, 2, 3, 5, 7) if decades < 0.8 else (1, 2, 5) if decades < 2 else (1, 3) if decades < 3.5 else (1,)
    ticks = [m * 10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high))) for m in steps]
    axes.set_xticks(shown := [tick for tick in ticks if low <= tick <= high], [f"{tick:,g}" for tick in shown])
    axes.minorticks_off()


def put_names(axes: Axes, points: Sequence[Point], ink: Ink) -> None:
    """Write each name near its point, at the first of PLACES where it covers neither a point nor a name nor the edge."""
    canvas = axes.figure.canvas
    renderer = canvas.get_renderer()  # type: ignore[attr-defined]
    dots: Any = axes.transData.transform([(x, y) for x, y, _ in points]) if points else []
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in dots]
    inside = axes.get_window_extent(renderer)
    for x, y, name in sorted(points, key=lambda point: -point[1]):
        for place, (right, up, side) in enumerate(PLACES):
            text = axes.annotate(
                name, (x, y), (right, up), textcoords="offset points", ha=side, va="center", color=ink.text, fontsize=LABEL_SIZE,
                arrowprops={"arrowstyle": "-", "color": ink.quiet, "linewidth": 0.6, "shrinkB": 3} if abs(up) > 12 else None,
            )  # fmt: skip
            text.set(in_layout=False, path_effects=[withStroke(linewidth=2.5, foreground=ink.page)])
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer)  # without the line that leads to the point
            free = inside.x0 <= box.x0 and box.x1 <= inside.x1 and not any(box.overlaps(other) for other in taken)
            if free or place == len(PLACES) - 1:
                taken.append(box)
                break
            text.remove()
