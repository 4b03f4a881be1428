"""Whole decoded videos kept in memory, so that a clip costs an index, a crop and a resize."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tubelet.errors import ConfigError, VideoError
from tubelet.records import Clip, Example, Interpolation
from tubelet.video.decode import decode, probe
from tubelet.video.guard import run

AUTO_BYTES = 4_000_000_000  # what a cache that nobody asked for may take. The same on every machine: it decides the pixels
SHARE = 0.75  # of the free memory: what any cache may take
PROBED = 32  # videos looked at to estimate the size of a whole set


class FrameCache:
    """Videos by path, each decoded once at one short side; safe to use from threads.

    All or none: clips cut from scaled frames are not those cut from the file's own, so what is kept must never depend on the
    memory that happens to be free. ConfigError where `budget_bytes` do not hold them. What only decodes in part is left to the
    caller.
    """

    def __init__(self, short_side: int, interpolation: Interpolation, budget_bytes: int, approximate: bool = False) -> None:
        self.short_side, self.interpolation, self.approximate = short_side, interpolation, approximate
        self.budget_bytes, self.used_bytes = budget_bytes, 0
        self._clips: dict[str, Clip | None] = {}  # None: not kept
        self._lock = threading.Lock()
        self._busy: dict[str, threading.Lock] = {}

    def check(self, needed_bytes: int) -> None:
        """ConfigError where `needed_bytes` are more than the budget."""
        if needed_bytes > self.budget_bytes:
            needed, free = (f"{count / 1e9:.1f} GB" for count in (needed_bytes, self.budget_bytes))
            raise ConfigError(
                f"decoded, the videos take {needed} of memory or more, and {free} can be had: use --loader.cache off"
            )

    def get(self, path: str) -> Clip | None:
        """Every frame of a video, or None where it is not kept."""
        if path in self._clips:
            return self._clips[path]
        with self._lock:
            busy = self._busy.setdefault(path, threading.Lock())
        with busy:  # one thread decodes, the others wait for it
            if path not in self._clips:
                self._clips[path] = self._load(path)
        return self._clips[path]

    def _load(self, path: str) -> Clip | None:
        try:
            size = decoded_bytes(path, self.short_side)
            with self._lock:
                self.check(self.used_bytes + size)
                self.used_bytes += size
            settings: dict[str, Any] = dict(
                short_side=self.short_side, interpolation=self.interpolation, approximate=self.approximate
            )
            return run(path, decode, path, more_bytes=size, **settings)
        except VideoError:
            return None  # the caller meets the same error, or reads the part that is whole


def decoded_bytes(path: str, short_side: int) -> int:
    """Bytes of a whole video as uint8 RGB at a short side, never enlarged."""
    info = run(path, probe, path)
    scale = min(1.0, short_side / min(info.width, info.height))
    return info.frame_count * 3 * round(info.width * scale) * round(info.height * scale)


def estimated_bytes(examples: Sequence[Example], short_side: int) -> int:
    """About what all videos of `examples` take in a cache, from at most PROBED of them; unreadable ones count as
    nothing."""
    paths = sorted({example.path for example in examples})
    probed = paths[:: max(1, len(paths) // PROBED)][:PROBED]
    total = 0
    for path in probed:
        try:
            total += decoded_bytes(path, short_side)
        except VideoError:
            continue
    return total * len(paths) // max(1, len(probed))


def free_bytes() -> int:
    """Memory that this process may still take: what the machine has, or its control group where that is less."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    limit, used = _lines("/sys/fs/cgroup/memory.max"), _lines("/sys/fs/cgroup/memory.current")
    if limit and used and limit[0].isdecimal():
        free = min(free, max(0, int(limit[0]) - int(used[0])))
    return free


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
