"""What the C library's allocator keeps: a swap frees a model's memory, and glibc holds on to it.

Each new thread may get an arena of its own, and freed blocks stay in it. Both calls do nothing
where the C library is another one.
"""

from __future__ import annotations

import ctypes
import sys

_ARENA_MAX = -8  # M_ARENA_MAX of malloc.h
ARENAS = 2


def few_arenas() -> None:
    """Let all threads share two arenas. Call it before threads are started."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt:
            mallopt(_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Return free memory to the system; takes some milliseconds, so after a swap only."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim:
            trim(0)
