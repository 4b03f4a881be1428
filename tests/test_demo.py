"""The demo end to end, made tiny, and that its recipes say what the page about them says."""

from dataclasses import replace
from pathlib import Path

import pytest

from tubelet import demo, models
from tubelet.errors import CheckpointError
from tubelet.evaluate.run import Settings, evaluate
from tubelet.evaluate.sides import data_of
from tubelet.recipes.demo import Demo, full, quick
from tubelet.train.config import TrainConfig
from tubelet.video.synthetic import MOTIONS


def tiny(folder: Path) -> Demo:
    """The quick demo's every setting, but two motions, a few videos and a few steps."""
    made = quick(folder)

    def shorter(run: TrainConfig) -> TrainConfig:
        return replace(
            run,
            loader=replace(run.loader, batch_size=4),
            optim=replace(run.optim, steps=4),
            run=replace(run.run, log_every=2, validations=1),
        )

    return replace(
        made, motions=("expand", "shrink"), train=3, val=2, unlabelled=6, pretrain=shorter(made.pretrain),
        finetune=shorter(made.finetune), single_frame=shorter(made.single_frame),
    )  # fmt: skip


def test_the_demo_puts_everything_in_one_table_and_is_done_once(tmp_path: Path) -> None:
    said: list[str] = []
    found = demo.run(tiny(tmp_path), said.append)
    rows = {(row["name"], row["weights"]) for row in found.results}
    assert rows == {
        ("fine-tuned", "pretrained"), ("linear probe", "pretrained"), ("k-NN", "pretrained"),
        ("fine-tuned", "random initialisation"), ("linear probe", "random initialisation"),
        ("k-NN", "random initialisation"), ("fine-tuned", "single frame"), ("majority class", "majority class"),
        ("chance", "chance"),
    }  # fmt: skip
    assert all(row["videos"] == 4 for row in found.results if row["name"] != "chance")
    assert found.asked == 4 and found.missing == [] and found.classes == ("expand", "shrink")
    page = found.report.read_text(encoding="utf-8")
    assert "single frame" in page and "random initialisation" in page
    assert len([line for line in said if line[0].isdigit()]) == 5

    before = (tmp_path / "taught" / "model" / "model.safetensors").stat().st_mtime_ns
    again = demo.run(tiny(tmp_path), said.append)
    assert (tmp_path / "taught" / "model" / "model.safetensors").stat().st_mtime_ns == before
    assert [row["top1"] for row in again.results] == [row["top1"] for row in found.results]

    alone = evaluate(tmp_path / "taught", data_of(tmp_path / "taught"), settings=Settings(clips=1, crops=1))
    assert {(row["name"], row["weights"]) for row in alone.results} == rows, "the single-frame row is about the same videos"
    assert (alone.before.labelled, alone.before.unlabelled) == (0, 0), "the demo never shows what it is judged on"
    pretrained = evaluate(tmp_path / "pretrained", data_of(tmp_path / "pretrained"))
    assert pretrained.part == "split val: 4 of 10 labelled videos"


@pytest.mark.parametrize("recipe", [quick, full])
def test_recipes_fit_together(recipe, tmp_path: Path) -> None:
    made = recipe(tmp_path)
    assert set(made.motions) <= set(MOTIONS) and made.finetune.init == made.pretrain.out
    assert made.pretrain.clip == made.finetune.clip == made.single_frame.clip
    assert made.frames == made.pretrain.clip.window_frames  # the clip is the whole video: no moment is shown more often
    for run in (made.pretrain, made.finetune, made.single_frame):
        classes = () if run.objective == "masked" else made.motions
        models.build(run.model.name, run.clip, classes, **run.model.options)
    assert full(tmp_path).motions == tuple(MOTIONS)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CheckpointError, match="cannot write .*file/videos: Not a directory; make room or choose another --out"):
        demo.run(tiny(tmp_path / "file"), print)
