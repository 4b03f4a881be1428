"""A progress bar on stderr, where a person looks on; nothing where the output goes into a file."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    """Gives a function (done, all) that moves the bar."""
    from tqdm import tqdm

    with tqdm(unit=f" {unit}", disable=not sys.stderr.isatty(), leave=False) as progress:

        def move(done: int, all: int) -> None:
            progress.total = all
            progress.update(done - progress.n)

        yield move
