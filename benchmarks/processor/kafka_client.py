"""Kafka operations of the benchmarks: create topics, load records, read ends and committed records."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from tenacity import Retrying, retry_if_exception, retry_if_exception_type, stop_after_delay, wait_fixed

LOG_APPEND_TIME = {"message.timestamp.type": "LogAppendTime"}
CALL_TIMEOUT_S = 10.0
STALLED_AFTER_S = 30.0

OutgoingRecord = tuple[bytes, bytes] | tuple[bytes, bytes, Sequence[tuple[str, bytes]]]
"""(key, value) or (key, value, headers)"""


class WrongResult(Exception):
    """An arm lost, duplicated or miscounted records, so its speed has no meaning."""


class KafkaClient:
    """Client of one Kafka cluster."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._admin = AdminClient({"bootstrap.servers": address, "log_level": 2})
        self._ends = {committed: Consumer(self._reader_settings(committed)) for committed in (False, True)}

    def close(self) -> None:
        """Close the consumers."""
        for consumer in self._ends.values():
            consumer.close()

    def topics(self) -> set[str]:
        """Return the names of all topics."""
        return set(self._admin.list_topics(timeout=CALL_TIMEOUT_S).topics)

    def create(self, topics: Mapping[str, dict[str, str]], partitions: int) -> None:
        """Create topics with append times and one replica. Waits until a deleted topic of the same name is gone."""
        for attempt in _retrying():
            with attempt:
                existing = self.topics()
                new = [
                    NewTopic(name, partitions, 1, config=LOG_APPEND_TIME | config)
                    for name, config in topics.items()
                    if name not in existing
                ]
                for future in self._admin.create_topics(new).values() if new else ():
                    future.result()

    def delete(self, topics: Iterable[str]) -> None:
        """Delete topics and wait until they are gone. Topics that do not exist are ignored."""
        doomed = sorted(set(topics) & self.topics())
        for future in self._admin.delete_topics(doomed).values() if doomed else ():
            future.result()
        until = time.monotonic() + STALLED_AFTER_S
        while self.topics() & set(doomed) and time.monotonic() < until:
            time.sleep(0.1)

    def delete_group(self, group: str) -> None:
        """Delete a consumer group and its offsets; one that does not exist is ignored.

        Retries while a new broker is still electing coordinators.
        """

        def no_coordinator(error: BaseException) -> bool:
            return isinstance(error, KafkaException) and "COORDINATOR" in error.args[0].name()

        try:
            for attempt in Retrying(
                retry=retry_if_exception(no_coordinator),
                wait=wait_fixed(0.5),
                stop=stop_after_delay(30),
                reraise=True,
            ):
                with attempt:
                    self._admin.delete_consumer_groups([group])[group].result()
        except KafkaException as error:
            if error.args[0].name() != "GROUP_ID_NOT_FOUND":
                raise

    def load(self, topic: str, records: Iterable[OutgoingRecord]) -> int:
        """Send all records, check that each of them arrived once, and return their number."""
        before, count = sum(self.ends(topic).values()), 0
        producer = self.producer()
        for record in records:
            headers: Any = list(record[2]) if len(record) == 3 else None
            while True:
                try:
                    producer.produce(topic, record[1], record[0], headers=headers)
                    break
                except BufferError:
                    producer.poll(0.05)
            count += 1
        producer.flush(STALLED_AFTER_S)
        arrived = sum(self.ends(topic).values()) - before
        if arrived != count:
            raise WrongResult(f"only {arrived} of {count} records arrived in {topic}")
        return count

    def producer(self, linger_ms: int = 20) -> Producer:
        """Return an idempotent producer."""
        return Producer(
            {
                "bootstrap.servers": self.address,
                "partitioner": "murmur2_random",
                "compression.type": "lz4",
                "enable.idempotence": True,
                "linger.ms": linger_ms,
                "queue.buffering.max.messages": 200_000,
                "log_level": 2,
            }
        )

    def ends(self, topic: str, *, committed: bool = False) -> dict[int, int]:
        """Return the end offset of each partition; if `committed`, up to the first open transaction."""
        numbers: list[int] = _retrying()(self._partitions, topic)
        return {number: self._end(self._ends[committed], topic, number) for number in numbers}

    def _partitions(self, topic: str) -> list[int]:
        """Return the partition numbers. Raises `KafkaException` while the metadata of a new topic is incomplete."""
        metadata = self._admin.list_topics(topic, timeout=CALL_TIMEOUT_S).topics[topic]
        if metadata.error is not None or not metadata.partitions:
            raise KafkaException(metadata.error or KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
        return list(metadata.partitions)

    def _end(self, consumer: Consumer, topic: str, number: int) -> int:
        """Return one end offset. Retries while a new partition has no leader yet."""
        marks: tuple[int, int] | None = _retrying()(
            consumer.get_watermark_offsets, TopicPartition(topic, number), timeout=CALL_TIMEOUT_S
        )
        if marks is None:
            raise WrongResult(f"no end offset of {topic} [{number}] within {CALL_TIMEOUT_S} s")
        return marks[1]

    def read(self, topic: str) -> Iterator[Message]:
        """Yield every record committed up to now. Raises `WrongResult` if a transaction stays open."""
        left = {number: end for number, end in self.ends(topic).items() if end}
        reader = Consumer(self._reader_settings(True))
        reader.assign([TopicPartition(topic, number, 0) for number in left])
        until = time.monotonic() + STALLED_AFTER_S
        try:
            while left:
                if time.monotonic() > until:
                    raise WrongResult(
                        f"{topic} cannot be read to its end: partitions {sorted(left)} are blocked"
                    )
                for message in reader.consume(10_000, 0.05):
                    offset, number = message.offset(), message.partition()
                    assert offset is not None and number is not None
                    at = offset
                    if message.error() is None:
                        yield message
                        at += 1
                        until = time.monotonic() + STALLED_AFTER_S
                    if at >= left.get(number, at + 1):
                        del left[number]
        finally:
            reader.close()

    def open_reader(self, topics: Sequence[str]) -> Consumer:
        """Return a consumer of the records that are committed from now on."""
        reader = Consumer(self._reader_settings(True))
        reader.assign(
            [
                TopicPartition(topic, number, end)
                for topic in topics
                for number, end in self.ends(topic).items()
            ]
        )
        return reader

    def _reader_settings(self, committed: bool) -> dict[str, Any]:
        return {
            "bootstrap.servers": self.address,
            "group.id": "bench-reader",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed" if committed else "read_uncommitted",
            "enable.partition.eof": True,
            "log_level": 2,
        }


def _retrying() -> Retrying:
    return Retrying(
        retry=retry_if_exception_type(KafkaException),
        stop=stop_after_delay(STALLED_AFTER_S),
        wait=wait_fixed(0.2),
        reraise=True,
    )


def message_value(message: Message) -> bytes:
    """Return the value of a message as bytes, which the client's stubs do not guarantee."""
    value: Any = message.value()
    return bytes(value or b"")


def records_per_second(times_ms: list[int], skip: int) -> float:
    """Return records per second by the broker's append times, without the first `skip` records."""
    times_ms.sort()
    began, ended = times_ms[skip], times_ms[-1]
    return (len(times_ms) - 1 - skip) / max(0.001, (ended - began) / 1000)
