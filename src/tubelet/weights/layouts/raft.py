"""RAFT's files of torchvision: the names are ours, the sizes the published ones."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tubelet.errors import CheckpointError
from tubelet.models import raft
from tubelet.weights.layouts import Description, Layout, State


def describe(state: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> Description:
    """Large and small differ in their weights."""
    large = any(key.startswith("mask_predictor.") for key in state)
    found = Description(
        "raft_large" if large else "raft_small",
        inferred={"variant": "it has a mask_predictor" if large else "it has no mask_predictor"},
    )
    found.assumed["updates"] = "12, as in training"
    return found


def _write(state: State, model: raft.RAFT) -> State:
    if model.class_names:
        raise CheckpointError("torchvision's RAFT has no head, and this model has one: nothing was written")
    return dict(state)


LAYOUTS = {
    "torchvision": Layout(
        ("feature_encoder.convnormrelu.0.weight", "update_block.recurrent_block.convgru1.convz.weight"), describe,
        raft.from_torchvision, _write,
    ),
}  # fmt: skip
