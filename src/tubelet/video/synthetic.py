"""The motion set: real encoded videos whose classes differ only by motion, made on the spot, as many as wanted.

Every video shows one textured thing over a textured ground, with a shadow and a dark doorway behind it. The thing has six
properties; the class says which one changes and which way:

    x, y       translate_left / right / up / down      (the frame is a torus: what leaves on one side enters on the other)
    angle      rotate_clockwise / counterclockwise
    scale      expand / shrink
    height     picked_up / put_down                    (it leaves its shadow, or comes down to it)
    openness   door_opens / door_closes                (it swings on its left edge off the doorway, or back)

A single frame tells nothing, exactly: a property that does not change is frozen at a random moment of the very change that it
would make in its own class, so that the distribution of single frames is the same in all twelve classes. For the same reason
every frame is encoded as a key frame: a predicted frame's blur would tell the motion.

T frames, S pixels (frames are S x S).
"""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.errors import DataError
from tubelet.find import choose
from tubelet.video.write import write_video

# class -> (property, direction). y grows downwards, angles clockwise.
MOTIONS: dict[str, tuple[str, int]] = {
    "translate_left": ("x", -1), "translate_right": ("x", +1), "translate_up": ("y", -1), "translate_down": ("y", +1),
    "rotate_clockwise": ("angle", +1), "rotate_counterclockwise": ("angle", -1), "expand": ("scale", +1),
    "shrink": ("scale", -1), "picked_up": ("height", +1), "put_down": ("height", -1), "door_opens": ("openness", +1),
    "door_closes": ("openness", -1),
}  # fmt: skip
# property -> (middle, smallest and largest change over a video): frames for x and y, radians, log of size, and 0..1.
CHANGES: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "x": ((0.0, 1.0), (0.5, 0.9)),
    "y": ((0.0, 1.0), (0.5, 0.9)),
    "angle": ((0.0, 2 * math.pi), (1.6, 3.0)),
    "scale": ((-0.1, 0.1), (0.7, 1.0)),
    "height": ((0.45, 0.55), (0.7, 0.9)),
    "openness": ((0.45, 0.55), (0.7, 0.9)),
}


def render(motion: str, generator: torch.Generator, frames: int = 24, size: int = 64, noise: float = 4.0) -> Tensor:
    """One video of a class, uint8 (T,3,S,S): random texture, shape, colours, size, place, speed and camera noise."""
    moving, direction = MOTIONS[choose(motion, MOTIONS, "motion")]
    state = _trajectories(moving, direction, frames, generator)

    tint = torch.rand(2, 3, generator=generator)
    tint[1] = (tint[0] + 0.3 + 0.4 * tint[1]) % 1.0  # the thing's tint differs from the ground's in every colour
    ground = _texture(size, 3, 0.2, tint[0], generator)
    skin = _texture(48, 3, 0.5, tint[1], generator)
    silhouette = _silhouette(48, generator)
    radius = 0.22 + 0.06 * float(torch.rand((), generator=generator))

    # Place of every pixel relative to the thing's centre, on the torus, in units of its radius, in its own rotated frame.
    jitter = torch.randn(frames, 2, 1, 1, generator=generator) * 0.3 / size  # a camera held by hand
    axis = (torch.arange(size) + 0.5) / size
    pixels = torch.stack(torch.meshgrid(axis, axis, indexing="xy"))[None] + jitter  # (T,2,S,S), x first
    foot = torch.stack([state["x"], state["y"]], dim=1)
    rise = torch.stack([0.5 * state["height"], -1.0 * state["height"]], dim=1) * radius  # right and up, off its shadow
    half = (radius * state["scale"].exp())[:, None, None, None]
    shadow_uv = _rotate(_wrap(pixels - foot[:, :, None, None]) / half, state["angle"])
    thing_uv = _rotate(_wrap(pixels - (foot + rise)[:, :, None, None]) / half, state["angle"])

    # A door seen from the front narrows towards its hinge at u = -1 as it opens.
    narrow = (0.15 + 0.85 * (1 - state["openness"]))[:, None, None]
    leaf_uv = torch.stack([(thing_uv[:, 0] + 1) / narrow - 1, thing_uv[:, 1]], dim=1)

    picture = ground.expand(frames, -1, -1, -1)
    picture = picture * (1 - 0.55 * _sample(silhouette, shadow_uv))
    doorway = _sample(silhouette, thing_uv)
    picture = picture * (1 - doorway) + 0.03 * doorway
    leaf = _sample(silhouette, leaf_uv)
    picture = picture * (1 - leaf) + _sample(skin, leaf_uv) * leaf

    flicker = 1 + 0.02 * torch.randn(frames, 1, 1, 1, generator=generator)
    grain = torch.randn(picture.shape, generator=generator) * noise
    return (picture * flicker * 255 + grain).round().clamp(0, 255).to(torch.uint8)


