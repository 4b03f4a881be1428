"""What the page asks for, worked out in a thread: each function takes a file and gives numbers or a picture.

T frames, C colours, H height, W width.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tubelet import masking
from tubelet.errors import ConfigError
from tubelet.evaluate.sides import run_of
from tubelet.features import fingerprint
from tubelet.find import choose
from tubelet.loading import load_views
from tubelet.models._model import Model
from tubelet.predict import Prediction, predict
from tubelet.show import attention, reconstruction
from tubelet.show._sheet import to_png
from tubelet.timeline import Timeline, timeline
from tubelet.train.config import TrainConfig
from tubelet.train.device import choose_device
from tubelet.video.decode import decode
from tubelet.video.guard import Stopped, run
from tubelet.web.batcher import Batcher, Output
from tubelet.weights.load import load_model

THUMBNAIL = 96  # pixels of its short side
MOST_THUMBNAILS = 64  # in one strip
MOMENTS, LEAST_SECONDS = 240, 0.2  # of a timeline, and of one of them


@dataclass(frozen=True)
class Served:
    """A model that answers. normalize_target: what it was trained to rebuild (see `show.reconstruction`)."""

    name: str
    network: Model
    batcher: Batcher
    fingerprint: str
    normalize_target: bool

    @property
    def rebuilds(self) -> bool:
        """Whether it fills in what is hidden: a masked autoencoder that still has its decoder."""
        return getattr(self.network, "decoder", None) is not None

    @property
    def attends(self) -> bool:
        return attention.can_be_shown(self.network)


def open_model(path: str | Path, name: str, device: str = "auto", most: int = 8) -> Served:
    """A model ready to answer; CheckpointError where there is none."""
    network = load_model(path, choose_device(device))
    folder = run_of(path)
    masked = TrainConfig.from_yaml(folder / "config.yaml").masked if folder else None
    normalize = masked.normalize_target if masked else True
    return Served(name, network, Batcher(network, most), fingerprint(network), normalize)


def top_classes(served: Served, path: Path, clips: int, top: int, stop: threading.Event) -> Prediction:
    """`predict`, with the model shared by all who ask; Stopped soon after `stop` is set."""

    def forward(frames: Tensor) -> Output:
        if stop.is_set():
            raise Stopped
        return served.batcher(frames)

    return predict(served.network, path, clips, None, top, forward)


def over_time(
    served: Served, path: Path, seconds: float, stop: threading.Event, tell: Callable[[float], object] = lambda part: None
) -> Timeline:
    """Class probabilities over a video that lasts so many seconds, at most MOMENTS of them; tell(part) of the way again and again.
    Stopped soon after `stop` is set."""

    def on_window(done: int, of: int) -> None:
        if stop.is_set():
            raise Stopped
        tell(done / of)

    return timeline(served.network, path, max(LEAST_SECONDS, seconds / MOMENTS), on_window=on_window)


def strip(path: Path, seconds: list[float]) -> bytes:
    """PNG: the frames shown at those times, side by side."""
    if not 0 < len(seconds) <= MOST_THUMBNAILS:
        raise ConfigError(f"{len(seconds)} times were asked for: a strip has 1 to {MOST_THUMBNAILS}")
    clip = run(str(path), decode, str(path), seconds=seconds, short_side=THUMBNAIL)
    return to_png(torch.cat(list(clip.frames), dim=-1))


def rebuilt(served: Served, path: Path, kind: str, ratio: float, seed: int) -> bytes:
    """PNG: the middle of the video, what the model is shown of it, and what it makes of that."""
    if not served.rebuilds:
        raise ConfigError(f"{served.name} has no decoder, so it rebuilds nothing: serve the model of a pretraining run too")
    choose(kind, masking.KINDS, "mask")
    frames, seconds = load_views(path, served.network.spec)
    made = reconstruction.reconstruct(
        served.network, frames[0], normalize_target=served.normalize_target, kind=kind, ratio=ratio, seed=seed
    )
    return reconstruction.strip(made, seconds[0])


def looked_at(served: Served, path: Path) -> bytes:
    """PNG: the middle of the video with the attention of the last block laid over it."""
    if not served.attends:
        raise ConfigError(f"{served.name} does not say where it looks: of the families here videomae does")
    return attention.attention(served.network, load_views(path, served.network.spec)[0][0])
