"""ActivityNet-Captions, and TACoS in the same layout: JSON, one object a video.

    {"v_uqiMw7tQ1Cc": {"duration": 55.15, "timestamps": [[0.28, 55.15], ...], "sentences": ["A weight ...", ...]}, ...}

TACoS has `fps` and `num_frames` in place of `duration`, and its timestamps are frame numbers.
"""

from pathlib import Path

from tubelet.datasets._moments import moments, opening, read_json, side, spans
from tubelet.errors import DataError
from tubelet.records import Dataset, Query


def matches(path: str | Path) -> bool:
    """Whether `path` is such a JSON file."""
    text = opening(path) if Path(path).suffix.lower() == ".json" else ""
    return text.lstrip().startswith("{") and '"timestamps"' in text


def queries(path: str | Path) -> list[Query]:
    """Every sentence with its span, video by video. Spans that end after the video are cut; DataError for a broken file."""
    videos = read_json(path)
    if not isinstance(videos, dict):
        raise DataError(f'{path}: wanted {{"VIDEO": {{"duration", "timestamps", "sentences"}}}}, got a {type(videos).__name__}')
    found = []
    for video, about in videos.items():
        missing = [key for key in ("timestamps", "sentences") if key not in about]
        if missing or len(about["timestamps"]) != len(about["sentences"]):
            raise DataError(f"{path}, {video}: wanted `timestamps` and as many `sentences`, got {', '.join(about)}")
        rate = float(about.get("fps", 1.0))
        duration = about["num_frames"] / rate if "num_frames" in about else float(about.get("duration") or 0) or None
        for number, ((start, end), text) in enumerate(zip(about["timestamps"], about["sentences"], strict=True)):
            times = spans(path, video, start / rate, end / rate, duration)
            found.append(Query(f"{video}/{number}", video, " ".join(text.split()), times, duration, side(path)))
    return found


def read(path: str | Path) -> Dataset:
    """Every sentence as an Example: a part of its video with a text."""
    return moments(path, queries(path))
