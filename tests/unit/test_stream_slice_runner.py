"""Tests of aborted slices, without Kafka: which record is given up, what is retried, and that retries end."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from shared.dead_letters import DeadLetterLimit
from shared.errors import DeadLetterFlood, Malformed
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
        meanwhile()
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
        limit: DeadLetterLimit | None = None,
        inputs: tuple[str, ...] = ("in",),
    ) -> None:
        limits: dict[str, Any] = {"dead_letter_limit": limit} if limit else {}
        config = EngineConfig(
            kafka=KafkaConnection("broker:9092"),
            application="a",
            instance="one",
            inputs=inputs,
            changelog="changelog",
            dead_letters="dead",
            outputs=frozenset({"out"}),
            slice_records=LARGEST,
            max_failed_ticks=3,
            **limits,
        )
        self.overlapped = False
        """Whether a slice was processed while another was being committed."""
        self.transactions = FakeTransactions(refuses, failure)
        self._now = 0.0
        clock: Any = SimpleNamespace(now_ms=lambda: 1, monotonic=lambda: self._now)
        self.engine: Any = Engine(config, step, clock=clock)
        self.engine._stop = SimpleNamespace(wait=lambda _seconds: None)
        self.engine._inputs = SimpleNamespace(
            group_metadata=lambda: None,
            read=lambda *_: 0,
            high_watermark=lambda *_: None,
            resume_drained=None,
            revoke_reason=None,
            assigned=None,
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
            runner = self.engine._slice_runner
            parts = runner.prepared or self.engine._take_slice(runner.size.records, self._now)
            if parts:
                self.engine._run_slice(parts)
                self.overlapped |= runner.prepared is not None

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


# --- a slice is processed while the one before it is being committed ----------------------------------------------


def counting(state: State, record: Record | Tick) -> Iterator[Output]:
    """Number the records of each key, and delete the count at every fifth."""
    if not isinstance(record, Record):
        return
    assert record.value is not None
    if record.value.startswith(b"bad"):
        raise Malformed("bad record")
    key = record.value[:1]
    count = int(state.get(key) or 0) + 1
    listed = [name for name, _ in state.scan(b"a", b"z")]
    assert (key in listed) == (count > 1), "a scan sees what a read sees"
    if count % 5:
        state.put(key, b"%d" % count)
    else:
        state.delete(key)
    yield Output.to_same_partition_as(record, "out", record.key, b"%s=%d" % (record.value, count))


def expected_counts(inputs: list[bytes]) -> list[bytes]:
    counts: Counter[bytes] = Counter()
    outputs = []
    for value in inputs:
        if not value.startswith(b"bad"):
            counts[value[:1]] = counts[value[:1]] % 5 + 1
            outputs.append(b"%s=%d" % (value, counts[value[:1]]))
    return outputs


@pytest.mark.parametrize("seed", range(60))
def test_overlapping_slices_give_the_results_of_serial_ones(seed: int) -> None:
    """Commits fail at random, for reasons of the environment or because of a record; some records are unreadable."""
    rng = random.Random(seed)
    lists = [
        [b"%s%d" % (rng.choice((b"a", b"b", b"c", b"bad")), n) for n in range(rng.randint(40, 90))]
        for _ in (0, 1)
    ]
    aborts_left = rng.randint(0, 12)

    def refuses(_output: Output) -> bool:
        nonlocal aborts_left
        if aborts_left and rng.random() < 0.02:
            aborts_left -= 1
            return True
        return False

    driver = EngineDriver(
        counting, refuses, lambda: TransactionAborted("away"), DeadLetterLimit(max_share=1.0)
    )
    for partition, inputs in enumerate(lists):
        driver.add(partition, *inputs)
    driver.run_slices(200)
    for partition, inputs in enumerate(lists):
        out = [o.value for o in driver.transactions.log if o.topic == "out" and o.partition == partition]
        assert out == expected_counts(inputs)
    dead = sum(value.startswith(b"bad") for inputs in lists for value in inputs)
    assert len(driver.committed("dead")) == dead
    assert driver.overlapped


def test_records_that_cannot_be_merged_yet_are_not_lost() -> None:
    """Many wait in partition 0 for its other input, while a slice of partition 1 is being committed."""
    driver = EngineDriver(echo, lambda _output: False, inputs=("in", "in2"))
    owned = driver.engine._owned
    driver.add(0, *values(40))
    driver.add(1, b"first")
    owned[1].merge_buffer.mark_end("in2")
    driver.run_slices(1)
    assert driver.committed("out") == [b"first"]
    assert not driver.overlapped
    owned[0].merge_buffer.mark_end("in2")
    driver.run_slices(20)
    assert driver.committed("out") == [b"first", *values(40)]


def test_rereading_partition_is_not_processed_ahead() -> None:
    driver = EngineDriver(counting, lambda _output: False)
    driver.add(0, *values(40))
    driver.engine._owned[1].positions.rereads["out"] = 0
    driver.run_slices(10)
    assert not driver.overlapped
