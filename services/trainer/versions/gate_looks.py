"""How many gates a line has had since its last promotion. Pure.

Each gate is a chance to pass by luck, so the significance level falls with their number (`gate/statistics.py`). The
number comes from the version log: a version is published once, and a later gate replaces its report. So a run that was
interrupted and resumed, and a record that is read twice, count once.
"""

from __future__ import annotations

from collections.abc import Iterable

from shared.versions import GateReport, ModelVersion, VersionRef


def next_look(versions: Iterable[ModelVersion], stable: VersionRef) -> int:
    """Return which gate since the line's last promotion the next one is, counted from 1.

    Counts the gates of the versions after the stable one, and those of older versions against it. A gate that had too
    little feedback to test anything does not count. After a rollback the gates since the promotion of the version that
    serves again count.

    Args:
        versions: Versions of the line with their latest reports.
        stable: The stable version; the base if nothing was promoted.
    """
    published = list(versions)
    stable_number = next((each.number or 0 for each in published if each.ref.version == stable.version), 0)
    looks = 0
    for version in published:
        report = version.gate
        if report is None or version.number is None:
            continue
        if version.number > stable_number:
            looks += tests_of(report)
        elif version.number < stable_number and report.gated_against == stable.version:
            looks += report.alpha is not None
    return looks + 1


def tests_of(report: GateReport) -> int:
    """Return how many gates of a version, up to this report, had enough items to test."""
    return report.earlier_tests + (report.alpha is not None)
