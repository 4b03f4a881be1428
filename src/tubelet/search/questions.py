"""What a library is asked for, as a vector in its space: words, a video or a part of one, or a picture.

D width of the vectors.
"""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tubelet import storage
from tubelet.datasets._files import is_video
from tubelet.errors import ConfigError, DataError, VideoError
from tubelet.features import Embedded, embed_windows, unit
from tubelet.models._model import Model
from tubelet.records import Example
from tubelet.video.stream import Stream, Windows

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def question(model: Model, query: str, start: float | None = None, end: float | None = None) -> Tensor:
    """float32 (D,) of words, of a video file (or its part between two seconds) or of a picture file, whichever it is. What is no
    file is words, also where a folder has that name.

    ConfigError for an empty question, words to a model that reads none, and a part of what is no video; DataError for the name of
    a file that is not there; VideoError for one that cannot be read.
    """
    suffix = os.path.splitext(query)[1].lower()
    picture = suffix in PICTURES
    if not (_is_file(query) if query.strip() and "\0" not in query else False):
        if picture or is_video(query):
            raise DataError(f"{query} does not exist: give words, or a video or picture that is there")
        if start is not None or end is not None:
            raise ConfigError("--start and --end are for a video as the question, and this is none")
        return text_vector(model, query)
    if picture:
        if start is not None or end is not None:
            raise ConfigError("--start and --end are for a video as the question, and this is a picture")
        return picture_vector(model, query)
    return video_vector(model, query, start, end)


def text_vector(model: Model, words: str) -> Tensor:
    """float32 (D,) of a question in words. ConfigError where there are none, or the model reads no text."""
    if not words.strip():
        raise ConfigError("the question is empty: give words, a video or a picture")
    return model.embed_text([words])[0].float().cpu()


@torch.no_grad()
def video_vector(
    model: Model,
    path: str | Path,
    start: float | None = None,
    end: float | None = None,
    on_window: Callable[[int, int], object] | None = None,
) -> Tensor:
    """float32 (D,) of a video, or of the part between two seconds: the mean of its windows' unit vectors, of unit length.
    on_window(done, all) after each of them."""
    example = Example(str(path), str(path), start_seconds=start, end_seconds=end)
    vectors = []
    for event in embed_windows(model, [example], workers=1):
        if isinstance(event, Embedded):
            vectors.append(event.vector)
            if on_window is not None:
                on_window(len(vectors), event.count)
        elif event.problem:
            raise VideoError(event.problem)
    return unit(torch.stack(vectors).double().mean(dim=0))


@torch.no_grad()
def picture_vector(model: Model, path: str | Path) -> Tensor:
    """float32 (D,) of a picture (JPEG, PNG, WebP ...): of a clip that shows it in every frame."""
    [(_, clip)] = Stream(path, model.spec, Windows("uniform", count=1))
    device = next(model.parameters()).device
    return unit(model(clip.frames[None].to(device))["embedding"][0].cpu())


def _is_file(path: str) -> bool:
    return os.path.isfile(path) if storage.is_plain(path) else storage.exists(path)
