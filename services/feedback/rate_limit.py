"""Rate limit per caller, counted in Redis across all processes of the service. Without Redis there is no limit."""

from __future__ import annotations

from typing import Final

from fastapi.responses import JSONResponse

from services.feedback.settings import SERVICE
from shared.adapters import redis_keys
from shared.adapters.http import problem
from shared.errors import Overloaded
from shared.ports import Cache, Clock

WINDOW_MS: Final = 60_000


def retry_after_s(cache: Cache, clock: Clock, caller: str, per_minute: int) -> int:
    """Count one request of `caller`; return 0 if it is within the limit, else the seconds until the next window."""
    window, elapsed_ms = divmod(clock.now_ms(), WINDOW_MS)
    count = cache.count(redis_keys.rate_limit(SERVICE, caller, window), ttl_s=120)
    return 0 if count is None or count <= per_minute else 1 + (WINDOW_MS - elapsed_ms) // 1000


def too_many_requests(limit: str, wait_s: int) -> JSONResponse:
    """Return the 429 response. `limit` states the limit, for example "one user may send 600 events per minute"."""
    response = problem(429, Overloaded.code, "Too many requests", f"{limit}: try again in {wait_s} s")
    response.headers["Retry-After"] = str(wait_s)
    return response
