"""Teaching a model to match videos and sentences: `tubelet align MODEL DATA`."""

from collections.abc import Callable, Sequence
from typing import Any

from tubelet.loading import LoaderConfig
from tubelet.models import options_of
from tubelet.recipes._budget import epochs_for
from tubelet.records import ClipSpec, Dataset
from tubelet.train.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from tubelet.video.augment import AugmentConfig

Recipe = Callable[[Sequence[str], str, Dataset, ModelConfig, ClipSpec], TrainConfig]

VOCABULARY = 1000  # tokens at most that are learned from the captions
SMALL_TEXT = dict(width=128, depth=2, heads=4, context=48)


def choose(device: str) -> Recipe:
    """The recipe for "cuda", or for anything smaller."""
    return gpu if device == "cuda" else laptop


def towers(video: ModelConfig, device: str) -> ModelConfig:
    """A model with this video tower, without a decoder, which nothing here would teach, and a text tower that fits the device."""
    options: dict[str, Any] = {**video.options, **({"decoder": False} if "decoder" in options_of(video.name) else {})}
    if device == "cuda":
        return ModelConfig("video_text_small", {"video": video.name, "video_options": options, "pool": "temporal"})
    more = {"text": dict(SMALL_TEXT), "width": 128, "pool": "temporal", "pool_depth": 1}
    return ModelConfig("video_text_tiny", {"video": video.name, "video_options": options, **more})


def laptop(data: Sequence[str], out: str, dataset: Dataset, model: ModelConfig, clip: ClipSpec) -> TrainConfig:
    """Both towers on two or more CPU cores. Batches of 64 clips, for every other clip of a batch is a negative.

    Command: `tubelet align none DIR`. Cost: about 40,000 clips, not measured as it is. Two runs of smaller models, with their
    settings and what they reached, are in docs/video-and-text.md.
    """
    return TrainConfig(
        out=out,
        objective="contrastive",
        data=DataConfig(train=tuple(data)),
        clip=clip,
        augment=AugmentConfig(scale=(0.7, 1.0)),  # no flip: captions speak of left and right
        loader=LoaderConfig(batch_size=64),
        model=model,
        optim=OptimConfig(
            lr=1e-3, min_lr=1e-5, weight_decay=0.1, epochs=epochs_for(40_000, len(dataset.examples), 1, 5, 100), betas=(0.9, 0.98),
            warmup="10%", clip_gradient=1.0,
        ),
    )  # fmt: skip


def gpu(data: Sequence[str], out: str, dataset: Dataset, model: ModelConfig, clip: ClipSpec) -> TrainConfig:
    """Both towers on one GPU, batches of 256 clips.

    Command: `tubelet align RUN DIR`. Cost: about 1 million clips, not measured yet.
    """
    return TrainConfig(
        out=out,
        objective="contrastive",
        data=DataConfig(train=tuple(data)),
        clip=clip,
        augment=AugmentConfig(scale=(0.5, 1.0)),
        loader=LoaderConfig(batch_size=256),
        model=model,
        optim=OptimConfig(
            base_lr=5e-4, weight_decay=0.1, epochs=epochs_for(1_000_000, len(dataset.examples), 1, 10, 100), betas=(0.9, 0.98),
            clip_gradient=1.0,
        ),
    )  # fmt: skip
