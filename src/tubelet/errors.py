"""What can go wrong, as one small tree. Every message says what we got, what we wanted and what to try.

The command line prints any of these as one line and exits with code 2; anything else is our own bug and keeps its traceback.
"""

from typing import Any


def printable(text: str) -> str:
    """The text on one line, with what a terminal would obey or cannot show (names of hostile files) as Python writes it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def utf8(value: Any) -> Any:
    """The value; a text with what UTF-8 cannot hold as Python (and JSON) writes it: bytes of file names that are not UTF-8
    travel as halves of surrogate pairs, and files and tables take none. So the id `a\\xff.mp4` is written `a\\udcff.mp4`."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


class TubeletError(Exception):
    """A mistake the user can mend: a bad path, file, setting or checkpoint."""


class VideoError(TubeletError):
    """A video that cannot be decoded, holds no video stream, or is too short for what was asked."""


class DataError(TubeletError):
    """A folder or table of videos that cannot be used: missing, empty, one class only, labels that do not match."""


class ConfigError(TubeletError):
    """An unknown or impossible setting, or an unknown model, objective, mask... (the nearest name is offered)."""


class CheckpointError(TubeletError):
    """Weights that do not fit, a damaged or half-written checkpoint, or a folder that cannot be written."""


class TrainingError(TubeletError):
    """A run that has to stop: a loss that is not finite, or no readable video left."""


class MissingExtraError(TubeletError):
    """An optional package is needed for this; the message has the pip line that installs it."""
