"""What one training clip costs from file to pixels: 16 frames at stride 4 from a random start, a random box as a 224 x 224 square.

    python benchmarks/decode.py [--rounds 7] [--quick] [--json FILE]

CPU time of one thread, every task on the same clips in turn, medians over rounds: the ratios hold better than the milliseconds.
A turn is four clips of one file, one after the other, as a loader's worker makes them: the first after another task finds caches
cold.
Videos made here (240, 320 and 720 lines, a key frame every 30 and every 250 frames) and, where ../shared/data lies beside the
clone, two sets of real ones. The tasks:

decode only               libavcodec over the packets from the key frame before the window to its end, nothing converted
ours                      `tubelet.video.decode.decode_cuts`, the file's index at hand (as from the second epoch on)
ours, first time          the same and making the index
ours, approximate         without the deblocking filter (`loader.approximate`)
recipe (stand-in)         the original research recipe's work, built from what can be installed, PyAV and Pillow: decode every
                          frame up to the window's end, crop and resize each wanted frame with Pillow, make floats, normalise
recipe, seeking           the same, but decoding from the key frame before the window, the most that its decoder could save
transformers              its documented reader (PyAV from the first frame on) and its VideoMAE image processor
OpenCV, decord, torchcodec    each its own way to a frame number, then the crop with its own or Pillow's resize, uint8
4 x ...                   four boxes of one window: ours and the recipe's repeated path from one decode, and four separate decodes

`difference` is the mean absolute difference to the recipe's pixels, 0 to 255.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import measure
import numpy as np
import torch
from PIL import Image

from tubelet.records import IMAGENET_MEAN, IMAGENET_STD, ClipSpec
from tubelet.video import _index, _pyav
from tubelet.video.augment import AugmentConfig, draw_box
from tubelet.video.decode import decode_cuts, probe
from tubelet.video.resize import Box
from tubelet.video.sample import span_frames, train_indices
from tubelet.video.write import write_video

SIZES = ((240, 320), (320, 568), (720, 1280))
MADE = {f"{h}p, key frame every {gop}": (h, w, gop) for h, w in SIZES for gop in (30, 250)}
REAL = ("fights", "ucf101_20c")
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
FRAMES = 300  # ten seconds at 30 frames a second
CLIPS = 4  # of a turn
SPEC = ClipSpec(sampling="stride")
SIZE = (SPEC.size, SPEC.size)
Task = Callable[[Path, np.ndarray, Sequence[Box]], list[np.ndarray] | None]  # clips, uint8 (T,H,W,C) or normalised floats


def ours(path: Path, numbers: np.ndarray, boxes: Sequence[Box], approximate: bool = False) -> list[np.ndarray]:
    clips = decode_cuts(path, [(numbers, box) for box in boxes], SIZE, approximate=approximate)
    return [clip.frames.permute(0, 2, 3, 1).numpy() for clip in clips]


def ours_first_time(path: Path, numbers: np.ndarray, boxes: Sequence[Box]) -> list[np.ndarray]:
    _index._cache.clear()
    return ours(path, numbers, boxes)


def ours_approximate(path: Path, numbers: np.ndarray, boxes: Sequence[Box]) -> list[np.ndarray]:
    return ours(path, numbers, boxes, approximate=True)


def decode_only(path: Path, numbers: np.ndarray, boxes: Sequence[Box]) -> None:
    index = _index.read_index(str(path))
    assert index.packet is not None and index.offset is not None, "the file is not read in place"
    runs = _pyav._runs(index, numbers.tolist())
    feed = [packet for first, last in runs for packet in range(first, last + 1)]
    for _, packet, decoder in _pyav._read_packets(str(path), index, feed, {first for first, _ in runs}, approximate=False):
        decoder.decode(packet)
    decoder.decode(None)


def plain_frames(path: Path, numbers: np.ndarray, seek: bool = False) -> list[av.VideoFrame]:
    """Plain PyAV, one thread: from the first frame, or the last key frame before the window, to the last wanted one."""
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        times = _index.read_index(str(path)).stamps
        wanted = set(times[numbers].tolist())
        if seek:
            container.seek(int(times[numbers[0]]), stream=stream)
        for frame in container.decode(stream):
            if frame.pts in wanted:
                frames.append(frame)
            if frame.pts == times[numbers[-1]]:
                assert len(frames) == len(numbers)
                return frames
    raise AssertionError("the video is shorter than the clip")


def recipe_crop(images: list[Image.Image], box: Box) -> np.ndarray:
    """The recipe's transform of a clip, with floats normalised as it hands them over."""
    top, left, height, width = box
    small = [
        np.asarray(image.crop((left, top, left + width, top + height)).resize(SIZE, Image.Resampling.BILINEAR))
        for image in images
    ]
    clip = torch.from_numpy(np.stack(small)).permute(3, 0, 1, 2).float().div(255)
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    normal = clip.sub_(mean).div_(std)
    return normal.numpy()


