"""The public surface: a change here is a change for everybody who imports tubelet."""

import importlib.metadata
import subprocess
import sys

import pytest

import tubelet

PUBLIC = [
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


def test_the_public_names_are_these() -> None:
    assert sorted(tubelet.__all__) == PUBLIC
    assert dir(tubelet) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_can_be_imported(name: str) -> None:
    namespace: dict[str, object] = {}
    exec(f"from tubelet import {name}", namespace)
    assert namespace[name] is getattr(tubelet, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'tubelet' has no attribute 'laod'"):
        tubelet.laod  # noqa: B018


def test_every_error_is_a_tubelet_error() -> None:
    errors = [getattr(tubelet, name) for name in PUBLIC if name.endswith("Error")]
    assert all(issubclass(error, tubelet.TubeletError) for error in errors)


def test_importing_tubelet_does_not_import_torch() -> None:
    code = "import sys, tubelet; tubelet.TubeletError; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_version_is_the_installed_one() -> None:
    assert importlib.metadata.version("tubelet") == tubelet.__version__
