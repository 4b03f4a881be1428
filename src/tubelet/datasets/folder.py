"""A folder of class folders, a flat folder of unlabelled videos, or either of them below train/ and val/.

    DIR/wave/a.mp4  DIR/clap/b.mp4              two classes
    DIR/train/wave/a.mp4  DIR/val/clap/b.mp4    two classes, split
    DIR/unlabelled/c.mp4                        beside train/ and val/: videos without a label
    DIR/a.mp4  DIR/b.mp4                        videos that lie in no class folder have no label

Clips may be flipped unless a class name may stand for a direction; sampling is VideoMAE's.
"""

from pathlib import Path

from tubelet.datasets._files import TEST_NAMES, TRAIN_NAMES, VAL_NAMES, find_videos, is_video, may_flip, natural
from tubelet.errors import DataError
from tubelet.records import Dataset, Example

UNLABELLED = frozenset(("unlabelled", "unlabeled"))


def matches(path: str | Path) -> bool:
    """Whether `path` is a folder or a single video file."""
    return Path(path).is_dir() or is_video(path)


def read(path: str | Path) -> Dataset:
    """The videos below a folder (or one video file); DataError when there is none.

    The first folder below `path` (below train/, val/... where those are used) is the label. Classes are in natural
    order. DataError too where something else lies beside train/ and val/.
    """
    folder = Path(path)
    if folder.is_file() and is_video(folder):
        return Dataset((Example(str(folder), str(folder)),), may_flip=True)
    if not folder.is_dir():
        what = "is not a folder or a video file" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {what}: give a folder of videos (one folder per class, or unlabelled videos)")
    try:
        found = find_videos(folder)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from error
    if not found:
        raise DataError(f"{folder} holds no video: {_what_is_there(folder)}; wanted files such as .mp4, .webm, .avi or .mkv")
    parts = [tuple(name.split("/")) for name in found]
    depth = 1 if _has_splits(folder, parts) else 0  # where the class folder stands
    examples = tuple(
        Example(
            str(folder / name),
            name,
            label=part[depth] if len(part) > depth + 1 and not (depth and part[0].lower() in UNLABELLED) else None,
            split=part[0].lower() if depth else None,
        )
        for name, part in zip(found, parts, strict=True)
    )
    classes = tuple(sorted({example.label for example in examples if example.label is not None}, key=natural))
    for name in classes:
        if any("\ud800" <= c <= "\udfff" for c in name):  # how Python holds bytes of a name that are not UTF-8
            raise DataError(f"{folder / name} is a class whose name is not UTF-8, so no model can store it: rename the folder")
    return Dataset(examples, classes, may_flip(classes))


def _has_splits(folder: Path, parts: list[tuple[str, ...]]) -> bool:
    """Whether the top folders are the sides of a split; DataError where only some of what is there belongs to one.

    A single such name among others is a class: a "train" beside a "bus".
    """
    tops = {part[0].lower() for part in parts if len(part) > 1}
    sides = [tops & names for names in (TRAIN_NAMES, VAL_NAMES, TEST_NAMES) if tops & names]
    others = sorted({part[0] for part in parts if len(part) == 1 or part[0].lower() not in UNLABELLED.union(*sides)})
    if len(sides) > 1 and others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise DataError(
            f"{folder} is split into {', '.join(sorted(set().union(*sides)))}, and beside them lies "
            f"{', '.join(others[:3])}{more}: move it into one of them, or into unlabelled/"
        )
    return bool(sides) and not others


def _what_is_there(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    if not names:
        return "the folder is empty"
    return f"it holds {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
