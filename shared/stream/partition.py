"""One partition that this process owns: its inputs, its state, its positions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from shared.records import Record
from shared.stream.config import EngineConfig
from shared.stream.merge import Merge
from shared.stream.offsets import Positions
from shared.stream.output_rereader import Reading
from shared.stream.state_store import AS_OF_KEY, POSITIONS_KEY, Store
from shared.stream.step import Through, Tick
from shared.stream.write_buffer import Overlay


@dataclass(slots=True, eq=False)
class Share:
    """What one partition has in a slice: records in the order to be processed, those reread, then perhaps the tick."""

    partition: OwnedPartition
    records: list[Record]
    reread: list[Record] = field(default_factory=list)
    """Records as they are to be fed: `timestamp` is the partition's time."""
    through: list[Through] = field(default_factory=list)
    """Fed after `reread`, each as the end of its topic."""
    tick: Tick | None = None
    after: Positions = field(default_factory=Positions)
    """The positions once this share is committed."""
    dead: int = 0
    """How many of the records became dead letters."""
    changelog_offset: int | None = None
    """Where the last changelog record of this share landed, as the broker acknowledged it."""

    def postpone(self) -> None:
        """Takes tick and ends of rereads out; they come again with the next slice."""
        self.through.clear()
        if self.tick is not None:
            self.tick, self.partition.next_tick = None, 0.0


class OwnedPartition:
    """Created when the partition is assigned, closed when it is revoked or lost. One thread."""

    def __init__(self, number: int, config: EngineConfig, store: Store) -> None:
        self.number = number
        self.store = store
        self.merge = Merge(config.inputs)
        self.overlay = Overlay(store, config.max_record_bytes)
        self.positions = Positions()
        self.paused: set[str] = set()
        self.next_tick = 0.0
        self.failed_ticks = 0
        self.records = 0
        self.dead_letters = 0
        self.last_commit_ms: int | None = None
        self.readings: dict[str, Reading] = {}
        """The output topics being reread; kept by `Rereads`, and left here once the step has seen all."""
        self._ends: dict[str, int] = {}

    def restored_positions(self) -> Positions | None:
        """What the restored changelog says of the positions, if it ever held any."""
        value = self.store.get(POSITIONS_KEY)
        return None if value is None else Positions.decode(value)

    def reached_end(self, topic: str, offset: int) -> None:
        """The log has nothing of `topic` from `offset` on; markers may lie between the last record and it."""
        self.merge.reached_end(topic)
        self._ends[topic] = offset

    def take(
        self, records: int, weight: int, *, now: float, clock_ms: int, tick_interval: float, reread: int = 0
    ) -> Share:
        """Its part of the next slice; may be empty. `now`: monotonic seconds, `clock_ms`: wall time; `reread`: how many
        reread records, at most."""
        share = Share(self, self.merge.take(records, weight))
        if now >= self.next_tick and self.merge.quiet():
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
            if self.merge.drained(topic):
                after.offsets[topic] = max(end, after.offsets.get(topic, 0))
        share.after = after
        if self.readings and reread:
            self._take_reread(share, reread, now)
        return share

    def _take_reread(self, share: Share, limit: int, now: float) -> None:
        """What was read again, and after the last of it the word that it was the last."""
        time_ms = max(self.positions.time_ms, max((record.timestamp for record in share.records), default=0))
        for topic, reading in self.readings.items():
            for record in reading.take(limit - len(share.reread)):
                share.after.rereads[topic] = record.offset + 1
                share.reread.append(replace(record, timestamp=time_ms))
            if reading.through and now >= reading.next_through:
                share.through.append(Through(topic, self.number, time_ms))

    def fed_through(self, through: Through, now: float, again_s: float, *, raised: bool) -> int:
        """The step was told, or `raised`: then it is told again, after a while. How often in a row it has raised."""
        reading = self.readings[through.topic]
        reading.failed = reading.failed + 1 if raised else 0
        reading.next_through = now + again_s if raised else 0.0
        return reading.failed

    def committed(self, share: Share, clock_ms: int) -> None:
        """The share is in the log: now, and only now, the store follows."""
        assert share.changelog_offset is not None
        self.positions = share.after
        writes = self.overlay.writes
        writes[POSITIONS_KEY] = share.after.encode()
        writes[AS_OF_KEY] = b"%d" % clock_ms
        self.store.apply(writes, share.changelog_offset + 1)
        self.overlay.clear()
        for through in share.through:
            if not self.readings[through.topic].failed:
                del self.readings[through.topic]
        self.records += len(share.records)
        self.dead_letters += share.dead
        self.last_commit_ms = clock_ms

    def nothing_to_commit(self, share: Share) -> None:
        """Time passed, and no more: it is written with the next commit."""
        self.positions = share.after
        self.overlay.clear()

    def aborted(self, share: Share) -> None:
        """As before the slice: same records to come, nothing written, the tick due again."""
        self.overlay.clear()
        self.merge.put_back(share.records)
        for topic, reading in self.readings.items():
            reading.put_back(record for record in share.reread if record.topic == topic)
        if share.tick is not None:
            self.next_tick = 0.0

    def close(self) -> None:
        """What was read and not committed is another owner's now."""
        self.store.close()
