"""Memory that is freed does not stay.

Blocks of a store's cache come and go in many sizes, by many threads, and glibc keeps what lies between those that are
in use, in an arena for nearly each thread: 30 MB after eight minutes at 500 records/s, and more with time, with nothing
new in use.
"""

from __future__ import annotations

import ctypes

MAX_ARENAS = 2
_M_ARENA_MAX = -8


def limit_arenas() -> bool:
    """All threads of this process that begin from now on share few. Whether that was possible: not with another
    allocator than glibc's."""
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    return option is not None and bool(option(_M_ARENA_MAX, MAX_ARENAS))


def trim_heap() -> bool:
    """Gives free memory back to the system. Whether there was any. Takes some milliseconds."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and bool(trim(0))
