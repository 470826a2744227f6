"""One partition that this process owns: its buffered inputs, its state and its positions."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import orjson

from shared.dead_letters import DeadLetterRate
from shared.errors import Fatal
from shared.events import MAX_MS
from shared.records import Output, Record
from shared.stream.config import EngineConfig
from shared.stream.merge import MergeBuffer, memory_bytes
from shared.stream.state_store import AS_OF_KEY, POSITIONS_KEY, StateStore
from shared.stream.step import RereadComplete, Tick
from shared.stream.stream_time import ClockComparison, IdleTime
from shared.stream.write_buffer import WriteBuffer


@dataclass(slots=True)
class Positions:
    """How far one partition has been processed.

    The changelog holds them next to the state, in the same transaction, so the two always agree. `topics` is replaced
    as a whole, never changed.
    """

    offsets: dict[str, int] = field(default_factory=dict)
    """Next offset to process, by input topic."""
    time_ms: int = 0
    """Stream time: the append time of the partition's newest record, in ms since the epoch. The next record may move it
    back, so that a wrong clock of a broker lasts no longer than that."""
    rereads: dict[str, int] = field(default_factory=dict)
    """Next offset to read again, by output topic that has a reread in progress."""
    topics: dict[str, str] = field(default_factory=dict)
    """Ids of the inputs and the changelog, by name. A topic that is deleted and created again gets another id."""
    changelog_start: int = 0
    """First offset of the changelog that a person accepted as the beginning of the state; 0 if nothing is missing."""
    recoveries: int = 0
    """How many times a person has decided how to go on. A store with another number has another history."""

    def encode(self) -> bytes:
        """Return the value of the changelog record."""
        fields = {
            "schema_version": 1,
            "offsets": self.offsets,
            "time_ms": self.time_ms,
            "rereads": self.rereads,
            "topics": self.topics,
            "changelog_start": self.changelog_start,
            "recoveries": self.recoveries,
        }
        return orjson.dumps({name: value for name, value in fields.items() if name in _REQUIRED or value})

    @classmethod
    def decode(cls, value: bytes) -> Positions:
        """Parse the value of a changelog record. Raises `Fatal` if this engine did not write it."""
        try:
            fields = orjson.loads(value)
            offsets = {str(topic): int(offset) for topic, offset in fields["offsets"].items()}
            rereads = {str(topic): int(offset) for topic, offset in fields.get("rereads", {}).items()}
            topics = {str(name): str(topic_id) for name, topic_id in fields.get("topics", {}).items()}
            start, recoveries = int(fields.get("changelog_start", 0)), int(fields.get("recoveries", 0))
            return cls(offsets, int(fields["time_ms"]), rereads, topics, start, recoveries)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Fatal(
                f"cannot read the positions in the changelog ({error}): another program seems to have written to "
                "this topic. Give the engine a changelog topic that no other program writes."
            ) from error

    def copy(self) -> Positions:
        """Return a copy that can be modified independently."""
        return Positions(
            dict(self.offsets),
            self.time_ms,
            dict(self.rereads),
            self.topics,
            self.changelog_start,
            self.recoveries,
        )


_REQUIRED = ("schema_version", "offsets", "time_ms")


@dataclass(slots=True)
class RereadCursor:
    """Progress of reading one output topic of one partition again.

    `end` is the high watermark at the time when the reread began: records appended later are not part of it.
    """

    position: int
    """Next offset to read."""
    end: int
    buffer: deque[Record] = field(default_factory=deque)
    """Records that were read and wait for a slice."""
    buffered_bytes: int = 0
    """Memory taken by `buffer`, as `memory_bytes` counts it."""
    failed_completions: int = 0
    """How many times in a row the step raised on `RereadComplete`."""
    retry_completion_at: float = 0.0
    """Earliest time to pass `RereadComplete` to the step, in monotonic seconds."""

    @property
    def done(self) -> bool:
        """Whether slices have taken every record."""
        return self.position >= self.end and not self.buffer

    @property
    def has_work(self) -> bool:
        """Whether the next slice can take something: a record or the completion."""
        return bool(self.buffer) or self.done

    def add(self, record: Record) -> None:
        """Buffer the next record, unless it was appended after `end`."""
        self.position = record.offset + 1
        if record.offset < self.end:
            self.buffer.append(record)
            self.buffered_bytes += memory_bytes(record)

    def take(self, limit: int) -> list[Record]:
        """Remove and return up to `limit` buffered records."""
        taken = [self.buffer.popleft() for _ in range(min(limit, len(self.buffer)))]
        self.buffered_bytes -= sum(map(memory_bytes, taken))
        return taken

    def put_back(self, records: Iterable[Record]) -> None:
        """Undo a `take`: return these records to the front of the buffer."""
        for record in reversed(list(records)):
            self.buffer.appendleft(record)
            self.buffered_bytes += memory_bytes(record)


class Halt(NamedTuple):
    """Why a partition has to stop until a person acts, and before which record (topic, offset)."""

    reason: str
    record: tuple[str, int]


@dataclass(slots=True, eq=False)
class PartitionSlice:
    """The part of a slice that comes from one partition.

    The step processes `records`, then `reread_records`, then `completed_rereads`, then `tick`.
    """

    partition: OwnedPartition
    records: list[Record]
    """Input records, merged by append time."""
    write_buffer: WriteBuffer
    """State that the step reads and writes."""
    reread_records: list[Record] = field(default_factory=list)
    """Records of output topics that are being reread; their `timestamp` is the partition's stream time."""
    completed_rereads: list[RereadComplete] = field(default_factory=list)
    tick: Tick | None = None
    measures_clock: bool = False
    """Whether to commit the positions although nothing changed, to learn the broker's time."""
    new_positions: Positions = field(default_factory=Positions)
    """The partition's positions once this part is committed."""
    outputs: list[Output] = field(default_factory=list)
    """Records to send in addition to those of the step."""
    dead_letters: int = 0
    """How many of the records became dead letters."""
    halt: Halt | None = None
    """Set if the partition must halt before the record that comes after this part."""
    changelog_offset: int | None = None
    """Offset of the last changelog record of this part, as the broker acknowledged it."""
    changelog_times: tuple[int | None, float, float] | None = None
    """Append time of that record, and the monotonic times at which it was sent and acknowledged."""

    def postpone_notifications(self) -> None:
        """Remove the tick and the reread completions; the next slice gets them again."""
        self.completed_rereads.clear()
        if self.tick is not None:
            self.tick, self.partition.next_tick = None, 0.0