def recipe(path: Path, numbers: np.ndarray, boxes: Sequence[Box], seek: bool = False) -> list[np.ndarray]:
    images = [frame.to_image() for frame in plain_frames(path, numbers, seek)]
    return [recipe_crop(images, box) for box in boxes]


def recipe_seeking(path: Path, numbers: np.ndarray, boxes: Sequence[Box]) -> list[np.ndarray]:
    return recipe(path, numbers, boxes, seek=True)


def separately(task: Task) -> Task:
    def run(path: Path, numbers: np.ndarray, boxes: Sequence[Box]) -> None:
        for box in boxes:
            task(path, numbers, [box])

    return run


def transformers_task() -> Task:
    from transformers import VideoMAEImageProcessorPil  # the other one wants torchvision

    processor = VideoMAEImageProcessorPil()

    def task(path: Path, numbers: np.ndarray, boxes: Sequence[Box]) -> None:
        frames = [frame.to_ndarray(format="rgb24") for frame in plain_frames(path, numbers)]
        processor(frames, return_tensors="np")

    return task


def opencv_task() -> Task:
    import cv2

    cv2.setNumThreads(1)

    def task(path: Path, numbers: np.ndarray, boxes: Sequence[Box]) -> list[np.ndarray]:
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        capture.set(cv2.CAP_PROP_POS_FRAMES, int(numbers[0]))
        wanted, frames = set(numbers.tolist()), []
        for number in range(int(numbers[0]), int(numbers[-1]) + 1):
            capture.grab()
            if number in wanted:
                frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
        return [np.stack([cv2.resize(f[t : t + h, x : x + w], SIZE) for f in frames]) for t, x, h, w in boxes]

    return task


def resized(frames: np.ndarray, box: Box) -> np.ndarray:
    top, left, height, width = box
    parts = [Image.fromarray(frame[top : top + height, left : left + width]) for frame in frames]
    return np.stack([np.asarray(part.resize(SIZE, Image.Resampling.BILINEAR)) for part in parts])


def decord_task() -> Task:
    import decord

    def task(path: Path, numbers: np.ndarray, boxes: Sequence[Box]) -> list[np.ndarray]:
        frames = decord.VideoReader(str(path), num_threads=1).get_batch(numbers).asnumpy()
        return [resized(frames, box) for box in boxes]

    return task


def torchcodec_task() -> Task:
    from torchcodec.decoders import VideoDecoder

    def task(path: Path, numbers: np.ndarray, boxes: Sequence[Box]) -> list[np.ndarray]:
        decoder = VideoDecoder(str(path), num_ffmpeg_threads=1, dimension_order="NHWC")
        frames = decoder.get_frames_at(numbers.tolist()).data.numpy()
        return [resized(frames, box) for box in boxes]

    return task


