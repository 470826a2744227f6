"""`make bench-worlds` in its quick form: all arms of one world on the tiny model, interrupted and resumed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.worlds.arms import arms_of

ARMS = [arm.key for arm in arms_of(("helpdesk",), (1,))]
OUTPUT = "output.txt"
INTERRUPTED = 130


def results(folder: Path) -> dict[str, Path]:
    return {path.parent.name: path for path in folder.glob("*/*/result.json")}


@pytest.fixture
def benchmark(tmp_path: Path, tiny_model: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts the benchmark in the test's folder. Processes that still run afterwards are killed."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "benchmarks.worlds", "--quick", "--world", "helpdesk", "--seed", "1"]
        command += [
            "--base",
            str(tiny_model),
            "--folder",
            str(tmp_path),
            "--json",
            str(tmp_path / "worlds.json"),
        ]
        with (tmp_path / OUTPUT).open("ab") as output:
            started.append(subprocess.Popen(command, stdout=output, stderr=output))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.timeout(600)
def test_interrupted_worlds_keep_finished_arms_and_resume(
    benchmark: Callable[[], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    process = benchmark()
    while ARMS[0] not in results(tmp_path):
        assert process.poll() is None, (tmp_path / OUTPUT).read_text()
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
    process.terminate()  # stops like Ctrl-C, which a shell without a terminal makes its children ignore
    assert process.wait() == INTERRUPTED, (tmp_path / OUTPUT).read_text()
    before = {name: path.stat().st_mtime_ns for name, path in results(tmp_path).items()}
    assert 0 < len(before) < len(ARMS)

    assert benchmark().wait() == 0, (tmp_path / OUTPUT).read_text()
    after = results(tmp_path)
    assert sorted(after) == sorted(ARMS)
    assert {name: after[name].stat().st_mtime_ns for name in before} == before, (
        "a finished arm does not run again"
    )

    report = json.loads((tmp_path / "worlds.json").read_text())
    assert (report["bench"], report["quick"], report["same_code"]) == ("worlds", True, True)
    assert [bar["reached"] for bar in report["bars"]] == [None] * 9, "one seed reaches no bar"
    figures = report["worlds"]["helpdesk"]
    (base,), (ours,), (plain,) = figures["base"], figures["ours"], figures["plain"]
    assert base["unseen"]["questions"] == ours["unseen"]["questions"] == plain["unseen"]["questions"] == 18
    assert base["general"]["questions"] == 8
    assert "change" in ours["general"]
    assert ours["verdict"] in ("failed", "inconclusive"), "a tiny random model learns nothing"
    assert ours["trained"] > 20
    assert plain["trained"] >= ours["objectives"]["sft"], "both arms train the same usable rows"
    for arm in (ours, plain):
        assert arm["peak_mb"] > 100
        assert arm["tokens_per_s"] > 0
        assert arm["stage_seconds"]["training"] > 0
