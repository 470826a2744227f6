"""Rules that join one response with its feedback, in whichever order they arrive. Pure.

None of the rules depends on the order of arrival:

- The newest event per slot (user, kind, choice) wins, by (`occurred_at` clamped between `EARLIEST` and the append time,
  event_id).
- A retracted event keeps its slot without content: the event that it replaced does not come back.
- The same event again is a duplicate. The same id with other content is a conflict, and the first event stands.
- A retraction may arrive before the event that it retracts.
- Feedback that is too vague (`hint_for`) is counted, never trained on.

Each feedback record gets exactly one outcome: at once (`duplicate`, `superseded`, `tally_only`, `retracted`,
`applied_retract`, `late`), when its batch is cut (`batched`), or when the window closes (`unmatched`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from msgspec import Struct, field

from services.processor.core.state import JoinedResponse, SeenEvent, Signal, StoredResponse
from services.processor.core.wire import value_json
from shared.errors import Conflict, Oversized, Rejected
from shared.events import EARLIEST_MS, MAX_SIGNALS, Feedback, OutcomeKind, RefusalReason, Retract, to_ms
from shared.feedback_kinds import VAGUE_KINDS, hint_for

MAX_EVENTS: Final = 4 * MAX_SIGNALS
"""Events remembered per response to detect duplicates. Any beyond these become dead letters."""
MAX_LATE_RETRACTIONS: Final = 1_024
"""Retractions remembered per response after its window, to detect repetitions."""
MAX_LATE_RETRACTIONS_OF_USER: Final = 64
"""The same for one user."""
RESPONSE_ERASED: Final = "the response was erased"
ALREADY_RETRACTED: Final = "already taken back"


class EventOutcome(NamedTuple):
    """The outcome of one feedback event, before it becomes a record."""

    event_id: str
    kind: OutcomeKind
    detail: str | None = None
    reason: RefusalReason | None = None


class BatchSearch(NamedTuple):
    """A retraction of an event that the state does not know, but that an earlier batch may hold."""

    event_id: str
    user_id: str
    retraction_id: str
    """The event that retracts it."""


class Change(Struct):
    """What one record changes about one response.

    `joined` is modified in place. That is safe: it was read for this record only, and is stored only if no rule raises.
    """

    joined: JoinedResponse
    waiting: set[str]
    """The events whose outcome the next batch decides."""
    outcomes: list[EventOutcome] = field(default_factory=list)
    changed: bool = True
    """Whether there is anything to store."""
    revised: bool = False
    """Whether the example has a new revision."""
    added: list[Signal] = field(default_factory=list)
    removed: list[Signal] = field(default_factory=list)
    """Signals to count in tallies, and to stop counting. Counting starts once the response names its version."""
    vague: list[SeenEvent] = field(default_factory=list)
    """Events to count in tallies that are too vague to become signals."""
    searches: list[BatchSearch] = field(default_factory=list)
    """Retractions whose outcome a search of the batches decides."""

    def decide(self, event_id: str, kind: OutcomeKind, detail: str | None = None) -> None:
        """Give an event its outcome."""
        self.outcomes.append(EventOutcome(event_id, kind, detail))

    def drop_signal(self, event_id: str, kind: OutcomeKind) -> None:
        """Remove a current signal. Its event gets this outcome, unless a batch has already given it one."""
        signal = self.joined.signals.pop(event_id, None)
        if signal is None:
            return
        if not self.joined.answered or event_id in self.waiting:
            self.decide(event_id, kind)
        self.waiting.discard(event_id)
        self.removed.append(signal)

    def finish(self) -> Change:
        """Start a new revision if the set of signals changed; the content of a signal never does."""
        if self.joined.answered and (self.added or self.removed):
            self.revised = True
            self.joined.revision += 1
        return self


# --- a response arrives -------------------------------------------------------------------------------------------


def on_response(
    joined: JoinedResponse | None, stored: StoredResponse | None, response: StoredResponse, size: int
) -> Change:
    """Return the change that a response makes. Feedback that arrived before it counts from now on.

    `stored` is the response already known under this id, `size` the new one's in bytes. Raises `Conflict` if they
    differ, and `Rejected` if feedback was waiting for this response and has expired.
    """
    if joined is None:
        return Change(JoinedResponse.from_response(response, size), set())
    if joined.expired:
        if joined.answered:
            return Change(joined, set(), changed=False)
        raise Rejected("the response came after its window had closed")
    if joined.answered:
        if stored is None or not stored.same_content(response):
            raise Conflict("the response came again with other content; the first stands")
        return Change(joined, set(), changed=False)
    change = Change(joined, set())
    if response.status == "completed":
        for event_id, signal in list(joined.signals.items()):
            if signal.choice not in response.indices:
                del joined.signals[event_id]
                change.decide(event_id, OutcomeKind.TALLY_ONLY, _no_such_choice(signal.choice))
    joined.line, joined.version, joined.responded_ms = response.line, response.version, response.at_ms
    joined.choices, joined.answer_bytes = response.valid_choices, size
    change.waiting.update(joined.signals)
    change.added = list(joined.signals.values())
    change.vague = [
        event for event in joined.events.values() if event.kind in VAGUE_KINDS and not event.at_ms
    ]
    return change.finish()


# --- feedback arrives ---------------------------------------------------------------------------------------------


def on_feedback(joined: JoinedResponse, waiting: Iterable[str], event: Feedback, now_ms: int) -> Change:
    """Return the change that a feedback event makes, given its append time `now_ms`.

    `waiting` are the response's events in the open batch. Raises `Conflict` if another event has this id, `Rejected` if
    it retracts another user's event, and `Oversized` if the response has too much feedback.
    """
    change = Change(joined, set(waiting))
    if joined.expired:
        _on_late_feedback(change, event)
        return change
    digest = event.content_digest()[:32]
    seen = joined.events.get(event.event_id)
    if seen is not None:
        if seen.digest != digest:
            raise Conflict(f"event {event.event_id} came again with other content; the first stands")
        change.changed = False
        change.decide(event.event_id, OutcomeKind.DUPLICATE)
        return change
    if len(joined.events) >= MAX_EVENTS:
        raise Oversized(f"more than {MAX_EVENTS} events on one response")
    seen = joined.events[event.event_id] = SeenEvent(digest, event.user_id, event.kind)
    if isinstance(event, Retract):
        _retract(change, event)
    elif (hint := hint_for(event)) is not None:
        change.decide(event.event_id, OutcomeKind.TALLY_ONLY, hint)
        _settle_waiting_retraction(change, event, has_slot=False)
        if joined.answered:
            change.vague.append(seen)
    else:
        _add_signal(change, event, seen, now_ms)
    return change.finish()


def _on_late_feedback(change: Change, event: Feedback) -> None:
    """Decide an event after the window. A retraction gets its outcome only once the batches have been searched."""
    joined, change.changed = change.joined, False
    if joined.erased:
        change.decide(event.event_id, OutcomeKind.ERASED, RESPONSE_ERASED)
    elif not isinstance(event, Retract):
        change.decide(event.event_id, OutcomeKind.LATE, "the response's window is closed")
    elif (key := retraction_key(event.value, event.user_id)) in joined.retractions:
        change.decide(event.event_id, OutcomeKind.DUPLICATE, ALREADY_RETRACTED)
    elif event.event_id in joined.retractions.values():
        change.decide(event.event_id, OutcomeKind.DUPLICATE)
    else:
        _remember_late_retraction(joined, key, event.event_id)
        change.changed = True
        change.searches.append(BatchSearch(event.value, event.user_id, event.event_id))


def _remember_late_retraction(joined: JoinedResponse, key: str, retraction_id: str) -> None:
    """Remember a retraction, to recognise its repetition. Beyond the limits, the oldest ones are forgotten.

    Nothing else depends on it, so a user who retracts without end loses only this.
    """
    known, user_id = joined.retractions, retraction_owner(key)
    of_user = [each for each in known if retraction_owner(each) == user_id]
    for oldest in of_user[: max(0, len(of_user) - MAX_LATE_RETRACTIONS_OF_USER + 1)]:
        del known[oldest]
    for oldest in list(known)[: max(0, len(known) - MAX_LATE_RETRACTIONS + 1)]:
        del known[oldest]
    known[key] = retraction_id


def _add_signal(change: Change, event: Feedback, seen: SeenEvent, now_ms: int) -> None:
    """Put a signal into its slot if it is the newest there."""
    joined = change.joined
    seen.at_ms = at = _clamped_ms(event, now_ms)
    if joined.choices is not None and event.choice not in joined.choices:
        change.decide(event.event_id, OutcomeKind.TALLY_ONLY, _no_such_choice(event.choice))
        _settle_waiting_retraction(change, event, has_slot=False)
        return
    slot = f"{event.user_id}|{event.kind}|{event.choice}"
    holder = joined.slots.get(slot)
    if holder is not None and (joined.events[holder].at_ms, holder) > (at, event.event_id):
        _settle_waiting_retraction(change, event, has_slot=False)
        change.decide(event.event_id, OutcomeKind.SUPERSEDED)
        return
    if holder is not None:
        change.drop_signal(holder, OutcomeKind.SUPERSEDED)
    joined.slots[slot] = event.event_id
    if _settle_waiting_retraction(change, event, has_slot=True):
        return
    if len(joined.signals) >= MAX_SIGNALS:
        raise Oversized(f"more than {MAX_SIGNALS} signals on one response")
    signal = Signal(
        event.kind, event.user_id, value_json(event.value), at, choice=event.choice, tags=event.tags
    )
    joined.signals[event.event_id] = signal
    change.added.append(signal)
    if joined.answered:
        change.waiting.add(event.event_id)


def _clamped_ms(event: Feedback, now_ms: int) -> int:
    """Return when the user gave the feedback, in ms, clamped between `EARLIEST_MS` and the append time `now_ms`.

    The clamp is needed because apps may write to the topic directly, with any time.
    """
    at = now_ms if event.occurred_at is None else min(to_ms(event.occurred_at), now_ms)
    return max(at, EARLIEST_MS)


def _retract(change: Change, event: Retract) -> None:
    """Take an event back, or remember the retraction until the event arrives."""
    joined = change.joined
    target = joined.events.get(event.value)
    if target is None:
        key = retraction_key(event.value, event.user_id)
        if key in joined.retractions:
            change.decide(event.event_id, OutcomeKind.DUPLICATE, ALREADY_RETRACTED)
        else:
            joined.retractions[key] = event.event_id
        return
    if target.user_id != event.user_id or target.kind == "retract":
        raise Rejected(f"event {event.value} is not this user's to take back")
    change.drop_signal(event.value, OutcomeKind.RETRACTED)
    change.decide(event.event_id, OutcomeKind.APPLIED_RETRACT)


def _settle_waiting_retraction(change: Change, event: Feedback, *, has_slot: bool) -> bool:
    """Apply the retraction by the same user that waited for this event. Return whether it emptied the event's slot.

    A retraction by another user has no effect and keeps waiting.
    """
    retraction = change.joined.retractions.pop(retraction_key(event.event_id, event.user_id), None)
    if retraction is None:
        return False
    change.decide(retraction, OutcomeKind.APPLIED_RETRACT)
    if has_slot:
        change.decide(event.event_id, OutcomeKind.RETRACTED)
    return has_slot


def retraction_key(event_id: str, user_id: str) -> str:
    """Return the key under which a user's retraction waits for an event. Ids contain no spaces."""
    return f"{event_id} {user_id}"


