"""Training clips from files to the device's door: clips a second, processor time, and the share of time spent waiting for data.

    python benchmarks/load.py [--rounds 3] [--quick] [--videos FOLDER] [--json FILE]

Our TrainLoader (every clip decoded anew, from the copies of `tubelet prepare`, and with decoded videos kept in memory) against a
DataLoader around the research recipe and one around transformers' image processor (see peers.py). Same videos, batch and number
of workers; all random resized crops but the processor's, which cuts the centre. Every way is run at full speed, and before a
device that takes `--demand` clips a second and only sleeps meanwhile: what it waits for its next batch is the share. It is taken
over the second half of the batches: in the first the workers start, and all of them have run ahead of the device once.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import measure
import peers
import torch
from torch import Tensor

from tubelet import ClipSpec, datasets
from tubelet.loading import LoaderConfig, TrainLoader
from tubelet.prepare import PrepareConfig, prepare
from tubelet.records import Dataset
from tubelet.video.augment import AugmentConfig

SPEC = ClipSpec(sampling="stride")  # 16 frames at stride 4, 224 pixels
SIZES = {"320p": (320, 568), "720p": (720, 1280)}
COPIES = {"ours, prepared": PrepareConfig(), "ours, prepared, short side 160": PrepareConfig(short_side=160)}
Batches = Callable[[], Iterable[Tensor]]


@dataclass(frozen=True)
class Pass:
    """What one pass over the batches cost. bytes_clip: what a clip takes on its way from the worker."""

    clips_second: float
    cpu_clip: float
    waiting: float
    bytes_clip: int


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    rows: list[measure.Row] = []
    with tempfile.TemporaryDirectory() as folder:
        sets = {name: made(Path(folder) / name, *size, options) for name, size in SIZES.items() if name in options.sizes}
        if options.videos:
            sets[options.videos.name] = options.videos
        for name, videos in sets.items():
            copies = {way: Path(folder) / "copies" / name / way for way in COPIES}
            for way, config in COPIES.items():
                prepare(videos, copies[way], config)
            rows += compare(name, datasets.read(videos), {way: datasets.read(copy) for way, copy in copies.items()}, options)
    measure.write(options.json, "load", rows)


def compare(name: str, dataset: Dataset, prepared: dict[str, Dataset], options: argparse.Namespace) -> list[measure.Row]:
    """One row for each way of loading one set of videos."""
    ways, unable = loaders(dataset, prepared, options)
    device_seconds = options.batch / options.demand
    tasks = {way: partial(run, batches, 0.0) for way, batches in ways.items()}
    tasks |= {f"{way}, demand": partial(run, batches, device_seconds) for way, batches in ways.items()}
    passes = measure.in_turn(tasks, options.rounds)
    base = [one.cpu_clip for one in passes["research recipe"]]
    rows = []
    for way in ways:
        free, bound = passes[way], passes[f"{way}, demand"]
        faster = measure.ratios(base, [one.cpu_clip for one in free])
        rows.append(
            {
                "videos": name,
                "way": way,
                "clips/s": statistics.median(one.clips_second for one in free),
                "CPU ms a clip": 1000 * statistics.median(one.cpu_clip for one in free),
                "times the recipe": statistics.median(faster),
                "range": measure.spread(faster),
                f"waiting % at {options.demand:g} clips/s": 100 * statistics.median(one.waiting for one in bound),
                "kB a clip": free[0].bytes_clip / 1000,
            }
        )
    return rows + [{"videos": name, "way": way, "note": why} for way, why in unable.items()]


def loaders(
    dataset: Dataset, prepared: dict[str, Dataset], options: argparse.Namespace
) -> tuple[dict[str, Batches], dict[str, str]]:
    """({way: what gives its batches}, {way: why it cannot be run})."""
    paths = [example.path for example in dataset.examples]
    size = (options.batch, options.batches, options.workers)
    ways: dict[str, Batches] = {"research recipe": lambda: peers.loader(paths, SPEC, peers.recipe_cut, *size)}
    unable = {}
    if reason := measure.missing("transformers", "pip install 'tubelet[hf]'"):
        unable["transformers processor"] = reason
    else:
        processor = peers.processor_cut(SPEC)
        ways["transformers processor"] = lambda: peers.loader(paths, SPEC, processor, *size)
    copies = {way: (videos, "off") for way, videos in prepared.items()}
    own = {"ours": (dataset, "off"), **copies, "ours, kept in memory": (dataset, "ram")}
    for way, (videos, cache) in own.items():
        config = LoaderConfig(batch_size=options.batch, workers=options.workers, cache=cache)
        ours = TrainLoader(videos, SPEC, AugmentConfig(), config, seed=0)
        ways[way] = partial(our_batches, ours, options.batches)
    return ways, unable


def our_batches(loader: TrainLoader, batches: int) -> Iterator[Tensor]:
    return (batch.frames for batch in loader.batches(0, batches))


def run(batches: Batches, device_seconds: float) -> Pass:
    """Take every batch, as a device would that needs `device_seconds` for each."""
    clips, bytes_all = 0, 0
    cpu, turns = measure.cpu_seconds(), measure.Turns()
    for frames in turns.of(batches()):
        clips, bytes_all = clips + len(frames), bytes_all + frames.nbytes
        time.sleep(device_seconds)
    return Pass(clips / turns.seconds, (measure.cpu_seconds() - cpu) / clips, turns.waiting_share, bytes_all // clips)


def made(folder: Path, height: int, width: int, options: argparse.Namespace) -> Path:
    """A folder of videos of ten seconds at 30 frames a second with a key frame every 250 frames, as x264 does unless asked."""
    folder.mkdir()
    frames = 120 if options.quick else 300
    for i in range(options.count):
        measure.make_video(folder / f"{i}.mp4", frames, height, width, seed=i)
    return folder


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is run")
    parser.add_argument("--quick", action="store_true", help="one round of few short videos, to see that it works")
    parser.add_argument("--videos", type=Path, help="a folder or table of your own videos, measured too")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES), help="of the videos made here")
    parser.add_argument("--count", type=int, default=4, help="videos made of each size")
    parser.add_argument("--batch", type=int, default=4, help="clips a batch")
    parser.add_argument("--batches", type=int, default=16, help="batches a pass")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--demand", type=float, default=8, help="clips a second that the device would take")
    parser.add_argument("--json", type=Path, help="where to keep the rows")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.count, options.batches, options.batch, options.sizes = 1, 2, 4, 2, ["320p"]
    return options


if __name__ == "__main__":
    main()
