"""Long videos with known moments: the clips of one scene back to back, and tables that say what is where.

    python examples/plant_gestures.py LABELS.csv OUT

LABELS.csv has the columns path, label, group (the scene) and split (train or val). Written to OUT:

    videos/SCENE-N.mp4   the clips of a scene in random order, 12 frames a second, 160x120
    moments.csv          path, text (the question: the label), start, end, split: one row a planted clip
    windows.csv          path, label, start, end, split: what a classifier of windows learns from. A window that is nearly a
                         clip (IoU of 0.7 or more) has its label, one that is not (below 0.45) the label "between"
    captions.csv         the rows of windows.csv with a sentence in place of the label, for `tubelet align`
    sentences.csv        the rows of moments.csv with these sentences as questions

A scene stays on one side of the split, so that a model is asked about places that it never saw.
"""

import csv
import random
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from tubelet.video.decode import decode, probe
from tubelet.video.write import write_video

SENTENCES = {
    "up": "the hand moves up",
    "down": "the hand moves down",
    "left": "the hand moves to the left",
    "right": "the hand moves to the right",
    "circlecc": "the hand draws a circle",
    "del": "the hand crosses something out",
    "square": "the hand draws a square",
    "star": "the hand draws a star",
    "tick": "the hand ticks something off",
    "carret": "the hand draws an arrow head",
    "between": "one thing ends and another begins",
}
FPS, SIZE, MOST, ORDERS = 12, (120, 160), 12, 2


def main(table: str, out: str) -> None:
    rng = random.Random(0)
    root, out_folder = Path(table).parent, Path(out)
    (out_folder / "videos").mkdir(parents=True, exist_ok=True)
    scenes = defaultdict(list)
    with open(table, newline="") as file:
        for row in csv.DictReader(file):
            scenes[row["split"], row["group"]].append(row)
    moments, windows = [], []
    for (split, scene), rows in sorted(scenes.items()):
        number = 0
        for _ in range(ORDERS if split == "train" else 1):
            rng.shuffle(rows)
            pieces = max(1, round(len(rows) / MOST))
            for piece in range(pieces):
                number += 1
                name = f"videos/{scene}-{number}.mp4"
                planted = plant(root, out_folder / name, rows[piece::pieces])
                moments += [(name, label, f"{start:.3f}", f"{end:.3f}", split) for label, start, end in planted]
                windows += [(name, label, f"{start:.3f}", f"{end:.3f}", split) for label, start, end in cut(planted, rng)]
    said = [[(name, SENTENCES[label], *rest) for name, label, *rest in rows] for rows in (windows, moments)]
    tables = [("moments.csv", moments, "text"), ("windows.csv", windows, "label")]
    for name, rows, column in [*tables, ("captions.csv", said[0], "text"), ("sentences.csv", said[1], "text")]:
        with open(out_folder / name, "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("path", column, "start", "end", "split"), *rows])
    print(f"{out}: {len(moments)} moments, {len(windows)} windows")


def plant(root: Path, path: Path, rows: list[dict[str, str]]) -> list[tuple[str, float, float]]:
    """Write one long video; (label, start, end) in seconds of every clip in it."""
    frames, planted, count = [], [], 0
    for row in rows:
        source = root / row["path"]
        times = np.arange(0, probe(source).duration_seconds - 1e-6, 1 / FPS)
        clip = decode(source, seconds=times, size=SIZE)
        frames.append(clip.frames)
        planted.append((row["label"], count / FPS, (count + len(times)) / FPS))
        count += len(times)
    write_video(path, frames, fps=FPS, gop_frames=FPS)
    return planted


def cut(planted: list[tuple[str, float, float]], rng: random.Random) -> list[tuple[str, float, float]]:
    """For every planted clip itself, two windows that nearly are it and three that are not."""
    end = planted[-1][2]
    found = list(planted)
    for label, a, b in planted:
        near = far = 0
        while near < 2:
            start, stop = a + rng.uniform(-0.3, 0.3) * (b - a), b + rng.uniform(-0.3, 0.3) * (b - a)
            if start >= 0 and stop <= end and overlap(start, stop, a, b) >= 0.7:
                found.append((label, start, stop))
                near += 1
        while far < 3:
            length = 2 ** rng.uniform(0, 3)
            start = rng.uniform(max(0, a - length), min(b, end - length)) if end > length else 0
            if start + length <= end and max(overlap(start, start + length, x, y) for _, x, y in planted) < 0.45:
                found.append(("between", start, start + length))
                far += 1
    return found


def overlap(a: float, b: float, x: float, y: float) -> float:
    """Intersection over union of two spans of seconds."""
    shared = max(0.0, min(b, y) - max(a, x))
    return shared / (b - a + y - x - shared)


if __name__ == "__main__":
    main(*sys.argv[1:])
