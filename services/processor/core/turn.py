"""One turn of a partition: carries out what the rules decide about one record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal

from services.processor.core import batches, join, tallies
from services.processor.core.batches import BatchLimits, CutReason
from services.processor.core.join import BatchSearch, Change, EventOutcome
from services.processor.core.outbox import Outbox
from services.processor.core.state import (
    JoinedResponse,
    OpenBatch,
    PartitionState,
    PendingExample,
    expiry_key,
    tally_ids,
)
from services.processor.core.wire import (
    TallyOut,
    batch_json,
    date_of,
    example_json,
    is_example,
    read_tally,
    rfc3339,
)
from shared.events import MAX_RECORD_BYTES, OutcomeKind, RefusalReason, Tally
from shared.records import Record
from shared.stream.step import RereadComplete, State, Tick
from shared.topics import CHAT_RESPONSES, DAY_MS, ERASURE_REQUESTS, FEEDBACK_EVENTS, FEEDBACK_TALLIES
from shared.versions import batch_name

SWEEP_EVERY_MS: Final = 10_000
"""How often expired windows and tallies are looked for, in stream time."""
SWEEP_AT_MOST: Final = 500
"""Windows closed in one turn."""
TALLIES_AT_MOST: Final = 200
"""Tallies deleted in one turn."""
TALLY_MS: Final = (FEEDBACK_TALLIES.keep_days or 0) * DAY_MS
"""How long a tally is kept after its newest change: as long as its topic keeps it."""
CUT_AT_MOST: Final = 128
"""Examples taken out of one open batch in one turn: more than a batch holds."""
LINES_AT_MOST: Final = 16
"""Open batches cut by age in one turn."""
INDEXED_AT_MOST: Final = 200
"""Values of an earlier release that are added to the indexes in one turn."""
EXAMPLE_BYTES: Final = MAX_RECORD_BYTES - 4_096
"""Most bytes of an example that a record can hold, whatever the batch's limit is."""
INPUTS: Final = frozenset({CHAT_RESPONSES.name, FEEDBACK_EVENTS.name, ERASURE_REQUESTS.name})


