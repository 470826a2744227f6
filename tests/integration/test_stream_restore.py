"""Tests of restores on real Kafka: a valid store reads only what it lacks, any other is rebuilt."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Iterator, MutableMapping
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from structlog.testing import capture_logs
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from shared.adapters.clock import ManualClock
from shared.stream import engine as engine_module
from shared.stream.engine import Engine
from shared.stream.partition import Positions
from shared.stream.restore import Restorer
from shared.stream.rocksdb_store import RocksDBStore, RocksDBStoreFactory
from shared.stream.state_store import POSITIONS_KEY, MemoryStore, StateStore, StoreFailed
from tests.integration.stream_rig import (
    Rig,
    as_records,
    counting_step,
    drained,
    events,
    running,
    until,
    violations,
)

HOUR_S = 3_600
Logs = list[MutableMapping[str, Any]]


# --- the restorer without an engine ------------------------------------------------------------------------------


class Changelog:
    """One partition of a changelog, written by the test. `contents` is what a complete copy holds."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.contents: dict[bytes, bytes] = {}
        self.create()

    def create(self) -> None:
        """Create the topic. It is not only compacted, so that its first offset can be moved."""
        topic = NewTopic(self.rig.changelog, 1, 1, config={"cleanup.policy": "compact,delete"})
        admin = AdminClient({"bootstrap.servers": self.rig.kafka})
        # A topic that was just deleted takes a moment to disappear.
        for attempt in Retrying(
            retry=retry_if_exception_type(KafkaException), stop=stop_after_delay(10), wait=wait_fixed(0.1)
        ):
            with attempt:
                admin.create_topics([topic])[topic.topic].result()

    def delete(self) -> None:
        admin = AdminClient({"bootstrap.servers": self.rig.kafka})
        admin.delete_topics([self.rig.changelog])[self.rig.changelog].result()
        self.contents = {}

    def cut(self, low: int) -> None:
        admin = AdminClient({"bootstrap.servers": self.rig.kafka})
        for future in admin.delete_records([TopicPartition(self.rig.changelog, 0, low)]).values():
            future.result()

    def write(self, keys: int, value: bytes | None) -> None:
        """Write one record per key: k0, k1 and so on."""
        producer = Producer({"bootstrap.servers": self.rig.kafka, "linger.ms": 5})
        for n in range(keys):
            key = b"k%d" % n
            producer.produce(self.rig.changelog, value, key, 0)
            if value is None:
                self.contents.pop(key, None)
            else:
                self.contents[key] = value
        assert producer.flush(20) == 0

    def write_positions(self, positions: Positions) -> None:
        """Write the record that an engine, or a person who recovered the partition, writes last."""
        producer = Producer({"bootstrap.servers": self.rig.kafka})
        producer.produce(self.rig.changelog, positions.encode(), POSITIONS_KEY, 0)
        assert producer.flush(20) == 0

    def restore(self, store: RocksDBStore, clock: ManualClock) -> int:
        """Restore a store to the end of the changelog, and return how many records that took."""
        restorer = Restorer(self.rig.config(), {0: store}, clock)
        deadline = time.monotonic() + 15
        while not restorer.done:
            assert time.monotonic() < deadline, restorer.describe_progress()
            restorer.advance()
        restorer.close()
        restored = dict(store.scan(b"\x01", b"\xff"))
        assert restored == self.contents
        return restorer.records


@pytest.fixture
def changelog(rig: Rig) -> Changelog:
    return Changelog(rig)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RocksDBStore]:
    opened = RocksDBStoreFactory(tmp_path, cache_mb=8)(0)
    yield opened
    opened.close()


def test_warm_store_reads_only_the_tail(changelog: Changelog, store: RocksDBStore) -> None:
    clock = ManualClock()
    assert changelog.restore(store, clock) == 0
    changelog.write(500, b"1")
    changelog.write(100, None)
    assert changelog.restore(store, clock) == 600
    assert changelog.restore(store, clock) == 0
    changelog.write(7, b"2")
    assert changelog.restore(store, clock) == 7


def test_store_beyond_the_end_is_rebuilt(changelog: Changelog, store: RocksDBStore) -> None:
    clock = ManualClock()
    changelog.write(50, b"1")
    changelog.restore(store, clock)
    store.apply({b"stray": b"1"}, 1_000)
    with capture_logs() as logs:
        assert changelog.restore(store, clock) == 50
    assert ["beyond the end" in reason for reason in rebuild_reasons(logs)] == [True]


