"""The console as a whole, wired over adapters in memory. NiceGUI has global state, so there is only one test."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from fastapi import FastAPI

from shared.adapters.access import Access
from tests.console_app import console_app


# NiceGUI looks at every object in memory, and touching torch's deprecated class warns, if another test imported torch.
@pytest.mark.filterwarnings("ignore:.*reduce_op.*:FutureWarning")
async def test_console_serves_api_and_page_once_the_log_has_been_read() -> None:
    with console_app(Access()) as app:
        await check_console(app)


async def check_console(app: FastAPI) -> None:
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
