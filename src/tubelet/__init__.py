"""Tubelet turns a folder of videos into a video model. The public names are here; each is imported when first used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tubelet.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        MissingExtraError,
        TrainingError,
        TubeletError,
        VideoError,
    )
    from tubelet.model import VideoModel, load
    from tubelet.records import Batch, Clip, ClipSpec, Dataset, Example

__version__ = "0.1.0"

_HOME = {
    "load": "model",
    "VideoModel": "model",
    "Batch": "records",
    "Clip": "records",
    "ClipSpec": "records",
    "Dataset": "records",
    "Example": "records",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "MissingExtraError": "errors",
    "TrainingError": "errors",
    "TubeletError": "errors",
    "VideoError": "errors",
}

__all__ = [
    "Batch",
    "CheckpointError",
    "Clip",
    "ClipSpec",
    "ConfigError",
    "DataError",
    "Dataset",
    "Example",
    "MissingExtraError",
    "TrainingError",
    "TubeletError",
    "VideoError",
    "VideoModel",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: `import tubelet` alone must not cost the seconds of torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'tubelet' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tubelet.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
