"""Moments of the library: found, played, tagged, and taught from."""

import asyncio
import time

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, StreamingResponse

from tubelet.web import work
from tubelet.web.answers import EVENTS, FILE, Make, Tell, events, nameless, picture, png, times_of, whole
from tubelet.web.house import Here, House
from tubelet.web.library import Library
from tubelet.web.refused import Refused
from tubelet.web.rows import Found, Hits, LibraryRow, Question, Second, Tags, Taught, Times

router = APIRouter()


@router.get("/api/library")
async def about_library(here: Here) -> LibraryRow:
    """How much there is to search."""
    return LibraryRow(**await asyncio.to_thread(here.library.about)) if here.library else LibraryRow()


@router.post("/api/search")
async def search(here: Here, request: Request, question: Question) -> Found:
    """The moments of the library nearest to words, or to an upload."""
    return Found.model_validate_json(await whole(here.desk, request, searching(here, question)))


@router.get("/api/videos/{id}/search/events", **EVENTS)
async def search_events(
    here: Here, request: Request, id: str, start_seconds: Second = None, end_seconds: Second = None, top: Hits = 12
) -> StreamingResponse:
    """A search by an upload as server-sent events: `progress` ({"part": 0 to 1}) again and again, then `done` or `problem`."""
    question = Question(words="", video=id, start_seconds=start_seconds, end_seconds=end_seconds, top=top)
    return events(here.desk, request, searching(here, question))


@router.post("/api/heads")
async def teach(here: Here, request: Request, tags: Tags) -> Taught:
    """Learn classes from tagged moments, and apply them to the whole library: no video is decoded."""
    place = some_library(here)
    given = [(tag.key, tag.start_seconds, tag.end_seconds, tag.label) for tag in tags.tags]
    found = await here.desk.work(request, lambda: place.teach(given, tags.top))
    return Taught(**found)


@router.get("/api/library/{key}/file", response_class=FileResponse, responses=FILE)
async def library_file(here: Here, key: str) -> FileResponse:
    """The bytes of a file of the library; ranges are answered."""
    return FileResponse(await asyncio.to_thread(some_library(here).path, key), media_type="video/mp4")


@router.get("/api/library/{key}/strip.png", **png("the frames at those times, side by side"))
async def library_strip(here: Here, request: Request, key: str, seconds: Times) -> Response:
    path, times = await asyncio.to_thread(some_library(here).path, key), times_of(seconds)
    with nameless(path):
        return picture(await here.desk.work(request, lambda: work.strip(path, times)))


def some_library(here: House) -> Library:
    if here.library is None:
        raise Refused(404, "no library is served: make one with `tubelet index`, then `tubelet serve MODEL --library INDEX`")
    return here.library


def searching(here: House, question: Question) -> Make:
    """What makes a Found in JSON."""
    place, began = some_library(here), time.perf_counter()
    if bool(question.words.strip()) == bool(question.video):
        raise Refused(422, "give either words or the id of an upload as video")
    path = here.uploads.path(question.video) if question.video else None

    def make(tell: Tell) -> bytes:
        if path is None:
            hits = place.by_words(question.words, question.top)
        else:
            with nameless(path):
                hits = place.by_video(path, question.start_seconds, question.end_seconds, question.top, tell)
        return Found(hits=hits, seconds=time.perf_counter() - began).model_dump_json().encode()

    return make
