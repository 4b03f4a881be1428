"""Heads over stored features: fitted in seconds, and no video is decoded when a class is added.

A head is a small folder: `head.safetensors` and `config.json` (kind, class names, the fingerprint of the model whose features it
takes, the videos that were labelled). Of videos with several rows of features (one for each clip) probabilities are averaged.

N rows of features, M questions, D values of a feature, E of a projection, K classes.
"""

import contextlib
import csv
import io
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tubelet import datasets, find
from tubelet.datasets._files import natural
from tubelet.errors import CheckpointError, ConfigError, DataError, utf8
from tubelet.evaluate import linear_probe
from tubelet.evaluate.knn import knn
from tubelet.feature_store import Stored
from tubelet.seeds import derive
from tubelet.storage import utf8_name

FORMAT = "tubelet-head-1"
KindName = Literal["linear", "knn", "triplet"]
Settings = dict[str, Any]
Groups = Sequence[str]

PROJECTED = 64  # values that the triplet head keeps of a feature, at most
TRIPLET_STEPS, TRIPLET_BATCH, TRIPLET_LR = 300, 256, 1e-3


@dataclass(frozen=True)
class Head:
    """What tells classes from features: a kind with its tensors, the class names, and what it was made from.

    labelled: ids of the videos it was fitted on; fingerprint, model: of what made their features.
    """

    kind: KindName
    classes: tuple[str, ...]
    tensors: dict[str, Tensor]
    settings: dict[str, Any]
    fingerprint: str
    model: str
    labelled: tuple[str, ...]

    def probabilities(self, vectors: Tensor) -> Tensor:
        """float64 (M,K), rows sum to 1, of features (M,D)."""
        width = self.tensors["mean" if "mean" in self.tensors else "stored"].shape[-1]
        if vectors.shape[1] != width:
            raise CheckpointError(f"the head takes features of {width} values, got {vectors.shape[1]}")
        return KINDS[self.kind].predict(self.tensors, vectors.double(), len(self.classes), self.settings)


@dataclass(frozen=True)
class Answer:
    """What a head says about one video: (class, probability) pairs, most probable first. margin: the first less the second."""

    id: str
    path: str
    top: tuple[tuple[str, float], ...]

    @property
    def margin(self) -> float:
        return self.top[0][1] - self.top[1][1]


# Kinds -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """fit(features (N,D), labels (N,), K, groups (N), settings) -> tensors; predict(tensors, questions (M,D), K, settings)."""

    fit: Callable[[Tensor, Tensor, int, Groups, Settings], dict[str, Tensor]]
    predict: Callable[[dict[str, Tensor], Tensor, int, Settings], Tensor]


def _statistics(vectors: Tensor) -> dict[str, Tensor]:
    """Mean and scale per value as `evaluate.knn.standardize` takes them: a value that never changes is multiplied by 0."""
    mean, std = vectors.mean(dim=0), vectors.std(dim=0, unbiased=False)
    constant = std <= 1e-9 * vectors.abs().amax(dim=0).clamp(min=1e-30)
    return {"mean": mean, "scale": torch.where(constant, torch.zeros_like(std), 1 / std.clamp(min=1e-300))}


def _standardized(tensors: Mapping[str, Tensor], vectors: Tensor) -> Tensor:
    return (vectors - tensors["mean"]) * tensors["scale"]


def _fit_linear(vectors: Tensor, labels: Tensor, classes: int, groups: Groups, settings: Settings) -> dict[str, Tensor]:
    """Logistic regression solved to convergence (see `evaluate.linear_probe`); without l2 it is chosen by cross-validation."""
    if settings.get("l2") is None:
        settings["l2"] = linear_probe.choose_l2(vectors, labels, classes, groups)
    found = _statistics(vectors)
    weight, bias = linear_probe.fit(_standardized(found, vectors), labels, classes, settings["l2"])
    return found | {"weight": weight, "bias": bias}


def _predict_linear(tensors: dict[str, Tensor], vectors: Tensor, classes: int, settings: Settings) -> Tensor:
    return (_standardized(tensors, vectors) @ tensors["weight"].T + tensors["bias"]).softmax(dim=1)


