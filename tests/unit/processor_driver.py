"""The processor's step over the real overlay and store, without a broker: what a unit test of its rules needs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from services.processor.core.batches import BatchLimits
from services.processor.core.erasure.process import COURSE, Course, Told
from services.processor.core.step import ProcessorStep
from shared.errors import LoopwrightError
from shared.events import (
    FEEDBACK,
    Batch,
    ChatResponse,
    Choice,
    ErasureReport,
    ErasureRequest,
    ExampleRevision,
    Feedback,
    LogRecord,
    Message,
    Outcome,
    Tally,
)
from shared.records import Output, Record
from shared.stream.state_store import MemoryStore
from shared.stream.step import RereadComplete, Tick
from shared.stream.write_buffer import WriteBuffer
from shared.topics import (
    CHAT_RESPONSES,
    ERASURE_REPORTS,
    ERASURE_REQUESTS,
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

    def __init__(self, limits: BatchLimits | None = None, told: Told | None = None) -> None:
        self.store = MemoryStore()
        self.step = ProcessorStep(limits, told)
        self.outputs: list[Output] = []
        self.shown = 0
        """How many of the batches a reread under way has shown; it ends at `shown_to`."""
        self.shown_to: int | None = None
        self.now_ms = T0
        self.dead: list[LoopwrightError] = []
        self._offsets = itertools.count()

    def say(self, record: LogRecord, at_s: float = 0.0) -> list[Output]:
        """The record, appended `at_s` seconds after the start."""
        if isinstance(record, ErasureRequest):
            topic, key = ERASURE_REQUESTS, record.subject.encode()
        else:
            topic = CHAT_RESPONSES if isinstance(record, ChatResponse) else FEEDBACK_EVENTS
            key = record.response_id.encode()  # type: ignore[attr-defined]
        return self.feed(
            Record(topic.name, 0, next(self._offsets), T0 + round(at_s * 1000), key, record.to_json())
        )

    def tick(self, at_s: float) -> list[Output]:
        return self.feed(Tick(0, T0 + round(at_s * 1000)))

    def show(self, most: int = 1_000_000) -> None:
        """Goes on with a reread, if one was asked for: so many batches, and behind the last that it is through.

        As after a change of owner, where the end is asked for anew, batches may be shown that were not yet there."""
        while self.shown_to is not None and most > 0:
            logged = self.logged
            most -= 1
            if self.shown < self.shown_to:
                key, value = logged[self.shown]
                self.shown += 1
                self.feed(Record(TRAINING_BATCHES.name, 0, self.shown - 1, self.now_ms, key, value))
            else:
                self.shown_to = None
                self.feed(RereadComplete(TRAINING_BATCHES.name, 0, self.now_ms))

    def settle(self, at_s: float) -> None:
        """Until no erasure is under way any more."""
        while (course := self.store.get(COURSE)) and _busy(Course.from_json(course)):
            self.show()
            self.tick(at_s)

    def feed(self, record: Record | Tick | RereadComplete) -> list[Output]:
        """As the engine does: the writes of a step that raises are undone, and the record is dead."""
        self.now_ms = max(self.now_ms, record.timestamp)
        overlay = WriteBuffer(self.store, 1_000_000)
        overlay.savepoint()
        try:
            said = list(self.step(overlay, record))
        except LoopwrightError as error:
            self.dead.append(error)
            return []
        self.store.apply(overlay.writes, 0)
        made = [each for each in said if isinstance(each, Output)]
        self.outputs += made
        if len(made) < len(said):
            assert self.shown_to is None, "a reread is under way already"
            self.shown, self.shown_to = 0, len(self.logged)
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
    def logged(self) -> list[tuple[bytes, bytes]]:
        """All batches as they were written, with their keys."""
        return [(o.key or b"", o.value or b"") for o in self.outputs if o.topic == TRAINING_BATCHES.name]

    @property
    def batches(self) -> list[Batch]:
        """The newest rewrite of each."""
        found: dict[str, Batch] = {}
        for batch in map(Batch.from_json, self.of(TRAINING_BATCHES.name)):
            before = found.get(batch.batch_id)
            assert before is None or before.rewrite < batch.rewrite, "I2: one content per rewrite"
            assert batch.content_hash == Batch.hash_of(batch.examples)
            found[batch.batch_id] = batch
        return list(found.values())

    @property
    def reports(self) -> list[ErasureReport]:
        return [ErasureReport.from_json(value) for value in self.of(ERASURE_REPORTS.name)]

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
        """user -> newest tally, where the newest of its key was not a deletion."""
        newest = {o.key: o.value for o in self.outputs if o.topic == FEEDBACK_TALLIES.name}
        return {
            tally.user_id: tally for tally in (Tally.from_json(value) for value in newest.values() if value)
        }


def _busy(course: Course) -> bool:
    return bool(course.phase or course.waiting)
