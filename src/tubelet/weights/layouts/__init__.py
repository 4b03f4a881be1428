"""How others write weights: ONE FILE = ONE FAMILY, with the layouts of it that can be read and written.

A file has LAYOUTS (name -> Layout). The maps of names live with the family, in `tubelet.models`; here is how such a file is told
from others, and what it says of the model.
"""

import fnmatch
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet import find, models
from tubelet.errors import CheckpointError
from tubelet.models._model import Model

State = dict[str, Tensor]


COUNT, POSITIVE, YES_NO, COLOURS = "a whole number above 0", "a number above 0", "true or false", "three numbers"


def told(config: Mapping[str, Any], name: str, wanted: str, where: str = "config.json") -> Any:
    """What `name` is beside the weights, None where that does not say it; CheckpointError for what is not `wanted`: one of COUNT,
    POSITIVE, YES_NO and COLOURS."""
    value: Any = config.get(name)
    if wanted == COLOURS:
        right = isinstance(value, list | tuple) and len(value) == 3 and all(map(is_number, value))
    elif wanted == YES_NO:
        right = isinstance(value, bool)
    else:
        right = is_number(value) and value > 0 and (wanted == POSITIVE or isinstance(value, int))
    if value is not None and not right:
        raise CheckpointError(f"{name} is {value!r} in {where}: it must be {wanted}")
    return value


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf


@dataclass
class Description:
    """What a state dict is, as far as it and what lies beside it tell.

    name, options  variant and what differs from it
    clip           fields of a ClipSpec that could be told
    classes        of its head; 0 without one
    inferred       what was told, and by what: {"depth": "12 blocks"}
    assumed        what nothing told, and what was taken: {"frames": "16, as published"}
    notes          what else must be known: weights that are left behind
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    clip: dict[str, Any] = field(default_factory=dict)
    classes: int = 0
    inferred: dict[str, str] = field(default_factory=dict)
    assumed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def take(self, name: str, config: Mapping[str, Any], theirs: str, where: str = "config.json") -> None:
        """The clip's field `name` from what is called `theirs` beside the weights, where it is."""
        value = told(config, theirs, {"mean": COLOURS, "std": COLOURS}.get(name, COUNT), where)
        if value is not None:
            self.clip[name] = value
            self.inferred[name] = f"{theirs} in {where}"

    def take_heads(self, config: Mapping[str, Any], published: Mapping[int, int], width: int) -> None:
        """Heads, which no shape tells, from config.json, else those that are published with the width, else None."""
        heads = told(config, "num_attention_heads", COUNT)
        self.options["heads"] = published.get(width) if heads is None else heads
        if heads is not None:
            self.inferred["heads"] = "num_attention_heads in config.json"
        elif width in published:
            self.assumed[f"heads of width {width}"] = f"{published[width]}, as published"

    def take_classes(self, state: Mapping[str, Tensor], head: str) -> None:
        """How many classes the weight called `head` has, where it is."""
        if head in state:
            self.classes = shape(state, head, 2)[0]
            self.inferred["classes"] = f"the shape of {head}"


