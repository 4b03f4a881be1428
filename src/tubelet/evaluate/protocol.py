"""A whole evaluation, step by step: classify, compare with baselines, judge frozen features, and turn it all into
report sections.

Each function gives plain values: rows for the results table, or (pictures, sections) for `report.update`.
"""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet import masking, models
from tubelet.errors import VideoError
from tubelet.evaluate import metrics
from tubelet.evaluate.baselines import chance, majority_class
from tubelet.evaluate.knn import knn, standardize
from tubelet.evaluate.linear_probe import footage, linear_probe
from tubelet.evaluate.linear_svm import fuse
from tubelet.evaluate.multiview import Looks, label_numbers
from tubelet.evaluate.sides import Met
from tubelet.models._model import Model
from tubelet.records import Example
from tubelet.show import attention, reconstruction
from tubelet.show._sheet import pick
from tubelet.show.confusion import confusion
from tubelet.show.contact_sheet import contact_sheet
from tubelet.show.embedding_map import embedding_map
from tubelet.show.masks import masks
from tubelet.video.write import write_gif
from tubelet.views import load_views

Row = dict[str, Any]
Pictures = dict[str, bytes]
Sections = dict[str, Any]

MISTAKES_SHOWN = 8
STRIPS_SHOWN = 3
GIF_FRAMES_PER_SECOND = 6


def row(
    name: str, weights: str, probabilities: Tensor, examples: Sequence[Example], class_names: Sequence[str], note: str = ""
) -> Row:
    """One line of the results table: every number of metrics.score under a name and where the weights come from.

    probabilities (M,K) of the M labelled examples; `data` tells whether two rows are about the same videos.
    """
    about = {"name": name, "weights": weights, "note": note, "data": fingerprint(examples)}
    return about | metrics.score(probabilities, label_numbers(examples, class_names))


def classification_row(looks: Looks, class_names: Sequence[str], weights: str, name: str = "fine-tuned", note: str = "") -> Row:
    """The results line of a classifier that has looked at labelled videos."""
    assert looks.probabilities is not None, "a model without classes cannot classify"
    return row(name, weights, looks.probabilities, looks.examples, class_names, note) | views(looks)


def frozen_rows(
    stored: Looks,
    asked: Looks,
    class_names: Sequence[str],
    weights: str,
    methods: Sequence[str] = ("k-NN", "linear probe"),
    note: str = "frozen features",
) -> list[Row]:
    """k-NN, linear probe and linear SVM on frozen embeddings: fitted on the videos in `stored`, judged on those in `asked`."""
    train_labels, groups = label_numbers(stored.examples, class_names), footage(stored.examples)
    answers = {}
    if "linear probe" in methods:
        answers["linear probe"] = linear_probe(
            stored.embeddings, train_labels, asked.embeddings, len(class_names), groups=groups
        )
    if "linear SVM" in methods:
        parts = standardize(stored.embeddings, asked.embeddings)
        answers["linear SVM"] = fuse([parts[0]], train_labels, [parts[1]], len(class_names))
    if "k-NN" in methods:
        answers["k-NN"] = knn(stored.embeddings, train_labels, asked.embeddings, len(class_names))
    return [row(name, weights, given, asked.examples, class_names, note) | views(asked) for name, given in answers.items()]


def floor_rows(train: Sequence[Example], asked: Sequence[Example], class_names: Sequence[str]) -> list[Row]:
    """Majority class (of the training videos, of the evaluated ones where there are none) and chance."""
    counted = labelled(train) or asked
    of = "evaluated" if counted is asked else "training"
    answers = majority_class(label_numbers(counted, class_names), len(class_names)).expand(len(asked), -1)
    name = class_names[int(answers[0].argmax())]
    note = f"always {name!r}, the commonest of the {of} videos"
    majority = row("majority class", "majority class", answers, asked, class_names, note)
    return [majority, chance(len(class_names)) | {"data": majority["data"]}]


def row_without_number(name: str, weights: str, note: str, beside: Row) -> Row:
    """A line that says why there is no result, about the same videos as the row `beside`."""
    numbers = dict.fromkeys(("top1", "top5", "mean_class_accuracy", "videos"))
    return {"name": name, "weights": weights, "note": note, "data": beside["data"], **numbers}


def fingerprint(examples: Sequence[Example]) -> str:
    """A short hash of which videos (ids, labels, parts) these are, in any order."""
    facts = sorted(repr((one.id, one.label, one.start_seconds, one.end_seconds)) for one in examples)
    return hashlib.blake2b("\n".join(facts).encode(), digest_size=8).hexdigest()


def views(looks: Looks) -> dict[str, int | str]:
    """Clips and crops per video and the precision, as a row and the data section say them."""
    return {"clips": looks.clips, "crops": looks.crops, "precision": looks.precision}


def data_section(part: str, before: Met) -> Sections:
    """Which part of the data was evaluated, and how many of its videos the model was trained on (None: not known)."""
    return {"part": part, "trained_on": before.labelled, "pretrained_on": before.unlabelled}


