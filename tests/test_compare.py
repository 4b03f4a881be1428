"""Comparing models: what is meant by the words of the command, the budget they share, and a comparison end to end."""

import html
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread

from tubelet import compare, datasets, models
from tubelet.cli import main
from tubelet.cli.compare import print_comparison
from tubelet.errors import ConfigError
from tubelet.evaluate import report
from tubelet.evaluate.metrics import wilson_interval
from tubelet.evaluate.multiview import look
from tubelet.recipes import comparison
from tubelet.recipes.compare import LADDER, ladder, rungs
from tubelet.show import ladder as picture
from tubelet.train.config import ModelConfig, TrainConfig
from tubelet.weights.load import load_model
from tubelet.weights.save import save

SMALL = {"clip.size": 16, "clip.frames": 4, "loader.batch_size": 4, "loader.workers": 0, "run.validations": 1, "run.report": False,
         "run.device": "cpu", "run.threads": 1}  # fmt: skip
SINGLE = "single_frame:width=8:stages=2"
VIDEOMAE = "videomae_tiny:width=24:depth=1:heads=2"


def runs_of(data: Path, out: Path, chosen: str, clips: int | None = 8, **more: Any) -> list[tuple[str, TrainConfig]]:
    return comparison([str(data)], str(out), chosen, (), clips, {**SMALL, **more})[0]


def test_the_words_of_the_command() -> None:
    found = rungs("single_frame, wide=videomae_tiny:width=192:first_values=random")
    assert [rung.name for rung in found] == ["single_frame", "wide"] and found[0].model.options == LADDER["single_frame"]
    assert found[1].model == ModelConfig("videomae_tiny", {**LADDER["videomae_tiny"], "width": 192, "first_values": "random"})
    lists = rungs("a=videomae_tiny:tubelet=[1,2]:depth=3,b=single_frame")
    assert lists[0].model.options["tubelet"] == [1, 2] and lists[1].name == "b"
    mapping = rungs("nonlocal_i3d_r50:net_options={width: 16, time_padding: zero}:norm=false,single_frame")[0].model.options
    assert mapping == {"net_options": {"width": 16, "time_padding": "zero"}, "norm": False}


