"""Numbers of records of a topic, from the offsets of its partitions."""

from __future__ import annotations

import threading

from confluent_kafka import KafkaException, TopicPartition

from services.console.core.ledger import CountedRecords
from shared.adapters.kafka import QUIET
from shared.adapters.kafka_clients import build_consumer
from shared.adapters.kafka_errors import to_error
from shared.kafka_connection import KafkaConnection


class KafkaEndOffsets:
    """Reads end offsets from the broker. Thread-safe.

    The sum counts records exactly only for a topic written without transactions, such as `feedback.events`, because
    transaction markers take offsets too.
    """

    def __init__(
        self,
        kafka: KafkaConnection,
        client_id: str,
        topic: str,
        partitions: int,
        *,
        timeout_s: float = 2.0,
    ) -> None:
        self._partitions = [TopicPartition(topic, partition) for partition in range(partitions)]
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._starts_at_ms = -1
        self._cached_starts: list[int] = []
        self._consumer = build_consumer(
            kafka,
            {
                "client.id": client_id,
                "group.id": f"{client_id}-ends",
                "enable.auto.commit": False,
                **QUIET,
            },
        )

    def total(self) -> int:
        """Return how many records were ever written. Raise `BrokerUnavailable` if a broker does not answer in time."""
        with self._lock:
            return sum(end for _, end in self._bounds())

    def count_since(self, at_ms: int) -> CountedRecords:
        """Return how many records were appended since `at_ms`, or all of them if retention has deleted none yet.

        Raises:
            BrokerUnavailable: if a broker does not answer in time.

        """
        with self._lock:
            bounds = self._bounds()
            if all(start == 0 for start, _ in bounds):
                return CountedRecords(sum(end for _, end in bounds), complete=True)
            starts = self._starts(at_ms)
            ends = [end for _, end in bounds]
        return CountedRecords(
            sum(end - (end if start < 0 else start) for start, end in zip(starts, ends, strict=True)),
            complete=False,
        )

    def _bounds(self) -> list[tuple[int, int]]:
        """Return the lowest and the next offset of each partition."""
        try:
            return [
                self._consumer.get_watermark_offsets(partition, timeout=self._timeout_s)
                for partition in self._partitions
            ]
        except KafkaException as error:
            raise to_error(error.args[0]) from error

    def _starts(self, at_ms: int) -> list[int]:
        """Return the first offset since `at_ms` of each partition; negative if there is none. Cached per time."""
        if at_ms != self._starts_at_ms or any(start < 0 for start in self._cached_starts):
            queries = [TopicPartition(part.topic, part.partition, at_ms) for part in self._partitions]
            try:
                found = self._consumer.offsets_for_times(queries, timeout=self._timeout_s)
            except KafkaException as error:
                raise to_error(error.args[0]) from error
            by_partition = {part.partition: part.offset for part in found}
            self._cached_starts = [by_partition[part.partition] for part in self._partitions]
            self._starts_at_ms = at_ms
        return self._cached_starts

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()
