"""The engine on real Kafka, undisturbed: what it promises while nothing fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from shared.adapters.clock import ManualClock
from shared.errors import Fenced, Misconfigured
from shared.stream.dead_letters import DeadLetterLimit
from shared.stream.engine import Engine
from shared.stream.slices import Commit
from shared.stream.step import Output, Record, State, Tick
from shared.stream.store import MemoryStore
from tests.fault.stream_rig import CREATE, Rig, complaints, counting, processed, running, until


@pytest.fixture
def rig(kafka: str, fresh: str) -> Rig:
    return Rig(kafka, fresh)


def events(count: int, keys: int, prefix: str = "e") -> dict[str, str]:
    return {f"{prefix}{n}": f"k{n % keys}" for n in range(count)}


def swapped(sent: dict[str, str]) -> list[tuple[str, str]]:
    return [(key, event) for event, key in sent.items()]


def test_every_input_is_counted_once_and_a_restart_goes_on_from_the_changelog(rig: Rig) -> None:
    rig.create()
    commits: list[Commit] = []
    first, second = events(3_000, 50, "a"), events(3_000, 50, "b")
    rig.send(rig.a, swapped(first))
    engine = Engine(rig.config(), counting(rig.out), on_commit=commits.append)
    with running(engine):
        until(processed(engine, 3_000), "the first half")
        until(lambda: all(sum(p.lag.values()) == 0 for p in engine.partitions()), "no lag at the end")
        assert engine.ready
        assert sum(p.keys for p in engine.partitions()) >= 50
    assert sum(commit.records for commit in commits) == 3_000
    rig.send(rig.b, swapped(second))
    stores: dict[int, MemoryStore] = {}
    engine = Engine(
        rig.config("two"), counting(rig.out), open_store=lambda n: stores.setdefault(n, MemoryStore(n))
    )
    with running(engine):
        until(processed(engine, 3_000), "the second half")
    assert complaints(rig, first | second) == []
    held = {n: dict(store.scan(b"\x01", b"\xff")) for n, store in stores.items()}
    assert held == rig.changelog_state()
