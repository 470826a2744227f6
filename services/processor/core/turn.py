"""One turn of a partition: carries out what the rules decide about one record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from services.processor.core import batches, join, tallies
from services.processor.core.batches import BatchLimits, CutReason
from services.processor.core.join import BatchSearch, Change, EventOutcome
from services.processor.core.outbox import Outbox
from services.processor.core.state import JoinedResponse, OpenBatch, PartitionState, PendingExample
from services.processor.core.wire import TallyOut, batch_json, example_json, read_tally
from shared.errors import Malformed, Rejected
from shared.events import MAX_MS, MIN_MS, OutcomeKind
from shared.records import Record
from shared.stream.step import RereadComplete, State, Tick
from shared.versions import batch_name

SWEEP_EVERY_MS: Final = 10_000
"""How often expired windows are looked for."""
SWEEP_AT_MOST: Final = 500
"""Windows closed in one turn."""


class PartitionTurn:
    """The effects of one record, tick or `RereadComplete` on one partition.

    `load` reads a response, the rules in `join` decide a `Change`, `apply` carries it out: state changes go through
    `state`, outputs into `outbox`. `key` is a response_id as bytes throughout. Raises `Malformed` if the append time is
    impossible: clamping it would close every window of the partition at once.
    """

    __slots__ = ("limits", "now_ms", "outbox", "searches", "state")

    def __init__(self, store: State, cause: Record | Tick | RereadComplete, limits: BatchLimits) -> None:
        if not MIN_MS <= cause.timestamp <= MAX_MS:
            raise Malformed(
                f"the append time {cause.timestamp} is not in ms since the epoch: set message.timestamp.type="
                "LogAppendTime on the topic"
            )
        self.state = PartitionState(store)
        self.outbox = Outbox(cause)
        self.now_ms = cause.timestamp
        self.limits = limits
        self.searches: list[tuple[bytes, str, BatchSearch]] = []
        """(response, line, search) of this turn. `ErasureProcess` takes them over."""

    # --- one response ---

    def load(self, key: bytes) -> JoinedResponse | None:
        """Return the join state of a response after closing its window if that is over.

        What counts as late therefore depends on the log only, not on when expired windows are looked for.
        """
        joined = self.state.joined(key)
        if joined is None or self.now_ms < joined.expires_ms:
            return joined
        self._expire(key, joined)
        return self.state.joined(key)

    def pending(self, key: bytes, joined: JoinedResponse) -> PendingExample | None:
        """Return the response's example in the open batch, if it has one."""
        return self.state.pending(joined.line, key) if joined.answered else None

    def apply(self, key: bytes, change: Change, pending: PendingExample | None = None) -> None:
        """Carry out a change: outcomes, tallies, and a new revision in the open batch, in place of `pending`."""
        self.outbox.outcomes(key, change.joined, change.outcomes)
        self._search(key, change)
        if not change.changed:
            return
        self._count(change)
        if change.revised:
            self.put_in_batch(key, change, pending)
        else:
            self.state.put_joined(key, change.joined)

    def _count(self, change: Change) -> None:
        """Update tallies, once the response and with it the version is known."""
        joined = change.joined
        if not joined.answered or joined.version is None:
            return
        users = {signal.user_id for signal in (*change.added, *change.removed)}
        users |= {event.user_id for event in change.vague}
        for user_id in sorted(users):
            stored = self.state.tally(joined.version, user_id)
            tally = (
                read_tally(stored)
                if stored is not None
                else TallyOut(
                    line=joined.line,
                    version=joined.version,
                    user_id=user_id,
                    partition=self.outbox.partition,
                    updated_at=self.outbox.now,
                )
            )
            tallies.count(
                tally,
                [signal for signal in change.removed if signal.user_id == user_id],
                [signal for signal in change.added if signal.user_id == user_id],
                [event for event in change.vague if event.user_id == user_id],
            )
            value = self.outbox.tally(joined.version, user_id, tally)
            self.state.put_tally(joined.version, user_id, value)

    def _expire(self, key: bytes, joined: JoinedResponse) -> None:
        """Close the window of a response, or delete its trace."""
        if self.state.pending(joined.line, key) is not None:
            self.cut(joined.line, self.state.open_batch(joined.line), "age")
        self.state.delete(key, joined)
        if joined.expired:
            return
        change = join.on_expiry(joined)
        self.outbox.outcomes(key, joined, change.outcomes)
        self._search(key, change)
        if self.now_ms < change.joined.expires_ms:
            self.state.put_joined(key, change.joined)

    def _search(self, key: bytes, change: Change) -> None:
        self.searches += ((key, change.joined.line, search) for search in change.searches)

    # --- the open batch ---

    def put_in_batch(self, key: bytes, change: Change, old: PendingExample | None) -> None:
        """Put the newest revision into the open batch, or remove an example without signals that no batch ever held."""
        joined, line = change.joined, change.joined.line
        fresh = old.fresh if old else joined.revision - 1 == joined.unbatched
        if not joined.signals and fresh:
            joined.unbatched = joined.revision
            self.state.put_joined(key, joined)
            if old is not None:
                self.remove_from_batch(key, line, old)
            return
        size = batches.example_size(joined.answer_bytes, self.state.put_joined(key, joined))
        new = PendingExample(fresh=fresh, size=size, waiting=tuple(sorted(change.waiting)))
        batch = self.state.open_batch(line)
        if batches.must_cut_before(batch, old, new, self.limits):
            batch, old = self.cut(line, batch, "bytes", leaving=key), None
        batches.add(batch, old, new, self.now_ms)
        self.state.put_pending(line, key, new)
        if not self._cut_if_due(line, batch):
            self.state.put_open_batch(line, batch)

    def remove_from_batch(self, key: bytes, line: str, pending: PendingExample) -> None:
        """Remove an example from the open batch."""
        self.state.delete_pending(line, key)
        batch = self.state.open_batch(line)
        batches.remove(batch, pending)
        self.state.put_open_batch(line, batch)

    def cut_due_batches(self) -> None:
        """Cut the open batches that are old enough."""
        for line, batch in self.state.open_batches():
            self._cut_if_due(line, batch)

    def _cut_if_due(self, line: str, batch: OpenBatch) -> bool:
        reason = batches.cut_reason(batch, self.now_ms, self.limits)
        if reason is not None:
            self.cut(line, batch, reason)
        return reason is not None

    def cut(self, line: str, batch: OpenBatch, reason: CutReason, leaving: bytes | None = None) -> OpenBatch:
        """Send the open batch and return the next one.

        `leaving` is an example to leave out, because its newer revision is about to enter the next batch.
        """
        examples: list[bytes] = []
        sent: list[tuple[bytes, JoinedResponse, PendingExample]] = []
        for key, pending in self.state.pending_examples(line):
            self.state.delete_pending(line, key)
            if key == leaving:
                continue
            joined, response = self.state.joined(key), self.state.response(key)
            if joined is None or response is None:
                raise Rejected(f"pending example {key.decode()} has lost its response")
            examples.append(example_json(key.decode(), joined, response, self.outbox.now))
            sent.append((key, joined, pending))
        batch_id = self.send_batch(line, batch, reason, examples)
        for key, joined, pending in sent:
            outcomes = [EventOutcome(event_id, OutcomeKind.BATCHED) for event_id in pending.waiting]
            self.outbox.outcomes(key, joined, outcomes, batch_id)
        return OpenBatch(number=batch.number + 1)

    def send_batch(
        self, line: str, batch: OpenBatch, reason: CutReason | Literal["erasure"], examples: Sequence[bytes]
    ) -> str:
        """Send a batch under the number of the open one, open the next one, and return the batch's id."""
        partition = self.outbox.partition
        batch_id = batch_name(line, partition, batch.number)
        value = batch_json(line, batch_id, partition, batch.number, reason, examples, self.outbox.now)
        self.outbox.batch(batch_id, value)
        self.state.put_open_batch(line, OpenBatch(number=batch.number + 1))
        return batch_id

    # --- time ---

    def close_expired_windows(self) -> None:
        """Close windows by the time index, now and then, and a bounded number in one turn."""
        swept_ms = self.state.swept_ms
        if swept_ms is not None and self.now_ms - swept_ms < SWEEP_EVERY_MS:
            return
        expired = self.state.expired(self.now_ms, SWEEP_AT_MOST)
        if len(expired) < SWEEP_AT_MOST:
            self.state.put_swept(self.now_ms)
        for key in expired:
            self.load(key)
