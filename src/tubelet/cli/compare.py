"""`tubelet compare`: several models on the same videos under one budget."""

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tubelet.cli._print import emit_json, note, table, tell

if TYPE_CHECKING:
    from tubelet.compare import Comparison

FLAGS = ("models", "out", "clips", "minutes", "init", "config", "seed", "json")


def command(
    *data: Annotated[str, Parameter(allow_leading_hyphen=True)],
    models: str = "",
    out: str = "",
    clips: int | None = None,
    minutes: float | None = None,
    init: list[str] | None = None,
    config: str = "",
    seed: int | None = None,
    json: bool = False,
) -> None:
    """Train several models under one budget and draw their accuracy against their cost; the same command continues.

    All see the same videos, clips and augmentation, and are judged on the same held-out videos. What the others must beat
    comes first: a model of single frames. Any setting of a run is a dotted flag for all of them, for example
    `--clip.size 112 --data.val-split fold0`.

    Parameters
    ----------
    data
        Folders or tables of labelled videos. Some are held out: see `--data.val`, `--data.val-split`, `--data.val-fraction`.
    models
        Names from `tubelet models` with commas between, in the order of the table; sizes behind colons, and a name of your own
        before `=`: `single_frame,videomae_tiny,wide=videomae_tiny:width=192:depth=6`. Default: one of each family, small.
    out
        Folder of the report, with a run folder for each model. Default: runs/DATA-compare.
    clips
        Train each on so many clips. Default: every video 100 times, but no more than about 20,000 clips.
    minutes
        Train each for about so long instead. A short trial finds how many steps fit.
    init
        NAME=FOLDER: a model of the list that starts from a pretrained one and takes its sizes. May be given several times.
    config
        A YAML file of settings; flags win over it.
    seed
        Every random choice follows from it.
    json
        Print the rows, what failed and the report's path as JSON.
    """
    from tubelet import compare
    from tubelet.cli import _settings
    from tubelet.errors import ConfigError
    from tubelet.recipes import comparison

    paths, dotted = _settings.split(data, FLAGS)
    if clips is not None and minutes is not None:
        raise ConfigError("--clips and --minutes are two budgets: give one of them")
    for name, value in (("clips", clips), ("minutes", minutes)):
        if value is not None and value <= 0:
            raise ConfigError(f"--{name} is {value}: it must be above 0")
    settings = _settings.merged(config, {"run.seed": seed}, dotted)
    runs, folder = comparison(paths, out, models, init or (), clips, settings)
    found = compare.compare(runs, folder, minutes, note)
    if json:
        emit_json(
            {
                "rows": found.rows,
                "failed": found.failed,
                "untimed": found.untimed,
                "part": found.part,
                "asked": found.asked,
                "missing": [{"id": id, "reason": reason} for id, reason in found.missing],
                "report": str(found.report),
            }
        )
    else:
        print_comparison(found)


def print_comparison(found: "Comparison") -> None:
    """The table, what failed or was missing, and where the report is."""
    table([_line(row) for row in found.rows])
    tell()
    tell(f"{found.part}: {found.asked - len(found.missing)} of {found.asked} videos evaluated, one view each")
    for id, reason in found.missing:
        tell(f"  {id}: {reason}")
    for name, reason in found.failed.items():
        tell(f"{name} has no result: {reason}")
    for name, reason in found.untimed.items():
        tell(f"{name} could not be timed: {reason}")
    tell(f"report: {found.report}")


def _line(row: dict[str, Any]) -> dict[str, Any]:
    low, high = row.get("top1_low"), row.get("top1_high")
    return {
        "model": row["name"],
        "weights": "" if row["weights"] == row["name"] else row["weights"],
        "top-1": None if row["top1"] is None else f"{row['top1']:.1%}",
        "95 %": "" if low is None or high is None else f"{100 * low:.0f}-{100 * high:.0f}",
        "M params": _scaled(row, "params", 1e6),
        "GMAC": _scaled(row, "gmacs"),
        "clips/s": _scaled(row, "clips_per_second"),
        "in training": _scaled(row, "training_clips_per_second"),
        "minutes": _scaled(row, "training_seconds", 60),
        "clips": row.get("training_clips"),
    }


def _scaled(row: dict[str, Any], key: str, scale: float = 1) -> float | None:
    return float(f"{row[key] / scale:.3g}") if key in row else None
