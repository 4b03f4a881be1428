"""How time and memory grow: with frames, pixels, mask ratio and batch of a pretraining step, videos of a set, length of a video.

    python benchmarks/growth.py [--rounds 3] [--quick] [--json FILE]

Every point is measured in a process of its own, which is a copy of this one: processor time of one call after one that warms
up, and the peak of memory above what the copy held after the least of its kind (a step of 4 tokens, a set of one video, a
video of 10 seconds). Rounds go through all points; medians. The exponent p of a curve says y ~ x^p: 0 is constant, 1 linear,
2 quadratic. Whole videos as vectors are cut to 112 pixels, so that what is read ahead up to a bound (`views.PORTION_BYTES`,
`ahead.AHEAD_BYTES`) is full after some minutes of video, and what grows beyond is seen. The process that decodes, which holds the
index, is not in it. The model is small so that it is quick: VideoMAE of width 96, depth 4, patch 8, tubelet 2.
Videos of a set are links to one small file.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import measure
import torch

from tubelet import ClipSpec, datasets, features, models
from tubelet.loading import LoaderConfig, TrainLoader
from tubelet.objectives import masked
from tubelet.records import Batch, Dataset, Example
from tubelet.train import optim
from tubelet.train.config import OptimConfig
from tubelet.video import _index
from tubelet.video.augment import AugmentConfig
from tubelet.video.decode import decode, probe

MODEL = dict(width=96, depth=4, heads=3, decoder_width=48, decoder_depth=2, decoder_heads=3, patch=8, tubelet=2)
STEP = {"frames": 16, "size": 64, "ratio": 0.75, "batch": 4}  # what is held while one of them varies
FPS = 25
LEAST_MEGABYTES = 1.0  # a peak below it is written as this: it is within what the allocator does at random
SMALL = ClipSpec(frames=8, sampling="stride", size=32)
LONG = ClipSpec(frames=8, sampling="stride", size=112)
# beginning of a curve's name -> what x counts
UNITS = {
    "step: frames": "frames", "step: pixels": "pixels", "step: share": "of 1", "step: clips": "clips", "set": "videos",
    "video": "seconds",
}  # fmt: skip
Point = Callable[[], float]  # gives its seconds
Curves = dict[str, tuple[Point, dict[float, Point]]]  # name -> (what loads all that it needs, its points by x)


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    rows: list[measure.Row] = []
    with tempfile.TemporaryDirectory() as name:
        curves = {**steps(options.quick), **sets(Path(name), options.quick), **lengths(Path(name), options.quick)}
        points = {
            (curve, x): partial(measure.alone, point, least)
            for curve, (least, line) in curves.items()
            for x, point in line.items()
        }
        found = measure.in_turn(points, options.rounds)
    for (curve, x), values in found.items():
        unit = next(unit for name, unit in UNITS.items() if curve.startswith(name))
        peak_megabytes = max(LEAST_MEGABYTES, statistics.median(peak for _, peak in values) / 1e6)
        milliseconds = 1000 * statistics.median(seconds for seconds, _ in values)
        rows.append({"curve": curve, "x": x, "unit": unit, "ms": milliseconds, "peak MB": peak_megabytes})
    measure.write(options.json, "growth", rows)
    print(measure.table(exponents(rows)))


def exponents(rows: list[measure.Row]) -> list[measure.Row]:
    """For each curve the exponents p of time and of memory: over all of it, and between its last two points."""
    summary = []
    for curve in dict.fromkeys(row["curve"] for row in rows):
        line = [row for row in rows if row["curve"] == curve]
        x = [row["x"] for row in line]
        summary.append({"curve": curve, "x": f"{measure.number(x[0])}-{measure.number(x[-1])} {line[0]['unit']}"})
        for what, column in (("time", "ms"), ("memory", "peak MB")):
            y = [row[column] for row in line]
            summary[-1] |= {
                f"{what}, p": measure.exponent(x, y),
                f"{what}, p at the end": measure.exponent(x[-2:], y[-2:]),
            }
    return summary


def again(call: Callable[[], object], times: int = 1) -> float:
    """Processor seconds of one call, the mean of `times`, after one that warms up."""
    call()
    begun = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - begun) / times


# A pretraining step ---------------------------------------------------------------------------------------------------


def steps(quick: bool) -> Curves:
    """A whole step (forward, backward, AdamW) from uint8 clips, against each number that sets its size."""
    values: dict[str, list[float]] = {
        "frames": [8, 16, 32, 64], "size": [32, 64, 96, 128], "ratio": [0.95, 0.9, 0.75, 0.5], "batch": [1, 2, 4, 8, 16],
    }  # fmt: skip
    titles = {"frames": "frames a clip", "size": "pixels a side", "ratio": "share of tokens seen", "batch": "clips a batch"}
    if quick:
        values = {name: line[:2] for name, line in values.items()}
    return {
        f"step: {titles[name]}": (
            partial(step, frames=2, size=16, ratio=0.75, batch=1),
            # 1 - ratio is what costs.
            {round(1 - x, 4) if name == "ratio" else x: partial(step, **{**STEP, name: x}) for x in line},
        )
        for name, line in values.items()
    }


def step(frames: int, size: int, ratio: float, batch: int) -> float:
    spec, generator = ClipSpec(frames=frames, size=size), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = models.build("videomae_tiny", spec, **MODEL)
    optimizer = optim.adamw(model, OptimConfig(lr=1e-4))
    clips = torch.randint(256, (batch, frames, 3, size, size), dtype=torch.uint8, generator=generator)
    config = masked.MaskedConfig(mask="random", ratio=ratio)

    def call() -> None:
        masked.loss(model, Batch(clips, torch.empty(0), []), config, generator)[0].backward()
        optimizer.step()
        optimizer.zero_grad()

    return again(call)


# Videos of a set ------------------------------------------------------------------------------------------------------


def sets(folder: Path, quick: bool) -> Curves:
    """What it takes to start with 10^2 to 10^5 videos: from a table, from a folder, and from either to the first batch."""
    counts = [1, *([100, 1000] if quick else [100, 1_000, 10_000, 100_000])]  # 1 only loads what the others need
    video = measure.make_video(folder / "video.mp4", 40, 48, 64, FPS)
    for count in counts:
        for label in range(10):
            (folder / f"{count}" / f"class{label}").mkdir(parents=True)
        for number in range(count):
            os.symlink(video, folder / f"{count}" / f"class{number % 10}" / f"{number}.mp4")
        rows = "".join(f"{count}/class{number % 10}/{number}.mp4,{number % 10}\n" for number in range(count))
        (folder / f"{count}.csv").write_text("path,label\n" + rows)
    lines: dict[str, dict[float, Point]] = {
        "a table is read": {n: partial(once, partial(datasets.read, folder / f"{n}.csv")) for n in counts},
        "a folder is read": {n: partial(once, partial(datasets.read, folder / f"{n}")) for n in counts},
        "from a table to the first batch": {n: partial(first_batch, folder / f"{n}.csv") for n in counts},
    }
    return {f"set: {name}": (line.pop(1), line) for name, line in lines.items()}


def once(call: Callable[[], object]) -> float:
    begun = measure.cpu_seconds()
    kept = call()
    seconds = measure.cpu_seconds() - begun
    del kept
    return seconds


def first_batch(table: Path) -> float:
    return once(lambda: next(iter(loader_of(datasets.read(table)).batches(0, 1))))


def loader_of(dataset: Dataset) -> TrainLoader:
    return TrainLoader(dataset, SMALL, AugmentConfig(), LoaderConfig(batch_size=8, workers=0, cache="off"), seed=0)


# Length of a video ----------------------------------------------------------------------------------------------------


def lengths(folder: Path, quick: bool) -> Curves:
    """One clip from the end of longer and longer videos, and every second of them as a vector. x is seconds."""
    seconds = [10, *([20, 40] if quick else [40, 160, 640, 2560])]  # 10 only loads what the others need
    paths = {x: str(measure.make_long_video(folder / f"long{x}.mp4", x, 48, 64, FPS)) for x in seconds}
    torch.manual_seed(0)
    model = models.build("videomae_tiny", LONG, **{**MODEL, "depth": 1, "patch": 16})
    lines: dict[str, dict[float, Point]] = {
        "one clip": {x: partial(clip_at_end, path) for x, path in paths.items()},
        "one clip of a file never seen": {x: partial(clip_of_new_file, path) for x, path in paths.items()},
        "a vector a second": {x: partial(embed_all, model, path, "clip", x) for x, path in paths.items()},
        "a vector a minute": {x: partial(embed_all, model, path, "minute", x) for x, path in paths.items()},
    }
    return {f"video: {name}": (line.pop(10), line) for name, line in lines.items()}


def clip_at_end(path: str) -> float:
    count = probe(path).frame_count
    return again(lambda: decode(path, range(count - 32, count, 4)), times=20)


def clip_of_new_file(path: str) -> float:
    def call() -> None:
        _index._cache.clear()
        count = probe(path).frame_count
        decode(path, range(count - 32, count, 4))

    return again(call, times=5)


def embed_all(model: torch.nn.Module, path: str, per: features.Per, seconds: int) -> float:
    """One clip a second (per clip), or all windows of every minute; the vectors are let go as they come."""

    def call() -> None:
        for _ in features.embed(model, [Example(path, path)], per, clips=seconds, batch_size=8, workers=0):
            pass

    return once(call)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each point is measured")
    parser.add_argument("--quick", action="store_true", help="one round of the two smallest points of each curve")
    parser.add_argument("--json", type=Path, help="where to keep the rows")
    options = parser.parse_args()
    if options.quick:
        options.rounds = 1
    return options


if __name__ == "__main__":
    main()
