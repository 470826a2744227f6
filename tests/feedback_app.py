"""The feedback service over a log in memory, on a port of this machine, for clients in other processes."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import uvicorn

from services.feedback.service import FeedbackService
from services.feedback.settings import FeedbackSettings
from shared.adapters.access_rules import public
from shared.adapters.clock import SystemClock
from shared.adapters.in_memory import InMemoryLog
from tests.unit.test_feedback_service import P, adapters

START_S: Final = 20.0


@contextmanager
def served_feedback() -> Iterator[str]:
    """Serve the application, with its log at `/events` and `/responses`, and return its URL once it is ready."""
    log = InMemoryLog(P)
    parts = replace(adapters(log), clock=SystemClock())  # clients send the time of the event
    service = FeedbackService(FeedbackSettings(partitions=P), b"a key that is long enough", parts)

    @service.app.get("/events")
    @public
    async def events() -> list[Any]:
        return [json.loads(record.value or b"") for record in log.records("feedback.events")]

    @service.app.get("/responses")
    @public
    async def responses() -> list[Any]:
        return [json.loads(record.value or b"") for record in log.records("chat.responses")]

    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    server = uvicorn.Server(
        uvicorn.Config(service.app, log_config=None, access_log=False, timeout_graceful_shutdown=5)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        _wait_until_ready(url)
        yield url
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
