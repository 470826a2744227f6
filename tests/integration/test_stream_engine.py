"""Tests of the engine on real Kafka: its guarantees while nothing fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from shared.adapters.clock import SystemClock
from shared.dead_letters import DeadLetterLimit
from shared.errors import Fenced, Misconfigured
from shared.kafka_connection import KafkaConnection
from shared.partitioning import partition_for
from shared.records import Output, Record
from shared.stream.engine import Engine, SkipRequest
from shared.stream.slice_runner import CommitStats
from shared.stream.state_store import MemoryStore
from shared.stream.step import State, Tick
from tests.integration.stream_rig import (
    CREATE,
    Rig,
    as_records,
    counting_step,
    drained,
    events,
    processed,
    running,
    set_group_offset,
    until,
    violations,
)  # fmt: skip


def test_inputs_are_counted_once_across_a_restart(rig: Rig) -> None:
    rig.create()
    commits: list[CommitStats] = []
    first, second = events(3_000, 50, "a"), events(3_000, 50, "b")
    rig.send(rig.a, as_records(first))
    engine = Engine(rig.config(), counting_step(rig.out), on_commit=commits.append)
    with running(engine):
        until(processed(engine, 3_000), "the first half")
        until(drained(engine, rig), "no lag at the end")
        assert engine.ready
        assert sum(p.keys for p in engine.partitions()) >= 50
    assert sum(commit.records for commit in commits) == 3_000
    rig.send(rig.b, as_records(second))
    stores: dict[int, MemoryStore] = {}
    engine = Engine(
        rig.config("two"), counting_step(rig.out), open_store=lambda n: stores.setdefault(n, MemoryStore(n))
    )
    with running(engine):
        until(processed(engine, 3_000), "the second half")
    assert violations(rig, first | second) == []
    restored = {n: dict(store.scan(b"\x01", b"\xff")) for n, store in stores.items()}
    assert restored == rig.changelog_state()


def test_record_that_raises_becomes_a_dead_letter_without_state(rig: Rig) -> None:
    rig.create()
    good = events(20, 4)
    rig.send(rig.a, [*as_records(good), ("k1", "bad one"), ("only-bad", "bad two")])
    commits: list[CommitStats] = []
    engine = Engine(rig.config(service="processor"), counting_step(rig.out), on_commit=commits.append)
    with running(engine):
        until(processed(engine, 22), "all records")
    assert violations(rig, good) == []
    dead = {message.value(): message for message in rig.read(rig.dead)}
    assert set(dead) == {b"bad one", b"bad two"}
    headers = dict(dead[b"bad two"].headers())
    assert dead[b"bad two"].key() == b"only-bad"
    assert headers["dl_topic"] == rig.a.encode()
    assert headers["dl_class"] == b"rejected"
    assert headers["dl_message"] == b"bad two must not be counted"
    assert headers["dl_service"] == b"processor"
    assert {"dl_partition", "dl_offset", "dl_timestamp"} <= set(headers)
    assert [kind for commit in commits for kind in commit.dead_letters] == ["rejected", "rejected"]


def test_too_many_errors_halt_only_their_partition(rig: Rig) -> None:
    rig.create()
    by_partition = {
        n: [f"k{k}" for k in range(400) if partition_for(f"k{k}".encode(), 2) == n] for n in (0, 1)
    }
    bugs = [(key, f"bug {key}") for key in by_partition[0][:100]]
    good = {f"e{key}": key for key in by_partition[1][:100]}
    rig.send(rig.a, bugs)
    rig.send(rig.a, as_records(good))
    engine = Engine(
        rig.config(dead_letter_limit=DeadLetterLimit(window=100, max_count=10)), counting_step(rig.out)
    )
    with running(engine):
        until(lambda: engine.state == "halted", "halting")
        assert f"partition 0: halted at {rig.a} offset 10" in engine.reason
        assert "LookupError" in engine.reason
        assert not engine.ready
        more = {f"l{key}": key for key in by_partition[1][:50]}
        rig.send(rig.a, as_records(more))
        until(lambda: engine.partitions()[1].positions[rig.a] == 150, "the other partition")
        assert engine.partitions()[0].positions[rig.a] == 10
    assert len(rig.read(rig.dead)) == 10
    assert violations(rig, good | more) == []


def test_halted_partition_continues_without_the_records_that_a_person_skips(rig: Rig) -> None:
    rig.create()
    keys = [key for key in (f"k{k}" for k in range(400)) if partition_for(key.encode(), 2) == 0]
    rig.send(rig.a, [(key, f"bug {key}") for key in keys[:12]])
    good = {f"e{key}": key for key in keys[20:120]}
    rig.send(rig.a, as_records(good))
    engine = Engine(
        rig.config(dead_letter_limit=DeadLetterLimit(window=100, max_count=10)), counting_step(rig.out)
    )

    def skip(offset: int) -> SkipRequest:
        return SkipRequest(
            command_id=f"skip-{offset}",
            topic=rig.a,
            partition=0,
            offset=offset,
            why="skipped by a test",
            result=lambda status, message: Output(
                rig.dead, b"result", f"{status}: {message}".encode(), (), 0
            ),
        )

    with running(engine):
        until(lambda: engine.state == "halted", "halting")
        engine.request_skip(skip(3))
        engine.request_skip(skip(10))
        until(lambda: f"{rig.a} offset 11" in engine.reason, "the next halt")
        late = {f"l{key}": key for key in keys[20:40]}
        rig.send(rig.b, as_records(late))  # read while the partition is halted, and not lost
        engine.request_skip(skip(11))
        until(lambda: engine.ready, "processing")
        until(lambda: engine.partitions()[0].positions == {rig.a: 112, rig.b: 20}, "all of it")
    letters = rig.read(rig.dead)
    results = [message.value().decode() for message in letters if message.key() == b"result"]
    assert [result.split(":")[0] for result in results] == ["refused", "done", "done"]
    classes = [dict(message.headers())["dl_class"] for message in letters if message.key() != b"result"]
    assert classes == [b"LookupError"] * 10 + [b"skipped"] * 2
    assert violations(rig, good | late) == []


def test_garbage_without_end_halts_nothing(rig: Rig) -> None:
    rig.create()
    rig.send(rig.a, [(f"k{n}", f"bad {n}") for n in range(2_000)])
    good = events(50, 20)
    rig.send(rig.b, as_records(good))
    engine = Engine(rig.config(), counting_step(rig.out))
    with running(engine):
        until(drained(engine, rig), "all of it")
        assert engine.ready
        assert "2000 records became dead letters" in engine.warnings[0]
    assert len(rig.read(rig.dead)) == 2_000
    assert violations(rig, good) == []


def test_idle_partition_gets_regular_ticks(rig: Rig) -> None:
    rig.create()
    rig.send(rig.a, as_records(events(20, 20)))
    clock = SkippingClock()
    beats: dict[int, list[float]] = {0: [], 1: []}
    stamps: dict[int, list[int]] = {0: [], 1: []}

    def step(state: State, record: Record | Tick) -> Iterator[Output]:
        if isinstance(record, Tick):
            beats[record.partition].append(time.monotonic())
            stamps[record.partition].append(record.timestamp)
            if record.timestamp >= record.stream_ms + 40_000 and state.get(b"done") is None:
                state.put(b"done", b"yes")
                yield Output.to_same_partition_as(record, rig.out, b"tick", b"done")

    engine = Engine(rig.config(tick_interval=0.3), step, clock=clock)
    with running(engine):
        until(lambda: min(len(each) for each in beats.values()) >= 4, "ticks")
        assert rig.read(rig.out) == []  # nothing to commit, nothing written
        clock.skipped_s = 40.0
        until(lambda: len(rig.read(rig.out)) == 2, "the output of a tick in each partition")
        before = {n: len(each) for n, each in beats.items()}
        until(lambda: all(len(beats[n]) >= before[n] + 2 for n in beats), "more ticks")
        assert len(rig.read(rig.out)) == 2
    gaps = sorted(b - a for each in beats.values() for a, b in pairwise(each[:4]))
    assert gaps[0] > 0.28
    assert gaps[len(gaps) // 2] < 0.6
    assert all(each == sorted(each) for each in stamps.values())


class SkippingClock(SystemClock):
    """A clock for which more time has passed than for the system."""

    skipped_s = 0.0

    def now_ms(self) -> int:
        return super().now_ms() + round(self.skipped_s * 1000)

    def monotonic(self) -> float:
        return super().monotonic() + self.skipped_s


class SettableClock(SystemClock):
    """A clock whose wall time is wrong."""

    error_s = 0.0

    def now_ms(self) -> int:
        return super().now_ms() + round(self.error_s * 1000)


@pytest.mark.parametrize("error_s", [-86_400.0, 31 * 86_400.0])
def test_wrong_wall_clock_stops_ticks_until_it_is_right(rig: Rig, error_s: float) -> None:
    rig.create()
    rig.send(rig.a, as_records(events(20, 20)))
    clock = SettableClock()
    ticks: list[Tick] = []

    def step(_state: State, record: Record | Tick) -> list[Output]:
        if isinstance(record, Tick):
            ticks.append(record)
        return []

    engine = Engine(rig.config(tick_interval=0.1), step, clock=clock)
    with running(engine):
        until(lambda: len(ticks) >= 4, "ticks")
        clock.error_s = error_s
        until(lambda: engine.clock_check != "ok", "noticing")
        assert (
            f"{abs(error_s):.0f} s {'ahead of' if error_s > 0 else 'behind'} the broker's"
            in engine.clock_check
        )
        assert engine.ready
        before = len(ticks)
        rig.send(rig.a, as_records(events(20, 20, "more")))
        until(drained(engine, rig), "the records sent meanwhile")
        assert len(ticks) == before
        clock.error_s = 0.0
        until(lambda: len(ticks) > before + 4, "ticks again")
        until(lambda: engine.clock_check == "ok", "recovery")
        now_ms = clock.now_ms()
        assert all(abs(p.time_ms - now_ms) < 60_000 for p in engine.partitions())
    assert all(abs(tick.timestamp - now_ms) < 60_000 for tick in ticks)


def test_topics_are_merged_by_time_in_bounded_buffers(rig: Rig) -> None:
    """All of `a` is in the log before any of `b`, although their append times interleave."""
    rig = Rig(rig.kafka, rig.name, partitions=1).create(a=CREATE, b=CREATE)
    base, count = 1_700_000_000_000, 1_500
    for topic, shift in ((rig.a, 0), (rig.b, 1)):
        times = (base + 10 * (n // 100) + shift for n in range(count))
        rig.send(topic, [("k", f"{topic}{n}") for n in range(count)], times)
    seen: list[tuple[int, str, int]] = []
    largest = 0

    def step(_state: State, record: Record | Tick) -> list[Output]:
        nonlocal largest
        if isinstance(record, Record):
            seen.append((record.timestamp, record.topic, record.offset))
            largest = max(
                largest, *(p.merge_buffer.bytes_of(t) for p in engine._owned.values() for t in (rig.a, rig.b))
            )
        return []

    # The buffers hold 256 records of each input, which has 1,500: reading must pause and resume many times.
    config = rig.config(buffer_bytes=512 * 1_100, slice_records=100, require_append_time=False)
    engine = Engine(config, step)
    with running(engine):
        until(processed(engine, 2 * count), "both topics")
    assert len(seen) == 2 * count
    assert seen == sorted(seen)
    assert largest < (256 + 100 + 1) * 1_100


def test_output_refused_by_the_broker_is_isolated(rig: Rig) -> None:
    rig.create(out={"max.message.bytes": "2000", "compression.type": "uncompressed"})
    plain = counting_step(rig.out)
    noise = "".join(chr(33 + (n * n * 7919 + n // 3) % 90) for n in range(40_000))

    def step(state: State, record: Record | Tick) -> Iterator[Output]:
        yield from plain(state, record)
        if isinstance(record, Record) and record.value == b"large":
            yield Output.to_same_partition_as(record, rig.out, b"k", noise.encode())

    good = events(40, 4)
    mixed = as_records(good)
    mixed[7:7] = [("k0", "large")]
    rig.send(rig.a, mixed)
    aborts: list[str] = []
    engine = Engine(rig.config(slice_records=4), step, on_abort=aborts.append)
    with running(engine):
        until(processed(engine, 41), "all records", 40)
    assert violations(rig, good) == []
    dead = {message.value(): dict(message.headers())["dl_class"] for message in rig.read(rig.dead)}
    assert dead == {b"large": b"oversized"}
    assert aborts


def test_oversized_outputs_and_states_are_dead_letters_at_once(rig: Rig) -> None:
    rig.create()

    def step(state: State, record: Record | Tick) -> Iterator[Output]:
        if isinstance(record, Record):
            if record.value == b"state":
                state.put(b"k", bytes(1_001))
            if record.value == b"foreign":
                yield Output("another.service", b"k", b"v")
            yield Output.to_same_partition_as(
                record, rig.out, b"k", bytes(1_001) if record.value == b"output" else b"fine"
            )

    rig.send(rig.a, [("k", kind) for kind in ("state", "output", "foreign", "fine")])
    aborts: list[str] = []
    engine = Engine(rig.config(max_record_bytes=1_000), step, on_abort=aborts.append)
    with running(engine):
        until(processed(engine, 4), "all records")
    assert [message.value() for message in rig.read(rig.out)] == [b"fine"]
    classes = {
        dict(message.headers())["dl_offset"]: dict(message.headers()) for message in rig.read(rig.dead)
    }
    assert sorted(each["dl_class"] for each in classes.values()) == [
        b"ValueError",
        b"oversized",
        b"oversized",
    ]
    assert aborts == []


def test_expired_group_continues_from_the_changelog(rig: Rig) -> None:
    rig.create()
    first, second = events(100, 5, "a"), events(100, 5, "b")
    rig.send(rig.a, as_records(first))
    engine = Engine(rig.config(), counting_step(rig.out))
    with running(engine):
        until(processed(engine, 100), "the first half")
    admin = AdminClient({"bootstrap.servers": rig.kafka})
    admin.delete_consumer_groups([rig.name])[rig.name].result()
    rig.send(rig.a, as_records(second))
    engine = Engine(rig.config(), counting_step(rig.out))
    with running(engine):
        until(processed(engine, 100), "the second half")
    assert violations(rig, first | second) == []


def test_group_offsets_behind_the_state_do_not_count(rig: Rig) -> None:
    """An operator, or a broker that lost the group's newest offsets, moved the group back: nothing counts twice."""
    rig = Rig(rig.kafka, rig.name, partitions=1).create()
    first, second = events(10, 2, "a"), events(10, 2, "b")
    rig.send(rig.a, as_records(first))
    engine = Engine(rig.config(), counting_step(rig.out))
    with running(engine):
        until(processed(engine, 10), "the first ten")
    set_group_offset(rig, rig.a, 3)
    rig.send(rig.a, as_records(second))
    engine = Engine(rig.config(), counting_step(rig.out))
    with running(engine):
        until(drained(engine, rig), "the rest")
    assert violations(rig, first | second) == []


