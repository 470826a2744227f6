"""Slices that are aborted, without Kafka: who is blamed, what is tried again, and that it comes to an end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from shared.errors import DeadLetterFlood
from shared.records import Output, Record
from shared.stream.config import EngineConfig
from shared.stream.engine import Engine
from shared.stream.partition import OwnedPartition
from shared.stream.state_store import MemoryStore
from shared.stream.step import State, Tick
from shared.stream.transaction import TransactionAborted

LARGEST = 8


class FakeTransactions:
    """Keeps what was committed; refuses as told."""

    def __init__(self, refuses: Callable[[Output], bool], failure: Callable[[], TransactionAborted]) -> None:
        self.log: list[Output] = []
        self.attempts = 0
        self._open: list[Output] = []
        self._refuses, self._failure = refuses, failure
        self._last: Callable[[int], None] = lambda _offset: None

    def produce(self, outputs: Iterable[Output]) -> None:
        self._open += outputs

    def produce_tracked(self, output: Output, delivered: Callable[[int], None]) -> None:
        self._open.append(output)
        delivered(len(self.log) + len(self._open))

    def produce_changelog(self, topic: str, partition: int, writes: dict[bytes, bytes | None]) -> None:
        self._open += [Output(topic, key, value, (), partition) for key, value in writes.items()]

    def commit(
        self, _positions: object, _group: object, *, meanwhile: Callable[[], None], sent: Callable[[], None]
    ) -> None:
        self.attempts += 1
        if any(self._refuses(output) for output in self._open):
            self._open = []
            raise self._failure()

        sent()
        self.log += self._open
        self._open = []


class At:
    """An engine with two partitions, turned by hand."""

    def __init__(
        self,
        step: Callable[[State, Record | Tick], Iterator[Output]],
        refuses: Callable[[Output], bool],
        failure: Callable[[], TransactionAborted] = lambda: TransactionAborted("refused", caused_by_record=True, oversized=True),
    ) -> None:
        config = EngineConfig(
            bootstrap_servers="broker:9092",
            application="a",
            instance="one",
            inputs=("in",),
            changelog="changelog",
            dead_letters="dead",
            outputs=frozenset({"out"}),
            slice_records=LARGEST,
            max_failed_ticks=3,
        )
        self.transactions = FakeTransactions(refuses, failure)
        self.engine: Any = Engine(config, step)
        self.engine._stop = SimpleNamespace(wait=lambda _seconds: None)
        self.engine._inputs = SimpleNamespace(group_metadata=lambda: None, read=lambda *_: 0)
        self.engine._rereader = SimpleNamespace(close=lambda: None)
        self.engine._slice_runner.use_producer(self.transactions)
        self.engine._owned = {n: OwnedPartition(n, config, MemoryStore(n)) for n in (0, 1)}
        self._now = 0.0

    def add(self, partition: int, *values: bytes) -> None:
        merge = self.engine._owned[partition].merge_buffer
        for offset, value in enumerate(values):
            merge.add(Record("in", partition, offset, 1, b"k", value))
        merge.mark_end("in")

    def turn(self, times: int) -> None:
        for _ in range(times):
            self._now += 1.0
            shares = self.engine._take(self.engine._slice_runner.size.records, self._now)
            if shares:
                self.engine._run_slice(shares)

    def written(self, topic: str) -> list[bytes | None]:
        return [output.value for output in self.transactions.log if output.topic == topic]


def echo(_state: State, record: Record | Tick) -> Iterator[Output]:
    if isinstance(record, Record):
        yield Output.to_same_partition_as(record, "out", record.key, record.value)


def values(count: int, prefix: bytes = b"v") -> list[bytes]:
    return [b"%s%d" % (prefix, n) for n in range(count)]


def test_a_record_that_the_broker_refuses_is_given_up_and_no_other() -> None:
    at = At(echo, lambda output: output.topic == "out" and output.value == b"v5")
    at.add(0, *values(20))
    at.add(1, *values(20, b"w"))
    at.turn(60)
    assert sorted(v for v in at.written("out") if v) == sorted({*values(20), *values(20, b"w")} - {b"v5"})
    assert at.written("dead") == [b"v5"]


def test_where_its_dead_letter_is_refused_too_it_goes_without_its_bytes() -> None:
    at = At(echo, lambda output: output.topic in ("out", "dead") and output.value == b"v5")
    at.add(0, *values(20))
    at.turn(60)
    assert sorted(v for v in at.written("out") if v) == sorted({*values(20)} - {b"v5"})
    assert at.written("dead") == [None]


def test_no_record_is_given_up_for_aborts_that_no_record_is_to_blame_for() -> None:
    left = 200

    def away(_output: Output) -> bool:
        nonlocal left
        left -= 1
        return left > 0

    at = At(echo, away, lambda: TransactionAborted("the broker is away"))
    at.add(0, *values(20))
    at.turn(300)
    assert at.written("out") == values(20)
    assert at.written("dead") == []
    assert at.transactions.attempts > 50


def test_a_dead_letter_that_meets_a_passing_trouble_keeps_its_bytes_and_its_reason() -> None:
    """The one abort that no record is to blame for comes just when the record was given up."""
    troubles = 2

    def refuses(output: Output) -> bool:
        nonlocal troubles
        if output.topic == "dead" and troubles:
            troubles -= 1
            return True
        return output.topic == "out" and output.value == b"v5"

    def failure() -> TransactionAborted:
        if troubles < 2:
            return TransactionAborted("the broker was away")
        return TransactionAborted("refused", caused_by_record=True, oversized=True)

    at = At(echo, refuses, failure)
    at.add(0, *values(6))
    at.turn(60)
    assert at.written("dead") == [b"v5"]
    (letter,) = (output for output in at.transactions.log if output.topic == "dead")
    assert dict(letter.headers)["dl_class"] == b"oversized"


def poisoned(_state: State, record: Record | Tick) -> Iterator[Output]:
    """What the ticks of partition 1 bring is refused."""
    if isinstance(record, Tick):
        if record.partition == 1:
            yield Output.to_same_partition_as(record, "out", b"tick", b"poison")
    else:
        yield Output.to_same_partition_as(record, "out", record.key, record.value)


def test_a_tick_s_output_that_the_broker_refuses_costs_no_record() -> None:
    at = At(poisoned, lambda output: output.value == b"poison")
    at.add(1)
    at.add(0, *values(30))
    with pytest.raises(DeadLetterFlood, match="ticks in a row"):
        at.turn(400)
    assert at.written("out") == values(30)
    assert at.written("dead") == []


def test_a_tick_s_output_that_the_broker_refuses_is_not_tried_for_ever() -> None:
    at = At(poisoned, lambda output: output.value == b"poison")
    at.add(0)
    at.add(1)
    with pytest.raises(DeadLetterFlood, match="ticks in a row raised in partition 1"):
        at.turn(400)


class Closing(MemoryStore):
    closed = False

    def close(self) -> None:
        self.closed = True


def test_what_was_lost_is_dropped_unwritten() -> None:
    at = At(echo, lambda _output: False)
    stores = [Closing(n) for n in (0, 1)]
    at.engine._owned = {n: OwnedPartition(n, at.engine.config, store) for n, store in enumerate(stores)}
    at.add(0, *values(3))
    at.add(1, *values(3))
    at.engine._drop("lost: the group gave this member up")
    at.turn(3)
    assert all(store.closed for store in stores)
    assert at.engine.partitions() == ()
    assert at.transactions.log == []
    assert "lost" in at.engine.reason
    assert not at.engine.ready
