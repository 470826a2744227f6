"""The console over adapters in memory. NiceGUI has global state, so a process has one, whose keys can be changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from fastapi import FastAPI

from services.console.core.ledger import CountedRecords
from services.console.service import Adapters, ConsoleService
from services.console.settings import ConsoleSettings
from shared.adapters.access import Access
from shared.adapters.clock import ManualClock
from shared.adapters.in_memory import (
    InMemoryCache,
    InMemoryLog,
    InMemoryLogRanges,
    InMemoryLogReader,
    InMemoryPublisher,
)


class ChangeableAccess(Access):
    """Access that decides as another one does."""

    def use(self, other: Access) -> None:
        """Decide as `other` from now on."""
        vars(self).update(vars(other))


@cache
def _only_console() -> tuple[FastAPI, ChangeableAccess]:
    access, clock = ChangeableAccess(), ManualClock()
    log = InMemoryLog(3, clock)
    adapters = Adapters(
        publisher=InMemoryPublisher(log, "console"),
        cache=InMemoryCache(clock),
        clock=clock,
        log_ranges=InMemoryLogRanges(log),
        open_reader=lambda topics: InMemoryLogReader(log, topics),
        count_feedback=lambda _: CountedRecords(0, complete=True),
        count_responses=lambda: 0,
        access=access,
    )
    return ConsoleService(ConsoleSettings(), adapters).app, access


@contextmanager
def console_app(access: Access) -> Iterator[FastAPI]:
    """Return the console's app, which decides as `access` inside the block and needs no keys after it."""
    app, changeable = _only_console()
    changeable.use(access)
    try:
        yield app
    finally:
        changeable.use(Access())
