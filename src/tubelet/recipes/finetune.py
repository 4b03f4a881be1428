"""Teaching a model classes from labelled video: `tubelet finetune MODEL DATA`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tubelet.loading import LoaderConfig
from tubelet.objectives.classify import ClassifyConfig
from tubelet.recipes._budget import epochs_for
from tubelet.records import ClipSpec, Dataset
from tubelet.train.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from tubelet.video.augment import AugmentConfig

Recipe = Callable[[Sequence[str], str, Dataset, ModelConfig, ClipSpec], TrainConfig]

LARGE = 20_000  # videos from which a data set counts as large


def choose(videos: int, device: str) -> Recipe:
    """The recipe for a number of videos on "cuda", or on anything smaller."""
    if device != "cuda":
        return laptop
    return gpu_large_data if videos >= LARGE else gpu_small_data


def laptop(data: Sequence[str], out: str, dataset: Dataset, model: ModelConfig, clip: ClipSpec) -> TrainConfig:
    """Fine-tuning of a small model on two or more CPU cores.

    Command: `tubelet finetune runs/NAME DIR`. Cost: about 20,000 clips, ten to thirty minutes on 2 cores at 64x64.
    """
    repeats = 2
    return TrainConfig(
        out=out,
        objective="classify",
        data=DataConfig(train=tuple(data)),
        clip=clip,
        augment=AugmentConfig(scale=(0.5, 1.0), flip=dataset.may_flip, color_jitter=0.2),
        loader=LoaderConfig(batch_size=16, repeats=repeats),
        model=with_drop_path(model, 0.1),
        classify=ClassifyConfig(label_smoothing=0.1, mixup=0.2),
        optim=OptimConfig(
            base_lr=8e-3,
            epochs=epochs_for(20_000, len(dataset.examples), repeats, 5, 150),
            betas=(0.9, 0.999),
            layer_decay=0.75,
            warmup="10%",
            clip_gradient=1.0,
        ),
    )


def gpu_small_data(data: Sequence[str], out: str, dataset: Dataset, model: ModelConfig, clip: ClipSpec) -> TrainConfig:
    """Fine-tuning on one GPU for up to 20,000 videos (the paper's recipe for UCF101 and HMDB51).

    Command: `tubelet finetune runs/NAME DIR`. Cost: about 200,000 clips, not measured yet.
    """
    repeats = 2
    return TrainConfig(
        out=out,
        objective="classify",
        data=DataConfig(train=tuple(data)),
        clip=clip,
        augment=AugmentConfig(flip=dataset.may_flip, rand_augment="m9-n2-mstd0.5", erase=0.25),
        loader=LoaderConfig(batch_size=32, repeats=repeats),
        model=with_drop_path(model, 0.2),
        classify=ClassifyConfig(label_smoothing=0.1, mixup=0.8, cutmix=1.0),
        optim=OptimConfig(
            base_lr=1e-3,
            epochs=epochs_for(200_000, len(dataset.examples), repeats, 20, 100),
            betas=(0.9, 0.999),
            layer_decay=0.7,
        ),
    )


def gpu_large_data(data: Sequence[str], out: str, dataset: Dataset, model: ModelConfig, clip: ClipSpec) -> TrainConfig:
    """The paper's Kinetics fine-tuning at an effective batch of 512.

    Command: `tubelet finetune runs/NAME DIR`. Cost: 75 epochs, a day or more on one GPU. The paper: 81.5 % on Kinetics-400 (B).
    """
    return TrainConfig(
        out=out,
        objective="classify",
        data=DataConfig(train=tuple(data)),
        clip=clip,
        augment=AugmentConfig(flip=dataset.may_flip, rand_augment="m7-n4-mstd0.5", erase=0.25),
        loader=LoaderConfig(batch_size=64, repeats=2),
        model=with_drop_path(model, 0.1),
        classify=ClassifyConfig(label_smoothing=0.1, mixup=0.8, cutmix=1.0),
        optim=OptimConfig(base_lr=5e-4, epochs=75, accumulate=8, betas=(0.9, 0.999), layer_decay=0.75, warmup="5 epochs"),
    )


def from_random_values(config: TrainConfig) -> TrainConfig:
    """The same run without a model to start from. Lower layers that know nothing yet must not learn slower than the upper ones:
    there is no layer decay."""
    return replace(config, init=None, optim=replace(config.optim, layer_decay=1.0))


def with_drop_path(model: ModelConfig, rate: float) -> ModelConfig:
    """The model with drop path at `rate`, where its family has it."""
    options: dict[str, Any] = dict(model.options)
    if "drop_path" in options:
        options["drop_path"] = rate
    return ModelConfig(model.name, options)
