"""A video that somebody dropped, and what the models make of it."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse

from tubelet.web import work
from tubelet.web.answers import BINARY, EVENTS, FILE, Make, Tell, events, nameless, picture, png, times_of, whole
from tubelet.web.house import Here, House
from tubelet.web.rows import ClassRow, Clips, PredictionRow, TimelineRow, Times, Top, Which
from tubelet.web.uploads import Upload

router = APIRouter()


@router.post(
    "/api/videos",
    status_code=201,
    openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": BINARY}}}},
)
async def upload(here: Here, request: Request) -> Upload:
    """Take in a video or a picture: the body is the file itself. The same bytes get the same id."""
    length = request.headers.get("content-length", "")
    async with here.desk.upload():
        received = await here.uploads.receive(request.stream(), int(length) if length.isdecimal() else None)
    try:
        found = await here.desk.work(request, lambda: here.uploads.keep(received))
    finally:
        here.uploads.drop(received)
    return found


@router.get("/api/videos/{id}")
async def about(here: Here, id: str) -> Upload:
    """What is known of an upload."""
    return here.uploads.get(id)


@router.get("/api/videos/{id}/file", response_class=FileResponse, responses=FILE)
async def file(here: Here, id: str) -> FileResponse:
    """Its bytes; ranges are answered."""
    return FileResponse(here.uploads.path(id), media_type="video/mp4")


@router.get("/api/videos/{id}/prediction")
async def prediction(here: Here, request: Request, id: str, model: Which = "", clips: Clips = 5, top: Top = 5) -> PredictionRow:
    """The most probable classes, averaged over clips and crops, and the frames that were looked at."""
    return PredictionRow.model_validate_json(await whole(here.desk, request, predicting(here, id, model, clips, top)))


@router.get("/api/videos/{id}/prediction/events", **EVENTS)
async def prediction_events(
    here: Here, request: Request, id: str, model: Which = "", clips: Clips = 5, top: Top = 5
) -> StreamingResponse:
    """The same as server-sent events: `progress` ({"part": 0 to 1}) again and again, then `done` or `problem`."""
    return events(here.desk, request, predicting(here, id, model, clips, top))


@router.get("/api/videos/{id}/strip.png", **png("the frames at those times, side by side"))
async def strip(here: Here, request: Request, id: str, seconds: Times) -> Response:
    path, times = here.uploads.path(id), times_of(seconds)
    with nameless(path):
        return picture(await here.desk.work(request, lambda: work.strip(path, times)))


@router.get("/api/videos/{id}/reconstruction.png", **png("the clip, what was shown of it, and what the model made of that"))
async def reconstruction(
    here: Here, request: Request, id: str, model: Which = "", mask: str = "tube",
    ratio: Annotated[float, Query(ge=0.05, le=0.98)] = 0.9, seed: Annotated[int, Query(ge=0, lt=100)] = 0,
) -> Response:  # fmt: skip
    served, path = work.choose_model(here.models, model, "rebuild"), here.uploads.path(id)
    ratio = round(20 * ratio) / 20  # few enough to be kept
    question = ("reconstruction", *served.identity, mask, ratio, seed)
    make = once(here, id, question, lambda tell: work.rebuilt(served, path, mask, ratio, seed))
    return picture(await whole(here.desk, request, make))


@router.get("/api/videos/{id}/attention.png", **png("the clip, and where the model looks"))
async def attention(here: Here, request: Request, id: str, model: Which = "") -> Response:
    served, path = work.choose_model(here.models, model, "attend"), here.uploads.path(id)
    make = once(here, id, ("attention", *served.identity), lambda tell: work.looked_at(served, path))
    return picture(await whole(here.desk, request, make))


@router.get("/api/videos/{id}/timeline")
async def timeline(here: Here, request: Request, id: str, model: Which = "") -> TimelineRow:
    """The probability of every class over the whole length."""
    return TimelineRow.model_validate_json(await whole(here.desk, request, watching(here, id, model)))


@router.get("/api/videos/{id}/timeline/events", **EVENTS)
async def timeline_events(here: Here, request: Request, id: str, model: Which = "") -> StreamingResponse:
    """The same as server-sent events: `progress` ({"part": 0 to 1}) again and again, then `done` or `problem`."""
    return events(here.desk, request, watching(here, id, model))


def predicting(here: House, id: str, model: str, clips: int, top: int) -> Make:
    """What makes a PredictionRow in JSON."""
    served, path = work.choose_model(here.models, model, "classify"), here.uploads.path(id)

    def make(tell: Tell) -> bytes:
        found = work.top_classes(served, path, clips, top, tell)
        row = PredictionRow(
            model=served.name, top=[ClassRow(name=name, probability=p) for name, p in found.top],
            seconds=[list(clip) for clip in found.seconds], crops=found.crops, warnings=list(found.warnings),
        )  # fmt: skip
        return row.model_dump_json().encode()

    return once(here, id, ("prediction", *served.identity, clips, top), make)


def watching(here: House, id: str, model: str) -> Make:
    """What makes a TimelineRow in JSON."""
    served, path, known = work.choose_model(here.models, model, "classify"), here.uploads.path(id), here.uploads.get(id)

    def make(tell: Tell) -> bytes:
        found = work.over_time(served, path, known, tell)
        row = TimelineRow(
            model=served.name, classes=list(found.class_names), seconds=found.seconds.tolist(),
            probabilities=[[round(value, 5) for value in moment] for moment in found.probabilities.tolist()],
        )  # fmt: skip
        return row.model_dump_json().encode()

    return once(here, id, ("timeline", *served.identity), make)


def once(here: House, id: str, question: tuple[Any, ...], make: Make) -> Make:
    """The same question (everything that its answer depends on) about the same upload is worked out once."""
    path = here.uploads.path(id)

    def asked(tell: Tell) -> bytes:
        with nameless(path):
            return here.uploads.cached(id, question, lambda: make(tell))

    return asked
