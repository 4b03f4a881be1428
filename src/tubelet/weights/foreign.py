"""Weights that others wrote become one of our models, and it is said what told every fact and what had to be assumed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from tubelet import models
from tubelet.errors import CheckpointError, ConfigError
from tubelet.models._model import Model
from tubelet.models._tokens import Triple
from tubelet.records import ClipSpec, unnamed
from tubelet.weights import files, image, layouts
from tubelet.weights.fill import fill
from tubelet.weights.resize import fit_tubelets

CLASS_LISTS = ("kinetics400", "ssv2")  # shipped with their sources, see src/tubelet/weights/classes
BICUBIC = 3  # as preprocessors number ways to resize


@dataclass
class Account:
    """What a foreign file is, and where every fact about it comes from.

    tubelet is the size (frames, rows, columns) that its kernels were made for; interpolated what is to be said of weights that were
    made for other shapes, "" where there are none.
    """

    path: str
    layout: str
    family: str
    found: layouts.Description
    class_names: list[str]
    notes: list[str]
    files: list[Path]
    tubelet: Triple | None = None
    interpolated: str = ""

    def assumptions(self) -> str:
        """What had to be assumed, in a line."""
        return "; ".join(f"{fact}: {text}" for fact, text in self.found.assumed.items()) or "nothing"


@dataclass(frozen=True)
class Given:
    """What the caller knows better than the files.

    classes        a list that is shipped ("kinetics400", "ssv2") or a file, one class a line in the order of the head
    clip, options  fields of the ClipSpec and options of the model; with decoder=False that of pretraining is left behind
    """

    classes: str | None = None
    clip: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def refuse_given(given: Given, path: object) -> None:
    """ConfigError where something was given for a model of ours, which says all that itself."""
    flags = {"--classes": given.classes, "--clip": given.clip, "--options": given.options}
    some = " and ".join(flag for flag, value in flags.items() if value)
    if some:
        raise ConfigError(f"{path} is a model of tubelet's own, which says all of itself: {some} is for files of others only")


def look(path: str | Path, given: Given = Given()) -> tuple[Account, files.Source]:
    """What a foreign file or folder is; CheckpointError for weights of an unknown layout, and for class names that do not fit."""
    source = files.read(path)
    try:
        family, name = layouts.recognise(source.tensors, path, {**source.config, **given.options})
    except CheckpointError as error:
        raise CheckpointError(image.instead(source) or str(error)) from error
    try:
        if name == "huggingface":
            layouts.supported(source.config, "model_type", {family: family})
        found = layouts.known()[family, name].describe(source.tensors, source.config)
        _preprocessing(found, source.processor)
    except CheckpointError as error:
        raise CheckpointError(f"{path} ({family}, {name} layout): {error}") from error
    tubelet = _tubelet(found.options)
    _grid(found, tubelet, given)
    found.clip |= given.clip
    found.options |= given.options
    for fact in (*given.clip, *given.options):
        found.inferred[fact] = "given"
        found.assumed.pop(fact, None)
    _as_published(found)
    names = _class_names(found, source.config, given.classes, path)
    return Account(str(path), name, family, found, names, [*source.notes, *found.notes], source.files, tubelet), source


def read(path: str | Path, given: Given = Given()) -> tuple[Model, Account]:
    """The model in a foreign file or folder, in evaluation mode, with every key of both sides used, and the account of it.

    CheckpointError as `look`, and for what nothing tells and for leftovers.
    """
    account, source = look(path, given)
    found = account.found
    unknown = [option for option, value in found.options.items() if value is None]
    if unknown:
        raise CheckpointError(
            f"{path}: nothing tells the {' and '.join(unknown)} of this {found.name}: put its config.json beside it, or give "
            f"--options {unknown[0]}=..."
        )
    try:
        model = models.build(found.name, ClipSpec.from_dict(found.clip), account.class_names, **found.options)
        state = layouts.known()[account.family, account.layout].read(source.tensors)
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{path} looks like {found.name} ({account.layout} layout), but {error}") from error
    if given.options.get("decoder") is False:
        left = [key for key in state if key.startswith("decoder.")]
        state = {key: value for key, value in state.items() if key not in left}
        account.notes += [f"left behind, as asked: the decoder ({len(left)} weights)"] if left else []
    state, resized = fit_tubelets(state, account.tubelet, model)
    fill(model, state, path)
    said = [text for text in (resized, layouts.interpolation(model)) if text]
    found.notes += said
    account.notes += said
    account.interpolated = "; ".join(said)
    return model.eval(), account


def _tubelet(options: Mapping[str, Any]) -> Triple | None:
    """Of the families whose tubelets are squares, None for others."""
    patch = options.get("patch")
    return None if patch is None else (options.get("tubelet", 1), patch, patch)


def _grid(found: layouts.Description, tubelet: Triple | None, given: Given) -> None:
    """Where other tubelets are asked for than the file's, and nothing tells which clips its fixed positions were made for: those as
    published. (Learned positions are a table, which tells it.)"""
    asked = _tubelet({**found.options, **given.options})
    takes = models.options_of(found.name)
    if tubelet is None or asked == tubelet or "position_grid" not in takes or found.options.get("position_grid"):
        return
    usual = models.clip_of(found.name)
    grid = [usual.frames // tubelet[0], usual.size // tubelet[1], usual.size // tubelet[2]]
    found.options["position_grid"] = grid
    found.assumed["position_grid"] = f"{'x'.join(map(str, grid))} tokens, of clips as published"


def _preprocessing(found: layouts.Description, processor: Mapping[str, Any]) -> None:
    """Size, mean and std as a preprocessor's file says them."""
    where = "preprocessor_config.json"
    size = {"size": processor.get("crop_size", processor.get("size"))}
    if isinstance(size["size"], Mapping):
        size = {"size": size["size"].get("height", size["size"].get("shortest_edge"))}
    size["size"] = layouts.told(size, "size", layouts.COUNT, where)
    if size["size"] is not None:
        found.clip["size"], found.inferred["size"] = size["size"], where
        found.assumed.pop("size", None)
    resample = processor.get("resample")
    if resample is not None and not isinstance(resample, int):
        raise CheckpointError(
            f"resample is {resample!r} in {where}: it must be a whole number, 2 for bilinear or 3 for bicubic"
        )
    if resample == BICUBIC:
        found.clip["interpolation"], found.inferred["interpolation"] = "bicubic", where
    normalised, rescaled, offset = (
        layouts.told(processor, name, layouts.YES_NO, where) for name in ("do_normalize", "do_rescale", "offset")
    )
    colours = [layouts.told(processor, name, layouts.COLOURS, where) for name in ("image_mean", "image_std")]
    factor = layouts.told(processor, "rescale_factor", layouts.POSITIVE, where) or 1 / 255
    if processor and (normalised is False or None not in colours):
        # Of values x in [0,1]: theirs are (scale x - offset - mean) / std, ours (x - mean) / std.
        scale = 255 if rescaled is False else round(255 * factor, 9)
        mean, std = ((0, 0, 0), (1, 1, 1)) if normalised is False else colours
        if min(std) <= 0:
            raise CheckpointError(f"image_std is {std!r} in {where}: every value must be above 0")
        found.clip["mean"] = tuple((value + (1 if offset else 0)) / scale for value in mean)
        found.clip["std"] = tuple(value / scale for value in std)
        found.inferred["normalisation"] = where


