"""The whole evaluation of a real (very small) fine-tuned run: its baselines, its report, and what happens the second time."""

import json

import pytest
import torch

from tubelet import models
from tubelet.errors import CheckpointError, ConfigError, DataError
from tubelet.evaluate import baselines, report, run
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
    """The folder of a run of three steps that started from a (randomly) pretrained model."""
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
        optim=OptimConfig(steps=3, epochs=None, base_lr=0.01),
        run=RunConfig(log_every=1, validations=2),
    )
    return train(config)


def test_training_leaves_a_report_with_curves_and_a_first_result(finetuned):
    sections = report.load(finetuned)
    rows = {(row["name"], row["weights"]) for row in sections["results"]}
    assert rows == {("fine-tuned", "pretrained"), ("majority class", "majority class"), ("chance", "chance")}
    assert "Learning curves" in (finetuned / "report.html").read_text(encoding="utf-8")


def test_the_whole_table_and_its_random_baseline(finetuned, motion_folder):
    said: list[str] = []
    settings = run.Settings(clips=2, crops=1)
    found = run.evaluate(finetuned, run.data_of(finetuned), settings=settings, say=said.append)
    rows = {(row["name"], row["weights"]): row for row in found.results}
    methods = [(name, weights) for weights in ("pretrained", "random initialisation") for name in report.METHODS]
    assert list(rows) == [*methods, ("majority class", "majority class"), ("chance", "chance")]
    assert found.asked == 4 and found.missing == [] and found.report == finetuned / "report.html"
    assert any("random_init" in message for message in said)

    twin = load_model(finetuned / "random_init")
    config = TrainConfig.from_yaml(finetuned / "random_init" / "config.yaml")
    mine = TrainConfig.from_yaml(finetuned / "config.yaml")
    assert config.init is None and mine.init is not None
    assert (config.optim, config.data, config.clip, config.model, config.run.seed) == (
        mine.optim, mine.data, mine.clip, mine.model, mine.run.seed
    )  # fmt: skip
    asked = run.sides(run.data_of(finetuned), "", mine, True, said.append)[1].examples
    assert {example.split for example in asked} == {"val"}
    expected = classification_row(look(twin, asked, 2, 1), twin.class_names, "random initialisation")
    assert rows["fine-tuned", "random initialisation"]["top1"] == expected["top1"]
    expected = classification_row(look(load_model(finetuned), asked, 2, 1), twin.class_names, "pretrained")
    assert rows["fine-tuned", "pretrained"]["top1"] == expected["top1"]
    majority = rows["majority class", "majority class"]
    assert majority["top1"] == 0.5 and "of the training videos" in majority["note"]

    before = (finetuned / "random_init" / "model" / "model.safetensors").stat().st_mtime_ns
    again = run.evaluate(finetuned, run.data_of(finetuned), settings=settings)
    assert again.results == found.results
    assert (finetuned / "random_init" / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_the_page_shows_the_pretrained_models_pictures_beside_the_classifiers(finetuned):
    text = (finetuned / "report.html").read_text(encoding="utf-8")
    for heading in ("Results", "Reconstructions", "Masks", "Confusion matrix", "Embedding map", "Missing videos"):
        assert f"<h2>{heading}</h2>" in text
    sections = json.loads((finetuned / "report.json").read_text(encoding="utf-8"))
    assert len(sections["reconstructions"]) == 3 and sections["data"]["evaluated"] == 4


def test_without_the_baseline_the_table_says_so_unless_there_is_one_already(finetuned, tmp_path):
    settings = run.Settings(clips=1, crops=1, methods=(), baseline=False)
    kept = run.evaluate(finetuned, run.data_of(finetuned), settings=settings).results
    assert next(row for row in kept if row["weights"] == "random initialisation")["top1"] is not None
    fresh = run.evaluate(finetuned, run.data_of(finetuned), tmp_path, settings).results
    row = next(row for row in fresh if row["weights"] == "random initialisation")
    assert row["top1"] is None and row["note"] == "not trained (--no-baseline)"


def test_a_run_is_found_from_its_model_and_its_checkpoint(finetuned, tmp_path):
    checkpoint = next((finetuned / "checkpoints").glob("*.safetensors"))
    for path in (finetuned, finetuned / "model", checkpoint):
        assert run.run_of(path) == finetuned
    assert run.run_of(tmp_path) is None
    with pytest.raises(DataError, match="is no run that could tell"):
        run.data_of(tmp_path)


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
