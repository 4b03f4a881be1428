"""Moments of videos whose answer can be told by hand: from when to when a colour is seen."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tubelet import ground_head, ground_store, models
from tubelet.errors import CheckpointError, ConfigError, DataError
from tubelet.evaluate.grounding import iou
from tubelet.ground import best, choose, class_of, ground, judge, scorer, suppress
from tubelet.ground_head import HeadConfig
from tubelet.ground_store import Stored
from tubelet.records import ClipSpec, Example, Question
from tubelet.scan import Scan, scales, scan
from tubelet.video.stream import Windows

from .colours import FPS, Colours, film

PARTS = [("red", 3), ("green", 4), ("blue", 3)]
COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return film(tmp_path_factory.mktemp("film") / "a.mp4", PARTS)


@pytest.mark.parametrize("classes", [(), COLOURS])
@pytest.mark.parametrize(("word", "truth"), [("red", (0, 3)), ("green", (3, 7)), ("blue", (7, 10))])
def test_a_colour_is_found_by_text_tower_and_by_class(video, classes, word, truth):
    spans = ground(Colours(classes), video, word, top=3, lengths=(1, 2, 3, 4))
    assert iou([(spans[0].start_seconds, spans[0].end_seconds)], [truth])[0, 0] >= 0.25
    assert truth[0] <= spans[0].start_seconds < spans[0].end_seconds <= truth[1] + 1e-6
    assert [one.score for one in spans] == sorted((one.score for one in spans), reverse=True)
    kept = [(one.start_seconds, one.end_seconds) for one in spans]
    assert (iou(kept, kept) - np.eye(len(kept))).max() <= 0.5


def test_a_clip_and_a_picture_ask_too(video, tmp_path):
    picture = tmp_path / "blue.png"
    Image.new("RGB", (20, 16), (0, 0, 255)).save(picture)
    for asked in (film(tmp_path / "clip.mp4", [("blue", 1)]), picture):
        found = ground(Colours(), video, asked, top=1, lengths=(3,))[0]
        assert found.start_seconds == pytest.approx(7, abs=0.3) and found.score == pytest.approx(1, abs=0.02)
    same = ground(Colours(), video, torch.tensor([0.0, 0.0, 2.0]), top=1, lengths=(3,))[0]
    assert same.start_seconds == found.start_seconds
    with pytest.raises(ConfigError, match=r"a vector of \(2,\), colours has embeddings of \(3,\)"):
        ground(Colours(), video, torch.zeros(2))


def test_windows_cover_the_video_and_are_what_the_model_sees_alone(video):
    model = Colours(COLOURS)
    seen = scan(model, video, [Windows(window_seconds=1, step_seconds=0.25), Windows(window_seconds=4, step_seconds=1)])
    assert (
        seen.duration == pytest.approx(10) and float(seen.seconds.max()) == pytest.approx(10) and float(seen.seconds.min()) == 0
    )
    lengths = (seen.seconds[:, 1] - seen.seconds[:, 0]).round(decimals=3)
    assert set(lengths.tolist()) == {1.0, 4.0}
    assert int((lengths == 1).sum()) == (80 - FPS) // 2 + 1  # ceil((F - L) / s) + 1
    inside = (seen.seconds[:, 0] >= 3) & (seen.seconds[:, 1] <= 7)
    assert torch.allclose(seen.embeddings[inside], torch.tensor([0.0, 1.0, 0.0]), atol=0.02)
    assert torch.allclose(seen.probabilities.sum(1), torch.ones(len(seen.seconds)))
    assert not scan(Colours(), video, [Windows(window_seconds=4)]).probabilities
    assert [one.window_seconds for one in scales(model, video)] == [1.0, 2.0, 4.0]  # 4 frames, stride 2, 8 a second
    assert [one.window_seconds for one in scales(model, video, (3,))] == [3]


@given(
    st.lists(st.tuples(st.floats(0, 20), st.floats(0.1, 9), st.integers(0, 5)), max_size=25),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
@settings(max_examples=80, deadline=None)
def test_suppression_is_the_plain_one(rows, overlap):
    spans = np.array([(start, start + length) for start, length, _ in rows]).reshape(-1, 2)
    scores = np.array([score for *_, score in rows], dtype=float)
    left, plain = sorted(range(len(rows)), key=lambda i: (-scores[i], i)), []
    while left:
        i = left.pop(0)
        plain.append(i)
        left = [j for j in left if iou([spans[i]], [spans[j]])[0, 0] <= overlap]
    assert suppress(spans, scores, overlap) == plain


def test_best_of_nothing():
    assert best(torch.empty(0, 2, dtype=torch.float64), torch.empty(0), 3) == []


def test_questions_name_classes():
    model = Colours(("turn_left", "Turn right", "jump"))
    assert class_of(model, "turn left") == "turn_left" and class_of(model, "when do they JUMP?") == "jump"
    assert class_of(model, "jumping") == "jump" and class_of(model, "turn-rihgt") == "Turn right"
    with pytest.raises(
        ConfigError, match="'sleeping' names no class of this model, and the model has no text tower: ask for one of"
    ):
        class_of(model, "sleeping")
    with pytest.raises(ConfigError, match="names several classes"):
        class_of(model, "jump and turn left")


def test_what_cannot_be_asked_is_one_line(video):
    with pytest.raises(ConfigError, match="the question is empty: say what to look for"):
        ground(Colours(), video, "  ")
    with pytest.raises(ConfigError, match="top is 0: ask for 1 answer or more"):
        ground(Colours(), video, "red", top=0)
    for overlap in (7, -1, float("nan")):
        with pytest.raises(ConfigError, match=f"overlap is {overlap:g}: an intersection over union lies between 0 and 1"):
            ground(Colours(), video, "red", overlap=overlap)
    with pytest.raises(ConfigError, match="windows of inf s at a step of inf: both must be numbers above 0"):
        ground(Colours(), video, "red", lengths=(1, float("inf")))
    with pytest.raises(ConfigError, match="windows of 0 s"):
        ground(Colours(), video, "red", lengths=(0,))
    assert len(ground(Colours(), video, "red", lengths=(60,))) == 1  # longer than the video: all of it


def test_multiple_choice_by_matching(video, tmp_path):
    question = Question("1", "a", "what colour?", ("red", "green", "blue", "red green", "nothing"))
    scores = choose(Colours(), film(tmp_path / "g.mp4", [("green", 2)]), question)
    assert len(scores) == 5 and int(np.argmax(scores)) == 1


def test_a_model_with_a_text_tower_is_asked_by_its_cosine(video):
    options = dict(depth=1, width=16, heads=2, patch=8, decoder_width=8, decoder_depth=1, decoder_heads=1)
    spec = ClipSpec(frames=2, stride_frames=2, size=16)
    model = models.build("video_text_tiny", spec, video_options=options, text=dict(width=16, depth=1, heads=2), width=8)
    found = scan(model, video, [Windows(window_seconds=2)])
    expected = torch.nn.functional.normalize(found.embeddings, dim=1) @ model.embed_text(["the green one"])[0]
    assert -1 <= ground(model, video, "the green one", top=1, lengths=(2,))[0].score <= 1
    assert torch.allclose(scorer(model, "the green one")(found), expected.detach(), atol=1e-5)
    with pytest.raises(ConfigError, match="reads no text"):
        ground(models.build("videomae_tiny", spec, **options), video, "green")


def test_a_table_of_questions_beside_chance(video):
    def row(text, start, end):
        return Example(str(video), f"{text}{start}", None, text, start, end)

    rows = [
        row("red", 0, 3),
        row("green", 3, 7),
        row("blue", 7, 8),
        row("blue", 8, 10),
        Example("gone.mp4", "x", None, "red", 0, 1),
    ]
    missing = []
    found = judge(Colours(), rows, lengths=(3,), on_missing=lambda *pair: missing.append(pair[0]))
    assert missing == ["gone.mp4"] and found["model"]["questions"] == 3
    assert found["model"]["R1@0.3"] == 1 and found["model"]["mIoU"] > 2 * found["chance"]["mIoU"]
    seen = scan(Colours(), video, scales(Colours(), video, (3,))).seconds.numpy()
    expected = [iou(seen, truth).max(axis=1).mean() for truth in ([(0, 3)], [(3, 7)], [(7, 8), (8, 10)])]
    assert found["chance"]["mIoU"] == pytest.approx(np.mean(expected))
    with pytest.raises(DataError, match="none of 1 rows has a text, a start and an end"):
        judge(Colours(), [Example("a", "a")])
    with pytest.raises(DataError, match="none of 1 videos could be read"):
        judge(Colours(), rows[4:])


def test_scores_are_the_cosine(video):
    seen = Scan(torch.tensor([[0.0, 1.0], [1.0, 2.0]]).double(), torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 3.0]]), None, 2.0)
    a = torch.tensor([1.0, 0.0, 0.0])
    assert torch.allclose(scorer(Colours(), a)(seen), torch.tensor([0.5**0.5, 0.0]))


# The trained head ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Twelve films of three colours in random order and lengths; a head taught on nine of them."""
    folder = tmp_path_factory.mktemp("films")
    generator = np.random.default_rng(0)
    examples = []
    for number in range(12):
        start, parts = 0.0, []
        for colour in generator.permutation(COLOURS):
            length = int(generator.integers(2, 6)) / 2
            parts.append((str(colour), length))
            id, split = f"{number}-{colour}", "train" if number < 9 else "val"
            examples.append(
                Example(str(folder / f"{number}.mp4"), id, None, f"the {colour} one", start, start + length, None, split)
            )
            start += length
        film(folder / f"{number}.mp4", parts)
    model = Colours()
    stored = ground_store.store(model, [one.path for one in examples], 0.25, 0.125, folder / "features.parquet")
    config = HeadConfig(0.25, 0.125, cells=24, width=32, depth=2, heads=2, steps=120, batch_size=16, lr=3e-3, dropout=0.0)
    train = [one for one in examples if one.split == "train"]
    losses = []
    head = ground_head.fit(model, train, stored, config, lambda step, loss: losses.append(loss))
    return folder, model, examples, stored, head, losses


