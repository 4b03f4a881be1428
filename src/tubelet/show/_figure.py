"""One look for every drawn figure: palette, axes and PNG bytes. Photographs are laid out by _sheet.py.

Figures have a transparent background and are drawn once for light pages and once for dark ones (`dark=True`),
because ink that is readable on both is readable on neither.
"""

import io
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

# Ten colours that stay apart for colour-blind readers, on white and on near-black alike; classes take them in order.
PALETTE = (
    "#3f7fd6", "#e0803a", "#2f9e77", "#cf4d7d", "#8b66cc", "#b8962e", "#35a3b8", "#8f7060", "#7d9a3c", "#d274c4",
)  # fmt: skip


DOTS_PER_INCH = 160


@dataclass(frozen=True)
class Ink:
    """Colours of text, of quiet text, of grid lines and of the page behind the figure."""

    text: str
    quiet: str
    grid: str
    page: str


LIGHT = Ink(text="#1c2330", quiet="#677084", grid="#e3e6ec", page="#ffffff")
DARK = Ink(text="#e8ebf1", quiet="#98a1b3", grid="#2c323d", page="#171b22")


def new_figure(width_inches: float, height_inches: float) -> Figure:
    """A transparent figure of that size that knows how to draw itself (no global pyplot state)."""
    figure = Figure(figsize=(width_inches, height_inches), layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.1))
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0)
    return figure


def style(axes: Axes, ink: Ink, title: str = "", grid: str = "y") -> None:
    """Quiet axes: no box, faint grid, left-aligned title. grid: "x", "y", "both" or "" for none."""
    axes.set_facecolor("none")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(ink.grid)
    axes.tick_params(colors=ink.quiet, labelsize=8.5, length=0, pad=5)
    axes.xaxis.label.set(color=ink.quiet, fontsize=9)
    axes.yaxis.label.set(color=ink.quiet, fontsize=9)
    if grid:
        axes.grid(axis=grid, color=ink.grid, linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    if title:
        axes.set_title(title, loc="left", color=ink.text, fontsize=10.5, fontweight="bold", pad=10)


def to_png(figure: Figure, dots_per_inch: int = DOTS_PER_INCH) -> bytes:
    """PNG bytes of the figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch, transparent=True)
    return buffer.getvalue()
