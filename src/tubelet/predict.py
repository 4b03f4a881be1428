"""What is in this video? The most probable classes of one file, with the times of the frames that were looked at."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tubelet.errors import CheckpointError, ConfigError, utf8
from tubelet.evaluate.multiview import crops_of, videos, views
from tubelet.features import fingerprint
from tubelet.models._model import Model
from tubelet.records import Example, unnamed
from tubelet.video.decode import probe
from tubelet.video.guard import run
from tubelet.views import each_view

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Prediction:
    """The answer about one video.

    top             (class, probability) pairs, most probable first, at most min(asked, K)
    seconds         for each clip the times of its frames in the video, in seconds
    clips, crops    views whose probabilities were averaged
    seconds_taken   from opening the file to the answer
    warnings        what the reader should know, such as a video shorter than the clip
    frames          for each clip (second, class, probability) of every frame, where a label a frame was asked for
    """

    path: str
    top: tuple[tuple[str, float], ...]
    seconds: tuple[tuple[float, ...], ...]
    clips: int
    crops: int
    seconds_taken: float
    warnings: tuple[str, ...] = ()
    frames: tuple[tuple[tuple[float, str, float], ...], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the same fields, `top` as a list of {"class", "probability"}, and `frames`, where there are any, as a list a
        clip of {"second", "class", "probability"}."""
        named = ("second", "class", "probability")
        frames = [[dict(zip(named, frame, strict=True)) for frame in clip] for clip in self.frames]
        return {
            "path": self.path,
            "top": [{"class": name, "probability": probability} for name, probability in self.top],
            "seconds": [list(clip) for clip in self.seconds],
            "clips": self.clips,
            "crops": self.crops,
            "seconds_taken": self.seconds_taken,
            "warnings": list(self.warnings),
        } | ({"frames": frames} if frames else {})


@torch.no_grad()
def predict(
    model: Model,
    path: str | Path,
    clips: int = 5,
    crops: int | None = None,
    top: int = 5,
    forward: Callable[[Iterable[Tensor]], Iterable[Mapping[str, Tensor]]] | None = None,
    frames: bool = False,
) -> Prediction:
    """The `top` most probable classes of the video file at `path`: probabilities averaged over clips x crops views.

    crops None is 3, or 1 for a model that sees the whole frame squeezed (clip.fit "stretch"). forward: gives the outputs for the
    views, uint8 (1,T,C,H,W) each, in place of the model one after another; for those who share one (see `web/batcher.py`).
    frames: also the most probable class of every frame, averaged over crops, of a model that gives "frame_logits"; what takes
    several frames at a time has one label for them, at the time of the last.
    Raises CheckpointError for a model without classes, VideoError for a file that cannot be decoded, ConfigError where labels of
    frames are asked of a model that has none.
    """
    _check(model, top)
    crops = crops_of(model.spec, crops)
    started = time.perf_counter()
    model.eval()
    device = next(model.parameters()).device
    seconds: list[Tensor] = []

    def shown() -> Iterator[Tensor]:
        for view in each_view(path, model.spec, clips, crops):
            seconds.append(view.seconds)
            yield view.frames[None].to(device)

    # One view at a time: memory stays flat, and on one file nothing is won by a batch.
    outputs = map(model, shown()) if forward is None else forward(shown())
    chances, each = [], []
    for out in outputs:
        chances.append(out["logits"][0].double().softmax(dim=0).cpu())
        if frames and "frame_logits" not in out:
            raise ConfigError(
                f"{model.name} gives one label a clip, none a frame: leave --frames out, or teach a model that does, such as "
                "cnn_lstm_resnet18_per_frame"
            )
        if frames:
            each.append(out["frame_logits"][0].double().softmax(dim=1).cpu())  # (S,K)
    answer = _most_probable(model, torch.stack(chances).mean(dim=0), top, path)
    times = tuple(tuple(round(float(s), 4) for s in clip) for clip in seconds[::crops])
    taken = time.perf_counter() - started
    labels = tuple(
        _of_frames(model, torch.stack(each[first : first + crops]).mean(dim=0), clip)
        for first, clip in zip(range(0, len(each), crops), times, strict=frames)
    )
    return Prediction(str(path), answer, times, clips, crops, taken, _warnings(model, path), labels)


