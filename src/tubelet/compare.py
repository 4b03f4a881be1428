"""Models side by side: each is trained on the same videos under one budget and judged on the same held-out ones."""

import contextlib
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet import models
from tubelet.errors import ConfigError, TubeletError
from tubelet.evaluate import protocol, report
from tubelet.evaluate.multiview import look
from tubelet.evaluate.sides import part_of
from tubelet.models._model import Model
from tubelet.records import Dataset
from tubelet.show.curves import curves
from tubelet.show.ladder import ladder
from tubelet.train import data, parallel
from tubelet.train.config import TrainConfig
from tubelet.train.device import choose_device
from tubelet.train.folder import begun, finished_steps
from tubelet.train.log import environment
from tubelet.train.loop import train
from tubelet.weights import flow
from tubelet.weights.load import load_model

TRIAL_STEPS, TRIAL_SHARE = 20, 0.1  # of a run that is given minutes, to find out how many steps fit: the less of the two
SPEED_ROUNDS, SPEED_BATCH = 7, 8


@dataclass(frozen=True)
class Comparison:
    """What was found, and where the report is.

    rows     one per model in the order of the ladder, then majority class and chance: name, weights ("random initialisation" or
             "pretrained"), top1, top1_low, top1_high (95 %, Wilson), mean_class_accuracy, videos, params, gmacs,
             clips_per_second (inference, no decoding), training_clips_per_second, training_clips, training_seconds.
             A model that failed has only a `note` that says why, top1 is None; one whose speed alone could not be measured has
             a `note` too, and no clips_per_second
    failed   name -> the reason
    untimed  name -> why its speed could not be measured
    missing  (id, reason) of held-out videos that could not be read, of the `asked` ones
    """

    rows: list[dict[str, Any]]
    failed: dict[str, str]
    untimed: dict[str, str]
    part: str
    asked: int
    missing: list[tuple[str, str]]
    report: Path


