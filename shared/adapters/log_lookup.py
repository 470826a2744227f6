"""Adapter of the port `LogRanges` for Kafka: look up parts of the log by offset or time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from confluent_kafka import Consumer, KafkaException, TopicPartition

from shared.adapters.kafka import QUIET, to_record
from shared.adapters.kafka_clients import build_consumer
from shared.adapters.kafka_errors import to_error
from shared.adapters.topic_partitions import read_partitions
from shared.errors import BrokerUnavailable
from shared.kafka_connection import KafkaConnection
from shared.ports import Position
from shared.records import Record

CALL_S = 5.0
POLL_RECORDS = 100
QUEUE_KB = 8_192
"""Maximum amount that the client prefetches."""


class KafkaLogRanges:
    """`LogRanges` that opens a connection per call. `timeout_s` limits the total time of a `read`."""

    def __init__(self, kafka: KafkaConnection, service: str, *, timeout_s: float = 20.0) -> None:
        self._kafka = kafka
        self._service = service
        self._timeout_s = timeout_s

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        """Return the lowest and the next offset per partition."""
        with self._connected() as consumer:
            return {part.partition: _bounds(consumer, part) for part in self._parts(consumer, topic)}

    def since(self, topic: str, at_ms: int) -> dict[int, int]:
        """Return the first offset per partition that is at least as new as `at_ms`."""
        with self._connected() as consumer:
            parts = self._parts(consumer, topic)
            queries = [TopicPartition(topic, part.partition, max(0, at_ms)) for part in parts]
            found = {
                part.partition: part.offset for part in consumer.offsets_for_times(queries, timeout=CALL_S)
            }
            # Without such a record, the client returns a negative code for the end.
            return {
                part.partition: found[part.partition]
                if found[part.partition] >= 0
                else _bounds(consumer, part)[1]
                for part in parts
            }

    def read(self, topic: str, ranges: Mapping[int, tuple[int, int]]) -> Iterator[Record]:
        """Yield the retained records of the ranges."""
        with self._connected() as consumer:
            stops = {}
            starts = []
            for partition, (start, stop) in ranges.items():
                low, high = _bounds(consumer, TopicPartition(topic, partition))
                if max(start, low) < min(stop, high):
                    starts.append(TopicPartition(topic, partition, max(start, low)))
                    stops[partition] = min(stop, high)
            consumer.assign(starts)
            yield from self._read(consumer, stops)

    def _parts(self, consumer: Consumer, topic: str) -> list[TopicPartition]:
        found = read_partitions(consumer, topic, prefix=self._kafka.prefix)
        return [TopicPartition(topic, partition) for partition in found]

    def _read(self, consumer: Consumer, stops: dict[int, int]) -> Iterator[Record]:
        """Read until each partition yields a record at or after its stop, or its end. Offsets may have gaps."""
        deadline = time.monotonic() + self._timeout_s
        while stops:
            if time.monotonic() > deadline:
                raise BrokerUnavailable(
                    f"the log could not be read within {self._timeout_s:g} s: try again later"
                )
            first = consumer.poll(0.2)
            if first is None:
                continue
            for message in [first, *consumer.consume(POLL_RECORDS - 1, 0)]:
                error = message.error()
                if error is not None and error.name() == "_PARTITION_EOF":
                    stops.pop(int(message.partition() or 0), None)
                elif error is not None and error.fatal():
                    raise to_error(error)
                elif error is None:
                    record = to_record(message)
                    stop = stops.get(record.partition)
                    if stop is not None and record.offset < stop:
                        yield record
                    if stop is not None and record.offset + 1 >= stop:
                        del stops[record.partition]
                        consumer.pause([TopicPartition(record.topic, record.partition)])

    @contextmanager
    def _connected(self) -> Iterator[Consumer]:
        consumer = build_consumer(
            self._kafka,
            {
                "client.id": self._service,
                "group.id": f"{self._service}-ranges",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
                "enable.partition.eof": True,
                "queued.max.messages.kbytes": QUEUE_KB,
                "fetch.wait.max.ms": 50,
                **QUIET,
            },
        )
        try:
            yield consumer
        except KafkaException as error:
            raise to_error(error.args[0]) from error
        finally:
            consumer.close()


class KafkaLogEnds:
    """Returns the next offset to be written of a partition: of those records that a reader may see. Thread-safe.

    Its connection stays open, so a call takes about a millisecond. Raises `BrokerUnavailable` after `timeout_s`.
    """

    def __init__(self, kafka: KafkaConnection, service: str, *, timeout_s: float = 2.0) -> None:
        self._timeout_s = timeout_s
        self._consumer = build_consumer(
            kafka,
            {
                "client.id": service,
                "group.id": f"{service}-ends",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                **QUIET,
            },
        )

    def __call__(self, position: Position) -> int:
        """Return the end of a partition."""
        try:
            found = self._consumer.get_watermark_offsets(TopicPartition(*position), timeout=self._timeout_s)
        except KafkaException as error:
            raise to_error(error.args[0]) from error
        if found is None:
            raise BrokerUnavailable(f"Kafka did not return the end of {position[0]}: try again later")
        return int(found[1])

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()


def _bounds(consumer: Consumer, part: TopicPartition) -> tuple[int, int]:
    found: tuple[int, int] | None = consumer.get_watermark_offsets(part, timeout=CALL_S)
    if found is None:
        raise BrokerUnavailable(f"Kafka did not return the offsets of {part.topic}: try again later")
    return found
