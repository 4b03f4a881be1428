"""How long one training clip takes from the file as it is, and from the copy that `tubelet prepare` makes of it.

    python benchmarks/prepare.py [--rounds 15] [--json FILE] [--videos FILE ...] [--sizes 320p]

A clip is 16 frames at stride 4 from a random start (`stride`), or one frame of each sixteenth (`segments`), a random-resized
crop to 224 pixels. "research recipe" stands in for the original code: plain PyAV decodes everything up to the window's end,
PIL cuts and resizes every wanted frame, and the worker makes floats of them and normalises. "original" is our exact path from
the same file, "prepared" and what follows the same code on the copies. CPU time of one thread, one process, all in turn on the
same clips, four at a turn, medians; the ratios hold better than the milliseconds.
Unless videos are named they are made here, ten seconds of a moving texture with noise, which no copy compresses well, and, where
../shared/data lies beside the clone, four real ones; that of 320 lines is a larger one, scaled and encoded again here as published
sets are (x264 medium, crf 23, a key frame every 250). Sizes and PSNR are those that the command prints.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import measure
import numpy as np
import torch
from PIL import Image

from tubelet.prepare import PrepareConfig, prepare
from tubelet.records import IMAGENET_MEAN, IMAGENET_STD, ClipSpec
from tubelet.video.augment import AugmentConfig, draw_box, vary
from tubelet.video.decode import decode, decode_cuts, probe
from tubelet.video.sample import train_indices
from tubelet.video.write import write_video

MADE = {"240p": (240, 320), "320p": (320, 568), "720p": (720, 1280)}
REAL = {
    "real, 240p": "fights/*/*.mp4",
    "real, 320p": "odd_files/golfdb/test_video.mp4",
    "real, 720p": "odd_files/drewnoakes/mp4/Issue 515 (java).mp4",
    "real, 1080p": "odd_files/mmaction2/demo/demo_skeleton.mp4",
}
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
COPIES = {
    "prepared": PrepareConfig(),
    "prepared, short side 192": PrepareConfig(short_side=192),
    "prepared, short side 160": PrepareConfig(short_side=160),
    "prepared, every frame a key frame": PrepareConfig(gop_frames=1),
}
PUBLISHED: dict[str, Any] = dict(crf=23, preset="medium", gop_frames=250)  # how such videos are mostly encoded
AUGMENT = AugmentConfig()
CLIPS = 4  # of a turn, one after the other, as a loader's worker makes them
Task = Callable[[str, np.ndarray, ClipSpec, int], object]


def ours(path: str, numbers: np.ndarray, spec: ClipSpec, seed: int) -> object:
    """What the loader does for a clip (`loading._BatchMaker`): uint8 (T,3,224,224)."""
    info, generator = probe(path), torch.Generator().manual_seed(seed)
    box = draw_box(info.height, info.width, AUGMENT, spec, generator)
    clip = decode_cuts(path, [(numbers, box)], (spec.size, spec.size), interpolation=spec.interpolation)[0]
    return vary(clip.frames, AUGMENT, spec, generator)


def research_recipe(path: str, numbers: np.ndarray, spec: ClipSpec, seed: int) -> object:
    """float32 (T,3,224,224), normalised."""
    wanted, images = set(numbers.tolist()), []
    with av.open(path) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                images.append(frame.to_image())
            if number == numbers[-1]:
                break
    random = np.random.default_rng(seed)
    width, height = images[0].size
    area, ratio = random.uniform(0.5, 1) * width * height, np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
    w, h = min(width, round((area * ratio) ** 0.5)), min(height, round((area / ratio) ** 0.5))
    left, top = random.integers(width - w + 1), random.integers(height - h + 1)
    box = (left, top, left + w, top + h)
    size = (spec.size, spec.size)
    pixels = np.stack([np.asarray(image.crop(box).resize(size, Image.Resampling.BILINEAR)) for image in images])
    floats = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return (floats - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--videos", type=Path, nargs="+", default=[])
    parser.add_argument("--sizes", nargs="+", default=list(MADE), choices=list(MADE), help="of the videos made here")
    parser.add_argument("--frames", type=int, default=300, help="of the videos made here, at 30 a second")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[measure.Row] = []
    with tempfile.TemporaryDirectory() as folder:
        sources = {path.name: path for path in args.videos} or make(Path(folder) / "sources", args)
        for name, path in sources.items():
            rows += compare(name, path, Path(folder) / "copies" / name, args.rounds)
    measure.write(args.json, "prepare", rows)


def make(folder: Path, args: argparse.Namespace) -> dict[str, Path]:
    folder.mkdir()
    for name in args.sizes:
        clip = measure.moving_texture(args.frames, *MADE[name])
        write_video(folder / f"{name}.mp4", clip, fps=30, **PUBLISHED)
    made = {name: folder / f"{name}.mp4" for name in args.sizes}
    if set(args.sizes) < set(MADE):
        return made
    real = {name: path for name, pattern in REAL.items() if (path := min(SHARED.glob(pattern), default=None)) is not None}
    if "real, 320p" in real:
        real["real, 320p"] = scaled(real["real, 320p"], folder / "real_320p.mp4", 320)
    return made | real


def scaled(path: Path, out: Path, short_side: int) -> Path:
    """The same video, smaller."""
    frames = decode(path, short_side=short_side).frames
    height, width = (side // 2 * 2 for side in frames.shape[-2:])
    write_video(out, frames[..., :height, :width], fps=probe(path).fps, **PUBLISHED)
    return out


def compare(name: str, path: Path, folder: Path, rounds: int) -> list[measure.Row]:
    """Rows of one source: how large each copy is and how fast clips are cut from it."""
    files, facts = {"research recipe": str(path), "original": str(path)}, {}
    for copy, config in COPIES.items():
        facts[copy] = prepare(path, folder / copy, config, workers=1).made[0]
        files[copy] = str(folder / copy / facts[copy].path)
    times: dict[tuple[str, str], list[float]] = {}
    count = probe(path).frame_count
    specs = {"stride": ClipSpec(sampling="stride"), "segments": ClipSpec(sampling="segments")}
    for number in range(-1, rounds):  # the first warms up: files are indexed once
        for sampling, spec in specs.items():
            seeds = range(CLIPS * (number + 1), CLIPS * (number + 2))
            turn = [(train_indices(count, spec, torch.Generator().manual_seed(seed))[0], seed) for seed in seeds]
            for task, file in files.items():
                cut: Task = research_recipe if task == "research recipe" else ours
                start = time.thread_time()
                for numbers, seed in turn:
                    cut(file, numbers, spec, seed)
                if number >= 0:
                    times.setdefault((sampling, task), []).append(1000 * (time.thread_time() - start) / CLIPS)
    rows: list[measure.Row] = []
    for (sampling, task), values in times.items():
        faster = measure.ratios(times[sampling, "research recipe"], values)
        row: measure.Row = {
            "source": name,
            "sampling": sampling,
            "task": task,
            "ms": statistics.median(values),
            "times the recipe": statistics.median(faster),
            "range": measure.spread(faster),
            "MB": os.path.getsize(files[task]) / 1e6,
        }
        if task in facts:
            row["PSNR, dB"] = facts[task].psnr_db
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
