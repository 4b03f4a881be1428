"""Several views of every video, averaged: `clips` windows in time x `crops` in space (5 x 3 on Kinetics, 2 x 3 on
SSv2).

PROBABILITIES are averaged, not logits, and embeddings are averaged as they are; one view equals a plain forward pass.
A video that cannot be read is named with its reason and left out of every average, never replaced.

V views, T frames, M videos, K classes, D embedding width.
"""

import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tubelet.errors import DataError
from tubelet.models._model import Model
from tubelet.records import ClipSpec, Example
from tubelet.views import view_batches


@dataclass(frozen=True)
class View:
    """One view of one video through a model: seconds float64 (T,) of its frames, embedding (D,), probabilities (K,)
    or None."""

    example: Example
    seconds: Tensor
    embedding: Tensor
    probabilities: Tensor | None


@dataclass(frozen=True)
class Looks:
    """What a model makes of many videos, every row the average of the video's views.

    examples are those that could be read, in the order given; probabilities float64 (M,K) or None for a model
    without classes; embeddings float64 (M,D); seconds: for each video its views' frame times (V,T), V = clips x crops;
    missing: (id, reason) of the rest.
    """

    examples: tuple[Example, ...]
    probabilities: Tensor | None
    embeddings: Tensor
    seconds: tuple[Tensor, ...]
    missing: tuple[tuple[str, str], ...]
    seconds_taken: float
    clips: int
    crops: int
    precision: str = "fp32"  # of the model


def crops_of(spec: ClipSpec, asked: int | None) -> int:
    """Crops per clip: as many as asked for; left open (None) 3, or 1 where a view is the whole frame (fit="stretch")."""
    return asked if asked is not None else 1 if spec.fit == "stretch" else 3


@torch.no_grad()
def views(
    model: Model,
    examples: Sequence[Example],
    clips: int = 1,
    crops: int = 1,
    batch_size: int = 8,
    workers: int | None = None,
    on_missing: Callable[[str, str], None] | None = None,
    spec: ClipSpec | None = None,
    arrange: Callable[[Tensor, Sequence[str]], Tensor] | None = None,
) -> Iterator[View]:
    """Every view of every readable Example, video by video; on_missing(id, reason) is called for those that are not.

    Clips are cut as `spec` says, which is the model's own where it is not given; arrange(frames, ids) may put their frames,
    uint8 (B,T,C,H,W), in another order before the model sees them.

    The views of a video come when its last one is done (their vectors wait in memory, the frames do not): a long video may
    prove to be damaged in the middle, and then gives none.
    """
    by_id = {example.id: example for example in examples}
    if len(by_id) != len(examples):
        raise DataError(f"{len(examples) - len(by_id)} of {len(examples)} videos share an id with another: read each only once")
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    held: _Held | None = None  # of the video that is being read
    try:
        for batch in view_batches(examples, (), spec or model.spec, clips, crops, batch_size, workers):
            for id, reason in batch.skipped:
                if held is not None and held.example.id == id:
                    held = None
                if on_missing is not None:
                    on_missing(id, reason)
            if not batch.ids:
                continue
            frames = batch.frames if arrange is None else arrange(batch.frames, batch.ids)
            out = model(frames.to(device))
            embeddings = out["embedding"].double().cpu()
            chances = out["logits"].double().softmax(dim=-1).cpu() if "logits" in out else embeddings[:, :0]
            rows = torch.cat([batch.seconds, embeddings, chances], dim=1)  # (B,T+D+K)
            for id, row in zip(batch.ids, rows, strict=True):
                if held is not None and held.example.id != id:
                    yield from held.views()
                    held = None
                held = held or _Held(by_id[id], (batch.seconds.shape[1], embeddings.shape[1], chances.shape[1]))
                held.numbers.frombytes(row.numpy().tobytes())
        if held is not None:
            yield from held.views()
    finally:
        model.train(was_training)


