"""How far erasures have come, folded from `erasure.requests` and `erasure.reports`. Records in, answers out.

Of each request a few hundred bytes are kept, for as long as the log keeps its reports (400 days).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import structlog
from pydantic import BaseModel, ConfigDict

from shared.errors import Rejected
from shared.events import ErasureReport, ErasureRequest
from shared.records import Record
from shared.telemetry import ERASURES_OPEN
from shared.topics import ERASURE_REPORTS, ERASURE_REQUESTS

Stage = Literal["requested", "in_processor", "in_trainer", "done"]
log = structlog.get_logger(__name__)


class ErasureStatus(BaseModel):
    """The answer to `GET /v1/erasure/{request_id}`. Names and counts, never content.

    `status`: `requested` (in the log), `in_processor` (`partitions_done` of `partitions` have erased the user),
    `in_trainer` (all have), `done` (the trainers have followed: that of `line`, and of every other line whose batches
    had something of the user). `versions` were trained from it. By `deadline` the log
    itself has dropped what was erased; it is unknown where the request has left the log, after more than a year.
    """

    model_config = ConfigDict(frozen=True)
    request_id: str
    line: str
    subject: str
    status: Stage
    requested_at: datetime | None = None
    deadline: datetime | None = None
    partitions_done: int = 0
    partitions: int | None = None
    responses: int = 0
    signals: int = 0
    batches: int = 0
    snapshots: int = 0
    versions: tuple[str, ...] = ()
    completed_at: datetime | None = None
    overdue: bool = False
    detail: str


@dataclass(frozen=True, slots=True)
class _Part:
    """What one partition of the processor has erased."""

    responses: int
    signals: int
    batches: int


@dataclass(slots=True)
class _Known:
    """All that the log says of one request. `lines`: those whose batches it was taken out of. `trainers`: the report of
    each line's trainer."""

    line: str
    subject: str
    request: ErasureRequest | None = None
    partitions: int | None = None
    parts: dict[int, _Part] = field(default_factory=dict)
    lines: set[str] = field(default_factory=set)
    trainers: dict[str, ErasureReport] = field(default_factory=dict)

    def stage(self) -> Stage:
        if self.partitions is not None and len(self.parts) >= self.partitions:
            return "in_trainer" if self.awaited() else "done"
        return "in_processor" if self.parts else "requested"

    def awaited(self) -> list[str]:
        """The lines whose trainers have not reported."""
        return sorted(({self.line} | self.lines) - self.trainers.keys())


class ErasureStatusView:
    """Every erasure that the log knows. Thread-safe. The first request under an id stands."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}

    def apply(self, records: Sequence[Record]) -> None:
        """In any order, each any number of times; what cannot be read is passed over, loudly."""
        for record in records:
            try:
                if record.topic == ERASURE_REQUESTS.name:
                    self.note(ErasureRequest.from_json(record.value))
                elif record.topic == ERASURE_REPORTS.name:
                    self._report(ErasureReport.from_json(record.value))
            except Rejected as error:
                log.warning("unreadable", topic=record.topic, offset=record.offset, error=str(error))
        with self._lock:
            ERASURES_OPEN.set(sum(known.stage() != "done" for known in self._known.values()))

    def note(self, request: ErasureRequest) -> None:
        """A request that is in the log."""
        with self._lock:
            known = self._known.setdefault(request.request_id, _Known(request.line, request.subject))
            if known.request is None or request.requested_at < known.request.requested_at:
                known.request, known.line, known.subject = request, request.line, request.subject

    def request(self, request_id: str) -> ErasureRequest | None:
        with self._lock:
            known = self._known.get(request_id)
            return known.request if known is not None else None

    def find(self, request_id: str, now: datetime) -> ErasureStatus | None:
        """None where the log knows nothing of it."""
        with self._lock:
            known = self._known.get(request_id)
            return _status(request_id, known, now) if known is not None else None

    def _report(self, report: ErasureReport) -> None:
        with self._lock:
            known = self._known.setdefault(report.request_id, _Known(report.line, report.subject))
            if report.service == "trainer":
                known.trainers.setdefault(report.line, report)
                return
            if known.request is None:
                known.line, known.subject = report.line, report.subject
            known.partitions = report.partitions or known.partitions
            part = _Part(report.responses, report.signals, len(report.batches))
            known.parts.setdefault(report.partition or 0, part)
            known.lines |= {batch_id.rsplit("-", 2)[0] for batch_id in report.batches}


def _status(request_id: str, known: _Known, now: datetime) -> ErasureStatus:
    stage = known.stage()
    deadline = known.request.deadline if known.request is not None else None
    parts, trainers = known.parts.values(), known.trainers.values()
    found = ErasureStatus(
        request_id=request_id,
        line=known.line,
        subject=known.subject,
        status=stage,
        requested_at=known.request.requested_at if known.request is not None else None,
        deadline=deadline,
        partitions_done=len(known.parts),
        partitions=known.partitions,
        responses=sum(part.responses for part in parts),
        signals=sum(part.signals for part in parts),
        batches=sum(part.batches for part in parts),
        snapshots=sum(report.snapshots for report in trainers),
        versions=tuple(sorted({version for report in trainers for version in report.versions})),
        completed_at=max(report.completed_at for report in trainers) if stage == "done" else None,
        overdue=stage != "done" and deadline is not None and now > deadline,
        detail="",
    )
    return found.model_copy(update={"detail": _detail(found, known.awaited())})


def _detail(found: ErasureStatus, awaited: Sequence[str]) -> str:
    late = (
        " Its deadline has passed: look at the logs of the service that it waits for."
        if found.overdue
        else ""
    )
    if found.status == "requested":
        return f"It is in the log; the processor has not reported on it yet.{late}"
    if found.status == "in_processor":
        return f"{found.partitions_done} of {found.partitions or '?'} partitions have erased it.{late}"
    if found.status == "in_trainer":
        return f"No batch holds it any more; waiting for the trainer of {', '.join(awaited)}.{late}"
    by = f" by {found.deadline:%Y-%m-%d %H:%M} UTC" if found.deadline is not None else ""
    trained = (
        f"Trained from it, and not undone: {', '.join(found.versions)}."
        if found.versions
        else "No version was trained from it."
    )
    return f"No batch, dataset or snapshot holds it any more; the log drops its last copies{by}. {trained}"
