"""The whole job of `tubelet evaluate`: model and data in, results beside their baselines and a report out."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tubelet import datasets
from tubelet.datasets.split import split as split_dataset
from tubelet.errors import CheckpointError, DataError
from tubelet.evaluate import baselines, protocol, report
from tubelet.evaluate.multiview import Looks, look
from tubelet.models._model import Model
from tubelet.records import Dataset, Example
from tubelet.train import data as training_data
from tubelet.train.config import TrainConfig
from tubelet.weights.load import load_model

FEATURE_CLIPS = 2
METHODS = ("linear probe", "k-NN")


@dataclass(frozen=True)
class Settings:
    """How to evaluate.

    split         name of the split to evaluate; "all" for every video; "" for the data's own, or what the run held out
    clips, crops  views per video, in time and in space, whose probabilities are averaged
    methods       what to fit on frozen features: "linear probe", "k-NN", both or neither
    baseline      train the same model from random initialisation on the same budget (a fine-tuned run only)
    """

    split: str = ""
    clips: int = 5
    crops: int = 3
    methods: tuple[str, ...] = METHODS
    baseline: bool = True
    batch_size: int = 8
    workers: int | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Evaluation:
    """rows of the results table; (id, reason) of unreadable videos; how many were asked for; where the report is."""

    results: list[dict[str, Any]]
    missing: list[tuple[str, str]]
    asked: int
    report: Path
    classes: tuple[str, ...] = ()
    per_class: list[dict[str, Any]] = field(default_factory=list)


def evaluate(
    model_path: str | Path,
    data: Sequence[str],
    out: str | Path | None = None,
    settings: Settings = Settings(),
    say: Callable[[str], None] = lambda message: None,
) -> Evaluation:
    """Evaluate the model at a path on videos, and write or extend the report in `out` (default: the model's run
    folder).

    A classifier is judged with clips x crops views, beside the same model without pretraining on the same budget.
    k-NN and linear probe judge frozen features: those of the pretrained model it started from where that is known,
    else its own, beside those of untrained weights. Majority class and chance are always there.
    """
    model = load_model(model_path, settings.device)
    run = run_of(model_path)
    config = TrainConfig.from_yaml(run / "config.yaml") if run else None
    folder = Path(out) if out else run or Path("runs") / f"evaluate_{Path(model_path).resolve().name}"
    train, asked = sides(data, settings.split, config, bool(model.class_names), say)
    class_names = model.class_names or train.classes or asked.classes
    examples = protocol.labelled(asked.examples)
    if not examples:
        raise DataError(f"none of the {len(asked.examples)} videos to evaluate has a label: there is nothing to compare with")
    encoder, encoder_config, weights = frozen_source(model, config, say)

    pictures: protocol.Pictures = {}
    sections: protocol.Sections = {"name": folder.resolve().name, "model": protocol.model_section(model)}
    rows: list[protocol.Row] = []
    looks: Looks | None = None
    if model.class_names:
        looks = _look(model, examples, settings.clips, settings.crops, settings, "classifying")
        started = "this model" if config is None else "pretrained" if config.init else "random initialisation"
        rows.append(protocol.classification_row(looks, class_names, started))
        pictures, more = protocol.classification_sections(looks, class_names, settings.clips, settings.crops, model)
        sections |= more
        rows += budget_rows(run, config, examples, settings, report.load(folder), say)
    if settings.methods and protocol.labelled(train.examples):
        frozen, seen = frozen_rows(encoder, train.examples, examples, class_names, weights, settings)
        rows += frozen
        if looks is None:
            looks = seen
            pictures, more = protocol.seen_sections(seen, class_names, FEATURE_CLIPS, 1)
            sections |= more
    elif settings.methods:
        say("no training part in this data: k-NN and linear probe are left out")
    if looks is None:
        raise DataError(
            "nothing to evaluate: the model has no classes, and k-NN and linear probe need labelled training videos"
        )
    rows += protocol.floor_rows(train.examples, looks.examples, class_names)
    how = (encoder_config or TrainConfig(out="")).masked
    more_pictures, more = protocol.pretraining_sections(encoder, examples, how.normalize_target, how.mask, how.ratio)
    path = report.update(folder, pictures | more_pictures, **sections, **more, results=rows)
    results = report.load(folder)["results"]
    per_class = sections.get("per_class", [])
    return Evaluation(results, list(looks.missing), len(examples), path, tuple(class_names), per_class)


def data_of(model_path: str | Path) -> tuple[str, ...]:
    """The data the run at `model_path` was trained on; DataError where that is not known."""
    run = run_of(model_path)
    if run is None:
        raise DataError(f"no data given, and {model_path} is no run that could tell: tubelet evaluate MODEL DATA")
    return TrainConfig.from_yaml(run / "config.yaml").data.train


def run_of(model_path: str | Path) -> Path | None:
    """The run folder (it has a config.yaml) that a run, its model/ or one of its checkpoints belongs to; None for
    others."""
    path = Path(model_path).resolve()
    for folder in (path, path.parent, path.parent.parent):
        if (folder / "config.yaml").is_file():
            return folder
    return None


def sides(
    data: Sequence[str], split: str, config: TrainConfig | None, classifier: bool, say: Callable[[str], None]
) -> tuple[Dataset, Dataset]:
    """(training part, part to evaluate) of the data.

    The data a run was trained on is cut exactly as the run cut it, so that nothing is judged on what it learned
    from. Other data are cut by their own splits. A classifier is judged on all of a data set without splits.
    """
    if split != "all" and config is not None and _same(data, config.data.train):
        wanted = replace(config.data, val=(), val_split=split) if split else config.data
        train, held = training_data.load(wanted, needs_labels=True)
        assert held is not None, "with labels something is always held out"
        return train, held
    whole = datasets.read_many(data)
    nothing = replace(whole, examples=())
    if split == "all":
        return nothing, whole
    if split or any(example.split for example in whole.examples):
        return split_dataset(whole, None, split or None)
    if classifier:
        say(f"this data has no splits: all {len(whole.examples)} videos are evaluated (was the model trained on some of them?)")
        return nothing, whole
    return split_dataset(whole)


def frozen_source(
    model: Model, config: TrainConfig | None, say: Callable[[str], None]
) -> tuple[Model, TrainConfig | None, str]:
    """(the model whose frozen features are judged, the settings it was pretrained with, its name in the table)."""
    if not model.class_names:
        return model, config, "pretrained"
    if config is not None and config.init:
        try:
            source = load_model(config.init, next(model.parameters()).device)
        except CheckpointError as error:
            say(f"the pretrained model it started from cannot be read, so its own features are judged: {error}")
        else:
            run = run_of(config.init)
            return source, TrainConfig.from_yaml(run / "config.yaml") if run else None, "pretrained"
    return model, None, "this model"


def frozen_rows(
    encoder: Model,
    train: Sequence[Example],
    asked: Sequence[Example],
    class_names: Sequence[str],
    weights: str,
    settings: Settings,
) -> tuple[list[protocol.Row], Looks]:
    """k-NN and linear probe on the encoder's features and on those of untrained weights; and what the encoder saw."""
    rows: list[protocol.Row] = []
    seen: list[Looks] = []
    for network, name in ((encoder, weights), (baselines.untrained(encoder), "random initialisation")):
        stored = _look(network, protocol.labelled(train), FEATURE_CLIPS, 1, settings, f"training features, {name}")
        seen.append(_look(network, asked, FEATURE_CLIPS, 1, settings, f"features, {name}"))
        features = "frozen features" if network is encoder else "features of untrained weights"
        rows += protocol.frozen_rows(stored, seen[-1], class_names, name, settings.methods, features)
    return rows, seen[0]


