"""Views of the log that requests are answered from: versions and erasures in memory, outcomes in Redis.

Followers feed the views from the log. All views are thread-safe, and applying a record again changes nothing.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog

from services.feedback.core.erasure_status import ErasureProgress, ErasureStatus
from services.feedback.core.receipts import NoOutcome, Receipt, make_receipt
from shared.adapters import redis_keys
from shared.errors import BrokerUnavailable, Rejected, UnknownLine
from shared.events import ErasureReport, ErasureRequest, Outcome, OutcomeKind
from shared.ports import Cache, Position
from shared.records import Record
from shared.telemetry import ERASURES_OPEN
from shared.topics import (
    ERASURE_REPORTS,
    ERASURE_REQUESTS,
    FEEDBACK_OUTCOMES,
    MODEL_ROLLOUT,
    MODEL_VERSIONS,
)
from shared.versions import ModelVersion, RolloutRecord

PENDING_MARK: Final = b"pending"
"""Stored in place of an outcome that is still pending; trusted for a few seconds only."""
MAX_NAMED_LINES: Final = 10
log = structlog.get_logger(__name__)


class VersionsView:
    """The versions and the newest rollout record of every line."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._versions: dict[str, dict[str, ModelVersion]] = {}
        self._rollout: dict[str, RolloutRecord] = {}

    def apply(self, records: Sequence[Record]) -> None:
        """Apply records of `model.versions` and `model.rollout`, in any order. Unreadable ones are logged."""
        for record in records:
            if record.value is None:
                continue
            try:
                self._apply(record)
            except Rejected as error:
                _log_unreadable(record, error)

    def lines(self) -> set[str]:
        """Return the lines that have a version."""
        with self._lock:
            return set(self._versions)

    def receipt(self, outcome: Outcome) -> Receipt:
        """Return the receipt of an event with this outcome."""
        with self._lock:
            versions = list(self._versions.get(outcome.line, {}).values())
            rollout = self._rollout.get(outcome.line)
        return make_receipt(outcome, versions, rollout)

    def _apply(self, record: Record) -> None:
        if record.topic == MODEL_VERSIONS.name:
            version = ModelVersion.from_json(record.value)
            with self._lock:
                self._versions.setdefault(version.line, {})[version.ref.version] = version
        elif record.topic == MODEL_ROLLOUT.name:
            rollout = RolloutRecord.from_json(record.value)
            with self._lock:
                newest = self._rollout.get(rollout.line)
                if newest is None or rollout.seq > newest.seq:
                    self._rollout[rollout.line] = rollout


@dataclass(frozen=True, slots=True)
class KnownLines:
    """The lines of the deployment: those that are configured, and those that have a version.

    Each line takes state in the processor for ever, so requests cannot create lines.
    """

    configured: frozenset[str]
    versions: VersionsView
    caught_up: Callable[[], bool]
    """Returns whether `versions` has read the whole log."""

    def check(self, line: str) -> str:
        """Return the line.

        Raises:
            UnknownLine: if the deployment has no such line.
            BrokerUnavailable: if this is not known yet.

        """
        if line in self.configured:
            return line
        caught_up, known = self.caught_up(), self.configured | self.versions.lines()
        if line in known:
            return line
        if not caught_up:
            raise BrokerUnavailable(
                "feedback is still reading the lines from Kafka: try again in a few seconds"
            )
        names = ", ".join(sorted(known)[:MAX_NAMED_LINES]) + (", ..." if len(known) > MAX_NAMED_LINES else "")
        raise UnknownLine(
            f"unknown line {line!r}; known lines: {names}. Correct the name, or add the line to "
            "LOOPWRIGHT_FEEDBACK_LINES"
        )


