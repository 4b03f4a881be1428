"""The captioned motion set: real encoded videos and a sentence about each, "a red square moves left then a blue disc turns
clockwise", as many as wanted.

One or two things stand over a textured ground. Each has a colour, a shape and a dark line from its centre to its edge; one after
the other they do one thing each, and stand still otherwise. Both are there all the time, so that only motion tells who acts first,
and the frame is a torus: no single frame tells which way anything goes.

T frames, S pixels (frames are S x S).
"""

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tubelet.errors import DataError
from tubelet.video.synthetic import _rotate, _texture, _wrap
from tubelet.video.write import write_video

COLOURS = {
    "red": (0.9, 0.15, 0.12), "green": (0.15, 0.75, 0.2), "blue": (0.15, 0.3, 0.95), "yellow": (0.95, 0.85, 0.15),
    "white": (0.97, 0.97, 0.97), "purple": (0.65, 0.2, 0.8),
}  # fmt: skip
SHAPES = ("square", "disc", "triangle", "star")
# what is said -> (property, smallest and largest signed change); y grows downwards, angles clockwise
ACTIONS: dict[str, tuple[str, tuple[float, float]]] = {
    "moves left": ("x", (-0.4, -0.7)), "moves right": ("x", (0.4, 0.7)), "moves up": ("y", (-0.4, -0.7)),
    "moves down": ("y", (0.4, 0.7)), "turns clockwise": ("angle", (1.6, 2.8)), "turns counterclockwise": ("angle", (-1.6, -2.8)),
    "grows": ("size", (0.6, 0.9)), "shrinks": ("size", (-0.6, -0.9)),
}  # fmt: skip
THEN = " then "


@dataclass(frozen=True)
class Event:
    """One thing and what it does."""

    colour: str
    shape: str
    action: str

    def __str__(self) -> str:
        return f"a {self.colour} {self.shape} {self.action}"


def draw_events(generator: torch.Generator) -> list[Event]:
    """One event (a third of the time) or two, whose colours differ."""
    count = 1 if float(torch.rand((), generator=generator)) < 1 / 3 else 2
    colours = torch.randperm(len(COLOURS), generator=generator)[:count].tolist()
    shapes = torch.randint(len(SHAPES), (count,), generator=generator).tolist()
    actions = torch.randint(len(ACTIONS), (count,), generator=generator).tolist()
    return [
        Event(list(COLOURS)[colour], SHAPES[shape], list(ACTIONS)[action])
        for colour, shape, action in zip(colours, shapes, actions, strict=True)
    ]


def render(events: list[Event], generator: torch.Generator, frames: int = 16, size: int = 64, noise: float = 4.0) -> Tensor:
    """One video, uint8 (T,3,S,S): the events share its time equally. Ground, places, sizes, speeds and camera noise are random."""
    grey = 0.25 + 0.3 * torch.rand(1, generator=generator).expand(3)
    picture = _texture(size, 3, 0.15, grey, generator).expand(frames, -1, -1, -1)
    axis = (torch.arange(size) + 0.5) / size
    pixels = torch.stack(torch.meshgrid(axis, axis, indexing="xy"))  # (2,S,S), x first
    place = torch.rand(2, generator=generator)
    for number, event in enumerate(events):
        state = _trajectory(event, number, len(events), frames, generator)
        # The second thing is half a frame away from the first in both directions, so that they do not hide each other.
        centre = (place + 0.5 * number)[None] + torch.stack([state["x"], state["y"]], dim=1)
        half = (0.16 * state["size"].exp())[:, None, None, None]
        uv = _rotate(_wrap(pixels[None] - centre[:, :, None, None]) / half, state["angle"])  # (T,2,S,S)
        inside = (_edge(event.shape, uv) * (size * half[:, 0])).clamp(0, 1)[:, None]
        line = ((0.16 - uv[:, 0].abs()) * (size * half[:, 0])).clamp(0, 1) * (uv[:, 1] < 0)
        jitter = 0.06 * torch.randn(3, generator=generator)
        colour = (torch.tensor(COLOURS[event.colour]) + jitter).clamp(0, 1)[:, None, None]
        picture = picture * (1 - inside) + colour * (1 - 0.85 * line[:, None]) * inside
    grain = torch.randn(picture.shape, generator=generator) * noise
    return (picture * 255 + grain).round().clamp(0, 255).to(torch.uint8)


def write_captioned_set(
    folder: str | Path, *, train: int = 1000, val: int = 100, frames: int = 16, size: int = 64, fps: int = 8, seed: int = 0
) -> Path:
    """A folder of MP4 files below train/ and val/, and labels.csv: path, text, split, and `moments`, JSON rows [start, end, text]
    of seconds.

    The sentences of val differ from each other and from all of train. The same arguments give the same pixels; files that are
    already there are kept. DataError for a negative count or fewer than 4 frames.
    """
    if min(train, val) < 0 or frames < 4:
        raise DataError(
            f"a captioned set needs no negative count and at least 4 frames, got {train}, {val} and {frames} frames"
        )
    folder = Path(folder)
    taken: set[str] = set()
    rows = []
    for number in range(train + val):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        split = "train" if number < train else "val"
        events = draw_events(generator)
        while split == "val" and THEN.join(map(str, events)) in taken:
            events = draw_events(generator)
        sentence = THEN.join(map(str, events))
        taken.add(sentence)
        path = folder / split / f"{number:05d}.mp4"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, render(events, generator, frames, size), fps=fps, crf=16, preset="ultrafast", gop_frames=1)
        each = frames / fps / len(events)
        moments = [[round(i * each, 3), round((i + 1) * each, 3), str(event)] for i, event in enumerate(events)]
        rows.append([path.relative_to(folder).as_posix(), sentence, split, json.dumps(moments)])
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "text", "split", "moments"), *rows])
    return folder


def _trajectory(event: Event, number: int, events: int, frames: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Each property over time (T,): the acting one runs through its change while it is the event's turn."""
    moving, (least, most) = ACTIONS[event.action]
    share, *moments = torch.rand(3, generator=generator).tolist()
    change = least + (most - least) * share
    progress = (torch.linspace(0, events, frames) - number).clamp(0, 1) - 0.5
    # What does not grow or shrink stands at a size that one that does passes through.
    still = {"x": 0.0, "y": 0.0, "angle": 2 * math.pi * moments[0], "size": 0.75 * (moments[1] - 0.5) * (moving != "size")}
    state = {name: torch.full((frames,), value) for name, value in still.items()}
    state[moving] = state[moving] + change * progress
    return state


def _edge(shape: str, uv: Tensor) -> Tensor:
    """How far inside the shape each place (T,2,S,S) lies, (T,S,S) in units of its radius, negative outside."""
    u, v = uv[:, 0], uv[:, 1]
    radius, theta = (u**2 + v**2).sqrt(), torch.atan2(u, -v)
    if shape == "square":
        return 0.85 - torch.maximum(u.abs(), v.abs())
    if shape == "disc":
        return 1 - radius
    if shape == "triangle":
        sector = 2 * math.pi / 3
        return 0.62 - radius * torch.cos(theta % sector - sector / 2)
    return 0.72 + 0.34 * torch.cos(5 * theta) - radius
