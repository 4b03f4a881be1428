"""Who is worked for, who waits, and the numbers of both.

Long work runs in threads, at most `workers` at a time; `places` requests may be worked on or wait, the next is refused. Uploads
have as many places of their own: a slow line keeps nobody from asking. Work ends early when whoever asked goes away.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from fastapi import Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tubelet.video.guard import ended_by
from tubelet.web.refused import Refused
from tubelet.web.work import Served

T = TypeVar("T")
LOOK_SECONDS = 0.2  # between two looks whether whoever asked is still there


@dataclass(frozen=True)
class Options:
    """How the server answers.

    hosts    names by which it may be called (a page of another site could otherwise reach a server on this machine)
    token    what a caller must show, as `Authorization: Bearer TOKEN` or once as `/?token=TOKEN`; "": nothing
    workers  files that are read at the same time
    places   requests that may be worked on or wait, and uploads that may come in; the next one gets 429
    seconds  after which a request is given up
    per_minute  requests of one address (see `door.Rate`); the next one gets 429. 0: as many as it likes
    """

    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")
    token: str = ""
    workers: int = 2
    places: int = 16
    seconds: float = 300.0
    per_minute: int = 600


class Desk:
    """Who is worked for, and who waits. `ready`: new work is taken."""

    def __init__(self, options: Options) -> None:
        self.options, self.ready = options, False
        self.taken, self.coming = 0, 0  # places of requests, and of uploads on their way
        self.pool = ThreadPoolExecutor(options.workers, thread_name_prefix="tubelet-web")

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Holds a place for the block; Refused with 429 when all are taken, with 503 when the server ends."""
        self._check(self.taken)
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    @contextlib.asynccontextmanager
    async def upload(self) -> AsyncIterator[None]:
        """Holds a place of an upload for the block, which must end in time (408)."""
        self._check(self.coming)
        self.coming += 1
        try:
            async with asyncio.timeout(self.options.seconds):
                yield
        except TimeoutError:
            raise Refused(408, f"the file did not come within {self.options.seconds:g} s") from None
        finally:
            self.coming -= 1

    def _check(self, taken: int) -> None:
        if not self.ready:
            raise Refused(503, "the server is about to end: try again in a moment", retry_seconds=5)
        if taken >= self.options.places:
            raise Refused(429, f"{taken} requests are being worked on already: try again in a moment", retry_seconds=1)

    async def work(self, request: Request, make: Callable[[], T]) -> T:
        """make() in a thread, at a place of its own. It ends early when whoever asked has gone (499) or waited long (504), and
        files are read no further (`guard.ended_by`)."""
        with self.place():
            return await self.held(request, make)

    async def held(self, request: Request, make: Callable[[], T]) -> T:
        """The same for a caller who holds a place already."""
        stop, began = threading.Event(), time.monotonic()

        def work() -> T:
            with ended_by(stop):
                return make()

        running = asyncio.get_running_loop().run_in_executor(self.pool, work)
        try:
            while True:
                done, _ = await asyncio.wait({running}, timeout=LOOK_SECONDS)
                if done:
                    return running.result()
                if await request.is_disconnected():
                    raise Refused(499, "whoever asked has gone")
                if time.monotonic() - began > self.options.seconds:
                    raise Refused(504, f"not done within {self.options.seconds:g} s: ask for less, or about a shorter video")
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
            clips.labels(served.name).set_function(partial(_clips, sizes))
            batches.labels(served.name).set_function(partial(_batches, sizes))

    def add(self, request: Request, status: int, seconds: float) -> None:
        """Counts one; method and path are the caller's to choose, so only those that exist get a row of their own."""
        address = getattr(request.scope.get("route"), "path", "other")
        method = request.method if request.method in ("GET", "HEAD", "POST") else "other"
        self.requests.labels(method, address, str(status)).inc()
        self.seconds.labels(address).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)


def _clips(sizes: Mapping[int, int]) -> float:
    return sum(size * count for size, count in list(sizes.items()))


def _batches(sizes: Mapping[int, int]) -> float:
    return sum(list(sizes.values()))
