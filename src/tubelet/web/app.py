"""The addresses of the server. A person uses the page at `/`; programs use `/api` (described at `/openapi.json`).

Every answer that is not what was asked for is {"error": one line}. Long work runs in threads, at most `workers` at a time;
`places` of requests may wait for it, further ones get 429. Work ends early when whoever asked goes away.
"""

import asyncio
import hmac
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from tubelet import __version__, masking
from tubelet.errors import TubeletError, printable
from tubelet.find import choose
from tubelet.video.guard import Stopped
from tubelet.web import work
from tubelet.web.library import Library
from tubelet.web.uploads import Refused, Uploads
from tubelet.web.work import Served

T = TypeVar("T")
LOOK_SECONDS = 0.2  # between two looks whether whoever asked is still there
PAGE = {"/": ("index.html", "text/html"), "/page.js": ("page.js", "text/javascript"), "/page.css": ("page.css", "text/css")}
# No script, style, picture or connection but our own; nobody may frame the page or guess types.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src "
    "'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
COOKIE = "tubelet_token"
_BYTES: dict[str, Any] = {"content": {"video/mp4": {"schema": {"type": "string", "format": "binary"}}}}
FILE: dict[int | str, dict[str, Any]] = {200: _BYTES, 206: _BYTES | {"description": "the range asked for"}, 416: {"description": "no such range"}}


@dataclass(frozen=True)
class Options:
    """How the server answers.

    hosts    names by which it may be called (a page of another site could otherwise reach a server on this machine)
    token    what a caller must show, as `Authorization: Bearer TOKEN` or once as `?token=TOKEN`; "": nothing
    workers  files that are read at the same time
    places   requests that may be worked on or wait; the next one gets 429
    seconds  after which a request is given up
    """

    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")
    token: str = ""
    workers: int = 2
    places: int = 16
    seconds: float = 300.0


class Problem(BaseModel):
    error: str


class ModelRow(BaseModel):
    """One of the models that answer."""

    name: str
    variant: str
    classes: list[str]
    frames: int
    stride_frames: int
    size: int
    rebuilds: bool
    attends: bool


class VideoRow(BaseModel):
    """An upload; its id is the SHA-256 of its bytes."""

    id: str
    bytes: int
    seconds: float
    frames: int
    fps: float
    width: int
    height: int
    codec: str


class ClassRow(BaseModel):
    name: str
    probability: float


class PredictionRow(BaseModel):
    """seconds: for each clip the times of the frames that were looked at."""

    model: str
    top: list[ClassRow]
    seconds: list[list[float]]
    crops: int
    warnings: list[str]


class TimelineRow(BaseModel):
    """probabilities: at each of `seconds`, of each of `classes`."""

    model: str
    classes: list[str]
    seconds: list[float]
    probabilities: list[list[float]]


class LibraryRow(BaseModel):
    """How much the library holds; without one, nothing."""

    windows: int = 0
    files: int = 0
    reads_words: bool = False
    model: str = ""


class Question(BaseModel):
    """Words, or the id of an upload (or a part of it, in seconds)."""

    words: str = Field("", max_length=1000)
    video: str = ""
    start_seconds: float | None = Field(None, ge=0, allow_inf_nan=False)
    end_seconds: float | None = Field(None, ge=0, allow_inf_nan=False)
    top: int = Field(12, ge=1, le=100)


class MomentRow(BaseModel):
    """A stretch of a file of the library; key is what its file is called here, name what a person calls it."""

    key: str
    name: str
    start_seconds: float
    end_seconds: float
    score: float
    label: str
    text: str
    gone: bool


class Found(BaseModel):
    hits: list[MomentRow]
    seconds: float


class Tag(BaseModel):
    key: str
    start_seconds: float = Field(allow_inf_nan=False)
    end_seconds: float = Field(allow_inf_nan=False)
    label: str = Field(min_length=1, max_length=200)


class Tags(BaseModel):
    tags: list[Tag] = Field(max_length=10_000)
    top: int = Field(12, ge=1, le=100)


class Taught(BaseModel):
    """surest: of every class the moments that the head is surest of; uncertain: those worth a tag next."""

    classes: list[str]
    seconds: float
    surest: list[MomentRow]
    uncertain: list[MomentRow]


