"""Settings of glibc's allocator that keep the process from growing through fragmentation.

The blocks of a store's cache have many sizes and are allocated by many threads. By default glibc keeps the free memory
between them in one arena per thread. In a long run that memory grew by tens of megabytes while nothing new was in use.
"""

from __future__ import annotations

import ctypes

MAX_ARENAS = 2
_M_ARENA_MAX = -8


def limit_arenas() -> bool:
    """Make all threads that start from now on share `MAX_ARENAS` arenas.

    Returns whether the allocator supports this; only glibc does.
    """
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    return option is not None and bool(option(_M_ARENA_MAX, MAX_ARENAS))


def trim_heap() -> bool:
    """Return free memory to the operating system, and whether there was any. Takes a few milliseconds."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and bool(trim(0))
