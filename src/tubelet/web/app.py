"""The addresses of the server. A person uses the page at `/`; programs use `/api` (described at `/openapi.json`).

Every answer that is not what was asked for is {"error": one line}. `desk` says who is worked for, `door` who is let in, `rows` what
the JSON is.
"""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse

from tubelet import __version__, masking
from tubelet.errors import TubeletError, printable
from tubelet.find import choose
from tubelet.video.guard import Stopped
from tubelet.web import work
from tubelet.web.desk import Desk, Numbers, Options
from tubelet.web.door import Narrow, answer_errors, checked
from tubelet.web.library import Library
from tubelet.web.refused import Refused
from tubelet.web.rows import (
    ClassRow,
    Clips,
    Found,
    LibraryRow,
    ModelRow,
    PredictionRow,
    Problem,
    Question,
    Tags,
    Taught,
    TimelineRow,
    Times,
    Top,
    Which,
)
from tubelet.web.uploads import Upload, Uploads, without
from tubelet.web.work import Served

DEFAULTS = Options()
PAGE = {"/": ("index.html", "text/html"), "/page.js": ("page.js", "text/javascript"), "/page.css": ("page.css", "text/css")}
_EVENT = {
    "type": "object", "required": ["event", "data"],
    "properties": {"event": {"enum": ["progress", "done", "problem"]}, "data": {"type": "string"}},
}  # fmt: skip
EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": _EVENT}}}}
BINARY = {"type": "string", "format": "binary"}
_BYTES: dict[str, Any] = {"content": {"video/mp4": {"schema": BINARY}}}
FILE: dict[int | str, dict[str, Any]] = {
    200: _BYTES,
    206: _BYTES | {"description": "the range asked for"},
    416: {"description": "no such range"},
}