def test_the_head_learns_and_beats_the_prior(taught):
    _, model, examples, stored, head, losses = taught
    train, held = [[one for one in examples if one.split == side] for side in ("train", "val")]
    got, guessed = ground_head.judge(head, model, held, stored), ground_head.prior(train, held, stored)
    assert losses[-1] < losses[0] and got["questions"] == 9
    assert got["mIoU"] > 0.75 > guessed["mIoU"] + 0.2, (got, guessed)
    spans = ground_head.answer(head, model, stored[held[0].path], held[0].text)
    assert [one.score for one in spans] == sorted((one.score for one in spans), reverse=True) and 0 <= spans[0].score <= 1


def test_features_are_stored_once_and_not_taken_from_another_model(taught, tmp_path, monkeypatch):
    folder, model, examples, stored, _, _ = taught
    paths = [one.path for one in examples]
    monkeypatch.setattr(ground_store, "scan", lambda *_, **__: pytest.fail("decoded again"))
    again = ground_store.store(model, paths, 0.25, 0.125, folder / "features.parquet")
    assert all(torch.equal(again[path].vectors, stored[path].vectors) for path in paths)
    assert all(torch.equal(again[path].seconds, stored[path].seconds) for path in paths)
    assert again[paths[0]].duration == stored[paths[0]].duration
    clips, options, other = Colours(), Colours(), Colours()
    clips.spec = replace(model.spec, background="subtract")
    options.options = {**model.options, "pool": "mean"}
    torch.nn.init.zeros_(other.scale)
    for changed in (clips, options):  # with the same weights
        said: list[str] = []
        assert ground_store._read(folder / "features.parquet", changed, 0.25, 0.125, said.append) == ({}, {})
        assert len(said) == 1 and said[0].endswith("all videos are read again")
    assert ground_store._read(folder / "features.parquet", other, 0.25, 0.125) == ({}, {})
    assert ground_store._read(folder / "features.parquet", model, 0.5, 0.125) == ({}, {})


