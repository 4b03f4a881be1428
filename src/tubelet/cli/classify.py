"""`tubelet classify`: heads over features that are stored already."""

from typing import TYPE_CHECKING, Any, Literal

from tubelet.cli._print import emit_json, note, table, tell
from tubelet.errors import utf8

if TYPE_CHECKING:
    from tubelet.classify import Answer, Head
    from tubelet.feature_store import Stored


def command(
    action: Literal["fit", "predict", "uncertain"],
    /,
    *paths: str,
    labels: list[str] | None = None,
    out: str = "",
    kind: Literal["linear", "knn", "triplet"] = "linear",
    split: str = "",
    l2: float | None = None,
    k: int = 5,
    margin: float = 0.2,
    seed: int = 0,
    top: int | None = None,
    model: str = "",
    clips: int = 5,
    precision: Literal["fp32", "bf16"] = "fp32",
    json: bool = False,
) -> int:
    """Teach classes to features that `tubelet embed` stored, in seconds; ask for them, and which videos to label next.

    `tubelet classify fit FEATURES --labels CSV --out HEAD`, `tubelet classify predict HEAD FEATURES` and
    `tubelet classify uncertain HEAD FEATURES --out next.csv`. No video is decoded, unless videos are given in place of features.

    Parameters
    ----------
    action
        "fit", "predict" or "uncertain".
    paths
        For "fit" the features: a Parquet file, the folder that `tubelet embed --engine` filled, or a library of `tubelet index`,
        whose windows are taught and asked one by one. Otherwise the head, then features; for "predict" also videos, folders or
        tables, with --model.
    labels
        Tables with the columns label and id (or path; for a library also start and end); rows with an empty label are passed
        over. May be given several times. With "predict": how often the head is right about these.
    out
        What is written: the folder of the head; for "predict" and "uncertain" a CSV.
    kind
        "linear": logistic regression; "knn": nearest neighbours; "triplet": a projection learned with triplets, then the nearest
        class mean.
    split
        Take only labels of this split of the tables.
    l2
        Penalty of the linear head. Default: chosen by cross-validation among the labelled videos.
    k
        Neighbours of the knn head.
    margin
        Of the triplet head.
    seed
        Of the triplet head.
    top
        Classes to print for each video (default 3), or for "uncertain" the number of videos to label (default 20).
    model
        The model that made the features, to predict videos that have none yet.
    clips
        Windows in time per video, where videos are embedded: as many as for the features.
    precision
        Of the model, where videos are embedded: that of the features.
    json
        Print JSON.
    """
    from tubelet.errors import ConfigError

    if action == "fit":
        if len(paths) != 1 or not labels or not out:
            raise ConfigError("what is wanted: tubelet classify fit FEATURES --labels CSV --out HEAD")
        return _fit(paths[0], labels, split, out, kind, dict(l2=l2, k=k, margin=margin, seed=seed), json)
    if len(paths) < 2 or (action == "uncertain" and len(paths) > 2):
        more = "FEATURES" if action == "uncertain" else "FEATURES|VIDEO..."
        raise ConfigError(f"got {len(paths)} path{'s' * (len(paths) != 1)}: tubelet classify {action} HEAD {more}")
    from tubelet import classify, feature_store

    head = classify.load(paths[0])
    if action == "uncertain":
        return _uncertain(head, feature_store.read(paths[1]), 20 if top is None else top, out, json)
    stored, missing = _features(paths[1:], head, model, clips, precision)
    return _predict(head, stored, missing, labels or [], split, 3 if top is None else top, out, json)


def _fit(path: str, labels: list[str], split: str, out: str, kind: Any, settings: dict[str, Any], json: bool) -> int:
    import time

    from tubelet import classify, feature_store
    from tubelet.errors import DataError

    stored = feature_store.read(path)
    known, unknown = classify.read_labels(labels, stored, split)
    for name in unknown:
        note(f"no feature of {name}: left out (`tubelet embed` it first)")
    if not known:
        raise DataError(
            f"not one of the {len(unknown)} labelled videos is among the features in {path}, the first is {unknown[0]}"
        )
    began = time.perf_counter()
    head = classify.fit(stored, known, kind, **settings)
    seconds = time.perf_counter() - began
    classify.save(head, out)
    if json:
        emit_json({"out": out, "kind": kind, "classes": list(head.classes), "labelled": len(head.labelled),
                   "videos": len(set(stored.ids)), "settings": head.settings, "unknown": unknown, "seconds": seconds})  # fmt: skip
    else:
        said = ", ".join(f"{name} {value:g}" for name, value in head.settings.items())
        tell(f"{out}: {kind} head ({said}) of {len(head.classes)} classes, fitted in {seconds:.2f} s")
        tell(f"{len(head.labelled)} of {len(set(stored.ids))} videos are labelled")
    return 2 if unknown else 0


