"""Rate limit per caller, counted in Redis across all processes of the service. Without Redis there is no limit."""

from __future__ import annotations

from typing import Final

from fastapi.responses import JSONResponse

from services.feedback.settings import SERVICE
from shared.adapters import redis_keys
from shared.adapters.http import problem
from shared.errors import Overloaded
from shared.ports import Cache, Clock, Count

WINDOW_MS: Final = 60_000
TTL_S: Final = 120


def retry_after_s(cache: Cache, clock: Clock, caller: str, per_minute: int) -> int:
    """Count one request of `caller`; return 0 if it is within the limit, else the seconds until the next window."""
    now_ms = clock.now_ms()
    command = count_request(caller, now_ms)
    return wait_s(cache.count(command.key, ttl_s=command.ttl_s), per_minute, now_ms)


def count_request(caller: str, now_ms: int, by: int = 1) -> Count:
    """Return the command that counts requests of `caller`. `wait_s` judges its result."""
    return Count(redis_keys.rate_limit(SERVICE, caller, now_ms // WINDOW_MS), TTL_S, by)


def wait_s(count: object, per_minute: int, now_ms: int) -> int:
    """Return 0 if a count is within the limit or not known, else the seconds until the next window."""
    is_allowed = not isinstance(count, int) or count <= per_minute
    return 0 if is_allowed else 1 + (WINDOW_MS - now_ms % WINDOW_MS) // 1000


def too_many_requests(limit: str, wait_s: int) -> JSONResponse:
    """Return the 429 response. `limit` states the limit, for example "one user may send 600 events per minute"."""
    response = problem(429, Overloaded.code, "Too many requests", f"{limit}: try again in {wait_s} s")
    response.headers["Retry-After"] = str(wait_s)
    return response
