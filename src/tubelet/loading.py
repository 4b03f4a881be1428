"""Examples -> batches of clips: the same ones whatever the number of workers, ranks or restarts.

Batch k of training is a pure function of (seed, k), so a run continues at any step without a saved sampler. T frames, C colours,
H height, W width.
"""

import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from tubelet._frame_cache import AUTO_BYTES, SHARE, FrameCache, estimated_bytes, free_bytes
from tubelet.ahead import cores, in_order
from tubelet.datasets._prepared import mended
from tubelet.errors import ConfigError, DataError, VideoError
from tubelet.find import choose
from tubelet.records import Batch, Clip, ClipSpec, Dataset, Example
from tubelet.seeds import generator_for
from tubelet.share import split
from tubelet.video._index import Index, keep_index, known_index
from tubelet.video.augment import AugmentConfig, cached_short_side, draw_box, vary
from tubelet.video.decode import decode_cuts, frame_times, probe
from tubelet.video.guard import run
from tubelet.video.resize import cut, resize
from tubelet.video.sample import between, span_frames, train_indices

Result = TypeVar("Result")

SHARED_BYTES = 1_000_000  # of a batch: below it an open file for each costs more than its workers' sending


@dataclass(frozen=True)
class LoaderConfig:
    """How clips reach the model.

    batch_size  clips per batch; where several processes train together, of all of them: each makes its share
    repeats     clips taken from each decoded video, near each other in time; divides batch_size
    workers     threads that prepare batches ahead, each with a process that reads files; 0: none; None: one per core
    cache       "ram" keeps decoded videos in memory, scaled to what the crops need; "off" decodes every clip anew and cuts it
                out of the file's own pixels; "auto": "ram" where the videos take at most 4 GB, whatever the machine
    approximate leave out the decoder's deblocking filter: faster, with other pixels; never in evaluation
    """

    batch_size: int = 8
    repeats: int = 1
    workers: int | None = None
    cache: Literal["auto", "ram", "off"] = "auto"
    approximate: bool = False

    def __post_init__(self) -> None:
        choose(self.cache, ("auto", "ram", "off"), "loader.cache")
        if self.batch_size < 1 or self.repeats < 1 or self.batch_size % self.repeats:
            raise ConfigError(
                f"loader.batch_size is {self.batch_size} and loader.repeats {self.repeats}: repeats must divide batch_size"
            )
        if self.workers is not None and self.workers < 0:
            raise ConfigError(f"loader.workers is {self.workers}: it must be 0 or more")

    @property
    def decoding(self) -> str:
        """How frames are decoded, as runs and their reports say it."""
        return "approximately (no deblocking)" if self.approximate else "exact"