def test_store_below_the_log_start_is_rebuilt(changelog: Changelog, store: RocksDBStore) -> None:
    clock = ManualClock()
    changelog.write(50, b"1")
    changelog.restore(store, clock)
    changelog.write(60, b"2")
    changelog.cut(51)
    changelog.write_positions(Positions(changelog_start=51))
    changelog.contents = {b"k%d" % n: b"2" for n in range(1, 60)}
    with capture_logs() as logs:
        assert changelog.restore(store, clock) == 60
    assert ["begins at 51" in reason for reason in rebuild_reasons(logs)] == [True]


def test_store_is_kept_if_the_changelog_lost_records(changelog: Changelog, store: RocksDBStore) -> None:
    """Nobody has accepted the loss, and the store may be the only copy of the state."""
    clock = ManualClock()
    changelog.write(50, b"1")
    changelog.restore(store, clock)
    changelog.write(60, b"2")
    changelog.cut(51)
    restorer = Restorer(changelog.rig.config(), {0: store}, clock)
    assert "before offset 51 were deleted" in restorer.losses[0]
    assert restorer.done
    restorer.close()
    assert dict(store.scan(b"\x01", b"\xff")) == {b"k%d" % n: b"1" for n in range(50)}


def test_store_with_another_history_is_rebuilt(changelog: Changelog, store: RocksDBStore) -> None:
    """A broker lost records that the store has, and the partition was recovered without them."""
    clock = ManualClock()
    changelog.write(50, b"1")
    changelog.write_positions(Positions())
    changelog.restore(store, clock)
    store.apply({b"lost": b"1"}, 51)
    changelog.write_positions(Positions(recoveries=1))
    changelog.write(5, b"2")
    with capture_logs() as logs:
        assert changelog.restore(store, clock) == 57
    assert rebuild_reasons(logs) == ["the partition was recovered after this copy was made"]
    assert changelog.restore(store, clock) == 0


def test_store_that_may_have_missed_deletions_is_rebuilt(changelog: Changelog, store: RocksDBStore) -> None:
    """The limit is half a day, half of delete.retention.ms. A store that lacks nothing may be older."""
    clock = ManualClock()
    changelog.write(50, b"1")
    changelog.restore(store, clock)
    clock.advance(48 * HOUR_S)
    assert changelog.restore(store, clock) == 0
    changelog.write(10, None)
    clock.advance(11 * HOUR_S)
    assert changelog.restore(store, clock) == 10
    changelog.write(5, b"2")
    clock.advance(13 * HOUR_S)
    with capture_logs() as logs:
        assert changelog.restore(store, clock) == 65
    assert ["too old: last complete 13.0 h ago" in reason for reason in rebuild_reasons(logs)] == [True]


def test_copy_of_a_recreated_changelog_is_rebuilt(changelog: Changelog, store: RocksDBStore) -> None:
    """It is rebuilt although its position is within the new changelog."""
    clock = ManualClock()
    changelog.write(50, b"old")
    changelog.restore(store, clock)
    changelog.delete()
    changelog.create()
    changelog.write(30, b"1")
    changelog.write(30, b"2")
    changelog.write_positions(Positions())
    with capture_logs() as logs:
        assert changelog.restore(store, clock) == 61
    assert ["another changelog" in reason for reason in rebuild_reasons(logs)] == [True]


def test_interrupted_restore_continues_at_its_position(changelog: Changelog, tmp_path: Path) -> None:
    clock = ManualClock()
    changelog.write(9_000, b"1")
    store = RocksDBStoreFactory(tmp_path, cache_mb=8)(0)
    interrupted = Restorer(changelog.rig.config(), {0: store}, clock)
    deadline = time.monotonic() + 15
    while not interrupted.records:
        assert time.monotonic() < deadline
        interrupted.advance()
    assert not interrupted.done
    interrupted.close()
    store.close()
    store = RocksDBStoreFactory(tmp_path, cache_mb=8)(0)
    assert changelog.restore(store, clock) == 9_000 - interrupted.records
    store.close()


def rebuild_reasons(logs: Logs) -> list[str]:
    """Return the reasons why stores were rebuilt."""
    return [entry["reason"] for entry in logs if "rebuilt" in entry["event"]]


# --- the engine with stores on disk ------------------------------------------------------------------------------


