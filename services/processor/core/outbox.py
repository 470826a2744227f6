"""Outputs of one turn, each cloudevent with its CloudEvents headers. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from msgspec import UNSET, Struct, structs

from services.processor.core.join import EventOutcome
from services.processor.core.state import JoinedResponse, encode
from services.processor.core.wire import SERVICE, OutcomeOut, SampleOut, rfc3339
from shared.cloudevents import CloudEventFactory, cloudevent, traceparent_of
from shared.composed_ids import join_ids
from shared.events import (
    EARLIEST_MS,
    MAX_MS,
    Batch,
    ChatResponse,
    Feedback,
    LogRecord,
    Outcome,
    ResponseSample,
    Tally,
    from_ms,
)
from shared.records import Output, Record
from shared.stream.step import RereadComplete, RereadRequest, Tick
from shared.topics import FEEDBACK_OUTCOMES, FEEDBACK_TALLIES, RESPONSE_SAMPLES, TRAINING_BATCHES, Topic

_BATCH: Final = CloudEventFactory(TRAINING_BATCHES, Batch, SERVICE)
_OUTCOME: Final = CloudEventFactory(FEEDBACK_OUTCOMES, Outcome, SERVICE)
_TALLY: Final = CloudEventFactory(FEEDBACK_TALLIES, Tally, SERVICE)
_SAMPLE: Final = CloudEventFactory(RESPONSE_SAMPLES, ResponseSample, SERVICE)


class Outbox:
    """Collects the outputs of one turn, in order.

    Every id and time derives from the record that causes the output, so processing that record again gives the same
    bytes. `now` is the time of the turn as RFC 3339. The record's `traceparent` goes only onto its own outcome.
    """

    __slots__ = ("_cause_key", "_event", "_traceparent", "now", "now_ms", "outputs", "partition")

    def __init__(self, cause: Record | Tick | RereadComplete) -> None:
        self.outputs: list[Output | RereadRequest] = []
        self.partition = cause.partition
        # A time that no calendar has must neither stop the partition nor leave it.
        self.now_ms = max(EARLIEST_MS, min(cause.timestamp, MAX_MS))
        self.now = rfc3339(self.now_ms)
        self._cause_key = cause.key if isinstance(cause, Record) else None
        self._traceparent = (
            traceparent_of(cause.headers) if isinstance(cause, Record) and cause.headers else None
        )
        self._event: Feedback | None = None

    def name_event(self, event: Feedback) -> None:
        """Say which feedback event the turn's record holds."""
        self._event = event

    def outcomes(
        self,
        key: bytes,
        joined: JoinedResponse,
        outcomes: Iterable[EventOutcome],
        batch_id: str | None = None,
    ) -> None:
        """Send the outcomes of events on the response `key`; `batch_id` names the batch that they are in."""
        for event_id, kind, detail, reason in outcomes:
            response_id = key.decode()
            outcome = OutcomeOut(
                line=self.line_of(key, joined, event_id),
                response_id=response_id,
                event_id=event_id or UNSET,
                outcome=kind,
                batch_id=batch_id or UNSET,
                revision=joined.revision if batch_id else UNSET,
                reason=reason or UNSET,
                detail=detail or UNSET,
                decided_at=self.now,
            )
            ce_id = join_ids(response_id, event_id or "", kind)
            traceparent = self._traceparent if self._is_own(key, event_id) else None
            self._seal(_OUTCOME, key, encode(outcome), ce_id, traceparent)

    def line_of(self, key: bytes, joined: JoinedResponse, event_id: str | None) -> str:
        """Return the line of an event on the response `key`: its own one while the response is unknown."""
        if self._event is not None and not joined.answered and self._is_own(key, event_id):
            return self._event.line
        return joined.line_of(event_id)

    def _is_own(self, key: bytes, event_id: str | None) -> bool:
        """Return whether an outcome is that of the record which the turn processes."""
        return key == self._cause_key and event_id == (self._event and self._event.event_id)

    def tally(self, version: str, user_id: str, tally: Struct) -> bytes:
        """Send a `TallyOut`, dated now. Returns its bytes."""
        value = encode(structs.replace(tally, updated_at=self.now))
        name = self._tally_name(version, user_id)
        self._seal(_TALLY, name.encode(), value, f"{name}|{self.now_ms}", partition=0)
        return value

    def sample(self, response: ChatResponse) -> None:
        """Send what the rollout watches of a user's response, unless the request was cancelled."""
        if response.user_id is None or response.status == "cancelled":
            return
        sample = SampleOut(
            line=response.line,
            version=response.version,
            user_id=response.user_id,
            failed=response.status == "failed",
            latency_ms=UNSET if response.latency_ms is None else response.latency_ms,
            responded_at=self.now,
        )
        key = join_ids(response.version, response.user_id, separator="|").encode()
        self._seal(_SAMPLE, key, encode(sample), response.response_id, partition=0)

    def delete_tally(self, version: str, user_id: str) -> None:
        """Delete a user's tally of a version from its compacted topic."""
        name = self._tally_name(version, user_id)
        self.outputs.append(Output(FEEDBACK_TALLIES.name, name.encode(), None, (), 0))

    def batch(self, batch_id: str, value: bytes) -> None:
        """Send a batch that `batch_json` made."""
        self._seal(_BATCH, batch_id.encode(), value, batch_id)

    def send(
        self, topic: Topic, key: str, record: LogRecord, ce_id: str, partition: int | None = None
    ) -> None:
        """Send a record of any kind, for records that are rare. Without `partition`, its key chooses one."""
        at = from_ms(self.now_ms)
        self.outputs.append(
            cloudevent(topic, key, record, source=SERVICE, ce_id=ce_id, at=at, partition=partition)
        )

    def reread(self, topic: Topic) -> None:
        """Ask the engine to feed this partition of an output topic from its beginning."""
        self.outputs.append(RereadRequest(topic.name))

    def _tally_name(self, version: str, user_id: str) -> str:
        return join_ids(version, user_id, str(self.partition), separator="|")

    def _seal(
        self,
        seal: CloudEventFactory,
        key: bytes,
        value: bytes,
        ce_id: str,
        traceparent: str | None = None,
        partition: int | None = None,
    ) -> None:
        """Add an output to the same partition as the input, or to `partition`."""
        to = self.partition if partition is None else partition
        self.outputs.append(seal(key, value, ce_id, self.now, to, traceparent))
