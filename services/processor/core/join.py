"""Rules that join one response with its feedback, in whichever order they arrive. Pure.

None of the rules depends on the order of arrival:

- The newest event per slot (user, kind, choice) wins, by (`occurred_at` clamped between `EARLIEST` and the append time,
  event_id).
- A retracted event keeps its slot without content: the event that it replaced does not come back.
- The same event again is a duplicate. The same id with other content is a conflict, and the first event stands.
- A retraction may arrive before the event that it retracts.
- Feedback that is too vague (`hint_for`) is counted, never trained on.

The time of an event is the one that its user stated. It is not moved up to the response's time: that would only make
ties between edits by a client whose clock is slow, and would depend on which of the two arrives first. A client with a
wrong clock does best to state no time.

Only the limits depend on the order of arrival: what arrives beyond them is `refused`. They are per user as well as per
response, so that no user can use up a response, and thumbs and ratings leave room for corrections. A retraction is
never refused because of a limit.

Each feedback record gets exactly one outcome: at once (`duplicate`, `superseded`, `tally_only`, `retracted`,
`applied_retract`, `late`, `refused`), when its batch is cut (`batched`), or when the window closes (`unmatched`). The
same event once more is a `duplicate`, also if it was `refused`, unless so many others came that it was forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from msgspec import Struct, field

from services.processor.core.state import (
    WINDOW_MS,
    JoinedResponse,
    SeenEvent,
    Signal,
    StoredResponse,
    encode,
)
from services.processor.core.wire import value_json
from shared.events import (
    EARLIEST_MS,
    MAX_RECORD_BYTES,
    MAX_SIGNALS,
    Feedback,
    OutcomeKind,
    RefusalReason,
    Retract,
    to_ms,
)
from shared.feedback_kinds import KIND_BY_NAME, VAGUE_KINDS, hint_for

MAX_LATE_RETRACTIONS: Final = 1_024
"""Retractions remembered per response after its window, to detect repetitions."""
MAX_LATE_RETRACTIONS_OF_USER: Final = 64
"""The same for one user."""
MAX_LABELS: Final = MAX_SIGNALS * 3 // 4
"""Most thumbs and ratings in one example. The rest of `MAX_SIGNALS` is kept for feedback that says more, so that even
the most popular answer can still be corrected."""
MAX_STORED_BYTES: Final = MAX_RECORD_BYTES - 256
"""Most bytes of a `StoredResponse`: with its key it must fit into a record of the changelog."""
MAX_USER_SIGNALS: Final = 16
"""Most current signals of one user on one response."""
MAX_USER_BYTES: Final = 200_000
"""Most bytes of one user's signals on one response. Each single event is smaller."""
MAX_USER_EVENTS: Final = 64
"""Most events of one user, besides the current signals, that are remembered per response to detect duplicates; and most
retractions of one user that wait for their event."""
MEMORY_BYTES: Final = 32_768
"""Most bytes of such memory per response, of all users together; and the same for waiting retractions."""
SIGNAL_FRAME_BYTES: Final = 320
"""Upper bound for the bytes of a signal, in an example and in the join state, besides its ids, value and tags."""
ESCAPED: Final = 2
"""Most bytes of a character of an id in JSON: ids are ASCII, and a quote or a backslash is escaped."""
MEMORY_FRAME_BYTES: Final = 232
"""The same for an event that is only remembered."""
RESPONSE_ERASED: Final = "the response was erased"
WINDOW_CLOSED: Final = "the response's window is closed"
ALREADY_RETRACTED: Final = "already taken back"


class EventOutcome(NamedTuple):
    """The outcome of one feedback event, or of a response if `event_id` is None, before it becomes a record."""

    event_id: str | None
    kind: OutcomeKind
    detail: str | None = None
    reason: RefusalReason | None = None


