"""What the log says about one feedback event, and the outcome that follows from it.

Each arrival of an event ends in one of three ways: with the event's own outcome, with the outcome of a repetition, or
as a dead letter. So counting them is enough to know whether an arrival is still pending.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Any, Final

import orjson

from services.feedback.core.receipts import NoOutcome
from shared.composed_ids import join_ids
from shared.dead_letters import parse_origin
from shared.errors import Conflict, Malformed, Rejected
from shared.events import Outcome, OutcomeKind, RefusalReason, from_ms
from shared.records import Record
from shared.topics import DEAD_LETTERS, FEEDBACK_EVENTS, FEEDBACK_OUTCOMES

EVENT_KEY_BYTES: Final = 16
MAX_DETAIL: Final = 1024


class FactKind(IntEnum):
    """Kind of a fact about an event. The topic of the record decides it."""

    ARRIVAL = 1
    """The event is in the log."""
    OUTCOME = 2
    DEAD = 3
    """An arrival became a dead letter."""


KIND_OF_TOPIC: Final = {
    FEEDBACK_EVENTS.name: FactKind.ARRIVAL,
    FEEDBACK_OUTCOMES.name: FactKind.OUTCOME,
    DEAD_LETTERS.name: FactKind.DEAD,
}


@dataclass(frozen=True, slots=True)
class Fact:
    """What one record says about one event.

    `value` is empty for an arrival. For an outcome or a dead letter, `decode_outcome` reads it; its first byte tells
    the event's own outcome from that of a repetition.
    """

    event_key: bytes
    kind: FactKind
    value: bytes


_OWN: Final = b"o"
_REPETITION: Final = b"r"


def event_key(response_id: str, event_id: str) -> bytes:
    """Return a digest that identifies an event."""
    return hashlib.blake2b(join_ids(response_id, event_id).encode(), digest_size=EVENT_KEY_BYTES).digest()


def fact_of(record: Record) -> Fact | None:
    """Return the fact that a record states, or None if it is about no event.

    Raises:
        Rejected: if the record cannot be read.

    """
    kind = KIND_OF_TOPIC[record.topic]
    if kind is FactKind.OUTCOME:
        return _outcome(Outcome.from_json(record.value))
    if kind is FactKind.ARRIVAL:
        identity = _identity(record.value)
        return Fact(event_key(identity.response_id, identity.event_id), kind, b"")
    origin = parse_origin(record)
    if origin.topic != FEEDBACK_EVENTS.name or origin.error_class == Conflict.code:
        return None
    try:
        identity = _identity(record.value)
    except Rejected:
        return None  # that is why it is a dead letter
    value = _encode(OutcomeKind.DEAD, identity.line, record.timestamp, detail=origin.message[:MAX_DETAIL])
    return Fact(event_key(identity.response_id, identity.event_id), kind, _OWN + value)


def resolve(facts: Iterable[tuple[FactKind, bytes]], response_id: str, event_id: str) -> Outcome | NoOutcome:
    """Return an event's outcome, or why it has none.

    Args:
        facts: kind and value of all facts about the event, by kind and then in log order.
        response_id: the event's response.
        event_id: the event's id.

    """
    arrivals = ended = 0
    repetition = dead = None
    for kind, value in facts:
        if kind is FactKind.ARRIVAL:
            arrivals += 1
            continue
        ended += 1
        if kind is FactKind.DEAD:
            dead = value
        elif value.startswith(_OWN):
            return decode_outcome(value, response_id, event_id)
        elif repetition is None:
            repetition = value
    if arrivals > ended:
        # A replayed dead letter is one more arrival, so its event is pending again.
        return NoOutcome.PENDING
    # Without an outcome of its own, every arrival is dead, or the feedback came before under another event_id.
    decided = dead or repetition
    return NoOutcome.NOT_FOUND if decided is None else decode_outcome(decided, response_id, event_id)


def decode_outcome(value: bytes, response_id: str, event_id: str) -> Outcome:
    """Return the outcome that a fact's value holds."""
    kind, line, at_ms, batch_id, reason, detail = orjson.loads(value[1:])
    return Outcome(
        line=line,
        response_id=response_id,
        event_id=event_id,
        outcome=OutcomeKind(kind),
        batch_id=batch_id,
        reason=None if reason is None else RefusalReason(reason),
        detail=detail,
        decided_at=from_ms(at_ms),
    )


def _outcome(outcome: Outcome) -> Fact | None:
    if outcome.event_id is None:
        return None
    value = _encode(
        outcome.outcome,
        outcome.line,
        _to_ms(outcome.decided_at),
        outcome.batch_id,
        outcome.reason,
        outcome.detail,
    )
    mark = _REPETITION if outcome.is_repetition else _OWN
    return Fact(event_key(outcome.response_id, outcome.event_id), FactKind.OUTCOME, mark + value)


def _encode(
    kind: OutcomeKind,
    line: str,
    at_ms: int,
    batch_id: str | None = None,
    reason: RefusalReason | None = None,
    detail: str | None = None,
) -> bytes:
    return orjson.dumps([kind, line, at_ms, batch_id, reason, detail or None])


@dataclass(frozen=True, slots=True)
class _Identity:
    line: str
    response_id: str
    event_id: str


def _identity(value: bytes | None) -> _Identity:
    """Return the ids of a feedback event. Its content is not parsed: the processor decides whether it is valid."""
    try:
        fields: Any = orjson.loads(value or b"")
        found = [fields["line"], fields["response_id"], fields["event_id"]]
    except (ValueError, TypeError, KeyError):
        raise Malformed("not a feedback event: line, response_id or event_id is missing") from None
    if not all(isinstance(name, str) for name in found):
        raise Malformed("not a feedback event: line, response_id or event_id is not a string")
    return _Identity(*found)


def _to_ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
