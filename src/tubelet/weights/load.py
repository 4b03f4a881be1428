"""A path becomes a model: every key on both sides is used, or loading fails and names what is left over."""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from tubelet import models
from tubelet.errors import CheckpointError, ConfigError
from tubelet.find import choose
from tubelet.models._model import PRECISIONS, Model
from tubelet.records import ClipSpec
from tubelet.weights import layouts
from tubelet.weights.checkpoint import Checkpoint, is_ours, newest, read, read_tensors, refuse_old
from tubelet.weights.fetch import fetch, is_hub_id
from tubelet.weights.fill import fill
from tubelet.weights.resize import fit_tubelets
from tubelet.weights.save import FORMAT


def load_model(path: str | Path, device: torch.device | str = "cpu", precision: str = "fp32") -> Model:
    """The model stored at `path`, in evaluation mode on `device`.

    precision is "fp32", or "bf16": the whole model in bfloat16, which is faster where the processor multiplies in it and gives
    answers that differ a little; its outputs are float32 either way.

    path is a model folder (`config.json` + `model.safetensors`), a run folder (its `model/`, or while the run is unfinished
    its newest whole checkpoint), one checkpoint, or weights in a layout of others (see `weights.foreign`), of which it is
    said what had to be assumed. Raises CheckpointError for anything else and for weights that do not fit, ConfigError for another
    precision and for an exported graph in bf16.
    """
    choose(precision, PRECISIONS, "precision")
    model = _load(located(path), device)
    if precision == "fp32":
        return model
    if not next(model.parameters()).is_floating_point():
        raise ConfigError(f"{path} is an exported graph, which has a precision of its own: leave --precision {precision} out")
    return model.bfloat16()


def _load(path: Path, device: torch.device | str) -> Model:
    if path.is_file() and path.name == "model.safetensors" and is_folder(path.parent):
        path = path.parent
    if is_ours(path):
        return _from_checkpoint(read(path), device)
    if path.is_file():
        return _foreign(path, device)
    for folder in (path, path / "model"):
        if is_folder(folder):
            return _load_folder(folder, device)
    if (path / "checkpoints").is_dir():
        checkpoint = newest(path / "checkpoints", _say)
        if checkpoint is not None:
            return _from_checkpoint(checkpoint, device)
        refuse_old(path / "checkpoints")
        raise CheckpointError(f"the run in {path} has no checkpoint yet: wait for its first")
    return _foreign(path, device)


def located(path: str | Path) -> Path:
    """Where a model lies: the path itself, or what a hub id was fetched to. CheckpointError where there is nothing."""
    path = Path(path)
    if path.is_file() and path.parent.name == "checkpoints":
        refuse_old(path.parent)
    if path.exists():
        return path.parent if path.is_file() and is_ours(path.parent) else path
    if is_hub_id(path):
        folder, revision = fetch(str(path))
        _say(f"{path}: revision {revision}")
        return folder
    raise CheckpointError(
        f"no model at {path}: expected a model folder, a run folder, a file of weights or a hub id (org/name)"
    )


def is_model(path: Path) -> bool:
    """Whether a path is a model of ours: folder, run or checkpoint."""
    return path.is_dir() and (is_ours(path) or is_folder(path) or is_folder(path / "model") or (path / "checkpoints").is_dir())


