"""What an erasure, or a retraction after the window, takes out of one response's state and out of one batch. Pure.

How these are carried through a partition is `process.py`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from services.processor.core.join import Change
from services.processor.core.state import Joined, Stored
from shared.events import Batch, ExampleRevision, Feedback, OutcomeKind, to_ms
from shared.topics import DAY_MS, WINDOW_DAYS

FENCE_MS: Final = WINDOW_DAYS * DAY_MS
IN_FLIGHT_MS: Final = 60_000
"""What reached the log before the request did, and no later than so long after it was made, counts as made before it:
of what lies here only the append time is known, and it is never earlier than the moment of saying."""
REMEMBERED: Final = 32
"""Requests of one subject that are told apart from a repetition."""


class Fence(Stored):
    """What a subject made before `requested_ms` is erased on arrival, until `until_ms`. `requests`: the newest of those
    that built it, so that one sent twice is answered once."""

    requested_ms: int = 0
    until_ms: int = 0
    requests: tuple[str, ...] = ()

    def add(self, request_id: str, requested_ms: int, until_ms: int) -> None:
        """Holds also for what a further request asks."""
        self.requested_ms = max(self.requested_ms, requested_ms)
        self.until_ms = max(self.until_ms, until_ms)
        self.requests = (*self.requests, request_id)[-REMEMBERED:]


class Erasure(Stored):
    """One request under way in this partition: of a subject, or of one event that was taken back too late."""

    request_id: str
    line: str
    subject: str
    cutoff_ms: int
    """What the subject said and asked, in the state and in batches, is erased up to here."""
    kind: str = "erasure"
    response_id: str = ""
    event_id: str = ""
    """Of a retraction: the event that is taken back."""
    retraction: str = ""
    """Of a retraction: the event that takes it back."""
    owed: bool = False
    """Of a retraction: nobody else will say what became of it."""
    responses: int = 0
    signals: int = 0
    rewrites: int = 0
    """Batches rewritten so far."""

    @property
    def target(self) -> str | tuple[str, str]:
        """As `Sought` and `Rewritten` name it."""
        return self.subject if self.kind == "erasure" else (self.response_id, self.event_id)


class Course(Stored):
    """What a partition has to do, and when it has to look again."""

    phase: str = ""
    """`walk` through the state, `reread` batches, `tell`; empty while nothing is under way."""
    cursor: str = ""
    """The key behind which the walk goes on."""
    requests: int = 0
    """How many there were; it numbers them."""
    waiting: int = 0
    fence_end_ms: int = 0
    """When the first fence goes; 0 without one."""
    touch_ms: int = 0
    touches: int = 0
    """From `touch_ms` on, so many times, something is appended to each compacted topic: the broker compacts closed
    segments only, and closes one only then."""
    touch_line: str = ""
    """Whose batches were rewritten, if any were."""


def made_ms(event: Feedback) -> int:
    """When a feedback event was made, at the latest."""
    received = to_ms(event.received_at)
    return received if event.occurred_at is None else min(received, to_ms(event.occurred_at))


# --- one response's state ---


def whose(place: str) -> str:
    """The user of a retraction that waits, by how it is kept."""
    return place.rsplit(" ", 1)[1]


def take_out(joined: Joined, waiting: set[str], subjects: Mapping[str, int]) -> Change:
    """The response stays; what these subjects said of it up to a moment goes. What had no outcome is `erased`."""
    change = Change(joined, waiting)
    for place, retraction in list(joined.retractions.items()):
        if whose(place) in subjects:
            del joined.retractions[place]
            if not joined.expired:
                change.decide(retraction, OutcomeKind.ERASED)
    gone = {e for e, said in joined.events.items() if said.at_ms <= subjects.get(said.user_id, -1)}
    for event_id in sorted(gone):
        change.drop_signal(event_id, OutcomeKind.ERASED)
        del joined.events[event_id]
    joined.slots = {slot: holder for slot, holder in joined.slots.items() if holder not in gone}
    return change.close()


def drop(joined: Joined, waiting: set[str], now_ms: int) -> Change:
    """The response goes, and with it what anybody said of it. A trace stays, by which what comes later is `erased`."""
    trace = Joined(
        line=joined.line,
        since_ms=joined.since_ms,
        responded_ms=now_ms if joined.responded_ms is None else joined.responded_ms,
        revision=joined.revision,
        expired=True,
        erased=True,
    )
    change = Change(trace, set())
    signals = waiting if joined.answered else joined.signals.keys()
    for event_id in sorted({*signals, *joined.retractions.values()}):
        change.decide(event_id, OutcomeKind.ERASED, "the response was erased")
    return change


# --- one batch ---


@dataclass(frozen=True, slots=True)
class Sought:
    """What a scan takes out: of each subject what it said and asked up to a moment, and single events, by
    (response_id, event_id), of the user who took them back."""

    subjects: dict[str, int] = field(default_factory=dict)
    events: dict[tuple[str, str], str] = field(default_factory=dict)

    def may_be_in(self, value: bytes) -> bool:
        """Whether a batch needs to be read whole; cheap. True for what is no batch: reading it tells what is wrong."""
        try:
            examples: list[dict[str, Any]] = orjson.loads(value)["examples"]
            return any(map(self._concerns, examples))
        except (ValueError, KeyError, TypeError, AttributeError):
            return True

    def _concerns(self, example: dict[str, Any]) -> bool:
        if example.get("user_id") in self.subjects:
            return True
        response_id = example["response_id"]
        return any(
            signal["user_id"] in self.subjects or (response_id, signal["event_id"]) in self.events
            for signal in example.get("signals", ())
        )


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A batch without what was sought. `signals`: how many left it for each subject and each event."""

    batch: Batch
    signals: Counter[str | tuple[str, str]]


def rewritten(batch: Batch, sought: Sought, rewrite: int) -> Rewritten | None:
    """The same batch under its own id; None where nothing of what is sought is in it."""
    found: Counter[str | tuple[str, str]] = Counter()
    examples = tuple(_without(example, sought, found) for example in batch.examples)
    if not found:
        return None
    made = batch.model_copy(
        update={
            "examples": examples,
            "rewrite": rewrite,
            "reason": "erasure",
            "content_hash": Batch.hash_of(examples),
        }
    )
    return Rewritten(made, found)


def _without(
    example: ExampleRevision, sought: Sought, found: Counter[str | tuple[str, str]]
) -> ExampleRevision:
    asker = example.user_id
    if asker is not None and to_ms(example.responded_at) <= sought.subjects.get(asker, -1):
        found[asker] += len(example.signals)
        return emptied(example)
    kept = []
    for signal in example.signals:
        event = (example.response_id, signal.event_id)
        if to_ms(signal.occurred_at) <= sought.subjects.get(signal.user_id, -1):
            found[signal.user_id] += 1
        elif sought.events.get(event) == signal.user_id:
            found[event] += 1
        else:
            kept.append(signal)
    if len(kept) == len(example.signals):
        return example
    return example.model_copy(update={"signals": tuple(kept)}) if kept else emptied(example)


def emptied(example: ExampleRevision) -> ExampleRevision:
    """The same revision as a retraction: it names the response and its version, and holds nothing of anybody."""
    return ExampleRevision(
        line=example.line,
        response_id=example.response_id,
        revision=example.revision,
        op="retract",
        version=example.version,
        responded_at=example.responded_at,
        revised_at=example.revised_at,
    )
