"""Tests of aborted slices, without Kafka: which record is given up, what is retried, and that retries end."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from shared.adapters.clock import ManualClock
from shared.dead_letters import DeadLetterLimit
from shared.errors import Malformed
from shared.kafka_connection import KafkaConnection
from shared.records import Output, Record
from shared.stream.config import EngineConfig
from shared.stream.engine import Engine, SkipRequest
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
        self.refuse_next = False
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
        if self.refuse_next or any(self._refuses(output) for output in self._open):
            self._open, self.refuse_next = [], False
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
            **limits,
        )
        self.overlapped = False
        """Whether a slice was processed while another was being committed."""
        self.transactions = FakeTransactions(refuses, failure)
        self.added: dict[int, list[Record]] = {0: [], 1: []}
        self.clock = ManualClock()
        self.engine: Any = Engine(config, step, clock=self.clock)
        self.engine._stop = SimpleNamespace(wait=lambda _seconds: None)
        self.engine._inputs = SimpleNamespace(
            group_metadata=lambda: None,
            read=lambda *_: 0,
            high_watermark=lambda *_: None,
            resume_drained=None,
            revoke_reason=None,
            assigned=None,
            last_error=None,
            pause=lambda _partition: None,
        )
        self.engine._rereader = SimpleNamespace(close=lambda: None)
        self.engine._slice_runner.use_producer(self.transactions)
        self.engine._owned = {n: OwnedPartition(n, config, MemoryStore(n)) for n in (0, 1)}
        for partition in self.engine._owned.values():
            partition.positions.time_ms = 1  # as after an earlier record: only then there are ticks
        self.engine._active = dict(self.engine._owned)

    def add(self, partition: int, *values: bytes, distinct_keys: bool = False) -> None:
        """Add input records, the last of which is the end of the input."""
        merge = self.engine._owned[partition].merge_buffer
        for offset, value in enumerate(values):
            record = Record("in", partition, offset, 1, value if distinct_keys else b"k", value)
            merge.add(record)
            self.added[partition].append(record)
        merge.mark_end("in")

    def read_again(self, positions: dict[int, dict[str, int]]) -> None:
        """Read the records of partitions again from their positions, as after a new assignment."""
        for number, offsets in positions.items():
            merge = self.engine._owned[number].merge_buffer
            for record in self.added[number][offsets.get("in", 0) :]:
                merge.add(record)
            merge.mark_end("in")

    def run_slices(self, times: int) -> None:
        for _ in range(times):
            self.clock.wait(1.0)
            runner = self.engine._slice_runner
            parts = runner.prepared or self.engine._take_slice(runner.size.records, self.clock.monotonic())
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
    driver.run_slices(400)
    assert driver.committed("out") == values(30)
    assert driver.committed("dead") == []


def test_refused_output_of_a_tick_stops_nothing_and_is_said() -> None:
    driver = EngineDriver(poison_ticks, lambda output: output.value == b"poison")
    driver.add(0)
    driver.add(1)
    driver.run_slices(400)
    problem = driver.engine._owned[1].problem
    assert "tick raised" in problem
    assert driver.engine._owned[0].problem is None
    assert all(partition.halted is None for partition in driver.engine._owned.values())
    driver.add(1, *values(30, b"late"))
    driver.run_slices(100)
    assert driver.committed("out") == values(30, b"late")


def failing_ticks(_state: State, record: Record | Tick) -> Iterator[Output]:
    if isinstance(record, Tick):
        raise ValueError("year 0 is out of range")  # noqa: TRY004 - the type of the message is no mistake
    yield Output.to_same_partition_as(record, "out", record.key, record.value)


def test_ticks_that_raise_are_tried_less_and_less_often() -> None:
    driver = EngineDriver(failing_ticks, lambda _output: False)
    driver.add(0, b"v0")
    driver.run_slices(300)
    assert 8 <= driver.engine._owned[0].failed_ticks <= 12, "one a minute once it has failed for a while"
    assert "year 0" in driver.engine._owned[0].problem
    assert driver.engine._owned[0].halted is None


def buggy(_state: State, record: Record | Tick) -> Iterator[Output]:
    if isinstance(record, Record):
        if (record.value or b"").startswith(b"bug"):
            raise KeyError("a bug")
        if (record.value or b"").startswith(b"garbage"):
            raise Malformed("not JSON")
        yield Output.to_same_partition_as(record, "out", record.key, record.value)


def test_garbage_without_end_stops_nothing() -> None:
    """I13: any producer can write it."""
    driver = EngineDriver(buggy, lambda _output: False)
    driver.add(0, *values(500, b"garbage"), *values(5))
    driver.run_slices(100)
    assert len(driver.committed("dead")) == 500
    assert driver.committed("out") == values(5)
    (warning,) = driver.engine.warnings
    assert warning.startswith("500 records became dead letters in the last 10 minutes")
    assert "in 0-499: malformed: not JSON" in warning


def test_too_many_errors_halt_their_partition_before_the_next_record() -> None:
    driver = EngineDriver(buggy, lambda _output: False)
    driver.add(0, *values(10), *values(500, b"bug"), b"last", distinct_keys=True)
    driver.add(1, *values(300, b"w"))
    driver.run_slices(200)
    partition = driver.engine._owned[0]
    assert partition.halted_at == ("in", 10 + 20)
    assert "in offset 30" in partition.halted
    assert "KeyError: 'a bug'" in partition.halted
    assert driver.engine.state == "halted"
    assert "partition 0: halted" in driver.engine.reason
    assert partition.positions.offsets == {"in": 30}, "everything before it is committed"
    assert driver.committed("dead") == values(20, b"bug")
    assert [v for v in driver.committed("out") if v and v.startswith(b"w")] == values(300, b"w")
    assert [v for v in driver.committed("out") if v and v.startswith(b"v")] == values(10)
    assert partition.merge_buffer.count() == 481


def halted_driver() -> EngineDriver:
    driver = EngineDriver(buggy, lambda _output: False)
    driver.engine._inputs.start_reading = driver.read_again
    driver.add(0, *values(22, b"bug"), b"last", distinct_keys=True)
    driver.run_slices(100)
    assert driver.engine._owned[0].halted_at == ("in", 20)
    return driver


def request(offset: int, command_id: str = "c1", **options: Any) -> SkipRequest:
    return SkipRequest(
        command_id=command_id,
        topic="in",
        partition=0,
        offset=offset,
        why="skipped by Ann: an import",
        result=lambda status, message: Output(
            "results", command_id.encode(), f"{status}: {message}".encode()
        ),
        **options,
    )


def test_skipped_record_becomes_a_dead_letter_and_the_partition_continues() -> None:
    driver = halted_driver()
    driver.engine._answer_skip(request(20))
    assert driver.committed("results") == [b"done: skipped in 0-20; it is a dead letter now"]
    assert driver.committed("dead")[-1] == b"bug20"
    letter = next(output for output in reversed(driver.transactions.log) if output.topic == "dead")
    assert dict(letter.headers)["dl_class"] == b"skipped"
    assert b"by Ann: an import" in dict(letter.headers)["dl_message"]
    assert driver.engine.state == "running"
    driver.run_slices(50)
    assert driver.engine._owned[0].halted_at == ("in", 21), "each further record needs its own decision"
    driver.engine._answer_skip(request(21, "c2"))
    driver.run_slices(50)
    assert driver.committed("out") == [b"last"]
    assert driver.committed("dead") == values(22, b"bug")


def test_repeated_skip_changes_nothing() -> None:
    driver = halted_driver()
    driver.engine._answer_skip(request(20))
    driver.engine._answer_skip(request(20))
    assert len(driver.committed("results")) == 1


def test_skip_of_another_record_is_refused_with_the_reason() -> None:
    driver = halted_driver()
    driver.engine._answer_skip(request(19))
    (result,) = driver.committed("results")
    assert result is not None
    assert result.startswith(b"refused: in 0-19 was not skipped: partition 0 is not halted at this record")
    assert b"halted at in offset 20" in result
    assert driver.engine._owned[0].halted_at == ("in", 20)
    assert driver.committed("dead") == values(20, b"bug")


def test_skip_in_a_running_partition_is_refused_only_when_it_may_be() -> None:
    driver = EngineDriver(echo, lambda _output: False)
    driver.add(0, *values(5))
    driver.run_slices(3)
    driver.engine._answer_skip(request(5, may_refuse=False))
    assert driver.committed("results") == []
    driver.engine._answer_skip(request(5))
    assert b"it is not halted" in (driver.committed("results")[0] or b"")
    driver.engine._answer_skip(request(5, "c3", refusal="the command is older than a day"))
    assert b"older than a day" in (driver.committed("results")[1] or b"")


def test_skip_of_a_partition_of_another_process_is_left_to_it() -> None:
    driver = EngineDriver(echo, lambda _output: False)
    del driver.engine._owned[0]
    driver.engine._answer_skip(request(5))
    assert driver.transactions.log == []


def test_aborted_skip_leaves_the_partition_halted_and_can_be_repeated() -> None:
    driver = halted_driver()
    driver.transactions.refuse_next = True
    driver.engine._answer_skip(request(20))
    assert driver.engine._owned[0].halted_at == ("in", 20)
    assert driver.committed("results") == []
    driver.engine._answer_skip(request(20))
    assert len(driver.committed("results")) == 1
    assert driver.committed("dead") == values(21, b"bug")


def test_many_errors_of_one_key_do_not_halt() -> None:
    driver = EngineDriver(buggy, lambda _output: False)
    driver.add(0, *values(500, b"bug"), b"last")
    driver.run_slices(200)
    assert driver.engine._owned[0].halted is None
    assert driver.committed("out") == [b"last"]
    assert len(driver.committed("dead")) == 500


def test_halt_is_judged_again_after_an_aborted_slice() -> None:
    aborts = iter([True] * 5)
    driver = EngineDriver(
        buggy, lambda _output: next(aborts, False), lambda: TransactionAborted("the broker is away")
    )
    driver.add(0, *values(500, b"bug"), distinct_keys=True)
    driver.run_slices(200)
    assert driver.engine._owned[0].halted_at == ("in", 20)
    assert driver.committed("dead") == values(20, b"bug")


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
