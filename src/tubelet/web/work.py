"""What the page asks for, worked out in a thread: each function takes a file and gives numbers or a picture.

T frames, C colours, H height, W width.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tubelet import __version__, masking
from tubelet.errors import ConfigError
from tubelet.evaluate.multiview import crops_of
from tubelet.evaluate.sides import run_of
from tubelet.features import fingerprint
from tubelet.find import choose
from tubelet.models._model import Model
from tubelet.predict import Prediction, predict
from tubelet.scan import STEP
from tubelet.show import attention, reconstruction
from tubelet.show._sheet import to_png
from tubelet.timeline import Timeline, timeline
from tubelet.train.config import TrainConfig
from tubelet.train.device import choose_device
from tubelet.video.decode import decode, probe
from tubelet.video.guard import LOOKS, check_stop, run
from tubelet.views import load_views
from tubelet.web.batcher import Batcher, Output
from tubelet.web.uploads import Upload
from tubelet.weights.load import load_model

THUMBNAIL = 96  # pixels high
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
    def identity(self) -> tuple[str, ...]:
        """Everything that its answers depend on, beside the question."""
        network = self.network
        about = (network.class_names, network.spec, sorted(network.options.items()), self.normalize_target)
        return __version__, self.name, self.fingerprint, repr(about)

    @property
    def rebuilds(self) -> bool:
        """Whether it fills in what is hidden: a masked autoencoder that still has its decoder."""
        return getattr(self.network, "decoder", None) is not None

    @property
    def attends(self) -> bool:
        return attention.can_be_shown(self.network)


# What a model may be asked for -> (whether it can, what is said where it cannot, what to serve where none can).
ABILITIES: dict[str, tuple[Callable[[Served], bool], str, str]] = {
    "classify": (lambda one: bool(one.network.class_names), "was never taught classes", "serve that of a fine-tuning run too"),
    "rebuild": (lambda one: one.rebuilds, "has no decoder, so it rebuilds nothing", "serve that of a pretraining run too"),
    "attend": (lambda one: one.attends, "does not say where it looks", "of the families here videomae does"),
}


def choose_model(models: Sequence[Served], name: str, ability: str) -> Served:
    """The model of that name, or the first that can; ConfigError, which names those that can, where it cannot."""
    can, lacks, hint = ABILITIES[ability]
    able = [one for one in models if can(one)]
    names = [one.name for one in models]
    chosen = models[names.index(choose(name, names, "model"))] if name else (able or models)[0]
    if chosen not in able:
        raise ConfigError(f"{chosen.name} {lacks}: {'ask ' + ' or '.join(one.name for one in able) if able else hint}")
    return chosen


def open_model(path: str | Path, name: str, device: str = "auto", most: int = 8, precision: str = "fp32") -> Served:
    """A model ready to answer; CheckpointError where there is none."""
    network = load_model(path, choose_device(device), precision)
    folder = run_of(path)
    masked = TrainConfig.from_yaml(folder / "config.yaml").masked if folder else None
    normalize = masked.normalize_target if masked else True
    return Served(name, network, Batcher(network, most), fingerprint(network), normalize)


def top_classes(served: Served, path: Path, clips: int, top: int, tell: Callable[[float], object]) -> Prediction:
    """`predict`, with the model shared by all who ask: the views of a video wait together. tell(part) of the way again and again,
    of which reading is the first half."""
    halves = 2 * clips * crops_of(served.network.spec, None)

    def forward(views: Iterable[Tensor]) -> Iterator[Output]:
        asked: list[Future[Output]] = []
        try:
            for view in views:
                check_stop()
                asked.append(served.batcher.ask(view))
                tell(len(asked) / halves)
            for done, answer in enumerate(asked, len(asked) + 1):
                while not wait([answer], 1 / LOOKS).done:
                    check_stop()
                yield answer.result()
                tell(done / halves)
        finally:
            for answer in asked:
                answer.cancel()

    return predict(served.network, path, clips, None, top, forward)


def over_time(served: Served, path: Path, about: Upload, tell: Callable[[float], object]) -> Timeline:
    """Class probabilities over a video, of at most MOMENTS moments; of a long one not every frame is looked at. tell(part) of the
    way again and again."""

    def on_window(done: int, of: int) -> None:
        check_stop()
        tell(done / of)

    window = served.network.spec.window_frames / max(about.fps, 1e-6)
    every = max(LEAST_SECONDS, about.seconds / MOMENTS)
    return timeline(served.network, path, every, on_window=on_window, step=max(STEP, every / window))


def strip(path: str | Path, seconds: Sequence[float]) -> bytes:
    """PNG: the frames shown at those times, side by side, at most THUMBNAIL high and four times as wide."""
    if not 0 < len(seconds) <= MOST_THUMBNAILS:
        raise ConfigError(f"{len(seconds)} times were asked for: a strip has 1 to {MOST_THUMBNAILS}")
    return run(str(path), _strip, str(path), list(seconds))


def _strip(path: str, seconds: list[float]) -> bytes:
    info = probe(path)
    scale = min(1.0, THUMBNAIL / info.height, 4 * THUMBNAIL / info.width)
    size = (max(1, round(info.height * scale)), max(1, round(info.width * scale)))
    return to_png(torch.cat(list(decode(path, seconds=seconds, size=size).frames), dim=-1))


def rebuilt(served: Served, path: Path, kind: str, ratio: float, seed: int) -> bytes:
    """PNG: the middle of the video, what the model is shown of it, and what it makes of that."""
    choose(kind, masking.KINDS, "mask")
    frames, seconds = load_views(path, served.network.spec)
    made = reconstruction.reconstruct(
        served.network, frames[0], normalize_target=served.normalize_target, kind=kind, ratio=ratio, seed=seed
    )
    return reconstruction.strip(made, seconds[0])


def looked_at(served: Served, path: Path) -> bytes:
    """PNG: the middle of the video with the attention of the last block laid over it."""
    return attention.attention(served.network, load_views(path, served.network.spec)[0][0])
