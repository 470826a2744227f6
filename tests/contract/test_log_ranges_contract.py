"""Contract of `LogRanges`, in memory and on Kafka."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from shared.adapters.clock import ManualClock
from shared.adapters.in_memory import InMemoryLog, InMemoryLogRanges
from shared.adapters.kafka import producer_config
from shared.adapters.log_lookup import KafkaLogRanges
from shared.errors import BrokerUnavailable
from shared.kafka_connection import KafkaConnection
from shared.ports import LogRanges
from shared.records import Output, Record

P = 2
AHEAD_MS = 600_000
"""Records of a test are later than those that the broker itself writes while it runs."""


@dataclass
class Land:
    ranges: LogRanges
    topic: str
    start: int
    """Time of the first record, in milliseconds since the epoch."""
    write: Callable[[int, list[bytes]], None]
    """Append records to a partition, one second apart, the first at `start`."""
    trim: Callable[[int, int], None]
    """Delete records below an offset."""


@pytest.fixture(params=["memory", "kafka", "kafka with a namespace"])
def land(request: pytest.FixtureRequest, fresh: str) -> Land:
    made: Land = (memory if request.param == "memory" else kafka_land)(request, f"{fresh}-ranges")
    return made


def memory(_: pytest.FixtureRequest, topic: str) -> Land:
    start = round(time.time() * 1000) + AHEAD_MS
    clock = ManualClock(start)
    log = InMemoryLog(P, clock)

    def write(partition: int, values: list[bytes]) -> None:
        for value in values:
            log.append(Output(topic, b"k", value, (("h", b"1"),), partition))
            clock.advance(1.0)

    return Land(
        InMemoryLogRanges(log), topic, start, write, lambda partition, low: log.trim(topic, partition, low)
    )


def kafka_land(request: pytest.FixtureRequest, topic: str) -> Land:
    servers: str = request.getfixturevalue("kafka")
    admin = AdminClient({"bootstrap.servers": servers})
    kafka = KafkaConnection(servers, "contract" if "namespace" in request.param else "")
    stored = kafka.prefix + topic
    admin.create_topics([NewTopic(stored, P, 1)])[stored].result(20)
    ranges = KafkaLogRanges(kafka, "test")
    # A topic that was just made may have no leader yet.
    led = Retrying(
        retry=retry_if_exception_type(BrokerUnavailable), wait=wait_fixed(0.2), stop=stop_after_delay(20)
    )
    led(ranges.bounds, topic)
    start = round(time.time() * 1000) + AHEAD_MS
    now = [start]

    def write(partition: int, values: list[bytes]) -> None:
        """Write each in a separate transaction, so that some offsets hold no record."""
        producer = Producer(
            {"bootstrap.servers": servers} | producer_config("test") | {"transactional.id": topic}
        )
        producer.init_transactions(20)
        for value in values:
            producer.begin_transaction()
            producer.produce(stored, value, b"k", partition, headers=[("h", b"1")], timestamp=now[0])
            producer.commit_transaction(20)
            now[0] += 1_000

    def trim(partition: int, low: int) -> None:
        (future,) = admin.delete_records([TopicPartition(stored, partition, low)]).values()
        future.result(20)

    return Land(ranges, topic, start, write, trim)


def all_of(land: Land) -> list[Record]:
    return list(land.ranges.read(land.topic, land.ranges.bounds(land.topic)))


def test_an_empty_topic_has_bounds_and_no_records(land: Land) -> None:
    assert land.ranges.bounds(land.topic) == {0: (0, 0), 1: (0, 0)}
    assert land.ranges.since(land.topic, land.start) == {0: 0, 1: 0}
    assert all_of(land) == []


def test_records_within_the_bounds_are_read_in_order(land: Land) -> None:
    land.write(0, [b"a", b"b", b"c"])
    land.write(1, [b"d"])
    found = all_of(land)
    assert [r.value for r in found if r.partition == 0] == [b"a", b"b", b"c"]
    assert [r.value for r in found if r.partition == 1] == [b"d"]
    assert (found[0].key, found[0].headers, found[0].topic) == (b"k", (("h", b"1"),), land.topic)


def test_range_excludes_its_stop_and_may_be_empty(land: Land) -> None:
    land.write(0, [b"a", b"b", b"c"])
    offsets = [record.offset for record in all_of(land)]

    def read(start: int, stop: int) -> list[bytes | None]:
        return [record.value for record in land.ranges.read(land.topic, {0: (start, stop)})]

    assert read(offsets[1], offsets[1] + 1) == [b"b"]
    assert read(offsets[0], offsets[2]) == [b"a", b"b"]
    assert read(offsets[2] + 1, offsets[2] + 2) == []
    assert read(offsets[2], offsets[2] + 1_000) == [b"c"]
    assert read(5_000, 6_000) == []


def test_since_returns_the_first_record_at_least_as_new(land: Land) -> None:
    land.write(0, [b"a", b"b", b"c"])
    offsets = [record.offset for record in all_of(land)]
    bounds = land.ranges.bounds(land.topic)
    assert land.ranges.since(land.topic, land.start + 1_000)[0] == offsets[1]
    assert land.ranges.since(land.topic, land.start + 1_001)[0] == offsets[2]
    assert land.ranges.since(land.topic, 0)[0] == offsets[0]
    assert land.ranges.since(land.topic, land.start + 60_000) == {0: bounds[0][1], 1: bounds[1][1]}


def test_deleted_records_are_below_the_bounds_and_skipped(land: Land) -> None:
    land.write(0, [b"a", b"b", b"c"])
    low = all_of(land)[1].offset
    land.trim(0, low)
    assert land.ranges.bounds(land.topic)[0][0] == low
    assert [r.value for r in land.ranges.read(land.topic, {0: (0, 1_000)})] == [b"b", b"c"]


def test_unreachable_broker_raises_broker_unavailable() -> None:
    fake = InMemoryLogRanges(InMemoryLog(P))
    fake.failure = BrokerUnavailable("away")
    for ranges in (fake, KafkaLogRanges(KafkaConnection("127.0.0.1:1"), "test")):
        with pytest.raises(BrokerUnavailable):
            ranges.bounds("dead.letters")
