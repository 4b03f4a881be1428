"""`tubelet probe`: is it really video?"""

from typing import Any

from tubelet.cli._print import emit_json, note, table, tell


def command(
    model: str,
    *data: str,
    pairs: str = "",
    single_frame: str = "",
    split: str = "",
    clips: int = 1,
    crops: int = 1,
    frames: str = "",
    strides: str = "",
    limit: int = 0,
    seed: int = 0,
    out: str = "",
    batch_size: int = 8,
    workers: int | None = None,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Measure what a model owes to time: clips backwards, shuffled, as one frame, and with fewer frames; adds to report.html.

    A model that does not know the order of frames scores exactly 50 % between clips and their reversals. One that was taught
    no classes is judged by a linear probe on its frozen features. Videos that cannot be read are named and in no number.

    Parameters
    ----------
    model
        Run folder, model folder or checkpoint.
    data
        Folders or tables of labelled videos. Default: what the run was trained on, of which it is judged on the part
        held out.
    pairs
        Classes that are each other's reversal: "left:right,up:down". Default: those that the model takes for each other when
        their clips are played backwards.
    single_frame
        A model that sees single frames, taught the same classes, to compare with.
    split
        Name of the split to judge on ("val", "test", "fold0", ...), or "all" for every video.
    clips
        Windows in time per video.
    crops
        Crops of each window.
    frames
        Numbers of frames to try, such as "1,4,16". Default: 1, 2, 4, ... up to those of the model.
    strides
        Strides to try, such as "1,2". Default: the model's own, twice and four times it. Where neither these nor the frames are
        given, no clip spans more than those of the model.
    limit
        Judge on this many videos, spread evenly over the set. Default: all.
    seed
        Shuffles and intervals follow from it.
    out
        Folder of the report. Default: the model's run folder, else runs/probe_MODEL.
    batch_size
        Views per forward pass.
    workers
        Threads that decode. Default: one per core.
    device
        "auto", "cpu" or "cuda".
    json
        Print a JSON object instead of tables.
    """
    from tubelet.evaluate.probe import Settings, probe
    from tubelet.evaluate.sides import data_of
    from tubelet.train.device import choose_device

    settings = Settings(
        split, (pairs,) if pairs else (), single_frame, clips, crops, _numbers("frames", frames), _numbers("strides", strides),
        limit, seed, batch_size, workers, str(choose_device(device)),
    )  # fmt: skip
    found, report = probe(model, data or data_of(model), out or None, settings, note)
    if json:
        emit_json(found | {"report": str(report)})
    else:
        _print(found)
        tell(f"report: {report}")


def _numbers(name: str, text: str) -> tuple[int, ...]:
    from tubelet.errors import ConfigError

    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(f"{name} is {text!r}: wanted whole numbers with commas, such as 1,4,16") from error


def _print(found: dict[str, Any]) -> None:
    """The verdict and its three tables, what was missing, and what the numbers divide by."""
    tell(found["verdict"])
    tell()
    rows: list[dict[str, Any]] = [
        _line(row, frames=row["order"], lost=_points(row["drop"]) if row["order"] != "as given" else "")
        for row in found["orders"]
    ]
    table(rows, ["frames", "top-1", "95 %", "videos", "lost"])
    single = found.get("single_frame_model")
    if single:
        tell()
        tell(f"{single['name']} {single['path']}: {single['share']:.1%}, the model is {_points(single['gap'])} points above it")
    tell()
    tell(f"forward over reversed: {found['direction']['share']:.1%} ({_between(found['direction'])})")
    if found["pairs"]:
        tell("pairs of classes that are each other's reversal" + ("" if found["pairs_given"] else ", as the model sees them"))
        for row in found["pairs"]:
            name = " <-> ".join(row["pair"]) if row["pair"] else "all pairs"
            both = "no video" if row["share"] is None else f"{row['share']:.1%} ({_between(row)})"
            clips = "" if row["share"] is None else f", clips {row['forward']:.1%}, reversals {row['reversed']:.1%}"
            tell(f"  {name}: {both}{clips}")
    tell()
    table([_line(row, padded=row["padded"] or "", note=_note(row)) for row in found["saturation"]],
          {"frames": "frames", "stride_frames": "stride", "top-1": "top-1", "95 %": "95 %", "videos": "videos", "padded": "padded",
           "note": ""})  # fmt: skip
    evaluated = found["asked"] - len(found["missing"])
    tell()
    tell(f"{found['part']}; answers of {found['judged_by']}" + (f"; {found['note']}" if found["note"] else ""))
    tell(f"{evaluated} of {found['asked']} videos probed" + (", missing:" if found["missing"] else ""))
    for gone in found["missing"]:
        tell(f"  {gone['id']}: {gone['reason']}")


def _line(row: dict[str, Any], **more: Any) -> dict[str, Any]:
    nothing = row["share"] is None
    return row | {"top-1": None if nothing else f"{row['share']:.1%}", "95 %": "" if nothing else _between(row)} | more


def _note(row: dict[str, Any]) -> str:
    return str(row.get("why", "")) or ("each frame repeated" if row["filled"] else "")


def _between(row: dict[str, Any]) -> str:
    return f"{row['low']:.1%} to {row['high']:.1%}"


def _points(gap: dict[str, Any]) -> str:
    return f"{100 * gap['gap']:.1f} ({100 * gap['low']:.1f} to {100 * gap['high']:.1f})"