Clips = Annotated[int, Query(ge=1, le=32, description="windows in time")]
Top = Annotated[int, Query(ge=1, le=100, description="how many classes")]
Times = Annotated[str, Query(max_length=2000, description="seconds, with commas between them")]
Which = Annotated[str, Query(description="name of a model; empty: the first that can")]


def make_app(
    models: Sequence[Served], uploads: Uploads, options: Options = Options(), library: Library | None = None
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
        status: {"model": Problem} for status in (400, 401, 404, 405, 413, 415, 422, 429, 503, 504)
    }
    app = FastAPI(
        title="Tubelet", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan, responses=problems,
        description="What is in a video, from where to where, and where else there is something like it.",
    )  # fmt: skip
    app.middleware("http")(checked(options, numbers))
    answer_errors(app)

    def named(name: str, can: Callable[[Served], bool] = lambda served: True) -> Served:
        """The model of that name, or the first that can."""
        if name:
            return next(served for served in models if served.name == choose(name, [m.name for m in models], "model"))
        return next(filter(can, models), models[0])

    for address, (file, kind) in PAGE.items():
        app.add_api_route(address, static(file, kind), include_in_schema=False)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        """Whether it takes requests: 503 while it starts and stops."""
        if not desk.ready:
            raise Refused(503, "starting, or about to stop")
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
        openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}},
    )
    async def upload(request: Request) -> VideoRow:
        """Take in a video or a picture: the body is the file itself. The same bytes get the same id."""
        length = request.headers.get("content-length", "")
        with desk.place():
            found = await uploads.receive(request.stream(), int(length) if length.isdecimal() else None)
        return VideoRow(**asdict(found))

    @app.get("/api/videos/{id}")
    async def about(id: str) -> VideoRow:
        """What is known of an upload."""
        return VideoRow(**asdict(uploads.get(id)))

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

        question = ("prediction", served.name, served.fingerprint, clips, top)
        return PredictionRow.model_validate_json(await answered(request, id, question, make))

    @app.get("/api/videos/{id}/strip.png", **png("the frames at those times, side by side"))
    async def strip(request: Request, id: str, seconds: Times) -> Response:
        path, times = uploads.path(id), times_of(seconds)
        return picture(await answered(request, id, ("strip", *times), lambda stop: work.strip(path, times)))

    @app.get("/api/videos/{id}/reconstruction.png", **png("the clip, what was shown of it, and what the model made of that"))
    async def reconstruction(
        request: Request, id: str, model: Which = "", mask: str = "tube",
        ratio: Annotated[float, Query(ge=0.05, le=0.98)] = 0.9, seed: Annotated[int, Query(ge=0, lt=2**31)] = 0,
    ) -> Response:  # fmt: skip
        served, path = named(model, lambda served: served.rebuilds), uploads.path(id)
        question = ("reconstruction", served.name, served.fingerprint, mask, ratio, seed)
        return picture(await answered(request, id, question, lambda stop: work.rebuilt(served, path, mask, ratio, seed)))

    @app.get("/api/videos/{id}/attention.png", **png("the clip, and where the model looks"))
    async def attention(request: Request, id: str, model: Which = "") -> Response:
        served, path = named(model, lambda served: served.attends), uploads.path(id)
        question = ("attention", served.name, served.fingerprint)
        return picture(await answered(request, id, question, lambda stop: work.looked_at(served, path)))

    @app.get("/api/videos/{id}/timeline")
    async def timeline(request: Request, id: str, model: Which = "") -> TimelineRow:
        """The probability of every class over the whole length."""
        served, path = named(model, lambda served: bool(served.network.class_names)), uploads.path(id)
        question = ("timeline", served.name, served.fingerprint)
        data = await answered(request, id, question, lambda stop: work.timeline(served, path, stop))
        return TimelineRow.model_validate_json(data)

    @app.get("/api/videos/{id}/timeline/events", response_class=StreamingResponse, responses=EVENTS)
    async def timeline_events(request: Request, id: str, model: Which = "") -> StreamingResponse:
        """The same as server-sent events: `progress` ({"part": 0 to 1}) again and again, then `done` or `problem`."""
        served, path = named(model, lambda served: bool(served.network.class_names)), uploads.path(id)
        question = ("timeline", served.name, served.fingerprint)
        parts: asyncio.Queue[float] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def make(stop: threading.Event) -> bytes:
            def tell(part: float) -> None:
                loop.call_soon_threadsafe(parts.put_nowait, part)

            return work.timeline(served, path, stop, tell)

        running = asyncio.ensure_future(answered(request, id, question, make))
        return StreamingResponse(stream_events(running, parts), media_type="text/event-stream")

    @app.get("/api/library")
    async def about_library() -> LibraryRow:
        """How much there is to search."""
        return LibraryRow(**await asyncio.to_thread(library.about)) if library else LibraryRow()

    def some_library() -> Library:
        if library is None:
            raise Refused(404, "no library is served: make one with `tubelet index`, then `tubelet serve MODEL --library INDEX`")
        return library

    @app.post("/api/search")
    async def search(request: Request, question: Question) -> Found:
        """The moments of the library nearest to words, or to an upload."""
        place, began = some_library(), time.perf_counter()
        if bool(question.words.strip()) == bool(question.video):
            raise Refused(422, "give either words or the id of an upload as video")
        if question.video:
            path, part = uploads.path(question.video), (question.start_seconds, question.end_seconds)
            found = await desk.work(request, lambda stop: place.by_video(path, *part, question.top))
        else:
            found = await desk.work(request, lambda stop: place.by_words(question.words, question.top))
        return Found(hits=[MomentRow(**asdict(one)) for one in found], seconds=time.perf_counter() - began)

    @app.post("/api/heads")
    async def teach(request: Request, tags: Tags) -> Taught:
        """Learn classes from tagged moments, and apply them to the whole library: no video is decoded."""
        place = some_library()
        given = [(tag.key, tag.start_seconds, tag.end_seconds, tag.label) for tag in tags.tags]
        found = await desk.work(request, lambda stop: place.teach(given, tags.top))
        rows = {name: [MomentRow(**asdict(one)) for one in found.pop(name)] for name in ("surest", "uncertain")}
        return Taught(**found, **rows)

    @app.get("/api/library/{key}/file", response_class=FileResponse, responses=FILE)
    async def library_file(key: str) -> FileResponse:
        """The bytes of a file of the library; ranges are answered."""
        return FileResponse(await asyncio.to_thread(some_library().path, key), media_type="video/mp4")

    @app.get("/api/library/{key}/strip.png", **png("the frames at those times, side by side"))
    async def library_strip(request: Request, key: str, seconds: Times) -> Response:
        path = Path(await asyncio.to_thread(some_library().path, key))
        return picture(await desk.work(request, lambda stop: work.strip(path, times_of(seconds))))

    async def answered(request: Request, id: str, question: tuple[Any, ...], make: Callable[[threading.Event], bytes]) -> bytes:
        return await desk.work(request, lambda stop: uploads.cached(id, question, lambda: make(stop)))

    return app


