"""Which clips of a step are of this process, for whoever draws random numbers for clips.

Every process draws those of all clips and keeps its own, so that a run is the same on one process or sixteen.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor


@dataclass(frozen=True)
class Share:
    """The clips of a step lie in order of rank, `counts` of them on every process."""

    rank: int
    counts: tuple[int, ...]

    @property
    def total(self) -> int:
        """Clips of all processes."""
        return sum(self.counts)

    @property
    def rows(self) -> slice:
        """Where this process' clips are among them. One that has none computes on a blank clip, which borrows a neighbour's
        row and counts nothing: the processes must take every step together."""
        first = min(sum(self.counts[: self.rank]), self.total - 1)
        return slice(first, first + max(1, self.counts[self.rank]))


_current: Share | None = None


@contextlib.contextmanager
def of(rank: int, counts: Sequence[int]) -> Iterator[None]:
    """What is drawn in the block is drawn for `counts` clips on each process, of which this one is `rank`."""
    global _current
    before, _current = _current, Share(rank, tuple(counts))
    try:
        yield
    finally:
        _current = before


def current(clips: int) -> Share:
    """The share that holds, or that of a process which has all `clips`."""
    return _current or Share(0, (clips,))


def draw(make: Callable[[int], Tensor], rows: int) -> Tensor:
    """The rows of this process out of `make(rows of all processes)`; a model may have several rows a clip, all equally many."""
    if _current is None:
        return make(rows)
    own = _current.rows
    each = rows // (own.stop - own.start)
    return make(_current.total * each)[own.start * each : own.stop * each]


def split(count: int, parts: int) -> list[range]:
    """0..count-1 in `parts` consecutive ranges, the first ones longer by one where it does not divide."""
    ends = [part * (count // parts) + min(part, count % parts) for part in range(parts + 1)]
    return [range(first, end) for first, end in pairwise(ends)]