@dataclass
class _Held:
    """The views of one video in one piece of memory. As small tensors they would lie scattered between the frames that come and
    go, and of those, freed, no later ones would fit in between: memory would grow by about a clip for every view.

    sizes: T, D and K (0: no classes), the numbers of one view.
    """

    example: Example
    sizes: tuple[int, int, int]
    numbers: "array[float]" = field(default_factory=lambda: array("d"))

    def views(self) -> Iterator[View]:
        for row in torch.frombuffer(self.numbers, dtype=torch.float64).view(-1, sum(self.sizes)):
            seconds, embedding, probabilities = row.split(self.sizes)
            yield View(self.example, seconds, embedding, probabilities if len(probabilities) else None)


def average(group: Sequence[View]) -> View:
    """The views of one video as one: mean embedding and mean probabilities, seconds stacked to (V,T)."""
    probabilities = None
    if group[0].probabilities is not None:
        probabilities = torch.stack([view.probabilities for view in group if view.probabilities is not None]).mean(dim=0)
    embedding = torch.stack([view.embedding for view in group]).mean(dim=0)
    return View(group[0].example, torch.stack([view.seconds for view in group]), embedding, probabilities)


def videos(found: Iterator[View]) -> Iterator[View]:
    """The average of each video's views, as soon as its last view has come (views of one video follow one another)."""
    group: list[View] = []
    for view in found:
        if group and view.example.id != group[0].example.id:
            yield average(group)
            group = []
        group.append(view)
    if group:
        yield average(group)


def look(
    model: Model,
    examples: Sequence[Example],
    clips: int = 1,
    crops: int = 1,
    batch_size: int = 8,
    workers: int | None = None,
    on_video: Callable[[int], object] | None = None,
    spec: ClipSpec | None = None,
    arrange: Callable[[Tensor, Sequence[str]], Tensor] | None = None,
) -> Looks:
    """Everything a model says about `examples`: see Looks. on_video(done) is called after each video; spec and arrange: see
    `views`.

    DataError when not one of them can be read.
    """
    started = time.perf_counter()
    missing: list[tuple[str, str]] = []
    rows: list[View] = []
    found = views(model, examples, clips, crops, batch_size, workers, lambda *pair: missing.append(pair), spec, arrange)
    for video in videos(found):
        rows.append(video)
        if on_video is not None:
            on_video(len(rows))
    if not rows:
        why = f"; the first: {missing[0][0]}: {missing[0][1]}" if missing else ""
        raise DataError(f"none of {len(examples)} videos could be read{why}")
    probabilities = [row.probabilities for row in rows if row.probabilities is not None]
    return Looks(
        examples=tuple(row.example for row in rows),
        probabilities=torch.stack(probabilities) if probabilities else None,
        embeddings=torch.stack([row.embedding for row in rows]),
        seconds=tuple(row.seconds for row in rows),
        missing=tuple(missing),
        seconds_taken=time.perf_counter() - started,
        clips=clips,
        crops=crops,
        precision=model.precision,
    )


def label_numbers(examples: Sequence[Example], class_names: Sequence[str]) -> Tensor:
    """int64 (M,): the number of each label in `class_names`; DataError naming labels that are not there, or are
    missing."""
    unlabelled = [example.id for example in examples if example.label is None]
    if unlabelled:
        raise DataError(
            f"{len(unlabelled)} of {len(examples)} videos have no label, the first is {unlabelled[0]}: nothing to compare with"
        )
    place = {name: index for index, name in enumerate(class_names)}
    unknown = sorted({str(example.label) for example in examples} - set(place))
    if unknown:
        raise DataError(
            f"labels the model never learned: {_some(unknown, 5)} (it knows {len(place)}: {_some(class_names, 8)}); "
            "evaluate on data with the same classes"
        )
    return torch.tensor([place[str(example.label)] for example in examples])


def _some(names: Sequence[str], shown: int) -> str:
    return ", ".join(map(repr, names[:shown])) + (", ..." if len(names) > shown else "")
