"""ActivityNet-Captions, and TACoS in the same layout: JSON, one object a video.

    {"v_uqiMw7tQ1Cc": {"duration": 55.15, "timestamps": [[0.28, 55.15], ...], "sentences": ["A weight ...", ...]}, ...}

TACoS has `fps` and `num_frames` in place of `duration`, and its timestamps are frame numbers.
"""

from pathlib import Path

from tubelet.datasets._moments import moments, opening, read_json, side, spans, words
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
        try:
            times, sentences = about["timestamps"], [words(text) for text in about["sentences"]]
            if len(times) != len(sentences):
                raise ValueError(f"{len(times)} timestamps, {len(sentences)} sentences")
            rate = float(about.get("fps", 1.0))
            duration = about["num_frames"] / rate if "num_frames" in about else float(about.get("duration") or 0) or None
            pairs = [spans(path, video, float(start) / rate, float(end) / rate, duration) for start, end in times]
        except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise DataError(
                f"{path}, {video}: wanted `timestamps` in pairs and as many `sentences` ({type(error).__name__}: {error})"
            ) from error
        for number, (pair, text) in enumerate(zip(pairs, sentences, strict=True)):
            found.append(Query(f"{video}/{number}", video, text, pair, duration, side(path)))
    return found


def read(path: str | Path) -> Dataset:
    """Every sentence as an Example: a part of its video with a text."""
    return moments(path, queries(path))
