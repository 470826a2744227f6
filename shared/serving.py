"""What the replicas of inference really serve, by their own reports. Pure.

A rollout record says what a line should serve. A replica can be behind it, or refuse the version, so whether a version
serves is read from the reports.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from pydantic import AwareDatetime, Field

from shared.composed_ids import join_ids
from shared.events import Id, LogRecord, Part, VersionName

REPORT_INTERVAL_S: Final = 15.0
"""A replica repeats its report after this time."""
MAX_AGE_MS: Final = 60_000
"""A replica counts as gone if it has not reported for this long."""


class RefusedVersion(Part):
    """A version that a rollout record names and that a replica does not serve."""

    version: VersionName
    seq: int = Field(ge=1, description="The rollout record.")
    code: str = Field(max_length=64)
    message: str = Field(max_length=1024)


class ServingReport(LogRecord):
    """What one replica serves. It replaces the replica's earlier reports."""

    event_type = "loopwright.serving"
    replica: Id
    seq: int | None = Field(
        None, ge=1, description="The rollout record that it follows; none before the first."
    )
    stable: VersionName
    canary: VersionName | None = None
    share: float = Field(0.0, ge=0, le=1)
    refused: tuple[RefusedVersion, ...] = ()
    reported_at: AwareDatetime

    @property
    def key(self) -> str:
        """The key of the replica's records in the log."""
        return join_ids(self.line, self.replica)


@dataclass
class Replicas:
    """The newest report of every replica. `add` and `remove` are called in log order."""

    _reports: dict[str, tuple[ServingReport, int]] = field(default_factory=dict)
    """Key -> report, append time in ms."""

    def add(self, report: ServingReport, appended_ms: int) -> None:
        """Replace the replica's report."""
        self._reports[report.key] = (report, appended_ms)

    def remove(self, key: str) -> None:
        """Forget a replica, which has ended."""
        self._reports.pop(key, None)

    def live(self, line: str, now_ms: int) -> list[ServingReport]:
        """Return the reports of the replicas of a line that are not older than `MAX_AGE_MS`, by replica."""
        return sorted(
            (
                report
                for report, appended_ms in self._reports.values()
                if report.line == line and now_ms - appended_ms <= MAX_AGE_MS
            ),
            key=lambda report: report.replica,
        )


def stable_versions(reports: Iterable[ServingReport]) -> set[str]:
    """Return the versions that replicas serve as stable version."""
    return {report.stable for report in reports}


def canary_versions(reports: Iterable[ServingReport]) -> set[str]:
    """Return the versions that replicas serve as canary."""
    return {report.canary for report in reports if report.canary is not None}


def describe_refusals(version: str, reports: Iterable[ServingReport]) -> str:
    """Return in a sentence why replicas refuse a version; empty if none does."""
    found = {
        refused.message: report.replica
        for report in reports
        for refused in report.refused
        if refused.version == version
    }
    return "".join(f" Replica {replica} refuses it: {message}." for message, replica in sorted(found.items()))
