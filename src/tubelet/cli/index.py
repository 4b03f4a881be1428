"""`tubelet index`: folders of videos become a library that `tubelet search` looks things up in."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal

from tubelet.cli._print import emit_json, note, tell

if TYPE_CHECKING:
    from tubelet.features import Embedded
    from tubelet.models._model import Model
    from tubelet.records import Example
    from tubelet.search import Index


def command(
    *data: str,
    model: str = "",
    out: str = "library",
    windows: Literal["sliding", "uniform", "shots"] | None = None,
    window_seconds: float | None = None,
    step_seconds: float | None = None,
    count: int | None = None,
    prune: bool = False,
    batch_size: int = 8,
    workers: int | None = None,
    device: str = "auto",
    precision: Literal["fp32", "bf16"] | None = None,
    json: bool = False,
) -> int:
    """Make a searchable library of folders of videos, hours long or not; the same command later takes what is new or changed.

    A video that cannot be read is named; the others are still indexed, and the exit code is 2. Stopped or killed, the same command
    goes on where it was. Searches meanwhile see the videos that are done.

    Parameters
    ----------
    data
        Folders of videos, tables or video files.
    model
        Run folder, model folder or checkpoint. Default: the model that the library was made with.
    out
        The library: a folder, or an address such as s3://bucket/library (with the usual AWS_... environment variables).
    windows
        Where clips are taken: "sliding" from the first frame to the last (default), "uniform" spread evenly, "shots" sliding
        within each shot. These and the next three are those of the library where there is one.
    window_seconds
        What a window spans. Default: what a clip of the model spans.
    step_seconds
        From one window to the next. Default: half a window.
    count
        Windows of a video with --windows uniform. Default: 5.
    prune
        Take videos of these folders (or of the folders that a table names) out of the library whose files are no longer there.
    batch_size
        Clips per forward pass.
    workers
        Files that are read at the same time. Default: one per core.
    device
        "auto", "cpu" or "cuda".
    precision
        "bf16" computes in half of the bits: faster where the processor multiplies in it, and answers differ a little.
        Default: that of the library, "fp32" for a new one.
    json
        Print a JSON object that says what was done.
    """
    from tubelet import datasets
    from tubelet.errors import ConfigError
    from tubelet.video.stream import SLIDING

    if batch_size < 1:
        raise ConfigError(f"--batch-size is {batch_size}: it must be 1 or more")
    given: dict[str, Any] = {"kind": windows, "window_seconds": window_seconds, "step_seconds": step_seconds, "count": count}
    asked = {name: value for name, value in given.items() if value is not None}
    replace(SLIDING, **asked)  # are they possible, before anything is read
    examples = datasets.read_many(data).examples
    index, network = _open(out, model, asked, device, precision)
    with _shown(out, len(examples)) as (on_window, on_video):
        added = index.add(network, examples, batch_size, workers, on_window, on_video)
    gone = index.gone(_places(data))
    if prune:
        index.remove(gone)
    elif gone:
        note(f"{len(gone)} videos in the library are no longer there, the first is {gone[0]}: --prune takes them out")
    if json:
        missing = [{"id": id, "reason": reason} for id, reason in added.missing]
        emit_json({"out": out, **asdict(added), "missing": missing, "gone": gone, "pruned": prune, "windows": len(index)})
    else:
        left = f", {len(added.missing)} not readable" if added.missing else ""
        pruned = f", {len(gone)} taken out" if prune and gone else ""
        done = f"{added.new} new, {added.changed} changed, {added.unchanged} unchanged{left}{pruned}"
        tell(f"{out}: {done}; {len(index)} windows of {index.about.width} values in all")
    return 2 if added.missing else 0


def _open(out: str, model: str, asked: dict[str, Any], device: str, precision: str | None) -> "tuple[Index, Model]":
    """The library, made where there is none, and the model it is made with. asked: what Windows are to differ in."""
    from tubelet.errors import ConfigError, DataError
    from tubelet.search import Index
    from tubelet.train.device import choose_device
    from tubelet.video.stream import SLIDING
    from tubelet.weights.load import load_model

    before = None
    try:
        before = Index.open(out)
    except DataError as error:
        if not model:
            raise ConfigError(f"--model is missing: {error}") from error
    windows = replace(before.about.windows if before else SLIDING, **asked)
    if "count" in asked and windows.kind != "uniform":
        raise ConfigError(f"--count {asked['count']} is for --windows uniform, these are {windows.kind}")
    if before and not model:
        network, model = before.model(choose_device(device), precision), before.about.model_path
    else:
        network = load_model(model, choose_device(device), precision or (before.about.precision if before else "fp32"))
    return Index.create(out, network, model, windows), network


@contextmanager
def _shown(out: str, videos: int) -> "Iterator[tuple[Callable[[Embedded], None], Callable[[Example, str], None]]]":
    """A progress bar, as the two functions that `Index.add` calls."""
    from tqdm import tqdm

    with tqdm(total=videos, desc=f"indexing into {out}", unit="video", file=sys.stderr, disable=None) as bar:

        def on_window(one: "Embedded") -> None:
            if one.count > 100 and one.place % 20 == 0:  # a long video: how far it is
                bar.set_postfix_str(f"{one.example.id} {one.window.end_seconds / 60:.1f} min, {one.place}/{one.count} windows")

        def on_video(example: "Example", problem: str) -> None:
            bar.update(1)
            if problem:
                bar.write(f"left out: {example.id}: {problem}", file=sys.stderr)

        yield on_window, on_video


def _places(data: tuple[str, ...]) -> list[str]:
    """What `data` stands for on disk: folders and videos themselves, tables for the folders of their videos."""
    import os

    from tubelet import datasets
    from tubelet.datasets._files import is_video

    found = set()
    for place in data:
        if os.path.isdir(place) or is_video(place):
            found.add(place)
        else:
            found |= {os.path.dirname(example.path) for example in datasets.read(place).examples}
    return sorted(found)
