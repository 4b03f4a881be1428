"""Weights go into a model: every key on both sides is used, every value is a number, or nothing is."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tubelet.errors import CheckpointError
from tubelet.models._keys import nearest
from tubelet.models._model import Model

SHOWN = 6
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COUNTS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


def refuse_strange(state: Mapping[str, Tensor], where: str | Path) -> None:
    """CheckpointError naming the first tensor that is no plain array of usual numbers, whatever a file of tensors may hold else
    (sparse, quantised or without values, or one value repeated to any size), and those that are not finite."""
    for key, value in state.items():
        if value.is_meta or value.layout != torch.strided:
            kind = "without values" if value.is_meta else f"of the layout {value.layout}"
        elif value.dtype not in (*FLOATS, *COUNTS, torch.bool):
            kind = f"of {value.dtype}"
        elif value.numel() * value.element_size() > value.untyped_storage().nbytes():
            kind = f"{tuple(value.shape)} of fewer values, repeated"
        else:
            continue
        raise CheckpointError(f"{where}: {key} is {kind}: only plain tensors of float16 to float64 and integers are read")
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        some = ", ".join(broken[:SHOWN]) + (f" and {len(broken) - SHOWN} more" if len(broken) > SHOWN else "")
        raise CheckpointError(f"{where}: {some} is not finite (NaN or infinity): the run that wrote it had failed")


def _kind(value: Tensor) -> str:
    return "float" if value.dtype in FLOATS else "bool" if value.dtype == torch.bool else "integer"


def fill(model: Model, state: dict[str, Tensor], where: str | Path) -> None:
    """Copy a state dict into a model; CheckpointError naming every missing weight, with the nearest of those left over, every
    left-over and every misshapen one, or one of another kind (an integer for a float), and for what `refuse_strange` names. The
    model is untouched then."""
    refuse_strange(state, where)
    refuse_other(model, state, where)
    model.load_state_dict(state)


def refuse_other(model: Model, state: Mapping[str, Tensor], where: str | Path) -> None:
    """CheckpointError naming what keeps a state dict from being one of `model`; nothing but shapes and kinds is looked at."""
    own = model.state_dict()
    left = [key for key in state if key not in own]
    problems = [f"missing {key}{nearest(key, left)}" for key in own if key not in state]
    problems += [f"left over {key}" for key in left]
    problems += [
        f"{key} is {tuple(state[key].shape)}, wanted {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    problems += [
        f"{key} is {_kind(state[key])}, wanted {_kind(own[key])}"
        for key in own
        if key in state and _kind(state[key]) != _kind(own[key])
    ]
    if problems:
        shown = "; ".join(problems[:SHOWN]) + (f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else "")
        raise CheckpointError(f"the weights in {where} are of another model than {model.name}: {shown}")
