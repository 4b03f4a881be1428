"""Things made by threads ahead of their use, and given in order."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

MAX_WORKERS = 16
AHEAD_BYTES = 256_000_000  # of frames that workers may have ready or in the making before they are asked for
Made = TypeVar("Made")
Item = TypeVar("Item")


def in_order(
    make: Callable[[Item], Made], items: Iterable[Item], workers: int, item_bytes: int = AHEAD_BYTES
) -> Generator[Made, None, None]:
    """`make(item)` for every item, in order, by `workers` threads; 0: none.

    They work ahead by as many items of about `item_bytes` as AHEAD_BYTES hold, at least one for every thread. Threads are
    enough because they wait for processes that decode, and torch lets go of the interpreter.
    """
    if not workers:
        yield from map(make, items)
        return
    ahead = max(workers, AHEAD_BYTES // max(1, item_bytes))
    pool = ThreadPoolExecutor(workers, thread_name_prefix="tubelet-loader")
    running: deque[Future[Made]] = deque()
    try:
        for item in items:
            running.append(pool.submit(make, item))
            if len(running) > ahead:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def cores() -> int:
    """Cores this process may use, at most MAX_WORKERS."""
    return min(MAX_WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
