"""Were the right moments found? Numbers for spans of seconds against the spans that people marked.

Predicted spans come best first. A question with several true spans (QVHighlights, DiDeMo) is answered when one of them is met.
R@1, R@5 and mIoU are those of Gao et al. 2017 (arXiv:1705.02101), mAP over questions and the numbers of highlights those of
QVHighlights (Lei et al. 2021, arXiv:2107.09609), mAP over classes that of ActivityNet's detection task, recall and precision of
proposals those of its dense captions (Krishna et al. 2017, arXiv:1705.00754).

N, M spans, each (start, end) in seconds; Q questions.
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.errors import DataError
from tubelet.find import did_you_mean
from tubelet.records import Query, Question

Spans = Sequence[tuple[float, float]] | np.ndarray
Detection = tuple[str, float, float, float]  # video, start, end, score

RECALL_AT = (0.3, 0.5, 0.7)
MAP_AT = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
PROPOSALS_AT = (0.3, 0.5, 0.7, 0.9)
CLIP_SECONDS = 2.0  # of QVHighlights' clips
VERY_GOOD = 4  # the score of a highlight, of 0 to 4
CHOICES = 5  # of a question of EgoSchema and NExT-QA


def iou(first: Spans, second: Spans) -> np.ndarray:
    """float64 (N,M): the seconds that two spans share over those that either has, from 0 to 1; 0 where both are empty."""
    a, b = _array(first)[:, None], _array(second)[None]
    shared = (np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0])).clip(0)
    either = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - shared
    return np.divide(shared, either, out=np.zeros(shared.shape), where=either > 0).clip(0, 1)


def evaluate(
    predictions: Sequence[Spans], truths: Sequence[Spans], thresholds: Sequence[float] = RECALL_AT
) -> dict[str, float]:
    """{"R1@0.5", ..., "R5@0.5", ..., "mIoU", "mAP@0.5", "mAP@0.75", "mAP", "questions"}, from 0 to 1, of Q questions.

    predictions: for each the spans answered, best first; none counts as a miss. Questions without a true span are left out.
    """
    pairs = [(found, wanted) for found, wanted in zip(predictions, truths, strict=True) if len(wanted)]
    best = [iou(found[:5], wanted).max(axis=1, initial=0) for found, wanted in pairs]
    first = np.array([row[0] if len(row) else 0.0 for row in best])
    of_five = np.array([row.max(initial=0) for row in best])
    numbers = {f"R1@{at:g}": _mean(first >= at) for at in thresholds}
    numbers |= {f"R5@{at:g}": _mean(of_five >= at) for at in thresholds}
    numbers["mIoU"] = _mean(first)
    precisions = [precision_of_question(found, wanted) for found, wanted in pairs]
    for at in (0.5, 0.75):
        numbers[f"mAP@{at:g}"] = _mean([row[MAP_AT.index(at)] for row in precisions])
    numbers["mAP"] = _mean(precisions)
    numbers["questions"] = len(pairs)
    return numbers


def score_file(answers: str | Path, queries: Sequence[Query]) -> dict[str, float]:
    """`evaluate` of the answers in a file, and `highlights` of its scores for clips, each where the file has some; with
    {"answered"}: how many of the questions it has. Those it has not are misses.

    The file is that of QVHighlights, a JSON object a line: {"qid": ID, "pred_relevant_windows": [[start, end, score], ...],
    "pred_saliency_scores": [score of every clip of 2 s]}, of which either list may be left out. DataError naming a broken line,
    and for a question that is not among the annotated ones.
    """
    try:
        lines = Path(answers).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{answers} cannot be read: {error}") from error
    wanted = {query.id: query.spans for query in queries}
    spans: dict[str, Spans] = {}
    scores: dict[str, Sequence[float]] = {}
    answered = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            id = str(row["qid"])
            if "pred_relevant_windows" in row or "pred_saliency_scores" not in row:
                windows = sorted(([*map(float, window)] for window in row["pred_relevant_windows"]), key=lambda one: -one[2])
                spans[id] = [(start, end) for start, end, _ in windows]
            if "pred_saliency_scores" in row:
                scores[id] = [float(score) for score in row["pred_saliency_scores"]]
                if not np.isfinite(scores[id]).all():
                    raise ValueError("a score is not finite")
        except (ValueError, KeyError, TypeError, IndexError) as error:
            example = '{"qid": "12", "pred_relevant_windows": [[1.5, 4.0, 0.9]]}'
            raise DataError(f"{answers}, line {number}: wanted {example} ({type(error).__name__}: {error})") from error
        if id not in wanted:
            raise DataError(
                f"{answers}, line {number}: there is no question {id!r} in the annotations{did_you_mean(id, wanted)}"
            )
        answered.add(id)
    if scores and not any(query.saliency for query in queries):
        raise DataError(f"{answers} has scores of highlights, and the annotations have none: only QVHighlights' have")
    found: dict[str, float] = {}
    if spans or not scores:
        found |= evaluate([spans.get(id, ()) for id in wanted], list(wanted.values()))
    if scores:
        found |= highlights(scores, queries)
    return {**found, "answered": len(answered)}


def highlights(scores: Mapping[str, Sequence[float]], queries: Sequence[Query], least: int = VERY_GOOD) -> dict[str, float]:
    """{"highlight mAP", "highlight HIT@1", "highlight questions"}: are the clips of 2 s that people found at least so good scored
    highest?

    mAP: the average precision of a question's clips, for each person's own highlights, mean over persons and questions. HIT@1: how
    often the clip with the highest score is a highlight for anybody. scores: by question, for every clip of its video; clips
    without one have the question's lowest, those beyond the video are left out. Questions without saliency are left out, one
    without scores has 0 of both. Of equal highest scores the earliest clip counts.
    """
    precisions, hits = [], []
    for query in queries:
        if not query.saliency:
            continue
        people = len(query.saliency[0][1])
        clips = max(math.ceil((query.duration or 0) / CLIP_SECONDS), 1 + max(clip for clip, _ in query.saliency))
        wanted = np.zeros((people, clips), bool)
        for clip, given in query.saliency:
            wanted[:, clip] = np.array(given) >= least
        if not len(scores.get(query.id, ())):
            precisions.append(0.0)
            hits.append(0.0)
            continue
        row = np.asarray(scores[query.id][:clips], dtype=np.float64)
        row = np.pad(row, (0, clips - len(row)), constant_values=row.min())
        precisions.append(_mean([ranking_precision(row, of_person) for of_person in wanted]))
        hits.append(float(wanted[:, row.argmax()].any()))
    return {"highlight mAP": _mean(precisions), "highlight HIT@1": _mean(hits), "highlight questions": len(hits)}


def ranking_precision(scores: np.ndarray, wanted: np.ndarray) -> float:
    """Average precision of a ranking: the area under the interpolated precision-recall curve of scores (N,) against bool (N,).
    Equal scores are one point of it. 0 where nothing is wanted."""
    if not wanted.any():
        return 0.0
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # of every group of equal scores
    right = wanted[order].cumsum()[last]
    precision = right / (last + 1)
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    return float((highest * np.diff(right, prepend=0)).sum() / wanted.sum())


def score_choices(answers: str | Path, questions: Sequence[Question]) -> dict[str, float]:
    """{"accuracy", "chance", "questions", "answered"} of the answers in a file, to the questions whose answer is known; a question
    that the file has not is wrong.

    The file is that of EgoSchema, a JSON object {ID: number of the choice}; the ids of NExT-QA are VIDEO/QID. DataError for an
    answer that is no choice, or to a question that is not among the annotated ones.
    """
    found, known = _results(answers, '{"QUESTION": 3, ...}'), {one.id for one in questions}
    for id, choice in found.items():
        if type(choice) is not int or choice not in range(CHOICES):
            raise DataError(f"{answers}, {id}: the answer is {choice!r}, wanted 0 to {CHOICES - 1}")
        if id not in known:
            raise DataError(f"{answers}: there is no question {id!r} in the annotations{did_you_mean(id, known)}")
    wanted = {one.id: one.answer for one in questions if one.answer is not None}
    right = [found.get(id) == answer for id, answer in wanted.items()]
    return {"accuracy": _mean(right), "chance": 1 / CHOICES, "questions": len(wanted), "answered": len(wanted.keys() & found)}


def score_proposals(answers: str | Path, queries: Sequence[Query]) -> dict[str, float]:
    """`proposals` of the moments in a file, with {"videos", "answered"}: how many videos are annotated, and how many the file has.

    The file is that of ActivityNet's dense captions: {"results": {VIDEO: [{"timestamp": [start, end], ...}, ...]}}. DataError where
    it is broken.
    """
    wanted: dict[str, list[tuple[float, float]]] = {}
    for query in queries:
        wanted.setdefault(query.video, []).extend(query.spans)
    example = '{"results": {"VIDEO": [{"timestamp": [1.5, 4.0]}]}}'
    try:
        rows = _results(answers, example)["results"]
        found = {video: [(float(a), float(b)) for a, b in (row["timestamp"] for row in rows[video])] for video in rows}
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{answers}: wanted {example} ({type(error).__name__}: {error})") from error
    return {**proposals(found, wanted), "videos": len(wanted), "answered": len(wanted.keys() & found)}


def _results(path: str | Path, example: str) -> dict[str, Any]:
    """A JSON object; DataError where there is none."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: wanted {example} ({error})") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: wanted {example}, got a {type(found).__name__}")
    return found


