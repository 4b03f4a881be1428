"""A model folder is what is handed to others: `model.safetensors` and `config.json`. No code is ever pickled."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from tubelet.errors import CheckpointError, utf8
from tubelet.models._model import Model

FORMAT = "tubelet-model-1"


def describe(model: Model) -> dict[str, Any]:
    """What rebuilds a model but for its weights, JSON-able: name, options, clip (the ClipSpec) and class_names in order."""
    return {
        "format": FORMAT,
        "name": model.name,
        "options": model.options,
        "clip": model.spec.to_dict(),
        "class_names": list(model.class_names),
    }


def save(model: Model, folder: str | Path, trained: dict[str, Any] | None = None) -> Path:
    """Write a model folder whole or not at all; `trained` says how it came about. An older one is replaced.

    Raises CheckpointError when the folder cannot be written (permissions, no space); then nothing is left behind.
    """
    folder = Path(folder)
    draft: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, draft / "model.safetensors")
        config = {**describe(model), "trained": trained or {}}
        (draft / "config.json").write_text(utf8(json.dumps(config, indent=2, ensure_ascii=False)), encoding="utf-8")
        for name in ("model.safetensors", "config.json"):
            with open(draft / name, "rb") as file:
                os.fsync(file.fileno())
        os.chmod(draft, 0o755)  # mkdtemp makes it private
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            os.rename(folder, old / folder.name)
            os.rename(draft, folder)
            shutil.rmtree(old)
        else:
            os.rename(draft, folder)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"cannot write the model folder {folder}: {error}; nothing was changed") from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
    return folder
