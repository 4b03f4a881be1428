"""What is in a file of weights, without running anything, and whether it loads."""

from pathlib import Path
from typing import Any

import torch

from tubelet import models
from tubelet.errors import TubeletError
from tubelet.records import unnamed
from tubelet.weights import files, foreign
from tubelet.weights.load import is_model, load_model, located, refuse_graph


def inspect(path: str | Path, given: foreign.Given = foreign.Given()) -> dict[str, Any]:  # noqa: B008 (frozen)
    """JSON-able: path, layout ("tubelet" for our own), family, name, options, clip (the ClipSpec), classes, class_names (None where
    nothing names them), params, inferred, assumed, notes, files, sha256, loads (bool) and, where it does not, problem.

    CheckpointError for what is no weights, an exported graph, or of a layout that nobody knows.
    """
    path = located(path)
    refuse_graph(path)
    if is_model(path):
        foreign.refuse_given(given, path)
        model = load_model(path)
        family = models.variants()[model.name].__name__.rpartition(".")[2]
        return _row(str(path), "tubelet", family, model.name, model.options, model.spec.to_dict(), list(model.class_names)) | {
            "params": sum(p.numel() for p in model.parameters()), "inferred": {"everything": "its own description"},
            "assumed": {}, "notes": [], "files": [], "sha256": None, "loads": True, "problem": None,
        }  # fmt: skip
    account, source = foreign.look(path, given)
    found = account.found
    row = _row(
        account.path,
        account.layout,
        account.family,
        found.name,
        found.options,
        found.clip,
        account.class_names,
    )
    row |= {"params": sum(value.numel() for value in source.tensors.values() if value.is_floating_point())}
    row |= {"inferred": found.inferred, "assumed": found.assumed, "notes": account.notes}
    row |= {"files": [str(file) for file in source.files], "sha256": files.sha256(source.files)}
    try:
        with torch.random.fork_rng(devices=[]):
            model, account = foreign.read(path, given)
    except TubeletError as error:
        return row | {"loads": False, "problem": str(error)}
    row |= {"params": sum(p.numel() for p in model.parameters()), "notes": account.notes}
    return row | {"loads": True, "problem": None}


def _row(
    path: str, layout: str, family: str, name: str, options: dict[str, Any], clip: dict[str, Any], names: list[str]
) -> dict[str, Any]:
    nameless = names == unnamed(len(names))
    row = {"path": path, "layout": layout, "family": family, "name": name, "options": dict(options)}
    clip = {key: list(value) if isinstance(value, tuple) else value for key, value in clip.items()}
    return row | {"clip": clip, "classes": len(names), "class_names": None if nameless else names}