def write_motion_set(
    folder: str | Path, motions: Sequence[str] = tuple(MOTIONS), *, train: int = 40, val: int = 10, unlabelled: int = 0,
    frames: int = 24, size: int = 64, fps: int = 12, seed: int = 0,
) -> Path:  # fmt: skip
    """A folder of MP4 files: `train/CLASS/*.mp4`, `val/CLASS/*.mp4` (so many a class) and `unlabelled/*.mp4` (so many in all).

    The same arguments give the same pixels; files that are already there are kept, so a second call costs nothing.
    `motions.csv` beside them says what each unlabelled video shows, for the curious. DataError for an unknown motion.
    """
    folder = Path(folder)
    for motion in motions:
        choose(motion, MOTIONS, "motion")
    if not motions or min(train, val, unlabelled) < 0:
        raise DataError(f"a motion set needs at least one motion and no negative count, got {len(motions)} motions")
    wanted = [
        (folder / split / motion / f"{motion}_{index:05d}.mp4", motion)
        for split, count in (("train", train), ("val", val))
        for motion in motions
        for index in range(count)
    ]
    hidden = [(folder / "unlabelled" / f"{index:05d}.mp4", motions[index % len(motions)]) for index in range(unlabelled)]
    for number, (path, motion) in enumerate(wanted + hidden):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            video = render(motion, generator, frames, size)
            write_video(path, video, fps=fps, crf=16, preset="ultrafast", gop_frames=1)
    if hidden:
        with open(folder / "motions.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("path", "label"), *((p.relative_to(folder), m) for p, m in hidden)])
    return folder


def _trajectories(moving: str, direction: int, frames: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Each property over time (T,): the moving one runs through its change, the others are frozen at a moment of theirs."""
    state = {}
    for name, ((low, high), (smallest, largest)) in CHANGES.items():
        middle, change, moment = torch.rand(3, generator=generator).tolist()
        middle, change = low + (high - low) * middle, smallest + (largest - smallest) * change
        if name == moving:
            progress = direction * torch.linspace(-0.5, 0.5, frames)
        else:
            progress = torch.linspace(-0.5, 0.5, frames)[int(moment * frames)].expand(frames)
        state[name] = middle + change * progress
    return state


def _texture(size: int, blobs: int, contrast: float, tint: Tensor, generator: torch.Generator) -> Tensor:
    """Smooth random colours round a tint with some fine structure, float (3,S,S) in [0,1]."""
    coarse = torch.rand(1, 3, blobs, blobs, generator=generator)
    fine = torch.rand(1, 1, 4 * blobs, 4 * blobs, generator=generator)
    smooth = F.interpolate(coarse, size=(size, size), mode="bicubic") - 0.5
    detail = F.interpolate(fine, size=(size, size), mode="bicubic") - 0.5
    return (tint[:, None, None] + contrast * (smooth[0] + 0.5 * detail[0])).clamp(0, 1)


def _silhouette(size: int, generator: torch.Generator) -> Tensor:
    """A disc, polygon or star as a soft mask, float (1,S,S), filling [-1,1] x [-1,1]."""
    kind, turn, depth = torch.rand(3, generator=generator).tolist()
    axis = torch.linspace(-1.05, 1.05, size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    theta = torch.atan2(y, x) + turn * 2 * math.pi
    corners = 3 + int(kind * 5)  # 3..7
    if kind < 0.5:  # a star or flower
        edge = 0.8 + (0.1 + 0.1 * depth) * torch.cos(corners * theta)
    else:  # a regular polygon
        edge = 0.95 * math.cos(math.pi / corners) / torch.cos(theta % (2 * math.pi / corners) - math.pi / corners)
    return ((edge - (x**2 + y**2).sqrt()) * size / 4).clamp(0, 1)[None]


def _sample(texture: Tensor, uv: Tensor) -> Tensor:
    """Texture (C,s,s) at coordinates uv (T,2,S,S) in [-1,1]; zero outside -> (T,C,S,S)."""
    grid = uv.permute(0, 2, 3, 1) / 1.05
    return F.grid_sample(texture.expand(uv.shape[0], -1, -1, -1), grid, align_corners=False)


def _rotate(uv: Tensor, angle: Tensor) -> Tensor:
    """Coordinates (T,2,S,S) seen from a thing turned clockwise by angle (T,), y downwards."""
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return torch.stack([cos * uv[:, 0] + sin * uv[:, 1], cos * uv[:, 1] - sin * uv[:, 0]], dim=1)


def _wrap(offset: Tensor) -> Tensor:
    """Offsets on the torus of circumference 1, in [-0.5, 0.5)."""
    return (offset + 0.5) % 1.0 - 0.5
