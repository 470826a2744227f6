"""The console: its parts, wired together, and their life cycle."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from services.console.api.dead_letter_routes import add_dead_letter_routes
from services.console.api.quarantine_routes import add_quarantine_routes
from services.console.api.routes import add_fallback_route, build_app
from services.console.backend import ConsoleBackend
from services.console.core.ledger import CountedRecords
from services.console.core.projection import FOLLOWED_TOPICS
from services.console.dead_letter_query import DeadLetterReader
from services.console.pages.page import add_page
from services.console.pages.refresher import PageRefresher
from services.console.settings import ConsoleSettings
from shared.adapters.access import Access
from shared.adapters.access_middleware import secure
from shared.adapters.access_rules import Rule
from shared.adapters.http import serve
from shared.adapters.topic_follower import TopicFollower
from shared.ports import Cache, Clock, LogRanges, LogReader, Publisher
from shared.telemetry import Readiness

PAGE: Final = Rule("read", is_page=True)
"""What the page and its WebSocket need. Its buttons need `operate`, which they check when they are clicked."""


@dataclass(frozen=True, slots=True)
class Adapters:
    """What the console uses of the outside world. `__main__` builds the real ones."""

    publisher: Publisher
    cache: Cache
    clock: Clock
    log_ranges: LogRanges
    open_reader: Callable[[Sequence[str]], LogReader]
    """Opens a reader of topics from their beginning."""
    count_feedback: Callable[[int], CountedRecords]
    """Counts the records of `feedback.events` since a time in ms, or raises `Retryable`."""
    count_responses: Callable[[], int]
    """Returns how many records were ever written to `chat.responses`, or raises `Retryable`."""
    access: Access
    """Decides which requests are answered."""


class ConsoleService:
    """One console process. At most one per process, because NiceGUI has global state."""

    def __init__(self, settings: ConsoleSettings, adapters: Adapters) -> None:
        self._settings = settings
        self._adapters = adapters
        readiness = Readiness("log")
        readiness.watch("publisher", lambda: adapters.publisher.problem)
        backend = ConsoleBackend(
            settings, adapters.publisher, adapters.cache, adapters.clock, adapters.count_feedback
        )
        topics = [topic.name for topic in FOLLOWED_TOPICS]
        self._follower = TopicFollower(
            "log", lambda: adapters.open_reader(topics), backend.apply, readiness, _terminate
        )
        self._refresher = PageRefresher(backend, self._follower, adapters.count_responses)
        self.app = build_app(backend, self._follower, readiness, self._lifespan)
        add_dead_letter_routes(self.app, backend, self._follower, DeadLetterReader(adapters.log_ranges))
        add_quarantine_routes(self.app, backend, self._follower)
        add_fallback_route(self.app)
        add_page(self.app, backend, self._refresher, adapters.access)
        if adapters.access.keys is not None:
            readiness.watch("api_keys", lambda: adapters.access.problem)
        secure(self.app, adapters.access, mounts=PAGE)

    def run(self) -> bool:
        """Serve until the process is asked to stop. Return False if the follower failed and stopped it."""
        serve(self.app, self._settings.host, self._settings.port)
        return not self._follower.failed

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        self._follower.start()
        self._refresher.start()
        try:
            yield
        finally:
            await run_in_threadpool(self._refresher.stop)
            await run_in_threadpool(self._follower.stop)
            await run_in_threadpool(self._adapters.publisher.close)


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