def _fit_knn(vectors: Tensor, labels: Tensor, classes: int, groups: Groups, settings: Settings) -> dict[str, Tensor]:
    """Nothing is learned: the labelled features are kept."""
    return {"stored": vectors, "labels": labels}


def _predict_knn(tensors: dict[str, Tensor], vectors: Tensor, classes: int, settings: Settings) -> Tensor:
    return knn(tensors["stored"], tensors["labels"], vectors, classes, k=settings["k"])


def _fit_triplet(vectors: Tensor, labels: Tensor, classes: int, groups: Groups, settings: Settings) -> dict[str, Tensor]:
    """A linear projection (E,D) onto the unit sphere that puts rows of a class nearer together than to any other, and the mean of
    each class there. Batch-hard mining (Hermans et al. 2017, arXiv:1703.07737): of a batch, each row with the farthest of its own
    class and the nearest of another."""
    if int(labels.bincount().max()) < 2:
        raise DataError("the triplet head needs two labelled videos of a class at least: label more, or take --kind knn")
    found = _statistics(vectors)
    rows = F.normalize(_standardized(found, vectors), dim=1).float()
    generator = torch.Generator().manual_seed(derive("triplet", settings["seed"]))
    projection = torch.empty(min(PROJECTED, rows.shape[1]), rows.shape[1])
    torch.nn.init.orthogonal_(projection, generator=generator)
    projection.requires_grad_(True)
    optimizer = torch.optim.Adam([projection], lr=TRIPLET_LR)
    with torch.enable_grad():
        for _ in range(TRIPLET_STEPS):
            chosen = torch.randperm(len(rows), generator=generator)[:TRIPLET_BATCH]
            points, own = F.normalize(rows[chosen] @ projection.T, dim=1), labels[chosen]
            anchors, positives, negatives = hardest(points.detach(), own)
            if not len(anchors):
                continue
            loss = F.triplet_margin_loss(points[anchors], points[positives], points[negatives], margin=settings["margin"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    points = F.normalize(rows @ projection.detach().T, dim=1).double()
    sums = torch.zeros(classes, points.shape[1], dtype=torch.float64).index_add_(0, labels, points)
    return found | {"projection": projection.detach().double(), "means": F.normalize(sums, dim=1)}


def hardest(points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(anchors, positives, negatives), int64 (A,): each row of points (N,E) that has one, with the farthest of its class and the
    nearest of another."""
    distance = torch.cdist(points, points)
    same = labels[:, None] == labels
    alike = same & ~torch.eye(len(labels), dtype=torch.bool)
    anchors = (alike.any(dim=1) & (~same).any(dim=1)).nonzero()[:, 0]
    positives = distance.masked_fill(~alike, -1.0).argmax(dim=1)
    negatives = distance.masked_fill(same, float("inf")).argmin(dim=1)
    return anchors, positives[anchors], negatives[anchors]


def _predict_triplet(tensors: dict[str, Tensor], vectors: Tensor, classes: int, settings: Settings) -> Tensor:
    """The softmax of the cosines to the classes' means over 0.1: it ranks classes and doubts, it is not calibrated."""
    points = F.normalize(F.normalize(_standardized(tensors, vectors), dim=1) @ tensors["projection"].T, dim=1)
    return (points @ tensors["means"].T / 0.1).softmax(dim=1)


KINDS: dict[str, Kind] = {
    "linear": Kind(_fit_linear, _predict_linear),
    "knn": Kind(_fit_knn, _predict_knn),
    "triplet": Kind(_fit_triplet, _predict_triplet),
}


# Fitting and asking --------------------------------------------------------------------------------------------------------


def fit(
    stored: Stored,
    labels: Mapping[str, str],
    kind: KindName = "linear",
    *,
    l2: float | None = None,
    k: int = 5,
    margin: float = 0.2,
    seed: int = 0,
) -> Head:
    """A head for the classes that `labels` {id: class} names, from the stored features of these ids; ids without any are left out.

    kind "linear" (l2: strength of the penalty, None chooses it by cross-validation), "knn" (k neighbours by cosine) or "triplet"
    (margin). DataError where fewer than two classes have a labelled video.
    """
    find.choose(kind, KINDS, "kind of head")
    if k < 1 or not all(value is None or 0 < value < math.inf for value in (margin, l2)):
        raise ConfigError(f"k is {k}, margin {margin}, l2 {l2}: k must be 1 or more, the others above 0 and finite")
    rows = [row for row, id in enumerate(stored.ids) if id in labels]
    classes = tuple(sorted({labels[stored.ids[row]] for row in rows}, key=natural))
    if len(classes) < 2:
        raise DataError(
            f"the labels name {len(classes)} class{'es' * (not classes)} of the videos with features"
            f"{f' ({classes[0]})' if classes else ''}: label videos of two or more"
        )
    numbers = torch.tensor([classes.index(labels[stored.ids[row]]) for row in rows])
    ids = [stored.ids[row] for row in rows]
    all_settings: dict[str, Settings] = {"linear": {"l2": l2}, "knn": {"k": k}, "triplet": {"margin": margin, "seed": seed}}
    settings = all_settings[kind]
    groups = [os.path.realpath(stored.paths[row]) for row in rows]  # what is of one file stays together in validation
    tensors = KINDS[kind].fit(stored.vectors[rows].double(), numbers, len(classes), groups, settings)
    return Head(kind, classes, tensors, settings, stored.fingerprint, stored.model, tuple(dict.fromkeys(ids)))


def predict(head: Head, stored: Stored, top: int = 5) -> list[Answer]:
    """What the head says about every video of the features, in their order; CheckpointError for features of another model."""
    if stored.fingerprint != head.fingerprint:
        raise CheckpointError(
            f"the head was fitted on features of {head.model} with fingerprint {head.fingerprint}, these are of {stored.model} "
            f"with {stored.fingerprint}: embed the videos with the same model in the same precision, or fit a head on these"
        )
    if top < 1:
        raise ConfigError(f"top is {top}: ask for 1 class or more")
    chances = head.probabilities(stored.vectors)
    numbers = {id: number for number, id in enumerate(dict.fromkeys(stored.ids))}
    place = torch.tensor([numbers[id] for id in stored.ids])
    sums = torch.zeros(len(numbers), len(head.classes), dtype=torch.float64).index_add_(0, place, chances)
    mean = sums / place.bincount()[:, None]
    paths = dict(zip(stored.ids, stored.paths, strict=True))
    values, indices = mean.topk(min(max(top, 2), len(head.classes)), dim=1)
    return [
        Answer(id, paths[id], tuple((head.classes[i], p) for p, i in zip(chance, index, strict=True)))
        for id, chance, index in zip(numbers, values.tolist(), indices.tolist(), strict=True)
    ]


def uncertain(head: Head, stored: Stored, top: int = 20) -> list[Answer]:
    """The `top` videos without a label between whose two likeliest classes the head hesitates most, the most doubtful first."""
    if top < 1:
        raise ConfigError(f"top is {top}: ask for 1 video or more")
    known = set(head.labelled)
    asked = [answer for answer in predict(head, stored) if answer.id not in known]
    return sorted(asked, key=lambda answer: answer.margin)[:top]


# Labels and files ----------------------------------------------------------------------------------------------------------


def read_labels(paths: Sequence[str | Path], stored: Stored, split: str = "") -> tuple[dict[str, str], list[str]]:
    """({id: label}, names that no feature has) of tables with the columns label and id, or any that `tubelet finetune` takes.

    Rows without a label are passed over. A video is known by its id in the features, or by its file. Where features have seconds
    (the windows of a library), the label of a file is that of all its windows, the label of a part (columns start and end) that of
    the windows whose middle lies in it. DataError for a table without labels and for a video or window with two of them.
    """
    middles = [0.0] * len(stored.ids) if stored.seconds is None else stored.seconds.mean(dim=1).tolist()
    real = {path: os.path.realpath(path) for path in set(stored.paths)}
    by_file: dict[str, list[tuple[str, float]]] = {}
    for id, path, middle in zip(stored.ids, stored.paths, middles, strict=True):
        by_file.setdefault(real[path], []).append((id, middle))
    known = set(stored.ids)
    found: dict[str, str] = {}
    unknown: list[str] = []
    for table in paths:
        for name, path, label, start, end in _labels_of(table, split):
            of_file = by_file.get(os.path.realpath(path), []) if path else []
            if name in known:
                ids = [name]
            elif re.fullmatch(re.escape(path) + r"@.*#\d+", name, re.DOTALL):  # a window that the library no longer has
                ids = []
            elif stored.seconds is None:
                ids = [id for id, _ in of_file[:1]]
            else:
                ids = [id for id, middle in of_file if start <= middle <= end]
            if not ids:
                unknown.append(name)
            for id in ids:
                if found.setdefault(id, label) != label:
                    raise DataError(f"{table} calls {name} {label!r}, but it was {found[id]!r} before: correct one of them")
    if not found and not unknown:
        raise DataError(f"no label in {', '.join(map(str, paths))}: wanted a table with the columns id (or path) and label")
    return found, unknown


def _labels_of(table: str | Path, split: str) -> list[tuple[str, str, str, float, float]]:
    """(id, path or "", label, from, to second) of the labelled rows of a table: one with a column `id`, or a data set."""
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if rows.fieldnames and {"id", "label"} <= set(rows.fieldnames) and not split:
                return [
                    (row["id"], row.get("path") or "", row["label"].strip(), -math.inf, math.inf)
                    for row in rows
                    if (row["label"] or "").strip()
                ]
    except (OSError, UnicodeDecodeError, csv.Error):
        pass  # a folder, or no CSV: the readers of data sets know what it is, or say what is wrong
    examples = datasets.read(table).examples
    if split and not any(example.split == split for example in examples):
        sides = sorted({example.split for example in examples if example.split})
        raise DataError(f"no split {split!r} in {table} (known: {', '.join(sides) or 'none'})")
    return [
        (one.id, one.path, one.label, one.start_seconds or 0, math.inf if one.end_seconds is None else one.end_seconds)
        for one in examples
        if one.label and (not split or one.split == split)
    ]


def to_label(answers: Sequence[Answer]) -> str:
    """A CSV to fill in: id, path, an empty label, what the head guesses, and the margin by which it does."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "path", "label", "guess", "margin"])
    for answer in answers:
        writer.writerow([answer.id, answer.path, "", answer.top[0][0], f"{answer.margin:.4f}"])
    return text.getvalue()


def save(head: Head, folder: str | Path) -> Path:
    """Write the folder of a head, whole or not at all; an older one is replaced. CheckpointError where it cannot be written."""
    folder = Path(folder)
    if folder.exists() and not _is_head(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is no head: choose another --out")
    config = {"format": FORMAT, "kind": head.kind, "classes": list(head.classes), "settings": head.settings,
              "fingerprint": head.fingerprint, "model": head.model, "labelled": list(head.labelled)}  # fmt: skip
    draft: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        save_file({name: tensor.contiguous() for name, tensor in head.tensors.items()}, draft / "head.safetensors")
        (draft / "config.json").write_bytes(utf8(json.dumps(config, indent=2, ensure_ascii=False)).encode())
        os.chmod(draft, 0o755)  # mkdtemp makes it private
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            try:
                os.rename(folder, old / folder.name)
                try:
                    os.rename(draft, folder)
                except BaseException:
                    os.rename(old / folder.name, folder)
                    raise
                shutil.rmtree(old / folder.name, ignore_errors=True)
            finally:
                with contextlib.suppress(OSError):  # it is kept while the older head is in it
                    old.rmdir()
        else:
            os.rename(draft, folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write the head {folder}: {error}; nothing was changed") from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


def load(folder: str | Path) -> Head:
    """The head in a folder; CheckpointError where it is none or damaged."""
    folder = Path(folder)
    if not _is_head(folder):
        raise CheckpointError(f"{folder} is no head: give the folder that `tubelet classify fit ... --out HEAD` wrote")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        with utf8_name(folder / "head.safetensors") as name:
            tensors = load_file(name)
        head = Head(config["kind"], tuple(config["classes"]), tensors, config["settings"], config["fingerprint"], config["model"],
                    tuple(config["labelled"]))  # fmt: skip
        find.choose(head.kind, KINDS, "kind of head")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, ConfigError) as error:
        raise CheckpointError(f"the head {folder} is damaged ({error}): fit it again") from error
    return head


def _is_head(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return isinstance(config, dict) and config.get("format") == FORMAT
    except (OSError, ValueError):
        return False