class BatchSearch(NamedTuple):
    """A retraction of an event that the state does not know, but that an earlier batch may hold."""

    event_id: str
    user_id: str
    retraction_id: str
    """The event that retracts it."""
    outcome: OutcomeKind
    """The retraction's outcome if no batch holds the event."""


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

    def refuse(self, event_id: str | None, reason: RefusalReason, detail: str) -> None:
        """Refuse an event, or the response if `event_id` is None. `detail` says what to do."""
        self.outcomes.append(EventOutcome(event_id, OutcomeKind.REFUSED, detail, reason))

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
    joined: JoinedResponse | None,
    stored: StoredResponse | None,
    response: StoredResponse,
    size: int,
    max_bytes: int,
) -> Change:
    """Return the change that a response makes. Feedback that arrived before it counts from now on.

    `stored` is the response already known under this id, `size` the new one's in bytes, `max_bytes` the most that a
    response and its signals may have together. A response is refused if another one has this id, if it comes again
    after its window, or if the state cannot hold it.
    """
    if (joined is None or not joined.answered) and size > MAX_STORED_BYTES:
        change = Change(joined or JoinedResponse.from_response(response, size), set(), changed=False)
        change.refuse(None, RefusalReason.TOO_LARGE, _RESPONSE_TOO_LARGE)
        return change
    if joined is None:
        return Change(JoinedResponse.from_response(response, size), set())
    if joined.expired:
        change = Change(joined, set(), changed=False)
        if not joined.erased:
            change.refuse(None, RefusalReason.RESPONSE_LATE, _RESPONSE_LATE)
        return change
    if joined.answered:
        change = Change(joined, set(), changed=False)
        if stored is None or not stored.same_content(response):
            change.refuse(None, RefusalReason.CONFLICT, _RESPONSE_CONFLICT)
        return change
    change = Change(joined, set())
    if response.status == "completed":
        for event_id, signal in list(joined.signals.items()):
            if signal.choice not in response.indices:
                del joined.signals[event_id]
                change.decide(event_id, OutcomeKind.TALLY_ONLY, _no_such_choice(signal.choice))
    joined.line, joined.version, joined.responded_ms = response.line, response.version, response.at_ms
    joined.choices, joined.answer_bytes = response.valid_choices, size
    for seen in joined.events.values():
        seen.came_ms = 0
    _refuse_what_does_not_fit(change, max_bytes)
    change.waiting.update(joined.signals)
    change.added = list(joined.signals.values())
    change.vague = [
        event for event in joined.events.values() if event.kind in VAGUE_KINDS and not event.at_ms
    ]
    return change.finish()


def _refuse_what_does_not_fit(change: Change, max_bytes: int) -> None:
    """Refuse signals, the last arrived first, until the rest fits into a batch together with the response."""
    joined = change.joined
    size = joined.answer_bytes + signals_bytes(joined)
    for event_id in reversed(list(joined.signals)):
        if size <= max_bytes:
            return
        size -= signal_bytes(event_id, joined.signals.pop(event_id))
        change.refuse(event_id, RefusalReason.TOO_LARGE, _too_large(max_bytes))


# --- feedback arrives ---------------------------------------------------------------------------------------------


def on_feedback(
    joined: JoinedResponse, waiting: Iterable[str], event: Feedback, now_ms: int, max_bytes: int
) -> Change:
    """Return the change that a feedback event makes, given its append time `now_ms`.

    `waiting` are the response's events in the open batch, `max_bytes` the most that a response and its signals may have
    together. An event is refused if another one has its id, if it retracts what is not its user's, or if there is no
    room for it.
    """
    change = Change(joined, set(waiting))
    if joined.expired:
        _on_late_feedback(change, event)
        return change
    digest = event.content_digest()[:32]
    seen = joined.events.get(event.event_id)
    if seen is not None:
        change.changed = False
        if seen.digest == digest:
            change.decide(event.event_id, OutcomeKind.DUPLICATE)
        else:
            change.refuse(event.event_id, RefusalReason.CONFLICT, _EVENT_CONFLICT)
        return change
    # Stream time may not be there yet. Then the window is over for this event alone.
    if joined.answered and now_ms >= joined.expires_ms and not isinstance(event, Retract):
        change.changed = False
        change.decide(event.event_id, OutcomeKind.LATE, WINDOW_CLOSED)
        return change
    line = "" if joined.answered or event.line == joined.line else event.line
    came_ms = 0 if joined.answered else now_ms
    if not joined.answered:
        joined.since_ms = min(joined.since_ms, now_ms)  # the broker's clock may have gone back
    seen = SeenEvent(digest, event.user_id, event.kind, line=line, came_ms=came_ms)
    joined.events[event.event_id] = seen
    if isinstance(event, Retract):
        _retract(change, event)
    elif (hint := hint_for(event)) is not None:
        change.decide(event.event_id, OutcomeKind.TALLY_ONLY, hint)
        _settle_waiting_retraction(change, event, has_slot=False)
        if joined.answered:
            change.vague.append(seen)
    else:
        _add_signal(change, event, seen, now_ms, max_bytes)
    _bound_memory(change, event.user_id)
    return change.finish()


