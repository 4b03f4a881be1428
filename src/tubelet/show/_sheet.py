"""Rows of video frames with captions burnt in, pixel for pixel: what strips, masks and contact sheets share.

Frames are uint8 (n,C,H,W). Small frames are enlarged by a whole factor without smoothing, so that a pixel stays a
pixel. The background is dark on every page, as in a cinema: colours of a frame are judged the same in light and dark
reports.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.image
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

BACKGROUND = (20, 23, 29)
GAP = 4
BETWEEN_ROWS = 10
MARGIN = 16
DOTS_PER_INCH = 100


@dataclass(frozen=True)
class Row:
    """One row of a sheet: frames uint8 (n,C,H,W), a caption above it, and a quieter remark after the caption."""

    frames: Tensor
    caption: str
    remark: str = ""


def enlarge(frames: Tensor, least_pixels: int) -> Tensor:
    """The frames repeated by the smallest whole factor that makes their height at least `least_pixels`."""
    factor = max(1, -(-least_pixels // frames.shape[-2]))
    return frames.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def pick(count: int, shown: int) -> list[int]:
    """`shown` indices spread evenly over `count` frames, first and last included (all of them when there are fewer)."""
    if shown >= count:
        return list(range(count))
    return np.linspace(0, count - 1, shown).round().astype(int).tolist()


def sheet(rows: Sequence[Row], columns: Sequence[str] = (), least_pixels: int = 96) -> np.ndarray:
    """uint8 (height, width, 3): the rows under one another, each under its caption; `columns` are headings such as
    seconds."""
    enlarged = [enlarge(row.frames, least_pixels) for row in rows]
    inner = max(len(frames) * (frames.shape[-1] + GAP) - GAP for frames in enlarged)
    captions = any(row.caption or row.remark for row in rows)
    caption_height, heading_height = 26 if captions else 0, 18 if columns else 0
    height = MARGIN * 2 + heading_height
    height += sum(caption_height + frames.shape[-2] + BETWEEN_ROWS for frames in enlarged) - BETWEEN_ROWS
    least_width = max(len(row.caption) * 8 + len(row.remark) * 6.2 for row in rows) + 2 * MARGIN
    width = int(max(inner + 2 * MARGIN, least_width))
    canvas = np.empty((height, width, 3), dtype=np.uint8)
    canvas[:] = BACKGROUND
    figure = Figure(figsize=(width / DOTS_PER_INCH, height / DOTS_PER_INCH), dpi=DOTS_PER_INCH)
    agg = FigureCanvasAgg(figure)

    def write(x: float, y: float, text: str, colour: str, size: float, **options: Any) -> None:
        figure.text(x / width, 1 - y / height, text, color=colour, fontsize=size, va="center", **options)

    top = MARGIN
    for row, frames in zip(rows, enlarged, strict=True):
        if captions:
            caption = figure.text(
                MARGIN / width,
                1 - (top + 11) / height,
                row.caption,
                color="#f0f2f6",
                fontsize=9.5,
                va="center",
                weight="bold",
            )
            end = caption.get_window_extent(agg.get_renderer()).x1 if row.caption else MARGIN - 8
            write(end + 8, top + 11, row.remark, "#a3acbd", 8.5)
        top += caption_height
        if columns and frames is enlarged[0]:
            for index, heading in enumerate(columns):
                left = MARGIN + index * (frames.shape[-1] + GAP) + frames.shape[-1] / 2
                write(left, top + 7, heading, "#a3acbd", 7.5, ha="center")
            top += heading_height
        for index, frame in enumerate(frames):
            left = MARGIN + index * (frame.shape[-1] + GAP)
            canvas[top : top + frame.shape[-2], left : left + frame.shape[-1]] = frame.permute(1, 2, 0).numpy()
        top += frames.shape[-2] + BETWEEN_ROWS
    figure.figimage(canvas, 0, 0, origin="upper")
    agg.draw()
    return np.asarray(agg.buffer_rgba())[..., :3].copy()


def to_png(picture: np.ndarray | Tensor) -> bytes:
    """PNG bytes of a uint8 picture: numpy (H,W,3) or torch (C,H,W)."""
    if isinstance(picture, torch.Tensor):
        picture = picture.permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, np.ascontiguousarray(picture), format="png")
    return buffer.getvalue()
