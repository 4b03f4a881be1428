"""The colours of flow against the wheel's definition, pixel by pixel."""

import math
from itertools import pairwise

import pytest
import torch

from tubelet.show import flow


def colour_of(x: float, y: float, full: float) -> tuple[int, ...]:
    """The wheel written for one pixel: 55 places on the circle, which begins on the left and runs through the top."""
    stops = [
        (0, (1, 0, 0)),
        (15, (1, 1, 0)),
        (21, (0, 1, 0)),
        (25, (0, 1, 1)),
        (36, (0, 0, 1)),
        (49, (1, 0, 1)),
        (55, (1, 0, 0)),
    ]

    def ring(place: int) -> list[float]:
        for (start, a), (end, b) in pairwise(stops):
            if start <= place % 55 < end:
                share = (place % 55 - start) / (end - start)
                return [(1 - share) * p + share * q for p, q in zip(a, b, strict=True)]
        raise AssertionError

    place = (math.atan2(-y, -x) / math.pi + 1) / 2 * 54
    share, length = place - math.floor(place), math.hypot(x, y) / full
    hue = [(1 - share) * a + share * b for a, b in zip(ring(math.floor(place)), ring(math.floor(place) + 1), strict=True)]
    return tuple(round(255 * (1 - length * (1 - h) if length <= 1 else 0.75 * h)) for h in hue)


def test_the_wheel_has_55_colours() -> None:
    ring = flow.wheel()
    assert ring.shape == (55, 3)
    assert ring[[0, 15, 21, 25, 36, 49]].tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1]]


def test_colours_against_the_definition() -> None:
    torch.manual_seed(0)
    field = torch.randn(1, 2, 20, 20) * 3
    field[0, :, 0, :4] = torch.tensor([[3.0, 0.0, -3.0, 0.0], [0.0, 3.0, 0.0, -3.0]])
    got = flow.colours(field, 4.0)
    for y in range(20):
        for x in range(20):
            wanted = colour_of(field[0, 0, y, x].item(), field[0, 1, y, x].item(), 4.0)
            assert got[0, :, y, x].tolist() == pytest.approx(wanted, abs=1)


def test_nothing_that_moves_is_white() -> None:
    assert (flow.colours(torch.zeros(2, 2, 4, 4), 1.0) == 255).all()


def test_panels_have_even_sides_and_the_legend_is_a_picture() -> None:
    frames = torch.zeros(2, 3, 15, 21, dtype=torch.uint8)
    shown = flow.panels(frames, torch.zeros(2, 2, 15, 21), torch.zeros(2, 2, 15, 21), 1.0)
    assert shown.shape == (2, 3, 16, 64) and (shown[:, :, :15, 21:63] == 255).all()
    assert flow.legend(3.5).startswith(b"\x89PNG")
