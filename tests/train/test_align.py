"""`tubelet align`: a tokenizer from the captions, two towers, a run like any other; several processes learn what one does."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tubelet.cli import main
from tubelet.models._text import make_tokenizer
from tubelet.recipes import aligning
from tubelet.train import data
from tubelet.train.config import TrainConfig
from tubelet.train.loop import new_model, train
from tubelet.video.captioned import write_captioned_set
from tubelet.weights.load import load_model

from .conftest import SMALL as PRETRAINING
from .conftest import dotted
from .test_parallel import assert_close, launch

SMALL: dict[str, Any] = {
    key: value for key, value in PRETRAINING.items() if not key.startswith("model.") and key != "loader.repeats"
} | {
    "clip.stride_frames": 1, "optim.steps": 4, "optim.lr": 1e-3, "optim.warmup": "0", "run.log_every": 1, "run.validations": 1,
    **{f"model.options.video_options.{name}": value for name, value in PRETRAINING["model.options"].items()},
    "model.options.text": {"width": 16, "depth": 1, "heads": 2, "context": 24}, "model.options.width": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 videos to learn from and 4 held out, each with a sentence."""
    return write_captioned_set(tmp_path_factory.mktemp("captions"), train=12, val=4, frames=8, size=32)


@pytest.fixture
def config(captions: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    def make(name: str = "run", source: str | None = None, **settings: Any) -> TrainConfig:
        return aligning(source, [str(captions)], str(tmp_path / name), {**SMALL, **dotted(settings)})

    return make


def test_a_run_has_a_tokenizer_of_its_captions_and_says_its_temperature(
    config: Callable[..., TrainConfig], captions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = config()
    assert (made.objective, made.model.name, made.augment.flip) == ("contrastive", "video_text_tiny", False)
    assert made.model.options["video_options"]["decoder"] is False  # nothing would teach it
    merges = made.model.options["text"]["tokenizer"]
    train_set, val_set = data.load(made.data, needs_labels=False, needs_text=True)
    assert [len(side.examples) for side in (train_set, val_set) if side] == [12, 4]
    words = make_tokenizer(merges).encode(train_set.examples[0].text or "").tokens
    assert words[:3] == ["Ġa", "Ġ" + (train_set.examples[0].text or "").split()[1], words[2]] and words[-1] == "<end>"
    run = train(made)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert lines[0]["temperature"] == pytest.approx(0.07) and lines[-1]["temperature"] != lines[0]["temperature"]
    assert lines[-1]["val_videos"] == 4 and 0 <= lines[-1]["val_recall_at_1"] <= 1
    assert dataclasses.replace(config(), out="") == dataclasses.replace(made, out="")  # again: the tokenizer it began with
    train(config())
    assert "nothing to do" in capsys.readouterr().err

    settings = {key: value for key, value in SMALL.items() if not key.startswith("model.")}
    further = aligning(str(run), made.data.train, str(run.parent / "further"), settings)
    assert further.model.options["text"] == load_model(run).options["text"]
    assert main(["evaluate", str(run), "--clips", "1", "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["query"] for row in found["retrieval"]] == ["text to video", "text to video", "video to text", "video to text"]
    assert found["retrieval"][1]["recall_at_1"] == 0.25 and found["trained_on"] == 0 and found["results"] == []
    assert "Sentences and videos" in (run / "report.html").read_text()


def test_a_video_model_is_the_video_tower(
    config: Callable[..., TrainConfig], pretrain_config: Callable[..., TrainConfig]
) -> None:
    source = train(pretrain_config("video", optim__steps=1, run__validations=0))
    settings = {key: value for key, value in SMALL.items() if "video_options" not in key and not key.startswith("clip.")}
    made = aligning(str(source), config().data.train, str(source.parent / "aligned"), settings)
    assert made.model.options["video"] == "videomae_tiny" and made.model.options["video_options"]["decoder"] is False
    tower, before = new_model(made, data.load(made.data, False, True)[0], with_classes=False).video, load_model(source)
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in tower.state_dict().items())


def test_two_processes_learn_what_one_does(captions: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(captions, tmp_path / "broken")
    for number in (1, 2, 5, 7):
        path = broken / "train" / f"{number:05d}.mp4"
        path.write_bytes(path.read_bytes()[:100])

    def make(name: str, parallel: str, **settings: Any) -> TrainConfig:
        wanted = {"run.parallel": parallel, "optim.accumulate": 2, "contrastive.matching": 0.5}
        return aligning(None, [str(broken)], str(tmp_path / name), {**SMALL, **wanted, **settings})

    # The batch does not divide by two; and batches of two, of which some processes can read none.
    runs = [("five", "fsdp", {"loader.batch_size": 5}), ("two", "ddp", {"loader.batch_size": 2, "optim.ema": 0.9})]
    done = launch(tmp_path / "jobs", [{"config": make(f"{name}-{kind}", kind, **size)} for name, kind, size in runs])
    assert done.returncode == 0, done.stderr
    for name, kind, size in runs:
        assert_close(tmp_path / f"{name}-{kind}", train(make(f"{name}-alone", "auto", **size)))


def test_what_cannot_be_aligned_is_said(
    config: Callable[..., TrainConfig], captions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = (captions / "labels.csv").read_text().splitlines()
    path, _, rest = rows[3].partition(",")
    (captions / "bare.csv").write_text("\n".join([*rows[:3], f"{path},  ,{rest.partition(',')[2]}", *rows[4:]]))
    out = ["--out", str(tmp_path / "run")]
    for words, said in [
        (
            ["none", str(captions / "bare.csv")],
            f"1 of {len(rows) - 1} videos have no caption, the first is {path}: give a table",
        ),
        (["none", str(captions), "--text", str(tmp_path)], "has no model.safetensors"),
        ([str(tmp_path / "nothing"), str(captions)], "no model at"),
        (["none", str(captions), "--freeze", "vide"], "unknown freeze 'vide': did you mean 'video'"),
        ([], "no model named: tubelet align MODEL DATA"),
    ]:
        assert main(["align", *words, *out, "--run.device", "cpu"]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "run" / "config.yaml").exists()
