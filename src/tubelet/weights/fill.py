"""Weights go into a model: every key on both sides is used, or nothing is."""

from pathlib import Path

from torch import Tensor

from tubelet.errors import CheckpointError
from tubelet.models._keys import nearest
from tubelet.models._model import Model

SHOWN = 6


def fill(model: Model, state: dict[str, Tensor], where: str | Path) -> None:
    """Copy a state dict into a model; CheckpointError naming every missing weight, with the nearest of those left over, every
    left-over and every misshapen one. The model is untouched then."""
    own = model.state_dict()
    left = [key for key in state if key not in own]
    problems = [f"missing {key}{nearest(key, left)}" for key in own if key not in state]
    problems += [f"left over {key}" for key in left]
    problems += [
        f"{key} is {tuple(state[key].shape)}, wanted {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if problems:
        shown = "; ".join(problems[:SHOWN]) + (f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else "")
        raise CheckpointError(f"the weights in {where} are of another model than {model.name}: {shown}")
    model.load_state_dict(state)
