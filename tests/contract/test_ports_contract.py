"""One contract suite per port, run against the in-memory adapter and the real one."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from shared.adapters.clock import ManualClock
from shared.adapters.in_memory import (
    InMemoryCache,
    InMemoryLog,
    InMemoryLogReader,
    InMemoryPublisher,
    InMemoryTransactionalPublisher,
)
from shared.adapters.kafka import KafkaLogReader, KafkaPublisher, KafkaTransactionalPublisher, producer_config
from shared.adapters.redis import RedisCache
from shared.adapters.topic_admin import create_topics
from shared.errors import BrokerUnavailable, Fatal, Fenced, Misconfigured, Oversized
from shared.kafka_connection import KafkaConnection
from shared.partitioning import partition_for
from shared.ports import Cache, LogReader, Position, Publisher, TransactionalPublisher
from shared.records import Output, Record
from shared.topics import MAX_MESSAGE_BYTES

P = 6
FEEDBACK, OUTCOMES, VERSIONS = "feedback.events", "feedback.outcomes", "model.versions"


@dataclass
class World:
    """A log, in memory or on Kafka."""

    publisher: Callable[[str], Publisher]
    transactional: Callable[[str, str], TransactionalPublisher]
    reader: Callable[..., LogReader]
    topic: Callable[[], str]
    """Create a topic with one partition that is not in the table of writers."""
    write: Callable[[str, Sequence[bytes]], None]
    """Write values to such a topic."""
    trim: Callable[[str, int], None]
    """Delete records of such a topic below an offset."""


@pytest.fixture(params=["memory", "kafka", "kafka with a namespace"])
def world(request: pytest.FixtureRequest, fresh: str) -> Iterator[World]:
    closing: list[Callable[[], None]] = []
    yield (memory_world if request.param == "memory" else kafka_world)(request, fresh, closing)
    for close in reversed(closing):
        close()


def memory_world(_: pytest.FixtureRequest, fresh: str, closing: list[Callable[[], None]]) -> World:
    log = InMemoryLog(P)

    def reader(
        topics: Sequence[str],
        starts: Mapping[Position, int] | None = None,
        partitions: Collection[int] | None = None,
    ) -> LogReader:
        return InMemoryLogReader(log, topics, starts, partitions=partitions)

    def write(topic: str, values: Sequence[bytes]) -> None:
        log.append(*[Output(topic, None, value, (), 0) for value in values])

    return World(
        publisher=lambda service: InMemoryPublisher(log, service),
        transactional=lambda service, identity: InMemoryTransactionalPublisher(log, service, identity),
        reader=reader,
        topic=lambda: f"{fresh}-topic",
        write=write,
        trim=lambda topic, before: log.trim(topic, 0, before),
    )


def kafka_world(request: pytest.FixtureRequest, fresh: str, closing: list[Callable[[], None]]) -> World:
    servers: str = request.getfixturevalue("kafka")
    kafka = KafkaConnection(servers, "contract" if "namespace" in request.param else "")
    create_topics(kafka, P)
    admin = AdminClient({"bootstrap.servers": servers})

    def publisher(service: str) -> Publisher:
        made = KafkaPublisher(kafka, service)
        closing.append(made.close)
        return made

    def transactional(service: str, identity: str) -> TransactionalPublisher:
        made = KafkaTransactionalPublisher(kafka, service, f"{fresh}-{identity}")
        closing.append(made.close)
        return made

    def reader(
        topics: Sequence[str],
        starts: Mapping[Position, int] | None = None,
        partitions: Collection[int] | None = None,
    ) -> LogReader:
        made = KafkaLogReader(kafka, "console", topics, starts, partitions=partitions)
        closing.append(made.close)
        return made

    def topic() -> str:
        name = kafka.prefix + f"{fresh}-topic"
        admin.create_topics([NewTopic(name, num_partitions=1, replication_factor=1)])[name].result(30)
        return name.removeprefix(kafka.prefix)

    def write(name: str, values: Sequence[bytes]) -> None:
        producer = Producer({"bootstrap.servers": servers} | producer_config("contract"))
        for value in values:
            producer.produce(kafka.prefix + name, value=value, partition=0)
        assert producer.flush(30) == 0

    def trim(name: str, before: int) -> None:
        for future in admin.delete_records([TopicPartition(kafka.prefix + name, 0, before)]).values():
            future.result(30)

    return World(publisher, transactional, reader, topic, write, trim)


def drain(reader: LogReader, seconds: float = 30.0) -> list[Record]:
    """Return everything up to the end that the reader saw when it was opened."""
    deadline, found = time.monotonic() + seconds, list[Record]()
    while not reader.at_end():
        assert time.monotonic() < deadline, "the reader did not come to the end in time"
        found += reader.poll(0.2)
    return found


def wait_for(reader: LogReader, key: bytes, count: int, seconds: float = 30.0) -> list[Record]:
    deadline, found = time.monotonic() + seconds, list[Record]()
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} records came"
        found += [record for record in reader.poll(0.2) if record.key == key]
    return found


# --- Publisher and LogReader ------------------------------------------------------------------------------------


def test_acknowledged_record_is_at_the_acknowledged_position(world: World, fresh: str) -> None:
    headers = (("ce_id", b"1"), ("ce_type", b"t"))
    record = Output(FEEDBACK, fresh.encode(), b"value", headers)
    acked = world.publisher("feedback").publish(record).result(30)
    found = [r for r in drain(world.reader([FEEDBACK])) if r.key == fresh.encode()]
    assert [(r.topic, r.partition, r.offset) for r in found] == [(acked.topic, acked.partition, acked.offset)]
    assert (found[0].value, found[0].headers) == (b"value", headers)
    assert found[0].timestamp > 1_600_000_000_000


def test_a_key_goes_to_the_partition_that_jvm_clients_choose(world: World) -> None:
    publisher = world.publisher("feedback")
    # The same keys in every run: among random ones a partition is now and then left out.
    keys = [f"key-{n}" for n in range(25)] + ["a", "äöü-€", "0123456789abcdef"]
    futures = [publisher.publish(Output(FEEDBACK, key.encode(), b"v")) for key in keys]
    chosen = [future.result(30).partition for future in futures]
    assert chosen == [partition_for(key.encode(), P) for key in keys]
    assert len(set(chosen)) == P


def test_a_given_partition_is_kept_and_a_partition_is_read_in_order(world: World, fresh: str) -> None:
    publisher = world.publisher("feedback")
    futures = [publisher.publish(Output(FEEDBACK, fresh.encode(), str(n).encode(), (), 3)) for n in range(30)]
    assert {future.result(30).partition for future in futures} == {3}
    found = [r for r in drain(world.reader([FEEDBACK], partitions=[3])) if r.key == fresh.encode()]
    assert [r.value for r in found] == [str(n).encode() for n in range(30)]
    assert [r.offset for r in found] == sorted(r.offset for r in found)


def test_a_topic_of_another_service_is_refused_at_once(world: World) -> None:
    with pytest.raises(Misconfigured):
        world.publisher("feedback").publish(Output(OUTCOMES, b"k", b"v"))
    with pytest.raises(Misconfigured):
        world.publisher("feedback").publish(Output("no.such.topic", b"k", b"v"))


def test_a_record_that_is_too_large_fails_as_oversized(world: World, fresh: str) -> None:
    future = world.publisher("feedback").publish(
        Output(FEEDBACK, fresh.encode(), b"x" * (MAX_MESSAGE_BYTES + 1))
    )
    assert isinstance(future.exception(30), Oversized)


def test_a_closed_publisher_takes_no_more_records(world: World, fresh: str) -> None:
    publisher = world.publisher("feedback")
    publisher.publish(Output(FEEDBACK, fresh.encode(), b"before")).result(30)
    assert publisher.flush(30) == 0
    publisher.close()
    late = publisher.publish(Output(FEEDBACK, fresh.encode(), b"after"))
    assert isinstance(late.exception(30), BrokerUnavailable)
    found = [r.value for r in drain(world.reader([FEEDBACK])) if r.key == fresh.encode()]
    assert found == [b"before"]


def test_an_empty_value_is_a_tombstone_and_is_read_as_none(world: World, fresh: str) -> None:
    world.publisher("trainer").publish(Output(VERSIONS, fresh.encode(), None)).result(30)
    assert [r.value for r in drain(world.reader([VERSIONS])) if r.key == fresh.encode()] == [None]


def test_reader_continues_from_the_positions_of_another(world: World, fresh: str) -> None:
    publisher, key = world.publisher("feedback"), fresh.encode()
    publisher.publish(Output(FEEDBACK, key, b"one")).result(30)
    first = world.reader([FEEDBACK])
    assert b"one" in [r.value for r in drain(first) if r.key == key]
    publisher.publish(Output(FEEDBACK, key, b"two")).result(30)
    second = world.reader([FEEDBACK], first.positions())
    assert [r.value for r in wait_for(second, key, 1)] == [b"two"]
    # Only now has the first reader something new to return.
    assert [r.value for r in wait_for(first, key, 1)] == [b"two"]


def test_reader_of_empty_topics_is_at_the_end(world: World) -> None:
    reader = world.reader([world.topic()])
    assert drain(reader) == []
    assert reader.poll(0.05) == []
    assert reader.at_end()


def test_only_the_given_partitions_are_read(world: World, fresh: str) -> None:
    publisher, key = world.publisher("feedback"), fresh.encode()
    for partition in (1, 4):
        publisher.publish(Output(FEEDBACK, key, str(partition).encode(), (), partition)).result(30)
    found = drain(world.reader([FEEDBACK], partitions=[4]))
    assert {r.partition for r in found} == {4}
    assert b"4" in [r.value for r in found if r.key == key]


def test_deleted_start_position_is_fatal_and_never_skipped(world: World) -> None:
    topic = world.topic()
    world.write(topic, [b"0", b"1", b"2", b"3"])
    world.trim(topic, 2)
    assert [r.value for r in drain(world.reader([topic]))] == [b"2", b"3"], (
        "from the beginning there is no gap"
    )
    with pytest.raises(Fatal):
        drain(world.reader([topic], {(topic, 0): 1}))


# --- TransactionalPublisher -------------------------------------------------------------------------------------


def test_transaction_is_read_completely(world: World, fresh: str) -> None:
    key = fresh.encode()
    with_both = [Output(VERSIONS, key, b"a"), Output(VERSIONS, key, b"b")]
    writer = world.transactional("trainer", "line")
    writer.publish_all(with_both)
    writer.publish_all([Output(VERSIONS, key, b"c")])
    assert [r.value for r in drain(world.reader([VERSIONS])) if r.key == key] == [b"a", b"b", b"c"]


def test_a_second_writer_under_one_identity_fences_the_first(world: World, fresh: str) -> None:
    key = fresh.encode()
    first = world.transactional("trainer", "line")
    first.publish_all([Output(VERSIONS, key, b"first")])
    second = world.transactional("trainer", "line")
    with pytest.raises(Fenced):
        first.publish_all([Output(VERSIONS, key, b"of the fenced")])
    second.publish_all([Output(VERSIONS, key, b"second")])
    assert [r.value for r in drain(world.reader([VERSIONS])) if r.key == key] == [b"first", b"second"]


def test_a_transaction_with_a_foreign_topic_writes_nothing(world: World, fresh: str) -> None:
    key = fresh.encode()
    writer = world.transactional("trainer", "line")
    with pytest.raises(Misconfigured):
        writer.publish_all([Output(VERSIONS, key, b"mine"), Output(FEEDBACK, key, b"foreign")])
    writer.publish_all([Output(VERSIONS, key, b"after")])
    assert [r.value for r in drain(world.reader([VERSIONS])) if r.key == key] == [b"after"]


# --- Cache ------------------------------------------------------------------------------------------------------


@dataclass
class Caching:
    cache: Cache
    pass_time: Callable[[float], None]
    away: Callable[[], Cache]
    """A cache that is unreachable."""


@pytest.fixture(params=["memory", "redis"])
def caching(request: pytest.FixtureRequest) -> Caching:
    if request.param == "memory":
        clock = ManualClock()
        dead = InMemoryCache(clock)
        dead.away = True
        return Caching(InMemoryCache(clock), clock.advance, lambda: dead)
    real = RedisCache(request.getfixturevalue("redis_url"))
    unreachable = RedisCache("redis://127.0.0.1:1/0")
    return Caching(real, wait_really, lambda: unreachable)


def wait_really(seconds: float) -> None:
    """Redis has its own clock, so its tests wait in real time."""
    threading.Event().wait(seconds)


def test_value_is_kept_until_it_expires(caching: Caching, fresh: str) -> None:
    caching.cache.put(fresh, b"value", ttl_s=1)
    assert caching.cache.get(fresh) == b"value"
    caching.pass_time(1.2)
    assert caching.cache.get(fresh) is None


def test_a_later_put_replaces_an_earlier_one(caching: Caching, fresh: str) -> None:
    caching.cache.put(fresh, b"one", ttl_s=30)
    caching.cache.put(fresh, b"two", ttl_s=30)
    assert caching.cache.get(fresh) == b"two"


def test_put_if_absent_keeps_the_first_value(caching: Caching, fresh: str) -> None:
    assert caching.cache.put_if_absent(fresh, b"first", ttl_s=30) is None
    assert caching.cache.put_if_absent(fresh, b"second", ttl_s=30) == b"first"
    assert caching.cache.get(fresh) == b"first"


def test_counter_restarts_after_it_expires(caching: Caching, fresh: str) -> None:
    assert [caching.cache.count(fresh, ttl_s=1) for _ in range(2)] == [1, 2]
    assert caching.cache.count(fresh, by=5, ttl_s=60) == 7, "the first addition set the time"
    caching.pass_time(1.2)
    assert caching.cache.count(fresh, ttl_s=30) == 1


def test_hanging_redis_delays_callers_only_briefly() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        cache = RedisCache(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        started = time.monotonic()
        assert [cache.get("key") for _ in range(100)] == [None] * 100
        assert time.monotonic() - started < 10, "a hundred time-outs of a quarter of a second are 25"


def test_an_outage_reads_as_a_miss_and_never_raises(caching: Caching, fresh: str) -> None:
    away = caching.away()
    away.put(fresh, b"value", ttl_s=30)
    assert away.get(fresh) is None
    assert away.put_if_absent(fresh, b"value", ttl_s=30) is None
    assert away.count(fresh, ttl_s=30) is None
    assert (caching.cache.alive(), away.alive()) == (True, False)
