"""The motion set: real files, the same from the same seed, and nothing to see in a single frame."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet import datasets
from tubelet.errors import ConfigError, DataError
from tubelet.video import synthetic
from tubelet.video.decode import decode, probe
from tubelet.video.synthetic import CHANGES, MOTIONS, render, write_motion_set


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(motion=st.sampled_from(sorted(MOTIONS)), seed=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_only_the_class_property_moves_and_it_moves_its_way(motion: str, seed: int) -> None:
    moving, direction = MOTIONS[motion]
    state = synthetic._trajectories(moving, direction, 20, generator(seed))
    for name, values in state.items():
        steps = values.diff()
        if name != moving:
            assert (steps == 0).all()
            continue
        smallest, largest = CHANGES[name][1]
        assert (steps.sign() == direction).all()
        assert smallest - 1e-4 <= float(values[-1] - values[0]) * direction <= largest + 1e-4


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_a_single_moment_is_distributed_alike_in_every_class(name: str) -> None:
    """Kolmogorov-Smirnov: the property at a random frame, where its own class moves it against where another one moves."""
    samples: dict[str, list[float]] = {"own": [], "other": []}
    own = next(motion for motion, (moving, _) in MOTIONS.items() if moving == name)
    other = next(motion for motion, (moving, _) in MOTIONS.items() if moving != name)
    period = 1.0 if name in ("x", "y") else 2 * math.pi if name == "angle" else math.inf
    for seed in range(1500):
        for who, motion in (("own", own), ("other", other)):
            source = generator(2 * seed + (who == "other"))
            state = synthetic._trajectories(*MOTIONS[motion], 20, source)
            moment = int(torch.randint(20, (), generator=source))
            value = float(state[name][moment])
            samples[who].append(value % period if math.isfinite(period) else value)
    grid = torch.tensor(sorted(samples["own"] + samples["other"]))
    first, second = (torch.tensor(sorted(samples[who])) for who in ("own", "other"))
    distance = (torch.searchsorted(first, grid, right=True) - torch.searchsorted(second, grid, right=True)).abs().max() / 1500
    assert distance < 1.95 * math.sqrt(2 / 1500)  # passes by chance 999 times in 1,000


def test_reversed_pairs_are_reversals() -> None:
    """Run backwards, a trajectory of one class is one of the other: the pairs differ by nothing but the arrow of time."""
    for one, other in (("picked_up", "put_down"), ("door_opens", "door_closes"), ("translate_left", "translate_right")):
        forward = synthetic._trajectories(*MOTIONS[one], 20, generator(5))
        backward = synthetic._trajectories(*MOTIONS[other], 20, generator(5))
        for name in CHANGES:
            torch.testing.assert_close(forward[name], backward[name].flip(0))


def test_a_thing_that_moves_left_moves_left() -> None:
    """In pixels: the difference to the ground, which stands still, has a centre that wanders to the left."""
    seen = 0
    for seed in range(20):
        video = render("translate_left", generator(seed), frames=12, size=48, noise=0.0).float()
        ground = video.median(dim=0).values
        weight = (video - ground).abs().sum(dim=1).sum(dim=1)  # (T,S): how much of the thing is in each column
        angle = torch.arange(48) * 2 * math.pi / 48
        centre = torch.atan2((weight * angle.sin()).sum(1), (weight * angle.cos()).sum(1))  # on the torus
        steps = (centre.diff() + math.pi) % (2 * math.pi) - math.pi
        seen += float(steps.median()) < 0
    assert seen >= 17


@pytest.mark.parametrize("motion", sorted(MOTIONS))
def test_every_motion_renders(motion: str) -> None:
    video = render(motion, generator(1), frames=6, size=32)
    assert video.shape == (6, 3, 32, 32) and video.dtype == torch.uint8
    assert (video[0].float() - video[-1].float()).abs().mean() > 1
    assert torch.equal(video, render(motion, generator(1), frames=6, size=32))


def test_the_set_on_disk(tmp_path: Path) -> None:
    motions = ("expand", "shrink")
    write_motion_set(tmp_path / "a", motions, train=2, val=1, unlabelled=3, size=32, frames=8)
    write_motion_set(tmp_path / "b", motions, train=2, val=1, unlabelled=3, size=32, frames=8)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.mp4"))
    assert len(files) == 2 * 3 + 3
    for name in files:
        assert torch.equal(decode(tmp_path / "a" / name).frames, decode(tmp_path / "b" / name).frames)
        assert probe(tmp_path / "a" / name).frame_count == 8
    dataset = datasets.read(tmp_path / "a")
    assert dataset.classes == motions
    assert sorted((example.split, example.label is None) for example in dataset.examples) == (
        [("train", False)] * 4 + [("unlabelled", True)] * 3 + [("val", False)] * 2
    )


def test_a_second_call_keeps_what_is_there(tmp_path: Path) -> None:
    write_motion_set(tmp_path, ("expand",), train=1, val=0, size=32, frames=4)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")}
    write_motion_set(tmp_path, ("expand",), train=1, val=0, size=32, frames=4)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")}


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown motion 'expnd': did you mean 'expand'"):
        write_motion_set(tmp_path, ("expnd",))
    with pytest.raises(DataError, match="at least one motion"):
        write_motion_set(tmp_path, ())
