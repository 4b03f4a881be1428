"""One file is one family. `build` makes any variant by name; `variants` and `list_models` say what there is.

A family file has PAPER, VARIANTS (name -> sizes) and build(name, spec, class_names, **options); where the paper shows a variant
other clips than 16 frames of 224 pixels at stride 4, CLIPS (name -> ClipSpec) has them; where its size is published with another
number of classes than 400, CLASSES says which; where a count is not the published one, NOTES (name -> a line) says why. Its model
has .name, .spec, .class_names, .options (what rebuilds it), .depth, .depth_of(parameter), .head_parameters(), and maps frames to
named tensors.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tubelet import find
from tubelet.errors import ConfigError
from tubelet.models._model import Model
from tubelet.records import ClipSpec

TYPES: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float), bool: (bool,), str: (str,)}  # what options may be
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
CLASSES_OF_THE_TABLE = 400  # Kinetics-400, as the papers print their sizes


def variants() -> dict[str, ModuleType]:
    """Every variant's name and the family file it lives in."""
    families = [find.module("tubelet.models", name) for name in find.names("tubelet.models")]
    return {variant: family for family in families for variant in family.VARIANTS}


def build(name: str, spec: ClipSpec, class_names: Sequence[str] = (), **options: Any) -> Model:
    """A freshly initialised model of a variant (torch's global generator decides the values).

    Raises ConfigError for an unknown variant or option, naming the nearest, for a value of another type than the option's, and for
    clips the model cannot take.
    """
    takes = options_of(name)
    types = inspect.signature(type_of(variants()[name]).__init__).parameters
    for option, value in options.items():
        wanted = types[find.choose(option, takes, f"option of {name}")].annotation
        if wanted in TYPES and (not isinstance(value, TYPES[wanted]) or (isinstance(value, bool) and wanted is not bool)):
            raise ConfigError(f"{option} of {name} is {value!r}: it must be {WORDS[wanted]}")
        if wanted in (int, float) and not (0 <= value < math.inf and (value or _may_be_zero(types[option]))):
            raise ConfigError(f"{option} of {name} is {value!r}: it must be {WORDS[wanted]} above 0")
        if option == "position_grid" and value is not None and not _is_grid(value):
            raise ConfigError(
                f"position_grid of {name} is {value!r}: it must be [slots, rows, columns] of tokens, each 1 or more"
            )
    model: Model = variants()[name].build(name, spec, class_names, **options)
    return model


# May be 0: what is dropped, a margin, blocks of a part of a model. Of stages, updates and decoder_depth the family says why not.
MAY_BE_ZERO = ("dropout", "margin", "pooler_depth", "temporal_depth", "pool_depth", "decoder_depth", "stages", "updates")


def _may_be_zero(option: inspect.Parameter) -> bool:
    return option.default == 0 or option.name in MAY_BE_ZERO


def _is_grid(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(type(one) is int and one > 0 for one in value)


def options_of(name: str) -> list[str]:
    """The options that `build` takes for a variant; ConfigError naming the nearest for an unknown one."""
    known = variants()
    family = known[find.choose(name, known, "model", "tubelet models")]
    return list(inspect.signature(type_of(family).__init__).parameters)[4:]


def with_needs(name: str, options: Mapping[str, Any], needs: Mapping[str, Any]) -> dict[str, Any]:
    """`options` of a variant on top of those that an objective `needs`, as far as it takes them; a model with a video tower passes
    them on to it."""
    takes = options_of(name)
    if "video_options" in takes:
        tower = options.get("video", variants()[name].VARIANTS[name]["video"])
        return {**options, "video_options": with_needs(tower, options.get("video_options") or {}, needs)}
    return {**{option: value for option, value in needs.items() if option in takes}, **options}


def type_of(family: ModuleType) -> type[Model]:
    """The model class of a family: what its `build` is annotated to return."""
    returns = inspect.get_annotations(family.build)["return"]
    found: type[Model] = getattr(family, returns) if isinstance(returns, str) else returns
    return found


def cost(model: Model, mask: torch.Tensor | None = None) -> dict[str, Any]:
    """{"params": parameters, "gmacs": 10^9 multiply-adds of a forward pass of one clip}, what papers print as FLOPs.

    `gmacs` is counted, not typed in: matrix products, convolutions and attention as the forward pass runs them, on a meta
    device where nothing is computed. With a mask, bool (1,N), the masked pretraining forward is counted, by running it.
    """
    device = "meta" if mask is None else "cpu"
    with torch.device(device):
        twin = build_like(model).eval().requires_grad_(False)
    frames = torch.zeros(1, model.spec.frames, 3, model.spec.size, model.spec.size, dtype=torch.uint8, device=device)
    # The fused CPU attention kernel is not in the counter's table; the plain one is matrix products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        twin(frames) if mask is None else twin(frames, mask=mask)
    return {"params": sum(p.numel() for p in model.parameters()), "gmacs": counter.get_total_flops() / 2e9}


def list_models(names: Sequence[str] = (), seen: Callable[[int, int], None] = lambda done, all: None) -> list[dict[str, Any]]:
    """One row a variant as its paper prints it, a classifier of 400 classes if it says no other number, of the clips of its paper:
    name, family, params, gmacs, receptive_field ([frames, rows, columns] or None), attended_pairs (int or None),
    frames, stride_frames, size, paper, note (why it differs from what was published, or None).

    names: variants or families, all of them by default; ConfigError for one that there is not. Counting takes a quarter of a
    second a variant: `seen` is told (done, all).
    """
    families = {name: family.__name__.rpartition(".")[2] for name, family in variants().items()}
    known = dict.fromkeys([*families, *families.values()])
    wanted = {find.choose(name, known, "model or family", "tubelet models") for name in names}
    chosen = [name for name, family in families.items() if not wanted or {name, family} & wanted]
    rows = []
    for done, name in enumerate(chosen, start=1):
        family, clip = variants()[name], clip_of(name)
        classes = getattr(family, "CLASSES", CLASSES_OF_THE_TABLE)
        with torch.device("meta"):
            model = build(name, clip, [str(i) for i in range(classes)])
        field = model.receptive_field()
        row = {"name": name, "family": families[name], **cost(model)}
        row |= {"receptive_field": field and list(field), "attended_pairs": model.attended_pairs()}
        row |= {"frames": clip.frames, "stride_frames": clip.stride_frames, "size": clip.size, "paper": family.PAPER}
        rows.append(row | {"note": getattr(family, "NOTES", {}).get(name)})
        seen(done, len(chosen))
    return rows


def clip_of(name: str) -> ClipSpec:
    """The clips that the paper shows a variant."""
    clip: ClipSpec = getattr(variants()[find.choose(name, variants(), "model", "tubelet models")], "CLIPS", {}).get(
        name, ClipSpec()
    )
    return clip


def build_like(model: Model, **changes: Any) -> Model:
    """A fresh model with the same name, spec, classes and options, but for `changes` (spec=, class_names=, or options)."""
    spec = changes.pop("spec", model.spec)
    class_names = changes.pop("class_names", model.class_names)
    if not isinstance(spec, ClipSpec):
        raise ConfigError(f"spec must be a ClipSpec, got {type(spec).__name__}")
    return build(model.name, spec, class_names, **{**model.options, **changes})
