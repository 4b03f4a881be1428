"""`tubelet.load(path)` gives a VideoModel: a network together with what it needs to answer about a video file."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tubelet.models._model import Model
from tubelet.predict import Prediction
from tubelet.records import ClipSpec


@dataclass(frozen=True)
class VideoModel:
    """A loaded model. Its network maps a batch of frames to named tensors; predict and embed take video files."""

    network: Model
    path: str

    @property
    def spec(self) -> ClipSpec:
        """How clips are cut and normalised for this model."""
        return self.network.spec

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the order of the logits; empty for a model that was not taught any."""
        return self.network.class_names

    def predict(
        self, video: str | Path, clips: int = 5, crops: int | None = None, top: int = 5, frames: bool = False
    ) -> Prediction:
        """The most probable classes of a video file, averaged over clips x crops (see `tubelet.predict.predict`)."""
        from tubelet.predict import predict

        return predict(self.network, video, clips=clips, crops=crops, top=top, frames=frames)

    def embed(self, video: str | Path, clips: int = 5) -> Tensor:
        """One float32 vector (D,) for a video file: the mean over its clips of the mean over tokens."""
        from tubelet.features import embed_video

        return embed_video(self.network, video, clips=clips)


def load(path: str | Path, device: torch.device | str = "cpu", precision: str = "fp32") -> VideoModel:
    """The model at a path (model folder, run folder or checkpoint), in "fp32" or the faster "bf16"; CheckpointError when it is not
    one, ConfigError for another precision."""
    from tubelet.weights.load import load_model

    return VideoModel(load_model(path, device, precision), str(path))
