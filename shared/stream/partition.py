"""One partition that this process owns: its inputs, its state, its positions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from shared.records import Record
from shared.stream.config import EngineConfig
from shared.stream.merge import MergeBuffer
from shared.stream.offsets import Positions
from shared.stream.output_rereader import RereadCursor
from shared.stream.state_store import AS_OF_KEY, POSITIONS_KEY, StateStore
from shared.stream.step import RereadComplete, Tick
from shared.stream.write_buffer import WriteBuffer


@dataclass(slots=True, eq=False)
class PartitionSlice:
    """What one partition has in a slice: records in the order to be processed, those reread, then perhaps the tick."""

    partition: OwnedPartition
    records: list[Record]
    reread_records: list[Record] = field(default_factory=list)
    """Records as they are to be fed: `timestamp` is the partition's time."""
    completed_rereads: list[RereadComplete] = field(default_factory=list)
    """Fed after `reread`, each as the end of its topic."""
    tick: Tick | None = None
    new_positions: Positions = field(default_factory=Positions)
    """The positions once this share is committed."""
    dead_letters: int = 0
    """How many of the records became dead letters."""
    changelog_offset: int | None = None
    """Where the last changelog record of this share landed, as the broker acknowledged it."""

    def postpone_notifications(self) -> None:
        """Takes tick and ends of rereads out; they come again with the next slice."""
        self.completed_rereads.clear()
        if self.tick is not None:
            self.tick, self.partition.next_tick = None, 0.0


class OwnedPartition:
    """Created when the partition is assigned, closed when it is revoked or lost. One thread."""

    def __init__(self, number: int, config: EngineConfig, store: StateStore) -> None:
        self.number = number
        self.store = store
        self.merge_buffer = MergeBuffer(config.inputs)
        self.write_buffer = WriteBuffer(store, config.max_record_bytes)
        self.positions = Positions()
        self.paused: set[str] = set()
        self.next_tick = 0.0
        self.failed_ticks = 0
        self.records = 0
        self.dead_letters = 0
        self.last_commit_ms: int | None = None
        self.reread_cursors: dict[str, RereadCursor] = {}
        """The output topics being reread; kept by `Rereads`, and left here once the step has seen all."""
        self._ends: dict[str, int] = {}

    def restored_positions(self) -> Positions | None:
        """What the restored changelog says of the positions, if it ever held any."""
        value = self.store.get(POSITIONS_KEY)
        return None if value is None else Positions.decode(value)

    def mark_end(self, topic: str, offset: int) -> None:
        """The log has nothing of `topic` from `offset` on; markers may lie between the last record and it."""
        self.merge_buffer.mark_end(topic)
        self._ends[topic] = offset

    def take_slice(
        self, records: int, weight: int, *, now: float, clock_ms: int, tick_interval: float, reread: int = 0
    ) -> PartitionSlice:
        """Its part of the next slice; may be empty. `now`: monotonic seconds, `clock_ms`: wall time; `reread`: how many
        reread records, at most."""
        share = PartitionSlice(self, self.merge_buffer.take(records, weight))
        if now >= self.next_tick and self.merge_buffer.is_idle():
            self.next_tick = now + tick_interval
            last = share.records[-1].timestamp if share.records else 0
            share.tick = Tick(self.number, max(clock_ms, last, self.positions.time_ms))
        after = self.positions.copy()
        for record in share.records:
            after.offsets[record.topic] = record.offset + 1
        after.time_ms = max(
            after.time_ms,
            share.tick.timestamp if share.tick else 0,
            max((record.timestamp for record in share.records), default=0),
        )
        for topic, end in self._ends.items():
            if self.merge_buffer.is_drained(topic):
                after.offsets[topic] = max(end, after.offsets.get(topic, 0))
        share.new_positions = after
        if self.reread_cursors and reread:
            self._take_reread(share, reread, now)
        return share

    def _take_reread(self, share: PartitionSlice, limit: int, now: float) -> None:
        """What was read again, and after the last of it the word that it was the last."""
        time_ms = max(self.positions.time_ms, max((record.timestamp for record in share.records), default=0))
        for topic, reading in self.reread_cursors.items():
            for record in reading.take(limit - len(share.reread_records)):
                share.new_positions.rereads[topic] = record.offset + 1
                share.reread_records.append(replace(record, timestamp=time_ms))
            if reading.done and now >= reading.retry_completion_at:
                share.completed_rereads.append(RereadComplete(topic, self.number, time_ms))

    def record_completion(self, through: RereadComplete, now: float, again_s: float, *, raised: bool) -> int:
        """The step was told, or `raised`: then it is told again, after a while. How often in a row it has raised."""
        reading = self.reread_cursors[through.topic]
        reading.failed_completions = reading.failed_completions + 1 if raised else 0
        reading.retry_completion_at = now + again_s if raised else 0.0
        return reading.failed_completions

    def apply_commit(self, share: PartitionSlice, clock_ms: int) -> None:
        """The share is in the log: now, and only now, the store follows."""
        assert share.changelog_offset is not None
        self.positions = share.new_positions
        writes = self.write_buffer.writes
        writes[POSITIONS_KEY] = share.new_positions.encode()
        writes[AS_OF_KEY] = b"%d" % clock_ms
        self.store.apply(writes, share.changelog_offset + 1)
        self.write_buffer.clear()
        for through in share.completed_rereads:
            if not self.reread_cursors[through.topic].failed_completions:
                del self.reread_cursors[through.topic]
        self.records += len(share.records)
        self.dead_letters += share.dead_letters
        self.last_commit_ms = clock_ms

    def skip_commit(self, share: PartitionSlice) -> None:
        """Time passed, and no more: it is written with the next commit."""
        self.positions = share.new_positions
        self.write_buffer.clear()

    def roll_back(self, share: PartitionSlice) -> None:
        """As before the slice: same records to come, nothing written, the tick due again."""
        self.write_buffer.clear()
        self.merge_buffer.put_back(share.records)
        for topic, reading in self.reread_cursors.items():
            reading.put_back(record for record in share.reread_records if record.topic == topic)
        if share.tick is not None:
            self.next_tick = 0.0

    def close(self) -> None:
        """What was read and not committed is another owner's now."""
        self.store.close()
