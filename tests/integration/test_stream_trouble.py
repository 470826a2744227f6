"""Tests of the engine on real Kafka when its environment fails: the group, operators, the broker, the step."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Iterator

import pytest
from confluent_kafka import Consumer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource
from structlog.testing import capture_logs

from shared.errors import Misconfigured
from shared.kafka_connection import KafkaConnection, KafkaProperties
from shared.records import Output, Record
from shared.stream import topic_checks
from shared.stream.engine import Engine
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
    set_topic,
    until,
    violations,
)  # fmt: skip


def limit_record_size(kafka: str, topic: str, size: int) -> None:
    """Make the broker refuse larger records in this topic."""
    entry = ConfigEntry("max.message.bytes", str(size), incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.incremental_alter_configs([resource])[resource].result()


def noise(size: int) -> str:
    """Return `size` bytes of text that hardly compresses."""
    return random.Random(size).randbytes(size // 2).hex()


# --- settings of the topics ---------------------------------------------------------------------------------------


def test_input_without_append_time_is_refused_with_the_command(rig: Rig) -> None:
    rig.create(b=CREATE)
    engine = Engine(rig.config(), counting_step(rig.out))
    with pytest.raises(
        Misconfigured, match=r"\.b: message\.timestamp\.type is CreateTime.*topic_admin --apply"
    ):
        engine.run(threading.Event())
    set_topic(rig.kafka, rig.b, "message.timestamp.type", "LogAppendTime")
    set_topic(rig.kafka, rig.changelog, "cleanup.policy", "delete")
    engine = Engine(rig.config(), counting_step(rig.out))
    with pytest.raises(Misconfigured, match=r"changelog: cleanup\.policy is delete.*topic_admin --apply"):
        engine.run(threading.Event())


def test_records_from_before_append_time_are_processed(rig: Rig) -> None:
    """Their producers stamped them with the far future, which must not become the partitions' time."""
    rig.create(a=CREATE | {"message.timestamp.after.max.ms": str(2**62)})
    old, new = events(20, 20, "old"), events(20, 20, "new")
    rig.send(rig.a, as_records(old), [4_000_000_000_000] * 20)
    set_topic(rig.kafka, rig.a, "message.timestamp.type", "LogAppendTime")
    rig.send(rig.a, as_records(new))
    engine = Engine(rig.config(), counting_step(rig.out))
    with running(engine):
        until(drained(engine, rig), "all of it")
        limit_ms = time.time() * 1000 + 60_000
        assert all(p.time_ms < limit_ms for p in engine.partitions())
    assert violations(rig, old | new) == []


def test_setting_that_changes_while_the_engine_runs_ends_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topic_checks, "CHECK_INTERVAL_S", 0.2)
    rig.create()
    engine = Engine(rig.config(), counting_step(rig.out))
    with pytest.raises(Misconfigured, match=r"message\.timestamp\.type"), running(engine) as thread:  # noqa: PT012 - nested
        until(lambda: engine.ready, "the engine")
        set_topic(rig.kafka, rig.a, "message.timestamp.type", "CreateTime")
        thread.join(20)
    assert engine.state == "failed"


# --- the group ----------------------------------------------------------------------------------------------------


def test_removed_member_drops_its_slice_and_rejoins(rig: Rig) -> None:
    """It hangs with a slice for longer than the group waits. Another member takes over, and its slice is aborted."""
    rig.create()
    sent, more = events(400, 20), events(100, 20, "late")
    armed, hanging, may_continue = threading.Event(), threading.Event(), threading.Event()

    def probe(phase: str) -> None:
        if phase == "before_transaction" and armed.is_set() and not hanging.is_set():
            hanging.set()
            assert may_continue.wait(30)

    aborts: list[str] = []
    short = {"session_timeout": 1.5, "transaction_timeout": 1.0}
    # The group removes a member that has not polled for this long, although it is alive.
    patience = KafkaConnection(rig.kafka, properties=KafkaProperties({"max.poll.interval.ms": "1500"}))
    plain = counting_step(rig.out)
    first = Engine(rig.config("one", kafka=patience, **short), plain, probe=probe, on_abort=aborts.append)
    second = Engine(rig.config("two", **short), counting_step(rig.out))
    with running(first):
        until(lambda: first.ready, "the first")
        armed.set()
        rig.send(rig.a, as_records(sent))
        assert hanging.wait(20)
        with running(second):
            until(drained(second, rig), "the second with all of it")
            may_continue.set()
            until(lambda: bool(aborts), "an abort of the first")
            until(lambda: len(first.partitions()) == 1, "the first to rejoin")
            rig.send(rig.b, as_records(more))
            until(lambda: processed(first, 1)() and processed(second, 1)(), "records processed by both")
        until(drained(first, rig), "the first with all of it")
    assert violations(rig, sent | more) == []
    assert rig.read(rig.dead) == [], "no record caused it"


