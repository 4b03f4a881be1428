"""The run folder: one run at a time, one configuration from beginning to end."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tubelet.datasets._files import check_target
from tubelet.errors import CheckpointError, ConfigError
from tubelet.train import parallel
from tubelet.train.config import TrainConfig, differences, to_dict
from tubelet.weights.checkpoint import PATTERN

# Entries of environment.json that decide in which order numbers are added, and so the last bits of every result.
ROUNDING = ("torch", "numpy", "av", "processor", "threads", "processes", "device", "precision")


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Make the folder and keep every other run out of it, until the block or the process ends. Rank 0 holds it for all.

    Where the block fails before it has put anything into a folder that was not there, nothing is left of it. Raises CheckpointError
    when it cannot be made or written, or when another process trains in it.
    """
    if parallel.rank():
        yield
        return
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise CheckpointError(f"cannot write the run folder {folder}: {error.strerror}; choose another --out") from error
    try:
        _lock(handle, folder)
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            if made and os.listdir(folder) == [".lock"]:
                (folder / ".lock").unlink()
                for place in made:
                    place.rmdir()
        raise
    finally:
        os.close(handle)  # the lock goes with it, as it does when the process is killed


def begun(folder: Path) -> bool:
    """Whether there is something to continue or to keep: a checkpoint or a model. A run that failed before has neither."""
    return any((folder / "checkpoints").glob(PATTERN)) or (folder / "model" / "config.json").exists()


def finished_steps(folder: Path) -> int | None:
    """Steps of the run that left `folder/model`; None when there is no such model."""
    try:
        steps: int = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))["trained"]["steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return steps


def check(folder: Path, config: TrainConfig) -> None:
    """Compare with the config.yaml of a run that has begun: ConfigError naming every setting that differs."""
    path = folder / "config.yaml"
    if begun(folder) and path.exists():
        changed = differences(to_dict(TrainConfig.from_yaml(path)), to_dict(config))
        if changed:
            raise ConfigError(
                f"{folder} holds a run with other settings: {'; '.join(changed[:5])}{' ...' if len(changed) > 5 else ''}. "
                "Choose another --out, or repeat the first command to continue it"
            )


def check_data(folder: Path, environment: dict[str, Any]) -> None:
    """ConfigError when a run that has begun did so with another list of videos, or with another teacher."""
    recorded = _recorded(folder)
    if recorded is None:
        return
    before, now = recorded["data"], environment["data"]
    if before["fingerprint"] != now["fingerprint"]:
        raise ConfigError(
            f"the videos changed since this run began ({before['videos']} then, {now['videos']} now, or other names or "
            f"labels): put them back, or choose another --out (with --init {folder} to keep what was learned)"
        )
    if recorded.get("objective", {}) != environment["objective"]:
        raise ConfigError(
            f"what this run learns from changed since it began: {recorded.get('objective')} then, {environment['objective']} now; "
            "put it back, or choose another --out"
        )


def changed_machine(folder: Path, environment: dict[str, Any]) -> list[str]:
    """ "threads was 4, is 2" for everything that decides how sums are rounded and is not as it was when the run began."""
    recorded = _recorded(folder) or environment
    names = [name for name in ROUNDING if recorded.get(name) != environment[name]]
    return [f"{name} was {recorded.get(name)}, is {environment[name]}" for name in names]


def begin(folder: Path, config: TrainConfig, environment: dict[str, Any]) -> None:
    """Write config.yaml and, unless the run has begun already and in another one, environment.json."""
    write(folder / "config.yaml", config.to_yaml())
    if _recorded(folder) is None:
        write(folder / "environment.json", json.dumps(environment, indent=2, ensure_ascii=False) + "\n")


def write(path: Path, text: str) -> None:
    """Write a text file whole or not at all; CheckpointError where it cannot be written."""
    check_target(path)
    draft = path.with_name(f".{path.name}.tmp")
    try:
        with open(draft, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise CheckpointError(f"cannot write {path}: {error.strerror}; make room or choose another --out") from error


def _recorded(folder: Path) -> dict[str, Any] | None:
    """The environment.json of a run that has begun."""
    path = folder / "environment.json"
    if not begun(folder) or not path.exists():
        return None
    try:
        recorded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        recorded["data"]["fingerprint"], recorded["data"]["videos"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: remove it to go on with the videos that are there now") from error
    return recorded


def _lock(handle: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows has no flock; there two runs in one folder are the user's to avoid
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise CheckpointError(f"another process is training in {folder}: wait for it, or choose another --out") from error
