"""R(2+1)D's files of torchvision."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tubelet.models import _resnet, r2plus1d
from tubelet.weights.layouts import Description, Layout, State, count_blocks, shape


def describe(state: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> Description:
    """Frames and size are told by nothing; any will do."""
    blocks = tuple(count_blocks(state, f"layer{stage}.") for stage in (1, 2, 3, 4))
    layers = next((n for n, of in _resnet.BLOCKS.items() if tuple(of) == blocks and n in (18, 34)), None)
    # Where the width doubles, the convolutions of a block differ in what they would choose themselves.
    first, second = (shape(state, f"layer2.0.conv{i}.0.0.weight", 5)[0] for i in (1, 2))
    found = Description("r2plus1d_34" if layers == 34 else "r2plus1d_18")
    found.options = dict(layers=layers, middle="block" if first == second else "convolution")
    found.options["width"] = shape(state, "stem.3.weight", 5)[0]
    found.inferred |= {
        "layers": f"{' + '.join(map(str, blocks))} blocks",
        "middle": "the shapes of layer2.0",
        "width": "the shape of stem.3.weight",
    }
    found.take_classes(state, "fc.weight")
    return found


def _read(state: State) -> State:
    """Older files lack the counters of batch norms, which are not used."""
    ours = {f"head.{key[3:]}" if key.startswith("fc.") else f"trunk.{key}": value for key, value in state.items()}
    for key in [key for key in ours if key.endswith("running_mean")]:
        ours.setdefault(key.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    return ours


LAYOUTS = {
    "torchvision": Layout(
        ("stem.3.weight", "layer1.0.conv1.0.3.weight", "layer4.0.conv1.0.3.weight"), describe, _read,
        lambda state, model: r2plus1d.to_torchvision(state),
    ),
}  # fmt: skip
