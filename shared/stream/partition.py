"""One partition that this process owns: its inputs, its state, its positions."""

from __future__ import annotations

from dataclasses import dataclass, field

from shared.stream.config import EngineConfig
from shared.stream.merge import Merge
from shared.stream.overlay import Overlay
from shared.stream.positions import Positions
from shared.stream.step import Record, Tick
from shared.stream.store import AS_OF_KEY, POSITIONS_KEY, Store


@dataclass(slots=True, eq=False)
class Share:
    """What one partition has in a slice: records in the order to be processed, then perhaps the tick."""

    partition: OwnedPartition
    records: list[Record]
    tick: Tick | None = None
    after: Positions = field(default_factory=Positions)
    """The positions once this share is committed."""
    dead: int = 0
    """How many of the records became dead letters."""
    changelog_offset: int | None = None
    """Where the last changelog record of this share landed, as the broker acknowledged it."""


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
        self._ends: dict[str, int] = {}

    def restored_positions(self) -> Positions | None:
        """What the restored changelog says of the positions, if it ever held any."""
        value = self.store.get(POSITIONS_KEY)
        return None if value is None else Positions.decode(value)

    def reached_end(self, topic: str, offset: int) -> None:
        """The log has nothing of `topic` from `offset` on; markers may lie between the last record and it."""
        self.merge.reached_end(topic)
        self._ends[topic] = offset

    def take(self, records: int, weight: int, *, now: float, clock_ms: int, tick_interval: float) -> Share:
        """Its part of the next slice; may be empty. `now`: monotonic seconds, `clock_ms`: wall time."""
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
        return share

    def committed(self, share: Share, clock_ms: int) -> None:
        """The share is in the log: now, and only now, the store follows."""
        assert share.changelog_offset is not None
        self.positions = share.after
        writes = self.overlay.writes
        writes[POSITIONS_KEY] = share.after.encode()
        writes[AS_OF_KEY] = b"%d" % clock_ms
        self.store.apply(writes, share.changelog_offset + 1)
        self.overlay.clear()
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
        if share.tick is not None:
            self.next_tick = 0.0

    def close(self) -> None:
        """What was read and not committed is another owner's now."""
        self.store.close()