def predict_table(
    model: Model,
    examples: Sequence[Example],
    clips: int = 5,
    crops: int | None = None,
    top: int = 5,
    batch_size: int = 8,
    workers: int | None = None,
    on_missing: Callable[[str, str], None] | None = None,
) -> "pa.Table":
    """What `predict` says about the readable Examples, in their order, a row each; on_missing(id, reason) for the others.

    Columns id, path, start_seconds and end_seconds (what was looked at), classes and probabilities (lists, most probable
    first). The schema's metadata holds the model's name, fingerprint, precision and ClipSpec. Errors as `predict`.
    """
    import pyarrow as pa

    _check(model, top)
    rows: list[tuple[Any, ...]] = []
    found = views(model, examples, clips, crops_of(model.spec, crops), batch_size, workers, on_missing)
    for video in videos(found):
        assert video.probabilities is not None
        chances = _most_probable(model, video.probabilities, top, video.example.path)
        names, values = zip(*chances, strict=True)
        times = float(video.seconds.min()), float(video.seconds.max())
        rows.append((utf8(video.example.id), utf8(video.example.path), *times, names, values))
    about = {"model": model.name, "fingerprint": fingerprint(model), "precision": model.precision}
    about["clip"] = json.dumps(model.spec.to_dict())
    columns = [
        ("id", pa.string()),
        ("path", pa.string()),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("classes", pa.list_(pa.string())),
        ("probabilities", pa.list_(pa.float64())),
    ]
    schema = pa.schema(columns, metadata={f"tubelet.{key}": value for key, value in about.items()})
    return pa.table([list(column) for column in zip(*rows, strict=True)] or [[] for _ in columns], schema=schema)


def _check(model: Model, top: int) -> None:
    if not model.class_names:
        raise CheckpointError(
            f"{model.name} was never taught classes, so it cannot predict any: give a fine-tuned model, or use `tubelet embed`"
        )
    if top < 1:
        raise ConfigError(f"top is {top}: ask for 1 class or more")


def _most_probable(model: Model, probabilities: Tensor, top: int, path: str | Path) -> tuple[tuple[str, float], ...]:
    """(class, probability) pairs of the mean probabilities (K,) of a video."""
    if not torch.isfinite(probabilities).all():
        raise CheckpointError(f"the model answers NaN for {path}: its weights are broken; try an earlier checkpoint of the run")
    values, indices = probabilities.topk(min(top, len(model.class_names)))
    return tuple((model.class_names[int(i)], float(p)) for p, i in zip(values, indices, strict=True))


def _of_frames(model: Model, probabilities: Tensor, seconds: Sequence[float]) -> tuple[tuple[float, str, float], ...]:
    """(second, class, probability) of each of the S steps of a clip, probabilities (S,K)."""
    window = len(seconds) // len(probabilities)
    values, indices = probabilities.max(dim=1)
    rows = zip(seconds[window - 1 :: window], indices.tolist(), values.tolist(), strict=True)
    return tuple((second, model.class_names[index], value) for second, index, value in rows)


def _warnings(model: Model, path: str | Path) -> tuple[str, ...]:
    have, want = (
        run(str(path), probe, path).frame_count,
        model.spec.frames if model.spec.sampling == "segments" else model.spec.window_frames,
    )
    found = []
    if list(model.class_names) == unnamed(len(model.class_names)):
        found.append("nobody told this model the names of its classes: convert it with --classes (tubelet weights convert)")
    if have < want:
        how = {"repeat_last": "the last frame was repeated", "loop": "it was looped"}.get(model.spec.short, "")
        found.append(f"the video has {have} frames, the clip spans {want}: {how}")
    return tuple(found)
