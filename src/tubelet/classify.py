"""What is in this video? The most probable classes of one file, with the times of the frames that were looked at."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tubelet.errors import CheckpointError, ConfigError
from tubelet.evaluate.multiview import crops_of
from tubelet.loading import each_view
from tubelet.models._model import Model
from tubelet.video.decode import probe
from tubelet.video.guard import run


@dataclass(frozen=True)
class Prediction:
    """The answer about one video.

    top             (class, probability) pairs, most probable first, at most min(asked, K)
    seconds         for each clip the times of its frames in the video, in seconds
    clips, crops    views whose probabilities were averaged
    seconds_taken   from opening the file to the answer
    warnings        what the reader should know, such as a video shorter than the clip
    """

    path: str
    top: tuple[tuple[str, float], ...]
    seconds: tuple[tuple[float, ...], ...]
    clips: int
    crops: int
    seconds_taken: float
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the same fields, `top` as a list of {"class", "probability"}."""
        return {
            "path": self.path,
            "top": [{"class": name, "probability": probability} for name, probability in self.top],
            "seconds": [list(clip) for clip in self.seconds],
            "clips": self.clips,
            "crops": self.crops,
            "seconds_taken": self.seconds_taken,
            "warnings": list(self.warnings),
        }


@torch.no_grad()
def predict(model: Model, path: str | Path, clips: int = 5, crops: int | None = None, top: int = 5) -> Prediction:
    """The `top` most probable classes of the video file at `path`: probabilities averaged over clips x crops views.

    crops None is 3, or 1 for a model that sees the whole frame squeezed (clip.fit "stretch").
    Raises CheckpointError for a model without classes, VideoError for a file that cannot be decoded.
    """
    if not model.class_names:
        raise CheckpointError(
            f"{model.name} was never taught classes, so it cannot predict any: give a fine-tuned model, or use `tubelet embed`"
        )
    if top < 1:
        raise ConfigError(f"top is {top}: ask for 1 class or more")
    crops = crops_of(model.spec, crops)
    started = time.perf_counter()
    model.eval()
    device = next(model.parameters()).device
    # One view at a time: memory stays flat, and on one file nothing is won by a batch.
    views, seconds = [], []
    for view in each_view(path, model.spec, clips, crops):
        views.append(model(view.frames[None].to(device))["logits"][0].double().softmax(dim=0).cpu())
        seconds.append(view.seconds)
    probabilities = torch.stack(views).mean(dim=0)
    if not torch.isfinite(probabilities).all():
        raise CheckpointError(f"the model answers NaN for {path}: its weights are broken; try an earlier checkpoint of the run")
    values, indices = probabilities.topk(min(top, len(model.class_names)))
    answer = tuple((model.class_names[int(i)], float(p)) for p, i in zip(values, indices, strict=True))
    times = tuple(tuple(round(float(s), 4) for s in clip) for clip in seconds[::crops])
    taken = time.perf_counter() - started
    return Prediction(str(path), answer, times, clips, crops, taken, _warnings(model, path))


def _warnings(model: Model, path: str | Path) -> tuple[str, ...]:
    have, want = (
        run(str(path), probe, path).frame_count,
        model.spec.frames if model.spec.sampling == "segments" else model.spec.window_frames,
    )
    if have >= want:
        return ()
    how = {"repeat_last": "the last frame was repeated", "loop": "it was looped"}.get(model.spec.short, "")
    return (f"the video has {have} frames, the clip spans {want}: {how}",)
