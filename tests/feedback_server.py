"""The feedback service on adapters in memory, served over HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import httpx
from starlette.types import ASGIApp

from services.feedback.browser_tokens import BrowserTokens
from services.feedback.service import FeedbackService
from services.feedback.settings import FeedbackSettings
from shared.adapters.access import Access
from shared.adapters.clock import SystemClock
from shared.adapters.in_memory import InMemoryCache, InMemoryLog
from shared.events import FEEDBACK, ChatResponse, Feedback, parse_union
from tests.asgi_server import listening
from tests.unit.test_feedback_service import P, adapters

START_S = 10


@dataclass(frozen=True)
class FeedbackApp:
    """A running service: its address and its log."""

    url: str
    log: InMemoryLog

    def events(self) -> list[Feedback]:
        """Return the feedback events in the log."""
        return [parse_union(FEEDBACK, record.value) for record in self.log.records("feedback.events")]

    def responses(self) -> list[ChatResponse]:
        """Return the recorded responses in the log."""
        return [ChatResponse.from_json(record.value) for record in self.log.records("chat.responses")]


@contextmanager
def served(
    around: Callable[[ASGIApp], ASGIApp] = lambda app: app,
    *,
    access: Access | None = None,
    tokens: BrowserTokens | None = None,
) -> Iterator[FeedbackApp]:
    """Serve the feedback service on a port of this machine, with the system's clock.

    `around` may put an app in front of it. Without `access`, nobody needs a key.
    """
    clock = SystemClock()
    log = InMemoryLog(P, clock)
    parts = replace(adapters(log, access, tokens), clock=clock, cache=InMemoryCache(clock))
    service = FeedbackService(FeedbackSettings(partitions=P), b"a key that is long enough", parts)
    with listening(around(service.app)) as url:
        wait_until_ready(url)
        yield FeedbackApp(url, log)


def wait_until_ready(url: str) -> None:
    """Return once the service is ready. Raise `TimeoutError` if that takes too long."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if httpx.get(f"{url}/readyz", timeout=START_S).status_code == httpx.codes.OK:
            return
        time.sleep(0.02)
    raise TimeoutError(f"{url} did not become ready")