def compare(
    runs: Sequence[tuple[str, TrainConfig]],
    out: str | Path,
    minutes: float | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> Comparison:
    """Train each of `runs` (see `recipes.compare.ladder`), look at the held-out videos with it, one view each, and draw the
    report in `out`. A run that was stopped is continued, a finished one is neither trained nor judged again.

    minutes: train each for about so long in place of the number of steps in its configuration; a short trial finds how many fit.
    A model that cannot take the clip, or fails in training, is named with the reason and the others go on. `init_flow` goes to
    the models that have a RAFT. Raises ConfigError when all fail, when `out` holds a comparison under another budget, and for an
    `init_flow` that no model takes.
    """
    if parallel.world() > 1:
        raise ConfigError("models are compared one after another in one process: start `tubelet compare` without torchrun")
    out, first = Path(out), runs[0][1]
    report.claim(out)
    budget = {"minutes": minutes} if minutes else {"clips": first.optim.steps and first.optim.steps * first.clips_per_step}
    kept = report.load(out)
    before = kept.get("ladder", {"budget": budget, "rows": []})
    if before["budget"] != budget:
        raise ConfigError(
            f"{out} holds a comparison under another budget ({in_words(before['budget'])}, now {in_words(budget)}): "
            "choose another --out, or repeat the first command to continue it"
        )
    train_set, held_out = data.load(first.data, needs_labels=True)
    assert held_out is not None, "with labels something is always held out"
    costs, failed, with_raft = fitting(runs, train_set.classes)
    for name, reason in failed.items():
        say(f"{name} is left out: {reason}")
    if first.init_flow and not with_raft:
        raise ConfigError(
            f"init_flow is {first.init_flow}, but none of {', '.join(costs) or 'the models'} has a RAFT: leave it out, or name "
            "a model with one, for example two_stream_resnet18:estimator=raft_small"
        )
    runs = [(name, config if name in with_raft else replace(config, init_flow=None)) for name, config in runs]

    missing = [(row["id"], row["reason"]) for row in kept.get("missing", [])]
    done = {row["name"]: row for row in before["rows"]}
    found: dict[str, protocol.Row] = {}
    for number, (name, config) in enumerate(runs, start=1):
        if name not in costs:
            continue
        say(
            f"{number}/{len(runs)}  {name}: {costs[name]['params'] / 1e6:.2f} M parameters, {costs[name]['gmacs']:.3g} GMAC a clip"
        )
        try:
            config = settled(config, minutes)
            was_finished = finished_steps(Path(config.out)) == config.optim.steps
            run = train(config)
            readable = [one for one in held_out.examples if one.id not in dict(missing)]
            if was_finished and done.get(name, {}).get("data") == protocol.fingerprint(readable):
                found[name] = done[name]
                continue
            model = load_model(run, choose_device(config.run.device))
            looks = look(model, held_out.examples, batch_size=config.loader.batch_size, workers=config.loader.workers)
            weights = "pretrained" if config.init else "random initialisation"
            row = protocol.classification_row(looks, model.class_names, weights, name) | costs[name] | of_training(run, config)
        except Exception as error:  # of any kind, no memory or a batch too small for its norms: the other models go on
            failed[name] = reason_of(error)
            say(f"{name} has no result: {failed[name]}")
            continue
        missing = list(looks.missing)
        found[name] = row
        write(out, budget, runs, found, failed, costs, train_set, held_out, missing)
    if not found:
        name, reason = next(iter(failed.items()))
        raise ConfigError(f"not one of {len(runs)} models could be compared; {name}: {reason}")
    say("speed of inference, all models in turn")
    fast, untimed = speeds({name: config for name, config in runs if name in found})
    for name, row in found.items():
        row.pop("clips_per_second", None)  # that of an earlier command
        row.update({"clips_per_second": fast[name], "note": ""} if name in fast else {"note": f"not timed: {untimed[name]}"})
    rows, path = write(out, budget, runs, found, failed, costs, train_set, held_out, missing)
    return Comparison(rows, failed, untimed, part_of(held_out.examples), len(held_out.examples), missing, path)


def reason_of(error: Exception) -> str:
    """One line; of an error that no message of ours explains also its kind."""
    return str(error) if isinstance(error, TubeletError) else f"{type(error).__name__}: {' '.join(str(error).split())}"


def fitting(
    runs: Sequence[tuple[str, TrainConfig]], classes: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, str], set[str]]:
    """({name: params and gmacs of every model that takes the clips}, {name: why the others do not}, names of those with a RAFT);
    nothing is computed."""
    costs, failed, with_raft = {}, {}, set()
    for name, config in runs:
        try:
            with torch.device("meta"):
                model = models.build(config.model.name, config.clip, classes, **config.model.options)
            costs[name] = models.cost(model)
        except Exception as error:  # of any kind, such as sizes that no memory holds
            failed[name] = reason_of(error)
            continue
        if flow.rafts(model):
            with_raft.add(name)
    return costs, failed, with_raft


def settled(config: TrainConfig, minutes: float | None) -> TrainConfig:
    """The run with the steps that it has: those it began with, or as many as fit into the minutes, where there are any."""
    if minutes is None:
        return config
    path = Path(config.out) / "config.yaml"
    if begun(Path(config.out)) and path.exists():
        return replace(config, optim=replace(config.optim, steps=TrainConfig.from_yaml(path).optim.steps))
    seconds = 60 * minutes
    steps = max(1, int(seconds / seconds_a_step(config, TRIAL_SHARE * seconds)))
    return replace(config, optim=replace(config.optim, steps=steps))


class Enough(Exception):
    """A trial has seen what it wanted."""


def seconds_a_step(config: TrainConfig, longest_seconds: float) -> float:
    """The median over the first steps of the run, loading included, tried in a folder that is thrown away."""
    ends: list[float] = []

    def on_step(step: int, numbers: dict[str, Tensor]) -> None:
        float(numbers.get("loss", 0.0))  # waits for the device
        ends.append(time.monotonic())
        if len(ends) == TRIAL_STEPS or (len(ends) > 2 and ends[-1] - ends[0] > longest_seconds):
            raise Enough

    quiet = replace(config.run, report=False, validations=0)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Enough), contextlib.redirect_stderr(io.StringIO()):
        train(replace(config, out=folder, optim=replace(config.optim, steps=TRIAL_STEPS), run=quiet), on_step)
    return statistics.median(b - a for a, b in itertools.pairwise(ends))


