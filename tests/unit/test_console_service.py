"""The console as a whole, wired over adapters in memory. NiceGUI has global state, so there is only one test."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from services.console.core.ledger import CountedRecords
from services.console.service import Adapters, ConsoleService
from services.console.settings import ConsoleSettings
from shared.adapters.clock import ManualClock
from shared.adapters.in_memory import (
    InMemoryCache,
    InMemoryLog,
    InMemoryLogRanges,
    InMemoryLogReader,
    InMemoryPublisher,
)


# NiceGUI looks at every object in memory, and touching torch's deprecated class warns, if another test imported torch.
@pytest.mark.filterwarnings("ignore:.*reduce_op.*:FutureWarning")
async def test_console_serves_api_and_page_once_the_log_has_been_read() -> None:
    clock = ManualClock()
    log = InMemoryLog(3, clock)
    adapters = Adapters(
        publisher=InMemoryPublisher(log, "console"),
        cache=InMemoryCache(clock),
        clock=clock,
        log_ranges=InMemoryLogRanges(log),
        open_reader=lambda topics: InMemoryLogReader(log, topics),
        count_feedback=lambda _: CountedRecords(0, complete=True),
        count_responses=lambda: 0,
    )
    app = ConsoleService(ConsoleSettings(), adapters).app
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as http,
        asyncio.timeout(10),
    ):
        while (await http.get("/readyz")).status_code != 200:
            pass
        for path in ("/api/status", "/api/quarantine", "/api/dead-letters", "/api/versions", "/api/rollout"):
            assert (await http.get(path)).status_code == 200, path
        unknown = await http.get("/api/unknown")
        assert (unknown.status_code, unknown.headers["content-type"]) == (404, "application/problem+json")
        page = await http.get("/")
        assert (page.status_code, "<title>Loopwright</title>" in page.text) == (200, True)