class PartitionTurn:
    """The effects of one record, tick or `RereadComplete` on one partition.

    `load` reads a response, the rules in `join` decide a `Change`, `apply` carries it out: state changes go through
    `state`, outputs into `outbox`. `key` is a response_id as bytes throughout.

    There are two times. `now_ms` is the time of this turn: it dates outputs, and batches are cut by it. `stream_ms` is
    stream time, by which data expires: only input records move it (`StreamClock.observe`). So neither a tick nor a few
    records with a wrong time expire anything.
    """

    __slots__ = (
        "_clock",
        "is_input",
        "limits",
        "now_ms",
        "outbox",
        "searches",
        "state",
    )

    def __init__(self, store: State, cause: Record | Tick | RereadComplete, limits: BatchLimits) -> None:
        self.outbox = Outbox(cause)
        self.now_ms = self.outbox.now_ms
        self.state = PartitionState(store, self.now_ms)
        self.limits = limits
        self.searches: list[tuple[bytes, str, BatchSearch]] = []
        """(response, line, search) of this turn. `ErasureProcess` takes them over."""
        self.is_input = isinstance(cause, Record) and cause.topic in INPUTS
        self._clock = self.state.clock
        if self.is_input:
            self._clock.observe(self.now_ms)

    @property
    def stream_ms(self) -> int:
        """Stream time of the partition, in ms since the epoch; 0 before its first records."""
        return self._clock.stream_ms

    # --- one response ---

    def load(self, key: bytes) -> JoinedResponse | None:
        """Return the join state of a response after closing its window if that is over.

        What it returns therefore depends on the log only, not on when expired windows are looked for.
        """
        joined = self.state.joined(key)
        if joined is not None and key in self.state.damaged:
            return self.set_aside(key, joined)
        if joined is None or self.stream_ms < joined.expires_ms or not self._expire(key, joined):
            return joined
        return self.state.joined(key)

    def pending(self, key: bytes, joined: JoinedResponse) -> PendingExample | None:
        """Return the response's example in the open batch, if it has one."""
        return self.state.pending(joined.line, key) if joined.answered else None

    def apply(self, key: bytes, change: Change, pending: PendingExample | None = None) -> None:
        """Carry out a change: outcomes, tallies, and a new revision in the open batch, in place of `pending`."""
        self.outbox.outcomes(key, change.joined, change.outcomes)
        self._search(key, change.joined, change)
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
            known = None if stored is None else read_tally(stored)
            tally = known or TallyOut(
                line=joined.line,
                version=joined.version,
                user_id=user_id,
                partition=self.outbox.partition,
                updated_at=self.outbox.now,
            )
            tallies.count(
                tally,
                [signal for signal in change.removed if signal.user_id == user_id],
                [signal for signal in change.added if signal.user_id == user_id],
                [event for event in change.vague if event.user_id == user_id],
                rfc3339(joined.responded_ms or self.now_ms),
            )
            value = self.outbox.tally(joined.version, user_id, tally)
            before = None if known is None else known.updated_at[:10]  # type: ignore[attr-defined]
            self.state.put_tally(joined.version, user_id, value, self.outbox.now[:10], before)

    def delete_tally(self, place: bytes, tally: Tally) -> None:
        """Delete the tally stored at `place`, also from its topic."""
        value = self.state.store.get(place)
        self.state.delete_tally(place, None if value is None else date_of(value))
        self.outbox.delete_tally(tally.version, tally.user_id)

    def _expire(self, key: bytes, joined: JoinedResponse) -> bool:
        """Close the window of a response, or delete its trace. Return False if its batch must be cut once more."""
        if self.state.pending(joined.line, key) is not None:
            self.cut(joined.line, self.state.open_batch(joined.line), "age")
            if self.state.pending(joined.line, key) is not None:
                return False
        self.state.delete(key, joined)
        if joined.expired:
            return True
        change = join.on_expiry(joined, self.stream_ms)
        self.outbox.outcomes(key, joined, change.outcomes)
        self._search(key, joined, change)
        if change.changed and self.stream_ms < change.joined.expires_ms:
            self.state.put_joined(key, change.joined)
        return True

    def set_aside(self, key: bytes, joined: JoinedResponse) -> JoinedResponse:
        """Give up a response whose stored values cannot be used, and return the trace that remains.

        Each of its events that has no outcome yet is refused. `joined` is what is known of it.
        """
        pending = self.state.pending(joined.line, key)
        waiting = set(pending.waiting) if pending is not None else set()
        if not joined.expired and not joined.answered:
            waiting |= joined.signals.keys()
        if not joined.expired:
            waiting |= set(joined.retractions.values())
        self._refuse_as_unusable(key, joined, waiting)
        if pending is not None:
            self.remove_from_batch(key, joined.line, pending)
        self.state.damaged.discard(key)
        self.state.delete(key, joined)
        trace = self.state.unusable_trace(joined.line, joined.revision)
        self.state.put_joined(key, trace)
        return trace

    def _refuse_as_unusable(self, key: bytes, joined: JoinedResponse, event_ids: Iterable[str]) -> None:
        refusals = [
            EventOutcome(event_id, OutcomeKind.REFUSED, join.UNUSABLE, RefusalReason.UNUSABLE)
            for event_id in sorted(event_ids)
        ]
        self.outbox.outcomes(key, joined, refusals)

    def _search(self, key: bytes, joined: JoinedResponse, change: Change) -> None:
        for search in change.searches:
            line = self.outbox.line_of(key, joined, search.retraction_id)
            self.searches.append((key, line, search))

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
        self.state.put_joined(key, joined)
        size = batches.example_size(joined.answer_bytes, join.signals_bytes(joined))
        new = PendingExample(fresh=fresh, size=size, waiting=tuple(sorted(change.waiting)))
        batch = self.state.open_batch(line)
        if batches.must_cut_before(batch, old, new, self.limits):
            batch, old = self.cut(line, batch, "bytes", leaving=key), None
        batches.add(batch, old, new, self.now_ms, self.limits)
        self.state.put_pending(line, key, new)
        self._put_open_batch(line, batch)
        if (reason := batches.cut_reason(batch, self.now_ms, self.limits)) is not None:
            self.cut(line, batch, reason)

    def remove_from_batch(self, key: bytes, line: str, pending: PendingExample) -> None:
        """Remove an example from the open batch."""
        self.state.delete_pending(line, key)
        batch = self.state.open_batch(line)
        batches.remove(batch, pending)
        if not batch.examples and self.state.pending_examples(line, 1):
            batch.examples = 1
        self._put_open_batch(line, batch)

    def cut_due_batches(self) -> None:
        """Cut the open batches that are old enough, of all lines, a bounded number in one turn."""
        clock = self._clock
        if not clock.oldest_batch_ms or not batches.is_due(clock.oldest_batch_ms, self.now_ms, self.limits):
            return
        for place, opened_ms, line in self.state.oldest_batches(LINES_AT_MOST):
            if not batches.is_due(opened_ms, self.now_ms, self.limits):
                break
            batch = self.state.open_batch(line)
            indexed = batch.examples > 0 and batch.opened_ms == opened_ms
            if not indexed:
                self.state.store.delete(place)
            if indexed or not batch.examples:
                self.cut(line, batch, "age")
        oldest = self.state.oldest_batches(1)
        clock.oldest_batch_ms = oldest[0][1] if oldest else 0

    def _put_open_batch(self, line: str, batch: OpenBatch) -> None:
        self.state.put_open_batch(line, batch)
        if batch.examples:
            oldest_ms = self._clock.oldest_batch_ms or batch.opened_ms
            self._clock.oldest_batch_ms = max(1, min(oldest_ms, batch.opened_ms))

    def cut(self, line: str, batch: OpenBatch, reason: CutReason, leaving: bytes | None = None) -> OpenBatch:
        """Send the open batch and return the next one.

        `leaving` is an example to leave out, because its newer revision is about to enter the next batch. An example
        that cannot be rendered is set aside; the others are sent without it.
        """
        examples: list[bytes] = []
        sent: list[tuple[bytes, JoinedResponse, PendingExample]] = []
        found = self.state.pending_examples(line, CUT_AT_MOST + 1)
        for key, pending in found[:CUT_AT_MOST]:
            self.state.delete_pending(line, key)
            if key == leaving:
                continue
            joined = self.state.joined(key)
            example = self._rendered(key, joined)
            if joined is None or example is None:
                self._set_aside_pending(
                    key, joined or JoinedResponse(line=line, since_ms=self.now_ms), pending
                )
            else:
                examples.append(example)
                sent.append((key, joined, pending))
        number = batch.number
        for part in batches.split([len(example) for example in examples], self.limits):
            batch_id = self.send_batch(line, OpenBatch(number=number), reason, examples[part])
            for key, joined, pending in sent[part]:
                outcomes = [EventOutcome(event_id, OutcomeKind.BATCHED) for event_id in pending.waiting]
                self.outbox.outcomes(key, joined, outcomes, batch_id)
            number += 1
        following = OpenBatch(number=number)
        if (
            len(found) > CUT_AT_MOST
        ):  # an earlier release left more than a batch holds: it is due again at once
            following = OpenBatch(number=number, opened_ms=batch.opened_ms, examples=1)
        self._put_open_batch(line, following)
        return following

    def _rendered(self, key: bytes, joined: JoinedResponse | None) -> bytes | None:
        """Return an example as a batch holds it, or None if what is stored for it cannot be rendered."""
        response = self.state.response(key)
        if joined is None or joined.expired or not joined.answered or response is None:
            return None
        try:
            example = example_json(key.decode(), joined, response, self.outbox.now)
        except Exception:  # noqa: BLE001 - one example must never stop the others, whatever is wrong with it
            return None
        return example if len(example) <= EXAMPLE_BYTES and is_example(example) else None

    def _set_aside_pending(self, key: bytes, joined: JoinedResponse, pending: PendingExample) -> None:
        """Refuse the events of an example that was to be sent, and keep only a trace of its response."""
        if joined.expired and key not in self.state.damaged:
            self._refuse_as_unusable(key, joined, pending.waiting)
            return
        waiting = {*pending.waiting, *joined.retractions.values()}
        self._refuse_as_unusable(key, joined, waiting if joined.answered else waiting | joined.signals.keys())
        self.state.damaged.discard(key)
        self.state.delete(key, joined)
        self.state.put_joined(key, self.state.unusable_trace(joined.line, joined.revision))

    def send_batch(
        self, line: str, batch: OpenBatch, reason: CutReason | Literal["erasure"], examples: Sequence[bytes]
    ) -> str:
        """Send a batch under the number of the open one, open the next one, and return the batch's id."""
        partition = self.outbox.partition
        batch_id = batch_name(line, partition, batch.number)
        value = batch_json(line, batch_id, partition, batch.number, reason, examples, self.outbox.now)
        self.outbox.batch(batch_id, value)
        self._put_open_batch(line, OpenBatch(number=batch.number + 1))
        return batch_id

    # --- time ---

    def close_expired_windows(self) -> None:
        """Close windows and delete tallies by their indexes, now and then, and a bounded number in one turn."""
        clock = self._clock
        if not self.is_input or 0 <= clock.stream_ms - clock.swept_ms < SWEEP_EVERY_MS:
            return
        expired = self.state.expired(clock.stream_ms, SWEEP_AT_MOST)
        for place, key in expired:
            joined = self.state.joined(key)
            if joined is not None and key in self.state.damaged:
                self.set_aside(key, joined)
                self.state.store.delete(place)
            elif joined is None or (clock.stream_ms >= joined.expires_ms and self._expire(key, joined)):
                self.state.store.delete(place)
            elif clock.stream_ms < joined.expires_ms:  # an earlier release stored another time
                self.state.store.delete(place)
                self.state.put_joined(key, joined)
                self.state.store.put(expiry_key(joined.expires_ms, key), b"")
        if self._delete_old_tallies() and len(expired) < SWEEP_AT_MOST:
            clock.swept_ms = clock.stream_ms

    def _delete_old_tallies(self) -> bool:
        """Delete tallies that have not changed for long. Return whether none are left to delete."""
        before = rfc3339(max(0, self.stream_ms - TALLY_MS))[:10]
        old = self.state.old_tallies(before, TALLIES_AT_MOST)
        for index, date, place in old:
            self.state.store.delete(index)
            value = self.state.store.get(place)
            if value is not None and date_of(value) in (date, None):
                self.state.delete_tally(place, None)
                self.outbox.delete_tally(*tally_ids(place))
        return len(old) < TALLIES_AT_MOST

    def save_clock(self) -> None:
        """Store the times of the partition. Call this at the end of the turn."""
        clock = self._clock
        if clock.unindexed_from:
            clock.unindexed_from = self.state.index_stored(clock.unindexed_from, INDEXED_AT_MOST, date_of)
            oldest = self.state.oldest_batches(1)
            clock.oldest_batch_ms = max(1, oldest[0][1]) if oldest else 0
        self.state.put_clock(clock)