class Desk:
    """Who is worked for, and who waits."""

    def __init__(self, options: Options) -> None:
        self.options, self.ready, self.taken = options, False, 0
        self.pool = ThreadPoolExecutor(options.workers, thread_name_prefix="tubelet-web")

    def place(self) -> "Desk":
        """Holds a place for the block; Refused with 429 when all are taken."""
        if self.taken >= self.options.places:
            raise Refused(429, f"{self.taken} requests are being worked on already: try again in a moment", retry_seconds=1)
        self.taken += 1
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *exception: object) -> None:
        self.taken -= 1

    async def work(self, request: Request, make: Callable[[threading.Event], T]) -> T:
        """make(stop) in a thread. `stop` is set when whoever asked goes away (499), or after too long (504)."""
        with self.place():
            stop, began = threading.Event(), time.monotonic()
            running = asyncio.get_running_loop().run_in_executor(self.pool, make, stop)
            try:
                while True:
                    done, _ = await asyncio.wait({running}, timeout=LOOK_SECONDS)
                    if done:
                        return running.result()
                    if await request.is_disconnected():
                        raise Refused(499, "whoever asked has gone")
                    if time.monotonic() - began > self.options.seconds:
                        raise Refused(504, f"not done within {self.options.seconds:g} s: ask for fewer clips, or a shorter video")
            finally:
                stop.set()
                running.cancel()

    def close(self) -> None:
        """Ends when all work has."""
        self.pool.shutdown(wait=True)