def _on_late_feedback(change: Change, event: Feedback) -> None:
    """Decide an event after the window. A retraction gets its outcome only once the batches have been searched."""
    joined, change.changed = change.joined, False
    if joined.unusable and not isinstance(event, Retract):  # an earlier batch may hold what is retracted
        change.refuse(event.event_id, RefusalReason.UNUSABLE, UNUSABLE)
    elif joined.erased:
        change.decide(event.event_id, OutcomeKind.ERASED, RESPONSE_ERASED)
    elif not isinstance(event, Retract):
        change.decide(event.event_id, OutcomeKind.LATE, WINDOW_CLOSED)
    elif (key := retraction_key(event.value, event.user_id)) in joined.retractions:
        change.decide(event.event_id, OutcomeKind.DUPLICATE, ALREADY_RETRACTED)
    elif event.event_id in joined.retractions.values():
        change.decide(event.event_id, OutcomeKind.DUPLICATE)
    else:
        _remember_late_retraction(joined, key, event.event_id)
        change.changed = True
        change.searches.append(BatchSearch(event.value, event.user_id, event.event_id, OutcomeKind.LATE))


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


def _add_signal(change: Change, event: Feedback, seen: SeenEvent, now_ms: int, max_bytes: int) -> None:
    """Put a signal into its slot if it is the newest there, and if there is room for it."""
    joined = change.joined
    seen.at_ms = at = _clamped_ms(event, now_ms)
    if joined.choices is not None and event.choice not in joined.choices:
        change.decide(event.event_id, OutcomeKind.TALLY_ONLY, _no_such_choice(event.choice))
        _settle_waiting_retraction(change, event, has_slot=False)
        return
    slot = slot_of(event.user_id, event.kind, event.choice)
    holder = joined.slots.get(slot)
    if holder is not None and (joined.events[holder].at_ms, holder) > (at, event.event_id):
        _settle_waiting_retraction(change, event, has_slot=False)
        change.decide(event.event_id, OutcomeKind.SUPERSEDED)
        return
    signal = Signal(
        event.kind, event.user_id, value_json(event.value), at, choice=event.choice, tags=event.tags
    )
    if retraction_key(event.event_id, event.user_id) not in joined.retractions:
        refusal = _no_room_for(joined, event.event_id, signal, holder, max_bytes)
        if refusal is not None:
            change.refuse(event.event_id, *refusal)
            return
    if holder is not None:
        change.drop_signal(holder, OutcomeKind.SUPERSEDED)
    joined.slots[slot] = event.event_id
    if _settle_waiting_retraction(change, event, has_slot=True):
        return
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
    if target.user_id != event.user_id:
        change.refuse(event.event_id, RefusalReason.NOT_YOURS, _NOT_YOURS)
        return
    if target.kind == "retract":
        change.refuse(event.event_id, RefusalReason.NOT_YOURS, _RETRACTS_A_RETRACTION)
        return
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


def slot_of(user_id: str, kind: str, choice: int) -> str:
    """Return the slot of a signal. Different signals never share one, because kinds and choices contain no `|`."""
    return f"{user_id}|{kind}|{choice}"


def retraction_key(event_id: str, user_id: str) -> str:
    """Return the key under which a user's retraction waits for an event. Ids contain no spaces."""
    return f"{event_id} {user_id}"


def retraction_owner(key: str) -> str:
    """Return the user of a `retraction_key`."""
    return key.rsplit(" ", 1)[1]


def _no_such_choice(choice: int) -> str:
    return f"the response has no choice {choice}"


