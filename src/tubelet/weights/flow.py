"""Weights of RAFT as torchvision publishes them, for `tubelet flow` and for the RAFT within a two-stream model."""

from pathlib import Path

import torch
from torch import Tensor

from tubelet.errors import CheckpointError, ConfigError
from tubelet.models import raft
from tubelet.models._model import Model
from tubelet.models.two_stream import TwoStream
from tubelet.weights.checkpoint import read_tensors


def read(path: str, network: raft.RAFT) -> dict[str, Tensor]:
    """The weights for `network` in torchvision's file, .pth or .safetensors; CheckpointError for a file of anything else."""
    state = raft.from_torchvision(_tensors(path))
    if state.keys() != network.state_dict().keys():
        raise CheckpointError(f"{path} holds the weights of another RAFT than {network.name}: choose the other one")
    return state


def rafts(model: Model) -> list[raft.RAFT]:
    """The RAFTs that `model` has in it, none or one."""
    return [part.raft for part in model.modules() if isinstance(part, TwoStream) and part.raft is not None]


def begin(model: Model, path: str | None) -> list[str]:
    """Give the RAFT within `model` the weights in torchvision's file; gives the names of its `rafts`.

    It never learns, so without a file it would stay as random as it was made: ConfigError, as for a file where there is no RAFT.
    """
    networks = rafts(model)
    if path and not networks:
        raise ConfigError(
            f"init_flow is {path}, but {model.name} has no RAFT in it: set --model.options.estimator raft_small, or leave it out"
        )
    for network in networks:
        if not path:
            raise ConfigError(
                f"the {network.name} in {model.name} has random weights and stays as it is: give torchvision's file of it, "
                "--init-flow FILE, or choose --model.options.estimator dis, which needs none"
            )
        network.load_state_dict(read(path, network))
    return [network.name for network in networks]


def _tensors(path: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a file of torch's, of which nothing but tensors is read."""
    if path.endswith(".safetensors"):
        return read_tensors(Path(path))[0]
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and file errors of many kinds
        what = " ".join(str(error).split())
        raise CheckpointError(f"{path} is not a readable file of weights: {what[:160]}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} holds no state dict, names and tensors")
    return state
