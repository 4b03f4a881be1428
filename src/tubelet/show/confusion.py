"""The confusion matrix as a picture: rows are true classes, columns what the model said, each row in shares of its
class."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from tubelet.show._figure import DARK, LIGHT, PALETTE, new_figure, style, to_png

NUMBERS_UP_TO = 24
NAMES_UP_TO = 60


def confusion(matrix: np.ndarray, class_names: Sequence[str], dark: bool = False) -> bytes:
    """PNG of an integer (K,K) matrix. Counts are written in up to 24 classes, names along both sides in up to 60."""
    ink = DARK if dark else LIGHT
    matrix = np.asarray(matrix)
    classes = len(class_names)
    videos = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, videos, out=np.zeros(matrix.shape), where=videos > 0)
    longest = max(len(name) for name in class_names)
    side = float(np.clip(classes * 0.42, 2.6, 9.5))
    figure = new_figure(side + 0.07 * longest + 1.1, side + 0.05 * longest + 0.6)
    axes = figure.add_subplot()
    shades = LinearSegmentedColormap.from_list("shares", [ink.grid if dark else "#f3f5f8", PALETTE[0]])
    axes.imshow(shares, cmap=shades, vmin=0, vmax=1)
    style(axes, ink, grid="")
    axes.spines["bottom"].set_visible(False)
    if classes <= NAMES_UP_TO:
        size = 8.5 if classes <= NUMBERS_UP_TO else 6
        axes.set_xticks(range(classes), class_names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
        axes.set_yticks(range(classes), class_names, fontsize=size)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    if classes <= NUMBERS_UP_TO:
        axes.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
        axes.grid(which="minor", color=ink.page, linewidth=1.5)
        axes.tick_params(which="minor", length=0)
        for row, column in zip(*matrix.nonzero(), strict=True):
            colour = "#ffffff" if shares[row, column] > 0.6 or dark else ink.text
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=8.5, color=colour)
    axes.set_xlabel("the model said", labelpad=8)
    axes.set_ylabel("true class", labelpad=8)
    return to_png(figure)
