"""The captioned motion set: what the sentence says is what the pixels do."""

import csv
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tubelet import datasets
from tubelet.errors import DataError
from tubelet.video.captioned import ACTIONS, COLOURS, SHAPES, Event, draw_events, render, write_captioned_set
from tubelet.video.decode import decode


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def thing(video: Tensor) -> Tensor:
    """bool (T,S,S): where it is red."""
    red, green, blue = video.float().unbind(dim=1)
    return (red > 150) & (green < 100) & (blue < 100)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_thing_grows_shrinks_and_goes_where_it_is_said_to(shape: str) -> None:
    areas = {
        action: thing(render([Event("red", shape, action)], generator(3), frames=12)).flatten(1).sum(dim=1).float()
        for action in ACTIONS
    }
    assert areas["grows"][-1] > 1.8 * areas["grows"][0] and areas["shrinks"][0] > 1.8 * areas["shrinks"][-1]
    for action in ("moves left", "moves up", "turns clockwise"):
        assert float(areas[action].std() / areas[action].mean()) < 0.2
    for action, axis, sign in (("moves left", 2, -1), ("moves right", 2, 1), ("moves up", 1, -1), ("moves down", 1, 1)):
        inside = thing(render([Event("red", shape, action)], generator(3), frames=12)).float()
        along = inside.sum(dim=1 if axis == 2 else 2)  # (T,S): how much of it is in each column or row
        turned = torch.fft.fft(along)[:, 1].angle()  # its place on the torus
        steps = -torch.atan2(torch.sin(turned.diff()), torch.cos(turned.diff()))
        assert bool((steps * sign > 0).all()), action


def test_two_things_act_one_after_the_other() -> None:
    first, second = Event("red", "disc", "grows"), Event("blue", "square", "moves left")
    area = thing(render([first, second], generator(), frames=16)).flatten(1).sum(dim=1).float()
    assert area[7] > 1.5 * area[0] and float((area[9:] / area[15] - 1).abs().max()) < 0.15
    area = thing(render([second, first], generator(), frames=16)).flatten(1).sum(dim=1).float()
    assert float((area[:7] / area[0] - 1).abs().max()) < 0.15 and area[15] > 1.5 * area[8]


def test_sentences_are_many_and_of_known_words() -> None:
    drawn = [draw_events(generator(seed)) for seed in range(300)]
    assert {len(events) for events in drawn} == {1, 2} and len({str(events) for events in drawn}) > 250
    assert all(len({event.colour for event in events}) == len(events) for events in drawn)
    assert {event.colour for events in drawn for event in events} == set(COLOURS)
    assert str(Event("red", "square", "moves left")) == "a red square moves left"


def test_a_set_is_a_table_with_captions_and_moments(tmp_path: Path) -> None:
    folder = write_captioned_set(tmp_path / "set", train=6, val=4, frames=8, size=32)
    data = datasets.read(folder)
    sides = {split: [example.text for example in data.examples if example.split == split] for split in ("train", "val")}
    assert [len(side) for side in sides.values()] == [6, 4]
    assert len(set(sides["val"])) == 4 and not set(sides["val"]) & set(sides["train"])
    with open(folder / "labels.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        moments = json.loads(row["moments"])
        assert " then ".join(said for _, _, said in moments) == row["text"]
        assert (moments[0][0], moments[-1][1]) == (0.0, 1.0)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert decode(folder / rows[0]["path"]).frames.shape == (8, 3, 32, 32)
    write_captioned_set(folder, train=6, val=4, frames=8, size=32)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match="at least 4 frames"):
        write_captioned_set(tmp_path / "other", frames=2)
