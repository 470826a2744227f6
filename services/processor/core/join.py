"""One response and all that was said about it, whichever came first.

Rules, all independent of the order of arrival:

- The newest event per slot (user, kind, choice) wins, by (`occurred_at` clamped to the append time, event_id).
- A retracted event keeps its slot but says nothing: what it once replaced does not come back.
- The same event again is a duplicate; under the same id with other content it is a conflict, and the first stands.
- A retraction may come before what it retracts.
- A vague comment is counted, never trained.

Each feedback record ends in exactly one outcome: at once (`duplicate`, `superseded`, `tally_only`, `retracted`,
`applied_retract`, `late`), at the cut of its batch (`batched`), or when the window closes (`unmatched`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from services.processor.core.state import Joined, Said
from shared.actionable import hint_for
from shared.errors import Conflict, Oversized, Rejected
from shared.events import (
    MAX_SIGNALS,
    ChatResponse,
    Feedback,
    OutcomeKind,
    Retract,
    Signal,
    canonical_json,
    from_ms,
    sha256,
    to_ms,
)
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


@dataclass(frozen=True, slots=True)
class Change:
    """What one record did. `waiting`: the events whose outcome the next batch will bring."""

    joined: Joined
    waiting: frozenset[str]
    decided: tuple[Decided, ...] = ()
    revised: bool = False


@dataclass(slots=True)
class _Draft:
    """A `Joined` while it is being changed; private to one call."""

    joined: Joined
    waiting: set[str]
    decided: list[Decided] = field(default_factory=list)
    events: dict[str, Said] = field(init=False)
    slots: dict[str, str] = field(init=False)
    signals: dict[str, Signal] = field(init=False)
    retractions: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.events = dict(self.joined.events)
        self.slots = dict(self.joined.slots)
        self.signals = dict(self.joined.signals)
        self.retractions = dict(self.joined.retractions)

    def unsettled(self, event_id: str) -> bool:
        """Whether an event that said something has no outcome yet."""
        return not self.joined.answered or event_id in self.waiting

    def drop_signal(self, event_id: str, outcome: OutcomeKind, detail: str | None = None) -> None:
        """Takes a live signal out; it gets this outcome unless a batch already gave it one."""
        if self.signals.pop(event_id, None) is None:
            return
        if self.unsettled(event_id):
            self.decided.append(Decided(event_id, outcome, detail))
        self.waiting.discard(event_id)

    def close(self) -> Change:
        revised = self.joined.answered and self.signals.keys() != self.joined.signals.keys()
        joined = self.joined.model_copy(
            update={
                "events": self.events,
                "slots": self.slots,
                "signals": self.signals,
                "retractions": self.retractions,
                "revision": self.joined.revision + revised,
            }
        )
        return Change(joined, frozenset(self.waiting), tuple(self.decided), revised)


def response_digest(response: ChatResponse) -> str:
    """Tells a response sent again from another under the same id: what was asked and answered, not how it travelled."""
    said = response.model_dump(mode="json", include={"line", "version", "messages", "choices", "status"})
    return sha256(canonical_json(said))[:32]


def on_response(
    joined: Joined | None, waiting: frozenset[str], response: ChatResponse, now_ms: int
) -> Change:
    """The response came: what was said about it before now counts.

    Raises `Conflict` where another response has this id, `Rejected` where what was said of it has already expired.
    """
    digest = response_digest(response)
    if joined is not None and joined.expired and joined.answered:
        return Change(joined, frozenset())
    if joined is not None and joined.expired:
        raise Rejected(f"response {response.response_id} came after its window had closed")
    if joined is not None and joined.answered:
        if joined.response_digest != digest:
            raise Conflict(f"response {response.response_id} came again with other content; the first stands")
        return Change(joined, waiting)
    before = joined or Joined(line=response.line, since_ms=now_ms)
    known = {choice.index for choice in response.choices}
    draft = _Draft(before, set())
    for event_id, signal in before.signals.items():
        if signal.choice not in known and response.status == "completed":
            draft.drop_signal(event_id, OutcomeKind.TALLY_ONLY, f"the response has no choice {signal.choice}")
    arrived = {"line": response.line, "version": response.version, "responded_ms": now_ms}
    revised = bool(draft.signals)
    joined = before.model_copy(
        update=arrived
        | {
            "response_digest": digest,
            "choices": tuple(sorted(known)) if response.status == "completed" else None,
            "signals": draft.signals,
            "revision": before.revision + revised,
        }
    )
    return Change(joined, frozenset(draft.signals), tuple(draft.decided), revised)


def on_feedback(joined: Joined | None, waiting: frozenset[str], event: Feedback, now_ms: int) -> Change:
    """Something was said. Raises `Conflict`, `Rejected` (another user's event) or `Oversized` (too much said)."""
    if joined is not None and joined.expired:
        return Change(
            joined, waiting, (Decided(event.event_id, OutcomeKind.LATE, "the response's window is closed"),)
        )
    joined = joined or Joined(line=event.line, since_ms=now_ms)
    digest = event.content_digest()[:32]
    known = joined.events.get(event.event_id)
    if known is not None:
        if known.digest != digest:
            raise Conflict(f"event {event.event_id} came again with other content; the first stands")
        return Change(joined, waiting, (Decided(event.event_id, OutcomeKind.DUPLICATE),))
    if len(joined.events) >= MAX_EVENTS:
        raise Oversized(f"more than {MAX_EVENTS} events on one response")
    draft = _Draft(joined, set(waiting))
    draft.events[event.event_id] = Said(digest=digest, user_id=event.user_id, kind=event.kind)
    if isinstance(event, Retract):
        _retract(draft, event)
    elif (hint := hint_for(event)) is not None:
        draft.decided.append(Decided(event.event_id, OutcomeKind.TALLY_ONLY, hint))
        _settle_retraction(draft, event, took_part=False)
    else:
        _say(draft, event, now_ms)
    return draft.close()


def _say(draft: _Draft, event: Feedback, now_ms: int) -> None:
    """Puts a signal into its slot, if it is the newest there."""
    choices = draft.joined.choices
    if choices is not None and event.choice not in choices:
        detail = f"the response has no choice {event.choice}"
        draft.decided.append(Decided(event.event_id, OutcomeKind.TALLY_ONLY, detail))
        return
    at = now_ms if event.occurred_at is None else min(to_ms(event.occurred_at), now_ms)
    slot = f"{event.user_id}|{event.kind}|{event.choice}"
    draft.events[event.event_id] = draft.events[event.event_id].model_copy(update={"at_ms": at})
    holder = draft.slots.get(slot)
    if holder is not None and (draft.events[holder].at_ms, holder) > (at, event.event_id):
        _settle_retraction(draft, event, took_part=False)
        draft.decided.append(Decided(event.event_id, OutcomeKind.SUPERSEDED))
        return
    if holder is not None:
        draft.drop_signal(holder, OutcomeKind.SUPERSEDED)
    draft.slots[slot] = event.event_id
    if _settle_retraction(draft, event, took_part=True):
        return
    if len(draft.signals) >= MAX_SIGNALS:
        raise Oversized(f"more than {MAX_SIGNALS} signals on one response")
    draft.signals[event.event_id] = Signal(
        event_id=event.event_id,
        kind=event.kind,  # type: ignore[arg-type]  # a retraction never comes here
        user_id=event.user_id,
        choice=event.choice,
        value=event.value,
        tags=event.tags,
        occurred_at=from_ms(at),
    )
    if draft.joined.answered:
        draft.waiting.add(event.event_id)


def _retract(draft: _Draft, event: Retract) -> None:
    """Takes an event back, or waits for it to come."""
    target = draft.events.get(event.value)
    if target is None:
        if event.value in draft.retractions:
            draft.decided.append(Decided(event.event_id, OutcomeKind.DUPLICATE, "already taken back"))
            return
        draft.retractions[event.value] = event.event_id
        return
    if target.user_id != event.user_id or target.kind == "retract":
        raise Rejected(f"event {event.value} is not this user's to take back")
    draft.drop_signal(event.value, OutcomeKind.RETRACTED)
    draft.decided.append(Decided(event.event_id, OutcomeKind.APPLIED_RETRACT))


def _settle_retraction(draft: _Draft, event: Feedback, *, took_part: bool) -> bool:
    """Whether a retraction was waiting for this event. Another user's retraction has no effect and stays waiting."""
    retraction = draft.retractions.get(event.event_id)
    if retraction is None or draft.events[retraction].user_id != event.user_id:
        return False
    del draft.retractions[event.event_id]
    draft.decided.append(Decided(retraction, OutcomeKind.APPLIED_RETRACT))
    if took_part:
        draft.decided.append(Decided(event.event_id, OutcomeKind.RETRACTED))
    return took_part


def expires_at(joined: Joined) -> int:
    """When the window closes (or, once expired, when the last trace goes), in ms."""
    start = joined.since_ms if joined.responded_ms is None else joined.responded_ms
    return start + WINDOW_MS + (LATE_MS if joined.expired else 0)


def on_expiry(joined: Joined) -> Change:
    """The window closes: what never found its response is `unmatched`; a small trace stays, to tell late events."""
    unmatched = [] if joined.answered else [Decided(e, OutcomeKind.UNMATCHED) for e in sorted(joined.signals)]
    unmatched += [Decided(e, OutcomeKind.UNMATCHED) for e in sorted(joined.retractions.values())]
    trace = Joined(
        line=joined.line,
        since_ms=joined.since_ms,
        responded_ms=joined.responded_ms,
        expired=True,
        revision=joined.revision,
    )
    return Change(trace, frozenset(), tuple(unmatched))
