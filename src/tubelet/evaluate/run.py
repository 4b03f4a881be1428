"""The whole job of `tubelet evaluate`: model and data in, results beside their baselines and a report out."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tubelet import datasets
from tubelet.errors import CheckpointError, DataError, TubeletError
from tubelet.evaluate import baselines, protocol, report, retrieval
from tubelet.evaluate.multiview import Looks, crops_of, label_numbers, look
from tubelet.evaluate.sides import Met, met, run_of, sides
from tubelet.models._model import Model
from tubelet.records import Example
from tubelet.train.config import TrainConfig
from tubelet.weights.load import load_model

FEATURE_CLIPS = 2
METHODS = ("linear probe", "k-NN")


@dataclass(frozen=True)
class Settings:
    """How to evaluate.

    split         name of the split to evaluate; "all" for every video; "" for the data's own, or what the run held out
    clips, crops  views per video, in time and in space, whose probabilities are averaged; crops None: see `crops_of`
    methods       what to fit on frozen features: any of "linear probe", "k-NN" and "linear SVM"
    precision     "fp32" or "bf16", of every pass through a model; training from random initialisation goes by the run's
    baseline      train the same model from random initialisation on the same budget (a fine-tuned run only)
    """

    split: str = ""
    clips: int = 5
    crops: int | None = None
    methods: tuple[str, ...] = METHODS
    baseline: bool = True
    batch_size: int = 8
    workers: int | None = None
    device: str = "cpu"
    precision: str = "fp32"


@dataclass(frozen=True)
class Evaluation:
    """What was found, and where the report is.

    results             rows of the results table
    missing             (id, reason) of videos that could not be read, of the `asked` ones
    part                which part of the data was asked about
    before              how many of the evaluated videos the model was trained on
    retrieval           rows of `tubelet.evaluate.retrieval`, where videos were found by captions
    missing_in_training (id, reason) of unreadable videos that k-NN and linear probe should have been fitted on
    """

    results: list[dict[str, Any]]
    missing: list[tuple[str, str]]
    asked: int
    report: Path
    part: str
    before: Met
    classes: tuple[str, ...] = ()
    per_class: list[dict[str, Any]] = field(default_factory=list)
    missing_in_training: tuple[tuple[str, str], ...] = ()
    retrieval: list[dict[str, Any]] = field(default_factory=list)


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
    else its own, beside those of untrained weights. Majority class and chance are always there. Every row about the
    model says how many of the videos it was trained on.

    A model that reads text is judged on videos with captions: which sentence finds which video (see `retrieve`).
    """
    model = load_model(model_path, settings.device, settings.precision)
    if model.reads_text and retrieval.captioned(datasets.read_many(data).examples):
        return retrieve(model, model_path, data, out, settings, say)
    if not model.class_names and not settings.methods:
        raise DataError("nothing to evaluate: the model has no classes; ask for k-NN or a linear probe")
    run = run_of(model_path)
    config = TrainConfig.from_yaml(run / "config.yaml") if run else None
    folder = Path(out) if out else run or Path("runs") / f"evaluate_{Path(model_path).resolve().name}"
    cut = sides(data, settings.split, config, bool(model.class_names), say)
    class_names = model.class_names or cut.train.classes or cut.asked.classes
    examples = protocol.labelled(cut.asked.examples)
    if not examples:
        raise DataError(
            f"none of the {len(cut.asked.examples)} videos to evaluate has a label: there is nothing to compare with"
        )
    label_numbers(examples, class_names)  # an unknown label is an error now, not after the pass
    train = known(cut.train.examples, class_names, say)
    if not model.class_names and not train:
        raise DataError(
            "nothing to evaluate: the model has no classes, and k-NN and linear probe need labelled training videos"
        )
    report.claim(folder)
    before = met(run, examples, say)
    say(f"evaluating {cut.part}" + (f"; {before.note}" if before.note else ""))

    encoder, encoder_run, weights = frozen_source(model, run, config, say)
    pictures: protocol.Pictures = {}
    sections: protocol.Sections = {"name": folder.resolve().name, "model": protocol.model_section(model)}
    rows: list[protocol.Row] = []
    looks: Looks | None = None
    missing_in_training: tuple[tuple[str, str], ...] = ()
    if model.class_names:
        looks = _look(model, examples, settings.clips, crops_of(model.spec, settings.crops), settings, "classifying")
        started = "this model" if config is None else "pretrained" if config.init else "random initialisation"
        rows.append(protocol.classification_row(looks, class_names, started, note=before.note))
        pictures, more = protocol.classification_sections(looks, class_names, model)
        sections |= more
        rows += budget_rows(run, config, examples, rows[0], settings, report.load(folder), say)
    if settings.methods and train:
        note = before.note if encoder is model else met(encoder_run, examples).note
        frozen, seen, missing_in_training = frozen_rows(encoder, train, examples, class_names, weights, note, settings)
        rows += frozen
        if looks is None:
            looks = seen
            pictures, more = protocol.seen_sections(seen, class_names)
            sections |= more
    elif settings.methods:
        say("no training part in this data: k-NN and linear probe are left out")
    assert looks is not None, "checked above"
    sections["data"] |= protocol.data_section(cut.part, before)
    rows += protocol.floor_rows(train, looks.examples, class_names)
    how = (TrainConfig.from_yaml(encoder_run / "config.yaml") if encoder_run else TrainConfig(out="")).masked
    more_pictures, more = protocol.pretraining_sections(encoder, examples, how.normalize_target, how.mask, how.ratio)
    path = report.update(folder, pictures | more_pictures, **sections, **more, results=rows)
    return Evaluation(
        report.load(folder)["results"], list(looks.missing), len(examples), path, cut.part, before, tuple(class_names),
        sections.get("per_class", []), missing_in_training,
    )  # fmt: skip


