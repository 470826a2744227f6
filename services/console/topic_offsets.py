"""How many records a topic has ever been given: the sum of its partitions' ends."""

from __future__ import annotations

import threading

from confluent_kafka import Consumer, KafkaException, TopicPartition

from shared.adapters.kafka import to_error


class KafkaEndOffsets:
    """Asks the broker. Exact for a topic written without transactions, as `feedback.events` is. Thread-safe."""

    def __init__(
        self, servers: str, client_id: str, topic: str, partitions: int, *, timeout_s: float = 2.0
    ) -> None:
        self._parts = [TopicPartition(topic, partition) for partition in range(partitions)]
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._consumer = Consumer(
            {
                "bootstrap.servers": servers,
                "client.id": client_id,
                "group.id": f"{client_id}-ends",
                "enable.auto.commit": False,
            }
        )

    def count(self) -> int:
        """Raises `BrokerUnavailable`."""
        with self._lock:
            try:
                ends = [
                    self._consumer.get_watermark_offsets(part, timeout=self._timeout_s)
                    for part in self._parts
                ]
            except KafkaException as error:
                raise to_error(error.args[0]) from error
        return sum(high for _, high in ends)

    def close(self) -> None:
        self._consumer.close()
