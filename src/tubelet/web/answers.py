"""What the rooms answer with: an answer as a whole or with its progress, pictures and files, and how they are described."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from tubelet.errors import TubeletError, printable
from tubelet.video.guard import Stopped
from tubelet.web.desk import Desk
from tubelet.web.refused import Refused, unforeseen
from tubelet.web.uploads import without

Tell = Callable[[float], object]  # is told how much of the work is done, 0 to 1
Make = Callable[[Tell], bytes]  # works an answer out, in a thread
_EVENT = {
    "type": "object", "required": ["event", "data"],
    "properties": {"event": {"enum": ["progress", "done", "problem"]}, "data": {"type": "string"}},
}  # fmt: skip
EVENTS: dict[str, Any] = {
    "response_class": StreamingResponse,
    "responses": {200: {"content": {"text/event-stream": {"schema": _EVENT}}}},
}
BINARY = {"type": "string", "format": "binary"}
_BYTES: dict[str, Any] = {"content": {"video/mp4": {"schema": BINARY}}}
FILE: dict[int | str, dict[str, Any]] = {
    200: _BYTES,
    206: _BYTES | {"description": "the range asked for"},
    416: {"description": "no such range"},
}


async def whole(desk: Desk, request: Request, make: Make) -> bytes:
    """The answer, when it is there."""
    return await desk.work(request, lambda: make(lambda part: None))


def events(desk: Desk, request: Request, make: Make) -> StreamingResponse:
    """Server-sent events: `progress` ({"part": 0 to 1}) again and again, then `done` with the answer, or `problem`."""
    parts: asyncio.Queue[float | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    place = desk.place()
    place.__enter__()  # before anything is answered: a full house is a 429
    work = desk.held(request, lambda: make(lambda part: loop.call_soon_threadsafe(parts.put_nowait, part)))
    running = asyncio.ensure_future(work)

    def ended(done: asyncio.Future[bytes]) -> None:
        place.__exit__(None, None, None)
        if not done.cancelled():
            done.exception()  # looked at even where whoever asked has gone before the first event

    running.add_done_callback(ended)
    return StreamingResponse(_stream(running, parts), media_type="text/event-stream")


async def _stream(running: asyncio.Future[bytes], parts: asyncio.Queue[float | None]) -> AsyncIterator[str]:
    """The events of work until it is done; it ends with whoever listens."""
    running.add_done_callback(lambda done: parts.put_nowait(None))  # behind all that was told
    told = 0.0
    try:
        while (part := await parts.get()) is not None:
            if part >= told + 0.01:
                told = part
                yield f'event: progress\ndata: {{"part": {part:.3f}}}\n\n'
        try:
            yield f"event: done\ndata: {running.result().decode()}\n\n"
        except Exception as error:
            said = error if isinstance(error, Refused | TubeletError | Stopped) else unforeseen(error)
            yield f"event: problem\ndata: {json.dumps({'error': printable(' '.join(str(said).split()))})}\n\n"
    finally:
        running.cancel()


@contextmanager
def nameless(path: str | Path) -> Iterator[None]:
    """Takes the place on this machine out of what is said about a file."""
    try:
        yield
    except TubeletError as error:
        raise type(error)(without(error, path)) from None


def times_of(seconds: str) -> list[float]:
    """[0.5, 1.0] of "0.5,1"; Refused with 422 for anything else."""
    try:
        return [float(word) for word in seconds.split(",")]
    except ValueError:
        raise Refused(422, f"seconds is {seconds[:80]!r}: numbers with commas between them are wanted, such as 0.5,1") from None


def picture(data: bytes) -> Response:
    return Response(data, media_type="image/png")


def png(what: str) -> dict[str, Any]:
    """How an address that answers a picture is described."""
    return {"response_class": Response, "responses": {200: {"content": {"image/png": {}}, "description": what}}}