def retrieve(
    model: Model, model_path: str | Path, data: Sequence[str], out: str | Path | None, settings: Settings,
    say: Callable[[str], None],
) -> Evaluation:  # fmt: skip
    """Text to video and video to text on the held-out videos that have captions; one crop of each window unless more are asked
    for."""
    run = run_of(model_path)
    config = TrainConfig.from_yaml(run / "config.yaml") if run else None
    folder = Path(out) if out else run or Path("runs") / f"evaluate_{Path(model_path).resolve().name}"
    cut = sides(data, settings.split, config, False, say, texts=True)
    examples = retrieval.captioned(cut.asked.examples)
    report.claim(folder)
    before = met(run, examples, say)
    say(f"evaluating {cut.part}" + (f"; {before.note}" if before.note else ""))
    looks = _look(model, examples, settings.clips, settings.crops or 1, settings, "embedding")
    rows = retrieval.rows(model, looks)
    about = {"asked": len(examples), "evaluated": len(looks.examples)} | protocol.views(looks)
    sections: protocol.Sections = {
        "name": folder.resolve().name, "model": protocol.model_section(model), "retrieval": rows,
        "data": about | protocol.data_section(cut.part, before),
        "missing": [{"id": id, "reason": reason} for id, reason in looks.missing],
    }  # fmt: skip
    path = report.update(folder, **sections)
    return Evaluation([], list(looks.missing), len(examples), path, cut.part, before, retrieval=rows)


def known(train: Sequence[Example], class_names: Sequence[str], say: Callable[[str], None]) -> list[Example]:
    """The labelled training videos whose class the model tells; says how many have another."""
    labelled = protocol.labelled(train)
    kept = [example for example in labelled if example.label in class_names]
    if len(kept) < len(labelled):
        other = sorted({str(example.label) for example in labelled} - set(class_names))
        say(
            f"{len(labelled) - len(kept)} of {len(labelled)} training videos are of classes the model never learned "
            f"({', '.join(other[:5])}{', ...' if len(other) > 5 else ''}): k-NN and linear probe do without them"
        )
    return kept


