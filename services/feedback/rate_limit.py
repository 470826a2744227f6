"""How often somebody may ask. Counted in Redis, by all doors together; without Redis all may."""

from __future__ import annotations

from fastapi.responses import JSONResponse

from shared.adapters import redis_keys
from shared.adapters.http import problem
from shared.errors import Overloaded
from shared.ports import Cache, Clock

WINDOW_MS = 60_000


def retry_after_s(cache: Cache, clock: Clock, caller: str, per_minute: int) -> int:
    """0 if this caller may go on; else the seconds until the next window."""
    window, spent_ms = divmod(clock.now_ms(), WINDOW_MS)
    count = cache.count(redis_keys.rate("feedback", caller, window), ttl_s=120)
    return 0 if count is None or count <= per_minute else 1 + (WINDOW_MS - spent_ms) // 1000


def too_many_requests(bound: str, wait_s: int) -> JSONResponse:
    """`bound` in words, e.g. "one user may send 600 events a minute"."""
    answer = problem(429, Overloaded.code, "Too many events", f"{bound}: try again in {wait_s} s")
    answer.headers["Retry-After"] = str(wait_s)
    return answer
