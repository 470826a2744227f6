"""Adapter of the port `AsyncCache` for Redis: the commands of all concurrent requests share one round trip."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from shared.ports import CacheCommand, Count, Get, PutIfAbsent
from shared.telemetry import CACHE_FAILURES

TIMEOUT_S = 0.25
MAX_BATCH = 64
"""Requests that share a round trip. With more, a busy process could need the timeout for their results alone."""
PAUSE_S = 1.0
"""How long to skip calls after Redis did not answer, so that requests do not queue behind timeouts."""
log = structlog.get_logger(__name__)

Results = list[int | bytes | None]


class RedisPipeline:
    """`AsyncCache` with bounded waits. For use on one event loop.

    While a round trip is under way, further commands are collected for the next one. If Redis is down, the commands of
    one round trip per second wait `TIMEOUT_S`, the others not at all.
    """

    def __init__(self, url: str) -> None:
        self._redis = redis.asyncio.Redis.from_url(
            url,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )
        self._collected: list[tuple[Sequence[CacheCommand], asyncio.Future[Results]]] = []
        self._sender: asyncio.Task[None] | None = None
        self._away_until = 0.0

    async def run(self, commands: Sequence[CacheCommand]) -> Results:
        """Execute commands in order; see `AsyncCache.run`."""
        if time.monotonic() < self._away_until:
            return self._missed(commands)
        future: asyncio.Future[Results] = asyncio.get_running_loop().create_future()
        self._collected.append((commands, future))
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())
        return await future

    async def close(self) -> None:
        """Close the connection."""
        await self._redis.aclose()

    async def _send(self) -> None:
        try:
            while self._collected:
                batch = self._collected[:MAX_BATCH]
                del self._collected[:MAX_BATCH]
                results = await self._round_trip([command for commands, _ in batch for command in commands])
                at = 0
                for commands, future in batch:
                    if not future.done():  # its request may have been cancelled
                        found = results and results[at : at + len(commands)]
                        future.set_result(found or self._missed(commands))
                    at += len(commands)
        finally:
            self._sender = None

    async def _round_trip(self, commands: Sequence[CacheCommand]) -> Results:
        """Return a result per command, or an empty list if Redis did not answer."""
        if time.monotonic() < self._away_until:
            return []
        pipe = self._redis.pipeline(transaction=False)
        sizes = [_add(pipe, command) for command in commands]
        try:
            async with asyncio.timeout(TIMEOUT_S):
                answers = await pipe.execute(raise_on_error=False)
        except (redis.RedisError, OSError, TimeoutError) as error:
            self._away_until = time.monotonic() + PAUSE_S
            log.debug("cache_away", error=str(error))
            return []
        results: Results = []
        at = 0
        for command, size in zip(commands, sizes, strict=True):
            results.append(_result(command, answers[at : at + size]))
            at += size
        return results

    @staticmethod
    def _missed(commands: Sequence[CacheCommand]) -> Results:
        CACHE_FAILURES.inc()
        return [None] * len(commands)


def _add(pipe: redis.asyncio.client.Pipeline, command: CacheCommand) -> int:
    """Add a command to the pipeline; return the number of Redis commands that it takes."""
    match command:
        case Count(key, ttl_s, by):
            # The counter keeps the time to live set by the first addition; `EXPIRE NX` would need Redis 7.
            pipe.execute_command("SET", key, 0, "PX", round(ttl_s * 1000), "NX")
            pipe.execute_command("INCRBY", key, by)
            return 2
        case Get(key):
            pipe.execute_command("GET", key)
        case PutIfAbsent(key, value, ttl_s):
            pipe.execute_command("SET", key, value, "PX", round(ttl_s * 1000), "NX")
    return 1


def _result(command: CacheCommand, answers: Sequence[object]) -> int | bytes | None:
    answer = answers[-1]
    if isinstance(command, PutIfAbsent) or isinstance(answer, Exception):
        return None
    return answer if isinstance(answer, int | bytes) else None
