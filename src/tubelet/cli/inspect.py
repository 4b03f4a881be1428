"""`tubelet inspect`: what would be trained on, and what is wrong with it."""

from tubelet import datasets
from tubelet.cli._print import emit_json
from tubelet.errors import DataError
from tubelet.inspect_data import inspect
from tubelet.records import ClipSpec


def command(*data: str, clip: ClipSpec | None = None, json: bool = False) -> int:
    """Show what a data set holds, and whether it can be trained on.

    Counts, durations, frame rates, sizes and class balance; unreadable, too short and duplicate videos; groups and
    equal files that straddle splits. Exit code 2 where training would fail.

    Parameters
    ----------
    data
        Folders of videos (one folder per class, or unlabelled) or tables (CSV, TSV, `path label` lines).
    clip
        How clips would be cut; decides what is too short.
    json
        Print everything as JSON instead.
    """
    if not data:
        raise DataError("no data given: name a folder of videos or a table, as in `tubelet inspect DIR`")
    found = inspect(datasets.read_many(data), clip, source=" + ".join(data))
    if json:
        emit_json(found.to_json())
    else:
        print(found.to_text())
    return 2 if found.problems else 0
