"""Reads a partition's own outputs again, for steps that returned a `RereadRequest`.

Records wait in a bounded buffer until a slice takes some of them, so rereading never delays the inputs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from shared.adapters.kafka import to_record
from shared.adapters.kafka_clients import build_consumer
from shared.adapters.kafka_errors import describe_refusal
from shared.errors import Fatal
from shared.stream.config import EngineConfig
from shared.stream.partition import OwnedPartition, RereadCursor

log = structlog.get_logger(__name__)

RECORDS_PER_SLICE = 64
"""Most reread records of one partition in a slice."""
MAX_BUFFERED_BYTES = 4 << 20
"""Limit for the buffered records of all partitions together. A slice takes no more than what is buffered."""
RECORDS_PER_CALL = 8
"""Records requested from the client at once. The buffers may exceed their limit by this many."""
METADATA_TIMEOUT_S = 2.0
RETRY_INTERVAL_S = 1.0


class OutputRereader:
    """Consumer behind the rereads of all owned partitions. Not thread-safe.

    It is not a member of the consumer group: its partitions are assigned manually, and their positions are committed
    with the state. Its clients exist only while a reread is in progress. It reads committed records only, so it reaches
    the end only after every earlier transaction is decided.
    """

    def __init__(self, config: EngineConfig) -> None:
        """Store the configuration. The first reread opens the connections."""
        self._config = config
        self._consumer: Consumer | None = None
        self._watermarks: Consumer | None = None
        self._next_begin = 0.0

    def advance(self, owned: Mapping[int, OwnedPartition]) -> None:
        """Begin the requested rereads and buffer records that have arrived. Returns without waiting for records.

        The engine calls this once per iteration, so it is cheap while no reread is in progress. Raises `Fatal` if the
        client cannot continue.
        """
        if not any(partition.positions.rereads for partition in owned.values()):
            self.close()
            return
        self._begin_all(owned)
        if self._consumer is None:
            return
        while _has_capacity(owned):
            messages = self._consumer.consume(RECORDS_PER_CALL, 0.0)
            if not messages:
                return
            for message in messages:
                self._handle_message(message, owned)

    def close(self) -> None:
        """Close the clients. May be called twice."""
        for client in (self._consumer, self._watermarks):
            if client is not None:
                client.close()
        self._consumer = self._watermarks = None

    def _begin_all(self, owned: Mapping[int, OwnedPartition]) -> None:
        if time.monotonic() < self._next_begin:
            return
        try:
            for number, partition in owned.items():
                for topic, position in partition.positions.rereads.items():
                    if topic not in partition.reread_cursors:
                        partition.reread_cursors[topic] = self._begin(topic, number, position)
        except KafkaException as error:
            self._next_begin = time.monotonic() + RETRY_INTERVAL_S
            log.warning(
                "cannot begin a reread yet",
                application=self._config.application,
                error=error.args[0].str(),
            )

    def _begin(self, topic: str, number: int, position: int) -> RereadCursor:
        """Begin at `position`, or at the first offset still in the log. Raises `KafkaException`."""
        if self._watermarks is None:
            self._watermarks = build_consumer(self._config.kafka, self._config.watermark_settings())
        marks: tuple[int, int] | None = self._watermarks.get_watermark_offsets(
            TopicPartition(topic, number), timeout=METADATA_TIMEOUT_S
        )
        if marks is None:
            raise KafkaException(
                KafkaError(KafkaError._TIMED_OUT, f"no end offset of {topic} within {METADATA_TIMEOUT_S} s")
            )
        low, high = marks
        cursor = RereadCursor(max(position, low), high)
        if cursor.position < high:
            if self._consumer is None:
                self._consumer = build_consumer(self._config.kafka, self._config.rereader_settings())
            self._consumer.incremental_assign([TopicPartition(topic, number, cursor.position)])
        log.info(
            "rereading",
            application=self._config.application,
            topic=topic,
            partition=number,
            begin=cursor.position,
            end=high,
        )
        return cursor

    def _handle_message(self, message: Message, owned: Mapping[int, OwnedPartition]) -> None:
        topic, number, offset = message.topic(), message.partition(), message.offset()
        if topic is None or number is None or offset is None:
            self._note_error(message.error(), topic)
            return
        partition = owned.get(number)
        cursor = partition.reread_cursors.get(topic) if partition is not None else None
        if partition is None or cursor is None:
            self._stop_reading(topic, number)
            return
        error = message.error()
        if error is None:
            cursor.add(to_record(message))
        elif error.name() == "_PARTITION_EOF":
            cursor.position = max(cursor.position, offset)
        elif error.name() == "_AUTO_OFFSET_RESET":
            # Retention deleted the records at this position: begin again at the first offset in the log.
            self._stop_reading(topic, number)
            del partition.reread_cursors[topic]
            return
        else:
            self._note_error(error, topic)
        if cursor.position >= cursor.end:
            self._stop_reading(topic, number)

    def _stop_reading(self, topic: str, number: int) -> None:
        assert self._consumer is not None
        if any(each.topic == topic and each.partition == number for each in self._consumer.assignment()):
            self._consumer.incremental_unassign([TopicPartition(topic, number)])

    def _note_error(self, error: KafkaError | None, topic: str | None) -> None:
        """Log an error of the client, which tries again by itself. Raises `Fatal` if it cannot."""
        if error is None:
            return
        refusal = describe_refusal(
            error, topic=self._config.kafka.prefix + topic if topic else "", reading=True
        )
        if refusal is not None:
            log.error("cannot continue a reread", application=self._config.application, reason=refusal)
        elif error.fatal():
            raise Fatal(
                f"{self._config.application}: cannot read the output topic {topic} again: {error.name()}: "
                f"{error.str()}."
            )


def _has_capacity(owned: Mapping[int, OwnedPartition]) -> bool:
    """Return whether more records may be buffered: up to one slice of each partition, and the stated bytes."""
    count, bytes_left = 0, MAX_BUFFERED_BYTES
    for partition in owned.values():
        for cursor in partition.reread_cursors.values():
            count += len(cursor.buffer)
            bytes_left -= cursor.buffered_bytes
    return count < RECORDS_PER_SLICE * len(owned) and bytes_left > 0
