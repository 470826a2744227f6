"""One response and all that was said about it, whichever came first.

Rules, all independent of the order of arrival:

- The newest event per slot (user, kind, choice) wins, by (`occurred_at` clamped between `EARLIEST` and the append time,
  event_id).
- A retracted event keeps its slot but says nothing: what it once replaced does not come back.
- The same event again is a duplicate; under the same id with other content it is a conflict, and the first stands.
- A retraction may come before what it retracts.
- A vague comment is counted, never trained.

Each feedback record ends in exactly one outcome: at once (`duplicate`, `superseded`, `tally_only`, `retracted`,
`applied_retract`, `late`), at the cut of its batch (`batched`), or when the window closes (`unmatched`).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from msgspec import Struct, field

from services.processor.core.state import Answer, Joined, Said, Signal
from services.processor.core.wire import value_of
from shared.errors import Conflict, Oversized, Rejected
from shared.events import EARLIEST_MS, MAX_SIGNALS, Feedback, OutcomeKind, Retract, to_ms
from shared.feedback_quality import hint_for
from shared.topics import DAY_MS, WINDOW_DAYS

WINDOW_MS: Final = WINDOW_DAYS * DAY_MS
LATE_MS: Final = WINDOW_MS
"""For how long after the window an event is still told apart as `late` rather than `unmatched`."""
MAX_EVENTS: Final = 4 * MAX_SIGNALS
"""Events remembered per response, for telling duplicates: what comes beyond them is a dead letter."""


class Decided(NamedTuple):
    """An outcome, not yet a record."""

    event_id: str
    outcome: OutcomeKind
    detail: str | None = None


class Change(Struct):
    """What one record does to one response, while it is being found out and after.

    `joined` is changed in place: it was read for this record alone, and is written only if nothing raises.
    """

    joined: Joined
    waiting: set[str]
    """The events whose outcome the next batch will bring."""
    decided: list[Decided] = field(default_factory=list)
    changed: bool = True
    """Whether there is anything to write."""
    revised: bool = False
    """Whether the example has a new revision."""
    added: list[Signal] = field(default_factory=list)
    removed: list[Signal] = field(default_factory=list)
    """Signals that count from now on, and no longer. Counting begins with the response, which brings the version."""
    vague: list[str] = field(default_factory=list)
    """The users whose vague comments count from now on."""
    sought: bool = False
    """What is taken back may stand in batches of which nothing is known here any more."""

    def decide(self, event_id: str, outcome: OutcomeKind, detail: str | None = None) -> None:
        self.decided.append(Decided(event_id, outcome, detail))

    def drop_signal(self, event_id: str, outcome: OutcomeKind, detail: str | None = None) -> None:
        """Takes a live signal out; it gets this outcome unless a batch already gave it one."""
        signal = self.joined.signals.pop(event_id, None)
        if signal is None:
            return
        if not self.joined.answered or event_id in self.waiting:
            self.decide(event_id, outcome, detail)
        self.waiting.discard(event_id)
        self.removed.append(signal)

    def close(self) -> Change:
        """The example changed if its set of signals did: one never stays as it is under the same event."""
        if self.joined.answered and (self.added or self.removed):
            self.revised = True
            self.joined.revision += 1
        return self


def on_response(joined: Joined | None, known: Answer | None, answer: Answer, stored_bytes: int) -> Change:
    """The response came: what was said about it before now counts. `known`: what is stored under its id.

    Raises `Conflict` where another response has this id, `Rejected` where what was said of it has already expired.
    """
    if joined is None:
        return Change(Joined.of_answer(answer, stored_bytes), set())
    if joined.expired:
        if joined.answered:
            return Change(joined, set(), changed=False)
        raise Rejected("the response came after its window had closed")
    if joined.answered:
        if known is None or not known.says_the_same(answer):
            raise Conflict("the response came again with other content; the first stands")
        return Change(joined, set(), changed=False)
    change = Change(joined, set())
    if answer.status == "completed":
        for event_id, signal in list(joined.signals.items()):
            if signal.choice not in answer.indices:
                change.drop_signal(
                    event_id, OutcomeKind.TALLY_ONLY, f"the response has no choice {signal.choice}"
                )
    joined.line, joined.version, joined.responded_ms = answer.line, answer.version, answer.at_ms
    joined.choices, joined.answer_bytes = answer.known_choices, stored_bytes
    change.waiting.update(joined.signals)
    # What was dropped just now was never counted.
    change.removed, change.added = [], list(joined.signals.values())
    change.vague = [
        said.user_id for said in joined.events.values() if said.kind == "comment" and not said.at_ms
    ]
    return change.close()


def on_feedback(joined: Joined, waiting: set[str], event: Feedback, now_ms: int) -> Change:
    """Something was said. Raises `Conflict`, `Rejected` (another user's event) or `Oversized` (too much said)."""
    change = Change(joined, waiting)
    if joined.expired:
        _after_window(change, event)
        return change
    digest = event.content_digest()[:32]
    known = joined.events.get(event.event_id)
    if known is not None:
        if known.digest != digest:
            raise Conflict(f"event {event.event_id} came again with other content; the first stands")
        change.changed = False
        change.decide(event.event_id, OutcomeKind.DUPLICATE)
        return change
    if len(joined.events) >= MAX_EVENTS:
        raise Oversized(f"more than {MAX_EVENTS} events on one response")
    said = joined.events[event.event_id] = Said(digest, event.user_id, event.kind)
    if isinstance(event, Retract):
        _retract(change, event)
    elif (hint := hint_for(event)) is not None:
        change.decide(event.event_id, OutcomeKind.TALLY_ONLY, hint)
        _settle_retraction(change, event, took_part=False)
        if joined.answered:
            change.vague.append(event.user_id)
    else:
        _say(change, event, said, now_ms)
    return change.close()


def _after_window(change: Change, event: Feedback) -> None:
    """Too late, but to take something back: what became of that is known once the batches have been searched."""
    joined, change.changed = change.joined, False
    if joined.erased:
        change.decide(event.event_id, OutcomeKind.ERASED, "the response was erased")
    elif not isinstance(event, Retract):
        change.decide(event.event_id, OutcomeKind.LATE, "the response's window is closed")
    elif (place := taken_back(event.value, event.user_id)) in joined.retractions:
        change.decide(event.event_id, OutcomeKind.DUPLICATE, "already taken back")
    elif len(joined.retractions) >= MAX_EVENTS:
        raise Oversized(f"more than {MAX_EVENTS} events on one response")
    else:
        joined.retractions[place] = event.event_id
        change.changed = change.sought = True


def _say(change: Change, event: Feedback, said: Said, now_ms: int) -> None:
    """Puts a signal into its slot, if it is the newest there."""
    joined = change.joined
    said.at_ms = at = _clamped_ms(event, now_ms)
    if joined.choices is not None and event.choice not in joined.choices:
        detail = f"the response has no choice {event.choice}"
        change.decide(event.event_id, OutcomeKind.TALLY_ONLY, detail)
        _settle_retraction(change, event, took_part=False)
        return
    slot = f"{event.user_id}|{event.kind}|{event.choice}"
    holder = joined.slots.get(slot)
    if holder is not None and (joined.events[holder].at_ms, holder) > (at, event.event_id):
        _settle_retraction(change, event, took_part=False)
        change.decide(event.event_id, OutcomeKind.SUPERSEDED)
        return
    if holder is not None:
        change.drop_signal(holder, OutcomeKind.SUPERSEDED)
    joined.slots[slot] = event.event_id
    if _settle_retraction(change, event, took_part=True):
        return
    if len(joined.signals) >= MAX_SIGNALS:
        raise Oversized(f"more than {MAX_SIGNALS} signals on one response")
    signal = Signal(
        event.kind, event.user_id, value_of(event.value), at, choice=event.choice, tags=event.tags
    )
    joined.signals[event.event_id] = signal
    change.added.append(signal)
    if joined.answered:
        change.waiting.add(event.event_id)


def _clamped_ms(event: Feedback, now_ms: int) -> int:
    """Return when the user said it, in ms, clamped between `EARLIEST_MS` and the append time `now_ms`.

    Not every producer is our API: a record on the topic may hold any time.
    """
    at = now_ms if event.occurred_at is None else min(to_ms(event.occurred_at), now_ms)
    return max(at, EARLIEST_MS)


def _retract(change: Change, event: Retract) -> None:
    """Takes an event back, or waits for it to come."""
    target = change.joined.events.get(event.value)
    if target is None:
        # Where nothing at all was known, the response may be of long ago.
        change.sought = not change.joined.answered and len(change.joined.events) == 1
        waiting_for = taken_back(event.value, event.user_id)
        if waiting_for in change.joined.retractions:
            change.decide(event.event_id, OutcomeKind.DUPLICATE, "already taken back")
        else:
            change.joined.retractions[waiting_for] = event.event_id
        return
    if target.user_id != event.user_id or target.kind == "retract":
        raise Rejected(f"event {event.value} is not this user's to take back")
    change.drop_signal(event.value, OutcomeKind.RETRACTED)
    change.decide(event.event_id, OutcomeKind.APPLIED_RETRACT)


def _settle_retraction(change: Change, event: Feedback, *, took_part: bool) -> bool:
    """Whether a retraction by the same user was waiting for this event. Another's has no effect, and stays waiting."""
    retraction = change.joined.retractions.pop(taken_back(event.event_id, event.user_id), None)
    if retraction is None:
        return False
    change.decide(retraction, OutcomeKind.APPLIED_RETRACT)
    if took_part:
        change.decide(event.event_id, OutcomeKind.RETRACTED)
    return took_part


def taken_back(event_id: str, user_id: str) -> str:
    """No id has a space in it."""
    return f"{event_id} {user_id}"


def expires_at(joined: Joined) -> int:
    """When the window closes (or, once expired, when the last trace goes), in ms."""
    start = joined.since_ms if joined.responded_ms is None else joined.responded_ms
    return start + WINDOW_MS + (LATE_MS if joined.expired else 0)


def on_expiry(joined: Joined) -> Change:
    """The window closes: what never found its response is `unmatched`; a small trace stays, to tell late events."""
    trace = Joined(
        line=joined.line,
        since_ms=joined.since_ms,
        responded_ms=joined.responded_ms,
        expired=True,
        revision=joined.revision,
    )
    change = Change(trace, set())
    for event_id in [] if joined.answered else sorted(joined.signals):
        change.decide(event_id, OutcomeKind.UNMATCHED)
    for event_id in sorted(joined.retractions.values()):
        change.decide(event_id, OutcomeKind.UNMATCHED)
    return change
