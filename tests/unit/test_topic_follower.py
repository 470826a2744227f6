"""The thread that follows topics into memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import pytest

from shared.adapters import topic_follower
from shared.adapters.in_memory import InMemoryLog, InMemoryLogReader
from shared.adapters.topic_follower import TopicFollower
from shared.errors import BrokerUnavailable, Fatal, NotPermitted
from shared.ports import LogReader
from shared.records import Output, Record
from shared.telemetry import Readiness

TOPIC = "model.versions"


def write(log: InMemoryLog, *values: bytes) -> None:
    log.append(*[Output(TOPIC, b"k", value) for value in values])


class Seen:
    """Records that were applied, and a way to wait for them."""

    def __init__(self) -> None:
        self.values: list[bytes | None] = []
        self.changed = threading.Condition()

    def apply(self, records: Sequence[Record]) -> None:
        with self.changed:
            self.values += [record.value for record in records]
            self.changed.notify_all()

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.values) >= count, 10), self.values


def test_follower_applies_existing_and_new_records() -> None:
    log, seen, readiness = InMemoryLog(), Seen(), Readiness("versions")
    write(log, b"1", b"2")
    follower = TopicFollower(
        "versions",
        lambda: InMemoryLogReader(log, [TOPIC]),
        seen.apply,
        readiness,
        lambda: None,
    )
    assert not readiness.report()[0]
    follower.start()
    seen.wait_for(2)
    write(log, b"3")
    seen.wait_for(3)
    assert seen.values == [b"1", b"2", b"3"]
    assert follower.caught_up
    assert readiness.report()[0]
    follower.stop()
    assert not follower.failed


def test_follower_waits_for_an_unreachable_broker() -> None:
    log, seen, readiness = InMemoryLog(), Seen(), Readiness("versions")
    write(log, b"1")
    away = [BrokerUnavailable("nobody there")]

    def opened() -> LogReader:
        if away:
            raise away.pop()
        return InMemoryLogReader(log, [TOPIC])

    follower = TopicFollower("versions", opened, seen.apply, readiness, lambda: None)
    follower.start()
    seen.wait_for(1)
    follower.stop()
    assert not follower.failed


def test_read_error_makes_the_service_unready() -> None:
    log, readiness, reported = InMemoryLog(), Readiness("versions"), threading.Event()
    write(log, b"1", b"2")
    log.trim(TOPIC, 0, 2)
    write(log, b"3")
    follower = TopicFollower(
        "versions",
        lambda: InMemoryLogReader(log, [TOPIC], {(TOPIC, 0): 1}),
        lambda records: pytest.fail(f"skipped to {records}"),
        readiness,
        reported.set,
    )
    follower.start()
    assert reported.wait(10)
    assert follower.failed
    assert not follower.caught_up
    assert not readiness.report()[0]
    follower.stop()


def test_unreadable_topic_fails_the_check_until_it_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_follower, "REOPEN_S", 0.01)
    log, seen, readiness = InMemoryLog(), Seen(), Readiness("versions")
    write(log, b"1")
    reader = InMemoryLogReader(log, [TOPIC])
    follower = TopicFollower("versions", lambda: reader, seen.apply, readiness, lambda: None)
    follower.start()
    wait_until(lambda: follower.caught_up)
    reader.failure = NotPermitted("the principal may not read model.versions: grant READ")
    wait_until(lambda: not follower.caught_up)
    wait_until(lambda: "grant READ" in readiness.report()[1]["versions"])
    assert not readiness.report()[0]
    assert not follower.failed
    reader.failure = None
    write(log, b"2")
    seen.wait_for(2)
    wait_until(lambda: follower.caught_up and readiness.report()[0])
    follower.stop()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_stop_before_start_is_allowed() -> None:
    def never() -> LogReader:
        raise Fatal("opened all the same")

    follower = TopicFollower("versions", never, lambda records: None, Readiness("versions"), lambda: None)
    follower.stop()
    assert not follower.failed
