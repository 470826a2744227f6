"""Reads a partition's own outputs again, for the steps that asked to see them.

Beside the inputs, and never ahead of them: what is read here waits in a bounded buffer until a slice takes some of it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from shared.adapters.kafka import to_record
from shared.errors import Fatal
from shared.records import Record
from shared.stream.config import AUTHORIZATION_ERRORS, EngineConfig
from shared.stream.merge import memory_bytes
from shared.stream.offsets import Positions

log = structlog.get_logger(__name__)

RECORDS_PER_SLICE = 64
"""Reread records of one partition in a slice, at most."""
MAX_BUFFERED_BYTES = 4 << 20
"""Reread records waiting for slices, of all partitions together; in a slice there are never more than waited."""
RECORDS_PER_CALL = 8
"""Asked for at once: what one call brings comes on top of what may wait."""
METADATA_TIMEOUT_S = 2.0
RETRY_INTERVAL_S = 1.0


@dataclass(slots=True)
class RereadCursor:
    """One output topic of one partition being read again. `position` runs to `end`, which was the high watermark."""

    position: int
    end: int
    buffer: deque[Record] = field(default_factory=deque)
    buffered_bytes: int = 0
    """What waits, as buffered records are weighed."""
    failed_completions: int = 0
    """How often in a row the step raised on being told that this is through."""
    retry_completion_at: float = 0.0
    """When to tell it, in monotonic seconds."""

    @property
    def done(self) -> bool:
        """Whether all of it has been taken."""
        return self.position >= self.end and not self.buffer

    @property
    def has_work(self) -> bool:
        """Whether a slice would take something of it."""
        return bool(self.buffer) or self.done

    def add(self, record: Record) -> None:
        """The next one read; what was appended after the end is left out."""
        self.position = record.offset + 1
        if record.offset < self.end:
            self.buffer.append(record)
            self.buffered_bytes += memory_bytes(record)

    def take(self, limit: int) -> list[Record]:
        """Up to `limit` of what waits."""
        taken = [self.buffer.popleft() for _ in range(min(limit, len(self.buffer)))]
        self.buffered_bytes -= sum(map(memory_bytes, taken))
        return taken

    def put_back(self, records: Iterable[Record]) -> None:
        """Undoes a `take`."""
        for record in reversed(list(records)):
            self.buffer.appendleft(record)
            self.buffered_bytes += memory_bytes(record)


class Owned(Protocol):
    """What is asked of a partition that this process owns."""

    positions: Positions
    reread_cursors: dict[str, RereadCursor]


class OutputRereader:
    """The reader behind the rereads of all owned partitions. One thread.

    It is no member of the group: the partitions are assigned by hand, and where each stands is committed with the
    state. It exists only while a reread is under way. As it is read_committed, it comes to the end only once every
    transaction before it is decided.
    """

    def __init__(self, config: EngineConfig) -> None:
        """Connects to nothing."""
        self._config = config
        self._consumer: Consumer | None = None
        self._marks: Consumer | None = None
        self._next_begin = 0.0

    def advance(self, owned: Mapping[int, Owned]) -> None:
        """Begins what was asked for, and moves what has come into the partitions' readings. Does not wait for records.

        Raises `Fatal` where it is not allowed to read. Costs nothing while nothing is asked for.
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
                self._read(message, owned)

    def close(self) -> None:
        """Releases the clients. May be called twice."""
        for client in (self._consumer, self._marks):
            if client is not None:
                client.close()
        self._consumer = self._marks = None

    def _begin_all(self, owned: Mapping[int, Owned]) -> None:
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
                "a reread could not begin yet",
                application=self._config.application,
                error=error.args[0].str(),
            )

    def _begin(self, topic: str, number: int, position: int) -> RereadCursor:
        """From `position`, or where the log begins by now, to where it ends. Raises `KafkaException`."""
        if self._marks is None:
            self._marks = Consumer(self._config.watermark_settings())
        at = TopicPartition(topic, number)
        marks: tuple[int, int] | None = self._marks.get_watermark_offsets(at, timeout=METADATA_TIMEOUT_S)
        if marks is None:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"no answer for the end of {topic}"))
        low, high = marks
        reading = RereadCursor(max(position, low), high)
        if reading.position < high:
            if self._consumer is None:
                self._consumer = Consumer(self._config.rereader_settings())
            self._consumer.incremental_assign([TopicPartition(topic, number, reading.position)])
        log.info(
            "rereading",
            application=self._config.application,
            topic=topic,
            partition=number,
            begin=reading.position,
            end=high,
        )
        return reading

    def _read(self, message: Message, owned: Mapping[int, Owned]) -> None:
        topic, number, offset = message.topic(), message.partition(), message.offset()
        if topic is None or number is None or offset is None:
            self._refused(message.error(), topic)
            return
        partition = owned.get(number)
        reading = partition.reread_cursors.get(topic) if partition is not None else None
        if partition is None or reading is None:
            self._leave(topic, number)
            return
        error = message.error()
        if error is None:
            reading.add(to_record(message))
        elif error.name() == "_PARTITION_EOF":
            reading.position = max(reading.position, offset)
        elif error.name() == "_AUTO_OFFSET_RESET":
            # What stood there was deleted meanwhile: begin again where the log does.
            self._leave(topic, number)
            del partition.reread_cursors[topic]
            return
        else:
            self._refused(error, topic)
        if reading.position >= reading.end:
            self._leave(topic, number)

    def _leave(self, topic: str, number: int) -> None:
        """Reads no more of it."""
        assert self._consumer is not None
        if any(each.topic == topic and each.partition == number for each in self._consumer.assignment()):
            self._consumer.incremental_unassign([TopicPartition(topic, number)])

    def _refused(self, error: KafkaError | None, topic: str | None) -> None:
        if error is not None and (error.fatal() or error.name() in AUTHORIZATION_ERRORS):
            raise Fatal(
                f"{self._config.application}: {topic} cannot be read again: {error.name()}: {error.str()}"
            )


def _has_capacity(owned: Mapping[int, Owned]) -> bool:
    """Whether more may wait: no more than the next slices take, and no more than the stated bytes."""
    count, left = 0, MAX_BUFFERED_BYTES
    for partition in owned.values():
        for reading in partition.reread_cursors.values():
            count += len(reading.buffer)
            left -= reading.buffered_bytes
    return count < RECORDS_PER_SLICE * len(owned) and left > 0