def tasks() -> tuple[dict[str, tuple[Task, int]], dict[str, str]]:
    """({name: (task, boxes it cuts)}, {name: why it cannot be run})."""
    unable = {}
    found: dict[str, tuple[Task, int]] = {
        "decode only": (decode_only, 1),
        "ours": (ours, 1),
        "ours, first time": (ours_first_time, 1),
        "ours, approximate": (ours_approximate, 1),
        "recipe (stand-in)": (recipe, 1),
        "recipe, seeking": (recipe_seeking, 1),
        "4 x ours": (ours, 4),
        "4 x recipe, one decode": (recipe, 4),
        "4 x recipe, separate": (separately(recipe), 4),
    }
    peers = {
        "transformers": transformers_task, "OpenCV": opencv_task, "decord": decord_task, "torchcodec": torchcodec_task,
    }  # fmt: skip
    for name, make in peers.items():
        try:
            found[name] = (make(), 1)
        except (ImportError, OSError, RuntimeError) as error:
            unable[name] = f"not run: {str(error).splitlines()[0]}"
    return found, unable


def compare(
    paths: list[Path], chosen: dict[str, tuple[Task, int]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """(milliseconds of CPU time a clip in each round, mean difference to Pillow's pixels) of every task; one file a round."""
    generator = torch.Generator().manual_seed(0)
    times: dict[str, list[float]] = {name: [] for name in chosen}
    differences: dict[str, list[float]] = {name: [] for name in chosen}
    for round_number in range(rounds + 1):
        path = paths[round_number % len(paths)]
        info = probe(path)
        turn = []
        for _ in range(CLIPS):
            numbers, _ = train_indices(info.frame_count, SPEC, generator)
            turn.append((numbers, [draw_box(info.height, info.width, AugmentConfig(), SPEC, generator) for _ in range(4)]))
        numbers, boxes = turn[-1]
        reference = resized(np.stack([frame.to_ndarray(format="rgb24") for frame in plain_frames(path, numbers)]), boxes[0])
        for name, (task, count) in chosen.items():
            start = time.process_time()
            for numbers, boxes in turn:
                clips = task(path, numbers, boxes[:count])
            if round_number:  # the first warms up
                times[name].append(1000 * (time.process_time() - start) / CLIPS)
            if clips is not None and clips[0].dtype == np.uint8:
                differences[name].append(float(np.abs(clips[0].astype(int) - reference).mean()))
    return times, {name: statistics.mean(values) for name, values in differences.items() if values}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one round of one video, to see that it works")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    chosen, unable = tasks()
    rows: list[measure.Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (height, width, gop) in list(MADE.items())[: 1 if args.quick else None]:
            path = Path(folder) / f"{height}_{gop}.mp4"
            write_video(path, measure.moving_texture(FRAMES, height, width), fps=30, crf=23, preset="medium", gop_frames=gop)
            rows += report(name, [path], chosen, 1 if args.quick else args.rounds)
        for name in () if args.quick else REAL:
            files = sorted((SHARED / name).rglob("*.mp4"))
            paths = [path for path in files if probe(path).frame_count >= span_frames(SPEC)][: args.rounds + 1]
            if not paths:
                print(f"not measured: the videos of {name} are not beside the clone")
                continue
            rows += report(name, paths, chosen, args.rounds)
    rows += [{"task": name, "note": why} for name, why in unable.items()]
    measure.write(args.json, "decode", rows)


def report(name: str, paths: list[Path], chosen: dict[str, tuple[Task, int]], rounds: int) -> list[measure.Row]:
    """A row for every task: beside the recipe that makes as many clips."""
    times, differences = compare(paths, chosen, rounds)
    rows: list[measure.Row] = []
    for task, (_, clips) in chosen.items():
        base = "4 x recipe, one decode" if clips == 4 else "recipe (stand-in)"
        faster = measure.ratios(times[base], times[task])
        row: measure.Row = {
            "videos": name, "task": task, "ms": statistics.median(times[task]), "clips": clips, "against": base,
            "times the recipe": statistics.median(faster), "range": measure.spread(faster),
        }  # fmt: skip
        rows.append(row | ({"difference": differences[task]} if task in differences else {}))
    return rows


if __name__ == "__main__":
    main()
