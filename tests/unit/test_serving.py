"""What replicas serve: by their reports, and only while they report."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from services.inference.serving_reporter import ServingReporter
from services.inference.version_registry import VersionRegistry
from services.inference.version_swap import Refusal
from shared.adapters.clock import ManualClock
from shared.adapters.in_memory import InMemoryLog, InMemoryPublisher
from shared.serving import MAX_AGE_MS, Replicas, ServingReport, stable_versions
from shared.versions import VersionRef

NOW = datetime(2026, 3, 4, tzinfo=UTC)
BASE = VersionRef(version="assistant@base-00000000", kind="base", digest="0" * 64)


def report(replica: str, stable: str = "assistant@base-00000000", line: str = "assistant") -> ServingReport:
    return ServingReport(line=line, replica=replica, stable=stable, reported_at=NOW)


ids = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=4).filter(
    lambda text: text not in (".", "..")
)


@given(
    steps=st.lists(st.tuples(ids, st.integers(0, 2 * MAX_AGE_MS), st.booleans())),
    now_ms=st.integers(0, 3 * MAX_AGE_MS),
)
def test_replica_counts_with_its_newest_report_until_it_ends_or_falls_silent(
    steps: list[tuple[str, int, bool]], now_ms: int
) -> None:
    replicas, newest = Replicas(), dict[str, int]()
    for replica, at_ms, ends in steps:
        if ends:
            replicas.remove(report(replica).key)
            newest.pop(replica, None)
        else:
            replicas.add(report(replica), at_ms)
            newest[replica] = at_ms
    expected = sorted(replica for replica, at_ms in newest.items() if now_ms - at_ms <= MAX_AGE_MS)
    assert [found.replica for found in replicas.live("assistant", now_ms)] == expected
    assert replicas.live("other", now_ms) == []


def test_replicas_of_two_lines_are_different_ones() -> None:
    replicas = Replicas()
    replicas.add(report("b/c", "a@base-00000000", line="a"), 0)
    replicas.add(report("c", "a-b@base-00000000", line="a-b"), 0)
    assert stable_versions(replicas.live("a", 0)) == {"a@base-00000000"}


def test_reporter_reports_once_ready_after_changes_and_at_its_end() -> None:
    log, clock, ready = InMemoryLog(), ManualClock(), list[bool]()
    registry = VersionRegistry("assistant", BASE, lambda _: None)
    refusals = (Refusal("assistant@v1-11111111", 2, "bad_artifact", "x" * 3_000),)
    reporter = ServingReporter(
        "one", registry, lambda: refusals, lambda: bool(ready), InMemoryPublisher(log, "inference"), clock
    )
    reporter.start()
    position = ("model.serving", 0)
    log.wait_beyond({position: 0}, 0.1)
    assert log.end(position) == 0, "a replica that answers no requests serves nothing"
    ready.append(True)
    for count in (1, 2):
        reporter.wake()
        log.wait_beyond({position: count - 1}, 10)
    reporter.stop()
    *reports, end = log.records("model.serving")
    assert len(reports) >= 2
    assert end.value is None
    found = ServingReport.from_json(reports[0].value)
    assert reports[0].key == end.key == found.key.encode()
    assert (found.stable, found.seq, found.refused[0].code) == (BASE.version, None, "bad_artifact")
