"""The processor's step: the state of one partition and one record give the next state and outputs. Pure.

A feedback event passes through `_on_feedback`: `load` its response, let `join` decide the change, `apply` it
(`core/turn.py`), which updates tallies and the open batch and cuts the batch when it is full.
"""

from __future__ import annotations

from collections.abc import Iterable

from services.processor.core import join
from services.processor.core.batches import BatchLimits
from services.processor.core.erasure.process import ErasureConfig, ErasureProcess
from services.processor.core.join import EventOutcome
from services.processor.core.state import JoinedResponse, joined_key, response_key
from services.processor.core.turn import PartitionTurn
from services.processor.core.wire import to_stored
from shared.errors import Malformed
from shared.events import FEEDBACK, ChatResponse, OutcomeKind, Retract, parse_union
from shared.records import Output, Record
from shared.stream.step import RereadComplete, RereadRequest, State, Tick
from shared.topics import CHAT_RESPONSES, ERASURE_REQUESTS, FEEDBACK_EVENTS


class ProcessorStep:
    """`RereadingStep` over `chat.responses`, `feedback.events` and `erasure.requests`."""

    def __init__(self, limits: BatchLimits | None = None, erasure: ErasureConfig | None = None) -> None:
        self._limits = limits or BatchLimits()
        self._erasure = erasure or ErasureConfig()

    def prefetch_keys(self, record: Record) -> Iterable[bytes]:
        """Return the keys to read ahead: the response that the record is about."""
        if record.key is None or record.topic == ERASURE_REQUESTS.name:
            return ()
        return joined_key(record.key), response_key(record.key)

    def __call__(
        self, state: State, record: Record | Tick | RereadComplete
    ) -> Iterable[Output | RereadRequest]:
        """Process one record or tick: see `RereadingStep`."""
        turn = PartitionTurn(state, record, self._limits)
        erasures = ErasureProcess(turn, self._erasure)
        if isinstance(record, Record) and record.topic == FEEDBACK_EVENTS.name:
            self._on_feedback(turn, erasures, record)
        elif isinstance(record, Record) and record.topic == CHAT_RESPONSES.name:
            self._on_response(turn, erasures, record)
        elif not isinstance(record, Tick):
            erasures.take(record)
        turn.cut_due_batches()
        turn.close_expired_windows()
        erasures.advance(record)
        turn.save_clock()
        return turn.outbox.outputs

    def _on_feedback(self, turn: PartitionTurn, erasures: ErasureProcess, record: Record) -> None:
        event = parse_union(FEEDBACK, record.value)
        key = _response_id(record, event.response_id)
        turn.outbox.name_event(event)
        joined = turn.load(key)
        if joined is None or (joined.waited_in_vain and not isinstance(event, Retract)):
            joined = JoinedResponse(line=event.line, since_ms=turn.now_ms)
        if erasures.covers(event):
            turn.outbox.outcomes(key, joined, [EventOutcome(event.event_id, OutcomeKind.ERASED)])
            return
        pending = turn.pending(key, joined)
        waiting = pending.waiting if pending else ()
        change = join.on_feedback(joined, waiting, event, turn.now_ms, turn.limits.content_size)
        turn.apply(key, change, pending)

    def _on_response(self, turn: PartitionTurn, erasures: ErasureProcess, record: Record) -> None:
        response = ChatResponse.from_json(record.value)
        key = _response_id(record, response.response_id)
        if erasures.covers_response(response):
            erasures.erase_response(key, response)
            return
        joined = turn.load(key)
        if joined is not None and joined.waited_in_vain:
            turn.state.delete(key, joined)
            joined = None
        stored = None
        if joined is not None and joined.answered and not joined.expired:
            stored = turn.state.response(key)
            if stored is None:
                joined = turn.set_aside(key, joined)
        new = to_stored(response, turn.now_ms)
        value = new.to_json()
        change = join.on_response(joined, stored, new, len(value), turn.limits.content_size)
        if not change.changed:
            turn.outbox.outcomes(key, change.joined, change.outcomes)
            return
        turn.state.put_response(key, value)
        turn.outbox.sample(response)
        if joined is None:  # without feedback, the response is all there is to store
            turn.state.index(key, change.joined)
        else:
            turn.apply(key, change)


def _response_id(record: Record, response_id: str) -> bytes:
    """Return the record's key. Raises `Malformed` if it is another: the record may be in the wrong partition."""
    if record.key != response_id.encode():
        raise Malformed(f"the record's key is not its response_id {response_id}")
    return record.key
