"""Consumer of the input topics: group membership, and reading into buffers of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    TIMESTAMP_LOG_APPEND_TIME,
    Consumer,
    KafkaError,
    KafkaException,
    TopicPartition,
)

from shared.adapters.clock import SystemClock
from shared.adapters.kafka_clients import build_consumer
from shared.adapters.kafka_errors import TOPIC_ERRORS, describe_refusal
from shared.adapters.topic_partitions import read_partitions
from shared.errors import Fatal, Misconfigured, NotYet, TopicUnavailable
from shared.ports import Clock
from shared.records import Headers, Record
from shared.stream.config import EngineConfig
from shared.stream.partition import OwnedPartition
from shared.stream.topic_checks import FIX
from shared.stream.transaction import ClientsUnusable

METADATA_TIMEOUT_S = 2.0


class TopicMissing(NotYet):
    """A topic that the engine needs does not exist yet."""

    code = "no_topic"


class InputConsumer:
    """The group member that reads the input topics. Not thread-safe.

    Rebalances happen only inside `read` and `close`. They set `assigned` and `revoke_reason`, and the engine acts on
    them after the call: nothing is read from a new assignment before `start_reading`. A revocation during a commit
    waits for the commit (`before_revoke`), because only a member of the group may commit positions.
    """

    def __init__(self, config: EngineConfig, clock: Clock | None = None) -> None:
        self._config = config
        self._clock = clock or SystemClock()
        self.unverified: frozenset[str] = frozenset()
        """Inputs whose settings this process may not read."""
        self.unreadable: dict[int, str] = {}
        """Why a partition cannot be read from its position. The engine halts it and removes it from here."""
        self.assigned: list[int] | None = None
        """Partitions just assigned. The engine restores them and sets this to None."""
        self.revoke_reason: str | None = None
        """Why the owned partitions are no longer ours. The engine closes them and sets this to None."""
        self.last_error: str | None = None
        """Newest error of the client, until the broker answers again."""
        self.before_revoke: Callable[[], None] = lambda: None
        """Called when partitions are revoked or lost, before the group learns that they are released."""
        self._consumer = build_consumer(
            config.kafka, config.consumer_settings() | {"error_cb": self._note_error}
        )
        self._bytes_per_buffer = config.buffer_bytes
        """Share of each input of each owned partition. A pause discards what the client has prefetched, so the share is
        not smaller than necessary."""
        self._closed = False

    def check_topics(self) -> int:
        """Check that inputs and changelog have the same number of partitions, and return it.

        Raises `TopicMissing` if one of them does not exist, `NotPermitted` if one may not be read, `BrokerUnavailable`
        if the broker does not know, `Misconfigured` if they differ, and `KafkaException`.
        """
        config = self._config
        counts: dict[str, int] = {}
        for topic in (*config.inputs, config.changelog):
            try:
                found = read_partitions(
                    self._consumer, topic, prefix=config.kafka.prefix, timeout_s=METADATA_TIMEOUT_S
                )
            except TopicUnavailable as missing:
                raise TopicMissing(f"the topic {topic} to be created") from missing
            counts[topic] = len(found)
        expected = config.partitions or counts[config.changelog]
        if set(counts.values()) != {expected}:
            raise Misconfigured(
                f"{config.application}: inputs and changelog must have the same number of partitions"
                f"{f' ({config.partitions})' if config.partitions else ''}, but have {counts}. It cannot change later: "
                "delete the topics and create them with the right number of partitions."
            )
        return expected

    def join(self) -> None:
        """Join the group. Partitions are assigned during later calls of `read`."""
        self._consumer.subscribe(
            list(self._config.inputs),
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_lost,
        )

    def committed_offsets(self, partitions: Sequence[int]) -> dict[int, dict[str, int]]:
        """Return the group's committed offsets by partition and topic, without topics that have none.

        Waits for the offsets of undecided transactions. Raises `KafkaException`.
        """
        wanted = [TopicPartition(topic, number) for number in partitions for topic in self._config.inputs]
        offsets: dict[int, dict[str, int]] = {number: {} for number in partitions}
        for each in self._consumer.committed(wanted, timeout=METADATA_TIMEOUT_S):
            if each.error is not None:
                raise KafkaException(each.error)
            if each.offset >= 0:
                offsets[each.partition][each.topic] = each.offset
        return offsets

    def start_reading(self, positions: Mapping[int, Mapping[str, int]]) -> None:
        """Read each input from its position, or from the beginning if it has none."""
        buffers = max(1, len(positions) * len(self._config.inputs))
        self._bytes_per_buffer = max(1, self._config.buffer_bytes // buffers)
        partitions = [
            TopicPartition(topic, number, offsets.get(topic, OFFSET_BEGINNING))
            for number, offsets in positions.items()
            for topic in self._config.inputs
        ]
        self._consumer.assign(partitions)
        self._consumer.resume(partitions)  # a pause outlives the assignment

    def read(self, owned: Mapping[int, OwnedPartition], limit: int, timeout: float) -> int:
        """Move records that have arrived into the buffers of `owned`, and return how many.

        Blocks for the whole `timeout` (seconds) unless `limit` records arrive. Skips records of other partitions, and
        pauses inputs whose buffer is full. Raises `ClientsUnusable` while an input may not be read or does not exist,
        and `Fatal` if reading cannot continue.
        """
        count = 0
        for message in self._consumer.consume(limit, timeout):
            number: Any = message.partition()
            partition = owned.get(number)
            error = message.error()
            if error is not None:
                self._handle_error(error, partition, message.topic(), message.offset())
            elif partition is not None:
                raw = message.headers()
                kind, time_ms = message.timestamp()
                if kind != TIMESTAMP_LOG_APPEND_TIME:
                    time_ms = self._harmless_time(message.topic(), message.offset(), time_ms, partition)
                record = Record(
                    message.topic(),  # type: ignore[arg-type]
                    number,
                    message.offset(),  # type: ignore[arg-type]
                    time_ms,
                    message.key(),
                    message.value(),
                    _headers(raw) if raw else (),
                )
                partition.merge_buffer.add(record)
                count += 1
        if count:
            self.last_error = None
            self._pause_full(owned)
        return count

    def resume_drained(self, owned: Mapping[int, OwnedPartition]) -> None:
        """Resume paused inputs whose buffer is at most half full. Call this after slices took records."""
        for partition in owned.values():
            for topic in [
                t
                for t in partition.paused
                if partition.merge_buffer.bytes_of(t) <= self._bytes_per_buffer // 2
            ]:
                self._consumer.resume([TopicPartition(topic, partition.number)])
                partition.paused.discard(topic)

    def pause(self, partition: OwnedPartition) -> None:
        """Stop reading the inputs of a partition until `start_reading` is called with it."""
        self._consumer.pause([TopicPartition(topic, partition.number) for topic in self._config.inputs])

    def group_metadata(self) -> Any:
        """Return the group membership under which a transaction commits positions."""
        return self._consumer.consumer_group_metadata()

    def high_watermark(self, topic: str, partition: int) -> int | None:
        """Return the last known end offset of an input, without asking the broker; None if unknown."""
        marks: tuple[int, int] | None = self._consumer.get_watermark_offsets(
            TopicPartition(topic, partition), cached=True
        )
        return None if marks is None or marks[1] < 0 else marks[1]

    def broker_answers(self) -> bool:
        """Send a small request to the broker. If it answers, clear `last_error` and return True."""
        try:
            self._consumer.list_topics(self._config.changelog, timeout=METADATA_TIMEOUT_S)
        except KafkaException:
            return False
        self.last_error = None
        return True

    def close(self) -> None:
        """Leave the group, so that other members take over at once. May be called twice."""
        if not self._closed:
            self._closed = True
            self._consumer.close()

    def _harmless_time(self, topic: Any, offset: Any, time_ms: int, partition: OwnedPartition) -> int:
        """Return a time for a record whose timestamp the broker did not set: one that moves no stream time.

        The topic uses LogAppendTime now, so such a record was appended before. Raises `Misconfigured` if the topic's
        settings cannot be read.
        """
        if not self._config.require_append_time:
            return time_ms
        if topic in self.unverified:
            raise Misconfigured(
                f"{self._config.application}: the record at {topic} [{partition.number}] offset {offset} has its "
                f"producer's timestamp. If the topic does not use LogAppendTime, run `{FIX}`. If the record is older "
                "than that setting, allow this process to describe the topic's configuration (DESCRIBE_CONFIGS)."
            )
        return max(0, min(time_ms, partition.positions.time_ms or self._clock.now_ms()))

    def _pause_full(self, owned: Mapping[int, OwnedPartition]) -> None:
        """Pause each input whose buffer is full: other inputs of its partition lag behind, or the step is slow."""
        for partition in owned.values():
            for topic in self._config.inputs:
                full = partition.merge_buffer.bytes_of(topic) > self._bytes_per_buffer
                if full and topic not in partition.paused:
                    self._consumer.pause([TopicPartition(topic, partition.number)])
                    partition.paused.add(topic)

    def _handle_error(
        self, error: KafkaError, partition: OwnedPartition | None, topic: str | None, offset: int | None
    ) -> None:
        name = error.name()
        if name == "_PARTITION_EOF":
            if partition is not None and topic is not None and offset is not None:
                partition.mark_end(topic, offset)
        elif name == "_AUTO_OFFSET_RESET":
            if partition is not None:
                position = partition.positions.offsets.get(topic or "", 0)
                self.unreadable[partition.number] = (
                    f"the position {position} in {topic} is not in the log: records were deleted before they were "
                    "processed, or the topic was deleted and created again"
                )
        elif (refusal := self._describe_refusal(error, topic)) is not None or name in TOPIC_ERRORS:
            # The client reports it once, and may take minutes to notice that it has passed. New clients check first.
            raise ClientsUnusable(refusal or f"the input {topic} no longer exists ({error.str()})")
        elif error.fatal():
            raise Fatal(f"{self._config.application}: the consumer cannot continue: {name}: {error.str()}")
        else:
            self._note_error(error)

    def _describe_refusal(self, error: KafkaError, topic: str | None) -> str | None:
        prefix = self._config.kafka.prefix
        return describe_refusal(
            error,
            topic=prefix + topic if topic else "",
            reading=True,
            group=prefix + self._config.application,
        )

    def _note_error(self, error: KafkaError) -> None:
        # It may concern one connection of several: the engine checks before it reports that Kafka is unreachable.
        self.last_error = f"{error.name()}: {error.str()}"

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Note the assignment, and read nothing until the state is restored."""
        topics: dict[int, set[str]] = {}
        for each in partitions:
            topics.setdefault(each.partition, set()).add(each.topic)
        if any(assigned != set(self._config.inputs) for assigned in topics.values()):
            raise Misconfigured(
                f"{self._config.application}: the same partition of every input must be assigned to one member, but "
                f"this one got {topics}. Every member of the group must read {self._config.inputs} with the range "
                "assignor."
            )
        consumer.assign([])
        self.assigned = sorted(topics)

    def _on_revoke(self, _consumer: Consumer, _partitions: list[TopicPartition]) -> None:
        self.before_revoke()
        self.assigned, self.revoke_reason = None, "handed over"

    def _on_lost(self, _consumer: Consumer, _partitions: list[TopicPartition]) -> None:
        self.before_revoke()
        self.assigned, self.revoke_reason = None, "lost: the group removed this member"


def _headers(raw: Any) -> Headers:
    """Return headers as they are, with an empty value in place of a missing one."""
    if None in [value for _, value in raw]:
        return tuple((name, value if value is not None else b"") for name, value in raw)
    return tuple(raw)