class ErasureStatusView:
    """The progress of every erasure that is in the log. The first request under an id stands."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._erasures: dict[str, ErasureProgress] = {}
        self._counts: Counter[str] = Counter()
        """How many requests there are to erase each user."""

    def apply(self, records: Sequence[Record]) -> None:
        """Apply records of `erasure.requests` and `erasure.reports`, in any order. Unreadable ones are logged."""
        for record in records:
            try:
                if record.topic == ERASURE_REQUESTS.name:
                    self.add_request(ErasureRequest.from_json(record.value))
                elif record.topic == ERASURE_REPORTS.name:
                    self._add_report(ErasureReport.from_json(record.value))
            except Rejected as error:
                _log_unreadable(record, error)
        with self._lock:
            ERASURES_OPEN.set(sum(erasure.stage() != "done" for erasure in self._erasures.values()))

    def add_request(self, request: ErasureRequest) -> None:
        """Add a request that is in the log."""
        with self._lock:
            erasure = self._erasure(request.request_id, request.line, request.subject)
            if erasure.request is None:
                self._counts[request.subject] += 1
            erasure.add_request(request)

    def count(self, subject: str) -> int:
        """Return how many requests to erase this user are in the log."""
        with self._lock:
            return self._counts[subject]

    def request(self, request_id: str) -> ErasureRequest | None:
        """Return the request, or None if it is not in the log."""
        with self._lock:
            erasure = self._erasures.get(request_id)
            return erasure.request if erasure is not None else None

    def status(self, request_id: str, now: datetime) -> ErasureStatus | None:
        """Return the progress of an erasure, or None if the log has no record of it."""
        with self._lock:
            erasure = self._erasures.get(request_id)
            return erasure.status(request_id, now) if erasure is not None else None

    def _add_report(self, report: ErasureReport) -> None:
        with self._lock:
            self._erasure(report.request_id, report.line, report.subject).add_report(report)

    def _erasure(self, request_id: str, line: str, subject: str) -> ErasureProgress:
        return self._erasures.setdefault(request_id, ErasureProgress(line, subject))


class OutcomeIndex:
    """Outcomes by event, in Redis. An outcome that Redis has lost is read from the log (`OutcomeLookup`)."""

    def __init__(self, cache: Cache, *, ttl_s: float, pending_ttl_s: float) -> None:
        self._cache = cache
        self._ttl_s = ttl_s
        self._pending_ttl_s = pending_ttl_s
        self._next_offsets: dict[Position, int] = {}

    def start_offsets(self) -> dict[Position, int]:
        """Return where to resume reading `feedback.outcomes`; empty if Redis does not know.

        The offsets are in Redis too, so after Redis was wiped the index is rebuilt from the beginning.
        """
        raw = self._cache.get(redis_keys.receipt_positions())
        try:
            offsets = json.loads(raw or b"{}")
            self._next_offsets = {
                (FEEDBACK_OUTCOMES.name, int(p)): int(offset) for p, offset in offsets.items()
            }
        except (ValueError, AttributeError):
            self._next_offsets = {}
        return dict(self._next_offsets)

    def reset_offsets(self) -> None:
        """Rebuild the index from the beginning at the next start, because the log no longer has these offsets."""
        self._cache.put(redis_keys.receipt_positions(), b"{}", ttl_s=self._ttl_s)

    def apply(self, records: Sequence[Record]) -> None:
        """Apply records of `feedback.outcomes`, in log order. Unreadable ones are logged."""
        for record in records:
            try:
                self.put(Outcome.from_json(record.value))
            except Rejected as error:
                _log_unreadable(record, error)
            self._next_offsets[record.topic, record.partition] = record.offset + 1
        offsets = {str(partition): offset for (_, partition), offset in self._next_offsets.items()}
        self._cache.put(redis_keys.receipt_positions(), json.dumps(offsets).encode(), ttl_s=self._ttl_s)

    def put(self, outcome: Outcome) -> None:
        """Store the first outcome of an event.

        Outcomes about a response or about a repetition are not the event's, so they are ignored. The outcome `dead`
        ends if the dead letter is replayed, so it is stored as briefly as `pending` and replaced by any other outcome.
        """
        if outcome.event_id is None or outcome.is_repetition:
            return
        key, value = redis_keys.receipt(outcome.response_id, outcome.event_id), outcome.to_json()
        ttl_s = self._pending_ttl_s if outcome.outcome == OutcomeKind.DEAD else self._ttl_s
        stored = self._cache.put_if_absent(key, value, ttl_s=ttl_s)
        if stored is not None and stored != value and (stored == PENDING_MARK or _is_dead(stored)):
            self._cache.put(key, value, ttl_s=ttl_s)

    def put_pending(self, response_id: str, event_id: str) -> None:
        """Store that the event is in the log without an outcome, for `pending_ttl_s` or until its outcome arrives."""
        key = redis_keys.receipt(response_id, event_id)
        self._cache.put_if_absent(key, PENDING_MARK, ttl_s=self._pending_ttl_s)

    def find(self, response_id: str, event_id: str) -> Outcome | NoOutcome:
        """Return the event's outcome, or why there is none; `NOT_FOUND` means only that Redis does not know."""
        stored = self._cache.get(redis_keys.receipt(response_id, event_id))
        if stored is None:
            return NoOutcome.NOT_FOUND
        if stored == PENDING_MARK:
            return NoOutcome.PENDING
        try:
            return Outcome.from_json(stored)
        except Rejected:
            return NoOutcome.NOT_FOUND


def _is_dead(stored: bytes) -> bool:
    try:
        return Outcome.from_json(stored).outcome == OutcomeKind.DEAD
    except Rejected:
        return False


def _log_unreadable(record: Record, error: Rejected) -> None:
    log.warning(
        "unreadable_record",
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        error=str(error),
    )
