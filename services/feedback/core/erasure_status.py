"""Progress of erasures, folded from `erasure.requests` and `erasure.reports`."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.events import ErasureReport, ErasureRequest

Stage = Literal["requested", "in_processor", "in_trainer", "done"]


class ErasureStatus(BaseModel):
    """Response body of `GET /v1/erasure/{request_id}`. It contains ids and counts, never content."""

    model_config = ConfigDict(frozen=True)
    request_id: str
    line: str
    subject: str = Field(description="The pseudonym of the user.")
    status: Stage = Field(
        description="`requested`: in the log. `in_processor`: some partitions have erased the user's data. "
        "`in_trainer`: all partitions have. `done`: so have the trainers of `line` and of every other line whose "
        "batches contained data of the user."
    )
    issued_by: str | None = Field(None, description="Name of the API key that requested it.")
    lines: tuple[str, ...] = Field(
        (), description="Lines whose batches had data of the user, and the request's."
    )
    requested_at: datetime | None = None
    deadline: datetime | None = Field(
        None,
        description="By then, Kafka has deleted the last copies. Null if the request itself has left the log, which "
        "happens after more than a year.",
    )
    partitions_done: int = 0
    partitions: int | None = None
    responses: int = 0
    signals: int = 0
    batches: int = Field(0, description="Batches that were rewritten without the user's data.")
    snapshots: int = Field(0, description="Dataset snapshots from which the user's data was deleted.")
    versions: tuple[str, ...] = Field((), description="Versions that were trained on the erased data.")
    completed_at: datetime | None = None
    overdue: bool = Field(False, description="Whether the deadline has passed before the erasure was done.")
    detail: str = Field(description="The same in a sentence.")


@dataclass(frozen=True, slots=True)
class _PartitionReport:
    """Counts of what one partition of the processor has erased."""

    responses: int
    signals: int
    batches: int


@dataclass(slots=True)
class ErasureProgress:
    """State of one erasure: the request, and the reports about it in any order.

    The earliest request and the first report of each partition and trainer count, so reading a record again changes
    nothing. Takes a few hundred bytes per request.
    """

    line: str
    subject: str
    request: ErasureRequest | None = None
    partitions: int | None = None
    partition_reports: dict[int, _PartitionReport] = field(default_factory=dict)
    affected_lines: set[str] = field(default_factory=set)
    """Lines whose batches contained data of the user."""
    trainer_reports: dict[str, ErasureReport] = field(default_factory=dict)
    """Line -> the report of its trainer."""

    def add_request(self, request: ErasureRequest) -> None:
        """Add a request that is in the log."""
        if self.request is None or request.requested_at < self.request.requested_at:
            self.request, self.line, self.subject = request, request.line, request.subject

    def add_report(self, report: ErasureReport) -> None:
        """Add the report of a partition of the processor, or of a trainer."""
        if report.service == "trainer":
            self.trainer_reports.setdefault(report.line, report)
            return
        if self.request is None:
            self.line, self.subject = report.line, report.subject
        self.partitions = report.partitions or self.partitions
        counts = _PartitionReport(report.responses, report.signals, len(report.batches))
        self.partition_reports.setdefault(report.partition or 0, counts)
        self.affected_lines |= {batch_id.rsplit("-", 2)[0] for batch_id in report.batches}

    def stage(self) -> Stage:
        """Return how far the erasure is."""
        if self.partitions is not None and len(self.partition_reports) >= self.partitions:
            return "in_trainer" if self.pending_trainers() else "done"
        return "in_processor" if self.partition_reports else "requested"

    def pending_trainers(self) -> list[str]:
        """Return the lines whose trainers have not reported yet."""
        return sorted(({self.line} | self.affected_lines) - self.trainer_reports.keys())

    def status(self, request_id: str, now: datetime) -> ErasureStatus:
        """Return the response body for this erasure."""
        stage = self.stage()
        deadline = self.request.deadline if self.request is not None else None
        partitions, trainers = self.partition_reports.values(), self.trainer_reports.values()
        versions = tuple(sorted({version for report in trainers for version in report.versions}))
        overdue = stage != "done" and deadline is not None and now > deadline
        return ErasureStatus(
            request_id=request_id,
            line=self.line,
            subject=self.subject,
            status=stage,
            issued_by=self.request.issued_by if self.request is not None else None,
            lines=tuple(sorted({self.line} | self.affected_lines)),
            requested_at=self.request.requested_at if self.request is not None else None,
            deadline=deadline,
            partitions_done=len(partitions),
            partitions=self.partitions,
            responses=sum(counts.responses for counts in partitions),
            signals=sum(counts.signals for counts in partitions),
            batches=sum(counts.batches for counts in partitions),
            snapshots=sum(report.snapshots for report in trainers),
            versions=versions,
            completed_at=max(report.completed_at for report in trainers) if stage == "done" else None,
            overdue=overdue,
            detail=self._detail(stage, deadline, versions) + (_OVERDUE if overdue else ""),
        )

    def _detail(self, stage: Stage, deadline: datetime | None, versions: tuple[str, ...]) -> str:
        if stage == "requested":
            return "The request is in the log. The processor has not reported on it yet."
        if stage == "in_processor":
            done = f"{len(self.partition_reports)} of {self.partitions or '?'}"
            return f"{done} partitions have erased the user's data."
        if stage == "in_trainer":
            lines = ", ".join(self.pending_trainers())
            return f"No batch contains the user's data any more. Waiting for the trainer of {lines}."
        by = f" by {deadline:%Y-%m-%d %H:%M} UTC" if deadline is not None else ""
        trained = (
            f"These versions were trained on the erased data and remain unchanged: {', '.join(versions)}."
            if versions
            else "No version was trained on the erased data."
        )
        return (
            "No batch, dataset or snapshot contains the user's data any more. "
            f"Kafka deletes its last copies{by}. {trained}"
        )


_OVERDUE = " The deadline has passed: check the logs of the service that has not reported."