def _features(paths: tuple[str, ...], head: "Head", model: str, clips: int, precision: str) -> tuple["Stored", list[str]]:
    """Features at the paths, or of the videos there; and ids of videos that cannot be read."""
    import os

    import torch

    from tubelet import datasets, feature_store, features, storage
    from tubelet.errors import ConfigError, DataError

    elsewhere = model and storage.is_remote(paths[0])  # videos, for a model to look at
    stored = feature_store.is_library(paths[0]) and not elsewhere
    if len(paths) == 1 and (stored or paths[0].endswith(".parquet") or os.path.isdir(os.path.join(paths[0], "results"))):
        return feature_store.read(paths[0]), []
    if not model:
        raise ConfigError(
            f"{paths[0]} is no file of features; for videos name the model that made those of the head: --model RUN"
        )
    from tubelet.train.device import choose_device
    from tubelet.weights.load import load_model

    network = load_model(model, choose_device("auto"), precision)
    missing: list[str] = []

    def on_missing(id: str, reason: str) -> None:
        missing.append(id)
        note(f"left out: {id}: {reason}")

    rows = list(features.embed(network, datasets.read_many(paths).examples, clips=clips, on_missing=on_missing))
    if not rows:
        raise DataError("not one of the videos can be read")
    vectors = torch.stack([row.vector for row in rows])
    made_by = features.fingerprint(network)
    ids, places = tuple(row.id for row in rows), tuple(row.path for row in rows)
    return feature_store.Stored(ids, places, vectors, made_by, network.name), missing


def _predict(
    head: "Head", stored: "Stored", missing: list[str], labels: list[str], split: str, top: int, out: str, json: bool
) -> int:
    from tubelet import classify

    answers = classify.predict(head, stored, top)
    known, unknown = classify.read_labels(labels, stored, split) if labels else ({}, [])
    for name in unknown:
        note(f"no feature of {name}: left out")
    asked = [answer for answer in answers if answer.id in known]
    right = sum(answer.top[0][0] == known[answer.id] for answer in asked)
    fitted_on = len({answer.id for answer in asked} & set(head.labelled))
    if out:
        _write(out, answers)
    if json:
        rows = [{"id": a.id, "path": a.path, "margin": a.margin, "top": [{"class": c, "probability": p} for c, p in a.top[:top]]}
                for a in answers]  # fmt: skip
        emit_json({"answers": rows, "missing": missing, "labelled": len(asked), "right": right, "fitted_on": fitted_on})
        return 2 if missing else 0
    if not out and not labels:
        table(
            [{"video": a.id, "class": ", ".join(f"{c} {p:.0%}" for c, p in a.top[:top]), "margin": a.margin} for a in answers]
        )
    if out:
        tell(f"{out}: {len(answers)} videos")
    if labels:
        note_of = f"; the head was fitted on {fitted_on} of them" if fitted_on else ""
        tell(f"{right} of {len(asked)} labelled videos right: {right / max(1, len(asked)):.1%}{note_of}")
    return 2 if missing else 0


def _write(out: str, answers: list["Answer"]) -> None:
    """Every video's likeliest class as a table that may be read as labels again."""
    import csv
    import io

    from tubelet.train.folder import write

    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["id", "path", "label", "probability", "margin"])
    for answer in answers:
        name, chance = answer.top[0]
        rows.writerow([answer.id, answer.path, name, f"{chance:.4f}", f"{answer.margin:.4f}"])
    _place(out)
    write(_place(out), utf8(text.getvalue()))


def _place(out: str) -> Any:
    """The path of a CSV to write, whose folder exists."""
    from pathlib import Path

    from tubelet.errors import CheckpointError

    path = Path(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}; choose another --out") from error
    return path


def _uncertain(head: "Head", stored: "Stored", top: int, out: str, json: bool) -> int:
    from tubelet import classify
    from tubelet.train.folder import write

    answers = classify.uncertain(head, stored, top)
    if out:
        write(_place(out), classify.to_label(answers))
    if json:
        emit_json([{"id": a.id, "path": a.path, "guess": a.top[0][0], "margin": a.margin} for a in answers])
    elif out:
        tell(f"{out}: {len(answers)} videos to label, the most doubtful first")
    else:
        print(classify.to_label(answers), end="")
    return 0
