"""The file system is the registry: what is in a folder is what can be chosen by name.

`names("tubelet.objectives")` lists the public modules of a package folder; `module(...)` imports one by name, and
`choose` turns an unknown name into an error that offers the nearest one.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType

from tubelet.errors import ConfigError


def names(package: str) -> list[str]:
    """Sorted names of the public modules (no leading underscore) in a package folder, without importing them."""
    folder = importlib.import_module(package).__path__
    return sorted(info.name for info in pkgutil.iter_modules(folder) if not info.name.startswith("_"))


def module(package: str, name: str) -> ModuleType:
    """The module called `name` in `package`; ConfigError naming the nearest one where there is none."""
    return importlib.import_module(f"{package}.{choose(name, names(package), package.rpartition('.')[2])}")


def choose(name: str, known: Iterable[str], what: str, listed_by: str = "") -> str:
    """`name` itself when it is one of `known`; otherwise ConfigError: what we got, the nearest name, all that exist (or, of very
    many, the command that lists them)."""
    known = list(known)
    if name in known:
        return name
    every = f"`{listed_by}` lists all {len(known)}" if listed_by else f"known: {', '.join(known)}"
    raise ConfigError(f"unknown {what} {name!r}{did_you_mean(name, known)} ({every})")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`": did you mean 'tube'?"` for the nearest known name, or an empty string when nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f": did you mean {near[0]!r}?" if near else ""
