"""A path becomes a model: every key on both sides is used, or loading fails and names what is left over."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet import models
from tubelet.errors import CheckpointError, ConfigError
from tubelet.models._model import Model
from tubelet.records import ClipSpec
from tubelet.weights.checkpoint import Checkpoint, newest, read, read_tensors
from tubelet.weights.save import FORMAT


def load_model(path: str | Path, device: torch.device | str = "cpu") -> Model:
    """The model stored at `path`, in evaluation mode on `device`.

    path is a model folder (`config.json` + `model.safetensors`), a run folder (its `model/`, or while the run is unfinished
    its newest whole checkpoint) or one checkpoint file. Raises CheckpointError for anything else and for weights that do not fit.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"no model at {path}: expected a model folder, a run folder or a checkpoint file")
    if path.is_file():
        return _from_checkpoint(read(path), device)
    if (path / "config.json").is_file():
        return _load_folder(path, device)
    if (path / "model" / "config.json").is_file():
        return _load_folder(path / "model", device)
    checkpoint = newest(path / "checkpoints", _say)
    if checkpoint is not None:
        return _from_checkpoint(checkpoint, device)
    raise CheckpointError(
        f"{path} holds no model: expected config.json and model.safetensors, or a run's model/ or checkpoints/"
    )


def rebuild(description: dict[str, Any], where: str | Path) -> Model:
    """A model from `weights.save.describe`'s dict, with weights still to come; CheckpointError when it is not one."""
    try:
        if description["format"] != FORMAT:
            raise CheckpointError(f"{where} is of format {description['format']!r}; this version reads {FORMAT!r}")
        spec = ClipSpec.from_dict(description["clip"])
        return models.build(description["name"], spec, description["class_names"], **description["options"])
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"{where} does not describe a tubelet model: {error}") from error


def fill(model: Model, state: dict[str, Tensor], where: str | Path) -> None:
    """Copy a state dict into a model; CheckpointError naming every missing, left-over and misshapen weight."""
    own = model.state_dict()
    problems = [f"missing {key}" for key in own if key not in state]
    problems += [f"left over {key}" for key in state if key not in own]
    problems += [
        f"{key} is {tuple(state[key].shape)}, wanted {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if problems:
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise CheckpointError(f"the weights in {where} are of another model than {model.name}: {shown}")
    model.load_state_dict(state)


# What may differ between a pretrained encoder and the classifier made from it: (only in the source, only in the target).
_DROPPED = ("decoder.", "norm.", "fc_norm.", "pooler.", "head.")
_FRESH = ("fc_norm.", "pooler.", "head.")


def transfer(source: Model, target: Model) -> list[str]:
    """Copy the weights of `source` into `target`, and give back the names that keep their first values (the head's).

    Made for fine-tuning: the pretraining decoder is left behind, fc_norm, pooler and head are new (or carried over when both models
    tell the same classes). Anything else that differs is a CheckpointError that names it.
    """
    if source.name != target.name:
        raise CheckpointError(f"the weights are of {source.name}, the run wants {target.name}: drop --model or set it alike")
    ours, theirs = target.state_dict(), source.state_dict()
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
    return fresh


def _load_folder(folder: Path, device: torch.device | str) -> Model:
    try:
        description = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {folder / 'config.json'}: {error}") from error
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
