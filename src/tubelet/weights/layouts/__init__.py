"""How others write weights: ONE FILE = ONE FAMILY, with the layouts of it that can be read and written.

A file has LAYOUTS (name -> Layout). The maps of names live with the family, in `tubelet.models`; here is how such a file is told
from others, and what it says of the model.
"""

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet import find
from tubelet.errors import CheckpointError
from tubelet.models._model import Model

State = dict[str, Tensor]


@dataclass
class Description:
    """What a state dict is, as far as it and what lies beside it tell.

    name, options  variant and what differs from it
    clip           fields of a ClipSpec that could be told or were assumed
    classes        of its head; 0 without one
    inferred       what was told, and by what: {"depth": "12 blocks"}
    assumed        what nothing told, and what was taken: {"frames": "16, as usual"}
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    clip: dict[str, Any] = field(default_factory=dict)
    classes: int = 0
    inferred: dict[str, str] = field(default_factory=dict)
    assumed: dict[str, str] = field(default_factory=dict)

    def take(self, name: str, config: Mapping[str, Any], theirs: str, usual: Any, where: str = "config.json") -> None:
        """The clip's field `name` from what is called `theirs` beside the weights, else what is usual."""
        told = config.get(theirs)
        self.clip[name] = usual if told is None else told
        if told is None:
            self.assumed[name] = f"{usual}, as published"
        else:
            self.inferred[name] = f"{theirs} in {where}"


@dataclass(frozen=True)
class Layout:
    """One way of writing the weights of a family.

    keys      patterns (`*` for anything) of names that every such file has
    without   patterns of names that no such file has
    describe  (state, config.json or the arguments of the run, {} without) -> Description
    read      state -> the state in our names; CheckpointError naming every key that has no place
    write     (our state, model) -> the state in their names; None where nothing is written in this layout
    config    model -> what their config.json says of it; None for layouts without one
    compare   (model, a folder in this layout) -> the largest difference of outputs on one clip between the model and the other
              implementation, which reads the folder; ImportError where that is not installed. None: there is none to import
    processor their name for what prepares clips
    """

    keys: tuple[str, ...]
    describe: Callable[[Mapping[str, Tensor], Mapping[str, Any]], Description]
    read: Callable[[State], State]
    write: Callable[[State, Any], State] | None = None
    config: Callable[[Any], dict[str, Any]] | None = None
    compare: Callable[[Any, Path], float] | None = None
    processor: str = ""
    without: tuple[str, ...] = ()

    def fits(self, state: Mapping[str, Tensor]) -> bool:
        """Whether a state dict is in this layout."""
        return all(fnmatch.filter(state, one) for one in self.keys) and not any(
            fnmatch.filter(state, one) for one in self.without
        )


def known() -> dict[tuple[str, str], Layout]:
    """Every layout by (family, name)."""
    modules = {family: find.module("tubelet.weights.layouts", family) for family in find.names("tubelet.weights.layouts")}
    return {(family, name): layout for family, module in modules.items() for name, layout in module.LAYOUTS.items()}


def recognise(state: Mapping[str, Tensor], where: object) -> tuple[str, str]:
    """(family, layout) of a state dict; CheckpointError for one that is of none, or of two at once."""
    fitting = [name for name, layout in known().items() if layout.fits(state)]
    if len(fitting) == 1:
        return fitting[0]
    some = ", ".join(sorted(state)[:4])
    if fitting:
        both = " and ".join(f"{family} ({layout})" for family, layout in fitting)
        raise CheckpointError(f"{where} mixes the layouts of {both}: it must be of one model (it begins {some})")
    families = sorted({family for family, _ in known()})
    raise CheckpointError(f"{where} is in no layout that is known (of {', '.join(families)}): its weights begin {some}")


def of(model: Model, name: str) -> Layout:
    """The layout called `name` of a model's family; CheckpointError naming those that there are."""
    from tubelet.models import variants

    family = variants()[model.name].__name__.rpartition(".")[2]
    mine = {layout: found for (other, layout), found in known().items() if other == family and found.write}
    if name not in mine:
        there = f"only {', '.join(mine)}" if mine else "none but tubelet's own"
        raise CheckpointError(f"{model.name} cannot be written in the layout {name!r}: there is {there}")
    return mine[name]


def example_clip(model: Model) -> Tensor:
    """One clip of noise, uint8 (1,T,C,H,W), the same every time."""
    shape = (1, model.spec.frames, 3, model.spec.size, model.spec.size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def count_blocks(state: Mapping[str, Tensor], stem: str) -> int:
    """How many numbered blocks there are below `stem`, for example "encoder.blocks."."""
    return 1 + max((int(key[len(stem) :].split(".")[0]) for key in state if key.startswith(stem)), default=-1)