def frozen_source(
    model: Model, run: Path | None, config: TrainConfig | None, say: Callable[[str], None]
) -> tuple[Model, Path | None, str]:
    """(the model whose frozen features are judged, the run that made it, its name in the table)."""
    if not model.class_names:
        return model, run, "pretrained"
    if config is not None and config.init:
        try:
            device = next(model.parameters()).device
            return load_model(config.init, device, model.precision), run_of(config.init), "pretrained"
        except CheckpointError as error:
            say(f"the pretrained model it started from cannot be read, so its own features are judged: {error}")
    return model, run, "this model"


def frozen_rows(
    encoder: Model,
    train: Sequence[Example],
    asked: Sequence[Example],
    class_names: Sequence[str],
    weights: str,
    met_before: str,
    settings: Settings,
) -> tuple[list[protocol.Row], Looks, tuple[tuple[str, str], ...]]:
    """k-NN and linear probe on the encoder's features and on those of untrained weights; what the encoder saw; and
    the unreadable training videos."""
    rows: list[protocol.Row] = []
    seen: list[Looks] = []
    sources = (
        (encoder, weights, "frozen features", met_before),
        (baselines.untrained(encoder), "random initialisation", "features of untrained weights", ""),
    )
    for network, name, features, remark in sources:
        stored = _look(network, train, FEATURE_CLIPS, 1, settings, f"training features, {name}")
        seen.append(_look(network, asked, FEATURE_CLIPS, 1, settings, f"features, {name}"))
        unreadable = f" of {len(train)}" if stored.missing else ""
        note = f"{features}, {len(stored.examples)}{unreadable} labelled training videos" + (f"; {remark}" if remark else "")
        rows += protocol.frozen_rows(stored, seen[-1], class_names, name, settings.methods, note)
    return rows, seen[0], stored.missing


def budget_rows(
    run: Path | None,
    config: TrainConfig | None,
    examples: Sequence[Example],
    own: protocol.Row,
    settings: Settings,
    report_so_far: dict[str, Any],
    say: Callable[[str], None],
) -> list[protocol.Row]:
    """The same model from random initialisation on the same budget: its row, or one that says why it has no number."""
    name, weights = "fine-tuned", "random initialisation"
    if config is not None and not config.init:
        return []  # the model itself started from random weights: it is its own baseline
    if not settings.baseline:
        alike = {**{key: own[key] for key in ("data", "clips", "crops", "precision")}, "name": name, "weights": weights}
        if any(alike.items() <= {"precision": "fp32", **row}.items() for row in report_so_far.get("results", [])):
            return []
        return [protocol.row_without_number(name, weights, "left out (--no-baseline)", own)]
    if run is None or config is None:
        reason = "not trained: no run folder whose training could be repeated"
        return [protocol.row_without_number(name, weights, reason, own)]
    try:
        say(f"the same model from random initialisation is trained in {run / 'random_init'} (skip with --no-baseline)")
        twin_run = baselines.random_initialisation(run)
        twin = load_model(twin_run, settings.device, settings.precision)
    except TubeletError as error:
        say(f"no baseline from random initialisation: {error}")
        return [protocol.row_without_number(name, weights, f"not trained: {error}", own)]
    looks = _look(twin, examples, own["clips"], own["crops"], settings, "classifying, random initialisation")
    remarks = [baselines.twin_note(run), met(twin_run, examples).note]
    return [protocol.classification_row(looks, twin.class_names, weights, name, "; ".join(filter(None, remarks)))]


def _look(model: Model, examples: Sequence[Example], clips: int, crops: int, settings: Settings, what: str) -> Looks:
    with tqdm(total=len(examples), desc=what, unit="video", file=sys.stderr, disable=None, leave=False) as bar:
        return look(model, examples, clips, crops, settings.batch_size, settings.workers, on_video=lambda done: bar.update(1))
