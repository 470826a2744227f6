"""`make experiment` in its quick form: real runs of the trainer on the tiny model, killed and resumed."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

ARMS = ("facts-base-1", "facts-shuffled-1", "style-base-1", "style-thumbs-1")
FIRST = "facts-shuffled-1"
OUTPUT = "output.txt"


def results(folder: Path) -> dict[str, Path]:
    return {path.parent.name: path for path in folder.glob("*/*/result.json")}


@pytest.fixture
def experiment(tmp_path: Path, tiny_model: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts the experiment in the test's folder. Processes that still run afterwards are killed."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "benchmarks.experiment", "--quick", "--base", str(tiny_model)]
        command += [part for arm in ARMS for part in ("--only", arm)]
        with (tmp_path / OUTPUT).open("ab") as output:
            started.append(
                subprocess.Popen([*command, "--folder", str(tmp_path)], stdout=output, stderr=output)
            )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.timeout(400)
def test_killed_experiment_resumes_and_shuffled_answers_do_not_pass(
    experiment: Callable[[], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    process = experiment()
    while FIRST not in results(tmp_path):
        assert process.poll() is None, (tmp_path / OUTPUT).read_text()
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
    process.kill()
    process.wait()
    before = {name: path.stat().st_mtime_ns for name, path in results(tmp_path).items()}
    assert len(before) < len(ARMS)

    assert experiment().wait() == 0, (tmp_path / OUTPUT).read_text()
    after = results(tmp_path)
    assert set(after) == set(ARMS)
    assert {name: after[name].stat().st_mtime_ns for name in before} == before, (
        "a finished arm does not run again"
    )

    (report_file,) = tmp_path.glob("*/experiment.json")
    report = json.loads(report_file.read_text())
    assert (report["bench"], report["quick"], len(report["arms"])) == ("experiment", True, len(ARMS))
    assert [bar["reached"] for bar in report["bars"][3:4]] == [True], "shuffled answers never pass"
    assert [bar["reached"] for bar in report["bars"][:2]] == [None, None], (
        "an arm that was not run has no claim"
    )
    facts, style = report["figures"]["facts"], report["figures"]["style"]
    assert facts["base"]["questions"] == facts["shuffled"]["questions"] == 12
    assert facts["shuffled"]["trained_rows"]["1"] > 0
    assert set(facts["shuffled"]["verdicts"]) == set(style["thumbs"]["verdicts"]) == {"1"}
    assert style["thumbs"]["trained_rows"]["1"] > 0
    assert style["base"]["answers"] == style["thumbs"]["answers"] == 8
    ET.fromstring(report_file.with_suffix(".svg").read_text())
    assert not list(tmp_path.glob("*/*/data/trainer/*/runs/*/artifact")), "artifacts are not kept"
