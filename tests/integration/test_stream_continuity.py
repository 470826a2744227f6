"""Tests on real Kafka of partitions that may not go on, and of the command that lets them go on."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from shared.records import Record
from shared.stream import topic_checks
from shared.stream.engine import Engine
from shared.stream.recovery import run_recover
from shared.stream.rocksdb_store import RocksDBStoreFactory
from tests.integration.stream_rig import (
    APPEND,
    Rig,
    as_records,
    counting_step,
    drained,
    events,
    processed,
    running,
    set_group_offset,
    set_topic,
    until,
    violations,
)

COMPACTED = {"cleanup.policy": "compact"} | APPEND


@pytest.fixture
def one(rig: Rig) -> Rig:
    """Topics with one partition."""
    return Rig(rig.kafka, rig.name, partitions=1).create()


def recreate(rig: Rig, topic: str, config: dict[str, str] = APPEND) -> None:
    """Delete a topic and create it again under the same name."""
    admin = AdminClient({"bootstrap.servers": rig.kafka})
    admin.delete_topics([topic])[topic].result()
    for attempt in Retrying(  # a topic that was just deleted takes a moment to disappear
        retry=retry_if_exception_type(KafkaException), stop=stop_after_delay(10), wait=wait_fixed(0.1)
    ):
        with attempt:
            admin.create_topics([NewTopic(topic, rig.partitions, 1, config=config)])[topic].result()


def cut(rig: Rig, topic: str, low: int) -> None:
    """Delete the records of partition 0 before an offset."""
    admin = AdminClient({"bootstrap.servers": rig.kafka})
    for future in admin.delete_records([TopicPartition(topic, 0, low)]).values():
        future.result()


def process(rig: Rig, sent: dict[str, str], folder: Path | None = None) -> None:
    """Send and process records until nothing is left."""
    engine = make_engine(rig, folder)
    with running(engine):
        rig.send(rig.a, as_records(sent))
        until(lambda: engine.ready and len(engine.partitions()) == rig.partitions, "the partitions")
        until(drained(engine, rig), "all that was sent")


def make_engine(rig: Rig, folder: Path | None = None, **settings: Any) -> Engine:
    config = rig.config(numbered_outputs=(rig.out,), **settings)
    if folder is None:
        return Engine(config, counting_step(rig.out))
    return Engine(config, counting_step(rig.out), open_store=RocksDBStoreFactory(folder, cache_mb=8))


def halt_reason(rig: Rig, folder: Path | None = None) -> str:
    """Start an engine, wait until it halts, and return the reason. It must have written nothing."""
    before = len(rig.read(rig.out)), len(rig.read(rig.changelog))
    engine = make_engine(rig, folder)
    with running(engine):
        until(lambda: engine.state == "halted", "halting")
        assert not engine.ready
        assert all(p.halted for p in engine.partitions())
        reason = engine.reason
    assert (len(rig.read(rig.out)), len(rig.read(rig.changelog))) == before
    return reason


class NumberedCounts:
    """`Numbering` of the counting step: the count of each key continues above those in the log."""

    processed_once: frozenset[str] = frozenset()

    def __init__(self, topic: str) -> None:
        self.topic = topic

    def is_needed(self, _key: bytes) -> bool:
        return True

    def writes(self, records: Iterable[Record], state: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        highest: dict[bytes, int] = {}
        for record in records:
            count = int((record.value or b"").split(b",")[1].strip(b" ]"))
            highest[record.key or b""] = max(count, highest.get(record.key or b"", 0))
        return {key: b"%d" % count for key, count in highest.items() if int(state.get(key, b"0")) < count}


def recover(rig: Rig, source: str, *, apply: bool = True) -> None:
    options = argparse.Namespace(partition=0, source=source, apply=apply)
    for attempt in Retrying(  # the broker may not have removed the former member yet
        retry=retry_if_exception_type(SystemExit),
        stop=stop_after_delay(15),
        wait=wait_fixed(0.5),
        reraise=True,
    ):
        with attempt:
            run_recover(options, lambda: rig.config(numbered_outputs=(rig.out,)), NumberedCounts(rig.out))


def test_lost_changelog_halts_and_counts_go_on_above_the_log(one: Rig, tmp_path: Path) -> None:
    first, second = events(10, 2, "a"), events(10, 2, "b")
    process(one, first, tmp_path)
    recreate(one, one.changelog, COMPACTED)
    one.send(one.a, as_records(second))
    assert "the local store still has the old state" in halt_reason(one, tmp_path).lower()
    assert "the changelog holds no state" in halt_reason(one), "with a new store"
    recover(one, "group", apply=False)
    assert "the changelog holds no state" in halt_reason(one), "a dry run changes nothing"
    recover(one, "group")
    process(one, {}, tmp_path)
    assert violations(one, first | second) == []


def test_lost_changelog_and_group_halt_because_of_numbered_outputs(one: Rig) -> None:
    process(one, events(10, 2))
    recreate(one, one.changelog, COMPACTED)
    admin = AdminClient({"bootstrap.servers": one.kafka})
    for attempt in Retrying(
        retry=retry_if_exception_type(KafkaException), stop=stop_after_delay(10), wait=wait_fixed(0.2)
    ):
        with attempt:
            admin.delete_consumer_groups([one.name])[one.name].result()
    assert f"{one.out} has records of this partition" in halt_reason(one)


def test_cut_changelog_halts_new_owners_until_a_person_accepts_it(one: Rig, tmp_path: Path) -> None:
    first, second = events(10, 2, "a"), events(10, 2, "b")
    process(one, first, tmp_path / "old")
    process(one, second, tmp_path / "new")
    newest = {message.key(): message.offset() for message in one.read(one.changelog)}
    set_topic(one.kafka, one.changelog, "cleanup.policy", "compact,delete")
    cut(one, one.changelog, min(newest[b"k0"], newest[b"k1"]) + 1)
    set_topic(one.kafka, one.changelog, "cleanup.policy", "compact")
    assert "before offset" in halt_reason(one, tmp_path / "old")
    assert "before offset" in halt_reason(one)
    recover(one, "changelog")
    process(one, {}, tmp_path / "old")
    process(one, {}, tmp_path / "new")
    assert violations(one, first | second) == []


def test_group_ahead_of_the_state_halts_until_a_person_decides(one: Rig) -> None:
    """As after a broker lost the end of the changelog, or after an operator moved the group."""
    first, skipped, last = (events(10, 2, prefix) for prefix in "abc")
    process(one, first)
    one.send(one.a, as_records(skipped))
    set_group_offset(one, one.a, 20)
    assert "ahead of the state" in halt_reason(one)
    recover(one, "group")
    process(one, last)
    assert violations(one, first | last) == []


def test_recreated_input_halts_until_a_person_decides(one: Rig) -> None:
    """The new topic has more records than were processed of the old one, so the position looks valid."""
    first, second = events(10, 2, "a"), events(30, 2, "b")
    process(one, first)
    recreate(one, one.a)
    one.send(one.a, as_records(second))
    assert f"{one.a} was deleted and created again" in halt_reason(one)
    recover(one, "changelog")
    process(one, {})
    assert violations(one, first | second) == []


def test_topic_recreated_under_a_running_engine_halts_it(one: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_checks, "CHECK_INTERVAL_S", 0.2)
    engine = make_engine(one)
    with running(engine):
        one.send(one.a, as_records(events(10, 2)))
        until(processed(engine, 10), "the first")
        recreate(one, one.changelog, COMPACTED)
        until(lambda: engine.state == "halted", "halting")
        assert f"{one.changelog} was deleted and created again" in engine.reason


def test_halted_partition_does_not_stop_the_others(rig: Rig) -> None:
    rig.create()
    first, second = events(40, 20, "a"), events(40, 20, "b")
    process(rig, first)
    rig.send(rig.a, as_records(second))
    ends = rig.ends()
    cut(rig, rig.a, ends[rig.a, 0] - 1)
    engine = make_engine(rig)
    with running(engine):
        until(lambda: engine.state == "halted", "halting")

        def other_is_done() -> bool:
            return {p.partition: p.positions[rig.a] for p in engine.partitions()}.get(1) == ends[rig.a, 1]

        until(other_is_done, "the other partition")
        assert [p.partition for p in engine.partitions() if p.halted] == [0]
        assert len(engine.partitions()) == 2, "it keeps its membership and both partitions"
    recover(rig, "changelog")
    engine = make_engine(rig)
    with running(engine):
        until(drained(engine, rig), "what is left")
        assert engine.ready


def test_recovery_is_refused_while_the_engine_runs(one: Rig) -> None:
    process(one, events(10, 2))
    engine = make_engine(one)
    with running(engine):
        until(lambda: engine.ready, "the engine")
        options = argparse.Namespace(partition=0, source="changelog", apply=True)
        with pytest.raises(SystemExit, match="1 running members: stop every process"):
            run_recover(options, one.config, NumberedCounts(one.out))
