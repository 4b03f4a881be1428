"""A folder of class folders, a flat folder of unlabelled videos, or either of them below train/ and val/.

    DIR/wave/a.mp4  DIR/clap/b.mp4              two classes
    DIR/train/wave/a.mp4  DIR/val/clap/b.mp4    two classes, split
    DIR/unlabelled/c.mp4                        beside train/ and val/: videos without a label
    DIR/a.mp4  DIR/b.mp4                        no labels (also when some videos lie beside folders)

Clips may be flipped unless a class name speaks of a direction; sampling is VideoMAE's.
"""

from pathlib import Path

from tubelet.datasets._files import find_videos, is_video, may_flip, natural
from tubelet.errors import DataError
from tubelet.records import Dataset, Example

SPLIT_NAMES = frozenset(["train", "training", "val", "valid", "validation", "dev", "test", "testing"])
UNLABELLED = frozenset(("unlabelled", "unlabeled"))


def matches(path: str | Path) -> bool:
    """Whether `path` is a folder or a single video file."""
    return Path(path).is_dir() or is_video(path)


def read(path: str | Path) -> Dataset:
    """The videos below a folder (or one video file); DataError when there is none.

    The first folder below `path` (below train/, val/... where those are used) is the label. Classes are in natural
    order.
    """
    folder = Path(path)
    if folder.is_file() and is_video(folder):
        return Dataset((Example(str(folder), folder.name),), may_flip=True)
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
    tops = {part[0].lower() for part in parts if len(part) > 1}
    has_splits = all(len(part) > 1 for part in parts) and bool(tops & SPLIT_NAMES) and tops <= SPLIT_NAMES | UNLABELLED
    depth = 1 if has_splits else 0  # where the class folder stands
    bare = [has_splits and part[0].lower() in UNLABELLED for part in parts]
    labelled = all(len(part) > depth + 1 for part, without in zip(parts, bare, strict=True) if not without)
    examples = tuple(
        Example(
            str(folder / name),
            name,
            label=part[depth] if labelled and not without else None,
            split=part[0].lower() if has_splits else None,
        )
        for name, part, without in zip(found, parts, bare, strict=True)
    )
    classes = tuple(sorted({example.label for example in examples if example.label is not None}, key=natural))
    return Dataset(examples, classes, may_flip(classes))


def _what_is_there(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    if not names:
        return "the folder is empty"
    return f"it holds {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