# --- limits -------------------------------------------------------------------------------------------------------


def signal_bytes(event_id: str, signal: Signal) -> int:
    """Return an upper bound of the bytes that a signal takes in an example, and in the join state."""
    tags = len(encode(signal.tags)) if signal.tags else 0
    ids = 4 * ESCAPED * (len(event_id) + len(signal.user_id))
    return len(bytes(signal.value)) + tags + ids + SIGNAL_FRAME_BYTES


def signals_bytes(joined: JoinedResponse) -> int:
    """Return an upper bound of the bytes that all signals take in an example, and in the join state."""
    return sum(signal_bytes(event_id, signal) for event_id, signal in joined.signals.items())


def _no_room_for(
    joined: JoinedResponse, event_id: str, signal: Signal, holder: str | None, max_bytes: int
) -> tuple[RefusalReason, str] | None:
    """Return why a signal cannot be added in place of `holder`, or None if it can."""
    others = [(other_id, other) for other_id, other in joined.signals.items() if other_id != holder]
    own = [(other_id, other) for other_id, other in others if other.user_id == signal.user_id]
    size = signal_bytes(event_id, signal)
    if len(own) >= MAX_USER_SIGNALS or (
        own and size + sum(signal_bytes(*other) for other in own) > MAX_USER_BYTES
    ):
        return RefusalReason.TOO_MANY, _USER_HAS_TOO_MANY
    if len(others) >= MAX_SIGNALS:
        return RefusalReason.TOO_MANY, _RESPONSE_HAS_TOO_MANY
    if _is_label(signal) and sum(_is_label(other) for _, other in others) >= MAX_LABELS:
        return RefusalReason.TOO_MANY, _RESPONSE_HAS_TOO_MANY_LABELS
    if joined.answer_bytes + size + sum(signal_bytes(*other) for other in others) > max_bytes:
        return RefusalReason.TOO_LARGE, _too_large(max_bytes)
    return None


def _is_label(signal: Signal) -> bool:
    """Return whether a signal only rates the answer."""
    return KIND_BY_NAME[signal.kind].objective == "kto"


def _bound_memory(change: Change, user_id: str) -> None:
    """Forget the oldest events that are no current signals, once they are too many.

    Those of the user whose event was just added come first; then those of whoever has most, so that nobody can make a
    response forget what others said. Nothing else depends on what is forgotten: a repetition of it is not recognised
    any more, and a retraction of it ends `unmatched`.
    """
    joined = change.joined
    if len(joined.events) > MAX_USER_EVENTS:
        events = (item for item in joined.events.items() if item[0] not in joined.signals)
        for event_id in _surplus([_Memory.of_event(*item) for item in events], user_id):
            _forget(joined, event_id)
    if len(joined.retractions) > MAX_USER_EVENTS:
        for key in _surplus([_Memory.of_retraction(*item) for item in joined.retractions.items()], user_id):
            change.decide(joined.retractions.pop(key), OutcomeKind.UNMATCHED, _TOO_MANY_RETRACTIONS)


class _Memory(NamedTuple):
    """Something remembered of a user. `size` is an upper bound of its bytes in the join state."""

    key: str
    user_id: str
    size: int

    @classmethod
    def of_event(cls, event_id: str, seen: SeenEvent) -> _Memory:
        """Return an event, with its slot."""
        size = 2 * ESCAPED * (len(event_id) + len(seen.user_id)) + MEMORY_FRAME_BYTES
        return cls(event_id, seen.user_id, size)

    @classmethod
    def of_retraction(cls, key: str, retraction_id: str) -> _Memory:
        """Return a retraction that waits."""
        return cls(key, retraction_owner(key), ESCAPED * (len(key) + len(retraction_id)) + 8)


def _surplus(memories: list[_Memory], user_id: str) -> list[str]:
    """Return the keys of what to forget, given everything in its order of arrival."""
    by_user: dict[str, list[_Memory]] = {}
    for memory in memories:
        by_user.setdefault(memory.user_id, []).append(memory)
    surplus: list[_Memory] = []
    own = by_user.get(user_id, [])
    while len(own) > MAX_USER_EVENTS:
        surplus.append(own.pop(0))
    size = sum(memory.size for memory in memories) - sum(memory.size for memory in surplus)
    while size > MEMORY_BYTES:
        surplus.append(max(by_user.values(), key=len).pop(0))
        size -= surplus[-1].size
    return [memory.key for memory in surplus]