def precision_of_question(found: Spans, wanted: Spans, thresholds: Sequence[float] = MAP_AT) -> np.ndarray:
    """Average precision of one question's answers, best first, at each threshold of IoU."""
    ranked = [("", start, end, -float(place)) for place, (start, end) in enumerate(found)]
    return average_precision(ranked, [("", start, end) for start, end in wanted], thresholds)


def average_precision(
    found: Sequence[Detection], wanted: Sequence[tuple[str, float, float]], thresholds: Sequence[float] = MAP_AT
) -> np.ndarray:
    """float64, one for each threshold: the area under the interpolated precision-recall curve of detections over many videos.

    From the highest score down, a detection is right when it meets a span of its video that no better one has taken; it takes
    the one with the highest IoU. Without any true span 0.
    """
    by_video: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for video, start, end in wanted:
        by_video[video].append((start, end))
    ranked = sorted(found, key=lambda row: -row[3])
    right = np.zeros((len(thresholds), len(ranked)))
    taken: list[set[tuple[str, int]]] = [set() for _ in thresholds]
    for place, (video, start, end, _) in enumerate(ranked):
        overlaps = iou([(start, end)], by_video.get(video, ()))[0]
        order = np.argsort(-overlaps, kind="stable")
        for row, at in enumerate(thresholds):
            free = (int(index) for index in order if overlaps[index] >= at and (video, int(index)) not in taken[row])
            index = next(free, None)
            if index is not None:
                taken[row].add((video, index))
                right[row, place] = 1
    if not wanted or not ranked:
        return np.zeros(len(thresholds))
    hits = right.cumsum(axis=1)
    precision = hits / np.arange(1, len(ranked) + 1)
    # Precision at a recall is the best of any higher recall, so the area is the mean of that over the hits.
    highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return np.asarray((highest * right).sum(axis=1) / len(wanted))


