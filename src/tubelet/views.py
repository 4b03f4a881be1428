"""The evaluation views of videos: clips spread over each, crops of every clip, in the order of the Examples.

T frames, C colours, V views.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tubelet.ahead import cores, in_order
from tubelet.datasets._prepared import mended
from tubelet.errors import ConfigError, VideoError
from tubelet.loading import extent, naming, view_bytes
from tubelet.records import Batch, Clip, ClipSpec, Example
from tubelet.video.augment import view_boxes
from tubelet.video.background import subtract_background
from tubelet.video.decode import decode_cuts, probe
from tubelet.video.guard import run
from tubelet.video.sample import view_indices

PORTION_BYTES = 64_000_000  # of one video's views made together: 26 of 16 frames of 224 pixels, usually all of them


def load_views(source: str | Path | Example, spec: ClipSpec, clips: int = 1, crops: int = 1) -> tuple[Tensor, Tensor]:
    """uint8 frames (V,T,C,size,size) and float64 seconds (V,T) of the V = clips*crops evaluation views of one video.

    Views of one clip follow each other. VideoError where the video cannot be read, ConfigError where V would be 0.
    """
    return _stack(list(each_view(source, spec, clips, crops)), spec)


def each_view(source: str | Path | Example, spec: ClipSpec, clips: int = 1, crops: int = 1) -> Iterator[Clip]:
    """The views of `load_views` one after another, each a Clip of (T,C,size,size); memory stays flat, however many there are.

    Errors as there. In a damaged video some views may come before the error does.
    """
    _check_least(1, clips=clips, crops=crops)
    for portion in _portions(spec, clips, crops):
        example = _example(source)
        yield from run(example.path, _views, example, spec, clips, crops, portion)[0]


def view_batches(
    examples: Iterable[Example],
    classes: Sequence[str],
    spec: ClipSpec,
    clips: int = 1,
    crops: int = 1,
    batch_size: int = 8,
    workers: int | None = None,
) -> Iterator[Batch]:
    """Batches of the evaluation views of every Example, in order; memory stays flat, however long or many the videos are.

    The clips*crops views of one Example follow each other (clip by clip) and may spread over batches. Labels are
    indices into `classes`, -1 for a label that is not among them, None when no class is given. Examples that cannot be
    read are named once in `Batch.skipped` of the batch they would have been in; the last batch may hold nothing else.
    ConfigError where a number is too small.

    Views beyond PORTION_BYTES are decoded in portions. Where only a later one meets the damage of an Example, some of its views
    were in batches before the one that names it: they must not be used (`evaluate.multiview.views` drops them).
    """
    _check_least(1, clips=clips, crops=crops, batch_size=batch_size)
    workers = cores() if workers is None else workers
    _check_least(0, workers=workers)
    class_index = {name: i for i, name in enumerate(classes)}
    portions = _portions(spec, clips, crops)

    def load(job: tuple[_Viewed, range]) -> tuple[_Viewed, tuple[list[Clip], bool] | None]:
        video, portion = job
        if not video.problem:
            try:
                return video, run(video.example.path, _views, video.example, spec, clips, crops, portion)
            except VideoError as error:
                video.problem = f"{error}{mended(video.example.path)}"
        return video, None

    waiting: deque[tuple[Clip, Example, bool]] = deque()
    skipped: list[tuple[str, str]] = []

    def batch() -> Batch:
        nonlocal skipped
        taken = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
        frames, seconds = _stack([clip for clip, _, _ in taken], spec)
        labels = None
        if classes:
            labels = torch.tensor([class_index.get(example.label or "", -1) for _, example, _ in taken], dtype=torch.int64)
        ids = [example.id for _, example, _ in taken]
        texts = [example.text for _, example, _ in taken if example.text]
        made = Batch(
            frames,
            seconds,
            ids,
            labels,
            skipped,
            sum(padded for _, _, padded in taken),
            texts if len(texts) == len(ids) else None,
        )
        skipped = []
        return made

    jobs = ((video, portion) for video in map(_Viewed, examples) for portion in portions)
    dropped: _Viewed | None = None
    for video, made in in_order(load, jobs, workers, len(portions[0]) * crops * view_bytes(spec)):
        if made is None:
            if video is not dropped:
                dropped = video
                while waiting and waiting[-1][1] is video.example:
                    waiting.pop()
                skipped.append((video.example.id, video.problem))
            continue
        waiting.extend((clip, video.example, made[1]) for clip in made[0])
        made = None  # or its frames would be held while the next portion comes
        while len(waiting) >= batch_size:
            yield batch()
    if waiting or skipped:
        yield batch()


@dataclass
class _Viewed:
    """An Example whose views are made in portions; none is begun after a problem."""

    example: Example
    problem: str = ""


def _portions(spec: ClipSpec, clips: int, crops: int) -> list[range]:
    """The clips of one video in stretches whose views take about PORTION_BYTES, or are those of one clip."""
    step = max(1, PORTION_BYTES // (crops * view_bytes(spec)))
    return [range(first, min(first + step, clips)) for first in range(0, clips, step)]


def _views(example: Example, spec: ClipSpec, clips: int, crops: int, portion: range) -> tuple[list[Clip], bool]:
    """The views (T,C,size,size) of those of the `clips` clips that are in `portion`, from one decode; are they padded?"""
    count, part = extent(example, None)
    with naming(example):
        windows = view_indices(count, spec, clips, part, portion)
    info = probe(example.path)
    boxes = view_boxes(info.height, info.width, spec, crops)
    cuts = [(window, box) for window, _ in windows for box in boxes]
    views = decode_cuts(example.path, cuts, (spec.size, spec.size), interpolation=spec.interpolation, id=example.id)
    if spec.background == "subtract":
        views = [replace(view, frames=subtract_background(view.frames)) for view in views]
    return views, windows[0][1]


def _check_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ConfigError(f"{name} is {value}: it must be {least} or more")


def _example(source: str | Path | Example) -> Example:
    return source if isinstance(source, Example) else Example(str(source), str(source))


def _stack(clips: list[Clip], spec: ClipSpec) -> tuple[Tensor, Tensor]:
    """Frames (V,T,C,size,size) and seconds (V,T) of V clips, even of none."""
    if not clips:
        shape = (0, spec.frames, 3, spec.size, spec.size)
        return torch.empty(shape, dtype=torch.uint8), torch.empty(0, spec.frames, dtype=torch.float64)
    # (T,H,W,C) order in memory whatever made the clips: the order of sums in a model must not depend on it.
    pixels = torch.stack([clip.frames.permute(0, 2, 3, 1) for clip in clips]).permute(0, 1, 4, 2, 3)
    return pixels, torch.stack([clip.seconds for clip in clips])
