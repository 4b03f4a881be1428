"""Weights move between layouts, and it is proven that nothing was lost on the way.

The way back must give the very bits again, and where the other implementation is installed both sides see the same clip.
"""

import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from tubelet import models
from tubelet.errors import CheckpointError
from tubelet.models._model import Model
from tubelet.records import unnamed
from tubelet.weights import files, foreign, layouts
from tubelet.weights.foreign import Account
from tubelet.weights.save import save

TO = ("tubelet", "huggingface", "original", "torchvision")
# Options that change no answer, or are told by the weights themselves.
TOLD = ("drop_path", "dropout", "first_values", "position_grid", "teachers", "temporal_depth", "pooler_depth")


@dataclass(frozen=True)
class Proof:
    """round_trip: weights that came back bit for bit; difference: the largest between outputs of both implementations on one clip,
    None where the other one was not asked, and then `why`; lost: what the layout does not hold, as the flags that tell it again."""

    round_trip: int
    difference: float | None
    why: str = ""
    lost: tuple[str, ...] = ()


def convert(model: Model, out: str | Path, to: str, origin: Mapping[str, Any] | None = None) -> Proof:
    """Write a model in a layout, whole or not at all, and prove it: "tubelet" (a model folder), "huggingface" (a folder that
    transformers loads), "original" or "torchvision" (one .pth file). `origin` is kept in a folder of ours.

    CheckpointError where something is there already, for layouts that the family has not, where the proof fails, and for a
    model with interpolated positions where nothing in the layout tells which clips these were made for.
    """
    out = Path(out)
    if to not in TO:
        raise CheckpointError(f"--to is {to!r}: it must be one of {', '.join(TO)}")
    if out.exists():
        raise CheckpointError(f"{out} is there already: choose another place, nothing is overwritten")
    one_file = to in ("original", "torchvision")
    if one_file and out.suffix not in (".pth", ".pt"):
        raise CheckpointError(f"the {to} layout is one file: name it .pth, got {out}")
    if to == "tubelet":
        save(model, out, dict(origin or {}))
        return Proof(len(model.state_dict()), None, "the layout is our own")
    layout = layouts.of(model, to)
    if layout.config is not None:
        _refuse_interpolated(model, to, None)
    state = model.state_dict()
    assert layout.write is not None
    theirs = {key: value.detach().cpu().contiguous().clone() for key, value in layout.write(state, model).items()}
    back = layout.read(theirs)
    lost = [key for key in state if key not in back or not torch.equal(back[key], state[key].cpu())]
    lost += [key for key in back if key not in state]
    if lost:
        raise CheckpointError(
            f"{model.name} does not survive the way to {to} and back: {', '.join(lost[:6])}; nothing was written"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise CheckpointError(f"cannot write {out}: {error}; nothing was changed") from error
    try:
        if one_file:
            torch.save({layout.container: theirs, **layout.beside(model)} if layout.container else theirs, draft / out.name)
            found = _described(layout, draft / out.name)
            _refuse_interpolated(model, to, found.options.get("position_grid"))
            os.replace(draft / out.name, out)
            why = "no other implementation is asked: it would not build a model from one file"
            return Proof(len(state), None, why, _lost(model, found, named=False))
        assert layout.config is not None
        save_file(theirs, draft / "model.safetensors", {"format": "pt"})
        _write_json(draft / "config.json", {**layout.config(model), **_labels(model)})
        kind = "video" if layout.processor.endswith("VideoProcessor") else "image"
        name = "video_preprocessor_config.json" if kind == "video" else "preprocessor_config.json"
        _write_json(draft / name, {f"{kind}_processor_type": layout.processor, **_preprocessor(model)})
        found = foreign.look(draft)[0].found
        difference, why = _difference(layout, model, draft)
        os.chmod(draft, 0o755)
        os.replace(draft, out)
        return Proof(len(state), difference, why, _lost(model, found, named=True))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {out}: {error}; nothing was changed") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _refuse_interpolated(model: Model, to: str, told: Any) -> None:
    """CheckpointError for positions that would be read back for other clips than they were made for."""
    said = layouts.interpolation(model)
    if said and list(told or ()) != list(model.options["position_grid"]):
        raise CheckpointError(
            f"{model.name} cannot be written in the layout {to!r}: {said}, which that layout cannot say; use --to tubelet"
        )


def _described(layout: layouts.Layout, file: Path) -> layouts.Description:
    source = files.read(file)
    return layout.describe(source.tensors, source.config)


def _lost(model: Model, found: layouts.Description, named: bool) -> tuple[str, ...]:
    """What reading a layout back, with `found` of it, would not give, but for what only training asks for."""
    spec, usual = model.spec.to_dict(), models.clip_of(found.name).to_dict()
    clip = {**usual, **{key: list(value) if isinstance(value, tuple) else value for key, value in found.clip.items()}}
    lost = [f"--clip {key}={_word(value)}" for key, value in spec.items() if clip[key] != value]
    own = models.variants()[found.name].VARIANTS[found.name]
    takes = inspect.signature(type(model).__init__).parameters
    for key, value in model.options.items():
        read = found.options.get(key, own.get(key, takes[key].default))
        read = list(read) if isinstance(read, tuple) else read
        if key not in TOLD and not (key.startswith("decoder_") and getattr(model, "decoder", None) is None) and read != value:
            lost.append(f"--options {key}={_word(value)}")
    if not named and model.class_names and list(model.class_names) != unnamed(len(model.class_names)):
        lost.append("--classes FILE")
    return tuple(lost)


def _word(value: Any) -> str:
    return str(value).replace(" ", "")


def prove(model: Model, account: Account, source: Path) -> Proof:
    """The same for a model that was read from a foreign file or folder: what was read is written again, and both sides compared."""
    layout = layouts.known()[account.family, account.layout]
    if layout.write is None:
        return Proof(0, None, f"nothing is written in the {account.layout} layout")
    read = files.read(source).tensors
    again = layout.read(layout.write(model.state_dict(), model))
    same = sum(torch.equal(again[key].to(value.dtype), value) for key, value in layout.read(read).items())
    if not source.is_dir():
        return Proof(same, None, "a file alone, without the config.json that the other implementation reads")
    if account.interpolated:
        return Proof(same, None, account.interpolated + ", which others do otherwise or not at all")
    difference, why = _difference(layout, model, source)
    return Proof(same, difference, why)


@torch.no_grad()
def _difference(layout: layouts.Layout, model: Model, folder: Path) -> tuple[float | None, str]:
    if layout.compare is None:
        return None, "there is no other implementation that can be imported"
    try:
        from transformers.utils import logging
    except ImportError:
        return None, "transformers is not installed"
    usual = logging.get_verbosity()
    logging.set_verbosity_error()  # its list of weights that a file lacks: V-JEPA 2's predictor, which we have not
    logging.disable_progress_bar()
    try:
        return layout.compare(model, folder), ""
    finally:
        logging.set_verbosity(usual)


def _labels(model: Model) -> dict[str, Any]:
    names = model.class_names
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}} if names else {}


def _preprocessor(model: Model) -> dict[str, Any]:
    spec = model.spec
    return {
        "do_resize": True,
        "size": {"shortest_edge": spec.size},
        "do_center_crop": spec.fit == "crop",
        "crop_size": {"height": spec.size, "width": spec.size},
        "resample": 3 if spec.interpolation == "bicubic" else 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "offset": False,  # ViViT's would be on
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
