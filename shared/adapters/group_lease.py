"""Lease by a consumer group: of all processes that want it, one holds it, and the others wait.

The members subscribe to a topic with one partition, whose owner holds the lease. Nothing is read from it. The group
moves the lease when its holder leaves or stops responding. A new member never takes it from a holder that responds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from shared.adapters.kafka_clients import build_consumer
from shared.adapters.kafka_errors import describe_refusal
from shared.kafka_connection import KafkaConnection
from shared.topics import Topic

POLL_S: Final = 0.2
SESSION_TIMEOUT_MS: Final = 6_000
"""Time after which a holder that does not respond loses the lease."""
log = structlog.get_logger(__name__)


class GroupLease:
    """One process's membership in the group. `close` gives the lease to another one at once.

    A holder that was cut off from Kafka for longer than the session may find that another process took the lease:
    `taken` is then True. The lease alone does not stop a former holder, so writes need a `transactional.id` as well.
    """

    def __init__(
        self,
        kafka: KafkaConnection,
        group: str,
        topic: Topic,
        client_id: str,
        on_taken: Callable[[], None] = lambda: None,
    ) -> None:
        """Join the group. `topic` has one partition. When `taken` turns True, another thread calls `on_taken`."""
        self.taken = False
        self.problem: str | None = None
        """Which permission this process lacks to join the group, or None."""
        self._names = {"topic": kafka.prefix + topic.name, "group": kafka.prefix + group}
        self._on_taken = on_taken
        self._held = threading.Event()
        self._was_held = False
        self._closing = threading.Event()
        self._consumer = build_consumer(
            kafka,
            {
                "client.id": client_id,
                "group.id": group,
                "enable.auto.commit": False,
                "partition.assignment.strategy": "cooperative-sticky",
                "session.timeout.ms": SESSION_TIMEOUT_MS,
                "heartbeat.interval.ms": 1_000,
                "log_level": 2,
            },
        )
        self._consumer.subscribe(
            [topic.name], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
        )
        self._thread = threading.Thread(target=self._run, name=f"lease-{group}", daemon=True)
        self._thread.start()

    @property
    def held(self) -> bool:
        """Whether this process holds the lease."""
        return self._held.is_set()

    def wait(self, stopping: threading.Event) -> bool:
        """Block until this process holds the lease; return False if `stopping` was set before."""
        while not self._held.wait(POLL_S):
            if stopping.is_set():
                return False
        return True

    def close(self) -> None:
        """Leave the group. May be called twice."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self._poll()
        finally:
            self._held.clear()
            self._consumer.close()

    def _poll(self) -> None:
        try:
            message = self._consumer.poll(POLL_S)
        except KafkaException as error:
            self._note_error(error.args[0])
            time.sleep(POLL_S)
            return
        refused = message.error() if message is not None else None
        if refused is not None:
            self._note_error(refused)

    def _note_error(self, error: KafkaError) -> None:
        log.warning("lease", error=str(error))
        refusal = describe_refusal(error, reading=True, **self._names)
        if refusal is not None:
            self.problem = refusal

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.problem = None
        if partitions:
            consumer.incremental_assign(partitions)
            consumer.pause(partitions)
            self._was_held = True
            self._held.set()
        elif self._was_held and not self._held.is_set():
            self.taken = True
            self._on_taken()

    def _on_revoke(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        if partitions:
            self._held.clear()
