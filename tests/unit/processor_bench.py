"""The processor's step over the real overlay and store, without a broker: what a unit test of its rules needs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from services.processor.core.batches import BatchLimits
from services.processor.core.step import ProcessorStep
from shared.errors import LoopwrightError
from shared.events import (
    FEEDBACK,
    Batch,
    ChatResponse,
    Choice,
    ExampleRevision,
    Feedback,
    LogRecord,
    Message,
    Outcome,
    Tally,
)
from shared.stream.overlay import Overlay
from shared.stream.step import Output, Record, Tick
from shared.stream.store import MemoryStore
from shared.topics import (
    CHAT_RESPONSES,
    FEEDBACK_EVENTS,
    FEEDBACK_OUTCOMES,
    FEEDBACK_TALLIES,
    TRAINING_BATCHES,
)

T0 = 1_760_000_000_000
START = datetime.fromtimestamp(T0 / 1000, UTC)


def response(response_id: str = "r1", text: str = "Python is a snake.", **fields: Any) -> ChatResponse:
    defaults: dict[str, Any] = {
        "line": "assistant",
        "response_id": response_id,
        "version": "assistant@base-00000000",
        "messages": (Message(role="user", content="What is Python?"),),
        "choices": (Choice(index=0, text=text),),
        "created_at": START,
    }
    return ChatResponse(**defaults | fields)


def feedback(
    kind: str, value: Any, event_id: str, user: str = "u_ann", at_s: float | None = None, **fields: Any
) -> Feedback:
    """An event said `at_s` seconds after the start (None: when it arrives)."""
    body = {
        "line": "assistant",
        "response_id": "r1",
        "event_id": event_id,
        "user_id": user,
        "kind": kind,
        "value": value,
        "occurred_at": None if at_s is None else START + timedelta(seconds=at_s),
        "received_at": START,
    }
    return FEEDBACK.validate_python(body | fields)


class Bench:
    """One partition of the processor. Keeps everything that came out."""

    def __init__(self, limits: BatchLimits | None = None) -> None:
        self.store = MemoryStore()
        self.step = ProcessorStep(limits)
        self.outputs: list[Output] = []
        self.dead: list[LoopwrightError] = []
        self._offsets = itertools.count()

    def say(self, record: LogRecord, at_s: float = 0.0) -> list[Output]:
        """The record, appended `at_s` seconds after the start."""
        topic = CHAT_RESPONSES if isinstance(record, ChatResponse) else FEEDBACK_EVENTS
        key = record.response_id.encode()  # type: ignore[attr-defined]
        return self.feed(
            Record(topic.name, 0, next(self._offsets), T0 + round(at_s * 1000), key, record.to_json())
        )

    def tick(self, at_s: float) -> list[Output]:
        return self.feed(Tick(0, T0 + round(at_s * 1000)))

    def feed(self, record: Record | Tick) -> list[Output]:
        """As the engine does: the writes of a step that raises are undone, and the record is dead."""
        overlay = Overlay(self.store, 1_000_000)
        overlay.savepoint()
        try:
            made = list(self.step(overlay, record))
        except LoopwrightError as error:
            self.dead.append(error)
            return []
        self.store.apply(overlay.writes, 0)
        self.outputs += made
        return made

    def of(self, topic: str, outputs: Iterable[Output] | None = None) -> list[bytes]:
        return [o.value or b"" for o in (self.outputs if outputs is None else outputs) if o.topic == topic]

    @property
    def outcomes(self) -> dict[str, str]:
        """event_id -> its outcomes, joined: exactly one each is what must be seen."""
        found: dict[str, str] = {}
        for outcome in map(Outcome.from_json, self.of(FEEDBACK_OUTCOMES.name)):
            before = found.get(outcome.event_id)
            found[outcome.event_id] = f"{before},{outcome.outcome}" if before else str(outcome.outcome)
        return found

    @property
    def batches(self) -> list[Batch]:
        return [Batch.from_json(value) for value in self.of(TRAINING_BATCHES.name)]

    @property
    def newest(self) -> dict[str, ExampleRevision]:
        """The newest revision of each example over all batches, in which no revision may stand twice."""
        seen: set[tuple[str, int]] = set()
        found: dict[str, ExampleRevision] = {}
        for example in (example for batch in self.batches for example in batch.examples):
            identity = (example.response_id, example.revision)
            assert identity not in seen, f"I2: {identity} is in two batches"
            seen.add(identity)
            if example.response_id not in found or found[example.response_id].revision < example.revision:
                found[example.response_id] = example
        return found

    @property
    def dataset(self) -> dict[str, list[tuple[str, Any]]]:
        """response_id -> its live signals, as (event_id, value)."""
        return {
            response_id: [(signal.event_id, signal.value) for signal in example.signals]
            for response_id, example in self.newest.items()
            if example.op == "upsert"
        }

    @property
    def tallies(self) -> dict[str, Tally]:
        """user -> newest tally."""
        return {tally.user_id: tally for tally in map(Tally.from_json, self.of(FEEDBACK_TALLIES.name))}
