"""`tubelet serve`: a page to look at, and the same as an API."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from tubelet.cli._print import note


def command(
    *models: Annotated[str, Parameter(allow_leading_hyphen=False)],
    library: str = "",
    host: str = "127.0.0.1",
    port: int = 8765,
    token: str = "",
    folder: str = "",
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    megabytes: float = 500.0,
    seconds: float = 3600.0,
    megapixels: float = 40.0,
    batch: int = 8,
    workers: int | None = None,
    places: int = 32,
    timeout: float = 300.0,
    per_minute: int = 600,
) -> int:
    """Serve models on a page: drop a video and see what is in it; search a library of videos.

    The page is at the address that is printed, the same questions for programs at /api (described at /openapi.json). It ends with
    Ctrl-C or SIGTERM, after what it has begun. Needs `pip install 'tubelet[serve]'`.

    Parameters
    ----------
    models
        Run folders, model folders or checkpoints, NAME=PATH to call one by a name of its own. All that know classes answer side by
        side; those that have a decoder rebuild what is hidden, one at a time.
    library
        An index made by `tubelet index`: its folders can be searched and played.
    host
        The address to listen at. Any other than this machine's own wants a token, which is made up if you give none.
    port
        The port; 0 takes a free one.
    token
        What callers must show. Default: none on this machine's own address, otherwise a random one that is printed.
    folder
        Where uploads and answers are kept. Default: a temporary folder that goes with the server.
    device
        "auto", "cpu" or "cuda".
    precision
        "bf16" computes in half of the bits: faster where the processor multiplies in it, and answers differ a little.
    megabytes
        The largest upload.
    seconds
        The longest video.
    megapixels
        The largest picture.
    batch
        Clips of different requests that go through the model together, at most.
    workers
        Files read at the same time. Default: one per core.
    places
        Requests that are worked on or wait; the next is answered 429.
    timeout
        Seconds after which a request is given up.
    per_minute
        Requests of one address in a minute, but for this machine's own; the next is answered 429. 0: as many as it likes.
    """
    from tubelet.errors import CheckpointError
    from tubelet.web.run import Settings, run
    from tubelet.web.uploads import Limits

    if not models:
        raise CheckpointError("no model given: tubelet serve MODEL, for example the folder of a fine-tuning run")
    named = [(name, path) if equals else ("", word) for word in models for name, equals, path in [word.partition("=")]]
    chosen = [(name or Path(path).resolve().name, path) for name, path in named]
    limits = Limits(megabytes, seconds, megapixels)
    settings = Settings(
        host, port, token, folder, library, device, precision, batch, workers, places, timeout, per_minute, limits
    )
    return run(chosen, settings, note)
