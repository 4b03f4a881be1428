"""`tubelet search`: which videos of a library, and when in them?"""

from typing import TYPE_CHECKING, Literal

from tubelet.cli._print import emit_json, note, table, tell

if TYPE_CHECKING:
    from tubelet.search import Hit


def command(
    query: str,
    *,
    index: str = "library",
    model: str = "",
    start: float | None = None,
    end: float | None = None,
    top: int = 5,
    per: Literal["window", "minute", "video"] = "window",
    path: str = "",
    label: str = "",
    since: str = "",
    until: str = "",
    exact: bool = False,
    sheet: str = "",
    device: str = "auto",
    json: bool = False,
) -> None:
    """Find the moments of a library that are nearest to words, to a video or to a picture.

    Parameters
    ----------
    query
        Words such as "putting a cup on a table" (for a model that was taught with captions), a video file or a picture file.
    index
        The library that `tubelet index` made: a folder or an address.
    model
        The model to ask with. Default: where it lay when the library was made. It must be the same model.
    start
        Of a video as the question: from this second on.
    end
        Of a video as the question: up to this second.
    top
        How many answers.
    per
        What an answer is: a window, a minute or a whole video.
    path
        Only this file, or the files below this folder, or those that fit a pattern with * and ?.
    label
        Only files of this label.
    since
        Only files of this date or later: 2026-11-21 or 2026-11-21T18:30, by this machine's clock unless a zone is given.
    until
        Only files of this date or earlier, the day (or minute) included.
    exact
        Look at all vectors, however many there are.
    sheet
        Write a contact sheet of the answers to this PNG file.
    device
        "auto", "cpu" or "cuda".
    json
        Print a JSON list with one object per answer instead of a table.
    """
    import time
    from dataclasses import asdict
    from pathlib import Path

    from tubelet.datasets._files import check_target
    from tubelet.evaluate.report import write_atomically
    from tubelet.search import Filter, Index, contact_sheet, question
    from tubelet.train.device import choose_device
    from tubelet.weights.load import load_model

    if sheet:
        check_target(sheet)  # before the search, not after it
    library = Index.open(index)
    only = Filter(path, label, since, until)
    network = (
        load_model(model, choose_device(device), library.about.precision) if model else library.model(choose_device(device))
    )
    library.check(network)
    vector = question(network, query, start, end)
    began = time.perf_counter()
    hits = library.search(vector, top, per, only, exact)
    taken = time.perf_counter() - began
    if json:
        emit_json([asdict(hit) for hit in hits])
    else:
        table([_line(number, hit) for number, hit in enumerate(hits, 1)])
        tell(f"{len(hits)} answers from {len(library)} windows in {1000 * taken:.0f} ms")
    if sheet:
        write_atomically(Path(sheet), contact_sheet(hits))
        note(f"{sheet}: {len(hits)} rows")


def _line(number: int, hit: "Hit") -> dict[str, object]:

    remark = "the file is gone" if hit.gone else ""
    return {
        "": number,
        "score": hit.score,
        "seconds": f"{hit.start_seconds:.2f}-{hit.end_seconds:.2f}",
        "label": hit.label or "",
        "file": hit.path + (f"  ({remark})" if remark else ""),
    }
