"""The refresher that all pages read from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from services.console.backend import ConsoleBackend
from services.console.core.ledger import CountedRecords
from services.console.pages.refresher import STALE_MS, PageRefresher
from services.console.settings import ConsoleSettings
from shared.adapters import redis_keys
from shared.adapters.clock import ManualClock
from shared.adapters.in_memory import InMemoryCache, InMemoryLog, InMemoryLogReader, InMemoryPublisher
from shared.adapters.topic_follower import TopicFollower
from shared.errors import BrokerUnavailable
from shared.live_status import RunProgress
from shared.telemetry import Readiness

NOW = datetime(2026, 3, 4, tzinfo=UTC)


class StubFollower(TopicFollower):
    """A follower whose progress the test sets."""

    is_caught_up = True

    @property
    def caught_up(self) -> bool:
        return self.is_caught_up


@dataclass
class RefresherRig:
    """A refresher, and what it reads from."""

    refresher: PageRefresher
    clock: ManualClock
    cache: InMemoryCache
    follower: StubFollower
    counts: dict[str, int | None]
    """What the broker counts; None if it is not reachable."""


@pytest.fixture
def rig() -> RefresherRig:
    clock, log = ManualClock(), InMemoryLog(6)
    counts: dict[str, int | None] = {"responses": 40, "accepted": 10}
    cache = InMemoryCache(clock)

    def count(name: str) -> int:
        value = counts[name]
        if value is None:
            raise BrokerUnavailable("away")
        return value

    backend = ConsoleBackend(
        ConsoleSettings(),
        InMemoryPublisher(log, "console"),
        cache,
        clock,
        lambda _: CountedRecords(count("accepted"), complete=True),
    )
    follower = StubFollower(
        "log", lambda: InMemoryLogReader(log, []), backend.apply, Readiness("log"), lambda: None
    )
    refresher = PageRefresher(backend, follower, lambda: count("responses"))
    return RefresherRig(refresher, clock, cache, follower, counts)


def test_page_is_empty_until_the_log_has_been_read(rig: RefresherRig) -> None:
    rig.follower.is_caught_up = False
    rig.refresher.refresh()
    assert not rig.refresher.view.log_read
    rig.follower.is_caught_up = True
    rig.refresher.refresh()
    assert (rig.refresher.view.log_read, rig.refresher.view.loop.arrows[0].count) == (True, "40")
    assert rig.refresher.view.feedback.accepted == "10"


def test_refreshes_add_up_to_a_rate_and_a_loss_curve(rig: RefresherRig) -> None:
    for second in range(10):
        rig.counts["accepted"] = 10 + second * 3
        run = RunProgress(
            run_id="r", stage="training", step=second, steps=20, loss=2 - second / 10, updated_at=NOW
        )
        rig.cache.put(redis_keys.run_progress("assistant"), run.to_json(), ttl_s=60)
        rig.refresher.refresh()
        rig.clock.advance(1)
    assert rig.refresher.view.feedback.rate == "180 per minute"
    assert rig.refresher.view.run is not None
    assert len(rig.refresher.view.run.losses) == 10
    assert "polyline" in rig.refresher.parts["run"]


def test_unreachable_broker_leaves_the_page_working(rig: RefresherRig) -> None:
    rig.counts.update(responses=None, accepted=None)
    rig.refresher.refresh()
    assert rig.refresher.view.loop.arrows[0].count == "–"
    assert "Kafka is not reachable" in rig.refresher.parts["headline"]


def test_page_that_is_not_refreshed_is_stale(rig: RefresherRig) -> None:
    rig.refresher.refresh()
    assert not rig.refresher.stale
    rig.clock.advance(STALE_MS / 1000 + 1)
    assert rig.refresher.stale