def test_records_deleted_before_they_were_processed_halt_the_partition(rig: Rig) -> None:
    rig = Rig(rig.kafka, rig.name, partitions=1).create()
    rig.send(rig.a, as_records(events(10, 1, "a")))
    engine = Engine(rig.config(), counting_step(rig.out))
    with running(engine):
        until(processed(engine, 10), "the first ten")
    rig.send(rig.a, as_records(events(10, 1, "b")))
    admin = AdminClient({"bootstrap.servers": rig.kafka})
    for future in admin.delete_records([TopicPartition(rig.a, 0, 15)]).values():
        future.result()
    engine = Engine(rig.config(), counting_step(rig.out))
    with running(engine):
        until(lambda: engine.state == "halted", "halting")
        assert f"the position 10 in {rig.a} is not in the log" in engine.reason
        assert engine.partitions()[0].halted is not None


def test_second_process_with_the_same_name_fences_the_first(rig: Rig) -> None:
    rig.create()
    sent = events(40, 4)
    halves = as_records(sent)
    first = Engine(rig.config("same", session_timeout=6.0), counting_step(rig.out))
    second = Engine(rig.config("same", session_timeout=6.0), counting_step(rig.out))
    with pytest.raises(Fenced, match="same"), running(first) as thread:  # noqa: PT012 - two engines, nested
        until(lambda: first.ready, "the first")
        rig.send(rig.a, halves[:20])
        until(processed(first, 20), "the first half")
        with running(second):
            until(lambda: second.ready, "the second")
            rig.send(rig.a, halves[20:])
            thread.join(20)
            until(lambda: len(second.partitions()) == 2, "all partitions with the second")
            until(drained(second, rig), "the second half")
    assert first.state == "failed"
    assert violations(rig, sent) == []