def budget_rows(
    run: Path | None,
    config: TrainConfig | None,
    examples: Sequence[Example],
    settings: Settings,
    known: dict[str, Any],
    say: Callable[[str], None],
) -> list[protocol.Row]:
    """The same model from random initialisation on the same budget: its row, or one that says why it has no number."""
    name, weights = "fine-tuned", "random initialisation"
    if config is not None and not config.init:
        return []  # the model itself started from random weights: it is its own baseline
    if not settings.baseline:
        if any(
            row["name"] == name and row["weights"] == weights and row["top1"] is not None for row in known.get("results", [])
        ):
            return []
        return [_no_number(name, weights, "not trained (--no-baseline)")]
    if run is None or config is None:
        return [_no_number(name, weights, "not trained: no run folder whose training could be repeated")]
    say(f"training the same model from random initialisation in {run / 'random_init'} (skip with --no-baseline)")
    twin = load_model(baselines.random_initialisation(run), settings.device)
    looks = _look(twin, examples, settings.clips, settings.crops, settings, "classifying, random initialisation")
    note = "the same training without pretraining"
    return [protocol.classification_row(looks, twin.class_names, weights, name, note)]


def _no_number(name: str, weights: str, note: str) -> protocol.Row:
    numbers = dict.fromkeys(("top1", "top5", "mean_class_accuracy", "videos"))
    return {"name": name, "weights": weights, "note": note, **numbers}


def _look(model: Model, examples: Sequence[Example], clips: int, crops: int, settings: Settings, what: str) -> Looks:
    with tqdm(total=len(examples), desc=what, unit="video", file=sys.stderr, disable=None, leave=False) as bar:
        return look(model, examples, clips, crops, settings.batch_size, settings.workers, on_video=lambda done: bar.update(1))


def _same(data: Sequence[str], trained_on: Sequence[str]) -> bool:
    return {Path(path).resolve() for path in data} == {Path(path).resolve() for path in trained_on}
