"""The application: who is let in (`door`), who is worked for (`desk`), and the addresses (`rooms`).

A person uses the page at `/`; programs use `/api` (described at `/openapi.json`). Every answer that is not what was asked for is
{"error": one line}.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from tubelet import __version__
from tubelet.web.desk import Desk, Numbers, Options
from tubelet.web.door import Checked, Narrow, answer_errors
from tubelet.web.house import House
from tubelet.web.library import Library
from tubelet.web.rooms import about, library, videos
from tubelet.web.rows import Problem
from tubelet.web.uploads import Uploads
from tubelet.web.work import Served

DEFAULTS = Options()
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem} for status in (400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 499, 500, 503, 504, 507)
}


def make_app(
    models: Sequence[Served], uploads: Uploads, options: Options = DEFAULTS, searched: Library | None = None
) -> FastAPI:
    """The application. `models` answer in the order given; `searched` is the library."""
    desk = Desk(options)
    house = House(models, uploads, searched, desk, Numbers(models, desk))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        desk.ready = True
        yield
        desk.ready = False
        await asyncio.to_thread(desk.close)
        for served in models:
            await asyncio.to_thread(served.batcher.close)

    app = FastAPI(
        title="Tubelet", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan, responses=PROBLEMS,
        description="What is in a video, from where to where, and where else there is something like it.",
    )  # fmt: skip
    app.state.house = house
    app.add_middleware(Narrow)
    app.add_middleware(Checked, options=options, numbers=house.numbers)
    answer_errors(app)
    for room in (about, videos, library):
        app.include_router(room.router)
    return app
