"""The feedback service as a whole, wired over adapters in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence

import httpx

from services.feedback.browser_tokens import BrowserTokens
from services.feedback.command_consumer import CommandConsumer
from services.feedback.service import Adapters, FeedbackService
from services.feedback.settings import FeedbackSettings
from shared.adapters.access import Access
from shared.adapters.clock import ManualClock
from shared.adapters.in_memory import (
    InMemoryAsyncCache,
    InMemoryCache,
    InMemoryLog,
    InMemoryLogRanges,
    InMemoryLogReader,
    InMemoryPublisher,
    InMemoryTransactionalPublisher,
)
from shared.ports import LogReader, Position
from shared.stream.state_store import MemoryStore

P = 3
THUMBS = {"event_id": "e1", "response_id": "r1", "user_id": "alice", "kind": "thumbs", "value": "up"}


def no_consumer() -> CommandConsumer:
    raise AssertionError("the replay thread was not started")


def adapters(log: InMemoryLog, access: Access | None = None, tokens: BrowserTokens | None = None) -> Adapters:
    clock = ManualClock()

    def open_reader(
        topics: Sequence[str],
        starts: Mapping[Position, int] | None = None,
        *,
        partitions: Collection[int] | None = None,
    ) -> LogReader:
        return InMemoryLogReader(log, topics, starts, partitions=partitions)

    return Adapters(
        publisher=InMemoryPublisher(log, "feedback"),
        replay_publisher=InMemoryPublisher(log, "feedback"),
        cache=InMemoryCache(clock),
        async_cache=InMemoryAsyncCache(InMemoryCache(clock)),
        clock=clock,
        log_ranges=InMemoryLogRanges(log),
        export_ranges=InMemoryLogRanges(log),
        open_reader=open_reader,
        end_of=log.end,
        open_receipt_store=MemoryStore,
        open_erasure_publisher=lambda: InMemoryTransactionalPublisher(log, "feedback", "process-1"),
        open_command_consumer=no_consumer,
        access=access or Access(hosts=["feedback"]),
        tokens=tokens,
    )


async def test_service_is_ready_when_all_followers_have_caught_up() -> None:
    log = InMemoryLog(P)
    service = FeedbackService(FeedbackSettings(partitions=P), b"a key that is long enough", adapters(log))
    transport = httpx.ASGITransport(service.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://feedback") as http:
        assert (await http.get("/v1/feedback/r1/e1")).status_code == 503, "nothing is followed yet"
        async with service.app.router.lifespan_context(service.app), asyncio.timeout(10):
            while (await http.get("/readyz")).status_code != 200:
                pass
            assert (await http.get("/readyz")).json()["checks"] == {
                "versions": "ok",
                "receipts": "ok",
                "erasures": "ok",
                "publisher": "ok",
            }
            assert (await http.post("/v1/feedback", json=THUMBS)).status_code == 202
            assert (await http.get("/v1/feedback/r1/e1")).json()["outcome"] == "pending"
            assert (await http.post("/v1/erasure", json={"user_id": "alice"})).status_code == 403
    assert len(log.records("feedback.events")) == 1
