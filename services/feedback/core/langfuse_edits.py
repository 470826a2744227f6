"""Edits and deletions of Langfuse scores as events that add to the log. Pure.

A score is replaced under its id; a feedback event is immutable. So each change of a score becomes new events with ids
of their own, which begin with a digest of the score's id. The events in the log are therefore all that is needed to
know a score's present signals: `present` replays them, `plan` returns the events that lead from there to what is
wanted. An event's id depends on the events before it. So a request that is repeated before the index has its events
repeats their ids, and a value that comes back after an edit or a deletion gets a new one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import orjson
from pydantic import ValidationError

from services.feedback.core.langfuse_scores import Signal
from shared.composed_ids import digest_id
from shared.events import FEEDBACK, Retract
from shared.records import Record

PREFIX: Final = "langfuse."
RETRACT: Final = "retract"
SCORE_DIGITS: Final = 32


@dataclass(frozen=True, slots=True)
class ScoreEvent:
    """One event of a score, as the index keeps it."""

    line: str
    response_id: str
    user_id: str
    """Pseudonym."""
    event_id: str
    kind: str
    value: str
    """The retracted event's id for a retraction, else a digest of the value."""


@dataclass(frozen=True, slots=True)
class Add:
    """Send a signal under this event id."""

    signal: Signal
    event_id: str


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Retract an event under this event id."""

    event: ScoreEvent
    event_id: str


def score_key(score_id: str) -> str:
    """Return the digest of a score's id that its event ids contain."""
    return hashlib.sha256(score_id.encode("utf-8", "surrogatepass")).hexdigest()[:SCORE_DIGITS]


def value_digest(value: object) -> str:
    """Return a digest of a signal's value, so that the index holds no text of users."""
    return hashlib.sha256(orjson.dumps(value)).hexdigest()[:16]


def score_event_of(record: Record) -> tuple[str, ScoreEvent] | None:
    """Return the key of its score and the event that a record of `feedback.events` holds; None for all others."""
    if PREFIX.encode() not in (record.value or b""):
        return None
    try:
        event = FEEDBACK.validate_json(record.value or b"")
    except ValidationError:
        return None  # wrong records are the processor's to report
    if not event.event_id.startswith(PREFIX):
        return None
    value = (
        event.value if isinstance(event, Retract) else value_digest(event.model_dump(mode="json")["value"])
    )
    score = event.event_id.removeprefix(PREFIX).partition(".")[0]
    return score, ScoreEvent(event.line, event.response_id, event.user_id, event.event_id, event.kind, value)


def encode(event: ScoreEvent) -> bytes:
    """Return the event for the index."""
    return orjson.dumps(
        [event.line, event.response_id, event.user_id, event.event_id, event.kind, event.value]
    )


def decode(raw: bytes) -> ScoreEvent:
    """Return the event that `encode` encoded."""
    return ScoreEvent(*orjson.loads(raw))


def present(events: Iterable[ScoreEvent]) -> dict[tuple[str, str, str], ScoreEvent]:
    """Return a score's present signals by response, user and kind.

    Args:
        events: all events of the score, in log order per response. An event that was sent twice may appear twice.

    """
    slots: dict[tuple[str, str, str], ScoreEvent] = {}
    seen: set[tuple[str, str]] = set()
    for event in events:
        if (event.response_id, event.event_id) in seen:
            continue
        seen.add((event.response_id, event.event_id))
        if event.kind != RETRACT:
            slots[event.response_id, event.user_id, event.kind] = event
            continue
        for slot, held in list(slots.items()):
            if slot[:2] == (event.response_id, event.user_id) and held.event_id == event.value:
                del slots[slot]
    return slots


def plan(
    score_id: str,
    events: Sequence[ScoreEvent],
    response_id: str,
    user_id: str,
    wanted: Sequence[Signal],
    *,
    erased: bool = False,
) -> list[Add | Withdraw]:
    """Return the events that make `wanted` the score's present signals, all others withdrawn.

    Args:
        score_id: id of the score.
        events: all its events, as for `present`.
        response_id: the response that the score is about now.
        user_id: pseudonym of its user now.
        wanted: at most one signal per kind. Empty to delete the score; response and user then do not matter.
        erased: whether the user was erased since some of the events, so that the log may hold them no more.

    """
    slots, key = present(events), score_key(score_id)
    before = digest_id("", *sorted({event.event_id for event in events}))
    steps: list[Add | Withdraw] = []
    kept = set()
    for signal in wanted:
        slot: tuple[str, str, str] = (response_id, user_id, signal.kind)
        kept.add(slot)
        held = slots.get(slot)
        if held is not None and held.value == value_digest(signal.value) and not erased:
            continue
        unique = digest_id("", response_id, user_id, signal.kind, value_digest(signal.value), before)
        steps.append(Add(signal, f"{PREFIX}{key}.{unique}"))
    for each, event in slots.items():
        if each not in kept:
            unique = digest_id("", RETRACT, event.response_id, event.event_id)
            steps.append(Withdraw(event, f"{PREFIX}{key}.{unique}"))
    return steps
