"""`tubelet timeline`: what happens when in a video?"""

from typing import Literal

from tubelet.cli._print import emit_json, note, table, tell


def command(
    video: str,
    *,
    model: str,
    out: list[str] | None = None,
    every: float = 1.0,
    windows: list[float] | None = None,
    background: str = "",
    threshold: float = 0.5,
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    json: bool = False,
) -> None:
    """Say which classes happen when in a video of any length; as a plot, a table, subtitles or JSON too.

    Of a long video, the same command goes on where it was stopped or killed.

    Parameters
    ----------
    video
        The video file.
    model
        Run folder, model folder or checkpoint of a model that was taught classes.
    out
        A file to write, as often as wanted: its suffix decides (.png and .svg a plot, .csv a row a moment, .srt and .vtt subtitles
        of the most probable class, .json all of it).
    every
        Seconds to a moment.
    windows
        Lengths of the windows that the model looks at, in seconds; several are averaged. Default: what its clip spans.
    background
        The class of windows that hold nothing or only a part of something: it is left out, and such windows count less.
    threshold
        A class happens where its probability reaches this.
    device
        "auto", "cpu" or "cuda".
    precision
        "bf16" computes in half of the bits: faster where the processor multiplies in it, and answers differ a little.
    json
        Print what a .json file would hold.
    """
    from tubelet.cli._progress import bar
    from tubelet.scan import Kept
    from tubelet.timeline import check_suffix, segments, timeline, to_dict, write
    from tubelet.train.device import choose_device
    from tubelet.weights.load import load_model

    for path in out or ():
        check_suffix(path)
    network = load_model(model, choose_device(device), precision)
    with bar("windows") as on_window:
        seen = timeline(network, video, every, windows or (), background, on_window=on_window, kept=Kept.in_cache(note))
    found = segments(seen, threshold)
    written = [str(write(seen, path, threshold)) for path in out or ()]
    if json:
        emit_json({**to_dict(seen, threshold), "written": written})
        return
    tell(f"{video}: {float(seen.seconds[-1]):.2f} s, {len(found)} segments")
    if found:
        rows = [
            {
                "start": f"{one.start_seconds:.2f}",
                "end": f"{one.end_seconds:.2f}",
                "class": one.label,
                "mean": f"{one.score:.1%}",
            }
            for one in found
        ]
        table(rows)
    for path in written:
        tell(path)
