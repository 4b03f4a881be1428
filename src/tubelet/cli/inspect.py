"""`tubelet inspect`: what would be trained on, and what is wrong with it."""

import os
from typing import Annotated

from cyclopts import Parameter

FLAGS = ("decode", "json")


def command(
    *data: Annotated[str, Parameter(allow_leading_hyphen=True)],
    decode: bool = False,
    json: bool = False,
) -> int:
    """Show what a data set holds, and whether it can be trained on.

    Counts, durations, frame rates, sizes and class balance; unreadable, too short and duplicate videos; groups and
    equal files that straddle splits; how many videos fine-tuning would hold out. Exit code 2 where training would fail.
    Clips and sides are those that `tubelet pretrain` and `tubelet finetune` would choose, and change with the same dotted
    flags, for example `--clip.stride-frames 2` or `--data.val-split fold1`.

    Parameters
    ----------
    data
        Folders of videos (one folder per class, or unlabelled) or tables (CSV, TSV, `path label` lines).
    decode
        Decode every frame of every video, which also finds damage in the middle of a file.
    json
        Print everything as JSON instead.
    """
    from tubelet import datasets
    from tubelet.cli import _settings
    from tubelet.cli._print import emit_json
    from tubelet.errors import DataError
    from tubelet.inspect_data import inspect
    from tubelet.recipes import pretraining

    paths, settings = _settings.split(data, FLAGS)
    if not paths:
        raise DataError("no data given: name a folder of videos or a table, as in `tubelet inspect DIR`")
    config = pretraining(paths, os.devnull, settings)  # no run can have begun there
    found = inspect(datasets.read_many(paths, config.data.format), config.clip, " + ".join(paths), config.data, decode)
    if json:
        emit_json(found.to_json())
    else:
        print(found.to_text())
    return 2 if found.problems else 0