def classification_sections(looks: Looks, class_names: Sequence[str], model: Model) -> tuple[Pictures, Sections]:
    """Confusion matrix, classes, mistakes with their frames, where the model looked in the first video, embedding map,
    missing videos and timing of a classifier.
    """
    assert looks.probabilities is not None
    class_names = tuple(class_names)
    labels = label_numbers(looks.examples, class_names)
    matrix = metrics.confusion_matrix(looks.probabilities, labels)
    pictures, sections = seen_sections(looks, class_names)
    for theme in ("light", "dark"):
        pictures[f"confusion.{theme}.png"] = confusion(matrix.numpy(), class_names, dark=theme == "dark")
    sections |= {"confusion": matrix.tolist(), "per_class": metrics.per_class(matrix, class_names)}
    wrong = worst_mistakes(looks, labels, class_names)
    sections["mistakes"] = wrong
    if wrong:
        by_id = {example.id: example for example in looks.examples}
        shown = []
        for mistake in wrong:
            frames, _ = load_views(by_id[mistake["id"]], model.spec, 1, 1)
            caption = f"{mistake['true']}, taken for {mistake['said']}"
            sure = f"{mistake['probability']:.0%} sure, {mistake['true_probability']:.0%} for the truth"
            remark = f"{sure}  ·  {mistake['id']}"
            shown.append((frames[0], caption, remark))
        pictures["mistakes.png"] = contact_sheet(shown)
    if attention.can_be_shown(model):
        frames, _ = load_views(looks.examples[0], model.spec, 1, 1)
        pictures["attention.png"] = attention.attention(model, frames[0])
    return pictures, sections


def seen_sections(looks: Looks, class_names: Sequence[str]) -> tuple[Pictures, Sections]:
    """Embedding map, counts, missing videos and timing: what any model that looked at labelled videos can show."""
    labels = label_numbers(looks.examples, class_names).tolist()
    pictures = {
        f"embedding_map.{theme}.png": embedding_map(looks.embeddings, labels, class_names, dark=theme == "dark")
        for theme in ("light", "dark")
    }
    evaluated, asked = len(looks.examples), len(looks.examples) + len(looks.missing)
    looked = evaluated * looks.clips * looks.crops
    sections: Sections = {
        "classes": list(class_names),
        "data": {"asked": asked, "evaluated": evaluated} | views(looks),
        "missing": [{"id": id, "reason": reason} for id, reason in looks.missing],
        "timing": {
            "evaluation (seconds)": looks.seconds_taken,
            "evaluation (views per second, decoding included)": looked / max(looks.seconds_taken, 1e-9),
        },
    }
    return pictures, sections


def worst_mistakes(looks: Looks, labels: Tensor, class_names: Sequence[str], shown: int = MISTAKES_SHOWN) -> list[Row]:
    """The wrong first guesses with the highest probability: id, true, said, probability, true_probability."""
    assert looks.probabilities is not None
    sure, said = looks.probabilities.max(dim=1)
    wrong = (said != labels).nonzero()[:, 0].tolist()
    wrong.sort(key=lambda index: (-float(sure[index]), looks.examples[index].id))
    return [
        {
            "id": looks.examples[index].id,
            "true": class_names[int(labels[index])],
            "said": class_names[int(said[index])],
            "probability": float(sure[index]),
            "true_probability": float(looks.probabilities[index, labels[index]]),
        }
        for index in wrong[:shown]
    ]


def model_section(model: Model) -> Sections:
    """What the page says about the model: size, cost and how its clips are cut."""
    cost = models.cost(model)
    spec = model.spec.to_dict()
    return {"name": model.name, "params": cost["params"], "gmacs_per_clip": round(cost["gmacs"], 2), **spec}


def pretraining_sections(
    model: Model,
    examples: Sequence[Example],
    normalize_target: bool = True,
    mask: str = "tube",
    ratio: float = 0.9,
    seed: int = 0,
) -> tuple[Pictures, Sections]:
    """Masks, reconstruction strips and a moving one, of a few readable examples; nothing for a model without a decoder.

    normalize_target, mask and ratio: as the model was trained.
    """
    if getattr(model, "decoder", None) is None:
        return {}, {}
    pictures: Pictures = {}
    rows: list[Row] = []
    for index in pick(len(examples), 4 * STRIPS_SHOWN):
        example = examples[index]
        try:
            frames, seconds = load_views(example, model.spec, 1, 1)
        except VideoError:
            continue  # named and counted by whoever evaluates; a picture can be of another video
        grid = model.grid_of(*(frames.shape[i] for i in (1, 3, 4)))
        hidden = masking.make(mask, grid, ratio, 1, torch.Generator().manual_seed(seed + index))[0]
        made = reconstruction.reconstruct(model, frames[0], hidden, normalize_target)
        if not rows:
            pictures["masks.png"] = masks(frames[0], model.tubelet, seed=seed)
            pictures["reconstruction.gif"] = gif(reconstruction.animation(made))
        pictures[f"reconstruction_{len(rows)}.png"] = reconstruction.strip(made, seconds[0])
        rows.append({"id": example.id, "mask": mask, "ratio": ratio, "psnr": made.psnr})
        if len(rows) == STRIPS_SHOWN:
            break
    return pictures, {"reconstructions": rows} if rows else {}


def gif(frames: Tensor) -> bytes:
    """A GIF of frames uint8 (T,C,H,W), as bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "moving.gif"
        write_gif(path, frames, GIF_FRAMES_PER_SECOND)
        return path.read_bytes()


def labelled(examples: Sequence[Example]) -> list[Example]:
    """The Examples that have a label."""
    return [example for example in examples if example.label is not None]
