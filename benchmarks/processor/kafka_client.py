"""What the benchmark itself does with Kafka: topics, loading, ends, reading all that was committed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from tenacity import Retrying, retry_if_exception, retry_if_exception_type, stop_after_delay, wait_fixed

APPEND = {"message.timestamp.type": "LogAppendTime"}
CALL_S = 10.0
STUCK_S = 30.0

Sent = tuple[bytes, bytes] | tuple[bytes, bytes, Sequence[tuple[str, bytes]]]
"""(key, value), perhaps with headers."""


class WrongResult(Exception):
    """An arm did not do its work, or not all of it, or some of it twice. Its speed means nothing."""


class Log:
    """One Kafka, seen by the benchmark."""

    def __init__(self, kafka: str) -> None:
        self.kafka = kafka
        self._admin = AdminClient({"bootstrap.servers": kafka, "log_level": 2})
        self._ends = {committed: Consumer(self._reading(committed)) for committed in (False, True)}

    def close(self) -> None:
        for consumer in self._ends.values():
            consumer.close()

    def topics(self) -> set[str]:
        return set(self._admin.list_topics(timeout=CALL_S).topics)

    def create(self, topics: Mapping[str, dict[str, str]], partitions: int) -> None:
        """Stamped by the broker, one copy each. Waits for a topic of the same name to be gone."""
        for attempt in _patient():
            with attempt:
                there = self.topics()
                made = [
                    NewTopic(name, partitions, 1, config=APPEND | config)
                    for name, config in topics.items()
                    if name not in there
                ]
                for future in self._admin.create_topics(made).values() if made else ():
                    future.result()

    def delete(self, topics: Iterable[str]) -> None:
        """Returns once none of them is there; one that never was is no error."""
        doomed = sorted(set(topics) & self.topics())
        for future in self._admin.delete_topics(doomed).values() if doomed else ():
            future.result()
        until = time.monotonic() + STUCK_S
        while self.topics() & set(doomed) and time.monotonic() < until:
            time.sleep(0.1)

    def forget_group(self, group: str) -> None:
        """Its positions go; one that is not there is no error. A fresh broker has to find its coordinators first."""

        def moving(error: BaseException) -> bool:
            return isinstance(error, KafkaException) and "COORDINATOR" in error.args[0].name()

        try:
            for attempt in Retrying(
                retry=retry_if_exception(moving),
                wait=wait_fixed(0.5),
                stop=stop_after_delay(30),
                reraise=True,
            ):
                with attempt:
                    self._admin.delete_consumer_groups([group])[group].result()
        except KafkaException as error:
            if error.args[0].name() != "GROUP_ID_NOT_FOUND":
                raise

    def load(self, topic: str, records: Iterable[Sent]) -> int:
        """Sends all, and returns how many: each is in the topic, once."""
        before, count = sum(self.ends(topic).values()), 0
        sender = self.sender()
        for record in records:
            headers: Any = list(record[2]) if len(record) == 3 else None
            while True:
                try:
                    sender.produce(topic, record[1], record[0], headers=headers)
                    break
                except BufferError:
                    sender.poll(0.05)
            count += 1
        sender.flush(STUCK_S)
        arrived = sum(self.ends(topic).values()) - before
        if arrived != count:
            raise WrongResult(f"{arrived} of {count} records could be loaded into {topic}")
        return count

    def sender(self, linger_ms: int = 20) -> Producer:
        return Producer(
            {
                "bootstrap.servers": self.kafka,
                "partitioner": "murmur2_random",
                "compression.type": "lz4",
                "enable.idempotence": True,
                "linger.ms": linger_ms,
                "queue.buffering.max.messages": 200_000,
                "log_level": 2,
            }
        )

    def ends(self, topic: str, *, committed: bool = False) -> dict[int, int]:
        """Per partition the next offset; `committed`: where the first open transaction begins, if there is one."""
        numbers = self._admin.list_topics(topic, timeout=CALL_S).topics[topic].partitions
        return {number: self._end(self._ends[committed], topic, number) for number in numbers}

    def _end(self, consumer: Consumer, topic: str, number: int) -> int:
        """Asks again where the partition, just made, has no leader yet."""
        found: tuple[int, int] | None = _patient()(
            consumer.get_watermark_offsets, TopicPartition(topic, number), timeout=CALL_S
        )
        if found is None:
            raise WrongResult(f"Kafka did not tell the end of {topic} [{number}]")
        return found[1]

    def read(self, topic: str) -> Iterator[Message]:
        """All that is committed up to now. Raises `WrongResult` where a transaction stays open."""
        left = {number: end for number, end in self.ends(topic).items() if end}
        reader = Consumer(self._reading(True))
        reader.assign([TopicPartition(topic, number, 0) for number in left])
        until = time.monotonic() + STUCK_S
        try:
            while left:
                if time.monotonic() > until:
                    raise WrongResult(f"{topic} cannot be read to its end: {left} are left")
                for message in reader.consume(10_000, 0.05):
                    offset, number = message.offset(), message.partition()
                    assert offset is not None and number is not None
                    at = offset
                    if message.error() is None:
                        yield message
                        at += 1
                        until = time.monotonic() + STUCK_S
                    if at >= left.get(number, at + 1):
                        del left[number]
        finally:
            reader.close()

    def follow(self, topics: Sequence[str]) -> Consumer:
        """A reader of what is committed from now on, message by message, as soon as it can be read."""
        reader = Consumer(self._reading(True))
        reader.assign(
            [
                TopicPartition(topic, number, end)
                for topic in topics
                for number, end in self.ends(topic).items()
            ]
        )
        return reader

    def _reading(self, committed: bool) -> dict[str, Any]:
        return {
            "bootstrap.servers": self.kafka,
            "group.id": "bench-reader",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed" if committed else "read_uncommitted",
            "enable.partition.eof": True,
            "log_level": 2,
        }


def _patient() -> Retrying:
    return Retrying(
        retry=retry_if_exception_type(KafkaException),
        stop=stop_after_delay(STUCK_S),
        wait=wait_fixed(0.2),
        reraise=True,
    )


def value_of(message: Message) -> bytes:
    """The client's stubs allow text and nothing here; it hands out the bytes that were sent."""
    value: Any = message.value()
    return bytes(value or b"")


def rate(times_ms: list[int], skip: int) -> float:
    """Records a second, by the broker's append times, after the first `skip` of them."""
    times_ms.sort()
    began, ended = times_ms[skip], times_ms[-1]
    return (len(times_ms) - 1 - skip) / max(0.001, (ended - began) / 1000)
