"""Views of the log in memory that requests are answered from: versions and erasures.

Followers feed the views from the log. All views are thread-safe, and applying a record again changes nothing.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog

from services.feedback.core.erasure_status import ErasureProgress, ErasureStatus
from services.feedback.core.receipts import Receipt, make_receipt
from shared.errors import BrokerUnavailable, Rejected, UnknownLine
from shared.events import ErasureReport, ErasureRequest, Outcome
from shared.records import Record
from shared.serving import Replicas, ServingReport
from shared.telemetry import ERASURES_OPEN
from shared.topics import (
    ERASURE_REPORTS,
    ERASURE_REQUESTS,
    MODEL_ROLLOUT,
    MODEL_SERVING,
    MODEL_VERSIONS,
)
from shared.versions import ModelVersion, RolloutRecord

MAX_NAMED_LINES: Final = 10
log = structlog.get_logger(__name__)


class VersionsView:
    """The versions, the newest rollout record and what the replicas serve, of every line."""

    def __init__(self) -> None:
        self._replicas = Replicas()
        self._lock = threading.Lock()
        self._versions: dict[str, dict[str, ModelVersion]] = {}
        self._rollout: dict[str, RolloutRecord] = {}

    def apply(self, records: Sequence[Record]) -> None:
        """Apply records of `model.versions`, `model.rollout` and `model.serving`. Unreadable ones are logged."""
        for record in records:
            if record.value is None:
                if record.topic == MODEL_SERVING.name:
                    with self._lock:
                        self._replicas.remove((record.key or b"").decode())
                continue
            try:
                self._apply(record)
            except Rejected as error:
                _log_unreadable(record, error)

    def lines(self) -> set[str]:
        """Return the lines that have a version."""
        with self._lock:
            return set(self._versions)

    def receipt(self, outcome: Outcome, now_ms: int) -> Receipt:
        """Return the receipt of an event with this outcome."""
        with self._lock:
            versions = list(self._versions.get(outcome.line, {}).values())
            rollout = self._rollout.get(outcome.line)
            live = self._replicas.live(outcome.line, now_ms)
        return make_receipt(outcome, versions, rollout, live)

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
        elif record.topic == MODEL_SERVING.name:
            report = ServingReport.from_json(record.value)
            with self._lock:
                self._replicas.add(report, record.timestamp)


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


def _log_unreadable(record: Record, error: Rejected) -> None:
    log.warning(
        "unreadable_record",
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        error=str(error),
    )
