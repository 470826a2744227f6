"""Brings the stores of newly assigned partitions to the end of the changelog."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from confluent_kafka import Consumer, Message, TopicPartition

from shared.errors import Fatal, Retryable
from shared.stream.config import EngineConfig
from shared.stream.store import Store

BATCH = 4_000
CALL_S = 0.02
STUCK_S = 15.0
"""Longer than any transaction of ours may stay open: its own time, and the broker's scan."""
METADATA_S = 5.0

Writes = dict[bytes, bytes | None]


class RestoreFailed(Retryable):
    """The changelog could not be read; begin again."""

    code = "restore_failed"


@dataclass(slots=True)
class Progress:
    """`position` runs from the store's to `target`, both changelog offsets."""

    position: int
    target: int

    @property
    def done(self) -> bool:
        """Whether the store reflects all that was in the changelog when the partition was assigned."""
        return self.position >= self.target


class Restore:
    """Reads each partition of the changelog from where its store stands up to the high watermark of the moment.

    The reader is read_committed, so it cannot pass a transaction that is still open: to reach the high watermark is
    to have waited until every transaction begun by a former owner is decided. It counts positions, not records, as
    transaction markers and compacted records leave gaps. Raises `KafkaException` where the broker is away.
    """

    def __init__(self, config: EngineConfig, stores: Mapping[int, Store]) -> None:
        self._topic = config.changelog
        self._stores = dict(stores)
        self.progress: dict[int, Progress] = {}
        self._consumer: Consumer | None = None
        self._moved = time.monotonic()
        watermarks = Consumer(config.watermarks())
        try:
            starts = [self._start(watermarks, partition) for partition in self._stores]
        finally:
            watermarks.close()
        if self.done:
            return
        self._consumer = Consumer(config.restorer())
        self._consumer.assign([start for start in starts if not self.progress[start.partition].done])

    @property
    def done(self) -> bool:
        """Whether all partitions are."""
        return all(progress.done for progress in self.progress.values())

    def advance(self) -> None:
        """Reads on for a moment. Raises `RestoreFailed` or `Fatal`."""
        if self._consumer is None or self.done:
            return
        writes: dict[int, Writes] = {}
        for message in self._consumer.consume(BATCH, CALL_S):
            partition, offset = _place(message)
            error = message.error()
            if error is None:
                key, value = message.key(), message.value()
                writes.setdefault(partition, {})[key or b""] = value
                self.progress[partition].position = offset + 1
            elif error.name() == "_PARTITION_EOF":
                writes.setdefault(partition, {})
                self.progress[partition].position = offset
            else:
                self._refused(error.name(), error.str())
        if any(writes.values()):
            self._moved = time.monotonic()
        for partition, batch in writes.items():
            self._stores[partition].apply(batch, self.progress[partition].position)

    def tells(self) -> str:
        """How far it is, for people; and what to do where it stands still."""
        each = self.progress.items()
        left = sum(max(0, p.target - p.position) for _, p in each)
        text = f"{sum(p.done for _, p in each)} of {len(each)} partitions restored, {left} changelog offsets to go"
        if self.done or time.monotonic() < self._moved + STUCK_S:
            return text
        at = ", ".join(f"partition {n} at offset {p.position}" for n, p in each if not p.done)
        return (
            f"{text}; {self._topic} stands still before a transaction that stays open ({at}). If this lasts, the "
            "broker has lost track of it: `kafka-transactions.sh find-hanging` shows it, `abort` ends it."
        )

    def close(self) -> None:
        """Releases the reader; the stores stay open."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def _start(self, watermarks: Consumer, partition: int) -> TopicPartition:
        """Where to read on. A store that does not fit the changelog is wiped and built anew."""
        found: tuple[int, int] | None = watermarks.get_watermark_offsets(
            TopicPartition(self._topic, partition), timeout=METADATA_S
        )
        if found is None:
            raise RestoreFailed(f"Kafka did not tell the end of {self._topic} [{partition}].")
        low, high = found
        store = self._stores[partition]
        position = store.position()
        if position is not None and not low <= position <= high:
            store.wipe()
            position = None
        if position is None and low == high:
            store.apply({}, high)
            position = high
        start = low if position is None else position
        self.progress[partition] = Progress(start, high)
        # A number, not "beginning": to look that up takes a fresh client half a second.
        return TopicPartition(self._topic, partition, start)

    def _refused(self, name: str, text: str) -> None:
        if name in ("TOPIC_AUTHORIZATION_FAILED", "GROUP_AUTHORIZATION_FAILED"):
            raise Fatal(f"The changelog {self._topic} cannot be read: {name}: {text}")
        raise RestoreFailed(f"The changelog {self._topic} could not be read: {name}: {text}")


def _place(message: Message) -> tuple[int, int]:
    partition, offset = message.partition(), message.offset()
    assert partition is not None
    return partition, -1 if offset is None else offset