def of_training(run: Path, config: TrainConfig) -> dict[str, Any]:
    """What the log tells of a finished run: clips, seconds, and the median speed between its lines, loading included."""
    log = report.read_log(run)
    speed = statistics.median(entry["clips_per_second"] for entry in log)
    clips = log[-1]["step"] * config.clips_per_step
    return {"training_clips_per_second": speed, "training_clips": clips, "training_seconds": log[-1]["seconds"]}


@torch.inference_mode()
def speeds(runs: Mapping[str, TrainConfig]) -> tuple[dict[str, float], dict[str, str]]:
    """({name: clips a second from frames to logits}, {name: why it could not be measured}): the models take turns on the same
    frames, and medians are kept."""
    turns: dict[str, tuple[Model, Tensor]] = {}
    failed: dict[str, str] = {}
    for name, config in runs.items():
        try:
            model = load_model(config.out, choose_device(config.run.device))
            turns[name] = model, frames_for(model)
        except Exception as error:  # of any kind: the other models go on
            failed[name] = reason_of(error)
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(SPEED_ROUNDS + 1):
        for name, (model, frames) in list(turns.items()):
            began = time.perf_counter()
            try:
                model(frames)["logits"].sum().item()  # waits for the device
            except Exception as error:
                failed[name] = reason_of(error)
                del turns[name]
                continue
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
    return {name: SPEED_BATCH / statistics.median(seconds[name]) for name in turns}, failed


def frames_for(model: Model) -> Tensor:
    spec, device = model.spec, next(model.parameters()).device
    shape = (SPEED_BATCH, spec.frames, 3, spec.size, spec.size)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).to(device)


def write(
    out: Path, budget: Mapping[str, Any], runs: Sequence[tuple[str, TrainConfig]], found: Mapping[str, protocol.Row],
    failed: Mapping[str, str], costs: Mapping[str, dict[str, Any]], train_set: Dataset, held_out: Dataset,
    missing: Sequence[tuple[str, str]],
) -> tuple[list[protocol.Row], Path]:  # fmt: skip
    """Draw the report of what is known so far; gives the rows of its table, and its path."""
    config = runs[0][1]
    readable = [one for one in held_out.examples if one.id not in dict(missing)]
    rows = [
        found[name]
        if name in found
        else {"name": name, "weights": "failed", "top1": None, "note": failed[name]} | costs.get(name, {})
        for name, _ in runs
        if name in found or name in failed
    ] + protocol.floor_rows(train_set.examples, readable, train_set.classes)
    lines = {name: validation(Path(run.out)) for name, run in runs if name in found}
    panels = {"Top-1 on the held-out videos while training": {name: line for name, line in lines.items() if line[0]}}
    pictures = {}
    for theme in ("light", "dark"):
        pictures[f"ladder.{theme}.png"] = ladder(rows, dark=theme == "dark")
        if panels and any(panels.values()):
            pictures[f"learning.{theme}.png"] = curves(panels, "training clips", dark=theme == "dark")
    facts = {"videos": len(train_set.examples), "fingerprint": data.fingerprint(train_set)}
    path = report.update(
        out,
        pictures,
        name=out.resolve().name,
        ladder={"budget": dict(budget), "clip": config.clip.to_dict(), "rows": rows},
        classes=list(train_set.classes),
        data={"part": part_of(held_out.examples), "asked": len(held_out.examples), "evaluated": len(readable)}
        | {"clips": 1, "crops": 1},
        missing=[{"id": id, "reason": reason} for id, reason in missing],
        environment=environment(choose_device(config.run.device), config.run.precision, facts),
    )
    return rows, path


def validation(run: Path) -> tuple[list[float], list[float]]:
    """(training clips, top-1) at every validation in a run's log."""
    clips_per_step = TrainConfig.from_yaml(run / "config.yaml").clips_per_step
    seen = [entry for entry in report.read_log(run) if "val_top1" in entry]
    return [entry["step"] * clips_per_step for entry in seen], [entry["val_top1"] for entry in seen]


def in_words(budget: Mapping[str, Any]) -> str:
    """ "6,400 clips each", "2 minutes each"."""
    name, value = next(iter(budget.items()))
    return f"{value:,g} {name} each"