def test_timed_out_transaction_is_repeated(rig: Rig) -> None:
    """The engine hangs after sending a slice. The broker aborts the transaction and fences the producer."""
    rig.create()
    sent = events(200, 20)
    hanging, may_continue = threading.Event(), threading.Event()

    def probe(phase: str) -> None:
        if phase == "after_produce" and not hanging.is_set():
            hanging.set()
            assert may_continue.wait(30)

    engine = Engine(rig.config(transaction_timeout=1.0), counting_step(rig.out), probe=probe)
    with running(engine), capture_logs() as logs:
        until(lambda: engine.ready, "the engine")
        rig.send(rig.a, as_records(sent))
        assert hanging.wait(20)
        # This returns only once no transaction is open, so the broker has aborted it.
        assert rig.read(rig.out) == []
        may_continue.set()
        until(drained(engine, rig), "all of it", 30)
    assert [log["reason"] for log in logs if log["event"] == "restarting clients"] != []
    assert violations(rig, sent) == []


def test_member_that_reads_only_one_input_is_refused(rig: Rig) -> None:
    """Otherwise the same partition of every input would not be assigned to one member."""
    rig.create()
    other = Consumer(
        {"bootstrap.servers": rig.kafka, "group.id": rig.name, "partition.assignment.strategy": "range"}
    )
    other.subscribe([rig.a])
    until(lambda: other.consume(1, 0.1) == [] and len(other.assignment()) == 2, "the other in the group")
    engine = Engine(rig.config(), counting_step(rig.out))
    with pytest.raises(Misconfigured, match="assigned to one member"), running(engine) as thread:  # noqa: PT012 - nested
        deadline = time.monotonic() + 20
        while thread.is_alive() and time.monotonic() < deadline:
            other.consume(1, 0.1)
    assert engine.state == "failed"
    assert rig.a in engine.reason
    other.close()


def test_partitions_are_handed_over_within_seconds(rig: Rig) -> None:
    """After a member joins or leaves cleanly, the other continues after a rebalance, not after a session timeout."""
    rig.create()
    sent: dict[str, str] = {}
    first, second = (Engine(rig.config(name), counting_step(rig.out)) for name in ("one", "two"))

    def seconds_until_processing(engine: Engine, partitions: int, prefix: str) -> float:
        began = time.monotonic()
        until(lambda: len(engine.partitions()) == partitions, f"{partitions} partitions with {prefix}")
        more = events(50, 20, prefix)
        sent.update(more)
        rig.send(rig.a, as_records(more))
        until(lambda: set(committed_events(rig)) >= set(more), f"the events sent meanwhile: {prefix}")
        return time.monotonic() - began

    with running(second):
        seconds_until_processing(second, 2, "alone")
        with running(first):
            joined = seconds_until_processing(first, 1, "joined")
        left = seconds_until_processing(second, 2, "left")
    assert violations(rig, sent) == []
    # The session timeout is 6 s. A member that stops cleanly must not be waited for.
    assert joined < 5
    assert left < 3


def committed_events(rig: Rig) -> list[str]:
    return [message.value().decode().split('"')[1] for message in rig.read(rig.out)]


# --- operators ----------------------------------------------------------------------------------------------------


def test_transaction_timeout_refused_by_the_broker_is_reported(rig: Rig) -> None:
    rig.create()
    patience = KafkaConnection(rig.kafka, properties=KafkaProperties({"max.poll.interval.ms": "1200000"}))
    config = rig.config(transaction_timeout=1_000.0, session_timeout=1_200.0, kafka=patience)
    engine = Engine(config, counting_step(rig.out))
    with pytest.raises(Misconfigured, match=r"refuses the producer.*timeout"):
        engine.run(threading.Event())
    assert engine.state == "failed"


# --- records and states that the broker refuses -------------------------------------------------------------------


