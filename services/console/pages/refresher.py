"""Reads the facts once a second, however many pages are open, and draws them once for all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import structlog

from services.console.api.routes import ConsoleBackend
from services.console.core import responses
from services.console.pages.page_data import PageData
from services.console.pages.rates import RollingCounters, Sample
from services.console.pages.render import render
from services.console.pages.view_model import PageView, build_view
from shared.adapters.topic_follower import TopicFollower
from shared.errors import Retryable
from shared.events import from_ms
from shared.topics import CHAT_RESPONSES

PERIOD_S = 1.0
STALE_MS = 40_000
"""Longer than a reading takes where Kafka does not answer."""
STOP_S = 10.0
log = structlog.get_logger(__name__)


class PageRefresher:
    """The newest view of the console's line, and each part of the page as HTML. Pages only look at it.

    `chats` says how many responses the log has taken; it raises `Retryable`.
    """

    def __init__(self, console: ConsoleBackend, follower: TopicFollower, chats: Callable[[], int]) -> None:
        self._console = console
        self._follower = follower
        self._chats = chats
        self._history = RollingCounters()
        self._stopping = threading.Event()
        self._read_ms = console.clock.now_ms()
        self._thread = threading.Thread(target=self._run, name="board", daemon=True)
        self.line = console.settings.line
        self.view: PageView = build_view(PageData(self.line, from_ms(console.clock.now_ms())))
        self.parts: Mapping[str, str] = render(self.view)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when the thread has ended (within bounds)."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_S)

    @property
    def stale(self) -> bool:
        """Whether what is shown may no longer be so."""
        return self._console.clock.now_ms() - self._read_ms > STALE_MS

    def refresh(self) -> None:
        """Reads once. Called by the board's own thread."""
        view = build_view(self._facts())
        self.view, self.parts = view, render(view)
        self._read_ms = self._console.clock.now_ms()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.refresh()
            except Retryable as error:
                log.warning("board_not_refreshed", code=error.code)
            self._stopping.wait(PERIOD_S)

    def _facts(self) -> PageData:
        console, line = self._console, self.line
        now = from_ms(console.clock.now_ms())
        if not self._follower.caught_up:
            return PageData(line, now)
        status, chats = console.status(line), self._count_chats()
        with console.lock:
            versions = tuple(responses.versions(console.state, line))
            rollout = tuple(responses.rollout(console.state, line))
            letters = tuple(responses.dead_letters(console.state))
        counters = {
            "chats": chats,
            "accepted": status["accepted"],
            "batches": status["batches"]["count"],
            "versions": len(versions),
            "seq": status["serving"]["seq"] if status["serving"] else 0,
        }
        history = self._history
        history.add(Sample(console.clock.now_ms(), counters))
        history.follow(status["run"])
        return PageData(
            line=line,
            now=now,
            status=status,
            versions=versions,
            rollout=rollout,
            letters=letters,
            chats=chats,
            per_minute=history.per_minute("accepted"),
            moving=history.moving(),
            losses=tuple(history.losses),
        )

    def _count_chats(self) -> int | None:
        with self._console.lock:
            again = self._console.state.sent_again[CHAT_RESPONSES.name]
        try:
            return max(0, self._chats() - again)
        except Retryable:
            return None
