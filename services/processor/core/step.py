"""The processor's step: reads and writes the state of one partition around the pure rules beside it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from msgspec import UNSET

from services.processor.core import batches, join, tallies
from services.processor.core.batches import BatchLimits, CutReason
from services.processor.core.erasure.process import COURSE, Erasing, Told
from services.processor.core.join import Change, Decided
from services.processor.core.state import (
    SWEPT,
    Answer,
    Joined,
    OpenBatch,
    Pending,
    after,
    answer_key,
    batch_key,
    encode,
    expiry_key,
    joined_key,
    pending_key,
    tally_key,
)
from services.processor.core.wire import (
    SERVICE,
    OutcomeOut,
    TallyOut,
    answer_of,
    batch_of,
    example_of,
    read_tally,
    rfc3339,
)
from shared.cloudevents import Seal, traceparent_of
from shared.errors import Malformed, Rejected
from shared.events import (
    FEEDBACK,
    MAX_MS,
    MIN_MS,
    Batch,
    ChatResponse,
    Outcome,
    OutcomeKind,
    Retract,
    Tally,
    parse_union,
)
from shared.records import Output, Record
from shared.stream.step import Reread, State, Through, Tick
from shared.topics import (
    CHAT_RESPONSES,
    ERASURE_REQUESTS,
    FEEDBACK_EVENTS,
    FEEDBACK_OUTCOMES,
    FEEDBACK_TALLIES,
    TRAINING_BATCHES,
)
from shared.versions import batch_name

SWEEP_EVERY_MS: Final = 10_000
SWEEP_AT_MOST: Final = 500
_batch = Seal(TRAINING_BATCHES, Batch, SERVICE)
_outcome = Seal(FEEDBACK_OUTCOMES, Outcome, SERVICE)
_tally = Seal(FEEDBACK_TALLIES, Tally, SERVICE)


class ProcessorStep:
    """`Step` over `chat.responses`, `feedback.events` and `erasure.requests`. Holds nothing but what it is told."""

    def __init__(self, limits: BatchLimits | None = None, told: Told | None = None) -> None:
        self._limits = limits or BatchLimits()
        self._told = told or Told()

    def keys(self, record: Record) -> Iterable[bytes]:
        """What is known of its response, for whatever is said of it."""
        if record.key is None or record.topic == ERASURE_REQUESTS.name:
            return ()
        return joined_key(record.key), answer_key(record.key)

    def __call__(self, state: State, record: Record | Tick | Through) -> Iterable[Output | Reread]:
        turn = Turn(state, record, self._limits)
        course = state.get(COURSE)
        if course is not None:
            turn.erasing = Erasing(turn, self._told, course)
        if isinstance(record, Tick):
            turn.tick()
        elif isinstance(record, Record) and record.topic == FEEDBACK_EVENTS.name:
            turn.feedback(record, self._told)
        elif isinstance(record, Record) and record.topic == CHAT_RESPONSES.name:
            turn.response(ChatResponse.from_json(record.value), record)
        else:
            erasing = turn.erasing = turn.erasing or Erasing(turn, self._told, course)
            erasing.take(record)
        turn.sweep_if_due()
        return turn.outputs if turn.erasing is None else turn.erasing.close(record)


class Turn:
    """One call of the step: the state, the time, and what goes out. `key` is a response_id, as bytes, throughout."""

    __slots__ = ("_trace", "erasing", "limits", "now", "now_ms", "outputs", "partition", "state")

    def __init__(self, state: State, record: Record | Tick | Through, limits: BatchLimits) -> None:
        if not MIN_MS <= record.timestamp <= MAX_MS:
            # Clamping it would close every window of the partition at once.
            raise Malformed(
                f"the append time {record.timestamp} is not in ms since the epoch: set message.timestamp.type="
                "LogAppendTime on the topic"
            )
        self.state = state
        self.erasing: Erasing | None = None
        self.limits = limits
        self.now_ms = record.timestamp
        self.now = rfc3339(record.timestamp)
        self.partition = record.partition
        self.outputs: list[Output] = []
        self._trace = (
            traceparent_of(record.headers) if isinstance(record, Record) and record.headers else None
        )

    # --- records ---

    def response(self, response: ChatResponse, record: Record) -> None:
        key = _key_of(record, response.response_id)
        if self.erasing is not None and self.erasing.keeps_out_response(key, response):
            return
        before = self.find(key)
        stored = self.state.get(answer_key(key)) if before is not None and before.answered else None
        answer = answer_of(response, self.now_ms)
        value = answer.to_json()
        expired_at = None if before is None else join.expires_at(before)
        change = join.on_response(
            before, None if stored is None else Answer.from_json(stored), answer, len(value)
        )
        if not change.changed:
            return
        self.state.put(answer_key(key), value)
        if before is None:
            # Nothing was said about it yet: the answer itself tells all there is.
            self.state.put(expiry_key(join.expires_at(change.joined), key), b"")
        else:
            self.apply(key, change, expired_at)

    def feedback(self, record: Record, told: Told) -> None:
        event = parse_union(FEEDBACK, record.value)
        key = _key_of(record, event.response_id)
        joined = self.find(key)
        if self.erasing is not None and self.erasing.keeps_out(event):
            known = joined or Joined(line=event.line, since_ms=self.now_ms)
            self.decide(key, known, [Decided(event.event_id, OutcomeKind.ERASED)])
            return
        expires_at = None if joined is None else join.expires_at(joined)
        if joined is None:
            joined = Joined(line=event.line, since_ms=self.now_ms)
        pending = self.pending(joined.line, key) if joined.answered else None
        change = join.on_feedback(joined, set(pending.waiting) if pending else set(), event, self.now_ms)
        self.apply(key, change, expires_at, pending)
        if change.sought and isinstance(event, Retract):
            self.erasing = self.erasing or Erasing(self, told, None)
            self.erasing.retract_late(event, owed=joined.expired)

    def tick(self) -> None:
        for key, value in list(self.state.scan(b"b/", after(b"b/"))):
            self.cut_if_due(key[2:].decode(), OpenBatch.from_json(value))

    # --- state around a change ---

    def read(self, key: bytes) -> Joined | None:
        value = self.state.get(joined_key(key))
        if value is not None:
            return Joined.from_json(value)
        answer = self.state.get(answer_key(key))
        return None if answer is None else Joined.of_answer(Answer.from_json(answer), len(answer))

    def find(self, key: bytes) -> Joined | None:
        """What is known of a response, and not past its time: so what counts as late depends on the log alone, not on
        when the sweep comes by."""
        joined = self.read(key)
        if joined is None or self.now_ms < join.expires_at(joined):
            return joined
        self.lapse(key, joined)
        return self.read(key)

    def lapse(self, key: bytes, joined: Joined) -> None:
        """Its window closes, or the time of its trace is over."""
        if self.pending(joined.line, key) is not None:
            self.cut(joined.line, self.open_batch(joined.line), "age")
        self.state.delete(expiry_key(join.expires_at(joined), key))
        self.state.delete(answer_key(key))
        self.state.delete(joined_key(key))
        if joined.expired:
            return
        change = join.on_expiry(joined)
        self.decide(key, joined, change.decided)
        if self.now_ms < join.expires_at(change.joined):
            self.save(key, change.joined, None)

    def pending(self, line: str, key: bytes) -> Pending | None:
        value = self.state.get(pending_key(line, key))
        return None if value is None else Pending.from_json(value)

    def apply(
        self, key: bytes, change: Change, expires_at: int | None, pending: Pending | None = None
    ) -> None:
        """Makes a change durable: the join, its place in the open batch, tallies and outcomes.

        `expires_at`: when its window closes as far as the time index knows; `pending`: its place in the open batch.
        """
        self.decide(key, change.joined, change.decided)
        if not change.changed:
            return
        self.tally(change)
        if change.revised:
            self.enqueue(key, change, expires_at, pending)
        else:
            self.save(key, change.joined, expires_at)

    def save(self, key: bytes, joined: Joined, expires_at: int | None) -> int:
        """Returns how many bytes it takes."""
        value = joined.to_json()
        self.state.put(joined_key(key), value)
        at = join.expires_at(joined)
        if expires_at != at:
            if expires_at is not None:
                self.state.delete(expiry_key(expires_at, key))
            self.state.put(expiry_key(at, key), b"")
        return len(value)

    def enqueue(self, key: bytes, change: Change, expires_at: int | None, old: Pending | None) -> None:
        """Puts the newest revision into the open batch, or takes a fresh one out that no longer says anything."""
        joined, line = change.joined, change.joined.line
        batch = self.open_batch(line)
        fresh = old.fresh if old else joined.revision - 1 == joined.unbatched
        if not joined.signals and fresh:
            joined.unbatched = joined.revision
            self.save(key, joined, expires_at)
            if old is not None:
                self.state.delete(pending_key(line, key))
                batches.take_out(batch, old)
                self.state.put(batch_key(line), batch.to_json())
            return
        size = batches.size_of(joined.answer_bytes, self.save(key, joined, expires_at))
        new = Pending(fresh=fresh, size=size, waiting=tuple(sorted(change.waiting)))
        if batches.must_cut_before(batch, old, new, self.limits):
            batch, old = self.cut(line, batch, "bytes", leaving=key), None
        batches.put_in(batch, old, new, self.now_ms)
        self.state.put(pending_key(line, key), new.to_json())
        if not self.cut_if_due(line, batch):
            self.state.put(batch_key(line), batch.to_json())

    # --- batches ---

    def open_batch(self, line: str) -> OpenBatch:
        value = self.state.get(batch_key(line))
        return OpenBatch() if value is None else OpenBatch.from_json(value)

    def cut_if_due(self, line: str, batch: OpenBatch) -> bool:
        reason = batches.due(batch, self.now_ms, self.limits)
        if reason is not None:
            self.cut(line, batch, reason)
        return reason is not None

    def cut(self, line: str, batch: OpenBatch, reason: CutReason, leaving: bytes | None = None) -> OpenBatch:
        """Cuts the open batch; the example `leaving` is about to enter the next one with a newer revision. Returns the
        next one."""
        prefix = pending_key(line, b"")
        examples: list[bytes] = []
        settled: list[tuple[bytes, Joined, Pending]] = []
        for place, value in list(self.state.scan(prefix, after(prefix))):
            key = place[len(prefix) :]
            self.state.delete(place)
            if key == leaving:
                continue
            joined, answer = self.state.get(joined_key(key)), self.state.get(answer_key(key))
            if joined is None or answer is None:
                raise Rejected(f"pending example {key.decode()} has lost its response")
            known = Joined.from_json(joined)
            examples.append(example_of(key.decode(), known, Answer.from_json(answer), self.now))
            settled.append((key, known, Pending.from_json(value)))
        batch_id = batch_name(line, self.partition, batch.number)
        made = batch_of(line, batch_id, self.partition, batch.number, reason, examples, self.now)
        self.send_batch(batch_id, made)
        coming = OpenBatch(number=batch.number + 1)
        self.state.put(batch_key(line), coming.to_json())
        for key, known, pending in settled:
            decided = [Decided(event_id, OutcomeKind.BATCHED) for event_id in pending.waiting]
            self.decide(key, known, decided, batch_id)
        return coming

    # --- what is said of it ---

    def decide(
        self, key: bytes, joined: Joined, decided: Iterable[Decided], batch_id: str | None = None
    ) -> None:
        for event_id, kind, detail in decided:
            response_id = key.decode()
            outcome = OutcomeOut(
                schema_version=1,
                line=joined.line,
                response_id=response_id,
                event_id=event_id,
                outcome=kind,
                batch_id=batch_id or UNSET,
                revision=joined.revision if batch_id else UNSET,
                detail=detail or UNSET,
                decided_at=self.now,
            )
            self.send(_outcome, key, encode(outcome), f"{response_id}/{event_id}/{kind}")

    def tally(self, change: Change) -> None:
        """Counts once the response, and with it the version, is known."""
        joined = change.joined
        if not joined.answered or joined.version is None:
            return
        users = {signal.user_id for signal in (*change.added, *change.removed)}.union(change.vague)
        for user_id in sorted(users):
            place = tally_key(joined.version, user_id)
            stored = self.state.get(place)
            tally = (
                self.new_tally(joined.line, joined.version, user_id) if stored is None else read_tally(stored)
            )
            tallies.count(
                tally,
                [signal for signal in change.removed if signal.user_id == user_id],
                [signal for signal in change.added if signal.user_id == user_id],
                change.vague.count(user_id),
            )
            tally.updated_at = self.now
            value = encode(tally)
            self.state.put(place, value)
            name = f"{joined.version}|{user_id}|{self.partition}"
            self.send(_tally, name.encode(), value, f"{name}|{self.now_ms}")

    def new_tally(self, line: str, version: str, user_id: str) -> TallyOut:
        return TallyOut(1, line, version, user_id, self.partition)

    def send_batch(self, batch_id: str, value: bytes) -> None:
        self.send(_batch, batch_id.encode(), value, batch_id)

    def send(self, seal: Seal, key: bytes, value: bytes, ce_id: str) -> None:
        self.outputs.append(seal(key, value, ce_id, self.now, self.partition, self._trace))

    # --- time ---

    def sweep_if_due(self) -> None:
        """Closes windows by the time index, a bounded number at a time."""
        swept = self.state.get(SWEPT)
        if swept is not None and self.now_ms - int(swept) < SWEEP_EVERY_MS:
            return
        lapsed = []
        for place, _ in self.state.scan(b"x/", expiry_key(self.now_ms, b"")):
            lapsed.append(place)
            if len(lapsed) == SWEEP_AT_MOST:
                break
        else:
            self.state.put(SWEPT, str(self.now_ms).encode())
        for place in lapsed:
            self.find(place.split(b"/", 2)[2])


def _key_of(record: Record, response_id: str) -> bytes:
    """A record under another key lies in another partition, where it would never meet its counterpart."""
    if record.key != response_id.encode():
        raise Malformed(f"the record's key is not its response_id {response_id}")
    return record.key
