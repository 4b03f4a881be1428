"""A configuration survives YAML, takes dotted settings, and refuses what it does not know."""

import dataclasses
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tubelet.errors import ConfigError
from tubelet.loading import LoaderConfig
from tubelet.records import ClipSpec
from tubelet.train.config import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    differences,
    from_dict,
    setting_names,
    to_dict,
    with_settings,
)  # fmt: skip

WHOLE = TrainConfig(
    out="runs/x", objective="classify", init="a/b", data=DataConfig(train=("a b", "c"), limit=3),
    clip=ClipSpec(frames=8, size=64), model=ModelConfig("videomae_tiny", {"patch": 8, "position_grid": [8, 8, 8]}),
    optim=OptimConfig(lr=1e-3, steps=10, betas=(0.8, 0.9)),
    loader=LoaderConfig(batch_size=6, repeats=3), run=RunConfig(seed=5, compile=True, precision="bf16"),
)  # fmt: skip


def test_yaml_round_trip(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(WHOLE.to_yaml())
    assert TrainConfig.from_yaml(tmp_path / "config.yaml") == WHOLE


@given(st.builds(
    OptimConfig, base_lr=st.floats(0, 1), lr=st.none() | st.floats(1e-9, 1), epochs=st.floats(0.1, 1e4),
    steps=st.none() | st.integers(1, 10**9), warmup=st.sampled_from(["5%", "10 epochs", "3"]), accumulate=st.integers(1, 99),
    layer_decay=st.floats(0.01, 1), freeze=st.booleans(),
))  # fmt: skip
def test_any_optimiser_settings_survive_yaml(optim: OptimConfig) -> None:
    config = dataclasses.replace(WHOLE, optim=optim)
    assert from_dict(TrainConfig, yaml.safe_load(config.to_yaml())) == config


def test_dotted_settings_from_text() -> None:
    changed = with_settings(WHOLE, {
        "optim.base_lr": "1e-3", "optim.lr": "none", "clip.size": "96", "augment.scale": "0.3,1.0", "run.compile": "false",
        "data.train": ["d"], "model.options.depth": "3", "loader.workers": "0", "optim.warmup": "100 steps", "data.val_split": "3",
    })  # fmt: skip
    assert changed.optim.base_lr == 1e-3 and changed.optim.lr is None and changed.clip.size == 96
    assert changed.augment.scale == (0.3, 1.0) and changed.run.compile is False and changed.data.train == ("d",)
    assert changed.model.options == {"patch": 8, "position_grid": [8, 8, 8], "depth": 3}
    assert changed.loader.workers == 0 and changed.optim.warmup == "100 steps" and changed.data.val_split == "3"


@pytest.mark.parametrize("text", ["off", "false", "'off'"])
def test_off_means_off_in_yaml(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(f"out: x\nloader: {{batch_size: 4, cache: {text}}}\n")
    assert TrainConfig.from_yaml(tmp_path / "config.yaml").loader.cache == "off"


def test_a_run_has_one_length() -> None:
    assert OptimConfig(epochs=5, steps=3).epochs is None
    assert with_settings(WHOLE, {"optim.epochs": "7"}).optim.steps is None
    assert with_settings(WHOLE, {"optim.epochs": "none"}).optim.steps == 10


def test_settings_that_are_handed_in_stay_as_they_are() -> None:
    settings = {"model.options": {"patch": 8}, "model.options.depth": 2}
    assert with_settings(WHOLE, settings).model.options == {"patch": 8, "depth": 2}
    assert settings == {"model.options": {"patch": 8}, "model.options.depth": 2} and WHOLE.model.options["patch"] == 8


@pytest.mark.parametrize(("name", "hint"), [
    ("optim.base_rl", "did you mean 'optim.base_lr'"), ("clip.siz", "did you mean 'clip.size'"), ("base_lr", "base_lr"),
    ("optin.epochs", "epochs"), ("colour", "--print-config shows them all"),
])  # fmt: skip
def test_unknown_setting_names_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="unknown setting") as error:
        with_settings(WHOLE, {name: "1"})
    assert name in str(error.value) and hint in str(error.value)


@pytest.mark.parametrize(("values", "message"), [
    ({"out": "x", "optimm": {}}, "unknown setting 'optimm': did you mean 'optim'|unknown setting 'optimm'"),
    ({"out": "x", "optim": {"epoch": 3}}, "unknown setting 'optim.epoch': did you mean 'optim.epochs'"),
    ({"out": "x", "optim": 3}, "optim is 3: it is a section"),
    ({}, "setting out is needed"),
    ({"out": "x", "run": {"compile": "maybe"}}, "run.compile is 'maybe', expected true or false, or 'reduce-overhead' or 'max-"),
    ({"out": "x", "run": {"compile": "max-autotun"}}, "run.compile is 'max-autotun': did you mean 'max-autotune'"),
    ({"out": "x", "run": {"compile": None}}, "run.compile is None, expected true or false"),
    ({"out": "x", "run": {"compile": 3}}, "run.compile is 3, expected true or false"),
    ({"out": "x", "clip": {"size": 64.5}}, "clip.size is 64.5, expected a whole number"),
    ({"out": "x", "clip": {"size": True}}, "clip.size is True, expected a whole number"),
    ({"out": "x", "optim": {"base_lr": "fast"}}, "optim.base_lr is 'fast', expected a number"),
    ({"out": "x", "optim": {"betas": [0.9]}}, "expected 2 values"),
    ({"out": "x", "run": {"precision": "bf61"}}, "run.precision is 'bf61': did you mean 'bf16'"),
    ({"out": "x", "objective": "maskd"}, "unknown objective 'maskd': did you mean 'masked'"),
    ({"out": "x", "optim": {"epochs": None}}, "the run has no length: set optim.epochs or optim.steps"),
    ({"out": "x", "optim": {"epochs": 0}}, "optim.epochs is 0.0: it must be above 0"),
    ({"out": "x", "optim": {"epochs": float("nan")}}, "optim.epochs is nan: it must be above 0, and finite"),
    ({"out": "x", "optim": {"base_lr": float("nan")}}, "optim.base_lr is nan: it must be 0 or more"),
    ({"out": "x", "optim": {"layer_decay": 0}}, "optim.layer_decay is 0.0"),
    ({"out": "x", "optim": {"ema": 1}}, "optim.ema is 1.0"),
    ({"out": "x", "run": {"threads": 0}}, "run.threads is 0: it must be 1 or more; leave it out"),
    ({"out": "x", "run": {"log_every": 0}}, "run.log_every is 0: it must be 1 or more"),
])  # fmt: skip
def test_bad_values_say_what_was_wanted(values: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ConfigError, match=message):
        from_dict(TrainConfig, values)


@pytest.mark.parametrize("text", ["just words", "- a\n- b", "a: [1", "\x00"])
def test_a_file_that_holds_no_settings(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match="config.yaml"):
        TrainConfig.from_yaml(tmp_path / "config.yaml")


def test_a_missing_file() -> None:
    with pytest.raises(ConfigError, match="cannot read the settings in nowhere.yaml"):
        TrainConfig.from_yaml("nowhere.yaml")


def test_every_setting_is_described_in_a_docstring() -> None:
    config = TrainConfig(out="")
    for section in dataclasses.fields(config):
        part = getattr(config, section.name)
        if dataclasses.is_dataclass(part):
            doc = type(part).__doc__ or ""
            for field in dataclasses.fields(part):
                if section.name in ("optim", "run", "data", "masked", "classify", "clip", "augment", "loader"):
                    assert field.name in doc or field.name in ("weight_decay", "betas"), f"{section.name}.{field.name}"


def test_differences_name_what_matters() -> None:
    other = dataclasses.replace(
        WHOLE, out="y", optim=dataclasses.replace(WHOLE.optim, lr=2e-3), run=dataclasses.replace(WHOLE.run, log_every=3)
    )
    assert differences(to_dict(WHOLE), to_dict(other)) == ["optim.lr was 0.001, is 0.002"]
    assert differences(to_dict(WHOLE), to_dict(WHOLE)) == []


def test_setting_names_are_settings() -> None:
    for name in setting_names():
        value = to_dict(WHOLE)
        for part in name.split("."):
            value = value[part]
