"""Numbers that recipes derive from the data: how long to train, and how far apart the frames of a clip should be."""

from collections.abc import Sequence

from tubelet.errors import VideoError
from tubelet.records import Example
from tubelet.video.decode import probe
from tubelet.video.guard import run

PROBED = 24  # videos whose length is looked up


def epochs_for(clips: int, videos: int, repeats: int, shortest: int, longest: int) -> int:
    """Epochs in which about `clips` clips are seen, `repeats` of every video an epoch, within shortest..longest."""
    return max(shortest, min(longest, round(clips / max(1, videos * repeats))))


def fitting_stride(examples: Sequence[Example], frames: int, largest: int = 4) -> int:
    """The largest stride, 1 to `largest`, at which a clip of `frames` frames fits into the median video.

    Up to 24 videos, evenly spread, are looked at; unreadable ones do not count.
    """
    counts = []
    for example in examples[:: max(1, len(examples) // PROBED)][:PROBED]:
        try:
            info = run(example.path, probe, example.path)
        except VideoError:
            continue
        end = info.duration_seconds if example.end_seconds is None else example.end_seconds
        share = (end - (example.start_seconds or 0.0)) / max(info.duration_seconds, 1e-9)
        counts.append(info.frame_count * min(1.0, share))
    if not counts:
        return largest
    return max(1, min(largest, int(sorted(counts)[len(counts) // 2] / frames)))
