"""Consumer of operator commands. Of all processes of this service, one at a time receives them."""

from __future__ import annotations

from typing import Final, Protocol

from confluent_kafka import Consumer, KafkaException, TopicPartition

from shared.adapters.kafka import QUIET, to_record
from shared.adapters.kafka_clients import build_consumer
from shared.adapters.kafka_errors import to_error
from shared.kafka_connection import KafkaConnection
from shared.records import Record
from shared.topics import OPERATOR_COMMANDS

GROUP: Final = "loopwright-feedback-commands"


class CommandConsumer(Protocol):
    """Reads commands in order, each at least once. For use by one thread.

    The process that receives the commands may change between two calls of `poll`.
    """

    def poll(self, timeout: float) -> list[Record]:
        """Return the next commands; empty while another process receives them. Raise `Retryable` on failure."""

    def newly_assigned(self) -> bool:
        """Return True once after each time this process starts to receive commands.

        Other processes may have executed commands in the meantime.
        """

    def commit(self, record: Record) -> None:
        """Mark a command as executed: the next process continues after it.

        Raises:
            Retryable: on failure; the command may then be delivered again.

        """

    def close(self) -> None:
        """Hand over to another process."""


class KafkaCommandConsumer:
    """`CommandConsumer` by a consumer group: `operator.commands` has one partition, so the group has one reader."""

    def __init__(self, kafka: KafkaConnection, service: str) -> None:
        self._newly_assigned = False
        self._consumer = build_consumer(
            kafka,
            {
                "client.id": service,
                "group.id": GROUP,
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                # After a long idle time the group's position is lost. The results show which commands were executed.
                "auto.offset.reset": "earliest",
                "session.timeout.ms": 6_000,
                "heartbeat.interval.ms": 1_000,
                **QUIET,
            },
        )
        self._consumer.subscribe([OPERATOR_COMMANDS.name], on_assign=self._on_assign)

    def poll(self, timeout: float) -> list[Record]:
        """Return the next command, if there is one."""
        message = self._consumer.poll(timeout)
        if message is None:
            return []
        error = message.error()
        if error is not None:
            raise to_error(error)
        return [to_record(message)]

    def newly_assigned(self) -> bool:
        """Return True once after each assignment of the partition."""
        assigned, self._newly_assigned = self._newly_assigned, False
        return assigned

    def commit(self, record: Record) -> None:
        """Commit the offset after `record`."""
        next_offset = TopicPartition(record.topic, record.partition, record.offset + 1)
        try:
            self._consumer.commit(offsets=[next_offset], asynchronous=False)
        except KafkaException as error:
            raise to_error(error.args[0]) from error

    def close(self) -> None:
        """Leave the consumer group."""
        self._consumer.close()

    def _on_assign(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self._newly_assigned = self._newly_assigned or bool(partitions)