class OwnedPartition:
    """A partition from its assignment until it is revoked or lost. Not thread-safe.

    Each `take_slice` must be followed by exactly one of `apply_commit`, `skip_commit` and `roll_back`. While a slice is
    being committed (`begin_commit`), the next one may be taken; if the commit fails, that one is rolled back first.
    """

    def __init__(self, number: int, config: EngineConfig, store: StateStore) -> None:
        self.number = number
        self.store = store
        self.merge_buffer = MergeBuffer(config.inputs)
        self.positions = Positions()
        """The committed positions."""
        self.paused: set[str] = set()
        """Input topics that are not read at the moment, because their buffer is full."""
        self.halted: str | None = None
        """Why this partition is not processed until a person acts, or None if it is processed."""
        self.halted_at: tuple[str, int] | None = None
        """Topic and offset of the record before which it halted, if a record is the reason."""
        self.errors = DeadLetterRate(config.dead_letter_limit)
        """Unexpected errors of the step."""
        self.problem: str | None = None
        """Why notifications are not processed; records are."""
        self.next_tick = 0.0
        self.idle_time = IdleTime()
        self.clocks = ClockComparison(round(config.max_clock_difference * 1000))
        self.failed_ticks = 0
        """How many ticks in a row have raised."""
        self.records = 0
        self.dead_letters = 0
        self.last_commit_ms: int | None = None
        self.reread_cursors: dict[str, RereadCursor] = {}
        """By output topic. `OutputRereader` adds a cursor; the commit of its completion removes it."""
        self._ends: dict[str, int] = {}
        self._max_record_bytes = config.max_record_bytes
        self._committing: PartitionSlice | None = None

    def restored_positions(self) -> Positions | None:
        """Return the positions in the restored store, or None if the changelog never held any."""
        value = self.store.get(POSITIONS_KEY)
        return None if value is None else Positions.decode(value)

    def mark_end(self, topic: str, offset: int) -> None:
        """Note that the log holds no record of `topic` at or after `offset`.

        `offset` may be beyond the last record plus one: transaction markers take offsets too.
        """
        self.merge_buffer.mark_end(topic)
        self._ends[topic] = offset

    def take_slice(
        self,
        max_records: int,
        max_bytes: int,
        *,
        now: float,
        clock_ms: int,
        tick_interval: float,
        max_reread_records: int = 0,
    ) -> PartitionSlice:
        """Return this partition's part of the next slice; it may be empty.

        Args:
            max_records: Most input records to take.
            max_bytes: Memory of the input records to take. The first record is taken even if it is larger.
            now: Monotonic time, in seconds.
            clock_ms: Wall-clock time, in ms since the epoch. It is only compared with the broker's clock.
            tick_interval: Seconds from one tick to the next.
            max_reread_records: Most reread records to take.

        """
        before = self._committing
        buffer = WriteBuffer(
            self.store, self._max_record_bytes, before.write_buffer.writes if before else None
        )
        part = PartitionSlice(self, self.merge_buffer.take(max_records, max_bytes), buffer)
        new = self._newest_positions.copy()
        for record in part.records:
            new.offsets[record.topic] = record.offset + 1
        if part.records:
            new.time_ms = _stream_time(part.records, new.time_ms)
            self.idle_time.restart(now)
        if now >= self.next_tick and new.time_ms and self.merge_buffer.is_idle():
            self.next_tick = now + tick_interval
            if self.clocks.allows_tick(clock_ms, now):
                passed_ms = self.idle_time.advance(now)
                part.tick = Tick(self.number, new.time_ms + passed_ms, new.time_ms)
            else:
                part.measures_clock = self.clocks.must_measure(clock_ms, now)
        for topic, end in self._ends.items():
            if self.merge_buffer.is_drained(topic):
                new.offsets[topic] = max(end, new.offsets.get(topic, 0))
        part.new_positions = new
        if self.reread_cursors and max_reread_records:
            self._take_reread(part, max_reread_records, now)
        return part

    def _take_reread(self, part: PartitionSlice, limit: int, now: float) -> None:
        time_ms = part.new_positions.time_ms
        for topic, cursor in self.reread_cursors.items():
            for record in cursor.take(limit - len(part.reread_records)):
                part.new_positions.rereads[topic] = record.offset + 1
                part.reread_records.append(replace(record, timestamp=time_ms))
            if cursor.done and now >= cursor.retry_completion_at:
                part.completed_rereads.append(RereadComplete(topic, self.number, time_ms))

    def empty_slice(self) -> PartitionSlice:
        """Return a part without records, for outputs that do not come from the step."""
        part = PartitionSlice(self, [], WriteBuffer(self.store, self._max_record_bytes))
        part.new_positions = self.positions.copy()
        return part

    def take_halted_record(self) -> PartitionSlice | None:
        """Return a part of only the record at which the partition halted, or None if it is not the next one."""
        part = self.empty_slice()
        part.records = self.merge_buffer.take(1, 1)
        if [(record.topic, record.offset) for record in part.records] != [self.halted_at]:
            self.merge_buffer.put_back(part.records)
            return None
        record = part.records[0]
        part.new_positions.offsets[record.topic] = record.offset + 1
        if record.timestamp <= MAX_MS:
            part.new_positions.time_ms = max(part.new_positions.time_ms, record.timestamp)
        return part

    def shorten(self, part: PartitionSlice, count: int) -> None:
        """Keep the first `count` records of a part, and return all others and the notifications to the buffers."""
        kept = max(0, count - len(part.records))
        returned, part.reread_records = part.reread_records[kept:], part.reread_records[:kept]
        for topic, cursor in self.reread_cursors.items():
            mine = [record for record in returned if record.topic == topic]
            if mine:
                cursor.put_back(mine)
                part.new_positions.rereads[topic] = mine[0].offset
        self.merge_buffer.put_back(part.records[count:])
        part.records = part.records[:count]
        part.postpone_notifications()
        part.measures_clock = False
        newest = self._newest_positions
        offsets = dict(newest.offsets) | {record.topic: record.offset + 1 for record in part.records}
        for topic, end in self._ends.items():
            if self.merge_buffer.is_drained(topic):
                offsets[topic] = max(end, offsets.get(topic, 0))
        part.new_positions.offsets = offsets
        part.new_positions.time_ms = _stream_time(part.records, newest.time_ms)

    def resume(self) -> None:
        """End the halt and forget buffered records: the inputs are read from the positions again."""
        self.halted = self.halted_at = None
        self.merge_buffer = MergeBuffer(self.merge_buffer.topics)
        self._ends.clear()
        self.paused.clear()

    def record_completion(
        self, completion: RereadComplete, now: float, retry_s: float, *, raised: bool
    ) -> int:
        """Record whether the step accepted a completion; if it raised, pass it again after `retry_s` seconds.

        Returns how many times in a row the step has raised on it.
        """
        cursor = self.reread_cursors[completion.topic]
        cursor.failed_completions = cursor.failed_completions + 1 if raised else 0
        cursor.retry_completion_at = now + retry_s if raised else 0.0
        return cursor.failed_completions

    @property
    def rereading(self) -> bool:
        """Whether a reread is in progress, or was requested by the slice being committed."""
        return bool(self.reread_cursors or self._newest_positions.rereads)

    @property
    def _newest_positions(self) -> Positions:
        """The positions after the slice that is being committed, if there is one."""
        return self._committing.new_positions if self._committing else self.positions

    def begin_commit(self, part: PartitionSlice) -> None:
        """Note that a slice was processed and is being committed, so that the next one continues from it."""
        self._committing = part

    def apply_commit(self, part: PartitionSlice, clock_ms: int) -> None:
        """Write a part to the store. Call this only after its transaction was committed."""
        assert part.changelog_offset is not None
        self.positions, self._committing = part.new_positions, None
        # A copy, because the next slice may be reading the writes.
        writes = dict(part.write_buffer.writes)
        writes[POSITIONS_KEY] = part.new_positions.encode()
        writes[AS_OF_KEY] = b"%d" % clock_ms
        self.store.apply(writes, part.changelog_offset + 1)
        if part.changelog_times is not None:
            self.clocks.measure(*part.changelog_times)
        for completion in part.completed_rereads:
            if not self.reread_cursors[completion.topic].failed_completions:
                del self.reread_cursors[completion.topic]
        self.records += len(part.records)
        self.dead_letters += part.dead_letters
        self.last_commit_ms = clock_ms

    def skip_commit(self, part: PartitionSlice) -> None:
        """End a part that only advanced the time; the next commit makes its positions durable."""
        self.positions, self._committing = part.new_positions, None

    def roll_back(self, part: PartitionSlice) -> None:
        """Undo `take_slice` after an abort: the same records come again, and the tick is due again."""
        if self._committing is part:
            self._committing = None
        self.merge_buffer.put_back(part.records)
        for topic, cursor in self.reread_cursors.items():
            cursor.put_back(record for record in part.reread_records if record.topic == topic)
        if part.tick is not None or part.measures_clock:
            self.next_tick = 0.0

    def close(self) -> None:
        """Close the store. Buffered records that were not committed are dropped; the next owner reads them."""
        self.store.close()


def _stream_time(records: Sequence[Record], before_ms: int) -> int:
    """Return the append time of the last record, or `before_ms` if there is none. Ignores impossible times."""
    return next((r.timestamp for r in reversed(records) if 0 <= r.timestamp <= MAX_MS), before_ms)