def test_inputs_with_different_numbers_of_partitions_are_refused(rig: Rig) -> None:
    rig.create()
    other = Rig(rig.kafka, f"{rig.name}x", partitions=3).create()
    engine = Engine(rig.config(inputs=(rig.a, other.a)), counting_step(rig.out))
    with pytest.raises(Misconfigured, match="same number of partitions"):
        engine.run(threading.Event())
    engine = Engine(rig.config(partitions=6), counting_step(rig.out))
    with pytest.raises(Misconfigured, match="same number of partitions"):
        engine.run(threading.Event())


def test_engine_waits_for_missing_topics(rig: Rig) -> None:
    engine = Engine(rig.config(), counting_step(rig.out))
    with running(engine):
        until(lambda: engine.state == "waiting", "waiting")
        assert rig.a in engine.reason
        assert not engine.ready
        rig.create()
        until(lambda: engine.ready, "recovery")


def test_engine_waits_for_the_broker_and_can_be_stopped(rig: Rig) -> None:
    engine = Engine(rig.config(kafka=KafkaConnection("127.0.0.1:9")), counting_step(rig.out))
    with running(engine):
        until(lambda: engine.state == "waiting", "waiting")
        assert "127.0.0.1:9" in engine.reason
    assert engine.state == "stopped"
