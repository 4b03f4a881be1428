"""How long one training clip takes from file to pixels: 16 frames at stride 4 from a random start, as a 224 x 224 square.

    python benchmarks/decode.py [--rounds 9] [--json FILE]

Ours (`tubelet.video.decode`, with the file's index at hand and without) against transformers' VideoMAE image processor on
frames decoded by plain PyAV, and against a stand-in for the original recipe: decode everything up to the window's end, resize
every wanted frame with PIL. One process, interleaved, medians over rounds; the ratios hold better than the milliseconds. The videos
are made here. The squares differ in how they are cut (ours squeezes, the others cut the centre), not in size.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

from tubelet.records import ClipSpec
from tubelet.video import _index
from tubelet.video.decode import decode, probe
from tubelet.video.sample import train_indices
from tubelet.video.write import write_video

VIDEOS = {"320p, key frame every 12": (240, 320, 12), "320p, every 250": (240, 320, 250), "720p, every 250": (720, 1280, 250)}
FRAMES = 300  # ten seconds at 30 frames a second
Task = Callable[[Path, np.ndarray], object]


def moving_texture(frames: int, height: int, width: int) -> torch.Tensor:
    """uint8 (T,3,H,W): a sharp random texture that slides, with some noise, so that it compresses like video does."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(3, 1, height // 8 + 40, width // 8 + 40, generator=generator)
    texture = torch.nn.functional.interpolate(small, scale_factor=8, mode="bilinear")[:, 0] * 255
    clip = torch.empty(frames, 3, height, width, dtype=torch.uint8)
    for t in range(frames):
        part = texture[:, t % 300 : t % 300 + height, 2 * t % 300 : 2 * t % 300 + width]
        clip[t] = (part + 4 * torch.randn(1, height, width, generator=generator)).clamp(0, 255).to(torch.uint8)
    return clip


def ours(path: Path, numbers: np.ndarray) -> object:
    return decode(path, numbers, size=(224, 224)).frames


def ours_without_index(path: Path, numbers: np.ndarray) -> object:
    _index._cache.clear()
    return decode(path, numbers, size=(224, 224)).frames


def plain_frames(path: Path, numbers: np.ndarray) -> list[av.VideoFrame]:
    """Plain PyAV, one thread: from the first frame to the last wanted one."""
    wanted, frames = set(numbers.tolist()), []
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                frames.append(frame)
            if number == numbers[-1]:
                return frames
    raise AssertionError("the video is shorter than the clip")


def original_recipe(path: Path, numbers: np.ndarray) -> object:
    images = [frame.to_image() for frame in plain_frames(path, numbers)]
    short = min(images[0].size)
    left, top = (images[0].width - short) // 2, (images[0].height - short) // 2
    box = (left, top, left + short, top + short)
    return np.stack([np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR, box=box)) for image in images])


def image_processor() -> Task:
    from transformers import VideoMAEImageProcessorPil  # the other one wants torchvision

    processor = VideoMAEImageProcessorPil(do_rescale=False, do_normalize=False)

    def task(path: Path, numbers: np.ndarray) -> object:
        frames = [frame.to_ndarray(format="rgb24") for frame in plain_frames(path, numbers)]
        return processor(frames, return_tensors="np")["pixel_values"]

    return task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tasks: dict[str, Task] = {
        "original recipe": original_recipe,
        "transformers": image_processor(),
        "ours, first time": ours_without_index,
        "ours": ours,
    }
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (height, width, gop) in VIDEOS.items():
            path = Path(folder) / "video.mp4"
            write_video(path, moving_texture(FRAMES, height, width), fps=30, crf=23, preset="medium", gop_frames=gop)
            assert probe(path).frame_count == FRAMES
            results[name] = measure(path, tasks, args.rounds)
            print(f"{name} ({path.stat().st_size / 1e6:.1f} MB)")
            slowest = results[name]["original recipe"]
            for task, milliseconds in results[name].items():
                print(f"  {task:18s} {milliseconds:8.1f} ms a clip   {slowest / milliseconds:5.2f} x the original recipe")
    if args.json:
        versions = {"av": av.__version__, "torch": torch.__version__}
        args.json.write_text(json.dumps({"milliseconds": results, "versions": versions}, indent=1))


def measure(path: Path, tasks: dict[str, Task], rounds: int) -> dict[str, float]:
    """Median milliseconds a clip; in every round each task decodes the same clip, from the same random start."""
    generator = torch.Generator().manual_seed(0)
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for round_number in range(rounds + 1):
        numbers, _ = train_indices(FRAMES, ClipSpec(sampling="stride"), generator)
        for name, task in tasks.items():
            start = time.perf_counter()
            task(path, numbers)
            if round_number:  # the first warms up
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
