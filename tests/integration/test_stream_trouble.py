"""The engine on real Kafka where its surroundings fail it: the group, people, the broker, its own step."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

import pytest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource
from structlog.testing import capture_logs
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from shared.errors import Misconfigured
from shared.records import Output, Record
from shared.stream.engine import Engine
from shared.stream.step import State, Tick
from tests.integration.stream_rig import (
    Rig,
    complaints,
    counting,
    drained,
    events,
    processed,
    running,
    swapped,
    until,
)  # fmt: skip


def limited(kafka: str, topic: str, size: int) -> None:
    """The broker refuses what is larger in this topic."""
    entry = ConfigEntry("max.message.bytes", str(size), incremental_operation=AlterConfigOpType.SET)
    asked = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.incremental_alter_configs([asked])[asked].result()


def noise(size: int) -> str:
    """Text that does not get much smaller when it is compressed; as long in bytes."""
    return random.Random(size).randbytes(size // 2).hex()


# --- the group ----------------------------------------------------------------------------------------------------


def test_a_member_that_was_given_up_drops_its_slice_and_comes_back(rig: Rig) -> None:
    """It stands still for longer than the group waits, a slice in hand. Another takes over; its own is aborted."""
    rig.create()
    sent, more = events(400, 20), events(100, 20, "late")
    armed, stands, goes_on = threading.Event(), threading.Event(), threading.Event()

    def probe(phase: str) -> None:
        if phase == "before_transaction" and armed.is_set() and not stands.is_set():
            stands.set()
            assert goes_on.wait(30)

    aborts: list[str] = []
    short = {"session_timeout": 1.5, "transaction_timeout": 1.0}
    # The group gives a member up that has not asked for so long, though it still lives.
    patience = {"max.poll.interval.ms": 1_500}
    plain = counting(rig.out)
    first = Engine(rig.config("one", client=patience, **short), plain, probe=probe, on_abort=aborts.append)
    second = Engine(rig.config("two", **short), counting(rig.out))
    with running(first):
        until(lambda: first.ready, "the first")
        armed.set()
        rig.send(rig.a, swapped(sent))
        assert stands.wait(20)
        with running(second):
            until(drained(second, rig), "the second with all of it")
            goes_on.set()
            until(lambda: bool(aborts), "the first to be told")
            until(lambda: len(first.partitions()) == 1, "the first to be back with its share")
            rig.send(rig.b, swapped(more))
            until(lambda: processed(first, 1)() and processed(second, 1)(), "both at work")
        until(drained(first, rig), "the first with all of it")
    assert complaints(rig, sent | more) == []
    assert rig.read(rig.dead) == [], "no record is to blame for it"


def test_a_transaction_that_outlived_its_time_is_begun_anew_by_itself(rig: Rig) -> None:
    """It stands still with all of a slice sent. The broker aborts that, and shuts its producer out."""
    rig.create()
    sent = events(200, 20)
    stands, goes_on = threading.Event(), threading.Event()

    def probe(phase: str) -> None:
        if phase == "after_produce" and not stands.is_set():
            stands.set()
            assert goes_on.wait(30)

    engine = Engine(rig.config(transaction_timeout=1.0), counting(rig.out), probe=probe)
    with running(engine), capture_logs() as logs:
        until(lambda: engine.ready, "it")
        rig.send(rig.a, swapped(sent))
        assert stands.wait(20)
        # Read to an end that no open transaction holds back: only then has the broker aborted it.
        assert rig.read(rig.out) == []
        goes_on.set()
        until(drained(engine, rig), "all of it", 30)
    assert [log["reason"] for log in logs if log["event"] == "starting anew"] != []
    assert complaints(rig, sent) == []


def test_a_member_that_reads_one_input_only_is_refused_with_a_reason(rig: Rig) -> None:
    """Then the same partition number of every input would not land together."""
    rig.create()
    other = Consumer(
        {"bootstrap.servers": rig.kafka, "group.id": rig.name, "partition.assignment.strategy": "range"}
    )
    other.subscribe([rig.a])
    until(lambda: other.consume(1, 0.1) == [] and len(other.assignment()) == 2, "the other in the group")
    engine = Engine(rig.config(), counting(rig.out))
    with pytest.raises(Misconfigured, match="land together"), running(engine) as thread:  # noqa: PT012 - nested
        deadline = time.monotonic() + 20
        while thread.is_alive() and time.monotonic() < deadline:
            other.consume(1, 0.1)
    assert engine.state == "failed"
    assert rig.a in engine.reason
    other.close()


def test_partitions_are_handed_over_within_seconds_and_nothing_is_left_open(rig: Rig) -> None:
    """Joining and leaving in order: the other is at work again after a rebalance, not after a session timeout."""
    rig.create()
    sent: dict[str, str] = {}
    first, second = (Engine(rig.config(name), counting(rig.out)) for name in ("one", "two"))

    def at_work(engine: Engine, partitions: int, prefix: str) -> float:
        began = time.monotonic()
        until(lambda: len(engine.partitions()) == partitions, f"{partitions} partitions with {prefix}")
        more = events(50, 20, prefix)
        sent.update(more)
        rig.send(rig.a, swapped(more))
        until(lambda: set(rig_events(rig)) >= set(more), f"what came meanwhile: {prefix}")
        return time.monotonic() - began

    with running(second):
        at_work(second, 2, "alone")
        with running(first):
            joined = at_work(first, 1, "joined")
        left = at_work(second, 2, "left")
    assert complaints(rig, sent) == []
    # The group's session is 6 s; a member that is told to stop must not be waited for.
    assert joined < 5
    assert left < 3


def rig_events(rig: Rig) -> list[str]:
    return [message.value().decode().split('"')[1] for message in rig.read(rig.out)]


# --- people -------------------------------------------------------------------------------------------------------


def test_positions_set_from_outside_are_followed_and_told_of(rig: Rig) -> None:
    """A person moves the group forward over records that are not wanted."""
    rig = Rig(rig.kafka, rig.name, partitions=1).create()
    first, unwanted, last = (events(10, 2, prefix) for prefix in "abc")
    rig.send(rig.a, swapped(first))
    engine = Engine(rig.config(), counting(rig.out))
    with running(engine):
        until(processed(engine, 10), "the first ten")
    rig.send(rig.a, swapped(unwanted))
    rig.send(rig.a, swapped(last))
    wanted = ConsumerGroupTopicPartitions(rig.name, [TopicPartition(rig.a, 0, 20)])
    admin = AdminClient({"bootstrap.servers": rig.kafka})
    for attempt in Retrying(  # the member that has just left may not be gone yet
        retry=retry_if_exception_type(KafkaException), stop=stop_after_delay(10), wait=wait_fixed(0.2)
    ):
        with attempt:
            admin.alter_consumer_group_offsets([wanted])[rig.name].result()
    engine = Engine(rig.config(), counting(rig.out))
    with capture_logs() as logs, running(engine):
        until(drained(engine, rig), "the rest")
    assert complaints(rig, first | last) == []
    told = [entry for entry in logs if "set from outside" in entry["event"]]
    assert told[0]["group"][rig.a] == 20
    assert told[0]["state"][rig.a] == 10


def test_a_transaction_time_that_the_broker_refuses_is_named(rig: Rig) -> None:
    rig.create()
    config = rig.config(
        transaction_timeout=1_000.0, session_timeout=1_200.0, client={"max.poll.interval.ms": 1_200_000}
    )
    engine = Engine(config, counting(rig.out))
    with pytest.raises(Misconfigured, match=r"refuses the producer.*timeout"):
        engine.run(threading.Event())
    assert engine.state == "failed"


# --- records and states that no topic takes ----------------------------------------------------------------------


def test_a_state_that_only_the_changelog_refuses_ends_in_a_dead_letter(rig: Rig) -> None:
    rig.create()
    limited(rig.kafka, rig.changelog, 2_000)
    plain = counting(rig.out)

    def step(state: State, record: Record | Tick) -> Iterator[Output]:
        if isinstance(record, Record) and record.value == b"large":
            state.put(b"large", noise(20_000).encode())
        else:
            yield from plain(state, record)

    good = events(20, 4)
    mixed = swapped(good)
    mixed[5:5] = [("k0", "large")]
    rig.send(rig.a, mixed)
    engine = Engine(rig.config(slice_records=4), step)
    with running(engine):
        until(processed(engine, 21), "all records", 40)
    assert complaints(rig, good) == []
    assert [(m.value(), dict(m.headers())["dl_class"]) for m in rig.read(rig.dead)] == [
        (b"large", b"oversized")
    ]


def test_where_even_its_dead_letter_is_refused_a_record_goes_without_its_bytes(rig: Rig) -> None:
    rig.create(dead={"max.message.bytes": "2000"})
    large = noise(20_000)

    def step(state: State, record: Record | Tick) -> Iterator[Output]:
        if isinstance(record, Record) and record.value == large.encode():
            raise ValueError("not to be processed")
        yield from counting(rig.out)(state, record)

    good = events(20, 4)
    mixed = swapped(good)
    mixed[5:5] = [("k0", large)]
    rig.send(rig.a, mixed)
    engine = Engine(rig.config(slice_records=4), step)
    with running(engine):
        until(processed(engine, 21), "all records", 40)
    assert complaints(rig, good) == []
    (letter,) = rig.read(rig.dead)
    headers = dict(letter.headers())
    assert letter.value() is None
    assert headers["dl_omitted"] == str(20_000 + len("k0")).encode()
    assert headers["dl_topic"] == rig.a.encode()


# --- ticks --------------------------------------------------------------------------------------------------------


def test_a_tick_that_raises_is_undone_and_several_in_a_row_halt_the_engine(rig: Rig) -> None:
    rig = Rig(rig.kafka, rig.name, partitions=1).create()
    raises = threading.Event()
    ticks: list[int] = []

    def step(state: State, record: Record | Tick) -> Iterator[Output]:
        if isinstance(record, Record):
            yield from counting(rig.out)(state, record)
            return
        ticks.append(len(ticks))
        state.put(b"of a tick", b"1")
        yield Output.to_same_partition_as(record, rig.out, b"tick", b"must not be written")
        if raises.is_set() or len(ticks) < 3:
            raise RuntimeError("this tick")
        state.delete(b"of a tick")

    engine = Engine(rig.config(tick_interval=0.05, max_failed_ticks=3, outputs=frozenset({rig.out})), step)
    raises.clear()
    with capture_logs() as logs, running(engine):
        until(lambda: len(ticks) >= 2, "two that raise")
        assert engine.ready
        raises.set()
        until(lambda: engine.state == "halted", "halting")
        assert "3 ticks in a row raised" in engine.reason
        assert "this tick" in engine.reason
    assert sum(entry["event"] == "a tick raised" for entry in logs) >= 3
    assert b"of a tick" not in rig.changelog_state()[0]


def test_a_tick_s_output_that_the_broker_refuses_halts_and_costs_no_record(rig: Rig) -> None:
    """No record is to blame: none may become a dead letter for it, and it must not be tried for ever."""
    rig.create()
    limited(rig.kafka, rig.out, 2_000)
    plain = counting(rig.out)
    poisoned = threading.Event()

    def step(state: State, record: Record | Tick) -> Iterator[Output]:
        if isinstance(record, Record):
            yield from plain(state, record)
        elif record.partition == 1 and poisoned.is_set():
            yield Output.to_same_partition_as(record, rig.out, b"tick", noise(20_000).encode())

    sent = events(60, 20)
    engine = Engine(rig.config(tick_interval=0.05, max_failed_ticks=3, slice_records=8), step)
    with running(engine):
        rig.send(rig.a, swapped(sent))
        until(drained(engine, rig), "the first")
        poisoned.set()
        more = events(60, 20, "late")
        rig.send(rig.b, swapped(more))
        until(lambda: engine.state == "halted", "halting", 30)
        assert "ticks in a row" in engine.reason
    assert rig.read(rig.dead) == []
    engine = Engine(rig.config(), plain)
    with running(engine):
        until(drained(engine, rig), "all of it, once that was mended")
    assert complaints(rig, sent | more) == []
