"""Thread that reads the page's data once a second and renders it once for all open pages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from services.console.backend import ConsoleBackend
from services.console.pages.page_data import PageData
from services.console.pages.rates import LossCurve, RollingCounters, Sample
from services.console.pages.render import render
from services.console.pages.view_model import PageView, build_view
from shared.adapters.topic_follower import TopicFollower
from shared.errors import Retryable
from shared.events import from_ms
from shared.topics import CHAT_RESPONSES

PERIOD_S: Final = 1.0
STALE_MS: Final = 40_000
"""A page older than this is stale. Longer than a refresh takes while Kafka does not answer."""
STOP_S: Final = 10.0
log = structlog.get_logger(__name__)


class PageRefresher:
    """The newest view of the console's line, and the HTML of its parts. Pages only read these attributes.

    `count_responses` returns how many records were ever written to `chat.responses`; it raises `Retryable` if Kafka is
    not reachable.
    """

    def __init__(
        self, backend: ConsoleBackend, follower: TopicFollower, count_responses: Callable[[], int]
    ) -> None:
        self._backend = backend
        self._follower = follower
        self._count_responses = count_responses
        self._counters = RollingCounters()
        self._losses = LossCurve()
        self._stopping = threading.Event()
        self._refreshed_ms = backend.clock.now_ms()
        self._thread = threading.Thread(target=self._run, name="page-refresher", daemon=True)
        self.line = backend.settings.line
        self.view: PageView = build_view(PageData(self.line, from_ms(backend.clock.now_ms())))
        self.parts: Mapping[str, str] = render(self.view)

    def start(self) -> None:
        """Start refreshing."""
        self._thread.start()

    def stop(self) -> None:
        """Stop refreshing; return when the thread has ended, after at most `STOP_S` seconds."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_S)

    @property
    def stale(self) -> bool:
        """Whether the page has not been refreshed for too long."""
        return self._backend.clock.now_ms() - self._refreshed_ms > STALE_MS

    def refresh(self) -> None:
        """Read and render once. The thread calls this once a second."""
        view = build_view(self._read())
        self.view, self.parts = view, render(view)
        self._refreshed_ms = self._backend.clock.now_ms()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.refresh()
            except Retryable as error:
                log.warning("page_not_refreshed", code=error.code, error=str(error))
            self._stopping.wait(PERIOD_S)

    def _read(self) -> PageData:
        backend, line = self._backend, self.line
        now = from_ms(backend.clock.now_ms())
        if not self._follower.caught_up:
            return PageData(line, now)
        collected, run = backend.collected(line), backend.run_progress(line)
        status, responses = backend.status(line, collected, run), self._response_count()
        versions = tuple(backend.versions(line))
        self._losses.add(run)
        self._counters.add(
            Sample(
                backend.clock.now_ms(),
                {
                    "responses": responses,
                    "accepted": status["accepted"],
                    "batches": status["batches"]["count"],
                    "versions": len(versions),
                    "decisions": status["serving"]["seq"] if status["serving"] else 0,
                },
            )
        )
        return PageData(
            line=line,
            now=now,
            status=status,
            collected=collected,
            run=run,
            versions=versions,
            rollout=tuple(backend.rollout(line)),
            rollout_state=backend.rollout_state(line),
            dead_letters=tuple(backend.dead_letters()),
            responses=responses,
            events_per_minute=self._counters.per_minute("accepted"),
            growing=self._counters.growing(),
            losses=tuple(self._losses.points),
        )

    def _response_count(self) -> int | None:
        replayed = self._backend.replayed_count(CHAT_RESPONSES.name)
        try:
            return max(0, self._count_responses() - replayed)
        except Retryable:
            return None