def make_app(
    models: Sequence[Served], uploads: Uploads, options: Options = DEFAULTS, library: Library | None = None
) -> FastAPI:
    """The application. `models` answer in the order given; `library` is searched."""
    desk = Desk(options)
    numbers = Numbers(models, desk)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        desk.ready = True
        yield
        desk.ready = False
        await asyncio.to_thread(desk.close)
        for served in models:
            await asyncio.to_thread(served.batcher.close)

    problems: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem} for status in (400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 499, 500, 503, 504, 507)
    }
    app = FastAPI(
        title="Tubelet", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan, responses=problems,
        description="What is in a video, from where to where, and where else there is something like it.",
    )  # fmt: skip
    app.state.desk = desk
    app.add_middleware(Narrow)
    app.middleware("http")(checked(options, numbers))
    answer_errors(app)

    def named(name: str, can: Callable[[Served], bool] = lambda served: True) -> Served:
        """The model of that name, or the first that can."""
        if name:
            return next(served for served in models if served.name == choose(name, [m.name for m in models], "model"))
        return next(filter(can, models), models[0])

    for address, (name, kind) in PAGE.items():
        app.add_api_route(address, static(name, kind), include_in_schema=False)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        """Whether it takes new work: 503 when it is about to end."""
        if not desk.ready:
            raise Refused(503, "about to end", retry_seconds=5)
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Counts and times in the format of Prometheus."""
        return Response(numbers.text(), media_type="text/plain; version=0.0.4")

    @app.get("/api/models")
    async def list_models() -> list[ModelRow]:
        """The models that answer."""
        return [
            ModelRow(
                name=m.name, variant=m.network.name, classes=list(m.network.class_names), frames=m.network.spec.frames,
                stride_frames=m.network.spec.stride_frames, size=m.network.spec.size, rebuilds=m.rebuilds, attends=m.attends,
            )
            for m in models
        ]  # fmt: skip

    @app.get("/api/masks")
    async def list_masks() -> list[str]:
        """The kinds of mask that a reconstruction may be asked for."""
        return list(masking.KINDS)

    @app.post(
        "/api/videos",
        status_code=201,
        openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": BINARY}}}},
    )
    async def upload(request: Request) -> Upload:
        """Take in a video or a picture: the body is the file itself. The same bytes get the same id."""
        length = request.headers.get("content-length", "")
        async with desk.upload():
            received = await uploads.receive(request.stream(), int(length) if length.isdecimal() else None)
        try:
            found = await desk.work(request, lambda stop: uploads.keep(received, stop))
        finally:
            uploads.drop(received)
        return found

    @app.get("/api/videos/{id}")
    async def about(id: str) -> Upload:
        """What is known of an upload."""
        return uploads.get(id)

    @app.get("/api/videos/{id}/file", response_class=FileResponse, responses=FILE)
    async def file(id: str) -> FileResponse:
        """Its bytes; ranges are answered."""
        return FileResponse(uploads.path(id), media_type="video/mp4")

    @app.get("/api/videos/{id}/prediction")
    async def prediction(request: Request, id: str, model: Which = "", clips: Clips = 5, top: Top = 5) -> PredictionRow:
        """The most probable classes, averaged over clips and crops, and the frames that were looked at."""
        served, path = named(model, lambda served: bool(served.network.class_names)), uploads.path(id)

        def make(stop: threading.Event) -> bytes:
            found = work.top_classes(served, path, clips, top, stop)
            row = PredictionRow(
                model=served.name, top=[ClassRow(name=name, probability=p) for name, p in found.top],
                seconds=[list(clip) for clip in found.seconds], crops=found.crops, warnings=list(found.warnings),
            )  # fmt: skip
            return row.model_dump_json().encode()

        question = ("prediction", *served.identity, clips, top)
        return PredictionRow.model_validate_json(await answered(request, id, question, make))

    @app.get("/api/videos/{id}/strip.png", **png("the frames at those times, side by side"))
    async def strip(request: Request, id: str, seconds: Times) -> Response:
        path, times = uploads.path(id), times_of(seconds)
        with nameless(path):
            return picture(await desk.work(request, lambda stop: work.strip(path, times, stop)))

    @app.get("/api/videos/{id}/reconstruction.png", **png("the clip, what was shown of it, and what the model made of that"))
    async def reconstruction(
        request: Request, id: str, model: Which = "", mask: str = "tube",
        ratio: Annotated[float, Query(ge=0.05, le=0.98)] = 0.9, seed: Annotated[int, Query(ge=0, lt=100)] = 0,
    ) -> Response:  # fmt: skip
        served, path = named(model, lambda served: served.rebuilds), uploads.path(id)
        ratio = round(20 * ratio) / 20  # few enough to be kept
        question = ("reconstruction", *served.identity, mask, ratio, seed)
        return picture(await answered(request, id, question, lambda stop: work.rebuilt(served, path, mask, ratio, seed)))

    @app.get("/api/videos/{id}/attention.png", **png("the clip, and where the model looks"))
    async def attention(request: Request, id: str, model: Which = "") -> Response:
        served, path = named(model, lambda served: served.attends), uploads.path(id)
        question = ("attention", *served.identity)
        return picture(await answered(request, id, question, lambda stop: work.looked_at(served, path)))

    @app.get("/api/videos/{id}/timeline")
    async def timeline(request: Request, id: str, model: Which = "") -> TimelineRow:
        """The probability of every class over the whole length."""
        question, make = timeline_of(model, id)
        return TimelineRow.model_validate_json(await answered(request, id, question, make))

    @app.get("/api/videos/{id}/timeline/events", response_class=StreamingResponse, responses=EVENTS)
    async def timeline_events(request: Request, id: str, model: Which = "") -> StreamingResponse:
        """The same as server-sent events: `progress` ({"part": 0 to 1}) again and again, then `done` or `problem`."""
        parts: asyncio.Queue[float] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        question, make = timeline_of(model, id, lambda part: loop.call_soon_threadsafe(parts.put_nowait, part))
        place = desk.place()
        place.__enter__()  # before anything is answered: a full house is a 429
        running = asyncio.ensure_future(answered(request, id, question, make, desk.held))
        running.add_done_callback(lambda done: place.__exit__(None, None, None))
        return StreamingResponse(stream_events(running, parts), media_type="text/event-stream")

    def timeline_of(
        name: str, id: str, tell: Callable[[float], object] = lambda part: None
    ) -> tuple[tuple[Any, ...], Callable[[threading.Event], bytes]]:
        """The question, and what answers it."""
        served, path = named(name, lambda served: bool(served.network.class_names)), uploads.path(id)

        def make(stop: threading.Event) -> bytes:
            found = work.over_time(served, path, uploads.get(id), stop, tell)
            row = TimelineRow(
                model=served.name, classes=list(found.class_names), seconds=found.seconds.tolist(),
                probabilities=[[round(value, 5) for value in moment] for moment in found.probabilities.tolist()],
            )  # fmt: skip
            return row.model_dump_json().encode()

        return ("timeline", *served.identity), make

    @app.get("/api/library")
    async def about_library() -> LibraryRow:
        """How much there is to search."""
        return LibraryRow(**await asyncio.to_thread(library.about)) if library else LibraryRow()

    def some_library() -> Library:
        if library is None:
            raise Refused(
                404, "no library is served: make one with `tubelet index`, then `tubelet serve MODEL --library INDEX`"
            )
        return library

    @app.post("/api/search")
    async def search(request: Request, question: Question) -> Found:
        """The moments of the library nearest to words, or to an upload."""
        place, began = some_library(), time.perf_counter()
        if bool(question.words.strip()) == bool(question.video):
            raise Refused(422, "give either words or the id of an upload as video")
        if question.video:
            path, part = uploads.path(question.video), (question.start_seconds, question.end_seconds)
            with nameless(path):
                found = await desk.work(request, lambda stop: place.by_video(path, *part, question.top))
        else:
            found = await desk.work(request, lambda stop: place.by_words(question.words, question.top))
        return Found(hits=found, seconds=time.perf_counter() - began)

    @app.post("/api/heads")
    async def teach(request: Request, tags: Tags) -> Taught:
        """Learn classes from tagged moments, and apply them to the whole library: no video is decoded."""
        place = some_library()
        given = [(tag.key, tag.start_seconds, tag.end_seconds, tag.label) for tag in tags.tags]
        found = await desk.work(request, lambda stop: place.teach(given, tags.top))
        return Taught(**found)

    @app.get("/api/library/{key}/file", response_class=FileResponse, responses=FILE)
    async def library_file(key: str) -> FileResponse:
        """The bytes of a file of the library; ranges are answered."""
        return FileResponse(await asyncio.to_thread(some_library().path, key), media_type="video/mp4")

    @app.get("/api/library/{key}/strip.png", **png("the frames at those times, side by side"))
    async def library_strip(request: Request, key: str, seconds: Times) -> Response:
        path, times = await asyncio.to_thread(some_library().path, key), times_of(seconds)
        with nameless(path):
            return picture(await desk.work(request, lambda stop: work.strip(path, times, stop)))

    async def answered(
        request: Request, id: str, question: tuple[Any, ...], make: Callable[[threading.Event], bytes],
        at: Callable[..., Awaitable[bytes]] = desk.work,
    ) -> bytes:  # fmt: skip
        with nameless(uploads.path(id)):
            return await at(request, lambda stop: uploads.cached(id, question, lambda: make(stop)))

    return app


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


async def stream_events(running: asyncio.Future[bytes], parts: asyncio.Queue[float]) -> AsyncIterator[str]:
    """Server-sent events of work that tells its progress, until it is done; it ends with whoever listens."""
    told = -1.0
    try:
        while not running.done():
            waiting = asyncio.ensure_future(parts.get())
            both: set[asyncio.Future[Any]] = {running, waiting}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                waiting.cancel()
            elif waiting.result() >= told + 0.01:
                told = waiting.result()
                yield f'event: progress\ndata: {{"part": {told:.3f}}}\n\n'
        try:
            yield f"event: done\ndata: {running.result().decode()}\n\n"
        except (Refused, TubeletError, Stopped) as error:
            yield f"event: problem\ndata: {json.dumps({'error': printable(' '.join(str(error).split()))})}\n\n"
    finally:
        running.cancel()


def picture(data: bytes) -> Response:
    return Response(data, media_type="image/png")


def png(what: str) -> dict[str, Any]:
    """How an address that answers a picture is described."""
    return {"response_class": Response, "responses": {200: {"content": {"image/png": {}}, "description": what}}}


def static(file: str, kind: str) -> Callable[[], Awaitable[Response]]:
    data = (files("tubelet.web") / "page" / file).read_bytes()

    async def page() -> Response:
        return Response(data, media_type=kind)

    return page
