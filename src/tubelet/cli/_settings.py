"""Words of a training command -> paths and settings. Any setting of a run is a dotted flag: `--optim.base-lr 1e-3`."""

import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from tubelet import find
from tubelet.errors import ConfigError
from tubelet.train.config import CompileMode, TrainConfig, flat, over, read_yaml, setting_names, to_dict, unknown_setting


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
                file = f"; the file of that name is ./{word}" if os.path.lexists(word) else ""
                raise ConfigError(f"unknown flag {word!r}: flags begin with two dashes{file}")
            paths.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        known = setting_names()
        if name not in known and not name.startswith("model.options."):
            raise ConfigError(unknown_setting(name) if "." in name else _unknown_flag(name, flags))
        values = ("true", "false", *(get_args(CompileMode) if name == "run.compile" else ()))
        if not equals and isinstance(defaults.get(name), bool) and (not rest or rest[0].lower() not in values):
            value = "true"
        elif not equals:
            if not rest:
                raise ConfigError(f"--{name} needs a value")
            value = rest.pop(0)
        settings[name] = value
    return paths, settings


def check_read(objective: str, dotted: Mapping[str, Any]) -> None:
    """ConfigError for a flag of another objective than that of the run, which nobody would read."""
    for name in dotted:
        section, _, rest = name.partition(".")
        if section in find.names("tubelet.objectives") and section != objective:
            own = (f"{objective}.{name}", f"{objective}.{rest}")
            near = [f": did you mean {_flag(one)!r}?" for one in own if one in setting_names()]
            hint = near[0] if near else f", or set --objective {section}"
            raise ConfigError(f"{_flag(name)!r} says nothing to a run whose objective is {objective}{hint}")


def _unknown_flag(name: str, flags: Sequence[str]) -> str:
    """What to say about it: a setting of that very name in some section, else the flag or setting that is spelled alike."""
    by_last = {setting.rpartition(".")[2]: setting for setting in reversed(setting_names())}
    near = [name] if name in by_last else get_close_matches(name, [*flags, *by_last, *by_last.values()], n=1)
    hint = f": did you mean {_flag(near[0] if near[0] in flags else by_last.get(near[0], near[0]))!r}?" if near else ""
    return f"unknown flag {_flag(name)!r}{hint} (--help lists flags, --print-config all settings)"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def merged(path: str, named: Mapping[str, Any], dotted: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a command: those of the file at `path`, over them its own flags that were given, then dotted ones."""
    given = {name: value for name, value in named.items() if value not in ("", None)}
    return over(over(from_file(path), given), dotted)


def from_file(path: str | None) -> dict[str, Any]:
    """The settings in a YAML file, dotted; {} without one. A whole config.yaml of another run will do; its `out` is left out."""
    if not path:
        return {}
    values = read_yaml(path)
    options = values.get("model", {}).pop("options", None) if isinstance(values.get("model"), Mapping) else None
    settings = flat(values)
    settings.pop("out", None)
    return settings if options is None else {**settings, "model.options": options}
