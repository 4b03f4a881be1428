"""The numbers of grounding against formulas written another way, and against what must hold."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet import datasets
from tubelet.errors import DataError
from tubelet.evaluate import grounding
from tubelet.evaluate.grounding import (
    MAP_AT,
    average_precision,
    evaluate,
    highlights,
    iou,
    localisation,
    multiple_choice,
    proposals,
    score_choices,
    score_file,
    score_proposals,
)
from tubelet.records import Query, Question

times = st.integers(0, 40).map(lambda value: value / 4)
spans = st.tuples(times, times).map(lambda pair: (min(pair), max(pair) + 0.25))


def overlap(a, b):
    """IoU by counting quarter seconds."""
    cells = [{cell for cell in range(200) if start <= cell / 4 < end} for start, end in (a, b)]
    return len(cells[0] & cells[1]) / len(cells[0] | cells[1])


@given(spans, spans)
def test_iou_is_that_of_sets_and_symmetric(a, b):
    value = iou([a], [b])[0, 0]
    assert value == pytest.approx(overlap(a, b)) and value == iou([b], [a])[0, 0] and 0 <= value <= 1
    assert iou([a], [a])[0, 0] == 1


def test_iou_of_nothing():
    assert iou([(2, 2)], [(2, 2)])[0, 0] == 0 and iou([], [(0, 1)]).shape == (0, 1)


def brute_average_precision(found, wanted, threshold):
    """By the words of QVHighlights' and ActivityNet's evaluation: rank, lock, accumulate, interpolate at every change of recall."""
    found = sorted(found, key=lambda row: -row[3])
    locked, right = set(), []
    for video, start, end, _ in found:
        candidates = [(overlap((start, end), truth[1:]), -place) for place, truth in enumerate(wanted) if truth[0] == video]
        chosen = None
        for value, place in sorted(candidates, reverse=True):
            if value < threshold:
                break
            if -place not in locked:
                chosen = -place
                break
        if chosen is not None:
            locked.add(chosen)
        right.append(chosen is not None)
    hits, precision, recall = 0, [0.0], [0.0]
    for rank, hit in enumerate(right, 1):
        hits += hit
        precision.append(hits / rank)
        recall.append(hits / len(wanted))
    precision.append(0.0)
    recall.append(1.0)
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)) if recall[i] != recall[i - 1])


@given(
    st.lists(st.tuples(st.sampled_from("ab"), spans), max_size=8),
    st.lists(st.tuples(st.sampled_from("ab"), spans), min_size=1, max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_average_precision_is_that_of_the_benchmarks(found, wanted):
    detections = [(video, *span, -float(place)) for place, (video, span) in enumerate(found)]
    truths = [(video, *span) for video, span in wanted]
    got = average_precision(detections, truths, (0.3, 0.5, 0.75))
    expected = [brute_average_precision(detections, truths, at) for at in (0.3, 0.5, 0.75)]
    np.testing.assert_allclose(got, expected, atol=1e-12)


@given(st.lists(st.tuples(st.lists(spans, max_size=6), st.lists(spans, max_size=3)), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_recall_and_miou_are_the_formula(rows):
    got = evaluate([row[0] for row in rows], [row[1] for row in rows])
    asked = [(found, wanted) for found, wanted in rows if wanted]
    best = [[max(overlap(one, truth) for truth in wanted) for one in found] for found, wanted in asked]
    count = max(1, len(asked))
    assert got["questions"] == len(asked)
    assert got["mIoU"] == pytest.approx(sum(row[0] if row else 0 for row in best) / count)
    for at in (0.3, 0.5, 0.7):
        assert got[f"R1@{at}"] == pytest.approx(sum(any(value >= at for value in row[:1]) for row in best) / count)
        assert got[f"R5@{at}"] == pytest.approx(sum(any(value >= at for value in row[:5]) for row in best) / count)
        assert 0 <= got[f"R1@{at}"] <= got[f"R5@{at}"] <= 1
    means = [[brute_average_precision([("", *one, -i) for i, one in enumerate(found)], [("", *t) for t in wanted], at)
              for at in MAP_AT] for found, wanted in asked]  # fmt: skip
    assert got["mAP"] == pytest.approx(np.mean(means) if means else 0)


def test_perfect_and_empty_answers():
    truth = [[(1.0, 4.0)], [(0.0, 2.0), (5.0, 9.0)]]
    perfect = evaluate(truth, truth)
    assert all(perfect[name] == 1 for name in ("R1@0.7", "R5@0.7", "mIoU", "mAP", "mAP@0.5", "mAP@0.75"))
    assert evaluate([[], []], truth)["mAP"] == 0 == evaluate([[], []], truth)["mIoU"]


def test_proposals_by_hand():
    got = proposals({"a": [(0, 10), (90, 99)], "b": []}, {"a": [(0, 10), (0, 5)], "b": [(0, 1)]}, (0.5, 0.9))
    # Video a: the first proposal meets both true spans at 0.5 and one at 0.9; b has none.
    assert got["recall@0.5"] == 0.5 and got["precision@0.5"] == 0.25
    assert got["recall@0.9"] == 0.25 and got["precision@0.9"] == 0.25
    assert got["recall"] == 0.375


def test_localisation_is_the_mean_over_true_classes():
    wanted = {"run": [("v", 0, 10)], "jump": [("v", 10, 20), ("w", 0, 5)]}
    found = {"run": [("v", 0, 10, 0.9)], "jump": [("v", 10, 20, 0.8), ("v", 10, 20, 0.7)], "swim": [("v", 0, 1, 1.0)]}
    assert localisation(found, wanted, (0.5,)) == {"mAP@0.5": 0.75, "mAP": 0.75}


def test_files_of_choices_and_of_proposals(tmp_path):
    asked = [Question(str(id), "v", "what?", tuple("abcde"), answer) for id, answer in enumerate([3, 1, None, 4])]
    path = tmp_path / "answers.json"
    path.write_text('{"0": 3, "1": 2, "2": 0}')
    assert score_choices(path, asked) == {"accuracy": pytest.approx(1 / 3), "chance": 0.2, "questions": 3, "answered": 2}
    for text, message in (
        ('{"0": 5}', "answers.json, 0: the answer is 5, wanted 0 to 4"),
        ('{"0": true}', "the answer is True"),
        ('{"7": 1}', "there is no question '7' in the annotations"),
        ("[3]", "wanted .*, got a list"),
        ("{", "answers.json: wanted"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            score_choices(path, asked)
    queries = [Query("a/0", "a", "x", ((0, 10),)), Query("a/1", "a", "y", ((0, 5),)), Query("b/0", "b", "z", ((0, 1),))]
    path.write_text('{"results": {"a": [{"sentence": "s", "timestamp": [0, 10]}, {"timestamp": [90, 99]}], "c": []}}')
    got = score_proposals(path, queries)
    assert {name: got[name] for name in ("recall@0.9", "precision@0.9", "videos", "answered")} == {
        "recall@0.9": 0.25, "precision@0.9": 0.25, "videos": 2, "answered": 1}  # fmt: skip
    for text in ('{"a": []}', '{"results": [1]}', '{"results": {"a": [{"timestamp": [1]}]}}', '{"results": {"a": [5]}}'):
        path.write_text(text)
        with pytest.raises(DataError, match="answers.json: wanted"):
            score_proposals(path, queries)


def test_multiple_choice_and_ties():
    got = multiple_choice([[1, 2, 3, 4, 5], [5, 1, 1, 1, 1], [1, 1, 1, 1, 1]], [4, 1, 0])
    assert got == {"accuracy": pytest.approx((1 + 0 + 0.2) / 3), "chance": pytest.approx(0.2), "questions": 3}


def test_answers_in_a_file(tmp_path):
    queries = [Query("1", "v", "a", ((0, 10),)), Query("2", "v", "b", ((5, 9), (0, 2))), Query("3", "v", "c")]
    path = tmp_path / "answers.jsonl"
    path.write_text('{"qid": 1, "pred_relevant_windows": [[20, 30, 0.1], [0, 10, 0.9]]}\n')
    got = grounding.score_file(path, queries)
    assert (got["R1@0.7"], got["questions"], got["answered"]) == (0.5, 2, 1)
    for line, message in (
        ('{"qid": 9, "pred_relevant_windows": []}', "line 1: there is no question '9' in the annotations"),
        ('{"qid": 1}', "line 1: wanted {\"qid\""),
        ("[", "line 1: wanted"),
    ):  # fmt: skip
        path.write_text(line)
        with pytest.raises(DataError, match="answers.jsonl") as caught:
            grounding.score_file(path, queries)
        assert message in str(caught.value)
    with pytest.raises(DataError, match="cannot be read"):
        grounding.score_file(tmp_path / "no.jsonl", queries)


def brute_highlights(scores, queries, least):
    """By the words of the paper: for each person the precision at every threshold of the scores, the best of it at any higher
    recall, summed over the steps of recall; and whether the top clip is a highlight for anybody."""
    precisions, hits = [], []
    for query in queries:
        clips = int(query.duration // 2)
        row = scores.get(query.id)
        people = [[0] * clips for _ in range(3)]
        for clip, said in query.saliency:
            for person, score in enumerate(said):
                people[person][clip] = score
        if row is None:
            precisions.append(0)
            hits.append(0)
            continue
        row = row[:clips] + [min(row[:clips])] * (clips - len(row))
        for person in people:
            good = [score >= least for score in person]
            points = []
            for threshold in sorted(set(row), reverse=True):
                taken = [clip for clip in range(clips) if row[clip] >= threshold]
                right = sum(good[clip] for clip in taken)
                points.append((right / max(1, sum(good)), right / len(taken)))
            before, area = 0.0, 0.0
            for place, (recall, _) in enumerate(points):
                area += (recall - before) * max(precision for _, precision in points[place:])
                before = recall
            precisions.append(area / 3)
        top = row.index(max(row))
        hits.append(any(person[top] >= least for person in people))
    return sum(precisions) / len(hits), sum(hits) / len(hits)


clip_scores = st.lists(st.integers(0, 4).map(float), min_size=1, max_size=14)
given_scores = st.dictionaries(st.integers(0, 9), st.tuples(*[st.integers(0, 4)] * 3), min_size=1)


@given(st.lists(st.tuples(given_scores, clip_scores, st.booleans()), min_size=1, max_size=4), st.sampled_from([2, 3, 4]))
@settings(max_examples=80, deadline=None)
def test_highlights_are_the_formula(rows, least):
    queries = [Query(str(n), "v", "x", ((0, 2),), 20.0, None, tuple(clips.items())) for n, (clips, *_) in enumerate(rows)]
    scores = {str(n): row for n, (_, row, there) in enumerate(rows) if there}
    found = highlights(scores, [*queries, Query("none", "v", "x", ((0, 2),), 20.0)], least)
    precision, hit = brute_highlights(scores, queries, least)
    assert found["highlight mAP"] == pytest.approx(precision) and found["highlight HIT@1"] == pytest.approx(hit)
    assert found["highlight questions"] == len(rows)


def test_highlights_of_the_published_annotations(shared, tmp_path):
    """Who knows what people said gets all there is; who says the same of every clip the share of the good ones."""
    path = shared / "data" / "annotations" / "qvhighlights" / "data" / "highlight_val_release.jsonl"
    queries = datasets.queries(path)
    assert len(queries) == 1550 and all(query.saliency for query in queries)
    known, same, windows = [], [], []
    for query in queries:
        best = [0] * int(query.duration // 2)
        for clip, said in query.saliency:
            best[clip] = max(said)
        known.append({"qid": query.id, "pred_saliency_scores": best})
        same.append({"qid": query.id, "pred_saliency_scores": [0.5] * len(best)})
        windows.append({**known[-1], "pred_relevant_windows": [[*span, 1] for span in query.spans]})
    found = []
    for rows in (known, same, windows):
        (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        found.append(score_file(tmp_path / "answers.jsonl", queries))
    anybody = np.mean([any(max(said) == 4 for _, said in query.saliency) for query in queries])
    assert found[0]["highlight HIT@1"] == pytest.approx(anybody) and found[0]["answered"] == 1550 and "mIoU" not in found[0]
    share = np.mean(
        [np.mean([[s == 4 for s in said] for _, said in q.saliency]) * len(q.saliency) / (q.duration // 2) for q in queries]
    )
    assert found[1]["highlight mAP"] == pytest.approx(share) and found[1]["highlight mAP"] < found[0]["highlight mAP"] < 1
    assert found[2]["highlight mAP"] == found[0]["highlight mAP"] and found[2]["mAP"] == 1
    with pytest.raises(DataError, match="has scores of highlights, and the annotations have none"):
        score_file(tmp_path / "answers.jsonl", [Query(query.id, "v", "x", query.spans) for query in queries])
    (tmp_path / "answers.jsonl").write_text('{"qid": 2579, "pred_saliency_scores": [NaN]}\n')
    with pytest.raises(DataError, match="answers.jsonl, line 1: .*a score is not finite"):
        score_file(tmp_path / "answers.jsonl", queries)
