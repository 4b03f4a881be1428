"""What the readers share: which files are videos, what names mean, and their order."""

import os
import re
import stat
from pathlib import Path

from tubelet.errors import CheckpointError

VIDEO_SUFFIXES = frozenset(
    [
        ".3g2",
        ".3gp",
        ".asf",
        ".avi",
        ".f4v",
        ".flv",
        ".gif",
        ".h264",
        ".hevc",
        ".ivf",
        ".m2ts",
        ".m4v",
        ".mjpeg",
        ".mjpg",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".nut",
        ".ogg",
        ".ogv",
        ".rm",
        ".rmvb",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
    ]
)
# What the sides of a split are called; lower case.
TRAIN_NAMES = frozenset(["train", "training"])
VAL_NAMES = frozenset(["val", "valid", "validate", "validation", "dev", "eval", "evaluation", "holdout"])
TEST_NAMES = frozenset(["test", "testing"])
# A mirrored clip of a class with such a word in its name shows another class.
DIRECTION_WORDS = frozenset(
    [
        "left",
        "right",
        "leftward",
        "rightward",
        "leftwards",
        "rightwards",
        "clockwise",
        "counterclockwise",
        "anticlockwise",
        "cw",
        "ccw",
        "east",
        "west",
        "l",
        "r",
        "links",
        "rechts",
    ]
)


def is_video(path: str | Path) -> bool:
    """By suffix only; whether it can be decoded is found out when it is opened."""
    return os.path.splitext(path)[1].lower() in VIDEO_SUFFIXES


def check_target(path: str | Path) -> None:
    """CheckpointError for what a file must not take the place of: a video, and a device, a pipe or /dev/stdout, which would be
    gone for everybody since files are put into place by renaming."""
    if is_video(path) and os.path.isfile(path):
        raise CheckpointError(f"{path} is a video, and it is not overwritten: name another file to write")
    kind = os.stat(path).st_mode if os.path.exists(path) else stat.S_IFREG
    stream = os.path.islink(path) and os.readlink(path).startswith("/proc/")
    if stream or not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise CheckpointError(f"{path} is a device or a pipe: name a file to write instead")


def find_videos(folder: Path) -> list[str]:
    """Sorted paths, relative to `folder` with "/" between, of every video below it (links followed, hidden ones left
    out)."""
    found = []
    seen = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # a link back up would never end
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        place = Path(root).relative_to(folder)
        found += [(place / name).as_posix() for name in files if is_video(name) and not name.startswith(".")]
    return sorted(found)


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which "fold2" comes before "fold10" and "2" before "10"."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def may_flip(classes: tuple[str, ...]) -> bool:
    """False when a class name says left, right, clockwise... (its mirror image would carry the wrong label), or when all
    names are numbers, which say nothing."""
    if classes and all(name.isdecimal() for name in classes):
        return False
    words = {word.lower() for name in classes for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}
    return not words & DIRECTION_WORDS