def _as_published(found: layouts.Description) -> None:
    """What nothing told of the clips: what they are in the variant's paper."""
    usual = models.clip_of(found.name).to_dict()
    for name in ("frames", "size", "stride_frames"):
        if name not in found.clip:
            found.assumed[name] = f"{usual[name]}, as published"
    if "mean" not in found.clip or "std" not in found.clip:
        said = " ".join(f"{name} {found.clip.get(name, usual[name])}" for name in ("mean", "std"))
        found.assumed["normalisation"] = f"{said}, as published: no preprocessor_config.json says otherwise"
    found.clip = usual | found.clip


def _class_names(found: layouts.Description, config: Mapping[str, Any], classes: str | None, path: object) -> list[str]:
    """In the order of the head: given, else id2label of config.json, else "class 0" and so on."""
    if not found.classes:
        if classes:
            raise CheckpointError(f"{path} has no classification head, so no class names can be given to it")
        return []
    labels = config.get("id2label")
    names: list[str] = []
    if classes:
        names, found.inferred["class names"] = class_list(classes), f"given: {classes}"
    elif labels is not None:
        names = _labels(labels, found.classes, path)
        if names:
            found.inferred["class names"] = "id2label in config.json"
    if not names:
        found.assumed["class names"] = f"none: nothing names its {found.classes} classes"
        return unnamed(found.classes)
    if len(names) != found.classes:
        raise CheckpointError(
            f"{path} has a head of {found.classes} classes, and {len(names)} names are given: they must be equally many"
        )
    return names


def _labels(labels: Any, classes: int, path: object) -> list[str]:
    """The names in id2label, in the order of their numbers; none where they are transformers' own stand-ins."""
    if not isinstance(labels, Mapping) or not all(isinstance(label, str) for label in labels.values()):
        raise CheckpointError(f'{path}: id2label of config.json must be names by number, such as {{"0": "a"}}: give --classes')
    if all(label.startswith("LABEL_") for label in labels.values()):
        return []
    by_number = {str(number): label for number, label in labels.items()}
    if len(by_number) == classes and set(by_number) != {str(number) for number in range(classes)}:
        raise CheckpointError(f"{path}: id2label of config.json does not number its classes 0 to {classes - 1}: give --classes")
    return [label for _, label in sorted(by_number.items(), key=lambda item: (len(item[0]), item[0]))]


def class_list(name: str) -> list[str]:
    """The classes of a list that is shipped, or of a text file (one a line) or a JSON list; CheckpointError without one."""
    if name in CLASS_LISTS:
        text = resources.files("tubelet.weights").joinpath("classes", f"{name}.txt").read_text(encoding="utf-8")
        return [line for line in text.splitlines() if line and not line.startswith("#")]
    try:
        text = Path(name).read_text(encoding="utf-8")
        names: Sequence[Any] = (
            json.loads(text) if name.endswith(".json") else [line.strip() for line in text.splitlines() if line.strip()]
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot read the class list {name} ({error}): name a file, or one of {', '.join(CLASS_LISTS)}"
        ) from error
    if (
        not isinstance(names, list)
        or not names
        or not all(isinstance(one, str) for one in names)
        or len(set(names)) < len(names)
    ):
        raise CheckpointError(f"{name} is no list of different class names")
    return list(names)