def localisation(
    found: Mapping[str, Sequence[Detection]],
    wanted: Mapping[str, Sequence[tuple[str, float, float]]],
    thresholds: Sequence[float] = MAP_AT,
) -> dict[str, float]:
    """{"mAP@0.5", ..., "mAP"}: mean over the classes of `wanted` of the average precision of their segments (ActivityNet)."""
    rows = np.array([average_precision(found.get(name, ()), wanted[name], thresholds) for name in wanted])
    numbers = {f"mAP@{at:g}": _mean(rows[:, place]) for place, at in enumerate(thresholds)}
    return {**numbers, "mAP": _mean(rows)}


def proposals(
    found: Mapping[str, Spans], wanted: Mapping[str, Spans], thresholds: Sequence[float] = PROPOSALS_AT
) -> dict[str, float]:
    """{"recall@0.3", "precision@0.3", ..., "recall", "precision"} of the spans proposed for each video of `wanted`.

    recall: the share of a video's true spans that a proposal meets; precision: the share of its proposals that meet a true span;
    both averaged over videos. A video without proposals has 0 of both.
    """
    numbers: dict[str, float] = {}
    overlaps = [iou(found.get(video, ()), truth) for video, truth in wanted.items()]
    for at in thresholds:
        hits = [table >= at for table in overlaps]
        numbers[f"recall@{at:g}"] = _mean([table.any(axis=0).mean() if table.size else 0.0 for table in hits])
        numbers[f"precision@{at:g}"] = _mean([table.any(axis=1).mean() if table.size else 0.0 for table in hits])
    for name in ("recall", "precision"):
        numbers[name] = _mean([numbers[f"{name}@{at:g}"] for at in thresholds])
    return numbers


def multiple_choice(scores: Sequence[Sequence[float]], answers: Sequence[int]) -> dict[str, float]:
    """{"accuracy", "chance", "questions"}: how often the right choice has the highest score. Where several are highest, the
    right one among them counts as the share that guessing between them would get."""
    right, chance = [], []
    for row, answer in zip(scores, answers, strict=True):
        highest = [place for place, score in enumerate(row) if score == max(row)]
        right.append((answer in highest) / max(1, len(highest)))
        chance.append(1 / len(row))
    return {"accuracy": _mean(right), "chance": _mean(chance), "questions": len(right)}


def _array(spans: Spans) -> np.ndarray:
    return np.asarray(spans, dtype=np.float64).reshape(-1, 2)


def _mean(values: "Sequence[float] | Sequence[np.ndarray] | np.ndarray") -> float:
    return float(np.mean(values)) if len(values) else 0.0
