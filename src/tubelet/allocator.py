"""What becomes of memory that was freed: a model frees and takes the same hundreds of megabytes at every step."""

import contextlib
import ctypes
import os

# glibc's mallopt(3): its numbers, what each is set to (bytes), and the variables by which a user chooses something else.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = (-1, 2**31 - 1), (-3, 2**30)
CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed() -> None:
    """From now on this process uses again what it freed, where it would hand it to the system and take it back, page by page and
    filled with zeros, at every step: 3 to 20 % of the time of a model on the CPU. What it holds stays near its highest.

    Every command does it, and every training; in Python it is yours to call. Nothing happens where the C library is not
    glibc, or one of the variables of CHOSEN is set.
    """
    if any(name in os.environ for name in CHOSEN):
        return
    with contextlib.suppress(OSError, AttributeError, TypeError):  # a C library without it; Windows has no None
        mallopt = ctypes.CDLL(None).mallopt
        for option in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            mallopt(*option)
