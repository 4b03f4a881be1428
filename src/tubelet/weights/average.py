"""Several models of one configuration become their mean ("model soup", Wortsman et al. 2022, arXiv:2203.05482)."""

from collections.abc import Sequence
from pathlib import Path

import torch

from tubelet.errors import CheckpointError
from tubelet.models._model import Model
from tubelet.weights.fill import fill
from tubelet.weights.load import load_model, rebuild, refuse_graph
from tubelet.weights.save import describe


@torch.no_grad()
def average(paths: Sequence[str | Path], decay: float | None = None) -> Model:
    """The mean of the models at `paths` (run folders, model folders or checkpoints), in float64 and then float32.

    decay: where given, the moving average in the order of the paths instead, `decay * average + (1 - decay) * next`. Counters
    (integers) are the last one's. CheckpointError for fewer than two, and for models that are not of one configuration.
    """
    if len(paths) < 2:
        raise CheckpointError(f"got {len(paths)} model to average: name at least two")
    if decay is not None and not 0 < decay < 1:
        raise CheckpointError(f"the decay is {decay}: it must be between 0 and 1, for example 0.9")
    for path in paths:
        refuse_graph(path)
    first = load_model(paths[0])
    sums = {name: value.double() if value.is_floating_point() else value for name, value in first.state_dict().items()}
    for number, path in enumerate(paths[1:], start=2):
        model = load_model(path)
        other = [name for name, value in describe(first).items() if describe(model)[name] != value]
        if other:
            raise CheckpointError(f"{path} has another {' and '.join(other)} than {paths[0]}: only equal ones average")
        share = 1 / number if decay is None else 1 - decay
        for name, value in model.state_dict().items():
            sums[name] = sums[name].lerp(value.double(), share) if value.is_floating_point() else value
    mean = rebuild(describe(first), paths[0])
    own = mean.state_dict()
    fill(mean, {name: value.to(own[name].dtype) for name, value in sums.items()}, "the average")
    return mean.eval()
