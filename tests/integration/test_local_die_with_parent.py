"""A started program dies with its parent, even after SIGKILL. The tests stop only processes that they started."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from deploy.local.die_with_parent import PARENT_PID_VARIABLE
from deploy.local.processes import DIE_WITH_PARENT

ROOT = Path(__file__).resolve().parents[2]
SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]

SUPERVISING = f"""
    import sys, time
    from pathlib import Path
    from deploy.local.processes import Program
    from deploy.local.supervisord import Supervisord
    supervisord = Supervisord(Path(sys.argv[1]), [Program("sleeper", {SLEEP!r})])
    supervisord.open()
    supervisord.start_program("sleeper")
    while not (pid := supervisord.statuses()["sleeper"].pid):
        time.sleep(0.02)
    print(supervisord._child.pid, pid, flush=True)
    time.sleep(600)
"""
SPAWNING_IN_A_SHORT_THREAD = f"""
    import sys, threading, time
    from pathlib import Path
    from deploy.local.processes import Program, spawn
    folder, spawned = Path(sys.argv[1]), []
    thread = threading.Thread(
        target=lambda: spawned.append(spawn(Program("sleeper", {SLEEP!r}), folder=folder, log=folder / "log"))
    )
    thread.start()
    thread.join()
    while not (folder / "log").read_text():
        time.sleep(0.02)
    print(spawned[0].pid, flush=True)
    time.sleep(600)
"""
UNPROTECTED = f"""
    import subprocess, time
    print(subprocess.Popen({SLEEP!r}, stdout=subprocess.DEVNULL).pid, flush=True)
    time.sleep(600)
"""

Parent = Callable[..., tuple[psutil.Process, list[psutil.Process]]]


@pytest.fixture
def parent() -> Iterator[Parent]:
    """Start a program that prints the pids of its children; kill all of them after the test."""
    started: list[psutil.Process] = []
    parents: list[subprocess.Popen[str]] = []

    def run(code: str, *arguments: str) -> tuple[psutil.Process, list[psutil.Process]]:
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        parents.append(child)
        assert child.stdout is not None
        pids = [int(pid) for pid in child.stdout.readline().split()]
        children = [psutil.Process(pid) for pid in pids]
        started.extend(children)
        return psutil.Process(child.pid), children

    yield run
    for child in parents:
        child.kill()
        child.communicate()
    for process in started:
        if process.is_running():
            process.kill()


def test_supervisord_and_its_programs_die_with_a_killed_parent(parent: Parent, tmp_path: Path) -> None:
    owner, (supervisord, sleeper) = parent(SUPERVISING, str(tmp_path))
    assert sleeper.ppid() == supervisord.pid
    owner.kill()
    ended, alive = psutil.wait_procs([supervisord, sleeper], timeout=10)
    assert alive == []
    assert len(ended) == 2


def test_program_dies_with_a_killed_supervisord(parent: Parent, tmp_path: Path) -> None:
    owner, (supervisord, sleeper) = parent(SUPERVISING, str(tmp_path))
    supervisord.kill()
    assert psutil.wait_procs([sleeper], timeout=10)[1] == []
    assert owner.is_running()


def test_child_outlives_its_thread_but_not_its_process(parent: Parent, tmp_path: Path) -> None:
    owner, (sleeper,) = parent(SPAWNING_IN_A_SHORT_THREAD, str(tmp_path))
    with pytest.raises(psutil.TimeoutExpired):
        sleeper.wait(timeout=1)
    owner.kill()
    assert psutil.wait_procs([sleeper], timeout=10)[1] == []


def test_unprotected_child_survives_its_killed_parent(parent: Parent) -> None:
    """Negative control for the tests above."""
    owner, (sleeper,) = parent(UNPROTECTED)
    owner.kill()
    owner.wait(timeout=10)
    with pytest.raises(psutil.TimeoutExpired):
        sleeper.wait(timeout=1)


def test_watcher_replaces_the_kernels_death_signal(parent: Parent, tmp_path: Path) -> None:
    program = tmp_path / "sleeper.json"
    program.write_text(json.dumps({"argv": SLEEP}))
    watched = f"""
        import os, subprocess, time
        child = subprocess.Popen(
            [{sys.executable!r}, "-I", "-S", {str(DIE_WITH_PARENT)!r}, "--watch", {str(program)!r}],
            env={{**os.environ, {PARENT_PID_VARIABLE!r}: str(os.getpid())}}, stdout=subprocess.PIPE,
        )
        child.stdout.readline()
        print(child.pid, flush=True)
        time.sleep(600)
    """
    owner, (sleeper,) = parent(watched)
    watchers = sleeper.children()
    assert len(watchers) == 1
    owner.kill()
    # Until it has been waited for, the parent is a zombie, which its watcher takes for alive.
    owner.wait(timeout=10)
    assert psutil.wait_procs([sleeper, *watchers], timeout=10)[1] == []


@pytest.mark.parametrize("mode", [[], ["--watch"]])
def test_program_does_not_start_after_its_parent_died(tmp_path: Path, mode: list[str]) -> None:
    program = tmp_path / "program.json"
    program.write_text(json.dumps({"argv": [sys.executable, "-c", "print('started')"]}))
    process = subprocess.run(
        [sys.executable, "-I", "-S", str(DIE_WITH_PARENT), *mode, str(program)],
        env={PARENT_PID_VARIABLE: "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stdout == ""
    assert process.returncode != 0
