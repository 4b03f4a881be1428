"""The saturation curve: accuracy against the number of frames, one line a stride."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import NullLocator, PercentFormatter

from tubelet.show._figure import DARK, LIGHT, PALETTE, new_figure, style, to_png


def saturation(rows: Sequence[Mapping[str, Any]], chance: float, dark: bool = False) -> bytes:
    """PNG of rows with frames, stride_frames (None: a frame of each part), share, low, high (95 % interval), videos, padded
    and filled.

    Hollow points: fewer frames than the model takes, each repeated to fill the clip. A row without a share is left out, and
    one where most videos are shorter than the clip.
    """
    ink = DARK if dark else LIGHT
    figure = new_figure(7.4, 3.6)
    axes = figure.add_subplot()
    drawn = [row for row in rows if row["share"] is not None and 2 * row["padded"] <= row["videos"]]
    strides = sorted({row["stride_frames"] for row in drawn}, key=lambda stride: stride or 0)
    for colour, stride in zip(PALETTE * len(strides), strides, strict=False):
        line = sorted((row for row in drawn if row["stride_frames"] == stride), key=lambda row: row["frames"])
        frames = [row["frames"] for row in line]
        name = f"stride {stride}" if stride else "segments"
        axes.plot(frames, [row["share"] for row in line], color=colour, linewidth=1.8, label=name)
        for row in line:
            face = ink.page if row["filled"] else colour
            axes.plot([row["frames"]] * 2, [row["low"], row["high"]], color=colour, linewidth=1, alpha=0.6)
            axes.plot([row["frames"]], [row["share"]], "o", color=colour, markerfacecolor=face, markersize=5)
    axes.axhline(chance, color=ink.quiet, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate("chance", (1, chance), (-2, 4), xycoords=("axes fraction", "data"), textcoords="offset points",
                  ha="right", color=ink.quiet, fontsize=8.5)  # fmt: skip
    style(axes, ink)
    axes.set_xscale("log", base=2)
    counts = sorted({row["frames"] for row in drawn})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("frames of the video in a clip")
    axes.set_ylabel("top-1")
    if strides:
        axes.legend(frameon=False, fontsize=8.5, labelcolor=ink.text, loc="upper left")
    return to_png(figure)
