"""Fixtures for tests of the stream engine: topics, a counting step, a reader of committed records, and an oracle."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat

from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from shared.errors import Rejected
from shared.kafka_connection import KafkaConnection
from shared.records import Output, Record
from shared.stream.config import EngineConfig
from shared.stream.engine import Engine
from shared.stream.state_store import POSITIONS_KEY
from shared.stream.step import State, Tick

CREATE = {"message.timestamp.type": "CreateTime", "retention.ms": "-1"}
"""Without retention, because the timestamps of tests are years old."""
APPEND = {"message.timestamp.type": "LogAppendTime"}


@dataclass(frozen=True)
class Rig:
    """The topics of one test on a shared broker."""

    kafka: str
    name: str
    partitions: int = 2

    @property
    def a(self) -> str:
        return f"{self.name}.a"

    @property
    def b(self) -> str:
        return f"{self.name}.b"

    @property
    def out(self) -> str:
        return f"{self.name}.out"

    @property
    def changelog(self) -> str:
        return f"{self.name}.changelog"

    @property
    def dead(self) -> str:
        return f"{self.name}.dead"

    def create(self, **configs: dict[str, str]) -> Rig:
        """Create the topics. The broker sets timestamps; with `a=CREATE` the test sets those of topic `a`."""
        admin = AdminClient({"bootstrap.servers": self.kafka})
        topics = {
            "a": NewTopic(self.a, self.partitions, 1, config=configs.get("a", APPEND)),
            "b": NewTopic(self.b, self.partitions, 1, config=configs.get("b", APPEND)),
            "out": NewTopic(self.out, self.partitions, 1, config=configs.get("out", {})),
            "changelog": NewTopic(
                self.changelog, self.partitions, 1, config={"cleanup.policy": "compact"} | APPEND
            ),
            "dead": NewTopic(self.dead, 1, 1, config=configs.get("dead", {})),
        }
        for future in admin.create_topics(list(topics.values())).values():
            future.result()
        return self

    def config(self, instance: str = "one", **settings: object) -> EngineConfig:
        defaults = {
            "kafka": KafkaConnection(self.kafka),
            "application": self.name,
            "instance": instance,
            "inputs": (self.a, self.b),
            "changelog": self.changelog,
            "dead_letters": self.dead,
            "outputs": frozenset({self.out}),
        } | settings
        return EngineConfig(**defaults)  # type: ignore[arg-type]

    def send(
        self, topic: str, records: Iterable[tuple[str, str]], times: Iterable[int] | None = None
    ) -> None:
        """Send (key, value) pairs, and wait for their acknowledgements. `times`: timestamps, if `CREATE` is set."""
        producer = Producer(
            {"bootstrap.servers": self.kafka, "partitioner": "murmur2_random", "acks": "all", "linger.ms": 5}
        )
        failed = []
        for (key, value), time_ms in zip(records, times or repeat(0), strict=False):
            producer.produce(
                topic,
                value.encode(),
                key.encode(),
                callback=lambda error, _message: failed.append(error) if error else None,
                timestamp=time_ms,
            )
            producer.poll(0)
        assert producer.flush(20) == 0
        assert not failed

    def read(self, topic: str, *, committed: bool = True, seconds: float = 15.0) -> list[Message]:
        """Return every record up to the end; if `committed`, also wait until no transaction before the end is open."""
        settings = {"bootstrap.servers": self.kafka, "group.id": f"{self.name}-reader"}
        ends = Consumer(settings | {"isolation.level": "read_uncommitted"})
        reader = Consumer(
            settings
            | {
                "isolation.level": "read_committed" if committed else "read_uncommitted",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 50,
            }
        )
        numbers = sorted(ends.list_topics(topic, timeout=10).topics[topic].partitions)
        marks = {n: ends.get_watermark_offsets(TopicPartition(topic, n), timeout=10) for n in numbers}
        reader.assign([TopicPartition(topic, n, low) for n, (low, _) in marks.items()])
        records, deadline = [], time.monotonic() + seconds
        left = {n: high for n, (low, high) in marks.items() if high > low}
        while left:
            assert time.monotonic() < deadline, f"not every transaction in {topic} is decided up to {left}"
            for message in reader.consume(1_000, 0.05):
                at = message.offset()
                if message.error() is None:
                    records.append(message)
                    at += 1
                if at >= left.get(message.partition(), at + 1):
                    del left[message.partition()]
        ends.close()
        reader.close()
        return records

    def ends(self) -> dict[tuple[str, int], int]:
        """Return the current end offsets of the inputs, by topic and partition."""
        consumer = Consumer({"bootstrap.servers": self.kafka, "group.id": f"{self.name}-ends"})
        retrying = Retrying(  # a new partition may not have a leader yet
            retry=retry_if_exception_type(KafkaException), stop=stop_after_delay(10), wait=wait_fixed(0.1)
        )
        offsets = {
            (topic, n): retrying(consumer.get_watermark_offsets, TopicPartition(topic, n), timeout=10)[1]
            for topic in (self.a, self.b)
            for n in range(self.partitions)
        }
        consumer.close()
        return offsets

    def changelog_state(self) -> dict[int, dict[bytes, bytes]]:
        """Return the compacted changelog of each partition, without the engine's own key."""
        state: dict[int, dict[bytes, bytes]] = {n: {} for n in range(self.partitions)}
        for message in self.read(self.changelog):
            if message.value() is None:
                state[message.partition()].pop(message.key(), None)
            elif message.key() != POSITIONS_KEY:
                state[message.partition()][message.key()] = message.value()
        return state


