"""Videos as vectors: one per video, minute, clip or window, streamed (`feature_store` keeps them)."""

import contextlib
import hashlib
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.ahead import AHEAD_BYTES, cores
from tubelet.datasets._prepared import mended
from tubelet.errors import ConfigError, DataError, VideoError
from tubelet.evaluate.multiview import View, videos, views
from tubelet.models._model import Model
from tubelet.records import Clip, Example
from tubelet.video.stream import SLIDING, Stream, Window, Windows
from tubelet.views import each_view

Per = Literal["video", "clip", "minute"]
PER = ("video", "clip", "minute")


@dataclass(frozen=True)
class Feature:
    """One vector: what of which video it is for. Seconds are the times of the first and last frame looked at.

    vector float32 (D,), the mean over tokens (never over channels); for a whole video also the mean over its clips, for a minute
    that of its windows, each of unit length, brought to unit length again.
    """

    id: str
    path: str
    start_seconds: float
    end_seconds: float
    vector: Tensor


def embed(
    model: Model,
    examples: Sequence[Example],
    per: Per = "video",
    clips: int = 5,
    batch_size: int = 8,
    workers: int | None = None,
    on_missing: Callable[[str, str], None] | None = None,
) -> Iterator[Feature]:
    """Features of the readable Examples one after another, in their order; on_missing(id, reason) for the others.

    per "video": one Feature, the mean over `clips` windows spread evenly. per "clip": one Feature for each of the
    windows. per "minute": one for each minute of the video, from windows every half window; `clips` does not count then. What
    is held of a video: portions of its frames up to a bound, its index (60 bytes a frame, 140 while it is made), and the
    vectors of its clips or of its minutes.
    """
    if per not in PER:
        raise ConfigError(f"features per {per!r}: it must be {', '.join(map(repr, PER[:-1]))} or {PER[-1]!r}")
    if per == "minute":
        yield from _per_minute(model, examples, batch_size, workers, on_missing)
        return
    found = views(model, examples, clips, 1, batch_size, workers, on_missing)
    for view in videos(found) if per == "video" else found:
        yield feature(view)


def feature(view: View) -> Feature:
    """The View (or the average of several) as a Feature."""
    start, end = float(view.seconds.min()), float(view.seconds.max())
    return Feature(view.example.id, view.example.path, start, end, view.embedding.float())


def embed_video(model: Model, path: str | Path, clips: int = 5) -> Tensor:
    """float32 (D,) of one video file: the mean over `clips` windows. VideoError when it cannot be decoded."""
    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad():
        found = each_view(path, model.spec, clips)
        vectors = [model(view.frames[None].to(device))["embedding"][0].double().cpu() for view in found]
    return torch.stack(vectors).mean(dim=0).float()


@dataclass(frozen=True)
class Embedded:
    """One window of an Example through a model: vector float32 (D,) of unit length. It is number `place` of the `count` windows
    of that stream."""

    example: Example
    window: Window
    vector: Tensor
    place: int
    count: int


@dataclass(frozen=True)
class Finished:
    """All windows of an Example have come, or `problem` says why no more of them will."""

    example: Example
    problem: str = ""


