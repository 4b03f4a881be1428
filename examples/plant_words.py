"""Tables for finding words in videos of one speaker (GRID), whose mouth is where it was in the first video.

    python examples/plant_words.py LABELS.csv OUT

LABELS.csv has the columns path, words (JSON: [[start, end, word], ...] in seconds) and split (train or val). Written to OUT:

    mouths/NAME.mp4  the mouth of every video, 64x64
    moments.csv      path, text (the sentence with the word that is asked for in brackets), label (its place), start, end, split
    windows.csv      path, label (the word in the middle), start, end, split: what a reader of lips learns from. Sentences of the
                     split `val` are not in it; one in seven of the others is held out, for choosing
"""

import csv
import json
import random
import sys
from pathlib import Path

from tubelet.video.decode import decode_cuts, probe
from tubelet.video.write import write_video

MOUTH = (104, 65, 80, 80)  # row, column, height, width of the part that is kept
HALF = 0.16  # seconds on either side of the middle of a window


def main(table: str, out: str) -> None:
    rng = random.Random(0)
    folder = Path(out)
    moments, windows = [("path", "text", "label", "start", "end", "split")], [("path", "label", "start", "end", "split")]
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    chosen = {row["path"] for row in [row for row in rows if row["split"] == "train"][::7]}
    for row in rows:
        source, name = Path(table).parent / row["path"], f"mouths/{Path(row['path']).stem}.mp4"
        numbers = range(probe(source).frame_count)
        (clip,) = decode_cuts(source, [(list(numbers), MOUTH)], (64, 64))
        (folder / "mouths").mkdir(parents=True, exist_ok=True)
        write_video(folder / name, clip.frames, fps=25, gop_frames=12)
        words = json.loads(row["words"])
        side = "test" if row["split"] == "val" else "val" if row["path"] in chosen else "train"
        for place, (start, end, _) in enumerate(words):
            text = " ".join(f"[{word}]" if slot == place else word for slot, (*_, word) in enumerate(words))
            moments.append((name, text, str(place + 1), f"{start:g}", f"{end:g}", side))
        if side == "test":
            continue
        last = clip.seconds[-1].item() - HALF
        for start, end, word in [(0, words[0][0], "silence"), *words, (words[-1][1], last, "silence")]:
            for _ in range(1 if word == "silence" else 2):
                middle = min(max(rng.uniform(start, end), HALF), last)
                windows.append((name, word, f"{middle - HALF + 0.005:.3f}", f"{middle + HALF + 0.005:.3f}", side))
    for name, found in (("moments.csv", moments), ("windows.csv", windows)):
        with open(folder / name, "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(found)
    print(f"{out}: {len(rows)} mouths, {len(moments) - 1} moments, {len(windows) - 1} windows")


if __name__ == "__main__":
    main(*sys.argv[1:])
