"""Features of the windows of many videos, in one file: what a head for grounding learns from (see `ground_head`).

W windows, D width of the features.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tubelet import storage
from tubelet.errors import CheckpointError, DataError, VideoError
from tubelet.feature_store import write_parquet
from tubelet.features import Feature, fingerprint
from tubelet.models._model import Model
from tubelet.scan import Kept, scan
from tubelet.video.stream import Windows

STORE_SECONDS = 60.0  # between two writings of the features while videos are read


@dataclass(frozen=True)
class Stored:
    """Features of the windows of one video: seconds float64 (W,2), vectors float32 (W,D), duration in seconds."""

    seconds: Tensor
    vectors: Tensor
    duration: float

    def cells(self, count: int) -> Tensor:
        """float32 (count,D): the vectors, interpolated to the middles of equal cells of the video."""
        middles = self.seconds.mean(dim=1).numpy()
        order = np.argsort(middles, kind="stable")
        wanted = (np.arange(count) + 0.5) / count * self.duration
        place = np.interp(wanted, middles[order], np.arange(len(order)))
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, len(order) - 1)
        share = torch.from_numpy(place - low).float()[:, None]
        vectors = self.vectors[torch.from_numpy(order.copy())]
        return vectors[low] * (1 - share) + vectors[high] * share


def store(
    model: Model,
    videos: Sequence[str],
    window: float,
    step: float,
    path: str | Path,
    on_video: Callable[[int], object] | None = None,
    on_missing: Callable[[str, str], None] | None = None,
    kept: Kept | None = None,
) -> dict[str, Stored]:
    """Features of sliding windows of every video, by its path; those in the Parquet file at `path` are taken from there.

    A file of another model, other options or clips of it, or other windows is written anew, which `kept` is told, and a video that
    changed since (size, time) is read again. The file is written on the way too, and `kept` is as in `scan`, so that an interrupted
    call loses a minute at most. Rows: id (hash of windows and options, duration, state of the video's file), path, start and end
    seconds, vector. DataError where no video can be read.
    """
    made = _made(model, window, step)
    done, states = _read(Path(path), model, window, step, kept.say if kept else lambda _: None)
    found: dict[str, Stored] = {}
    unwritten, written_at = False, time.monotonic()

    def keep() -> None:
        rows = (
            Feature(f"{made} {one.duration!r} {states[video]}", video, float(start), float(end), vector)
            for video, one in done.items()
            for (start, end), vector in zip(one.seconds, one.vectors, strict=True)
        )
        write_parquet(path, rows, model, per="clip")

    try:
        for number, video in enumerate(dict.fromkeys(videos), 1):
            if video not in done:
                try:
                    state = _state(video)
                    seen = scan(model, video, [Windows(window_seconds=window, step_seconds=step)], batch_size=32, kept=kept)
                except (VideoError, OSError) as error:
                    if on_missing is not None:
                        on_missing(video, getattr(error, "strerror", None) or str(error))
                    continue
                done[video], states[video] = Stored(seen.seconds, seen.embeddings, seen.duration), state
                unwritten = True
            found[video] = done[video]
            if unwritten and time.monotonic() - written_at > STORE_SECONDS:
                keep()
                unwritten, written_at = False, time.monotonic()
            if on_video is not None:
                on_video(number)
    finally:  # also what was done when Ctrl-C came
        if unwritten:
            keep()
    if not found:
        raise DataError(f"none of {len(set(videos))} videos could be read, so there is nothing to learn from")
    return found


def _state(video: str) -> str:
    """Changes when the file does. OSError where there is none."""
    size, version = storage.stat(video)
    return f"{size} {version}"


def _made(model: Model, window: float, step: float) -> str:
    """Hash of what the vectors depend on that the file itself does not tell: the windows and the options of the model."""
    return hashlib.blake2b(
        json.dumps([window, step, model.options], sort_keys=True, default=str).encode(), digest_size=8
    ).hexdigest()


def _read(
    path: Path, model: Model, window: float, step: float, say: Callable[[str], object] = lambda _: None
) -> tuple[dict[str, Stored], dict[str, str]]:
    """What is stored already of the same model and windows, of videos that are as they were; and the state of their files."""
    if not path.is_file():
        return {}, {}
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open(path, "rb") as file:
            table = pq.read_table(file)
    except pa.ArrowException as error:
        raise CheckpointError(f"{path} is not a file of features: {error}; delete it, and it is made again") from error
    about = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    made_by = {"fingerprint": fingerprint(model), "model": model.name, "clip": json.dumps(model.spec.to_dict())}
    if any(about.get(f"tubelet.{name}") != value for name, value in made_by.items()):
        say(f"{path}: features of another model, or of other clips: all videos are read again")
        return {}, {}
    columns = table.to_pydict()
    vectors = torch.from_numpy(table["vector"].combine_chunks().flatten().to_numpy().copy()).view(-1, model.width)
    seconds = torch.tensor([columns["start_seconds"], columns["end_seconds"]], dtype=torch.float64).T
    places: dict[str, list[int]] = {}
    for place, video in enumerate(columns["path"]):
        places.setdefault(video, []).append(place)
    found, states = {}, {}
    for video, rows in places.items():
        made, _, rest = columns["id"][rows[0]].partition(" ")
        duration, _, state = rest.partition(" ")
        if made != _made(model, window, step):
            say(f"{path}: features of other windows, or of other options of the model: all videos are read again")
            return {}, {}
        with contextlib.suppress(OSError):
            if state == _state(video):
                found[video], states[video] = Stored(seconds[rows], vectors[rows], float(duration)), state
    return found, states
