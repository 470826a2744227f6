"""The consumer of the input topics: membership in the group, reading into buffers of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from shared.errors import Fatal, Misconfigured, NotYet
from shared.records import Headers, Record
from shared.stream.config import AUTHORIZATION_ERRORS, EngineConfig
from shared.stream.partition import OwnedPartition

METADATA_TIMEOUT_S = 2.0


class TopicMissing(NotYet):
    """A topic that the engine needs does not exist yet."""

    code = "no_topic"


class InputConsumer:
    """A member of the group.

    Rebalances happen inside `read` and `close` only, and are left in `assigned` and `revoke_reason` for the engine to act
    on; until `begin` nothing is read of what was assigned. A revocation that comes while a transaction is being
    committed waits for that, as only a member of the group may commit positions.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self.assigned: list[int] | None = None
        """Partitions just assigned, not yet begun. The engine sets it back to None."""
        self.revoke_reason: str | None = None
        """Why what was owned is owned no longer. The engine sets it back to None."""
        self.last_error: str | None = None
        """What the client last complained of."""
        self.before_revoke: Callable[[], None] = lambda: None
        """Called when partitions are revoked or lost, before the group hears that they are given up."""
        self._consumer = Consumer(config.consumer_settings() | {"error_cb": self._note_error})
        self._per_buffer = 0
        self._closed = False

    def check_topics(self) -> int:
        """P, after asserting that inputs and changelog agree. Raises `NotThere`, `KafkaException`."""
        config = self._config
        counts: dict[str, int] = {}
        for topic in (*config.inputs, config.changelog):
            found = self._consumer.list_topics(topic, timeout=METADATA_TIMEOUT_S).topics[topic]
            if found.error is not None or not found.partitions:
                raise TopicMissing(f"the topic {topic} to be created")
            counts[topic] = len(found.partitions)
        expected = config.partitions or counts[config.changelog]
        if set(counts.values()) != {expected}:
            raise Misconfigured(
                f"{config.application}: inputs and changelog must have the same number of partitions"
                f"{f' ({config.partitions})' if config.partitions else ''}, but have {counts}. The number is fixed "
                "when a deployment is made: create the topics anew with the right one."
            )
        self._per_buffer = max(1, config.buffer_bytes // (expected * len(config.inputs)))
        return expected

    def join(self) -> None:
        """Enters the group; partitions come by `read`."""
        self._consumer.subscribe(
            list(self._config.inputs),
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_lost,
        )

    def committed_offsets(self, partitions: Sequence[int]) -> dict[int, dict[str, int]]:
        """The group's committed positions, per partition and topic, where there are any.

        Waits for pending offsets of undecided transactions. Raises `KafkaException`.
        """
        asked = [TopicPartition(topic, number) for number in partitions for topic in self._config.inputs]
        found: dict[int, dict[str, int]] = {number: {} for number in partitions}
        for each in self._consumer.committed(asked, timeout=METADATA_TIMEOUT_S):
            if each.error is not None:
                raise KafkaException(each.error)
            if each.offset >= 0:
                found[each.partition][each.topic] = each.offset
        return found

    def start_reading(self, positions: Mapping[int, Mapping[str, int]]) -> None:
        """Reads each input from its position on; where none is known, from the beginning."""
        self._consumer.assign(
            [
                TopicPartition(topic, number, known.get(topic, OFFSET_BEGINNING))
                for number, known in positions.items()
                for topic in self._config.inputs
            ]
        )

    def read(self, owned: Mapping[int, OwnedPartition], limit: int, timeout: float) -> int:
        """Moves what has come into the buffers of `owned`; returns how many records.

        Takes the full `timeout` unless `limit` records are there. Records of partitions not in `owned` are left
        to their owner. Raises `Fatal` where reading cannot go on.
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
                record = Record(
                    message.topic(),  # type: ignore[arg-type]
                    number,
                    message.offset(),  # type: ignore[arg-type]
                    message.timestamp()[1],
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
        """Reads on where a buffer was full and is half empty again."""
        for partition in owned.values():
            for topic in [
                t for t in partition.paused if partition.merge_buffer.bytes_of(t) <= self._per_buffer // 2
            ]:
                self._consumer.resume([TopicPartition(topic, partition.number)])
                partition.paused.discard(topic)

    def group_metadata(self) -> Any:
        """The membership that a transaction commits positions under."""
        return self._consumer.consumer_group_metadata()

    def high_watermark(self, topic: str, partition: int) -> int | None:
        """The end of an input as last heard, without asking the broker."""
        found: tuple[int, int] | None = self._consumer.get_watermark_offsets(
            TopicPartition(topic, partition), cached=True
        )
        return None if found is None or found[1] < 0 else found[1]

    def broker_answers(self) -> bool:
        """Asks for something small. Clears `last_error` if it comes."""
        try:
            self._consumer.list_topics(self._config.changelog, timeout=METADATA_TIMEOUT_S)
        except KafkaException:
            return False
        self.last_error = None
        return True

    def close(self) -> None:
        """Leaves the group, so that others take over at once. May be called twice."""
        if not self._closed:
            self._closed = True
            self._consumer.close()

    def _pause_full(self, owned: Mapping[int, OwnedPartition]) -> None:
        """Stops reading an input whose buffer is full: others of its partition are behind, or the step is."""
        for partition in owned.values():
            for topic in self._config.inputs:
                if topic not in partition.paused and partition.merge_buffer.bytes_of(topic) > self._per_buffer:
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
            raise Fatal(
                f"{self._config.application}: the position to read {topic} from is no longer in the log "
                f"({error.str()}): records were deleted before they were processed. To go on without them, reset "
                "the group's offsets of this topic to the earliest."
            )
        elif error.fatal() or name in AUTHORIZATION_ERRORS:
            raise Fatal(f"{self._config.application}: the consumer cannot go on: {name}: {error.str()}")
        else:
            self._note_error(error)

    def _note_error(self, error: KafkaError) -> None:
        # Perhaps only one connection of several: the engine asks before it says that Kafka is away.
        self.last_error = f"{error.name()}: {error.str()}"

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Takes note, and has nothing read before the state is restored."""
        topics: dict[int, set[str]] = {}
        for each in partitions:
            topics.setdefault(each.partition, set()).add(each.topic)
        if any(found != set(self._config.inputs) for found in topics.values()):
            raise Misconfigured(
                f"{self._config.application}: the same partition number of every input must land together, "
                f"but assigned were {topics}. All members of the group must read {self._config.inputs} "
                "with the range assignor."
            )
        consumer.assign([])
        self.assigned = sorted(topics)

    def _on_revoke(self, _consumer: Consumer, _partitions: list[TopicPartition]) -> None:
        self.before_revoke()
        self.assigned, self.revoke_reason = None, "handed over"

    def _on_lost(self, _consumer: Consumer, _partitions: list[TopicPartition]) -> None:
        self.before_revoke()
        self.assigned, self.revoke_reason = None, "lost: the group gave this member up"


def _headers(raw: Any) -> Headers:
    """A header may have no value; that is the same as an empty one."""
    if None in [value for _, value in raw]:
        return tuple((name, value if value is not None else b"") for name, value in raw)
    return tuple(raw)