@pytest.mark.parametrize(
    ("chosen", "inits", "message"),
    [
        ("single_frme", (), "unknown model 'single_frme': did you mean 'single_frame'"),
        ("single_frame:widht=8", (), "unknown option of single_frame 'widht': did you mean 'width'"),
        ("single_frame:width", (), "after a colon option=value was expected, got 'width'"),
        ("single_frame:width=[8", (), "has 'width=[8', whose value is no YAML: write [1, 2] or {width: 16} whole"),
        ("single_frame,single_frame:width=8", (), "names 'single_frame' twice: give one of them a name of its own"),
        ("../x=single_frame", (), "a name is that of a folder"),
        ("single_frame", ("runs/x",), "expected NAME=FOLDER with NAME one of single_frame"),
        ("single_frame", ("single=runs/x",), "unknown model of --init 'single': did you mean 'single_frame'"),
    ],
)
def test_what_is_wrong_with_them_is_said(chosen: str, inits: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        rungs(chosen, inits)
    assert message in str(error.value)


@pytest.mark.parametrize("name", LADDER)
def test_every_rung_takes_the_clips_of_the_recipe_and_is_small(name: str, motion_folder: Path) -> None:
    """Small enough for two cores, and in the order of the table: what all must beat comes first."""
    assert next(iter(LADDER)) == "single_frame"
    runs = ladder([str(motion_folder)], "runs/x", datasets.read(motion_folder), rungs(name))
    ((called, config),) = runs
    assert called == name and config.clip.size == 64 and not config.augment.flip
    with torch.device("meta"):
        cost = models.cost(models.build(config.model.name, config.clip, ("a", "b"), **config.model.options))
    assert cost["gmacs"] < 5 and cost["params"] < 10e6


def test_all_runs_differ_by_their_model_alone(motion_folder: Path, tmp_path: Path) -> None:
    runs = dict(runs_of(motion_folder, tmp_path, f"{SINGLE},{VIDEOMAE}", clips=30))
    one, other = runs["single_frame"], runs["videomae_tiny"]
    assert replace(other, model=one.model, out=one.out) == one
    assert one.optim.steps == 8 and one.clips_per_step == 4, "30 clips in batches of 4"
    labelled = datasets.labelled(datasets.read(motion_folder))
    assert ladder([str(motion_folder)], "x", labelled, rungs())[0][1].optim.steps == 38, "12 videos 100 times, 32 in a batch"


@pytest.mark.parametrize(
    ("setting", "instead"),
    [("optim.steps", "--clips or --minutes"), ("model.options.width", "--models NAME:option=value"), ("init", "--init")],
)
def test_what_is_not_one_setting_for_all_is_refused(setting: str, instead: str, motion_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{setting} is not one setting for all models: use {instead}"):
        runs_of(motion_folder, tmp_path, SINGLE, **{setting: "3"})


def test_a_pretrained_model_decides_its_sizes(motion_folder: Path, tmp_path: Path) -> None:
    (_, config) = runs_of(motion_folder, tmp_path, VIDEOMAE)[0]
    save(
        models.build("videomae_tiny", config.clip, **{**config.model.options, "width": 48, "decoder_depth": 1}), tmp_path / "m"
    )
    runs, _ = comparison(
        [str(motion_folder)], str(tmp_path / "out"), f"{SINGLE},taught=videomae_tiny", [f"taught={tmp_path / 'm'}"], 4, SMALL
    )
    taught = dict(runs)["taught"]
    assert taught.model.options["width"] == 48 and taught.init == str(tmp_path / "m") and taught.optim.layer_decay < 1
    found = compare.compare(runs, tmp_path / "out")
    assert [row["weights"] for row in found.rows[:2]] == ["random initialisation", "pretrained"]


def test_a_comparison_from_beginning_to_end(motion_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rung that cannot take the clip is named; every number is what its source says; nothing is done twice."""
    said: list[str] = []
    runs = runs_of(motion_folder, tmp_path, f"{SINGLE},{VIDEOMAE},odd=videomae_tiny:patch=10")
    found = compare.compare(runs, tmp_path, say=said.append)
    rows = {row["name"]: row for row in found.rows}
    assert list(rows) == ["single_frame", "videomae_tiny", "odd", "majority class", "chance"]
    assert list(found.failed) == ["odd"] and "10" in found.failed["odd"] and rows["odd"]["top1"] is None
    assert [line for line in said if line.startswith("odd is left out: ")]
    assert found.asked == 4 and not found.missing and found.part == "split val"
    assert rows["chance"]["top1"] == rows["majority class"]["top1"] == 0.5
    held_out = [example for example in datasets.read(motion_folder).examples if example.split == "val"]
    for name in ("single_frame", "videomae_tiny"):
        row, model = rows[name], load_model(tmp_path / name)
        looks = look(model, held_out, workers=0)
        assert looks.probabilities is not None
        right = [
            example.label == model.class_names[int(p.argmax())]
            for example, p in zip(held_out, looks.probabilities, strict=True)
        ]
        assert row["top1"] == sum(right) / 4 and row["videos"] == 4
        assert (row["top1_low"], row["top1_high"]) == wilson_interval(sum(right) / 4, 4)
        assert row["params"] == sum(p.numel() for p in model.parameters()) and row["gmacs"] == models.cost(model)["gmacs"]
        assert row["training_clips"] == 8 and row["clips_per_second"] > 0 and row["training_clips_per_second"] > 0
        assert row["weights"] == "random initialisation"

    page = found.report.read_text(encoding="utf-8")
    for words in ("The ladder", "single_frame", "videomae_tiny", html.escape(found.failed["odd"]), "8 clips of training"):
        assert words in page
    assert 'src="http' not in page and report.load(tmp_path)["ladder"]["budget"] == {"clips": 8}
    assert (tmp_path / "pictures" / "ladder.dark.png").exists()

    weights = tmp_path / "videomae_tiny" / "model" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    monkeypatch.setattr(compare, "look", None)  # nothing is judged again
    again = compare.compare(runs_of(motion_folder, tmp_path, VIDEOMAE), tmp_path)
    assert weights.stat().st_mtime_ns == before and again.rows[0]["top1"] == rows["videomae_tiny"]["top1"]
    with pytest.raises(ConfigError, match="holds a comparison under another budget .8 clips each, now 12 clips each."):
        compare.compare(runs_of(motion_folder, tmp_path, VIDEOMAE, clips=12), tmp_path)


def test_when_nothing_can_be_compared_the_reason_is_given(motion_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not one of 1 models could be compared; odd: .*10"):
        compare.compare(runs_of(motion_folder, tmp_path, "odd=videomae_tiny:patch=10"), tmp_path)


def test_a_run_that_fails_does_not_end_the_others(motion_folder: Path, tmp_path: Path) -> None:
    runs = runs_of(motion_folder, tmp_path, f"broken={SINGLE},{SINGLE}")
    broken = replace(runs[0][1], optim=replace(runs[0][1].optim, lr=1e38, clip_gradient=0.0, warmup="0 steps"))
    found = compare.compare([("broken", broken), runs[1]], tmp_path)
    assert "not finite" in found.failed["broken"] and found.rows[0]["top1"] is None and found.rows[1]["top1"] is not None


def test_an_error_that_is_none_of_ours_does_not_end_the_others_either(motion_folder: Path, tmp_path: Path) -> None:
    """torch refuses a batch norm over one place of one clip."""
    chosen = f"alone=early_fusion_resnet18:width=8:stages=4,{SINGLE}"
    found = compare.compare(
        runs_of(motion_folder, tmp_path, chosen, clips=2, **{"loader.batch_size": 1, "loader.repeats": 1}), tmp_path
    )
    assert found.failed.keys() == {"alone"}
    assert found.failed["alone"].startswith("ValueError: Expected more than 1 value per channel")
    assert found.rows[0]["note"] == found.failed["alone"] and found.rows[1]["top1"] is not None


def test_sizes_that_no_memory_holds_cost_their_model_alone(motion_folder: Path, tmp_path: Path) -> None:
    """torch refuses them as it builds, before there is anything to train."""
    runs = runs_of(motion_folder, tmp_path, f"{SINGLE},huge=videomae_tiny:width={2**40}:depth=1:heads=2", clips=4)
    found = compare.compare(runs, tmp_path)
    assert found.failed.keys() == {"huge"} and "RuntimeError: " in found.failed["huge"] and found.rows[0]["top1"] is not None
    assert found.rows[1]["note"] == found.failed["huge"]


def test_a_model_that_cannot_be_timed_keeps_its_result(
    motion_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was trained and judged before, and has lost its weights since: it is named, and the other is timed."""
    runs = runs_of(motion_folder, tmp_path, f"{SINGLE},{VIDEOMAE}", clips=4)
    first = {row["name"]: row for row in compare.compare(runs, tmp_path).rows}
    (tmp_path / "single_frame" / "model" / "model.safetensors").unlink()
    found = compare.compare(runs, tmp_path)
    rows = {row["name"]: row for row in found.rows}
    assert found.untimed.keys() == {"single_frame"} and not found.failed
    assert rows["single_frame"]["top1"] == first["single_frame"]["top1"] and "clips_per_second" not in rows["single_frame"]
    assert rows["videomae_tiny"]["clips_per_second"] > 0
    page = html.unescape((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert f"not timed: {found.untimed['single_frame']}" in page
    print_comparison(found)
    assert f"single_frame could not be timed: {found.untimed['single_frame']}" in capsys.readouterr().out


def test_flow_weights_go_to_the_models_that_have_a_raft(
    motion_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "SPEED_ROUNDS", 1)
    network = models.build("raft_small", models.clip_of("raft_small")).eval()
    torch.save(network.state_dict(), tmp_path / "raft.pth")
    temporal = "temporal=two_stream_resnet18:width=8:streams=temporal:estimator=raft_small"
    words = [
        "compare",
        str(motion_folder),
        "--init-flow",
        str(tmp_path / "raft.pth"),
        "--clips",
        "4",
        "--out",
        str(tmp_path / "out"),
    ]
    words += [f"--{name.replace('_', '-')}={value}" for name, value in {**SMALL, "clip.size": 64, "clip.frames": 2}.items()]
    single = "single_frame:width=16:stages=2"
    assert main([*words, "--models", single]) == 2
    said = capsys.readouterr().err
    assert "none of single_frame has a RAFT: leave it out, or name a model with one" in said
    assert not list((tmp_path / "out").iterdir())
    assert main([*words, "--models", f"{single},{temporal}", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert not answer["failed"] and all(row["top1"] is not None for row in answer["rows"])
    taught = load_model(tmp_path / "out" / "temporal").state_dict()
    assert all(torch.equal(taught[f"raft.{key}"], value) for key, value in network.state_dict().items())


def test_several_processes_are_refused(motion_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare.parallel, "world", lambda: 2)
    with pytest.raises(ConfigError, match="in one process: start `tubelet compare` without torchrun"):
        compare.compare(runs_of(motion_folder, tmp_path, SINGLE), tmp_path)


def test_minutes_become_steps_once(motion_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "TRIAL_STEPS", 3)
    (_, config) = runs_of(motion_folder, tmp_path, SINGLE)[0]
    seconds = compare.seconds_a_step(config, 60.0)
    assert 0 < seconds < 30 and not (tmp_path / "single_frame").exists(), "a trial leaves nothing behind"
    monkeypatch.setattr(compare, "seconds_a_step", lambda config, longest: 0.5)
    found = compare.compare([("single_frame", config)], tmp_path, minutes=0.025)
    assert found.rows[0]["training_clips"] == 3 * 4
    monkeypatch.setattr(compare, "seconds_a_step", lambda config, longest: 0.1)
    again = compare.compare([("single_frame", config)], tmp_path, minutes=0.025)
    assert again.rows[0]["training_clips"] == 3 * 4, "a run that has begun keeps its steps"


def test_the_command(motion_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items() if name != "run.device"]
    words = ["compare", str(motion_folder), "--models", f"{SINGLE},odd=videomae_tiny:patch=10", "--clips", "4", *flags]
    assert main([*words, "--out", str(tmp_path / "a"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in answer["rows"]] == ["single_frame", "odd", "majority class", "chance"]
    assert list(answer["failed"]) == ["odd"] and Path(answer["report"]).is_file()
    assert main([*words, "--out", str(tmp_path / "a")]) == 0
    printed = capsys.readouterr().out
    assert "M params" in printed and "odd has no result: " in printed and "4 of 4 videos" in printed
    assert main([*words, "--minutes", "1"]) == 2
    assert "--clips and --minutes are two budgets" in capsys.readouterr().err


def row(name: str, top1: float, params: float, **more: float) -> dict[str, Any]:
    numbers = {"top1_low": top1 - 0.05, "top1_high": top1 + 0.05, "params": params, "gmacs": params / 1e6}
    return {"name": name, "weights": "random initialisation", "top1": top1, **numbers, **more}


@pytest.mark.parametrize("models", [picture.NAMED, 12, 17])
def test_no_name_of_the_picture_covers_another(monkeypatch: pytest.MonkeyPatch, models: int) -> None:
    """Models close together, most of them as good: all names are there, apart, and inside their panel; of many their numbers are,
    and the names below."""
    figures = []
    monkeypatch.setattr(picture, "to_png", lambda figure: figures.append(figure) or b"")
    rows = [
        row(f"model_{i}", min(1.0, 0.6 + 0.2 * i), 1e6 * 1.3 ** (5 * i % models), clips_per_second=100.0 + 9 * i)
        for i in range(models)
    ]
    picture.ladder([*rows, {"name": "chance", "weights": "chance", "top1": 0.1}])
    names, numbers = [one["name"] for one in rows], [str(number) for number in range(1, models + 1)]
    renderer = figures[0].canvas.get_renderer()
    for axes in figures[0].axes:
        boxes = {text.get_text(): picture.Text.get_window_extent(text, renderer) for text in axes.texts}
        assert set(boxes) == set(numbers if models > picture.NAMED else names)
        assert not [(a, b) for a in boxes for b in boxes if a < b and boxes[a].overlaps(boxes[b])]
        inside = axes.get_window_extent(renderer)
        assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 for box in boxes.values())
    below = [text.get_text() for legend in figures[0].legends for text in legend.get_texts()]
    assert below == (
        [f"{number}  {name}" for number, name in zip(numbers, names, strict=True)] if models > picture.NAMED else []
    )


def test_the_picture_of_what_is_not_measured_yet() -> None:
    rows = [row("a", 0.4, 1e6), {"name": "b", "weights": "failed", "top1": None, "params": 3}]
    light, dark = picture.ladder(rows), picture.ladder(rows, dark=True)
    assert imread(io.BytesIO(light)).shape == imread(io.BytesIO(dark)).shape and light != dark