def _forget(joined: JoinedResponse, event_id: str) -> None:
    del joined.events[event_id]
    for slot in [slot for slot, holder in joined.slots.items() if holder == event_id]:
        del joined.slots[slot]


_EVENT_CONFLICT: Final = (
    "another event with this id came first, and that one stands: send new feedback under a new event_id"
)
_RESPONSE_CONFLICT: Final = (
    "another response with this id came first, and that one stands: give every response an id of its own"
)
_RESPONSE_LATE: Final = (
    "a response with this id came before, and its window is closed: give every response an id of its own"
)
_RESPONSE_TOO_LARGE: Final = (
    "the response is larger than a record may be: shorten the conversation that it records"
)
_NOT_YOURS: Final = "another user gave this feedback: only its author can retract it"
_RETRACTS_A_RETRACTION: Final = (
    "a retraction cannot be retracted: send the feedback again under a new event_id"
)
_USER_HAS_TOO_MANY: Final = (
    f"one user may have {MAX_USER_SIGNALS} pieces of feedback, of {MAX_USER_BYTES} bytes together, on one response: "
    "replace or retract an earlier one"
)
_RESPONSE_HAS_TOO_MANY: Final = (
    f"the response already has {MAX_SIGNALS} pieces of feedback, the most that is kept"
)
_RESPONSE_HAS_TOO_MANY_LABELS: Final = (
    f"the response already has {MAX_LABELS} thumbs and ratings, the most that is kept: a correction says more"
)
_TOO_MANY_RETRACTIONS: Final = (
    "its event has not arrived, and the user has sent too many other retractions since"
)
UNUSABLE: Final = (
    "what was stored for this response could not be read and was set aside: record the response under a new id and "
    "send the feedback on that one"
)


def _too_large(max_bytes: int) -> str:
    return f"with it, the response and its feedback would have more than {max_bytes} bytes: shorten it"


# --- time passes --------------------------------------------------------------------------------------------------


def on_expiry(joined: JoinedResponse, stream_ms: int) -> Change:
    """Return the change when the window closes, at `stream_ms`. The change's `joined` is what remains.

    If the response arrived, that is a trace, and retractions that still wait for their event are `unmatched`.
    """
    if not joined.answered:
        return _end_waiting(joined, stream_ms)
    change = Change(trace_of(joined), set())
    for retraction_id in sorted(joined.retractions.values()):
        change.decide(retraction_id, OutcomeKind.UNMATCHED)
    return change


def _end_waiting(joined: JoinedResponse, stream_ms: int) -> Change:
    """Return the change when the first events have waited in vain for their response: they are `unmatched`.

    Others that came later go on waiting, so nobody's window depends on who spoke first. The event that a retraction
    takes back may be older than the state remembers, so the batches are searched for it.
    """
    over = {
        event_id
        for event_id, seen in joined.events.items()
        if (seen.came_ms or joined.since_ms) + WINDOW_MS <= stream_ms
    }
    events = {event_id: seen for event_id, seen in joined.events.items() if event_id not in over}
    rest = JoinedResponse(
        line=joined.line,
        since_ms=min((seen.came_ms for seen in events.values()), default=joined.since_ms),
        events=events,
        slots={slot: holder for slot, holder in joined.slots.items() if holder in events},
        signals={event_id: signal for event_id, signal in joined.signals.items() if event_id in events},
        retractions={key: each for key, each in joined.retractions.items() if each in events},
    )
    change = Change(rest, set(), changed=bool(events))
    for event_id in sorted(joined.signals.keys() - events.keys()):
        change.decide(event_id, OutcomeKind.UNMATCHED)
    for key in sorted(joined.retractions.keys() - rest.retractions.keys()):
        event_id, user_id = key.rsplit(" ", 1)
        retraction_id = joined.retractions[key]
        change.searches.append(BatchSearch(event_id, user_id, retraction_id, OutcomeKind.UNMATCHED))
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
