"""`tubelet pretrain` and `tubelet finetune`: words become one whole configuration, mistakes become one line."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import yaml

from tubelet import cli
from tubelet.cli import _settings
from tubelet.errors import ConfigError
from tubelet.train.config import TrainConfig, from_dict

FLAGS = ("out", "epochs")
TINY = ["--clip.size", "32", "--clip.frames=4", "--optim.steps", "2", "--loader.workers", "0", "--run.device", "cpu",
        "--model.options", "{patch: 8, width: 32, heads: 2, depth: 1}"]  # fmt: skip


def run(*words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command line."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = cli.main([str(word) for word in words])
    return code, out.getvalue(), err.getvalue()


def printed(*words: object) -> TrainConfig:
    """The configuration that a command stands for."""
    code, out, err = run(*words, "--print-config")
    assert code == 0, err
    return from_dict(TrainConfig, yaml.safe_load(out))


def test_words_are_split_into_paths_and_settings() -> None:
    line = "a --optim.base-lr 1e-3 --clip.size=64 --run.compile c --augment.flip false --model.options.depth 3"
    settings = {"optim.base_lr": "1e-3", "clip.size": "64", "run.compile": "true", "augment.flip": "false"}
    assert _settings.split(line.split(), FLAGS) == (["a", "c"], {**settings, "model.options.depth": "3"})
    assert _settings.split(["--run.compile", "max-autotune", "c"], FLAGS) == (["c"], {"run.compile": "max-autotune"})


@pytest.mark.parametrize(("words", "message"), [
    (["--optim.base-rl", "1"], "unknown setting 'optim.base_rl': did you mean 'optim.base_lr'"),
    (["--epoch", "3"], "unknown flag '--epoch': did you mean '--epochs'"),
    (["--lr", "3"], r"unknown flag '--lr': did you mean '--optim.lr'\? \(--help lists flags, --print-config all settings\)"),
    (["--steps", "3"], "unknown flag '--steps': did you mean '--optim.steps'"),
    (["--base-rl", "3"], "unknown flag '--base-rl': did you mean '--optim.base-lr'"),
    (["--no-such-flag", "3"], r"unknown flag '--no-such-flag' \(--help"),
    (["-o", "x"], "unknown flag '-o': flags begin with two dashes"),
    (["--clip.size"], "--clip.size needs a value"),
])  # fmt: skip
def test_words_that_mean_nothing(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _settings.split(words, FLAGS)


def test_no_flag_but_the_folder(motion_folder: Path) -> None:
    config = printed("pretrain", motion_folder)
    assert config.objective == "masked" and config.data.train == (str(motion_folder.resolve()),)
    assert Path(config.out).name == f"{motion_folder.name}-pretrain"
    assert config.clip.window_frames <= 16  # what the median video holds
    assert config.loader.repeats > 1


def test_flags_win_over_the_file_and_the_file_over_the_recipe(motion_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(
        "optim:\n  base_lr: 0.5\n  accumulate: 3\nrun: {seed: 4}\nmodel:\n  options: {patch: 4}\n"
    )
    config = printed(
        "pretrain", motion_folder, "--config", tmp_path / "settings.yaml", "--seed", 9, "--optim.base-lr", "0.25", "--epochs", 7
    )
    assert (config.optim.base_lr, config.optim.accumulate, config.run.seed, config.optim.epochs) == (0.25, 3, 9, 7)
    assert config.model.options == {"patch": 4}


def test_another_model_leaves_the_recipes_sizes_behind(motion_folder: Path) -> None:
    options = printed("pretrain", motion_folder, "--model", "videomae_base", "--run.device", "cpu").model.options
    assert options["patch"] == 8 and not options.keys() & {"width", "depth", "heads", "decoder_width", "decoder_depth"}


def test_a_whole_job_from_the_command_line(motion_folder: Path, tmp_path: Path) -> None:
    code, out, err = run("pretrain", motion_folder, "--out", tmp_path / "p", *TINY)
    assert code == 0 and out == f"{tmp_path / 'p'}\n", err
    code, out, err = run("finetune", tmp_path / "p", motion_folder, "--out", tmp_path / "f", "--freeze", "--optim.steps", 2)
    assert code == 0 and out == f"{tmp_path / 'f'}\n", err
    assert "all but the head is frozen: 66 parameters are trained" in err
    assert TrainConfig.from_yaml(tmp_path / "f" / "config.yaml").clip.size == 32  # the model's own preprocessing
    code, _, err = run("finetune", tmp_path / "p", motion_folder, "--out", tmp_path / "f", "--freeze", "--optim.steps", 2)
    assert code == 0 and "is finished" in err
    code, _, err = run("finetune", tmp_path / "p", motion_folder, "--out", tmp_path / "f", "--freeze", "--optim.steps", 3)
    assert code == 2 and "optim.steps was 2, is 3" in err and err.count("\n") == 1


def test_json_says_what_a_run_left(motion_folder: Path, tmp_path: Path) -> None:
    code, out, err = run("finetune", "none", motion_folder, "--out", tmp_path / "f", *TINY, "--run.report", "false", "--json")
    assert code == 0, err
    said = json.loads(out)
    numbers = said.pop("numbers")
    assert said == {"run": str(tmp_path / "f"), "model": str(tmp_path / "f" / "model"), "report": None, "steps": 2}
    assert numbers.keys() >= {"loss", "accuracy", "val_top1"}
    again = json.loads(
        run("finetune", "none", motion_folder, "--out", tmp_path / "f", *TINY, "--run.report", "false", "--json")[1]
    )
    assert again == {**said, "numbers": numbers}


def test_the_stronger_length_of_a_run_clears_the_other(motion_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "steps.yaml").write_text("optim: {steps: 40}\n")
    (tmp_path / "epochs.yaml").write_text("optim: {epochs: 40}\n")
    for words, length in (
        (["--optim.steps", 3], (None, 3)),
        (["--config", tmp_path / "steps.yaml"], (None, 40)),
        (["--config", tmp_path / "steps.yaml", "--epochs", 3], (3, None)),
        (["--config", tmp_path / "epochs.yaml", "--optim.steps", 3], (None, 3)),
        (["--config", tmp_path / "steps.yaml", "--optim.epochs", 3], (3, None)),
    ):
        optim = printed("pretrain", motion_folder, *words).optim
        assert (optim.epochs, optim.steps) == length, words


def test_other_frames_get_the_stride_that_fits_them(motion_folder: Path, tmp_path: Path) -> None:
    words = ("--out", tmp_path / "run", "--run.device", "cpu")  # the videos have 16 frames
    assert printed("pretrain", motion_folder, *words, "--clip.frames", 4).clip.stride_frames == 4
    assert printed("finetune", "none", motion_folder, *words, "--clip.frames", 8).clip.stride_frames == 2
    assert printed("pretrain", motion_folder, *words, "--clip.frames", 4, "--clip.stride-frames", 3).clip.stride_frames == 3


def test_a_model_of_another_family_takes_only_its_own_options(motion_folder: Path, tmp_path: Path) -> None:
    words = ("--model", "single_frame", "--out", tmp_path / "run", *TINY[:-2])
    assert printed("finetune", "none", motion_folder, *words).model.options == {}
    code, _, err = run("pretrain", motion_folder, *words)
    assert code == 2 and err.endswith("single_frame has no tokens that could be hidden: pretrain a videomae model\n")


def test_layer_decay_is_for_weights_that_know_something(motion_folder: Path, tmp_path: Path) -> None:
    assert run("pretrain", motion_folder, "--out", tmp_path / "p", *TINY, "--run.report", "false")[0] == 0
    assert printed("finetune", tmp_path / "p", motion_folder, "--out", tmp_path / "f").optim.layer_decay < 1
    assert printed("finetune", "none", motion_folder, "--out", tmp_path / "f").optim.layer_decay == 1
    asked = printed("finetune", "none", motion_folder, "--out", tmp_path / "f", "--optim.layer-decay", 0.5)
    assert asked.optim.layer_decay == 0.5


@pytest.mark.parametrize("words", [["none"], ["--from-scratch"]])
def test_from_random_first_values(motion_folder: Path, tmp_path: Path, words: list[str]) -> None:
    config = printed("finetune", *words, motion_folder, "--out", tmp_path / "run", "--run.device", "cpu")
    assert config.init is None and config.objective == "classify" and config.model.options["drop_path"] > 0


@pytest.mark.parametrize(("words", "message"), [
    (["pretrain"], "no data given"),
    (["finetune"], "no model named: tubelet finetune MODEL DATA"),
    (["finetune", "none"], "no data given"),
    (["finetune", "nowhere", "DATA"], "no model at nowhere"),
    (["pretrain", "nowhere"], "nowhere"),
    (["pretrain", "DATA", "--epoch", "3"], "unknown flag '--epoch': did you mean '--epochs'"),
    (["pretrain", "DATA", "--optim.epoch", "3"], "did you mean 'optim.epochs'"),
    (["pretrain", "DATA", "--model", "videomae_bas"], "did you mean 'videomae_base'"),
    (["pretrain", "DATA", "--masked.mask", "tub"], "did you mean 'tube'"),
    (["pretrain", "DATA", "--run.device", "tpu"], "device 'tpu' cannot be used here"),
    (["pretrain", "DATA", "--data.train-split", "tran"], "no split 'tran' in this data"),
    (["pretrain", "DATA", "--model.options.widht", "3"], "did you mean 'width'"),
    (["pretrain", "DATA", "--config", "nowhere.yaml"], "cannot read the settings in nowhere.yaml"),
])  # fmt: skip
def test_mistakes_are_one_line_and_exit_code_2(motion_folder: Path, tmp_path: Path, words: list[str], message: str) -> None:
    code, _, err = run(*[motion_folder if word == "DATA" else word for word in words], "--out", tmp_path / "run")
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    assert message in err
