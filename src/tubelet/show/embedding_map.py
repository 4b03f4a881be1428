"""Embeddings of many videos flattened to a plane: near points are videos the model finds alike."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tubelet.show._figure import DARK, LIGHT, PALETTE, new_figure, style, to_png

MARKERS = "osD^v"


def project(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """(points float64 (M,2), shares (2,)): the first two principal components and the share of the variance each
    explains.

    Signs are fixed (the largest entry of each direction is positive), so that the same embeddings give the same
    picture.
    """
    centred = embeddings.double() - embeddings.double().mean(dim=0)
    left, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    kept = min(2, len(singular))
    signs = directions[:kept].gather(1, directions[:kept].abs().argmax(dim=1, keepdim=True)).sign()[:, 0]
    points, shares = torch.zeros(len(centred), 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    points[:, :kept] = left[:, :kept] * singular[:kept] * signs
    shares[:kept] = singular[:kept].square() / singular.square().sum().clamp(min=1e-300)
    return points, shares


def embedding_map(embeddings: Tensor, labels: Sequence[int] | None, class_names: Sequence[str], dark: bool = False) -> bytes:
    """PNG of the two principal components of embeddings (M,D), one colour and marker per class (one colour without
    labels)."""
    ink = DARK if dark else LIGHT
    points, shares = project(embeddings)
    figure = new_figure(7.6, 4.9)
    axes = figure.add_subplot()
    style(axes, ink, grid="both")
    if labels is None:
        axes.scatter(points[:, 0], points[:, 1], s=22, color=PALETTE[0], alpha=0.8, linewidths=0)
    else:
        of_class = torch.as_tensor(labels)
        for index, name in enumerate(class_names):
            here = points[of_class == index]
            if len(here):
                colour, marker = PALETTE[index % len(PALETTE)], MARKERS[index // len(PALETTE) % len(MARKERS)]
                axes.scatter(here[:, 0], here[:, 1], s=26, color=colour, marker=marker, alpha=0.85, linewidths=0, label=name)
        if len(class_names) <= 50:
            columns = 1 + (len(class_names) - 1) // 18
            axes.legend(
                loc="center left",
                bbox_to_anchor=(1.01, 0.5),
                frameon=False,
                fontsize=8.5,
                labelcolor=ink.text,
                ncols=columns,
            )
    axes.set_xticklabels([])
    axes.set_yticklabels([])
    axes.set_xlabel(f"first component ({float(shares[0]):.0%} of the variance)")
    axes.set_ylabel(f"second component ({float(shares[1]):.0%})")
    return to_png(figure)
