"""The run folder: one process at a time, one configuration from beginning to end."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tubelet.errors import CheckpointError, ConfigError
from tubelet.train.config import TrainConfig, differences, read_yaml, to_dict


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Make the folder and keep every other training process out of it, until the block or the process ends.

    Raises CheckpointError when it cannot be made or written, or when another process trains in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise CheckpointError(f"cannot write the run folder {folder}: {error.strerror}; choose another --out") from error
    try:
        _lock(handle, folder)
        yield
    finally:
        os.close(handle)  # the lock goes with it, as it does when the process is killed


def settle(folder: Path, config: TrainConfig) -> None:
    """Write config.yaml, or compare with the one that is there: ConfigError naming every setting that differs."""
    path = folder / "config.yaml"
    if path.exists():
        changed = differences(read_yaml(path), to_dict(config))
        if changed:
            raise ConfigError(
                f"{folder} holds a run with other settings: {'; '.join(changed[:5])}{' ...' if len(changed) > 5 else ''}. "
                "Choose another --out, or repeat the first command to continue it"
            )
    write(path, config.to_yaml())


def settle_data(folder: Path, environment: dict[str, Any]) -> None:
    """Write environment.json; ConfigError when the run began with another list of videos."""
    path = folder / "environment.json"
    if path.exists():
        try:
            before, now = json.loads(path.read_text(encoding="utf-8"))["data"], environment["data"]
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"{path} is damaged: remove it to go on with the videos that are there now") from error
        if before["fingerprint"] != now["fingerprint"]:
            raise ConfigError(
                f"the videos changed since this run began ({before['videos']} then, {now['videos']} now, or other names or "
                f"labels): put them back, or choose another --out (with --init {folder} to keep what was learned)"
            )
    write(path, json.dumps(environment, indent=2, ensure_ascii=False) + "\n")


def write(path: Path, text: str) -> None:
    """Write a text file whole or not at all; CheckpointError where it cannot be written."""
    draft = path.with_name(f".{path.name}.tmp")
    try:
        with open(draft, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}; make room or choose another --out") from error


def _lock(handle: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows has no flock; there two runs in one folder are the user's to avoid
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise CheckpointError(f"another process is training in {folder}: wait for it, or choose another --out") from error
