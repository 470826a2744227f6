"""Number of records ever written to a topic: the sum of its partitions' end offsets."""

from __future__ import annotations

import threading

from confluent_kafka import KafkaException, TopicPartition

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
        """Return the sum of the end offsets. Raise `BrokerUnavailable` if a broker does not answer in time."""
        with self._lock:
            try:
                offsets = [
                    self._consumer.get_watermark_offsets(partition, timeout=self._timeout_s)
                    for partition in self._partitions
                ]
            except KafkaException as error:
                raise to_error(error.args[0]) from error
        return sum(end for _, end in offsets)

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()
