"""What a model owes to time. A model whose answers are known by formula gives numbers known by hand; models that cannot know the
order of frames give exactly one half."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tubelet import models
from tubelet.cli import main
from tubelet.errors import ConfigError
from tubelet.evaluate import probe, temporal_order
from tubelet.evaluate.multiview import label_numbers, look
from tubelet.evaluate.temporal_order import ORDERS, TIE, arrange, fill, frame_order
from tubelet.models._model import Model
from tubelet.records import ClipSpec, Example
from tubelet.show.saturation import saturation
from tubelet.video.write import write_video
from tubelet.weights.save import save

from ..models.small import clips, randomise
from .test_report import checked

SPEC = ClipSpec(frames=8, stride_frames=2, size=32)
CLASSES = ("translate_left", "translate_right")
SIZES = {"depth": 1, "patch": 16, "width": 24, "heads": 2, "decoder_width": 24, "decoder_heads": 2, "decoder_depth": 1}


class Trend(Model):
    """Says how sure it is that a clip grows brighter: 2 * (mean of the last frame - mean of the first) / 255 in log-odds."""

    def __init__(self) -> None:
        super().__init__()
        self.name, self.spec, self.class_names, self.options = "trend", SPEC, ("brighter", "darker"), {}
        self.weight = nn.Parameter(torch.tensor([1.0, -1.0]))

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        means = frames.float().mean(dim=(2, 3, 4)) / 255
        logits = (means[:, -1:] - means[:, :1]) * self.weight
        return {"tokens": means[..., None], "embedding": means, "logits": logits}


@pytest.fixture(scope="module")
def ramps(tmp_path_factory) -> list[Example]:
    """Three grey videos that grow brighter and two that grow darker, by 8 grey values a frame."""
    examples = []
    for index in range(5):
        label = "brighter" if index < 3 else "darker"
        grey = 40 + 8 * torch.arange(16)[:, None, None, None] + 3 * index
        frames = (grey if index < 3 else grey.flip(0)).expand(16, 3, 32, 32).to(torch.uint8)
        path = tmp_path_factory.mktemp("ramps") / f"{index}.mp4"
        write_video(path, frames, fps=12, crf=4)
        examples.append(Example(str(path), path.name, label))
    return examples


def said_of(model: Model, examples: list[Example]) -> tuple[dict[str, Tensor], Tensor]:
    looks = {
        order: look(model, examples, workers=0, arrange=lambda frames, ids, order=order: arrange(frames, ids, order))
        for order in ORDERS
    }
    return {order: looked.probabilities for order, looked in looks.items()}, label_numbers(examples, model.class_names)


@settings(max_examples=25)
@given(st.integers(1, 40), st.text(max_size=5), st.integers(0, 3))
def test_every_order_shows_frames_of_the_clip_and_a_shuffle_follows_from_the_id(frames, id, seed):
    assert frame_order("as given", frames, id).tolist() == list(range(frames))
    assert frame_order("reversed", frames, id).tolist() == list(range(frames))[::-1]
    assert frame_order("one frame", frames, id).tolist() == [frames // 2] * frames
    shuffled = frame_order("shuffled", frames, id, seed)
    assert sorted(shuffled.tolist()) == list(range(frames))
    assert torch.equal(shuffled, frame_order("shuffled", frames, id, seed))


def test_shuffles_differ_from_video_to_video_and_from_seed_to_seed():
    drawn = {tuple(frame_order("shuffled", 16, str(id), seed).tolist()) for id in range(10) for seed in range(3)}
    assert len(drawn) == 30
    with pytest.raises(ConfigError, match="unknown order of frames 'shufled': did you mean 'shuffled'"):
        frame_order("shufled", 4, "a")


def test_frames_are_moved_and_nothing_else():
    batch, ids = clips(SPEC, batch=3).permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3), ["a", "b", "c"]
    for order in ORDERS:
        moved = arrange(batch, ids, order, seed=1)
        for clip, id, got in zip(batch, ids, moved, strict=True):
            assert torch.equal(got, torch.stack([clip[i] for i in frame_order(order, 8, id, 1).tolist()]))
    assert moved.dtype == torch.uint8 and moved.permute(0, 1, 3, 4, 2).is_contiguous(), "the layout of the loader"


def test_few_frames_are_held_to_fill_a_clip():
    batch = clips(SPEC)[:, :3]
    assert torch.equal(fill(batch, 8), batch[:, [0, 0, 0, 1, 1, 1, 2, 2]])
    assert torch.equal(fill(batch, 3), batch)
    with pytest.raises(ConfigError, match="3 frames do not fit into a clip of 2"):
        fill(batch, 2)


def test_log_odds_are_those_of_the_logits():
    logits = torch.randn(20, 5, dtype=torch.float64) * 30
    labels = torch.arange(20) % 5
    p = np.exp(logits.numpy() - np.logaddexp.reduce(logits.numpy(), axis=1, keepdims=True))
    others = np.where(np.eye(5, dtype=bool)[labels], 0, p).sum(axis=1)
    expected = np.log(p[np.arange(20), labels]) - np.log(others)
    np.testing.assert_allclose(temporal_order.log_odds(logits.softmax(dim=1), labels).numpy(), expected, rtol=1e-9)


def test_a_model_of_the_trend_has_the_numbers_worked_out_by_hand(ramps):
    said, labels = said_of(Trend(), ramps)
    found = probe.measure(said, labels, ("brighter", "darker"), [("brighter", "darker")])
    share = {row["order"]: row["share"] for row in found["orders"]}
    # One frame gives (0, 0), a tie, which goes to the first class: right for the three brighter ones.
    assert share["as given"] == 1 and share["reversed"] == 0 and share["one frame"] == 3 / 5
    first, last = zip(*[frame_order("shuffled", 8, one.id)[[0, -1]].tolist() for one in ramps], strict=True)
    assert share["shuffled"] == np.mean(np.array(last) > np.array(first)), "right where a later frame comes last"
    assert found["direction"]["share"] == 1 and not found["order_invariant"]
    (pair,) = found["pairs"]
    assert (pair["forward"], pair["reversed"], pair["share"], pair["videos"]) == (1, 1, 1, 5)
    assert found["single_frame_gap"]["gap"] == pytest.approx(2 / 5)
    grey = 8 * 14 / 255  # frames 0 and 14 of the video are the first and last of the clip
    assert found["largest_change"] == pytest.approx(2 * grey, abs=0.15), "log(p) from +grey to -grey"
    assert found["verdict"].endswith("does not show on 5 videos.")
    many = probe.measure(
        {order: answers.repeat(20, 1) for order, answers in said.items()}, labels.repeat(20), ("brighter", "darker")
    )
    assert many["verdict"].startswith("Yes: the clip is worth 40.0 points")


def test_pairs_are_found_by_playing_clips_backwards(ramps):
    said, labels = said_of(Trend(), ramps)
    assert temporal_order.find_pairs(said["reversed"], labels, ("brighter", "darker")) == [("brighter", "darker")]
    assert temporal_order.find_pairs(said["as given"], labels, ("brighter", "darker")) == []
    backward = torch.eye(3)[[1, 1, 2, 0, 0, 0, 2]]  # of the first class most, not all, are taken for the second
    assert temporal_order.find_pairs(backward, torch.tensor([0, 0, 0, 1, 1, 1, 2]), ("a", "b", "c")) == [("a", "b")]


@pytest.mark.parametrize("scale", [0.1, 0.5])
def test_a_model_of_single_frames_scores_exactly_one_half_whatever_its_weights(scale):
    spec = ClipSpec(frames=16, size=32)
    model = models.build("single_frame", spec, ("a", "b", "c"), width=8, stages=3).eval()
    randomise(model, scale)
    frames = clips(spec, batch=9)
    ids = [str(i) for i in range(9)]
    with torch.no_grad():
        said = {order: model(arrange(frames, ids, order))["logits"].double().softmax(dim=1) for order in ORDERS}
    found = probe.measure(said, torch.arange(9) % 3, ("a", "b", "c"), [("a", "b")])
    assert found["direction"]["share"] == 0.5 and found["pairs"][0]["share"] == 0.5
    assert found["order_invariant"] and found["verdict"].startswith("No: ")
    # The reversal is not equal to the last bit, which is why there is a tolerance; it is far from it.
    assert 0 < found["largest_change"] < TIE / 20


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(-20, 20), st.floats(-TIE / 4, TIE / 4)), min_size=2, max_size=30))
def test_the_same_answer_to_both_is_half_right_exactly(answers):
    margin, noise = torch.tensor(answers, dtype=torch.float64).T
    forward, backward = (torch.stack([z / 2, -z / 2], dim=1).softmax(dim=1) for z in (margin, margin + noise))
    labels = torch.arange(len(answers)) % 2
    (row,) = temporal_order.pair_rows(forward, backward, labels, ("a", "b"), [("a", "b")])
    assert row["share"] == 0.5
    assert temporal_order.forward_over_reversed(forward, backward, labels).tolist() == [0.5] * len(answers)


def test_each_pair_divides_by_its_own_videos_and_the_last_row_by_all():
    names = ("a", "b", "c", "d", "e", "f")
    labels = torch.tensor([0, 1, 1, 2, 3])
    forward = torch.eye(6)[[0, 1, 0, 2, 2]] * 0.5 + 0.1
    backward = torch.eye(6)[[1, 1, 0, 3, 4]] * 0.5 + 0.1
    rows = temporal_order.pair_rows(forward, backward, labels, names, [("a", "b"), ("c", "d"), ("e", "f")])
    assert [row["pair"] for row in rows] == [["a", "b"], ["c", "d"], ["e", "f"], None]
    # a: right, right. b: right, wrong (still b). b: taken for a, and its reversal too, which is right.
    assert [rows[0][key] for key in ("forward", "reversed", "videos")] == [pytest.approx(2 / 3), pytest.approx(2 / 3), 3]
    # c: right, right. d: taken for c; its reversal is neither c nor d, a tie.
    assert [rows[1][key] for key in ("forward", "reversed", "videos")] == [0.5, 0.75, 2]
    assert rows[2]["share"] is None and rows[2]["videos"] == 0
    assert rows[3]["videos"] == 5 and rows[3]["share"] == pytest.approx((2 / 3 * 3 + 0.625 * 2) / 5)


def test_the_interval_of_a_gap_is_that_of_its_mean():
    generator = torch.Generator().manual_seed(0)
    more, less = (torch.rand(400, generator=generator) < 0.8).double(), (torch.rand(400, generator=generator) < 0.6).double()
    gap = temporal_order.gap_of(more, less)
    error = 1.96 * float((more - less).std()) / 20
    assert gap.gap == pytest.approx(float(more.mean() - less.mean())) and gap.videos == 400
    assert gap.gap - gap.low == pytest.approx(error, rel=0.1) and gap.high - gap.gap == pytest.approx(error, rel=0.1)
    assert temporal_order.gap_of(more, less) == gap


def test_pairs_as_they_are_typed():
    names = ("up", "down", "left", "right", "lift, drop", "a:b")
    assert temporal_order.parse_pairs(["up:down, left : right"], names) == [("up", "down"), ("left", "right")]
    assert temporal_order.parse_pairs(["lift, drop:a:b"], names) == [("lift, drop", "a:b")]
    for text, said in {
        "up:dwon": "unknown class in a pair 'dwon': did you mean 'down'",
        "up": "'up' is no pair of classes: wanted two of them as A:B",
        "up:down,left:up": "class 'up' is named twice",
        "up:up": "class 'up' is named twice",
    }.items():
        with pytest.raises(ConfigError, match=said):
            temporal_order.parse_pairs([text], names)


def test_the_verdict_follows_from_the_intervals():
    gap = {"large": temporal_order.Gap(0.4, 0.3, 0.5, 99), "none": temporal_order.Gap(0.01, -0.05, 0.06, 99)}
    direction = {"seen": temporal_order.Share(0.8, 0.7, 0.9, 99), "unseen": temporal_order.Share(0.51, 0.4, 0.6, 99)}
    said = [
        temporal_order.verdict(invariant, gap[one], gap[drop], direction[way])
        for invariant, one, drop, way in [
            (True, "large", "large", "seen"), (False, "large", "large", "unseen"), (False, "large", "none", "seen"),
            (False, "large", "none", "unseen"), (False, "none", "none", "seen"), (False, "none", "none", "unseen"),
        ]
    ]  # fmt: skip
    assert [one.partition(":")[0] for one in said] == ["No", "Yes", "Yes", "In part", "Hardly", "No sign of it"]


def test_the_grid_of_frames_and_strides():
    assert probe.grid(ClipSpec(frames=6, stride_frames=3), strides=[3]) == [(1, 3), (2, 3), (4, 3), (6, 3)]
    assert probe.grid(SPEC, frames=[8, 1]) == [(1, 2), (8, 2), (8, 4), (8, 8)], "one frame has no stride"
    assert probe.grid(SPEC) == [(1, 2), (2, 2), (4, 2), (8, 2), (2, 4), (4, 4), (2, 8)], "nothing longer than its own clips"
    assert probe.grid(ClipSpec(frames=2, sampling="segments")) == [(1, 4), (2, 4)]
    with pytest.raises(ConfigError, match="equal segments, which have no stride"):
        probe.grid(ClipSpec(sampling="segments"), strides=[2])


def test_a_model_is_rebuilt_for_fewer_frames_with_the_same_weights():
    model = models.build("videomae_tiny", SPEC, ("a", "b"), **SIZES, positions="3d").eval()
    randomise(model)
    fewer = ClipSpec(frames=4, stride_frames=2, size=32)
    twin = probe.resized(model, fewer)
    assert twin is not None and twin.spec == fewer
    frames = clips(fewer)
    with torch.no_grad():
        assert torch.equal(twin(frames)["logits"], model(frames)["logits"])
    assert probe.resized(model, ClipSpec(frames=1, size=32)) is None, "a tubelet has two frames"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Random models of two classes: one that knows order, one of single frames; and one without classes."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("models")
    made = {
        "ordered": models.build("videomae_tiny", SPEC, CLASSES, **SIZES),
        "frames": models.build("single_frame", SPEC, CLASSES[::-1], width=8, stages=2),
        "plain": models.build("videomae_tiny", SPEC, **SIZES),
        "others": models.build("single_frame", SPEC, ("x", "y"), width=8, stages=2),
    }
    for model in made.values():
        randomise(model, 0.3)
    return {name: str(save(model, place / name)) for name, model in made.items()}


def run(arguments: list[str], capfd) -> dict:
    assert main(["probe", *arguments, "--workers", "0", "--json"]) == 0
    return json.loads(capfd.readouterr().out)


def test_the_whole_job_of_a_classifier(folders, motion_folder, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    for path in sorted(motion_folder.glob("val/*/*.mp4")):
        target = data / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    target.write_text("not a video")
    asked = ["--pairs", "translate_left:translate_right", "--single-frame", folders["frames"], "--frames", "1,4,8,16"]
    found = run([folders["ordered"], str(data), *asked, "--strides", "1,4"], capfd)
    assert found["asked"] == 4 and [gone["id"].rpartition("/")[2] for gone in found["missing"]] == [target.name]
    assert {row["order"]: row["videos"] for row in found["orders"]} == dict.fromkeys(ORDERS, 3)
    assert found["pairs"][0]["videos"] == 3 and found["pairs_given"] and not found["order_invariant"]
    assert found["single_frame_model"]["videos"] == 3 and found["single_frame_model"]["missing"] == 1
    cells = {(row["frames"], row["stride_frames"]): row for row in found["saturation"]}
    assert list(cells) == [(1, 1), (4, 1), (8, 1), (16, 1), (4, 4), (8, 4), (16, 4)]
    assert cells[1, 1]["filled"] and not cells[4, 1]["filled"], "two frames make a tubelet"
    # 16 frames: 4 at stride 4 are just there, 8 are not
    assert [cells[cell]["padded"] for cell in ((16, 1), (4, 4), (8, 4))] == [0, 0, 3]
    assert checked(tmp_path / "runs/probe_ordered/report.html").headings == ["Is it really video?", "Settings and environment"]
    page = (tmp_path / "runs/probe_ordered/report.html").read_text(encoding="utf-8")
    assert found["verdict"] in page and target.name in page
    assert "3 of 4 videos" in page and "3 of 3 videos are shorter" in page and page.count("data:image/png") == 3
    assert json.loads((tmp_path / "runs/probe_ordered/report.json").read_text(encoding="utf-8"))["probe"]["orders"]


def test_the_whole_job_of_a_model_of_single_frames(folders, motion_folder, tmp_path, capfd):
    options = [str(motion_folder), "--out", str(tmp_path / "report"), "--frames", "2,8", "--strides", "2"]
    found = run([folders["frames"], *options, "--pairs", "translate_right:translate_left"], capfd)
    assert found["direction"]["share"] == 0.5 and found["pairs"][0]["share"] == 0.5 and found["order_invariant"]
    assert len({row["share"] for row in found["orders"][:3]}) == 1, "reversed and shuffled are as given"
    assert [row["filled"] for row in found["saturation"]] == [False, False]
    assert found["saturation"][1]["share"] == found["orders"][0]["share"]
    again = run([folders["frames"], *options], capfd)
    assert again["pairs"] == [] and not again["pairs_given"]
    assert "the model takes no two classes for each other" in (tmp_path / "report/report.html").read_text(encoding="utf-8")


def test_segments_have_no_stride(motion_folder, tmp_path, capfd):
    model = models.build("single_frame", dataclasses.replace(SPEC, sampling="segments", frames=2), CLASSES, width=8, stages=2)
    randomise(model, 0.3)
    place = str(save(model, tmp_path / "model"))
    found = run([place, str(motion_folder), "--out", str(tmp_path / "out")], capfd)
    assert [(row["frames"], row["stride_frames"]) for row in found["saturation"]] == [(1, None), (2, None)]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<td class=n>segments<") == 2 and "as trained" in page


def test_a_model_without_classes_is_judged_by_a_linear_probe(folders, motion_folder, tmp_path, capfd):
    arguments = [
        folders["plain"],
        str(motion_folder),
        "--out",
        str(tmp_path),
        "--frames",
        "8",
        "--strides",
        "2",
        "--limit",
        "2",
    ]
    found = run(arguments, capfd)
    assert found["judged_by"] == "a linear probe on frozen features of 8 training videos"
    assert found["asked"] == 2 and found["part"].endswith(", 2 of them")
    assert found["saturation"][0]["share"] == found["orders"][0]["share"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{ordered}"], "no data given"),
        (["{ordered}", "{data}", "--pairs", "translate_left:translate_rihgt"], "did you mean 'translate_right'"),
        (["{ordered}", "{data}", "--single-frame", "{others}"], "tells other classes (x, y)"),
        (["{others}", "{data}"], "labels the model never learned"),
        (["{ordered}", "{data}", "--frames", "four"], "wanted whole numbers with commas"),
        (["{ordered}", "{data}", "--strides", "0"], "strides is 0: it must be 1 or more"),
        (["{ordered}", "{data}", "--limit", "-1"], "limit is -1"),
        (["{ordered}", "{data}", "--clips", "0"], "clips is 0"),
        (["{plain}", "{data}/unlabelled"], "label"),
        (["{ordered}", "{data}", "--pair", "a:b"], "--pair"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(folders, motion_folder, tmp_path, arguments, said, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {**folders, "data": motion_folder}
    assert main(["probe", *(argument.format(**names) for argument in arguments)]) == 2
    out, err = capfd.readouterr()
    assert said in err and out == "" and err.splitlines()[-1].startswith("error: ") and err.count("error: ") == 1, err


def test_a_cell_that_cannot_be_says_why(folders, motion_folder, tmp_path, capfd):
    model = models.build("videomae_tiny", ClipSpec(frames=8, size=32, short="error"), CLASSES, **SIZES)
    arguments = [str(save(model, tmp_path / "model")), str(motion_folder), "--out", str(tmp_path / "out"), "--frames", "2,8"]
    assert main(["probe", *arguments, "--strides", "1,4"]) == 2, "the clips it was trained with are longer than the videos"
    assert "none of 4 videos could be read" in capfd.readouterr().err
    model = models.build("videomae_tiny", ClipSpec(frames=8, stride_frames=2, size=32, short="error"), CLASSES, **SIZES)
    save(model, tmp_path / "model")
    found = run([*arguments, "--strides", "2,4"], capfd)
    last = found["saturation"][-1]
    assert (last["frames"], last["share"], last["videos"]) == (8, None, 0) and "32" in last["why"]


def test_the_curve_leaves_out_what_is_mostly_padding_and_is_drawn_in_two_inks():
    row = {"frames": 4, "stride_frames": 1, "share": 0.5, "low": 0.3, "high": 0.7, "videos": 4, "padded": 0, "filled": True}
    nothing = {**row, "stride_frames": 2, "share": None}
    light, dark = saturation([row], 0.25), saturation([row], 0.25, dark=True)
    assert light.startswith(b"\x89PNG") and light != dark
    assert saturation([row, nothing, {**row, "stride_frames": 4, "padded": 3}], 0.25) == light