class Numbers:
    """What `/metrics` tells."""

    def __init__(self, models: Sequence[Served], desk: Desk) -> None:
        self.registry = CollectorRegistry()
        labels = ["method", "address", "status"]
        self.requests = Counter("tubelet_requests", "Requests answered", labels, registry=self.registry)
        self.seconds = Histogram("tubelet_request_seconds", "Time to the answer", ["address"], registry=self.registry)
        waiting = Gauge("tubelet_requests_in_progress", "Requests worked on or waiting", registry=self.registry)
        waiting.set_function(lambda: desk.taken)
        clips = Gauge("tubelet_clips", "Clips that the model has seen", ["model"], registry=self.registry)
        batches = Gauge("tubelet_batches", "Batches that the model has seen", ["model"], registry=self.registry)
        for served in models:
            sizes = served.batcher.sizes
            clips.labels(served.name).set_function(lambda sizes=sizes: sum(size * n for size, n in list(sizes.items())))
            batches.labels(served.name).set_function(lambda sizes=sizes: sum(list(sizes.values())))

    def add(self, request: Request, status: int, seconds: float) -> None:
        route = request.scope.get("route")
        address = getattr(route, "path", "other")  # not the path itself: that is the caller's to choose
        self.requests.labels(request.method, address, str(status)).inc()
        self.seconds.labels(address).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)


def checked(options: Options, numbers: Numbers) -> Callable[[Request, Callable[[Request], Awaitable[Response]]], Awaitable[Response]]:
    """Looks at every request before it is answered: who asks, by what name, and with what right."""

    async def middleware(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        began = time.monotonic()
        try:
            await refuse_strangers(request, options)
            response = await go_on(request)
        except Refused as refused:
            response = problem(refused.status, refused.message)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        given = request.query_params.get("token", "")
        if options.token and given and same(given, options.token):
            response.set_cookie(COOKIE, given, httponly=True, samesite="strict")
        numbers.add(request, response.status_code, time.monotonic() - began)
        return response

    return middleware


async def refuse_strangers(request: Request, options: Options) -> None:
    """Refused: a host that is not ours (400), a page of another site (403), a missing or wrong token (401)."""
    host = (request.headers.get("host") or "").lower()
    if "*" not in options.hosts and _without_port(host) not in options.hosts:
        raise Refused(400, f"this server is not called {printable(host[:80])!r}: use {options.hosts[0]}, or start it with --host")
    origin = request.headers.get("origin")
    if origin and origin != "null" and urlsplit(origin).netloc.lower() != host or origin == "null":
        raise Refused(403, "a page of another site may not use this server")
    if options.token and request.scope["path"] not in ("/healthz", "/readyz"):
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        shown = (bearer, request.query_params.get("token", ""), request.cookies.get(COOKIE, ""))
        if not any(same(value, options.token) for value in shown):
            raise Refused(401, "a token is wanted: open the address that the server printed, or send Authorization: Bearer TOKEN")


def answer_errors(app: FastAPI) -> None:
    """What goes wrong becomes a status and one line."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return problem(error.status, error.message, error.retry_seconds)

    @app.exception_handler(TubeletError)
    async def mistake(request: Request, error: TubeletError) -> Response:
        return problem(422, printable(" ".join(str(error).split())))

    @app.exception_handler(Stopped)
    async def stopped(request: Request, error: Stopped) -> Response:
        return problem(499, "whoever asked has gone")

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return problem(422, f"{'.'.join(map(str, first['loc'][1:])) or 'the request'}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        answer = problem(error.status_code, f"{error.detail}: {request.method} {printable(request.url.path[:200])}")
        answer.headers.update(error.headers or {})
        return answer


def problem(status: int, message: str, retry_seconds: int | None = None) -> JSONResponse:
    headers = {"Retry-After": str(retry_seconds)} if retry_seconds is not None else None
    return JSONResponse({"error": message}, status, headers)


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
            await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
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


def same(a: str, b: str) -> bool:
    return hmac.compare_digest(a.encode(), b.encode())


def _without_port(host: str) -> str:
    return host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]
