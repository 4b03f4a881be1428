"""Who is worked for, who waits, and the numbers of both.

Long work runs in threads, at most `workers` at a time; `places` requests may be worked on or wait, the next is refused. Work ends
early when whoever asked goes away.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from fastapi import Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tubelet.web.uploads import Refused
from tubelet.web.work import Served

T = TypeVar("T")
LOOK_SECONDS = 0.2  # between two looks whether whoever asked is still there


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
                        raise Refused(
                            504, f"not done within {self.options.seconds:g} s: ask for fewer clips, or a shorter video"
                        )
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
        route = request.scope.get("route")
        address = getattr(route, "path", "other")  # not the path itself: that is the caller's to choose
        self.requests.labels(request.method, address, str(status)).inc()
        self.seconds.labels(address).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)


def _clips(sizes: Mapping[int, int]) -> float:
    return sum(size * count for size, count in list(sizes.items()))


def _batches(sizes: Mapping[int, int]) -> float:
    return sum(list(sizes.values()))
