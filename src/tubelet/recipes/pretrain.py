"""Pretraining on unlabelled video: `tubelet pretrain DATA`. It is masked autoencoding unless `--objective` names another one."""

from collections.abc import Callable, Sequence
from typing import Any

from tubelet.loading import LoaderConfig
from tubelet.objectives.combined import CombinedConfig
from tubelet.objectives.distill import DistillConfig
from tubelet.objectives.masked import MaskedConfig
from tubelet.recipes._budget import epochs_for, fitting_stride
from tubelet.records import ClipSpec, Dataset
from tubelet.train.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from tubelet.video.augment import AugmentConfig

Recipe = Callable[[Sequence[str], str, Dataset], TrainConfig]

# For a CPU: 512 tokens of a 16x64x64 clip. Few clips are seen there, so everything is chosen that learns from few: positions
# in three dimensions and mimetic first values, a mask that leaves traces of what moves, pixels as they are for a target. On the
# motion set the paper's choices had learned nothing but the mean colour after 50,000 clips (docs/benchmarks/LOG.md).
SMALL = {
    "patch": 8, "width": 128, "depth": 6, "heads": 4, "decoder_width": 64, "decoder_depth": 2, "decoder_heads": 4,
    "positions": "3d", "first_values": "mimetic",
}  # fmt: skip
LARGE = 20_000  # videos from which a data set counts as large


def choose(videos: int, device: str) -> Recipe:
    """The recipe for a number of videos on "cuda", or on anything smaller."""
    if device != "cuda":
        return laptop
    return gpu_large_data if videos >= LARGE else gpu_small_data


def laptop(data: Sequence[str], out: str, dataset: Dataset) -> TrainConfig:
    """A small encoder at 64x64 on two or more CPU cores, videos decoded once and kept in memory.

    Command: `tubelet pretrain DIR`. Cost: about 100,000 clips, estimated at an hour or two on 2 cores. A smaller model of this
    kind learned features that beat random initialisation on the motion set, and none that did on 1,396 real videos of other
    scenes (docs/benchmarks/LOG.md): look at the table of `tubelet evaluate` before you rely on it.
    """
    repeats = 4
    return TrainConfig(
        out=out,
        objective="masked",
        data=DataConfig(train=tuple(data)),
        clip=ClipSpec(sampling=dataset.sampling, size=64, stride_frames=fitting_stride(dataset.examples, 16)),
        augment=AugmentConfig(scale=(0.5, 1.0), flip=dataset.may_flip),
        loader=LoaderConfig(batch_size=32, repeats=repeats),
        model=ModelConfig("videomae_tiny", SMALL),
        **_hidden(mask="random", ratio=0.75, normalize_target=False),
        optim=OptimConfig(
            base_lr=1.6e-2, min_lr=1e-5, epochs=epochs_for(100_000, len(dataset.examples), repeats, 5, 800), clip_gradient=1.0
        ),
    )


def gpu_small_data(data: Sequence[str], out: str, dataset: Dataset) -> TrainConfig:
    """VideoMAE-S at 16x224x224 on one GPU, for up to 20,000 videos: many epochs, four clips of every decode.

    Command: `tubelet pretrain DIR`. Cost: about 2 million clips, not measured yet. Hyper-parameters of the
    paper's small data sets (appendix: HMDB51 4800 and UCF101 3200 epochs, tube mask 0.75 to 0.9, base rate 3e-4 there).
    """
    repeats = 4
    return TrainConfig(
        out=out,
        objective="masked",
        data=DataConfig(train=tuple(data)),
        clip=ClipSpec(sampling=dataset.sampling, stride_frames=fitting_stride(dataset.examples, 16)),
        augment=AugmentConfig(crop="multi_scale", flip=dataset.may_flip),
        loader=LoaderConfig(batch_size=128, repeats=repeats),
        model=ModelConfig("videomae_small"),
        **_hidden(ratio=0.9),
        optim=OptimConfig(
            base_lr=3e-4, epochs=epochs_for(2_000_000, len(dataset.examples), repeats, 50, 3200), clip_gradient=1.0
        ),
    )


def gpu_large_data(data: Sequence[str], out: str, dataset: Dataset) -> TrainConfig:
    """VideoMAE-B at 16x224x224, the paper's Kinetics recipe at an effective batch of 1024.

    Command: `tubelet pretrain DIR`. Cost: 200 epochs of four clips each stand for the paper's 800; days on one GPU. The paper
    reaches 81.5 % top-1 on Kinetics-400 after fine-tuning (ViT-B, 1600 epochs).
    """
    return TrainConfig(
        out=out,
        objective="masked",
        data=DataConfig(train=tuple(data)),
        clip=ClipSpec(sampling=dataset.sampling, stride_frames=fitting_stride(dataset.examples, 16)),
        augment=AugmentConfig(crop="multi_scale", flip=dataset.may_flip),
        loader=LoaderConfig(batch_size=128, repeats=4),
        model=ModelConfig("videomae_base"),
        **_hidden(ratio=0.9),
        optim=OptimConfig(base_lr=1.5e-4, epochs=200, accumulate=8),
    )


def _hidden(**settings: Any) -> dict[str, Any]:
    """What is hidden, alike in every objective that masks: they take each other's place by `--objective` alone."""
    masked = MaskedConfig(**settings)
    return {"masked": masked, "combined": CombinedConfig(masked=masked), "distill": DistillConfig(**settings)}
