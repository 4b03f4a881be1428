"""Words of a training command -> paths and settings. Any setting of a run is a dotted flag: `--optim.base-lr 1e-3`."""

from collections.abc import Mapping, Sequence
from typing import Any

from tubelet.errors import ConfigError
from tubelet.find import did_you_mean
from tubelet.train.config import TrainConfig, flat, read_yaml, setting_names, to_dict, unknown_setting


def split(words: Sequence[str], flags: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """(paths, {"optim.base_lr": "1e-3"}) of the words that are no flag of the command itself.

    `--name value`, `--name=value`, and `--name` alone for what is on or off; `-` and `_` are alike. Raises ConfigError for
    an unknown one; `flags`, the command's own, are offered too when they are nearest.
    """
    defaults = flat(to_dict(TrainConfig(out="")))
    paths: list[str] = []
    settings: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            if word.startswith("-") and len(word) > 1:
                raise ConfigError(f"unknown flag {word!r}: flags begin with two dashes")
            paths.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        known = setting_names()
        if name not in known and not name.startswith("model.options."):
            if "." in name:
                raise ConfigError(unknown_setting(name))
            near = did_you_mean(name, flags) or did_you_mean(name, known)
            raise ConfigError(f"unknown flag {'--' + name.replace('_', '-')!r}{near.replace('_', '-')} (--help lists them)")
        if not equals and isinstance(defaults.get(name), bool) and (not rest or rest[0].lower() not in ("true", "false")):
            value = "true"
        elif not equals:
            if not rest:
                raise ConfigError(f"--{name} needs a value")
            value = rest.pop(0)
        settings[name] = value
    return paths, settings


def from_file(path: str | None) -> dict[str, Any]:
    """The settings in a YAML file, dotted; {} without one. A whole config.yaml of another run will do; its `out` is left out."""
    if not path:
        return {}
    values = read_yaml(path)
    options = values.get("model", {}).pop("options", None) if isinstance(values.get("model"), Mapping) else None
    settings = flat(values)
    settings.pop("out", None)
    return settings if options is None else {**settings, "model.options": options}
