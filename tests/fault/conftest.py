"""What the fault tests share, and what they have to tell at the end. How much they try: see `extent`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fault.fault_settings import RARE_SEEDS, SEEDS
from tests.fault.processor_rig import ProcessorRig, Processors, processors

COUNTED = ("kills", "complaints", "caught", "unjudged")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`seed`: as many as were asked for; `rare_seed`: fewer."""
    for name, count in (("seed", SEEDS), ("rare_seed", RARE_SEEDS)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, range(count))


@pytest.fixture
def workers(kafka: str, fresh: str, tmp_path: Path, record_property: Any) -> Iterator[Processors]:
    """Processes of the processor on topics of their own, stamped by the broker."""
    with processors(ProcessorRig(kafka, fresh).create(), tmp_path, record_property) as started:
        yield started


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line at the end of what was done here."""
    reports = [
        report
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.nodeid.startswith("tests/fault/")
    ]
    ran = [report for report in reports if report.when == "call"]
    if not ran:
        return
    # A property stands in the report of every later phase too: the last one of a test has them all.
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
        f"{sums['complaints']} complaints, {sums['caught']} broken variants caught, "
        f"{sums['unjudged']} runs not judged as the broker lost what it had decided, {failed} failed"
    )
