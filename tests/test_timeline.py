"""Timelines of videos whose colours are known second by second, and what is written of them read again."""

import csv
import json
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.errors import CheckpointError, ConfigError
from tubelet.evaluate.grounding import localisation
from tubelet.scan import Scan
from tubelet.timeline import Timeline, cues, detections, over_time, segments, timeline, to_csv, to_dict, to_srt, to_vtt, write
from tubelet.video.write import write_video

from .colours import Colours, film

COLOURS = ("red", "green", "blue")
TRUTH = [("red", 0, 3), ("green", 3, 7), ("blue", 7, 10.5)]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    path = film(tmp_path_factory.mktemp("film") / "a.mp4", [(name, end - start) for name, start, end in TRUTH])
    return timeline(Colours(COLOURS), path, 0.5, lengths=(0.5,))


def parse_srt(text):
    """(start, end, label) of every cue of a SubRip file, strictly."""
    found = []
    for number, block in enumerate(text.strip().split("\n\n"), 1):
        index, times, label = block.split("\n")
        match = re.fullmatch(r"(\d{2}):([0-5]\d):([0-5]\d),(\d{3}) --> (\d{2}):([0-5]\d):([0-5]\d),(\d{3})", times)
        assert int(index) == number and match, block
        h, m, s, ms, h2, m2, s2, ms2 = map(int, match.groups())
        found.append((h * 3600 + m * 60 + s + ms / 1000, h2 * 3600 + m2 * 60 + s2 + ms2 / 1000, label))
    return found


def parse_vtt(text):
    assert text.startswith("WEBVTT\n\n") and ",0" not in text
    blocks = text.split("\n\n")[1:]
    return parse_srt("\n\n".join(f"{i}\n{block.strip().replace('.', ',')}" for i, block in enumerate(blocks, 1)))


def test_segments_are_the_colours(seen):
    assert len(seen.seconds) == 22 and float(seen.seconds[-1]) == pytest.approx(10.5)
    assert torch.allclose(seen.probabilities.sum(dim=1), torch.ones(21))
    found = segments(seen)
    assert [one.label for one in found] == ["red", "green", "blue"]
    for one, (_, start, end) in zip(found, TRUTH, strict=True):
        assert one.start_seconds == pytest.approx(start, abs=0.51) and one.end_seconds == pytest.approx(end, abs=0.51)
        assert 0.8 < one.score <= 1
    assert segments(seen, shortest_seconds=20) == []


def test_localisation_against_the_truth(seen):
    wanted = {name: [(seen.path, start, end)] for name, start, end in TRUTH}
    assert localisation(detections(seen), wanted, (0.5, 0.7)) == {"mAP@0.5": 1, "mAP@0.7": 1, "mAP": 1}


def test_the_background_class_is_left_out(seen):
    kept = timeline(Colours(COLOURS), seen.path, 0.5, lengths=(0.5,), background="green")
    assert kept.class_names == ("red", "blue")
    expected = seen.probabilities[:, [0, 2]]
    assert torch.allclose(kept.probabilities, expected / expected.sum(dim=1, keepdim=True), atol=1e-4)
    with pytest.raises(ConfigError, match="unknown class 'gren': did you mean 'green'"):
        timeline(Colours(COLOURS), seen.path, background="gren")


def test_probabilities_over_time_are_the_weighted_mean():
    windows = torch.tensor([[0.0, 2.0], [1.0, 3.0]]).double()
    chances = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = Scan(windows, torch.zeros(2, 1), chances, 5.0)
    got = over_time(found, np.array([0.0, 1.0, 2.0, 2.5, 4.0, 5.0]))
    # Both windows cover the second moment by 1 s each; the last is covered by none and takes the nearest.
    assert torch.allclose(got[:, 0], torch.tensor([1.0, 0.5, 0.0, 0.0, 0.0])) and torch.allclose(got.sum(1), torch.ones(5))


def test_a_single_frame_has_a_moment_too(tmp_path):
    write_video(tmp_path / "one.mp4", torch.full((1, 3, 32, 32), 200, dtype=torch.uint8), fps=0.5)
    found = timeline(Colours(COLOURS), tmp_path / "one.mp4", 0.5)
    assert found.seconds.tolist() == [0, 0.5, 1, 1.5, 2] and torch.allclose(found.probabilities.sum(1), torch.ones(4))
    nothing = over_time(Scan(torch.zeros(1, 2).double(), torch.zeros(1, 1), torch.ones(1, 1), 0.0), np.array([0.0, 0.0]))
    assert nothing.tolist() == [[1.0]]


