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
from tubelet.records import ClipSpec, unnamed
from tubelet.weights import files, layouts
from tubelet.weights.fill import fill

CLASS_LISTS = ("kinetics400", "ssv2")  # shipped with their sources, see src/tubelet/weights/classes
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # as preprocessors number them


@dataclass
class Account:
    """What a foreign file is, and where every fact about it comes from."""

    path: str
    layout: str
    family: str
    found: layouts.Description
    class_names: list[str]
    notes: list[str]
    files: list[Path]

    def assumptions(self) -> str:
        """What had to be assumed, in a line."""
        return "; ".join(f"{fact}: {text}" for fact, text in self.found.assumed.items()) or "nothing"


@dataclass(frozen=True)
class Given:
    """What the caller knows better than the files.

    classes        a list that is shipped ("kinetics400", "ssv2") or a file, one class a line in the order of the head
    clip, options  fields of the ClipSpec and options of the model
    """

    classes: str | None = None
    clip: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def look(path: str | Path, given: Given = Given()) -> tuple[Account, files.Source]:
    """What a foreign file or folder is; CheckpointError for weights of an unknown layout, and for class names that do not fit."""
    source = files.read(path)
    family, name = layouts.recognise(source.tensors, path)
    found = layouts.known()[family, name].describe(source.tensors, source.config)
    _preprocessing(found, source.processor)
    found.clip |= given.clip
    found.options |= given.options
    for fact in (*given.clip, *given.options):
        found.inferred[fact] = "given"
        found.assumed.pop(fact, None)
    names = _class_names(found, source.config, given.classes, path)
    return Account(str(path), name, family, found, names, source.notes, source.files), source


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
        spec = ClipSpec.from_dict(ClipSpec().to_dict() | found.clip)
        model = models.build(found.name, spec, account.class_names, **found.options)
    except ConfigError as error:
        raise CheckpointError(f"{path} looks like {found.name} ({account.layout} layout), but {error}") from error
    fill(model, layouts.known()[account.family, account.layout].read(source.tensors), path)
    return model.eval(), account


def _preprocessing(found: layouts.Description, processor: Mapping[str, Any]) -> None:
    """Size, mean and std as a preprocessor's file says them, else as published with the family."""
    size = processor.get("crop_size", processor.get("size"))
    if isinstance(size, Mapping):
        size = size.get("height", size.get("shortest_edge"))
    if isinstance(size, int):
        found.clip["size"], found.inferred["size"] = size, "preprocessor_config.json"
        found.assumed.pop("size", None)
    if INTERPOLATIONS.get(processor.get("resample", 2)) == "bicubic":
        found.clip["interpolation"], found.inferred["interpolation"] = "bicubic", "preprocessor_config.json"
    if "image_mean" in processor and "image_std" in processor:
        found.clip |= {"mean": tuple(processor["image_mean"]), "std": tuple(processor["image_std"])}
        found.inferred["normalisation"] = "preprocessor_config.json"
    elif "mean" not in found.clip:
        found.assumed["normalisation"] = "ImageNet's mean and std: no preprocessor_config.json says otherwise"
    if "stride_frames" not in found.clip:
        found.assumed["stride_frames"] = "4: no file says it"


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
    elif isinstance(labels, Mapping) and not all(str(label).startswith("LABEL_") for label in labels.values()):
        try:
            names = [str(label) for _, label in sorted(labels.items(), key=lambda item: int(item[0]))]
        except ValueError as error:
            raise CheckpointError(f"{path}: id2label of config.json does not number its classes ({error})") from error
        found.inferred["class names"] = "id2label in config.json"
    if not names:
        found.assumed["class names"] = f"none: nothing names its {found.classes} classes"
        return unnamed(found.classes)
    if len(names) != found.classes:
        raise CheckpointError(
            f"{path} has a head of {found.classes} classes, and {len(names)} names are given: they must be equally many"
        )
    return names


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