@torch.no_grad()
def embed_windows(
    model: Model,
    examples: Iterable[Example],
    windows: Windows | Sequence[Windows] = SLIDING,
    batch_size: int = 8,
    workers: int | None = None,
    skip: Callable[[Example], int] | None = None,
) -> Generator[Embedded | Finished, None, None]:
    """Every window of every Example, in order within an Example, and a Finished after its last one.

    `workers` files are read at the same time (None: one per core), so Examples may come interleaved; with 1 they come in their
    order. Clips of several files fill a batch together. skip(example): how many of its first windows are left out. Memory stays
    flat, however long the videos are.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}: it must be 1 or more")
    device = next(model.parameters()).device
    spec, was_training = model.spec, model.training
    clip_bytes = spec.frames * spec.size**2 * 3
    read: queue.Queue[_Read] = queue.Queue(max(batch_size, AHEAD_BYTES // 4 // clip_bytes))
    todo, turn, stop = iter(examples), threading.Lock(), threading.Event()

    def put(item: _Read) -> bool:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                read.put(item, timeout=0.2)
                return True
        return False

    def reader() -> None:
        while not stop.is_set():
            with turn:
                example = next(todo, None)
            if example is None:
                break
            try:
                part = (example.start_seconds, example.end_seconds)
                with closing(Stream(example.path, spec, windows, part, skip(example) if skip else 0, example.id)) as stream:
                    for place, (window, clip) in enumerate(stream):
                        if not put((example, (window, clip, place, len(stream)))):
                            return
                put((example, ""))
            except VideoError as error:
                put((example, f"{error}{mended(example.path)}"))
            except Exception as error:
                error.add_note(f"while reading {example.path}")
                put((example, error))
        put(None)

    threads = [
        threading.Thread(target=copy_context().run, args=(reader,), name="tubelet-windows")
        for _ in range(max(1, cores() if workers is None else workers))
    ]
    for thread in threads:
        thread.start()
    model.eval()
    reading, held = len(threads), list[tuple[Example, Any]]()
    try:
        while reading:
            item = read.get()
            if item is None:
                reading -= 1
            else:
                if isinstance(item[1], Exception):
                    raise item[1]
                held.append(item)
            clips = [what[1].frames for _, what in held if not isinstance(what, str)]
            if len(clips) < batch_size and reading:
                continue
            vectors = iter(unit(model(torch.stack(clips).to(device))["embedding"].cpu()) if clips else ())
            for example, what in held:
                if isinstance(what, str):
                    yield Finished(example, what)
                else:
                    yield Embedded(example, what[0], next(vectors), what[2], what[3])
            held = []
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        model.train(was_training)


# An Example with a window of it, its clip, its place and the number of windows; or with how it ended; None: a reader is done.
_Read = tuple[Example, tuple[Window, Clip, int, int] | str | Exception] | None


def unit(vectors: Tensor) -> Tensor:
    """float32 of unit length along the last dimension."""
    return F.normalize(vectors.double(), dim=-1).float()


def pool(
    start_seconds: Sequence[float], end_seconds: Sequence[float], vectors: Tensor, seconds: float | None = None
) -> list[tuple[float, float, Tensor]]:
    """(start, end, vector (D,)) of every stretch of so many `seconds` of a video, or of all of it (None): the mean of the unit
    vectors (n,D) of the windows whose middle lies in the stretch, brought to unit length again. Start and end are those of its
    windows; a stretch without a window is left out."""
    starts, ends = torch.tensor(start_seconds).double(), torch.tensor(end_seconds).double()
    place = torch.zeros(len(starts), dtype=torch.int64)
    if seconds is not None:
        place = ((starts + ends) / 2 // seconds).long()
    found = []
    for one in place.unique(sorted=True):
        own = place == one
        found.append((float(starts[own].min()), float(ends[own].max()), unit(vectors[own].double().mean(dim=0))))
    return found


def _per_minute(
    model: Model,
    examples: Sequence[Example],
    batch_size: int,
    workers: int | None,
    on_missing: Callable[[str, str], None] | None,
) -> Iterator[Feature]:
    """Features of the minutes, video by video in the order of the Examples."""
    if len({example.id for example in examples}) != len(examples):
        raise DataError("videos share an id with another: read each only once")
    held: dict[str, list[Embedded]] = {example.id: [] for example in examples}  # windows of the minute that each video is in
    minutes: dict[str, list[Feature]] = {example.id: [] for example in examples}
    done: dict[str, str] = {}
    left = list(reversed(examples))
    for event in embed_windows(model, examples, batch_size=batch_size, workers=workers):
        id, windows = event.example.id, held[event.example.id]
        # Windows come in the order of time, so the next minute's first one, or the end, closes a minute.
        if windows and (isinstance(event, Finished) or _minute_of(event) != _minute_of(windows[0])):
            minutes[id].append(_minute(windows))
            windows.clear()
        if isinstance(event, Embedded):
            windows.append(event)
            continue
        done[id] = event.problem
        while left and left[-1].id in done:
            example = left.pop()
            found = minutes.pop(example.id)
            if not done[example.id]:
                yield from found
            elif on_missing is not None:
                on_missing(example.id, done[example.id])


def _minute_of(event: Embedded) -> int:
    """The minute in which the middle of a window lies."""
    return int((event.window.start_seconds + event.window.end_seconds) / 2 // 60)


def _minute(windows: Sequence[Embedded]) -> Feature:
    """The Feature of one minute, from all its windows."""
    example, starts, ends = (
        windows[0].example,
        [one.window.start_seconds for one in windows],
        [one.window.end_seconds for one in windows],
    )
    [(start, end, vector)] = pool(starts, ends, torch.stack([one.vector for one in windows]))
    return Feature(example.id, example.path, start, end, vector)


def fingerprint(model: Model) -> str:
    """Sixteen hexadecimal digits, a hash of a model's weights: features of two fingerprints must not be compared."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
