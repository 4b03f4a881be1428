"""Every recipe makes a run that can be carried out, with the facts of the data in it."""

from pathlib import Path

import pytest

from tubelet import datasets, models
from tubelet.recipes import _budget, finetune, pretrain
from tubelet.train import optim
from tubelet.train.config import ModelConfig, TrainConfig

PRETRAINING = [pretrain.laptop, pretrain.gpu_small_data, pretrain.gpu_large_data]
FINE_TUNING = [finetune.laptop, finetune.gpu_small_data, finetune.gpu_large_data]


def check(config: TrainConfig, videos: int) -> None:
    per_epoch = videos * config.loader.repeats / config.clips_per_step
    steps = optim.total_steps(config.optim, per_epoch)
    assert 0 <= optim.warmup_steps(config.optim.warmup, steps, per_epoch) < steps
    assert 1e-6 < optim.peak_lr(config.optim, config.clips_per_step) < 5e-3
    with_classes = ("a", "b") if config.objective == "classify" else ()
    models.build(config.model.name, config.clip, with_classes, **config.model.options)


@pytest.mark.parametrize("recipe", PRETRAINING)
def test_pretraining_recipes(recipe: pretrain.Recipe, motion_folder: Path) -> None:
    dataset = datasets.read(motion_folder)
    config = recipe([str(motion_folder)], "runs/x", dataset)
    check(config, 1000)
    assert (
        config.objective == "masked"
        and config.augment.flip == dataset.may_flip
        and recipe.__doc__
        and "Cost:" in recipe.__doc__
    )


@pytest.mark.parametrize("recipe", FINE_TUNING)
def test_fine_tuning_recipes(recipe: finetune.Recipe, motion_folder: Path) -> None:
    dataset = datasets.read(motion_folder)
    source = pretrain.laptop([str(motion_folder)], "runs/x", dataset)
    model = ModelConfig(source.model.name, {**source.model.options, "drop_path": 0.0})
    config = recipe([str(motion_folder)], "runs/y", dataset, model, source.clip)
    check(config, 1000)
    assert (
        config.objective == "classify"
        and config.model.options["drop_path"] > 0
        and recipe.__doc__
        and "Cost:" in recipe.__doc__
    )


@pytest.mark.parametrize("recipes", [pretrain, finetune])
def test_choice_by_size_and_hardware(recipes) -> None:  # type: ignore[no-untyped-def]
    assert recipes.choose(10, "cpu") is recipes.choose(10**6, "cpu") is recipes.choose(10, "mps") is recipes.laptop
    assert recipes.choose(10, "cuda") is recipes.gpu_small_data and recipes.choose(10**6, "cuda") is recipes.gpu_large_data


def test_stride_fits_the_median_video(motion_folder: Path) -> None:
    examples = datasets.read(motion_folder).examples  # 16 frames each
    assert [_budget.fitting_stride(examples, frames) for frames in (16, 8, 4, 2, 32)] == [1, 2, 4, 4, 1]
    assert _budget.fitting_stride((), 16) == 4


def test_epochs_for_a_budget_of_clips() -> None:
    assert _budget.epochs_for(100_000, videos=500, repeats=4, shortest=5, longest=800) == 50
    assert _budget.epochs_for(100_000, videos=2, repeats=4, shortest=5, longest=800) == 800
    assert _budget.epochs_for(100_000, videos=10**7, repeats=4, shortest=5, longest=800) == 5
