"""The processor's step: reads and writes the state of one partition around the pure rules beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from services.processor.core import batches, join, tallies
from services.processor.core.batches import BatchLimits, CutReason
from services.processor.core.join import Change, Decided
from services.processor.core.state import (
    SWEPT,
    Joined,
    OpenBatch,
    Pending,
    after,
    answer_key,
    batch_key,
    expiry_key,
    joined_key,
    pending_key,
    tally_key,
)
from shared.envelope import sealed, traceparent_of
from shared.errors import Malformed, Rejected
from shared.events import FEEDBACK, ChatResponse, LogRecord, Outcome, OutcomeKind, Tally, from_ms, parse_union
from shared.stream.step import Output, Record, State, Tick
from shared.topics import (
    CHAT_RESPONSES,
    FEEDBACK_EVENTS,
    FEEDBACK_OUTCOMES,
    FEEDBACK_TALLIES,
    TRAINING_BATCHES,
    Topic,
)

SERVICE: Final = "processor"
SWEEP_EVERY_MS: Final = 10_000
SWEEP_AT_MOST: Final = 500


class ProcessorStep:
    """`Step` over `chat.responses` and `feedback.events`. Holds nothing but its limits."""

    def __init__(self, limits: BatchLimits | None = None) -> None:
        self._limits = limits or BatchLimits()

    def __call__(self, state: State, record: Record | Tick) -> Iterator[Output]:
        turn = _Turn(state, record, self._limits)
        if isinstance(record, Tick):
            yield from turn.tick()
        elif record.topic == CHAT_RESPONSES.name:
            yield from turn.response(ChatResponse.from_json(record.value), record)
        elif record.topic == FEEDBACK_EVENTS.name:
            yield from turn.feedback(record)
        else:
            raise Rejected(f"the processor has no rule for records of {record.topic}")
        yield from turn.sweep_if_due()


@dataclass(frozen=True, slots=True)
class _Turn:
    """One call of the step: the state, the time, and where outputs go."""

    state: State
    record: Record | Tick
    limits: BatchLimits

    @property
    def now_ms(self) -> int:
        return self.record.timestamp

    # --- records ---

    def response(self, response: ChatResponse, record: Record) -> Iterator[Output]:
        _require_key(record, response.response_id)
        yield from self.lapse(response.response_id)
        before = self.joined(response.response_id)
        change = join.on_response(before, self.waiting(before, response.response_id), response, self.now_ms)
        if before is not None and change.joined == before:
            return
        self.state.put(answer_key(response.response_id), record.value or b"")
        vague = [
            said.user_id
            for said in change.joined.events.values()
            if said.kind == "comment" and not said.at_ms
        ]
        yield from self.apply(response.response_id, before, change, vague_comments=vague)

    def feedback(self, record: Record) -> Iterator[Output]:
        event = parse_union(FEEDBACK, record.value)
        _require_key(record, event.response_id)
        yield from self.lapse(event.response_id)
        before = self.joined(event.response_id)
        change = join.on_feedback(before, self.waiting(before, event.response_id), event, self.now_ms)
        tally_only = (
            any(d.outcome is OutcomeKind.TALLY_ONLY for d in change.decided) and event.kind == "comment"
        )
        vague = [event.user_id] if tally_only and change.joined.answered else []
        yield from self.apply(event.response_id, before, change, vague_comments=vague)

    def tick(self) -> Iterator[Output]:
        for key, value in list(self.state.scan(b"b/", after(b"b/"))):
            yield from self.cut_if_due(key[2:].decode(), OpenBatch.from_json(value))

    # --- state around a change ---

    def joined(self, response_id: str) -> Joined | None:
        value = self.state.get(joined_key(response_id))
        return None if value is None else Joined.from_json(value)

    def lapse(self, response_id: str) -> Iterator[Output]:
        """Closes the window if its time has come, swept or not: so what counts as late depends on the log alone."""
        joined = self.joined(response_id)
        if joined is None or self.now_ms < join.expires_at(joined):
            return
        if self.pending(joined.line, response_id) is not None:
            yield from self.cut(joined.line, self.open_batch(joined.line), "age")
        self.state.delete(expiry_key(join.expires_at(joined), response_id))
        self.state.delete(answer_key(response_id))
        self.state.delete(joined_key(response_id))
        if joined.expired:
            return
        change = join.on_expiry(joined)
        yield from self.outcomes(response_id, joined, change.decided)
        if self.now_ms < join.expires_at(change.joined):
            self.save(response_id, None, change.joined)

    def waiting(self, joined: Joined | None, response_id: str) -> frozenset[str]:
        pending = self.pending(joined.line, response_id) if joined else None
        return frozenset(pending.waiting) if pending else frozenset()

    def pending(self, line: str, response_id: str) -> Pending | None:
        value = self.state.get(pending_key(line, response_id))
        return None if value is None else Pending.from_json(value)

    def apply(
        self, response_id: str, before: Joined | None, change: Change, *, vague_comments: list[str]
    ) -> Iterator[Output]:
        """Makes a change durable: the join, its place in the open batch, tallies and outcomes."""
        yield from self.outcomes(response_id, change.joined, change.decided)
        if before is not None and change.joined == before:
            return
        if not change.joined.expired:
            yield from self.tally(before, change.joined, vague_comments)
        if change.revised:
            yield from self.enqueue(response_id, before, change)
        else:
            self.save(response_id, before, change.joined)

    def save(self, response_id: str, before: Joined | None, joined: Joined) -> bytes:
        value = joined.to_json()
        self.state.put(joined_key(response_id), value)
        if before is None or join.expires_at(before) != join.expires_at(joined):
            if before is not None:
                self.state.delete(expiry_key(join.expires_at(before), response_id))
            self.state.put(expiry_key(join.expires_at(joined), response_id), b"")
        return value

    def enqueue(self, response_id: str, before: Joined | None, change: Change) -> Iterator[Output]:
        """Puts the newest revision into the open batch, or takes a fresh one out that no longer says anything."""
        joined, line = change.joined, change.joined.line
        batch, old = self.open_batch(line), self.pending(line, response_id)
        fresh = old.fresh if old else (before.revision if before else 0) == joined.unbatched
        if not joined.signals and fresh:
            self.save(response_id, before, joined.model_copy(update={"unbatched": joined.revision}))
            if old is not None:
                self.state.delete(pending_key(line, response_id))
                self.state.put(batch_key(line), batches.without_pending(batch, old).to_json())
            return
        value = self.save(response_id, before, joined)
        size = batches.size_of(self.state.get(answer_key(response_id)) or b"", value)
        new = Pending(waiting=tuple(sorted(change.waiting)), fresh=fresh, size=size)
        if batches.must_cut_before(batch, old, new, self.limits):
            yield from self.cut(line, batch, "bytes", leaving=response_id)
            batch, old = self.open_batch(line), None
        batch = batches.with_pending(batch, old, new, self.now_ms)
        self.state.put(pending_key(line, response_id), new.to_json())
        self.state.put(batch_key(line), batch.to_json())
        yield from self.cut_if_due(line, batch)

    # --- batches ---

    def open_batch(self, line: str) -> OpenBatch:
        value = self.state.get(batch_key(line))
        return OpenBatch() if value is None else OpenBatch.from_json(value)

    def cut_if_due(self, line: str, batch: OpenBatch) -> Iterator[Output]:
        reason = batches.due(batch, self.now_ms, self.limits)
        if reason is not None:
            yield from self.cut(line, batch, reason)

    def cut(
        self, line: str, batch: OpenBatch, reason: CutReason, leaving: str | None = None
    ) -> Iterator[Output]:
        """Cuts the open batch; the example `leaving` is about to enter the next one with a newer revision."""
        prefix = pending_key(line, "")
        examples, settled = [], []
        for key, value in list(self.state.scan(prefix, after(prefix))):
            response_id = key[len(prefix) :].decode()
            self.state.delete(key)
            if response_id == leaving:
                continue
            joined, answer = self.state.get(joined_key(response_id)), self.state.get(answer_key(response_id))
            if joined is None or answer is None:
                raise Rejected(f"pending example {response_id} has lost its response")
            known = Joined.from_json(joined)
            examples.append(
                batches.example_of(response_id, known, ChatResponse.from_json(answer), self.now_ms)
            )
            settled.append((response_id, known, Pending.from_json(value).waiting))
        made = batches.cut(line, self.record.partition, batch.number, reason, tuple(examples), self.now_ms)
        self.state.put(batch_key(line), OpenBatch(number=batch.number + 1).to_json())
        yield self.output(TRAINING_BATCHES, made.batch_id, made, made.batch_id)
        for response_id, known, waiting in settled:
            decided = tuple(Decided(event_id, OutcomeKind.BATCHED) for event_id in waiting)
            yield from self.outcomes(response_id, known, decided, batch_id=made.batch_id)

    # --- what is said of it ---

    def outcomes(
        self,
        response_id: str,
        joined: Joined | None,
        decided: tuple[Decided, ...],
        batch_id: str | None = None,
    ) -> Iterator[Output]:
        for event_id, kind, detail in decided:
            outcome = Outcome(
                line=joined.line if joined else "unknown",
                response_id=response_id,
                event_id=event_id,
                outcome=kind,
                batch_id=batch_id,
                revision=joined.revision if joined and batch_id else None,
                detail=detail,
                decided_at=from_ms(self.now_ms),
            )
            yield self.output(FEEDBACK_OUTCOMES, response_id, outcome, f"{response_id}/{event_id}/{kind}")

    def tally(self, before: Joined | None, joined: Joined, vague_comments: list[str]) -> Iterator[Output]:
        """Counts once the response, and with it the version, is known."""
        if not joined.answered or joined.version is None:
            return
        counted_before = before.signals if before and before.answered else {}
        for user_id in sorted(tallies.changed_users(counted_before, joined.signals) | set(vague_comments)):
            key = tally_key(joined.version, user_id)
            stored = self.state.get(key)
            tally = Tally.from_json(stored) if stored else self.new_tally(joined, user_id)
            removed = [
                s for e, s in counted_before.items() if s.user_id == user_id and e not in joined.signals
            ]
            added = [s for e, s in joined.signals.items() if s.user_id == user_id and e not in counted_before]
            tally = tallies.counted(
                tally, removed, added, self.now_ms, vague_comments=vague_comments.count(user_id)
            )
            self.state.put(key, tally.to_json())
            name = f"{joined.version}|{user_id}|{self.record.partition}"
            yield self.output(FEEDBACK_TALLIES, name, tally, f"{name}|{self.now_ms}")

    def new_tally(self, joined: Joined, user_id: str) -> Tally:
        return Tally(
            line=joined.line,
            version=joined.version or "",
            user_id=user_id,
            partition=self.record.partition,
            updated_at=from_ms(self.now_ms),
        )

    def output(self, topic: Topic, key: str, record: LogRecord, ce_id: str) -> Output:
        cause = traceparent_of(self.record.headers) if isinstance(self.record, Record) else None
        return sealed(
            topic,
            key,
            record,
            source=SERVICE,
            ce_id=ce_id,
            at=from_ms(self.now_ms),
            traceparent=cause,
            partition=self.record.partition,
        )

    # --- time ---

    def sweep_if_due(self) -> Iterator[Output]:
        """Closes windows by the time index, a bounded number at a time."""
        swept = self.state.get(SWEPT)
        if swept is not None and self.now_ms - int(swept) < SWEEP_EVERY_MS:
            return
        lapsed = []
        for key, _ in self.state.scan(b"x/", expiry_key(self.now_ms, "")):
            lapsed.append(key)
            if len(lapsed) == SWEEP_AT_MOST:
                break
        else:
            self.state.put(SWEPT, str(self.now_ms).encode())
        for key in lapsed:
            yield from self.lapse(key.split(b"/", 2)[2].decode())


def _require_key(record: Record, response_id: str) -> None:
    """A record under another key lies in another partition, where it would never meet its counterpart."""
    if record.key != response_id.encode():
        raise Malformed(f"the record's key is not its response_id {response_id}")