def process(rig: Rig, folder: Path, sent: dict[str, str], instance: str = "one") -> Logs:
    """Process `sent` with an engine whose stores are in `folder`, stop it, and return its logs."""
    engine = Engine(
        rig.config(instance), counting_step(rig.out), open_store=RocksDBStoreFactory(folder, cache_mb=8)
    )
    with capture_logs() as logs, running(engine):
        rig.send(rig.a, [(key, event) for event, key in sent.items()])
        until(lambda: len(engine.partitions()) == rig.partitions, "all partitions")
        until(drained(engine, rig), "all that was sent")
    return logs


def changelog_records_read(logs: Logs) -> int:
    return sum(entry["records"] for entry in logs if entry["event"] == "restored")


def test_graceful_stop_leaves_no_tail_and_lost_folder_is_rebuilt(rig: Rig, tmp_path: Path) -> None:
    rig.create()
    mine, other = tmp_path / "mine", tmp_path / "other"
    counts = {"a": 2_000, "b": 200, "c": 90, "d": 90, "e": 90}
    rounds = [{f"{name}{n}": f"k{n % 50}" for n in range(count)} for name, count in counts.items()]
    sent = dict(chain.from_iterable(each.items() for each in rounds))
    assert changelog_records_read(process(rig, mine, rounds[0])) == 0
    assert changelog_records_read(process(rig, mine, rounds[1])) == 0, (
        "after a graceful stop there is no tail"
    )
    logged = len(rig.read(rig.changelog))
    assert changelog_records_read(process(rig, other, rounds[2], "two")) == logged
    tail = len(rig.read(rig.changelog)) - logged
    assert 50 < tail < 300
    assert changelog_records_read(process(rig, mine, rounds[3])) == tail, (
        "only what another instance wrote since"
    )
    shutil.rmtree(mine)
    logged = len(rig.read(rig.changelog))
    assert changelog_records_read(process(rig, mine, rounds[4])) == logged, (
        "the whole changelog, because the folder is gone"
    )
    assert violations(rig, sent) == []
    state = rig.changelog_state()
    for number in range(rig.partitions):
        store = RocksDBStoreFactory(mine, cache_mb=8)(number)
        assert dict(store.scan(b"\x01", b"\xff")) == state[number]
        store.close()


def test_damaged_store_is_rebuilt_without_a_dead_letter(rig: Rig, tmp_path: Path) -> None:
    """The read fails in the middle of a step. It is not the record's fault, so it must not become a dead letter."""
    rig.create()
    keys = [random.Random(n).randbytes(100).hex() for n in range(400)]
    first = {f"a{n}": keys[n % 400] for n in range(1_600)}
    second = {f"b{n}": keys[n % 400] for n in range(800)}
    process(rig, tmp_path, first)
    for file in tmp_path.rglob("*.sst"):
        with file.open("r+b") as opened:
            opened.seek(file.stat().st_size // 3)
            opened.write(bytes(chain.from_iterable(repeat(range(256), 8))))
    logs = process(rig, tmp_path, second)
    assert any("damaged" in entry["event"] and "block checksum" in entry["error"] for entry in logs)
    assert changelog_records_read(logs) > 400
    assert rig.read(rig.dead) == []
    assert violations(rig, first | second) == []


def test_member_whose_store_fails_leaves_its_partitions_to_another(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "STAY_OUT_S", 1.0)
    full = threading.Event()
    full.set()

    def open_on_full_disk(partition: int) -> StateStore:
        if full.is_set():
            raise StoreFailed(
                f"the store of partition {partition} could not be opened: disk full. Free some space."
            )
        return MemoryStore(partition)

    rig.create()
    sent = events(100, 20)
    rig.send(rig.a, as_records(sent))
    ill = Engine(rig.config("ill"), counting_step(rig.out), open_store=open_on_full_disk)
    well = Engine(rig.config("well"), counting_step(rig.out))
    with running(ill):
        until(lambda: "outside the group" in ill.reason, "leaving", 30)
        assert not ill.ready
        assert "disk full" in ill.reason
        with running(well):
            until(drained(well, rig), "all of it by the other member", 30)
            assert len(well.partitions()) == 2
            full.clear()
            until(lambda: len(ill.partitions()) == 1 and ill.ready, "coming back", 30)
            more = events(100, 20, "late")
            rig.send(rig.a, as_records(more))
            until(
                lambda: sum(p.lag.get(rig.a, 1) for e in (ill, well) for p in e.partitions()) == 0,
                "the rest",
                30,
            )
    assert violations(rig, sent | more) == []