def test_state_refused_by_the_changelog_becomes_a_dead_letter(rig: Rig) -> None:
    rig.create()
    limit_record_size(rig.kafka, rig.changelog, 2_000)
    plain = counting_step(rig.out)

    def step(state: State, record: Record | Tick) -> Iterator[Output]:
        if isinstance(record, Record) and record.value == b"large":
            state.put(b"large", noise(20_000).encode())
        else:
            yield from plain(state, record)

    good = events(20, 4)
    mixed = as_records(good)
    mixed[5:5] = [("k0", "large")]
    rig.send(rig.a, mixed)
    engine = Engine(rig.config(slice_records=4), step)
    with running(engine):
        until(processed(engine, 21), "all records", 40)
    assert violations(rig, good) == []
    assert [(m.value(), dict(m.headers())["dl_class"]) for m in rig.read(rig.dead)] == [
        (b"large", b"oversized")
    ]


def test_refused_dead_letter_is_written_without_its_value(rig: Rig) -> None:
    rig.create(dead={"max.message.bytes": "2000"})
    large = noise(20_000)

    def step(state: State, record: Record | Tick) -> Iterator[Output]:
        if isinstance(record, Record) and record.value == large.encode():
            raise ValueError("refused on purpose")
        yield from counting_step(rig.out)(state, record)

    good = events(20, 4)
    mixed = as_records(good)
    mixed[5:5] = [("k0", large)]
    rig.send(rig.a, mixed)
    engine = Engine(rig.config(slice_records=4), step)
    with running(engine):
        until(processed(engine, 21), "all records", 40)
    assert violations(rig, good) == []
    (dead_letter,) = rig.read(rig.dead)
    headers = dict(dead_letter.headers())
    assert dead_letter.value() is None
    assert headers["dl_omitted"] == str(20_000 + len("k0")).encode()
    assert headers["dl_topic"] == rig.a.encode()


# --- ticks --------------------------------------------------------------------------------------------------------


def test_ticks_that_raise_are_undone_and_stop_no_record(rig: Rig) -> None:
    rig = Rig(rig.kafka, rig.name, partitions=1).create()
    raises = threading.Event()
    ticks: list[int] = []

    def step(state: State, record: Record | Tick) -> Iterator[Output]:
        if isinstance(record, Record):
            yield from counting_step(rig.out)(state, record)
            return
        ticks.append(len(ticks))
        state.put(b"of a tick", b"1")
        yield Output.to_same_partition_as(record, rig.out, b"tick", b"must not be written")
        if raises.is_set() or len(ticks) < 3:
            raise RuntimeError("this tick")
        state.delete(b"of a tick")

    engine = Engine(rig.config(tick_interval=0.05, outputs=frozenset({rig.out})), step)
    raises.clear()
    rig.send(rig.a, as_records(events(1, 1, "first")))  # there are no ticks before the first record
    with capture_logs() as logs, running(engine):
        until(lambda: len(ticks) >= 2, "two that raise")
        assert engine.ready
        raises.set()
        # The status is published less often than the first ticks are repeated.
        until(
            lambda: any(
                re.search(r"tick raised ([3-9]|\d\d+) times in a row", warning) for warning in engine.warnings
            ),
            "the warning",
            30,
        )
        assert "this tick" in engine.warnings[0]
        rig.send(rig.a, as_records(events(20, 5)))
        until(drained(engine, rig), "records all the same")
        assert engine.ready
    assert sum(entry["event"] == "a notification raised" for entry in logs) >= 3
    assert b"of a tick" not in rig.changelog_state()[0]


def test_refused_output_of_a_tick_costs_no_record(rig: Rig) -> None:
    """No record caused it, so none may become a dead letter for it; and it must not be retried forever."""
    rig.create()
    limit_record_size(rig.kafka, rig.out, 2_000)
    plain = counting_step(rig.out)
    poisoned = threading.Event()

    def step(state: State, record: Record | Tick) -> Iterator[Output]:
        if isinstance(record, Record):
            yield from plain(state, record)
        elif record.partition == 1 and poisoned.is_set():
            yield Output.to_same_partition_as(record, rig.out, b"tick", noise(20_000).encode())

    sent = events(60, 20)
    engine = Engine(rig.config(tick_interval=0.05, slice_records=8), step)
    with running(engine):
        rig.send(rig.a, as_records(sent))
        until(drained(engine, rig), "the first")
        poisoned.set()
        more = events(60, 20, "late")
        rig.send(rig.b, as_records(more))
        until(
            lambda: any("partition 1: tick raised" in warning for warning in engine.warnings),
            "the warning",
            30,
        )
        until(drained(engine, rig), "the records all the same")
    assert rig.read(rig.dead) == []
    engine = Engine(rig.config(), plain)
    with running(engine):
        until(drained(engine, rig), "all of it, once the step was fixed")
    assert violations(rig, sent | more) == []