def test_features_of_odd_windows_are_found_again_and_those_of_a_changed_file_are_not(tmp_path, monkeypatch):
    """Of a window that no short decimal says; of two films of which one is written anew."""
    path, window = tmp_path / "features.parquet", 64 / 30
    films = [film(tmp_path / f"{number}.mp4", [("red", 3)]) for number in range(2)]
    looked, scan_ = [], ground_store.scan
    monkeypatch.setattr(
        ground_store, "scan", lambda model, video, *more, **named: looked.append(video) or scan_(model, video, *more, **named)
    )

    def store():
        looked.clear()
        return ground_store.store(Colours(), [str(one) for one in films], window, window / 4, path)

    store()
    first = store()
    assert looked == []
    film(films[1], [("green", 2), ("red", 2)])
    again = store()
    assert looked == [str(films[1])] and again[looked[0]].duration == pytest.approx(4)
    assert torch.equal(again[str(films[0])].vectors, first[str(films[0])].vectors)


def test_an_interrupted_pass_over_the_videos_loses_nothing(tmp_path, monkeypatch):
    films = [str(film(tmp_path / f"{number}.mp4", [("red", 1)])) for number in range(2)]

    def stop(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ground_store.store(Colours(), films, 0.5, 0.25, tmp_path / "features.parquet", stop)
    assert list(ground_store._read(tmp_path / "features.parquet", Colours(), 0.5, 0.25)[0]) == films[:1]


def test_a_question_has_the_same_scores_beside_a_longer_one():
    head = ground_head.GroundHead(HeadConfig(1, 1, cells=5, width=8, depth=2, heads=2), 3, ("a", "b"), text=4).eval()
    features, sentences = torch.randn(2, 5, 3), torch.randn(2, 4)
    both = head(features, head.tokens(["b", "a b a a b"]), sentences)
    alone = head(features[:1], head.tokens(["b"]), sentences[:1])
    assert torch.allclose(both[0], alone[0], atol=1e-5)
    assert not torch.allclose(
        head(features[:1], head.tokens(["b zebra"]), sentences[:1]), alone, atol=1e-3
    )  # unknown, but there


def test_a_head_and_a_model_are_asked_the_same_questions(taught):
    """Rows of one video with the same words are one question with several answers, to which ten answers count."""
    _, model, examples, stored, head, _ = taught
    one = examples[-1]
    rows = [one, Example(one.path, "again", None, one.text, 0, 0.5), Example("gone.mp4", "x", None, "red", 0, 1)]
    asked = judge(model, rows, lengths=(1,))["model"]
    assert ground_head.judge(head, model, rows, stored)["questions"] == 1 == asked["questions"]
    assert ground_head.prior(examples, rows, stored)["questions"] == 1
    found = ground_head.answer(head, model, stored[one.path], one.text, top=10)
    last = (found[-1].start_seconds, found[-1].end_seconds)
    assert len(found) == 10
    only = ground_head.judge(head, model, [Example(one.path, "x", None, one.text, *last)], stored)
    assert only["mAP"] == pytest.approx(0.1, abs=0.05) and only["mAP"] > 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps is 0: it must be 1 or more"),
        ({"cells": 0}, "cells is 0: it must be 1 or more"),
        ({"window": float("inf")}, "window is inf: it must be a number above 0"),
        ({"step": 0}, "step is 0: it must be a number above 0"),
    ],
)
def test_a_head_that_cannot_be_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        HeadConfig(**{"window": 1, "step": 1, **values})