@dataclass(frozen=True)
class Layout:
    """One way of writing the weights of a family.

    keys      patterns (`*` for anything) of names that every such file has
    without   patterns of names that no such file has
    also      (state, what is told beside it) -> whether it is in this layout, where another model has the same names
    describe  (state, config.json or the arguments of the run, {} without) -> Description
    read      state -> the state in our names; CheckpointError naming every key that has no place
    write     (our state, model) -> the state in their names; None where nothing is written in this layout
    config    model -> what their config.json says of it; None for layouts without one
    container under which a file holds the weights; "" for a bare state dict
    beside    model -> what such a file holds beside its container
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
    container: str = ""
    without: tuple[str, ...] = ()
    also: Callable[[Mapping[str, Tensor], Mapping[str, Any]], bool] = lambda state, told: True
    beside: Callable[[Any], dict[str, Any]] = lambda model: {}

    def fits(self, state: Mapping[str, Tensor], told: Mapping[str, Any]) -> bool:
        """Whether a state dict is in this layout."""
        has = all(fnmatch.filter(state, one) for one in self.keys)
        return has and not any(fnmatch.filter(state, one) for one in self.without) and self.also(state, told)


def has_tubelets(state: Mapping[str, Tensor], told: Mapping[str, Any]) -> bool:
    """Whether there is a kernel over time, which an image model of the same names has not."""
    return any(value.ndim == 5 for value in state.values())


def known() -> dict[tuple[str, str], Layout]:
    """Every layout by (family, name)."""
    modules = {family: find.module("tubelet.weights.layouts", family) for family in find.names("tubelet.weights.layouts")}
    return {(family, name): layout for family, module in modules.items() for name, layout in module.LAYOUTS.items()}


def recognise(state: Mapping[str, Tensor], where: object, told: Mapping[str, Any]) -> tuple[str, str]:
    """(family, layout) of a state dict, with what was told beside it; CheckpointError for one of none, or of two at once."""
    fitting = [name for name, layout in known().items() if layout.fits(state, told)]
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
    family = models.variants()[model.name].__name__.rpartition(".")[2]
    mine = {layout: found for (other, layout), found in known().items() if other == family and found.write}
    if name not in mine:
        there = f"only {', '.join(mine)}" if mine else "none but tubelet's own"
        raise CheckpointError(f"{model.name} cannot be written in the layout {name!r}: there is {there}")
    return mine[name]


def example_clip(model: Model) -> Tensor:
    """One clip of noise, uint8 (1,T,C,H,W), the same every time."""
    shape = (1, model.spec.frames, 3, model.spec.size, model.spec.size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def interpolation(model: Model) -> str:
    """What is to be said of a model whose positions are interpolated for its clips; "" where they are as they were learned."""
    trained = model.options.get("position_grid")
    if trained is None:
        return ""
    with torch.device("meta"):
        own = models.build_like(model, position_grid=None).options["position_grid"]
    learned, clips = ("x".join(map(str, grid)) for grid in (trained, own))
    return "" if learned == clips else f"positions are interpolated: theirs are of {learned} tokens, the clips have {clips}"


def shape(state: Mapping[str, Tensor], key: str, dimensions: int) -> tuple[int, ...]:
    """Of a weight; CheckpointError where it is missing or empty, or of another number of dimensions."""
    if key not in state:
        raise CheckpointError(f"missing {key}")
    if state[key].ndim != dimensions:
        raise CheckpointError(f"{key} is {tuple(state[key].shape)}, wanted {dimensions} dimensions")
    if not state[key].numel():
        raise CheckpointError(f"{key} is {tuple(state[key].shape)}: it holds no value")
    return tuple(state[key].shape)


def square(places: int) -> int | None:
    """The side of a square of so many places; None where they are no square."""
    side = round(places**0.5)
    return side if side**2 == places else None


def supported(config: Mapping[str, Any], name: str, values: Mapping[Any, Any]) -> Any:
    """What their setting `name` is called with us, the first of `values` (theirs -> ours) where config.json does not say it;
    CheckpointError for a value that we do not have."""
    said = config.get(name)
    said = next(iter(values)) if said is None else said
    if isinstance(said, list | dict) or said not in values:
        raise CheckpointError(f"{name} is {said!r} in config.json, which is not supported: only {', '.join(map(repr, values))}")
    return values[said]


def count_blocks(state: Mapping[str, Tensor], stem: str) -> int:
    """How many numbered blocks there are below `stem`, for example "encoder.blocks."."""
    numbers = [key[len(stem) :].split(".")[0] for key in state if key.startswith(stem)]
    strange = [number for number in numbers if not number.isdecimal()]
    if strange:
        raise CheckpointError(f"{stem}{strange[0]} is no block: its name has no number")
    return 1 + max(map(int, numbers), default=-1)
