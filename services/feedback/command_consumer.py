"""Operator commands for the one process, among all of this service, whose duty they are: a consumer group's."""

from __future__ import annotations

from typing import Protocol

from confluent_kafka import Consumer, KafkaException, TopicPartition

from shared.adapters.kafka import QUIET, to_error, to_record
from shared.records import Record
from shared.topics import OPERATOR_COMMANDS

GROUP = "loopwright-feedback-commands"


class CommandConsumer(Protocol):
    """One thread. Records come at least once, in order; to whom they come may change between two calls of `poll`."""

    def poll(self, timeout: float) -> list[Record]:
        """What is to be done; empty while another process has the duty. Raises `Retryable`."""

    def took_over(self) -> bool:
        """True once after each time the duty came to this process: others may have done things since."""

    def keep(self, record: Record) -> None:
        """It is done with: a successor goes on after it. Raises `Retryable`; then it may come again."""

    def close(self) -> None:
        """Hands the duty on."""


class KafkaCommandConsumer:
    """`Duty` over `operator.commands`, which has one partition: the group gives it to one member."""

    def __init__(self, servers: str, service: str) -> None:
        self._took_over = False
        self._consumer = Consumer(
            {
                "bootstrap.servers": servers,
                "client.id": service,
                "group.id": GROUP,
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                # A group that was empty for long has lost its position; what was done is known from the results.
                "auto.offset.reset": "earliest",
                "session.timeout.ms": 6_000,
                "heartbeat.interval.ms": 1_000,
                **QUIET,
            }
        )
        self._consumer.subscribe([OPERATOR_COMMANDS.name], on_assign=self._on_assign)

    def poll(self, timeout: float) -> list[Record]:
        message = self._consumer.poll(timeout)
        if message is None:
            return []
        error = message.error()
        if error is not None:
            raise to_error(error)
        return [to_record(message)]

    def took_over(self) -> bool:
        took, self._took_over = self._took_over, False
        return took

    def keep(self, record: Record) -> None:
        after = TopicPartition(record.topic, record.partition, record.offset + 1)
        try:
            self._consumer.commit(offsets=[after], asynchronous=False)
        except KafkaException as error:
            raise to_error(error.args[0]) from error

    def close(self) -> None:
        self._consumer.close()

    def _on_assign(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self._took_over = self._took_over or bool(partitions)
