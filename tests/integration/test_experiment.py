"""`make experiment` in its quick form: real runs of the trainer on the tiny model, killed between arms and gone on."""

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
SAID = "said.txt"


def results(folder: Path) -> dict[str, Path]:
    return {path.parent.name: path for path in folder.glob("*/*/result.json")}


@pytest.fixture
def experiment(tmp_path: Path, tiny_model: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts it in the test's folder; what still runs afterwards is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "benchmarks.experiment", "--quick", "--base", str(tiny_model)]
        command += [part for arm in ARMS for part in ("--only", arm)]
        with (tmp_path / SAID).open("ab") as said:
            started.append(subprocess.Popen([*command, "--folder", str(tmp_path)], stdout=said, stderr=said))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.timeout(400)
def test_a_killed_experiment_goes_on_and_no_shuffled_answers_pass(
    experiment: Callable[[], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    process = experiment()
    while FIRST not in results(tmp_path):
        assert process.poll() is None, (tmp_path / SAID).read_text()
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
    process.kill()
    process.wait()
    before = {name: path.stat().st_mtime_ns for name, path in results(tmp_path).items()}
    assert len(before) < len(ARMS)

    assert experiment().wait() == 0, (tmp_path / SAID).read_text()
    found = results(tmp_path)
    assert set(found) == set(ARMS)
    assert {name: found[name].stat().st_mtime_ns for name in before} == before, (
        "what is done is not done again"
    )

    (told,) = tmp_path.glob("*/experiment.json")
    report = json.loads(told.read_text())
    assert (report["bench"], report["quick"], len(report["arms"])) == ("experiment", True, len(ARMS))
    assert [bar["reached"] for bar in report["bars"][3:4]] == [True], "shuffled answers never pass"
    assert [bar["reached"] for bar in report["bars"][:2]] == [None, None], "what was not run is not claimed"
    facts, style = report["figures"]["facts"], report["figures"]["style"]
    assert facts["base"]["questions"] == facts["shuffled"]["questions"] == 12
    assert facts["shuffled"]["trained_rows"]["1"] > 0
    assert set(facts["shuffled"]["verdicts"]) == set(style["thumbs"]["verdicts"]) == {"1"}
    assert style["thumbs"]["trained_rows"]["1"] > 0
    assert style["base"]["answers"] == style["thumbs"]["answers"] == 8
    ET.fromstring(told.with_suffix(".svg").read_text())
    assert not list(tmp_path.glob("*/*/data/trainer/*/runs/*/artifact")), "artifacts are not kept"