def test_a_saved_head_answers_the_same_and_knows_its_model(taught, tmp_path):
    _, model, examples, stored, head, _ = taught
    ground_head.save(head, model, tmp_path / "head")
    loaded = ground_head.load(tmp_path / "head", model)
    one = examples[-1]
    assert ground_head.answer(loaded, model, stored[one.path], one.text) == ground_head.answer(
        head, model, stored[one.path], one.text
    )
    assert [path.name for path in (tmp_path / "head").iterdir()] == ["head.safetensors"]
    other = Colours()
    torch.nn.init.zeros_(other.scale)
    with pytest.raises(
        CheckpointError, match="was trained over features of colours .*, and the model is colours .*: give that model"
    ):
        ground_head.load(tmp_path / "head", other)
    with pytest.raises(CheckpointError, match="no head at .*`tubelet ground fit` makes one"):
        ground_head.load(tmp_path / "nowhere", model)


def test_training_twice_gives_the_same_head(taught):
    _, model, examples, stored, _, _ = taught
    config = HeadConfig(0.25, 0.125, cells=8, width=16, depth=1, heads=2, steps=3, batch_size=4)
    heads = [ground_head.fit(model, examples, stored, config).state_dict() for _ in range(2)]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


def test_every_value_of_the_head_is_set_and_the_map_is_its_formula():
    head = ground_head.GroundHead(HeadConfig(1, 1, cells=5, width=8, depth=1, heads=2), 3, ("a", "b"))
    for parameter in head.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    head.init_weights(torch.Generator().manual_seed(0))
    assert all(torch.isfinite(parameter).all() for parameter in head.parameters())
    scores = head.eval()(torch.randn(2, 5, 3), head.tokens(["a b", "zebra"]))
    assert scores.shape == (2, 15) and head.spans(10.0).shape == (15, 2)
    assert head.spans(10.0)[1].tolist() == [0.0, 4.0] and head.spans(10.0)[-1].tolist() == [8.0, 10.0]
    assert head.tokens(["a b", "zebra"]).tolist() == [[1, 2], [0, -1]]


def test_cells_are_interpolated_in_time():
    stored = Stored(torch.tensor([[4.0, 6.0], [0.0, 2.0], [2.0, 4.0]]).double(), torch.tensor([[5.0], [1.0], [3.0]]), 6.0)
    assert stored.cells(6).flatten().tolist() == pytest.approx([1.0, 1.5, 2.5, 3.5, 4.5, 5.0])


def test_rows_without_times_teach_nothing(taught):
    _, model, _, stored, _, _ = taught
    with pytest.raises(DataError, match="none of 1 rows has a text, a start and an end"):
        ground_head.fit(model, [Example("a", "a", text="x")], stored, HeadConfig(1, 1))
    with pytest.raises(DataError, match="none of 1 videos could be read"):
        ground_store.store(model, ["nowhere.mp4"], 1, 1, "features.parquet")
    with pytest.raises(DataError, match="none of the videos of 1 rows to learn from could be read"):
        ground_head.fit(model, [Example("gone.mp4", "a", None, "x", 0, 1)], stored, HeadConfig(1, 1))
    json.dumps(vars(HeadConfig(1, 1)))