def events(count: int, keys: int, prefix: str = "e") -> dict[str, str]:
    """Return `count` events with their keys."""
    return {f"{prefix}{n}": f"k{n % keys}" for n in range(count)}


def as_records(sent: dict[str, str]) -> list[tuple[str, str]]:
    """Return events as (key, value) records to send."""
    return [(key, event) for event, key in sent.items()]


def counting_step(out: str) -> Callable[[State, Record | Tick], Iterator[Output]]:
    """Return a step that counts the records of each key, and writes an output with each count.

    It rejects a record `bad...`, and raises an unexpected error for `bug...`, after writing for it, so a test can see
    that nothing of it remains.
    """

    def step(state: State, record: Record | Tick) -> Iterator[Output]:
        if isinstance(record, Tick):
            return
        key = record.key or b""
        count = int(state.get(key) or 0) + 1
        state.put(key, str(count).encode())
        value = (record.value or b"").decode()
        yield Output.to_same_partition_as(record, out, key, json.dumps([value, count]).encode())
        if value.startswith("bad"):
            raise Rejected(f"{value} must not be counted")
        if value.startswith("bug"):
            raise LookupError(f"{value} must not be counted")

    return step


@contextmanager
def running(engine: Engine) -> Iterator[threading.Thread]:
    """Run an engine in a thread until the end of the block. An exception of the engine is raised there."""
    stop, raised = threading.Event(), list[BaseException]()

    def work() -> None:
        try:
            engine.run(stop)
        except BaseException as error:  # noqa: BLE001 - raised in the test's thread
            raised.append(error)

    thread = threading.Thread(target=work, name="engine")
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
    if raised:
        raise raised[0]


def set_topic(kafka: str, topic: str, setting: str, value: str) -> None:
    """Change a setting of a topic, and wait until the broker reports the change."""
    entry = ConfigEntry(setting, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.incremental_alter_configs([resource])[resource].result()
    until(lambda: admin.describe_configs([resource])[resource].result()[setting].value == value, "the change")


def set_group_offset(rig: Rig, topic: str, offset: int) -> None:
    """Set the group's offset in partition 0, as an operator does. The engine must be stopped."""
    wanted = ConsumerGroupTopicPartitions(rig.name, [TopicPartition(topic, 0, offset)])
    admin = AdminClient({"bootstrap.servers": rig.kafka})
    for attempt in Retrying(  # the broker may not have removed the former member yet
        retry=retry_if_exception_type(KafkaException), stop=stop_after_delay(10), wait=wait_fixed(0.2)
    ):
        with attempt:
            admin.alter_consumer_group_offsets([wanted])[rig.name].result()


def until(holds: Callable[[], bool], description: str, seconds: float = 20.0) -> None:
    """Wait until `holds()` returns True, polling ten times a second."""
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {description}"
        pause.wait(0.1)


def drained(engine: Engine, rig: Rig) -> Callable[[], bool]:
    """Return a condition: the engine owns every partition and has processed the inputs to their ends at this call.

    The ends come from the broker, because the lag in the engine's status may be half a second old.
    """
    ends = rig.ends()

    def holds() -> bool:
        at = {
            (topic, p.partition): offset for p in engine.partitions() for topic, offset in p.positions.items()
        }
        return at == ends

    return holds


def processed(engine: Engine, count: int) -> Callable[[], bool]:
    """Return a condition: the engine has processed at least `count` records."""
    return lambda: sum(p.records for p in engine.partitions()) >= count


def violations(rig: Rig, sent: dict[str, str]) -> list[str]:
    """Return violations of I1 and I4 by the counting step. `sent` is {event: key}, each acknowledged once.

    Every event must have exactly one committed output, the counts of each key must run 1, 2, 3 without a gap or
    repetition, and the changelog must hold the last count.
    """
    events: Counter[str] = Counter()
    counts: dict[str, list[int]] = defaultdict(list)
    for message in rig.read(rig.out):
        event, count = json.loads(message.value())
        events[event] += 1
        counts[message.key().decode()].append(count)
    errors = []
    if missing := set(sent) - set(events):
        errors.append(f"{len(missing)} events are missing")
    if unknown := set(events) - set(sent):
        errors.append(f"{len(unknown)} events were never sent")
    if repeated := [event for event, n in events.items() if n > 1]:
        errors.append(f"{len(repeated)} events have several outputs")
    per_key = Counter(sent.values())
    if wrong := [key for key in per_key if counts[key] != list(range(1, per_key[key] + 1))]:
        errors.append(f"{len(wrong)} keys have wrong counts")
    logged = {k.decode(): int(v) for state in rig.changelog_state().values() for k, v in state.items()}
    if logged != dict(per_key):
        errors.append("the changelog differs from the sent events")
    return errors
