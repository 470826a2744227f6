"""Contract of the port `AsyncCache`, in memory and on Redis; and that waiting requests share the event loop's wakes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass

import pytest

from shared.adapters.async_publisher import AsyncPublisher
from shared.adapters.clock import ManualClock
from shared.adapters.in_memory import InMemoryAsyncCache, InMemoryCache, InMemoryLog, InMemoryPublisher
from shared.adapters.redis_pipeline import TIMEOUT_S, RedisPipeline
from shared.errors import BrokerUnavailable
from shared.ports import Acked, AsyncCache, Count, Get, PutIfAbsent
from shared.records import Output


@dataclass
class Caching:
    cache: AsyncCache
    away: AsyncCache
    """A cache that is unreachable."""
    pass_time: Callable[[float], Awaitable[None]]


@pytest.fixture(params=["memory", "redis"])
async def caching(
    request: pytest.FixtureRequest, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Caching]:
    # A machine that runs other tests may be slower than a request may wait.
    monkeypatch.setattr("shared.adapters.redis_pipeline.TIMEOUT_S", 5.0)
    if request.param == "redis":
        made = Caching(RedisPipeline(redis_url), RedisPipeline("redis://127.0.0.1:1/0"), asyncio.sleep)
        yield made
        await made.cache.close()
        await made.away.close()
        return
    clock, away = ManualClock(), InMemoryCache()
    away.away = True

    async def pass_time(seconds: float) -> None:
        clock.advance(seconds)

    yield Caching(InMemoryAsyncCache(InMemoryCache(clock)), InMemoryAsyncCache(away), pass_time)


async def test_commands_of_one_call_see_each_other_in_order(caching: Caching, fresh: str) -> None:
    put = PutIfAbsent(fresh, b"first", 30)
    commands = [Get(fresh), put, Get(fresh), PutIfAbsent(fresh, b"second", 30), Get(fresh)]
    assert await caching.cache.run(commands) == [None, None, b"first", None, b"first"]
    assert await caching.cache.run([]) == []


async def test_counter_counts_every_concurrent_addition_once(caching: Caching, fresh: str) -> None:
    counts = await asyncio.gather(*[caching.cache.run([Count(fresh, 30), Get("none")]) for _ in range(200)])
    assert sorted(count for count, _ in counts) == list(range(1, 201))  # type: ignore[type-var]
    assert await caching.cache.run([Count(fresh, 30, by=5)]) == [205]


async def test_each_caller_gets_its_own_results(caching: Caching, fresh: str) -> None:
    async def one(n: int) -> bool:
        key, value = f"{fresh}-{n}", b"%d" % n
        count, before, _, after = await caching.cache.run(
            [Count(f"{key}-count", 30), Get(key), PutIfAbsent(key, value, 30), Get(key)]
        )
        return (count, before, after) == (1, None, value)

    assert all(await asyncio.gather(*[one(n) for n in range(300)]))


async def test_value_expires(caching: Caching, fresh: str) -> None:
    await caching.cache.run([PutIfAbsent(fresh, b"v", 1)])
    assert await caching.cache.run([Get(fresh)]) == [b"v"]
    await caching.pass_time(1.2)
    assert await caching.cache.run([Get(fresh)]) == [None]


async def test_an_outage_reads_as_misses_and_never_raises(caching: Caching, fresh: str) -> None:
    commands = [Count(fresh, 30), Get(fresh), PutIfAbsent(fresh, b"v", 30)]
    for _ in range(3):
        assert await caching.away.run(commands) == [None] * 3


async def test_error_of_one_command_is_a_miss_of_that_command_only(redis_url: str, fresh: str) -> None:
    cache = RedisPipeline(redis_url)
    put = PutIfAbsent(fresh, b"no number", 30)
    assert await cache.run([put, Count(fresh, 30), Get(fresh)]) == [None, None, b"no number"]
    await cache.close()


async def test_hanging_redis_delays_requests_only_briefly() -> None:
    async def hang(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        while await reader.read(1024):
            pass

    async with serving(hang) as url:
        cache = RedisPipeline(url)
        began = time.monotonic()
        assert await asyncio.gather(*[cache.run([Get("key")]) for _ in range(100)]) == [[None]] * 100
        assert await asyncio.gather(*[cache.run([Get("key")]) for _ in range(100)]) == [[None]] * 100
        assert time.monotonic() - began < 3 * TIMEOUT_S
        await cache.close()


async def test_late_answer_is_not_taken_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.adapters.redis_pipeline.PAUSE_S", 0.0)
    answered = 0

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        while data := await reader.read(1024):
            if b"GET" not in data.split(b"\r\n"):
                writer.write(b"+OK\r\n" * data.count(b"*"))
                continue
            answered += 1
            value = b"%d" % answered
            await asyncio.sleep(2 * TIMEOUT_S if answered == 1 else 0)
            with contextlib.suppress(ConnectionError):
                writer.write(b"$%d\r\n%s\r\n" % (len(value), value))

    async with serving(late) as url:
        cache = RedisPipeline(url)
        assert await cache.run([Get("first")]) == [None]
        await asyncio.sleep(1.5 * TIMEOUT_S)
        assert await cache.run([Get("second")]) == [b"2"]
        await cache.close()


async def test_cancelled_request_takes_no_other_ones_result(caching: Caching, fresh: str) -> None:
    tasks = [asyncio.create_task(caching.cache.run([Count(f"{fresh}-{n}", 30, by=n + 1)])) for n in range(50)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[1::2] == [[n + 1] for n in range(1, 50, 2)]


@contextlib.asynccontextmanager
async def serving(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """Serve connections with `handle`; yield the URL of this Redis."""
    ended: list[asyncio.Future[None]] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        done = asyncio.get_running_loop().create_future()
        ended.append(done)
        try:
            await handle(reader, writer)
        finally:
            writer.close()
            done.set_result(None)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0?protocol=2"
    finally:
        server.close()
        await asyncio.gather(*ended)


# --- acknowledgements ---------------------------------------------------------------------------------------------


class DelayedPublisher(InMemoryPublisher):
    """Acknowledges all records together, when `acknowledge` is called."""

    def __init__(self) -> None:
        super().__init__(InMemoryLog(1), "feedback")
        self.waiting: list[Future[Acked]] = []

    def publish(self, record: Output) -> Future[Acked]:
        super().publish(record)
        self.waiting.append(Future())
        return self.waiting[-1]

    def acknowledge(self) -> None:
        for n, future in enumerate(self.waiting):
            if n == 3:
                future.set_exception(BrokerUnavailable("away"))
            else:
                future.set_result(Acked("feedback.events", 0, n))


async def test_acknowledgements_from_another_thread_reach_their_requests() -> None:
    publisher = DelayedPublisher()
    sender = AsyncPublisher(publisher)
    tasks = [asyncio.create_task(sender.publish(Output("feedback.events", b"k", b"v"))) for _ in range(100)]
    await asyncio.sleep(0)
    tasks[7].cancel()
    await asyncio.to_thread(publisher.acknowledge)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[3], BrokerUnavailable)
    assert isinstance(results[7], asyncio.CancelledError)
    assert [r.offset for r in results if isinstance(r, Acked)] == [n for n in range(100) if n not in (3, 7)]


async def test_publisher_in_memory_acknowledges_at_once() -> None:
    sender = AsyncPublisher(InMemoryPublisher(InMemoryLog(1), "feedback"))
    assert (await sender.publish(Output("feedback.events", b"k", b"v"))).offset == 0
