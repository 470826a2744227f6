"""Fixtures of the fault tests, and the summary that they print. How much they try: see `fault_settings`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fault.fault_settings import RARE_SEEDS, SEEDS
from tests.fault.processor_rig import ProcessorGroup, ProcessorRig, processor_group

COUNTED = ("kills", "violations", "caught", "unjudged", "histories", "mutations")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test once per `seed`, or per `rare_seed`, of which there are fewer."""
    for name, count in (("seed", SEEDS), ("rare_seed", RARE_SEEDS)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, range(count))


@pytest.fixture
def workers(
    kafka: str, fresh: str, tmp_path: Path, record_property: Any, request: pytest.FixtureRequest
) -> Iterator[ProcessorGroup]:
    """Processor processes on their own topics, which the broker stamps with append times.

    Every third workload has 24 partitions, the default of a deployment; the others have two, which is faster. Tests
    marked `few_partitions` always have two.
    """
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    few = request.node.get_closest_marker("few_partitions") is not None
    many = not few and params.get("seed", params.get("rare_seed", 0)) % 3 == 1
    rig = ProcessorRig(kafka, fresh, partitions=24 if many else 2).create()
    with processor_group(rig, tmp_path, record_property) as group:
        yield group


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print one line that sums up the fault tests."""
    reports = [
        report
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.nodeid.startswith("tests/fault/")
    ]
    ran = [report for report in reports if report.when == "call"]
    if not ran:
        return
    # The report of a later phase repeats the properties of the earlier ones, so the last has all of them.
    last: dict[str, pytest.TestReport] = {}
    for report in sorted(reports, key=lambda report: ("setup", "call", "teardown").index(report.when)):
        last[report.nodeid] = report
    sums = Counter[str]()
    for report in last.values():
        for name, value in report.user_properties:
            sums[name] += int(str(value)) if name in COUNTED else 0
    failed = sum(report.failed for report in ran)
    seconds = sum(report.duration for report in reports)
    terminalreporter.section("faults")
    terminalreporter.write_line(
        f"faults: {len(ran)} runs with {SEEDS} seeds in {seconds:.0f} s of tests: {sums['kills']} kills, "
        f"{sums['violations']} violations, {sums['caught']} broken variants caught, "
        f"{sums['unjudged']} runs not judged because the broker lost decided transactions, {sums['histories']} hostile "
        f"histories, {sums['mutations']} mutations caught in them, {failed} failed"
    )