def retraction_owner(key: str) -> str:
    """Return the user of a `retraction_key`."""
    return key.rsplit(" ", 1)[1]


def _no_such_choice(choice: int) -> str:
    return f"the response has no choice {choice}"


# --- time passes --------------------------------------------------------------------------------------------------


def on_expiry(joined: JoinedResponse) -> Change:
    """Return the change when the window closes: feedback whose response never arrived is `unmatched`.

    A retraction is, too, if the response arrived without its event. If not even the response did, the event may be
    older than the state remembers, so the batches are searched.
    """
    change = Change(trace_of(joined), set())
    for event_id in [] if joined.answered else sorted(joined.signals):
        change.decide(event_id, OutcomeKind.UNMATCHED)
    if joined.answered:
        for retraction_id in sorted(joined.retractions.values()):
            change.decide(retraction_id, OutcomeKind.UNMATCHED)
    else:
        change.joined.retractions = joined.retractions
        for key, retraction_id in sorted(joined.retractions.items()):
            event_id, user_id = key.rsplit(" ", 1)
            change.searches.append(BatchSearch(event_id, user_id, retraction_id))
    return change


def trace_of(joined: JoinedResponse) -> JoinedResponse:
    """Return what remains of a response after its window, so that later feedback can be reported as `late`."""
    return JoinedResponse(
        line=joined.line,
        since_ms=joined.since_ms,
        responded_ms=joined.responded_ms,
        revision=joined.revision,
        expired=True,
    )