class TrainLoader:
    """Batches of augmented training clips.

    The Examples form one endless stream, a new permutation each epoch, and batch k takes the positions that follow from
    k. Of its videos each of `world` processes makes one stretch, in order of rank; the first ones make one more where it
    does not divide. A video that cannot be read is left out of its batch and named in `Batch.skipped`, so a batch may
    hold fewer clips than asked, even none. Labels are indices into `dataset.classes`, or None where an Example has no
    label. `pinned`: frames in memory from which a GPU can copy while it computes. `neighbours`: processes on this machine,
    which share its memory and cores.
    """

    def __init__(
        self,
        dataset: Dataset,
        spec: ClipSpec,
        augment: AugmentConfig,
        config: LoaderConfig,
        seed: int,
        rank: int = 0,
        world: int = 1,
        pinned: bool = False,
        neighbours: int = 1,
    ) -> None:
        if not dataset.examples:
            raise DataError("there is no video to train on")
        if config.batch_size // config.repeats < world:
            raise ConfigError(
                f"loader.batch_size is {config.batch_size}, with {config.repeats} clips a video (loader.repeats) fewer than one "
                f"video for each of {world} processes: raise it, or start fewer processes"
            )
        if augment.flip and not dataset.may_flip:
            raise ConfigError(
                "augment.flip is on, but in this data a mirrored clip may show another class (such as left and right): "
                "turn it off"
            )
        self.cache_bytes = 0  # about what the decoded videos will take; 0 without a cache
        cache = None
        if config.cache != "off":
            short_side = cached_short_side(spec, augment)
            needed = estimated_bytes(dataset.examples, short_side)
            if config.cache == "ram" or needed <= AUTO_BYTES:
                cache = FrameCache(short_side, spec.interpolation, int(free_bytes() // neighbours * SHARE), config.approximate)
                cache.check(needed)
                self.cache_bytes = needed
        self.workers = max(1, cores() // neighbours) if config.workers is None else config.workers
        self.pinned = pinned
        self._maker = _BatchMaker(dataset, spec, augment, config, seed, rank, world, cache)

    @property
    def steps_per_epoch(self) -> int:
        """Batches in which every video is decoded once, rounded up."""
        maker = self._maker
        return math.ceil(len(maker.dataset.examples) / maker.videos_per_batch)

    def batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        """Batches start_step .. stop_step-1, prepared ahead of time by the workers: one video at a time for each of them, straight
        into the memory of its batch."""
        steps = range(start_step, stop_step)
        maker, videos = self._maker, len(self._maker.own)
        rooms: deque[_Room] = deque()  # of batches that are begun and not yet handed over

        def jobs() -> Iterator[tuple[_Room, int, int]]:
            for step in steps:
                room = _Room(maker, self.pinned)
                rooms.append(room)
                yield from ((room, place, position) for place, position in enumerate(maker.positions(step)))

        made = in_order(lambda job: maker.fill(*job), jobs(), self.workers, maker.clip_bytes * maker.config.repeats)
        try:
            with closing(made):
                for _ in steps:
                    results = list(islice(made, videos))
                    frames = rooms[0].full()
                    rooms.popleft().close()
                    yield maker.batch(frames, results)
        finally:
            for room in rooms:
                room.close()


@dataclass
class _BatchMaker:
    """Step -> Batch."""

    dataset: Dataset
    spec: ClipSpec
    augment: AugmentConfig
    config: LoaderConfig
    seed: int
    rank: int
    world: int
    cache: FrameCache | None = None
    class_index: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.class_index = {name: i for i, name in enumerate(self.dataset.classes)}
        self.labelled = all(example.label in self.class_index for example in self.dataset.examples)
        self.captioned = all(example.text for example in self.dataset.examples)

    @property
    def videos_per_batch(self) -> int:
        return self.config.batch_size // self.config.repeats

    @property
    def own(self) -> range:
        """Which videos of a batch this process makes."""
        return split(self.videos_per_batch, self.world)[self.rank]

    @property
    def clip_bytes(self) -> int:
        return view_bytes(self.spec)

    @property
    def room_shape(self) -> tuple[int, ...]:
        """(B,T,H,W,C) of this process' share of a batch."""
        return len(self.own) * self.config.repeats, self.spec.frames, self.spec.size, self.spec.size, 3

    def positions(self, step: int) -> range:
        """Where in the endless stream of videos this process' share of batch `step` lies."""
        first = step * self.videos_per_batch + self.own.start
        return range(first, first + len(self.own))

    def example(self, position: int) -> tuple[Example, int]:
        """(Example, epoch) at a position of the stream."""
        epoch, place = divmod(position, len(self.dataset.examples))
        return self.dataset.examples[_permutation(len(self.dataset.examples), self.seed, epoch)[place]], epoch

    def fill(self, room: "_Room", place: int, position: int) -> "_Filled":
        """Write the clips of one video into their part of `room`, the `place`-th."""
        example, epoch = self.example(position)
        part = slice(place * self.config.repeats, (place + 1) * self.config.repeats)
        try:
            whole = self.cache.get(example.path) if self.cache else None
            job = (example, whole, self.spec, self.augment, self.config, self.seed, epoch)
            if room.path:
                made = _read(example.path, _clips_into, room.path, part.start * self.clip_bytes, *job)
                if room.frames is not None:
                    with open(room.path, "rb") as file:
                        file.seek(part.start * self.clip_bytes)
                        file.readinto(room.frames[part].numpy().data)
            else:
                clips = _clips(*job) if whole else _read(example.path, _clips, *job)
                assert room.frames is not None
                for frames, (clip, _) in zip(room.frames[part], clips, strict=True):
                    frames.copy_(clip.frames.permute(0, 2, 3, 1))
                made = [(clip.seconds, padded) for clip, padded in clips]
        except VideoError as error:
            return _Filled(example, [], 0, f"{error}{mended(example.path)}")
        except Exception as error:
            error.add_note(f"while reading {example.path}")
            raise
        return _Filled(example, [seconds for seconds, _ in made], sum(padded for _, padded in made))

    def batch(self, room: Tensor, filled: "list[_Filled]") -> Batch:
        """The batch of what was written into `room`, without the places of what could not be read."""
        read = [video for video in filled if not video.problem]
        if len(read) < len(filled):
            pieces = [part for part, video in zip(room.split(self.config.repeats), filled, strict=True) if not video.problem]
            room = torch.cat([room[:0], *pieces])
        seconds = [times for video in read for times in video.seconds]
        clips = [video.example for video in read for _ in video.seconds]
        labels = None
        if self.labelled:
            labels = torch.tensor([self.class_index[example.label or ""] for example in clips], dtype=torch.int64)
        return Batch(
            frames=room.permute(0, 1, 4, 2, 3),
            seconds=torch.stack(seconds) if seconds else torch.empty(0, self.spec.frames, dtype=torch.float64),
            ids=[example.id for example in clips],
            labels=labels,
            skipped=[(video.example.id, video.problem) for video in filled if video.problem],
            padded=sum(video.padded for video in read),
            texts=[example.text or "" for example in clips] if self.captioned else None,
        )


class _Room:
    """Memory for the frames of a process' share of a batch, uint8 (B,T,H,W,C).

    Where it is large it is a file without a name at `path` (Linux), into which workers write what they make: it takes less than
    half as long as sending it. It is a tensor only when it is full: workers, copies of this process, would keep an earlier one.
    frames: the memory that is filled at once, where there is no file, and pinned memory, which cannot be one.
    """

    def __init__(self, maker: _BatchMaker, pinned: bool) -> None:
        self.shape, self.path, self.frames = maker.room_shape, "", None
        if sys.platform == "linux" and not maker.cache and math.prod(self.shape) >= SHARED_BYTES:
            with suppress(OSError):  # too many files are open
                self.file = os.memfd_create("tubelet-batch")
                os.ftruncate(self.file, math.prod(self.shape))  # or torch would, and write a zero at its beginning
                self.path = f"/proc/{os.getpid()}/fd/{self.file}"
        if pinned or not self.path:
            self.frames = torch.empty(self.shape, dtype=torch.uint8, pin_memory=pinned)

    def full(self) -> Tensor:
        """All of it, once every part is written."""
        if self.frames is not None:
            return self.frames
        return torch.from_file(self.path, shared=True, size=math.prod(self.shape), dtype=torch.uint8).view(self.shape)

    def close(self) -> None:
        """No worker will write into it any more; what `full` gave stays."""
        if self.path:
            os.close(self.file)


def _read(path: str, function: Callable[..., Result], *args: Any) -> Result:
    """function(*args) by a worker, as `guard.run` has it done. What a worker found out about the file, its index, goes with every
    later job: no other one makes it again."""
    index = known_index(path)
    result, new = run(path, _with_index, path, index, function, *args)
    if new is not None:
        keep_index(path, new)
    return result


def _with_index(path: str, index: Index | None, function: Callable[..., Result], *args: Any) -> tuple[Result, Index | None]:
    """(function(*args), the index of the file where none was given)."""
    if index is not None:
        keep_index(path, index)
    result = function(*args)
    return result, known_index(path) if index is None else None


@dataclass
class _Filled:
    """What is known of one video's clips beside their pixels: seconds, float64 (T,) each; problem: why there are none."""

    example: Example
    seconds: list[Tensor]
    padded: int
    problem: str = ""


def _clips(
    example: Example, whole: Clip | None, spec: ClipSpec, augment: AugmentConfig, config: LoaderConfig, seed: int, epoch: int
) -> list[tuple[Clip, bool]]:
    """`config.repeats` augmented clips, from the frames of the `whole` video or else from one decode: (clip, was it padded)."""
    repeats = config.repeats
    generators = [generator_for(seed, "clip", epoch, example.id, i) for i in range(repeats)]
    count, part = extent(example, whole)
    if repeats > 1 and spec.sampling != "segments":
        part = _neighbourhood(count, part, 2 * span_frames(spec), generators[0])
    with naming(example):
        windows = [train_indices(count, spec, generator, part) for generator in generators]
    if whole is None:
        info = probe(example.path)
        height, width = info.height, info.width
    else:
        height, width = whole.frames.shape[-2:]
    # Drawn before anything is decoded: nothing but what lies within becomes RGB.
    boxes = [draw_box(height, width, augment, spec, generator) for generator in generators]
    size = (spec.size, spec.size)
    if whole is None:
        cuts = [(window, box) for (window, _), box in zip(windows, boxes, strict=True)]
        clips = decode_cuts(
            example.path, cuts, size, interpolation=spec.interpolation, approximate=config.approximate, id=example.id
        )
    else:
        places = [torch.from_numpy(window) for window, _ in windows]
        clips = [
            Clip(resize(cut(whole.frames, box, place), size, spec.interpolation), whole.seconds[place], example.id)
            for place, box in zip(places, boxes, strict=True)
        ]
    return [
        (replace(clip, frames=vary(clip.frames, augment, spec, generator)), padded)
        for clip, generator, (_, padded) in zip(clips, generators, windows, strict=True)
    ]


def _clips_into(path: str, offset: int, *job: Any) -> list[tuple[Tensor, bool]]:
    """(seconds, was it padded) of `_clips`, whose frames are written into the file at `path` from `offset` on."""
    made = _clips(*job)
    with open(path, "r+b") as file:
        file.seek(offset)
        for clip, _ in made:
            file.write(clip.frames.permute(0, 2, 3, 1).contiguous().numpy().data)
    return [(clip.seconds, padded) for clip, padded in made]


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> list[int]:
    order: list[int] = torch.randperm(count, generator=generator_for(seed, "order", epoch)).tolist()
    return order


def _neighbourhood(count: int, part: tuple[int, int] | None, frames: int, generator: torch.Generator) -> tuple[int, int] | None:
    """A random stretch of at most `frames` frames: clips of one decode lie near each other, or a long video costs
    several."""
    start, end = part or (0, count)
    if end - start <= frames:
        return part
    start += int(torch.randint(end - start - frames + 1, (), generator=generator))
    return start, start + frames


def view_bytes(spec: ClipSpec) -> int:
    return spec.frames * spec.size**2 * 3


@contextmanager
def naming(example: Example) -> Iterator[None]:
    """Puts the file in front of what is wrong with its number of frames."""
    try:
        yield
    except VideoError as error:
        raise VideoError(f"{example.path}: {error}") from error


def extent(example: Example, whole: Clip | None) -> tuple[int, tuple[int, int] | None]:
    """(frames of the file, [first, end) of the Example's part of it); None where the Example is the whole file."""
    count = probe(example.path).frame_count if whole is None else len(whole.frames)
    if example.start_seconds is None and example.end_seconds is None:
        return count, None
    times = frame_times(example.path) if whole is None else whole.seconds
    with naming(example):
        part = between(times.numpy(), example.start_seconds, example.end_seconds)
    return count, (part.start, part.stop)
