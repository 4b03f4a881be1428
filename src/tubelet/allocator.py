"""What becomes of memory that was freed: a model frees and takes the same hundreds of megabytes at every step."""

import contextlib
import ctypes
import os

# glibc's mallopt(3): the numbers of two of its settings, and a user's own ways to choose them.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
CHOSEN = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")
MOST = 2**25  # bytes: the largest MMAP_THRESHOLD that every glibc takes, and where its own adapting ends
LEAST = 2**20  # bytes


def keep_freed() -> None:
    """From now on this process uses again what it freed, where it would hand it to the system and take it back, page by page and
    filled with zeros, at every step: up to a fifth of a model's time on the CPU. What it holds stays near its highest.

    Every command does it, and every training, for all of its process; in Python it is yours to call. Nothing happens where
    the C library is not glibc, or a variable of CHOSEN is set, to whatever value.
    """
    libc = _glibc()
    if libc and (libc.mallopt(MMAP_THRESHOLD, 2**30) or libc.mallopt(MMAP_THRESHOLD, MOST)):
        libc.mallopt(TRIM_THRESHOLD, -1)


def keep_little() -> None:
    """Undo it in a copy of this process (fork), which is to stay small: it hands back what its parent had freed, and keeps no more
    than glibc would by itself at most, 64 MB. A limit of memory (RLIMIT_AS) counts whatever the copy takes from now on."""
    libc = _glibc()
    if libc:
        libc.mallopt(MMAP_THRESHOLD, MOST)
        libc.mallopt(TRIM_THRESHOLD, 2 * MOST)
        libc.malloc_trim(0)
        _take_free_places(libc)


def _take_free_places(libc: ctypes.CDLL) -> None:
    """What was handed back are pages; their addresses stay, and no limit would count who takes them again. So all places of LEAST
    bytes and more are taken here, and never written to."""
    import resource

    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + LEAST if hard < 0 else min(now + LEAST, hard), hard))
    size = MOST
    while size >= LEAST:
        if not libc.malloc(size):  # nothing that large is free, and the limit lets nothing be added
            size //= 2
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _glibc() -> ctypes.CDLL | None:
    """None where the C library is another one, or a user has chosen."""
    if any(name in os.environ for name in CHOSEN):
        return None
    with contextlib.suppress(OSError, TypeError):  # Windows takes no None
        libc = ctypes.CDLL(None)
        libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
        return libc if hasattr(libc, "malloc_trim") else None
    return None
