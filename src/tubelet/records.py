"""What travels through Tubelet: where a clip comes from (Example), the clip itself (Clip), how it is cut (ClipSpec).

T frames, C colours, H height, W width.
"""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor

from tubelet.errors import ConfigError
from tubelet.find import choose

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Sampling = Literal["videomae", "stride", "segments"]
ShortPolicy = Literal["repeat_last", "loop", "error"]
Interpolation = Literal["bilinear", "bicubic", "area"]
Fit = Literal["crop", "stretch"]
Background = Literal["keep", "subtract"]


@dataclass(frozen=True)
class Example:
    """Where a clip comes from. `id` is stable: the path relative to its data set, plus `@start-end` for a part of a file.

    `group` names what must stay on one side of a split (the source footage, the person); `split` is the side the data set
    itself assigns ("train", "val", "fold0", ...); `source` the data set it came from, where several are read as one.
    """

    path: str
    id: str
    label: str | None = None
    text: str | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None
    group: str | None = None
    split: str | None = None
    source: str = ""


@dataclass(frozen=True)
class Query:
    """A sentence and where in a video it is true: `spans` of (start, end) seconds, best known first; none where nobody said.

    Several spans belong to one question of QVHighlights, or are one moment as several people marked it (DiDeMo).
    duration: seconds of the video, None where the annotations do not say. saliency: (number of a clip of 2 s, what each of several
    people gave it, 0 to 4) of the clips that answer a question of QVHighlights; all others have 0.
    """

    id: str
    video: str
    text: str
    spans: tuple[tuple[float, float], ...] = ()
    duration: float | None = None
    split: str | None = None
    saliency: tuple[tuple[int, tuple[int, ...]], ...] = ()


@dataclass(frozen=True)
class Question:
    """A question about a video with several choices, one of them right: `answer` is its number, None where it is kept secret."""

    id: str
    video: str
    text: str
    choices: tuple[str, ...]
    answer: int | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None
    split: str | None = None


@dataclass(frozen=True)
class Dataset:
    """What a format reader returns: the Examples and the facts of the set that nobody may guess later.

    `classes` is the class order (the index is the label's number), empty for unlabelled video. `may_flip` says whether a
    mirrored clip keeps its label; `sampling` how clips of this set are usually cut.
    """

    examples: tuple[Example, ...]
    classes: tuple[str, ...] = ()
    may_flip: bool = False
    sampling: Sampling = "videomae"


@dataclass(frozen=True)
class Clip:
    """Frames together with their times. frames: uint8 (T,C,H,W) RGB; seconds: float64 (T,), the presentation time of each."""

    frames: Tensor
    seconds: Tensor
    id: str

    def __post_init__(self) -> None:
        assert self.frames.dtype == torch.uint8 and self.frames.ndim == 4, (self.frames.dtype, self.frames.shape)
        assert self.seconds.shape == self.frames.shape[:1], (self.seconds.shape, self.frames.shape)


@dataclass(frozen=True)
class ClipSpec:
    """How a clip is cut and normalised. It is stored in every checkpoint; nobody types a mean or a frame count twice.

    frames          number of frames T
    sampling        "videomae" (linspace over a window), "stride" (exact multiples), "segments" (one frame per T-th of the video)
    stride_frames   frames from one sampled frame to the next
    short           what happens when the video is shorter than the window: "repeat_last", "loop" or "error"
    size            height and width of the square the model sees, in pixels
    fit             "crop" (short side to `size`, then a square crop) or "stretch" (the whole frame squeezed into the square)
    interpolation   how pixels are resized
    background      "keep", or "subtract": every clip becomes its deviation from its own mean frame, so that a model for few
                    videos learns the motion and not the scenes (see `video/background.py`)
    mean, std       per colour, of values in [0,1]
    """

    frames: int = 16
    sampling: Sampling = "videomae"
    stride_frames: int = 4
    short: ShortPolicy = "repeat_last"
    size: int = 224
    fit: Fit = "crop"
    interpolation: Interpolation = "bilinear"
    background: Background = "keep"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name in ("frames", "stride_frames", "size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"clip.{name} is {getattr(self, name)}: it must be 1 or more")
        if self.background == "subtract" and self.frames == 1:
            raise ConfigError("clip.background is 'subtract' with clip.frames 1: one frame has nothing that moves; use 'keep'")
        if min(self.std) <= 0:
            raise ConfigError(f"clip.std is {self.std}: every value must be above 0")

    @property
    def window_frames(self) -> int:
        """Frames of the source video that one clip spans."""
        return self.frames * self.stride_frames

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ClipSpec":
        """The ClipSpec of these settings, the others as usual; ConfigError naming the nearest of an unknown setting or word, and
        for what is no number."""
        types = {f.name: f.type for f in fields(cls)}
        made: dict[str, Any] = {}
        for name, value in values.items():
            kind = types[choose(name, types, "clip setting")]
            if kind is int and (not isinstance(value, int) or isinstance(value, bool)):
                raise ConfigError(f"clip.{name} is {value!r}: it must be a whole number")
            if get_origin(kind) is Literal:
                choose(str(value), get_args(kind), f"clip.{name}")
            if get_origin(kind) is tuple:
                if not isinstance(value, list | tuple) or [isinstance(one, int | float) for one in value] != [True] * 3:
                    raise ConfigError(f"clip.{name} is {value!r}: it must be three numbers, such as [0.5, 0.5, 0.5]")
                value = tuple(value)
            made[name] = value
        return cls(**made)


@dataclass
class Batch:
    """What the loader hands to a model: B clips of one shape.

    frames uint8 (B,T,C,H,W); seconds float64 (B,T); labels int64 (B,) or None for unlabelled video; ids one Example id per
    clip; skipped: (id, reason) of Examples that should have been here and could not be read; padded: clips whose video was
    shorter than the window; texts one caption per clip, or None where an Example of the data set has none.
    """

    frames: Tensor
    seconds: Tensor
    ids: list[str]
    labels: Tensor | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)
    padded: int = 0
    texts: list[str] | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with its tensors on `device` (seconds stay where they are: only people read them)."""
        labels = None if self.labels is None else self.labels.to(device, non_blocking=True)
        frames = self.frames.to(device, non_blocking=True)
        return replace(self, frames=frames, labels=labels)


def unnamed(classes: int) -> list[str]:
    """What the classes of a model are called of which nobody knows the names."""
    return [f"class {number}" for number in range(classes)]
