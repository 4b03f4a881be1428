"""Learning curves: one small panel per number of the log, against the step."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from tubelet.show._figure import DARK, LIGHT, PALETTE, new_figure, style, to_png

FEW = 6  # lines that a legend inside of a panel can name


def smooth(values: np.ndarray, share: float = 0.04) -> np.ndarray:
    """Running mean over `share` of the curve, centred, with the window shortened at both ends (nothing is invented)."""
    half = int(len(values) * share / 2)
    if half == 0:
        return values
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def curves(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    x_label: str = "step",
    dark: bool = False,
) -> bytes:
    """PNG of `panels` {title: {line: (steps, values)}}, two panels to a row. Values that are not finite leave a gap.

    A line with many points is drawn faintly with its running mean on top.
    """
    ink = DARK if dark else LIGHT
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    most = max((len(lines) for lines in panels.values()), default=0)
    crowded = most > FEW
    figure = new_figure((7.4 if crowded else 4.9) * columns, max(2.5, 0.27 * most if crowded else 0) * rows)
    for index, (title, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, index + 1)
        for number, (name, (steps, values)) in enumerate(lines.items()):
            colour, dashes = PALETTE[number % len(PALETTE)], ("-", "--", ":")[number // len(PALETTE) % 3]
            x, y = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
            finite = np.isfinite(y)
            if len(y) > 60:
                axes.plot(x, np.where(finite, y, np.nan), color=colour, alpha=0.25, linewidth=0.8)
                axes.plot(x[finite], smooth(y[finite]), color=colour, linewidth=1.8, label=name)
            else:
                marker = "o" if len(y) <= 25 else None
                axes.plot(
                    x,
                    np.where(finite, y, np.nan),
                    color=colour,
                    linewidth=1.6,
                    linestyle=dashes,
                    marker=marker,
                    markersize=3.5,
                    label=name,
                )
        style(axes, ink, title)
        axes.margins(x=0.02, y=0.12)
        axes.locator_params(axis="both", nbins=5)
        if index >= len(panels) - columns:
            axes.set_xlabel(x_label)
        if len(lines) > FEW:  # beside the panel, where they hide nothing
            axes.legend(frameon=False, fontsize=8.5, labelcolor=ink.text, loc="center left", bbox_to_anchor=(1.01, 0.5))
        elif len(lines) > 1:
            axes.legend(frameon=False, fontsize=8.5, labelcolor=ink.text)
    return to_png(figure)
