"""Tests of aborted slices, without Kafka: which record is given up, what is retried, and that retries end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from shared.errors import DeadLetterFlood
from shared.kafka_connection import KafkaConnection
from shared.records import Output, Record
from shared.stream.config import EngineConfig
from shared.stream.engine import Engine
from shared.stream.partition import OwnedPartition
from shared.stream.state_store import MemoryStore
from shared.stream.step import State, Tick
from shared.stream.transaction import TransactionAborted

LARGEST = 8


class FakeTransactions:
    """Records committed outputs in `log`. Aborts a commit if `refuses` returns True for one of its outputs."""

    def __init__(self, refuses: Callable[[Output], bool], failure: Callable[[], TransactionAborted]) -> None:
        self.log: list[Output] = []
        self.attempts = 0
        self._open: list[Output] = []
        self._refuses, self._failure = refuses, failure

    def produce(self, outputs: Iterable[Output]) -> None:
        self._open += outputs

    def produce_tracked(self, output: Output, on_offset: Callable[[int, int | None], None]) -> None:
        self._open.append(output)
        on_offset(len(self.log) + len(self._open), None)

    def produce_changelog(self, topic: str, partition: int, writes: dict[bytes, bytes | None]) -> None:
        self._open += [Output(topic, key, value, (), partition) for key, value in writes.items()]

    def commit(
        self,
        _positions: object,
        _group: object,
        *,
        meanwhile: Callable[[], None],
        before_commit: Callable[[], None],
    ) -> None:
        self.attempts += 1
        if any(self._refuses(output) for output in self._open):
            self._open = []
            raise self._failure()
        before_commit()
        self.log += self._open
        self._open = []


class EngineDriver:
    """An engine with two partitions whose slices are run one by one, without Kafka."""

    def __init__(
        self,
        step: Callable[[State, Record | Tick], Iterator[Output]],
        refuses: Callable[[Output], bool],
        failure: Callable[[], TransactionAborted] = lambda: TransactionAborted(
            "refused", caused_by_record=True, oversized=True
        ),
    ) -> None:
        config = EngineConfig(
            kafka=KafkaConnection("broker:9092"),
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
        self.engine._inputs = SimpleNamespace(
            group_metadata=lambda: None,
            read=lambda *_: 0,
            high_watermark=lambda *_: None,
            resume_drained=None,
        )
        self.engine._rereader = SimpleNamespace(close=lambda: None)
        self.engine._slice_runner.use_producer(self.transactions)
        self.engine._owned = {n: OwnedPartition(n, config, MemoryStore(n)) for n in (0, 1)}
        for partition in self.engine._owned.values():
            partition.positions.time_ms = 1  # as after an earlier record: only then there are ticks
        self.engine._active = dict(self.engine._owned)
        self._now = 0.0

    def add(self, partition: int, *values: bytes) -> None:
        """Add input records, the last of which is the end of the input."""
        merge = self.engine._owned[partition].merge_buffer
        for offset, value in enumerate(values):
            merge.add(Record("in", partition, offset, 1, b"k", value))
        merge.mark_end("in")

    def run_slices(self, times: int) -> None:
        for _ in range(times):
            self._now += 1.0
            parts = self.engine._take_slice(self.engine._slice_runner.size.records, self._now)
            if parts:
                self.engine._run_slice(parts)

    def committed(self, topic: str) -> list[bytes | None]:
        return [output.value for output in self.transactions.log if output.topic == topic]


def echo(_state: State, record: Record | Tick) -> Iterator[Output]:
    if isinstance(record, Record):
        yield Output.to_same_partition_as(record, "out", record.key, record.value)


def values(count: int, prefix: bytes = b"v") -> list[bytes]:
    return [b"%s%d" % (prefix, n) for n in range(count)]


def test_only_the_record_that_the_broker_refuses_is_given_up() -> None:
    driver = EngineDriver(echo, lambda output: output.topic == "out" and output.value == b"v5")
    driver.add(0, *values(20))
    driver.add(1, *values(20, b"w"))
    driver.run_slices(60)
    assert sorted(v for v in driver.committed("out") if v) == sorted(
        {*values(20), *values(20, b"w")} - {b"v5"}
    )
    assert driver.committed("dead") == [b"v5"]


def test_refused_dead_letter_is_written_without_its_value() -> None:
    driver = EngineDriver(echo, lambda output: output.topic in ("out", "dead") and output.value == b"v5")
    driver.add(0, *values(20))
    driver.run_slices(60)
    assert sorted(v for v in driver.committed("out") if v) == sorted({*values(20)} - {b"v5"})
    assert driver.committed("dead") == [None]


def test_aborts_not_caused_by_a_record_give_none_up() -> None:
    aborts_left = 200

    def unreachable(_output: Output) -> bool:
        nonlocal aborts_left
        aborts_left -= 1
        return aborts_left > 0

    driver = EngineDriver(echo, unreachable, lambda: TransactionAborted("the broker is unreachable"))
    driver.add(0, *values(20))
    driver.run_slices(300)
    assert driver.committed("out") == values(20)
    assert driver.committed("dead") == []
    assert driver.transactions.attempts > 50


def test_missing_permission_waits_with_its_reason_and_passes_by_itself() -> None:
    granted = False
    reason = "the principal may not write to out: grant WRITE and DESCRIBE on the topic"
    driver = EngineDriver(
        echo,
        lambda output: output.topic == "out" and not granted,
        lambda: TransactionAborted(reason, lasting=True),
    )
    driver.add(0, *values(20))
    driver.run_slices(100)
    assert (driver.engine.state, driver.engine.reason) == ("waiting", reason)
    driver.engine._inputs.last_error = None
    driver.engine._update_status(0.0)
    assert driver.engine.state == "waiting", "a broker that answers is not enough"
    granted = True
    driver.run_slices(30)
    assert driver.engine.state == "running"
    assert driver.committed("out") == values(20)
    assert driver.committed("dead") == []


def test_dead_letter_keeps_value_and_reason_after_a_broker_failure() -> None:
    """The broker fails exactly when the record was given up."""
    failures = 2

    def refuses(output: Output) -> bool:
        nonlocal failures
        if output.topic == "dead" and failures:
            failures -= 1
            return True
        return output.topic == "out" and output.value == b"v5"

    def failure() -> TransactionAborted:
        if failures < 2:
            return TransactionAborted("the broker was unreachable")
        return TransactionAborted("refused", caused_by_record=True, oversized=True)

    driver = EngineDriver(echo, refuses, failure)
    driver.add(0, *values(6))
    driver.run_slices(60)
    assert driver.committed("dead") == [b"v5"]
    (dead_letter,) = (output for output in driver.transactions.log if output.topic == "dead")
    assert dict(dead_letter.headers)["dl_class"] == b"oversized"


def poison_ticks(_state: State, record: Record | Tick) -> Iterator[Output]:
    """Write an output that the broker refuses on every tick of partition 1."""
    if isinstance(record, Tick):
        if record.partition == 1:
            yield Output.to_same_partition_as(record, "out", b"tick", b"poison")
    else:
        yield Output.to_same_partition_as(record, "out", record.key, record.value)


def test_refused_output_of_a_tick_costs_no_record() -> None:
    driver = EngineDriver(poison_ticks, lambda output: output.value == b"poison")
    driver.add(1)
    driver.add(0, *values(30))
    with pytest.raises(DeadLetterFlood, match="ticks in a row"):
        driver.run_slices(400)
    assert driver.committed("out") == values(30)
    assert driver.committed("dead") == []


def test_refused_output_of_a_tick_is_not_retried_forever() -> None:
    driver = EngineDriver(poison_ticks, lambda output: output.value == b"poison")
    driver.add(0)
    driver.add(1)
    with pytest.raises(DeadLetterFlood, match="ticks in a row raised in partition 1"):
        driver.run_slices(400)


class ClosingStore(MemoryStore):
    """Store that notes whether it was closed."""

    closed = False

    def close(self) -> None:
        self.closed = True


def test_lost_partitions_are_dropped_without_a_commit() -> None:
    driver = EngineDriver(echo, lambda _output: False)
    stores = [ClosingStore(n) for n in (0, 1)]
    driver.engine._owned = {
        n: OwnedPartition(n, driver.engine.config, store) for n, store in enumerate(stores)
    }
    driver.add(0, *values(3))
    driver.add(1, *values(3))
    driver.engine._release_partitions("lost: the group removed this member")
    driver.run_slices(3)
    assert all(store.closed for store in stores)
    assert driver.engine.partitions() == ()
    assert driver.transactions.log == []
    assert "lost" in driver.engine.reason
    assert not driver.engine.ready