def is_folder(folder: Path) -> bool:
    """Whether this is a model folder of ours."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return isinstance(found, dict) and "format" in found
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {folder / 'config.json'}: {error}") from error


def refuse_graph(path: str | Path) -> None:
    """CheckpointError for an exported folder: a graph runs, but has no weights that could be told apart or moved."""
    folder = Path(path)
    if folder.is_dir() and is_folder(folder) and "exported" in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        raise CheckpointError(f"{path} is an exported graph, which only answers: name the model that it was made from")


def _foreign(path: Path, device: torch.device | str) -> Model:
    from tubelet.weights import foreign

    model, account = foreign.read(path)
    said = "".join(f"; {note}" for note in account.found.notes)
    _say(f"{path}: {model.name}, {account.layout} layout; assumed: {account.assumptions()}{said}")
    return model.to(device)


def rebuild(description: dict[str, Any], where: str | Path) -> Model:
    """A model from `weights.save.describe`'s dict, with weights still to come; CheckpointError when it is not one."""
    try:
        if description["format"] != FORMAT:
            raise CheckpointError(f"{where} is of format {description['format']!r}; this version reads {FORMAT!r}")
        spec = ClipSpec.from_dict(description["clip"])
        return models.build(description["name"], spec, description["class_names"], **description["options"])
    except (KeyError, TypeError, AttributeError, RuntimeError, ConfigError) as error:  # no memory is a RuntimeError of torch
        raise CheckpointError(f"{where} does not describe a tubelet model: {error}") from error


# What may differ between a pretrained encoder and the classifier made from it: (only in the source, only in the target).
# Of two towers the text's: a classifier of videos reads none.
_PRETRAINING = ("decoder.", "students.", "vocabulary.")
_DROPPED = (*_PRETRAINING, *(f"video.{part}" for part in _PRETRAINING), "norm.", "fc_norm.", "pooler.", "head.",
            "text.", "project_text.", "log_scale", "matching.")  # fmt: skip
_FRESH = ("students.", "vocabulary.", "video.students.", "video.vocabulary.", "fc_norm.", "pooler.", "head.")


def transfer(source: Model, target: Model) -> list[str]:
    """Copy the weights of `source` into `target`, and give back the names that keep their first values (the head's).

    Made for fine-tuning: the decoders and the vocabulary of pretraining are left behind; fc_norm, pooler and head are new (or
    carried over when both models tell the same classes), and so are teachers and vocabulary that only the target has. A video
    model also starts the video tower of a model with two. Positions and tubelets of other sizes are interpolated, which is said.
    Anything else that differs is a CheckpointError that names it.
    """
    tower = getattr(target, "video", None)
    if isinstance(tower, Model) and source.name == tower.name:
        kept = {f"video.{key}" for key in transfer(source, tower)}
        return [key for key in target.state_dict() if key in kept or not key.startswith("video.")]
    if source.name != target.name:
        raise CheckpointError(f"the weights are of {source.name}, the run wants {target.name}: drop --model or set it alike")
    ours = target.state_dict()
    theirs, resized = fit_tubelets(source.state_dict(), getattr(source, "tubelet", None), target)
    same_classes = bool(source.class_names) and source.class_names == target.class_names
    taken, fresh = dict(ours), []
    for key in ours:
        if key in theirs and (same_classes or not key.startswith("head.")):
            taken[key] = theirs[key]
        elif key.startswith(_FRESH):
            fresh.append(key)
        else:
            raise CheckpointError(f"{key} of {target.name} is not in the weights it should start from")
    left = [key for key in theirs if key not in ours and not key.startswith(_DROPPED)]
    if left:
        raise CheckpointError(f"the weights to start from hold {', '.join(left[:6])}, which {target.name} has no place for")
    fill(target, taken, "the model to start from")
    for text in (resized, layouts.interpolation(target)):
        if text:
            _say(text)
    return fresh


def _load_folder(folder: Path, device: torch.device | str) -> Model:
    """Of ours: weights, or a graph that was exported."""
    description = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "exported" in description:
        from tubelet.weights.exported import open_folder

        if torch.device(device).type != "cpu":
            _say(f"{folder} is an exported graph: it runs on the CPU")
        return open_folder(folder)
    model = rebuild(description, folder / "config.json")
    state, _ = read_tensors(folder / "model.safetensors")
    fill(model, state, folder)
    return model.to(device).eval()


def _from_checkpoint(checkpoint: Checkpoint, device: torch.device | str) -> Model:
    """Its weights, their moving average where one is kept: what the run would leave if it ended there."""
    model = rebuild(checkpoint.description, checkpoint.path)
    fill(model, checkpoint.part("model") | checkpoint.part("ema"), checkpoint.path)
    return model.to(device).eval()


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
