"""Flow as colours: the direction is the hue, the length the saturation (the colour wheel of Baker et al. 2011, "A database and
evaluation methodology for optical flow", as the Middlebury benchmark shows it).

T frames, H height, W width.
"""

import math

import torch
from torch import Tensor

from tubelet.show._sheet import Row, sheet, to_png

# Steps from one pure colour to the next: red, yellow, green, cyan, blue, magenta, and back to red.
STEPS = (15, 6, 4, 11, 13, 6)
CORNERS = ((255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 255, 255), (0, 0, 255), (255, 0, 255))


def wheel() -> Tensor:
    """The 55 colours of the wheel, float32 (55,3) in 0..1, from red through yellow, green, cyan, blue and magenta."""
    colours = []
    for step, start, end in zip(STEPS, CORNERS, CORNERS[1:] + CORNERS[:1], strict=True):
        share = torch.arange(step)[:, None] / step
        colours.append((1 - share) * torch.tensor(start) + share * torch.tensor(end))
    return torch.cat(colours) / 255


def colours(flow: Tensor, full_pixels: float) -> Tensor:
    """uint8 (T,3,H,W) of a flow (T,2,H,W): white where nothing moves, a full colour at a length of `full_pixels`, and three
    quarters of its brightness beyond. Rightwards is red, downwards yellow, leftwards cyan, upwards blue to magenta."""
    ring = wheel()
    x, y = flow.float().unbind(dim=1)
    length = (x.square() + y.square()).sqrt()[..., None] / full_pixels
    place = (torch.atan2(-y, -x) / math.pi + 1) / 2 * (len(ring) - 1)
    lower = place.floor().long().clamp(0, len(ring) - 1)
    share = (place - lower)[..., None]
    hue = (1 - share) * ring[lower] + share * ring[(lower + 1) % len(ring)]
    colour = torch.where(length <= 1, 1 - length * (1 - hue), 0.75 * hue)
    return (255 * colour).round().to(torch.uint8).permute(0, 3, 1, 2)


def legend(full_pixels: float, size: int = 240) -> bytes:
    """PNG of the wheel: what colour a pixel gets that moves from the centre to a place."""
    axis = torch.linspace(-1, 1, size) * full_pixels
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    disc = colours(torch.stack([x, y])[None], full_pixels)[0]
    disc[:, (x.square() + y.square()).sqrt() > full_pixels] = torch.tensor([[20], [23], [29]], dtype=torch.uint8)
    return to_png(sheet([Row(disc[None], "flow", f"from the centre; the rim is {full_pixels:.3g} pixels a frame")]))


def panels(frames: Tensor, forward: Tensor, backward: Tensor, full_pixels: float) -> Tensor:
    """uint8 (T,3,H',W') for a video: each frame, the colours of its flow to the next frame, and of the next frame's flow back,
    side by side, H' and W' even. frames uint8 (T,3,H,W), flows (T,2,H,W)."""
    parts = [frames, colours(forward, full_pixels), colours(backward, full_pixels)]
    row = torch.cat(parts, dim=3)
    return torch.nn.functional.pad(row, (0, row.shape[3] % 2, 0, row.shape[2] % 2), value=255)