@pytest.mark.parametrize(("count", "length", "every"), [(60, 0.67, 1.0), (60, 4.0, 0.25), (5, 0.5, 0.3), (1, 9.0, 1.0)])
def test_over_time_is_the_product_of_all_windows_and_moments(count, length, every):
    """Beside the formula over a table of every window and moment."""
    draw = torch.Generator().manual_seed(0)
    start = torch.rand(count, generator=draw, dtype=torch.float64) * 9
    windows = torch.stack([start, start + length * torch.rand(count, generator=draw)], dim=1)
    chances = torch.rand(count, 3, generator=draw)
    borders = np.append(np.arange(0, 9.9, every), 10.0)
    moments = torch.from_numpy(borders)
    shared = (torch.minimum(moments[1:, None], windows[:, 1]) - torch.maximum(moments[:-1, None], windows[:, 0])).clamp(min=0)
    middles = (moments[1:] + moments[:-1])[:, None] / 2
    empty = shared.sum(dim=1) == 0
    shared[empty, (middles - windows.mean(dim=1)).abs().argmin(dim=1)[empty]] = 1.0
    expected = shared @ chances.double() / shared.sum(dim=1, keepdim=True)
    got = over_time(Scan(windows, torch.zeros(count, 1), chances, 10.0), borders)
    assert got.dtype == torch.float32 and torch.allclose(got.double(), expected, atol=1e-6)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.floats(0.05, 4000), st.sampled_from([0.0, 0.5, 0.9]))
@settings(max_examples=60, deadline=None)
def test_subtitles_parse_again_in_order_and_do_not_overlap(numbers, step, threshold):
    chances = torch.full((len(numbers), 4), 0.1)
    chances[torch.arange(len(numbers)), torch.tensor(numbers)] = torch.linspace(0.4, 1.0, len(numbers))
    names = ("plain", "a --> b\n\n2", "<i>&", "  ")
    made = Timeline("x.mp4", names, torch.arange(len(numbers) + 1, dtype=torch.float64) * step, chances)
    for parsed in (parse_srt(to_srt(made)), parse_vtt(to_vtt(made))):
        assert parsed[0][0] == 0 and parsed[-1][1] == pytest.approx(len(numbers) * step, abs=0.001)
        assert all(start < end for start, end, _ in parsed)
        assert all(a[1] == b[0] for a, b in pairwise(parsed))
    kept = cues(made, threshold)
    assert all(one.score >= threshold - 1e-6 for one in kept)
    assert all(a.end_seconds <= b.start_seconds for a, b in pairwise(kept))


def test_every_file_is_written_whole_and_reads_back(seen, tmp_path):
    for suffix in (".csv", ".json", ".srt", ".vtt", ".png", ".svg"):
        write(seen, tmp_path / f"deep/t{suffix}")
    assert len(list((tmp_path / "deep").iterdir())) == 6
    rows = list(csv.reader((tmp_path / "deep/t.csv").read_text().splitlines()))
    assert rows[0] == ["start_seconds", "end_seconds", *COLOURS] and len(rows) == 22 and rows[1][:2] == ["0.000", "0.500"]
    assert to_csv(seen) == (tmp_path / "deep/t.csv").read_text()
    assert json.loads((tmp_path / "deep/t.json").read_text()) == json.loads(json.dumps(to_dict(seen)))
    assert [label.split()[0] for *_, label in parse_srt((tmp_path / "deep/t.srt").read_text())] == list(COLOURS)
    assert (tmp_path / "deep/t.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (tmp_path / "deep/t.svg").read_text().lstrip().startswith("<?xml")


def test_what_cannot_be_written_or_asked_is_one_line(seen, tmp_path):
    with pytest.raises(ConfigError, match=r"t.avi: a timeline is written as .png, .svg, .csv, .srt, .vtt, .json, got '.avi'"):
        write(seen, tmp_path / "t.avi")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot write .*t.csv"):
        write(seen, tmp_path / "file" / "t.csv")
    with pytest.raises(CheckpointError, match="colours was never taught classes, so there is no timeline"):
        timeline(Colours(), seen.path)
    with pytest.raises(ConfigError, match="every_seconds is 0: it must be a number above 0"):
        timeline(Colours(COLOURS), seen.path, 0)
    with pytest.raises(ConfigError, match="every_seconds is 1e-09: that makes .* moments of .* s, and 10,000,000 are the most"):
        timeline(Colours(COLOURS), seen.path, 1e-9)
    with pytest.raises(ConfigError, match="threshold is 0: it must be above 0 and at most 1"):
        segments(seen, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
