"""When does it happen? Start and end seconds in a video of any length that answer a sentence, a class or another video.

    spans = ground(model, "kitchen.mp4", "putting a cup on a table")

Windows of several lengths come from one stream, in which every frame is decoded once. Each has a score: the cosine of its
embedding with that of the question, or the probability of the class that the question names. Of windows that overlap much the
best is kept (`suppress`). `ground_head` has a small decoder that learns from examples instead.

W windows, D embedding width, K classes.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.errors import ConfigError, DataError, VideoError
from tubelet.evaluate.grounding import RECALL_AT, evaluate, iou
from tubelet.features import embed_video
from tubelet.models._model import Model
from tubelet.records import Example, Question
from tubelet.scan import Kept, Scan, scales, scan

TOP = 10  # answers to a question of which a model or a head is judged


@dataclass(frozen=True)
class Span:
    """An answer: from when to when in the video, in seconds, and how well it fits (comparable within one question only)."""

    start_seconds: float
    end_seconds: float
    score: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def clip_seconds(model: Model, videos: Sequence[str]) -> float:
    """What a clip of the model spans in the first of the videos that can be read; DataError where none can."""
    for video in videos:
        with contextlib.suppress(VideoError):
            return float(scales(model, video)[0].window_seconds or 1.0)
    raise DataError(
        f"none of {len(videos)} videos could be read, the first is {videos[0]}: the paths are relative to the table"
    )


def ground(
    model: Model,
    video: str | Path,
    question: "str | Path | Tensor",
    top: int = 5,
    lengths: Sequence[float] = (),
    overlap: float = 0.5,
    batch_size: int = 8,
    on_window: Callable[[int, int], object] | None = None,
    kept: Kept | None = None,
) -> list[Span]:
    """The `top` spans of a video that fit a question best, best first.

    question: words; a Path to another video or a picture; or an embedding (D,). Words are read by the model's text tower, or
    name one of its classes (see `class_of`). lengths: of windows in seconds, see `scales`. Of two answers with an IoU above
    `overlap` the better one is kept. kept: as in `scan`. ConfigError where the model cannot read words, VideoError where a video
    cannot be read.
    """
    check_answers(top, overlap)
    if isinstance(question, str) and not question.strip():
        raise ConfigError("the question is empty: say what to look for")
    score = scorer(model, question)
    found = scan(model, video, scales(model, video, lengths), batch_size, on_window, kept)
    return best(found.seconds, score(found), top, overlap)


def check_answers(top: int, overlap: float) -> None:
    """ConfigError for a number of answers, or an overlap between them, that cannot be."""
    if top < 1:
        raise ConfigError(f"top is {top}: ask for 1 answer or more")
    if not 0 <= overlap <= 1:
        raise ConfigError(f"overlap is {overlap:g}: an intersection over union lies between 0 and 1, 0.5 is usual")


def scorer(model: Model, question: "str | Path | Tensor") -> Callable[[Scan], Tensor]:
    """The function that gives every window its score, float32 (W,), for a question as in `ground`."""
    if isinstance(question, str) and model.class_names:
        number = model.class_names.index(class_of(model, question))
        return lambda found: _chances(found)[:, number]
    if isinstance(question, str):
        vector = model.embed_text([question])[0].cpu()
    elif isinstance(question, Tensor):
        vector = question
    else:
        vector = embed_video(model, question)
    if vector.shape != (model.width,):
        raise ConfigError(f"the question is a vector of {tuple(vector.shape)}, {model.name} has embeddings of ({model.width},)")
    return lambda found: F.cosine_similarity(found.embeddings, vector.float()[None], dim=1)


def class_of(model: Model, question: str) -> str:
    """The class that a question names: spelled the same but for case and punctuation, the only one whose words are all in the
    question, or else the nearest spelling. ConfigError where nothing is near."""
    asked = _words(question)
    by_words = {_words(name): name for name in model.class_names}
    if asked in by_words:
        return by_words[asked]
    within = [name for words, name in by_words.items() if f" {words} " in f" {asked} "]
    if len(within) == 1:
        return within[0]
    near = get_close_matches(asked, list(by_words), n=1, cutoff=0.6)
    if near and not within:
        return by_words[near[0]]
    shown = ", ".join(model.class_names[:12]) + (", ..." if len(model.class_names) > 12 else "")
    several = f"names several classes ({', '.join(within)})" if within else "names no class of this model"
    raise ConfigError(
        f"{question!r} {several}, and the model has no text tower: ask for one of {shown}; a model that was taught with captions "
        "takes any sentence"
    )


def best(seconds: Tensor, scores: Tensor, top: int, overlap: float = 0.5) -> list[Span]:
    """The `top` windows (W,2) by score (W,), without those that overlap a better one too much."""
    kept = suppress(seconds.numpy(), scores.numpy(), overlap)[:top]
    return [Span(round(float(seconds[i, 0]), 3), round(float(seconds[i, 1]), 3), float(scores[i])) for i in kept]


def suppress(spans: np.ndarray, scores: np.ndarray, overlap: float = 0.5) -> list[int]:
    """Numbers of the spans (W,2) that stay, best score first: each whose IoU with every better one that stays is at most
    `overlap` (non-maximum suppression). Of equal scores the earlier row is the better one."""
    waiting = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(waiting):
        first = int(waiting[0])
        kept.append(first)
        waiting = waiting[1:][iou(spans[first : first + 1], spans[waiting[1:]])[0] <= overlap]
    return kept


def timed(examples: Sequence[Example]) -> list[Example]:
    """Those with a text, a start and an end; DataError where none has."""
    found = [one for one in examples if one.text and one.start_seconds is not None and one.end_seconds is not None]
    if not found:
        raise DataError(f"none of {len(examples)} rows has a text, a start and an end: wanted columns path, text, start, end")
    return found


def questions(examples: Sequence[Example]) -> dict[tuple[str, str], list[Example]]:
    """{(path, text): rows}: rows of one video with the same text are one question with several true spans. DataError as `timed`."""
    found: dict[tuple[str, str], list[Example]] = {}
    for one in timed(examples):
        found.setdefault((one.path, one.text or ""), []).append(one)
    return found


def truths(rows: Sequence[Example]) -> list[tuple[float, float]]:
    """The true spans of a question, in seconds."""
    return [(one.start_seconds or 0.0, one.end_seconds or 0.0) for one in rows]


def judge(
    model: Model,
    examples: Sequence[Example],
    lengths: Sequence[float] = (),
    overlap: float = 0.5,
    on_video: Callable[[int], object] | None = None,
    on_missing: Callable[[str, str], None] | None = None,
) -> dict[str, dict[str, float]]:
    """{"model": ..., "chance": ...}: `evaluate.grounding.evaluate` of the answers to Examples with text, start and end.

    Every video is scanned once. Rows of one video with the same text are one question with several true spans. "chance" is what a
    window drawn at random from the same windows gets on average: R1 and mIoU.
    """
    check_answers(TOP, overlap)
    asked: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for (path, text), rows in questions(examples).items():
        asked.setdefault(path, {})[text] = truths(rows)
    scorers = {text: scorer(model, text) for texts in asked.values() for text in texts}
    answers: list[list[tuple[float, float]]] = []
    wanted: list[list[tuple[float, float]]] = []
    drawn: list[np.ndarray] = []
    for number, (video, texts) in enumerate(asked.items(), 1):
        try:
            seen = scan(model, video, scales(model, video, lengths), batch_size=32)
        except VideoError as error:
            if on_missing is not None:
                on_missing(video, str(error))
            continue
        for text, spans in texts.items():
            found = best(seen.seconds, scorers[text](seen), TOP, overlap)
            answers.append([(span.start_seconds, span.end_seconds) for span in found])
            wanted.append(spans)
            drawn.append(iou(seen.seconds.numpy(), spans).max(axis=1))
        if on_video is not None:
            on_video(number)
    if not answers:
        raise DataError(f"none of {len(asked)} videos could be read: the paths are relative to the table")
    chance = {f"R1@{at:g}": float(np.mean([(row >= at).mean() for row in drawn])) for at in RECALL_AT}
    chance["mIoU"] = float(np.mean([row.mean() for row in drawn]))
    return {"model": evaluate(answers, wanted), "chance": chance}


@torch.no_grad()
def choose(model: Model, video: str | Path, question: Question, clips: int = 5) -> list[float]:
    """A score for every choice of a multiple-choice question: the cosine of the video's embedding (the mean over `clips` windows)
    with that of "question choice". The highest is the answer. ConfigError for a model without a text tower."""
    texts = model.embed_text([f"{question.text} {choice}".strip() for choice in question.choices]).cpu()
    vector = F.normalize(embed_video(model, video, clips), dim=0)
    scores: list[float] = (F.normalize(texts, dim=1) @ vector).tolist()
    return scores


def _chances(found: Scan) -> Tensor:
    assert found.probabilities is not None
    return found.probabilities


def _words(text: Any) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in str(text).lower()).split())
