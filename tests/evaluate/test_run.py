"""The whole evaluation of a real (very small) fine-tuned run: its baselines, its report, and what happens the second time."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from tubelet import models
from tubelet.errors import CheckpointError, ConfigError, DataError
from tubelet.evaluate import baselines, report, run, sides
from tubelet.evaluate.multiview import look
from tubelet.evaluate.protocol import classification_row
from tubelet.loading import LoaderConfig
from tubelet.records import ClipSpec
from tubelet.train.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from tubelet.train.loop import train
from tubelet.weights.load import load_model
from tubelet.weights.save import save

SPEC = ClipSpec(frames=4, stride_frames=2, size=32)
SIZES = {"depth": 2, "patch": 8, "width": 48, "heads": 2, "decoder_width": 24, "decoder_heads": 2, "decoder_depth": 1}


@pytest.fixture(scope="module")
def finetuned(motion_folder, tmp_path_factory):
    """The folder of a run of three steps that started from a (randomly) pretrained model, which tests evaluate; as training left
    it, it is beside it: as_trained."""
    place = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    start = save(models.build("videomae_tiny", SPEC, **SIZES), place / "pretrained")
    config = TrainConfig(
        out=str(place / "finetuned"),
        objective="classify",
        init=str(start),
        data=DataConfig(train=(str(motion_folder),)),
        clip=SPEC,
        loader=LoaderConfig(batch_size=4),
        model=ModelConfig("videomae_tiny", SIZES),
        optim=OptimConfig(steps=3, epochs=None, base_lr=0.01, layer_decay=0.7),
        run=RunConfig(log_every=1, validations=2),
    )
    run = train(config)
    shutil.copytree(run, place / "as_trained")
    return run


def test_training_leaves_a_report_with_curves_and_a_first_result(finetuned):
    left = finetuned.with_name("as_trained")
    sections = report.load(left)
    rows = {(row["name"], row["weights"]) for row in sections["results"]}
    assert rows == {("fine-tuned", "pretrained"), ("majority class", "majority class"), ("chance", "chance")}
    assert "Learning curves" in (left / "report.html").read_text(encoding="utf-8")


def test_the_whole_table_and_its_random_baseline(finetuned, motion_folder):
    said: list[str] = []
    settings = run.Settings(clips=2, crops=1)
    found = run.evaluate(finetuned, sides.data_of(finetuned), settings=settings, say=said.append)
    rows = {(row["name"], row["weights"]): row for row in found.results}
    methods = [(name, weights) for weights in ("pretrained", "random initialisation") for name in report.METHODS]
    assert list(rows) == [*methods, ("majority class", "majority class"), ("chance", "chance")]
    assert found.asked == 4 and found.missing == [] and found.report == finetuned / "report.html"
    assert any("random_init" in message for message in said)

    twin = load_model(finetuned / "random_init")
    config = TrainConfig.from_yaml(finetuned / "random_init" / "config.yaml")
    mine = TrainConfig.from_yaml(finetuned / "config.yaml")
    assert config.init is None and mine.init is not None
    assert mine.optim.layer_decay == 0.7 and config.optim == replace(mine.optim, layer_decay=1.0)
    assert (config.data, config.clip, config.model, config.run.seed) == (mine.data, mine.clip, mine.model, mine.run.seed)
    note = rows["fine-tuned", "random initialisation"]["note"]
    assert note == "the same training without pretraining, layer decay 1 in place of 0.7"
    asked = sides.sides(sides.data_of(finetuned), "", mine, True, said.append).asked.examples
    assert {example.split for example in asked} == {"val"}
    expected = classification_row(look(twin, asked, 2, 1), twin.class_names, "random initialisation")
    assert rows["fine-tuned", "random initialisation"]["top1"] == expected["top1"]
    expected = classification_row(look(load_model(finetuned), asked, 2, 1), twin.class_names, "pretrained")
    assert rows["fine-tuned", "pretrained"]["top1"] == expected["top1"]
    majority = rows["majority class", "majority class"]
    assert majority["top1"] == 0.5 and "of the training videos" in majority["note"]

    before = (finetuned / "random_init" / "model" / "model.safetensors").stat().st_mtime_ns
    again = run.evaluate(finetuned, sides.data_of(finetuned), settings=settings)
    assert again.results == found.results
    assert (finetuned / "random_init" / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_the_page_shows_the_pretrained_models_pictures_beside_the_classifiers(finetuned):
    run.evaluate(finetuned, sides.data_of(finetuned), settings=run.Settings(clips=2, crops=1))
    text = (finetuned / "report.html").read_text(encoding="utf-8")
    for heading in ("Results", "Reconstructions", "Masks", "Confusion matrix", "Embedding map", "Attention", "Missing videos"):
        assert f"<h2>{heading}</h2>" in text
    sections = json.loads((finetuned / "report.json").read_text(encoding="utf-8"))
    assert len(sections["reconstructions"]) == 3 and sections["data"]["evaluated"] == 4


def number_of_the_baseline(found):
    """(top-1, note) of the row from random initialisation."""
    row = next(row for row in found.results if (row["name"], row["weights"]) == ("fine-tuned", "random initialisation"))
    return row["top1"], row["note"]


def test_without_the_baseline_the_table_keeps_one_of_the_same_videos_and_views_only(finetuned, tmp_path):
    data, settings = sides.data_of(finetuned), run.Settings(clips=2, crops=1, methods=(), baseline=False)
    run.evaluate(finetuned, data, settings=replace(settings, baseline=True))
    assert number_of_the_baseline(run.evaluate(finetuned, data, settings=settings))[0] is not None
    left_out = (None, "left out (--no-baseline)")
    for changed in (replace(settings, clips=1), replace(settings, split="train")):
        run.evaluate(finetuned, data, settings=replace(settings, baseline=True))
        assert number_of_the_baseline(run.evaluate(finetuned, data, settings=changed)) == left_out
    assert number_of_the_baseline(run.evaluate(finetuned, data, tmp_path, settings)) == left_out


def test_the_table_is_about_one_set_of_videos(finetuned, tmp_path):
    data, settings = sides.data_of(finetuned), run.Settings(clips=1, crops=1, baseline=False)
    first = run.evaluate(finetuned, data, tmp_path, settings)
    row = {**first.results[0], "weights": "single frame"}
    report.update(tmp_path, results=[row])
    again = run.evaluate(finetuned, data, tmp_path, replace(settings, methods=()))
    assert {row["name"] for row in again.results} >= {"k-NN"} and row in again.results, "the same videos: rows stay"
    other = run.evaluate(finetuned, data, tmp_path, replace(settings, methods=(), split="train"))
    assert {row["videos"] for row in other.results if row["top1"] is not None and row["name"] != "chance"} == {8}
    assert {row["weights"] for row in other.results} == {
        "pretrained", "random initialisation", "majority class", "chance"
    }  # fmt: skip


def test_videos_the_model_was_trained_on_are_counted_and_said(finetuned, motion_folder, tmp_path):
    settings = run.Settings(clips=1, crops=1, methods=(), baseline=False)
    cases = {
        "": (0, "split val: 4 of 12 labelled videos"),
        "train": (8, "split train: 8 of 12 labelled videos"),
        "all": (8, "all 12 labelled videos"),
    }
    for split, (trained_on, part) in cases.items():
        said: list[str] = []
        found = run.evaluate(finetuned, [str(motion_folder)], tmp_path, replace(settings, split=split), said.append)
        assert (found.before.labelled, found.part) == (trained_on, part)
        told = f"trained on {trained_on} of the {found.asked} evaluated videos"
        assert [told in text for text in (found.results[0]["note"], " ".join(said))] == [trained_on > 0] * 2
        assert any(part in message for message in said)
        data = report.load(tmp_path)["data"]
        assert (data["trained_on"], data["part"]) == (trained_on, part)
        page = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert part in page and (f"was trained on {trained_on} of" in page) == (trained_on > 0)
        assert "<td class=n>1 × 1</td>" in page and found.results[0]["clips"] == found.results[0]["crops"] == 1

    link = tmp_path / "elsewhere"
    link.symlink_to(motion_folder / "train")
    assert run.evaluate(finetuned, [str(link)], tmp_path / "r", settings).before.labelled == 8, "compared by real path"


@pytest.fixture(scope="module")
def pretrained_then_taught(motion_folder, tmp_path_factory):
    """Runs of one step: pretraining on every video by split names of its own, and fine-tuning with only the head trained."""
    place = tmp_path_factory.mktemp("lineage")
    short = OptimConfig(steps=1, epochs=None, base_lr=0.01)
    masked = TrainConfig(
        out=str(place / "pretrained"), clip=SPEC, loader=LoaderConfig(batch_size=4), model=ModelConfig("videomae_tiny", SIZES),
        data=DataConfig(train=(str(motion_folder),), train_split="unlabelled", limit=2), optim=short, run=RunConfig(report=False),
    )  # fmt: skip
    everything = replace(masked, out=str(place / "all"), data=DataConfig(train=(str(motion_folder),)))
    taught = replace(
        everything, out=str(place / "taught"), objective="classify", init=everything.out,
        optim=replace(short, freeze=True), run=RunConfig(validations=0),
    )  # fmt: skip
    return train(masked), train(everything), train(taught)


def test_a_pretrained_run_is_judged_on_the_labelled_part_of_its_data(pretrained_then_taught):
    pretrained, _, _ = pretrained_then_taught
    found = run.evaluate(pretrained, sides.data_of(pretrained))
    assert found.part == "split val: 4 of 12 labelled videos" and (found.before.labelled, found.before.unlabelled) == (0, 0)
    assert all("8 labelled training videos" in row["note"] for row in found.results if row["name"] in run.METHODS)


def test_what_pretraining_saw_is_told_from_what_was_learned_with_labels(pretrained_then_taught):
    _, everything, taught = pretrained_then_taught
    own = report.load(taught)["results"][0]
    assert own["note"] == "pretraining saw 4 of the 4, without labels", "the report at the end of training says it too"
    found = run.evaluate(taught, sides.data_of(taught), settings=run.Settings(clips=1, crops=1))
    assert (found.before.labelled, found.before.unlabelled) == (0, 4)
    notes = {(row["name"], row["weights"]): row["note"] for row in found.results}
    for row, told in notes.items():
        assert ("pretraining saw 4 of the 4, without labels" in told) == (row[1] == "pretrained"), row
    assert notes["fine-tuned", "random initialisation"] == "frozen random features, only the head was trained"
    assert run.evaluate(everything, sides.data_of(everything)).before.unlabelled == 4


def test_a_baseline_that_is_there_needs_no_training_data(finetuned, motion_folder, tmp_path):
    """Neither a new data set, nor one that is gone, nor a twin begun with layer decay stands in the way."""
    copied, gone = tmp_path / "run", tmp_path / "gone"
    shutil.copytree(finetuned, copied, ignore=shutil.ignore_patterns("random_init"))
    text = (copied / "config.yaml").read_text(encoding="utf-8").replace(str(motion_folder), str(gone))
    (copied / "config.yaml").write_text(text, encoding="utf-8")
    said: list[str] = []
    settings = run.Settings(split="val", clips=1, crops=1, methods=())
    found = run.evaluate(copied, [str(motion_folder)], tmp_path / "out", settings, said.append)
    number, note = number_of_the_baseline(found)
    assert number is None and note.startswith("not trained: ") and "does not exist" in note
    assert found.before.labelled is None and any("cannot tell which" in message for message in said)

    begun = text.replace("init: ", "init: null #")
    shutil.copytree(copied / "model", copied / "random_init" / "model")
    (copied / "random_init" / "config.yaml").write_text(begun, encoding="utf-8")
    number, note = number_of_the_baseline(run.evaluate(copied, [str(motion_folder)], tmp_path / "out", settings))
    assert number is not None and "held back by layer decay 0.7" in note


def test_a_run_is_found_from_its_model_and_its_checkpoint_and_from_nothing_else(finetuned, tmp_path):
    checkpoint = next((finetuned / "checkpoints").glob("step_*"))
    for path in (finetuned, finetuned / "model", checkpoint):
        assert sides.run_of(path) == finetuned
    (tmp_path / "config.yaml").write_text("name: another program's\n")
    for path in ("downloaded", "a/downloaded", "weights/step_00000001", "a/model/deeper"):
        assert sides.run_of(tmp_path / path) is None
    with pytest.raises(DataError, match="is no run that could tell"):
        sides.data_of(tmp_path / "downloaded")


def test_what_would_fail_at_the_end_fails_at_the_beginning(finetuned, motion_folder, tmp_path):
    said: list[str] = []
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        run.evaluate(finetuned, [str(motion_folder)], tmp_path / "file" / "report", say=said.append)
    shutil.copytree(motion_folder / "val", tmp_path / "data")
    (tmp_path / "data" / "translate_left").rename(tmp_path / "data" / "jump")
    with pytest.raises(DataError, match="labels the model never learned: 'jump'"):
        run.evaluate(finetuned, [str(tmp_path / "data")], tmp_path / "out", say=said.append)
    assert not any(message.startswith("evaluating") for message in said)
    assert not (tmp_path / "out").exists()


def test_a_class_only_training_has_is_left_out_and_said(finetuned, motion_folder, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(motion_folder, data, ignore=shutil.ignore_patterns("unlabelled"))
    (data / "train" / "jump").mkdir()
    shutil.copy(sorted(motion_folder.glob("unlabelled/*.mp4"))[0], data / "train" / "jump")
    broken = sorted(data.glob("train/translate_left/*.mp4"))[0]
    broken.write_bytes(b"")
    said: list[str] = []
    settings = run.Settings(clips=1, crops=1, baseline=False)
    found = run.evaluate(finetuned, [str(data)], tmp_path / "out", settings, said.append)
    assert any("1 of 9 training videos are of classes the model never learned (jump)" in message for message in said)
    notes = [row["note"] for row in found.results if row["name"] in run.METHODS]
    assert len(notes) == 4 and all("7 of 8 labelled training videos" in note for note in notes)
    assert [id.rpartition("/")[2] for id, _ in found.missing_in_training] == [broken.name] and found.missing == []


def test_what_cannot_be_repeated_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no config\.yaml"):
        baselines.random_initialisation(tmp_path)
    with pytest.raises(CheckpointError):
        run.evaluate(tmp_path / "nothing", ["x"])


def test_untrained_weights_are_the_same_every_time_and_leave_the_generator_alone():
    model = models.build("videomae_tiny", SPEC, ("a", "b"), **SIZES)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = baselines.untrained(model), baselines.untrained(model)
    assert torch.rand(1) == expected
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert first.class_names == () and not first.training
