"""Drives the processor's step over a real write buffer and store, without a broker."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from services.processor.core.batches import BatchLimits
from services.processor.core.erasure.process import ErasureConfig
from services.processor.core.erasure.rules import ErasureProgress
from services.processor.core.erasure.tasks import PROGRESS_KEY
from services.processor.core.state import JUMP_MS
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
FILLER = "filler"
"""How the ids of the responses begin that only move stream time."""
START = datetime.fromtimestamp(T0 / 1000, UTC)


def response(response_id: str = "r1", text: str = "Python is a snake.", **fields: Any) -> ChatResponse:
    """Return a response to "What is Python?"."""
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
    """Return an event that occurred `at_s` seconds after the start; None leaves the time to its arrival."""
    defaults = {
        "line": "assistant",
        "response_id": "r1",
        "event_id": event_id,
        "user_id": user,
        "kind": kind,
        "value": value,
        "occurred_at": None if at_s is None else START + timedelta(seconds=at_s),
        "received_at": START,
    }
    return FEEDBACK.validate_python(defaults | fields)


class ProcessorDriver:
    """One partition of the processor. Keeps all of its outputs."""

    def __init__(self, limits: BatchLimits | None = None, erasure: ErasureConfig | None = None) -> None:
        self.store = MemoryStore()
        self.step = ProcessorStep(limits, erasure)
        self.outputs: list[Output] = []
        self.errors: list[LoopwrightError] = []
        """The errors of the records that became dead letters."""
        self.reread_position = 0
        """How many batches the current reread has fed; it ends at `reread_end`."""
        self.reread_end: int | None = None
        self.rereads = 0
        """How many rereads were requested."""
        self.now_ms = T0
        self._offsets = itertools.count()

    def append(self, record: LogRecord, at_s: float = 0.0) -> list[Output]:
        """Process a record that is appended `at_s` seconds after the start. Returns its outputs."""
        if isinstance(record, ErasureRequest):
            topic, key = ERASURE_REQUESTS, record.subject.encode()
        else:
            topic = CHAT_RESPONSES if isinstance(record, ChatResponse) else FEEDBACK_EVENTS
            key = record.response_id.encode()  # type: ignore[attr-defined]
        return self.process(
            Record(topic.name, 0, next(self._offsets), T0 + round(at_s * 1000), key, record.to_json())
        )

    def tick(self, at_s: float) -> list[Output]:
        """Process a tick `at_s` seconds after the start. Returns its outputs."""
        at_ms = T0 + round(at_s * 1000)
        return self.process(Tick(0, at_ms, at_ms))

    def advance(self, at_s: float) -> None:
        """Move stream time to `at_s` seconds after the start, by responses without feedback, and tick."""
        for number, later in enumerate((at_s - JUMP_MS / 1000, at_s, at_s)):
            self.append(response(f"{FILLER}-{at_s}-{number}"), later)
        self.tick(at_s)

    def reread(self, at_most: int = 1_000_000) -> None:
        """Continue a requested reread by up to `at_most` records, the last of which says that it is complete."""
        while self.reread_end is not None and at_most > 0:
            batches = self.logged_batches
            at_most -= 1
            if self.reread_position < self.reread_end:
                key, value = batches[self.reread_position]
                self.reread_position += 1
                offset = self.reread_position - 1
                self.process(Record(TRAINING_BATCHES.name, 0, offset, self.now_ms, key, value))
            else:
                self.reread_end = None
                self.process(RereadComplete(TRAINING_BATCHES.name, 0, self.now_ms))

    def finish_erasures(self, at_s: float) -> None:
        """Tick and reread until no task is active or waiting, from `at_s` on until the last search is due."""
        while value := self.store.get(PROGRESS_KEY):
            progress = ErasureProgress.from_json(value)
            if not (progress.phase or progress.waiting or progress.searches):
                return
            if not (progress.phase or progress.waiting) and progress.next_search_ms is not None:
                at_s = max(at_s, (progress.next_search_ms - T0) / 1000)
            self.reread()
            self.tick(at_s)

    def process(self, record: Record | Tick | RereadComplete) -> list[Output]:
        """Call the step as the engine does: if it raises, its writes are undone and the record is dead."""
        self.now_ms = max(self.now_ms, record.timestamp)
        buffer = WriteBuffer(self.store, 1_000_000)
        buffer.savepoint()
        try:
            results = list(self.step(buffer, record))
        except LoopwrightError as error:
            self.errors.append(error)
            return []
        self.store.apply(buffer.writes, 0)
        outputs = [result for result in results if isinstance(result, Output)]
        self.outputs += outputs
        if len(outputs) < len(results):
            assert self.reread_end is None, "the step requested a reread during a reread"
            self.reread_position, self.reread_end = 0, len(self.logged_batches)
            self.rereads += 1
        return outputs

    @property
    def now_s(self) -> float:
        """The partition's time, in seconds after the start."""
        return (self.now_ms - T0) / 1000

    def values(self, topic: str, outputs: Iterable[Output] | None = None) -> list[bytes]:
        """Return the values of the outputs to a topic; of all outputs by default."""
        return [o.value or b"" for o in (self.outputs if outputs is None else outputs) if o.topic == topic]

    @property
    def outcomes(self) -> dict[str, str]:
        """The outcomes of each event_id, joined by commas: normally exactly one. Refusals name their reason."""
        kinds: dict[str, str] = {}
        for outcome in self.decided:
            if outcome.event_id is not None:
                kind = f"refused:{outcome.reason}" if outcome.reason else str(outcome.outcome)
                before = kinds.get(outcome.event_id)
                kinds[outcome.event_id] = f"{before},{kind}" if before else kind
        return kinds

    @property
    def decided(self) -> list[Outcome]:
        """All outcomes, those of responses included."""
        return [Outcome.from_json(value) for value in self.values(FEEDBACK_OUTCOMES.name)]

    @property
    def refused_responses(self) -> list[tuple[str, str]]:
        """(response_id, reason) of the responses that were refused."""
        return [(o.response_id, str(o.reason)) for o in self.decided if o.event_id is None]

    @property
    def logged_batches(self) -> list[tuple[bytes, bytes]]:
        """(key, value) of all batches in the log, rewrites included."""
        return [(o.key or b"", o.value or b"") for o in self.outputs if o.topic == TRAINING_BATCHES.name]

    @property
    def batches(self) -> list[Batch]:
        """The newest rewrite of each batch."""
        newest: dict[str, Batch] = {}
        for batch in map(Batch.from_json, self.values(TRAINING_BATCHES.name)):
            before = newest.get(batch.batch_id)
            assert before is None or before.rewrite < batch.rewrite, "I2: one content per rewrite"
            assert batch.content_hash == Batch.hash_of(batch.examples)
            newest[batch.batch_id] = batch
        return list(newest.values())

    @property
    def reports(self) -> list[ErasureReport]:
        """All erasure reports."""
        return [ErasureReport.from_json(value) for value in self.values(ERASURE_REPORTS.name)]

    @property
    def newest(self) -> dict[str, ExampleRevision]:
        """The newest revision of each example over all batches. Fails if a revision is in two of them."""
        revisions: set[tuple[str, int]] = set()
        newest: dict[str, ExampleRevision] = {}
        for example in (example for batch in self.batches for example in batch.examples):
            revision = (example.response_id, example.revision)
            assert revision not in revisions, f"I2: {revision} is in two batches"
            revisions.add(revision)
            if example.response_id not in newest or newest[example.response_id].revision < example.revision:
                newest[example.response_id] = example
        return newest

    @property
    def dataset(self) -> dict[str, list[tuple[str, Any]]]:
        """response_id -> its current signals, as (event_id, value)."""
        return {
            response_id: [(signal.event_id, signal.value) for signal in example.signals]
            for response_id, example in self.newest.items()
            if example.op == "upsert"
        }

    @property
    def tallies(self) -> dict[str, Tally]:
        """user -> newest tally, unless it was deleted."""
        newest = {o.key: o.value for o in self.outputs if o.topic == FEEDBACK_TALLIES.name}
        return {
            tally.user_id: tally for tally in (Tally.from_json(value) for value in newest.values() if value)
        }
