"""Adapter of the port `Cache` for Redis. During an outage reads are misses and writes are lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import redis
import structlog

from shared.telemetry import CACHE_FAILURES

T = TypeVar("T")
TIMEOUT_S = 0.25
PAUSE_S = 1.0
"""How long to skip calls after Redis did not answer, so that callers do not queue behind timeouts."""
log = structlog.get_logger(__name__)


class RedisCache:
    """`Cache` with bounded waits: if Redis is down, one call per second waits `TIMEOUT_S`, the others not at all."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry_on_timeout=False
        )
        self._away_until = 0.0

    def get(self, key: str) -> bytes | None:
        """Return the value, or None."""
        return self._try(lambda: self._redis.get(key), None)

    def put(self, key: str, value: bytes, *, ttl_s: float) -> None:
        """Store a value for `ttl_s` seconds."""
        self._try(lambda: self._redis.set(key, value, px=round(ttl_s * 1000)), None)

    def put_if_absent(self, key: str, value: bytes, *, ttl_s: float) -> bytes | None:
        """Store a value if the key is free; return the existing value otherwise."""

        def keep_first() -> bytes | None:
            # One transaction, as `SET NX GET` needs Redis 7.
            pipe = self._redis.pipeline(transaction=True)
            pipe.set(key, value, px=round(ttl_s * 1000), nx=True)
            pipe.get(key)
            stored, found = pipe.execute()
            return None if stored else found

        return self._try(keep_first, None)

    def count(self, key: str, *, by: int = 1, ttl_s: float) -> int | None:
        """Add to a counter and return it, or None during an outage."""

        def add() -> int:
            pipe = self._redis.pipeline(transaction=True)
            # The counter keeps the time to live set by the first addition; `EXPIRE NX` would need Redis 7.
            pipe.set(key, 0, px=round(ttl_s * 1000), nx=True)
            pipe.incrby(key, by)
            return int(pipe.execute()[1])

        return self._try(add, None)

    def alive(self) -> bool:
        """Return whether Redis answers."""
        return self._try(lambda: bool(self._redis.ping()), False)

    def _try(self, call: Callable[[], object], miss: T) -> T:
        if time.monotonic() < self._away_until:
            CACHE_FAILURES.inc()
            return miss
        try:
            return call()  # type: ignore[return-value]
        except redis.RedisError as error:
            if isinstance(error, redis.ConnectionError | redis.TimeoutError):
                self._away_until = time.monotonic() + PAUSE_S
            CACHE_FAILURES.inc()
            log.debug("cache_away", error=str(error))
            return miss
