"""Whoever starts a program takes it along when it dies, also by kill -9. Every process here is started here."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from deploy.local.die_with_parent import PARENT
from deploy.local.processes import DIE_WITH_PARENT

ROOT = Path(__file__).resolve().parents[2]
SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]

SUPERVISING = f"""
    import sys, time
    from pathlib import Path
    from deploy.local.processes import Program
    from deploy.local.supervisord import Supervision
    stack = Supervision(Path(sys.argv[1]), [Program("sleeper", {SLEEP!r})])
    stack.open()
    stack.launch("sleeper")
    while not (pid := stack.standings()["sleeper"].pid):
        time.sleep(0.02)
    print(stack._child.pid, pid, flush=True)
    time.sleep(600)
"""
FROM_A_THREAD_THAT_ENDS = f"""
    import sys, threading, time
    from pathlib import Path
    from deploy.local.processes import Program, spawn
    folder, got = Path(sys.argv[1]), []
    thread = threading.Thread(
        target=lambda: got.append(spawn(Program("sleeper", {SLEEP!r}), folder=folder, log=folder / "log"))
    )
    thread.start()
    thread.join()
    while not (folder / "log").read_text():
        time.sleep(0.02)
    print(got[0].pid, flush=True)
    time.sleep(600)
"""
UNTETHERED = f"""
    import subprocess, time
    print(subprocess.Popen({SLEEP!r}, stdout=subprocess.DEVNULL).pid, flush=True)
    time.sleep(600)
"""

Parent = Callable[..., tuple[psutil.Process, list[psutil.Process]]]


@pytest.fixture
def parent() -> Iterator[Parent]:
    """Runs a program that prints the pids of what it started; ends all of them at the end of the test."""
    started: list[psutil.Process] = []
    held: list[subprocess.Popen[str]] = []

    def run(code: str, *arguments: str) -> tuple[psutil.Process, list[psutil.Process]]:
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        held.append(child)
        assert child.stdout is not None
        pids = [int(pid) for pid in child.stdout.readline().split()]
        children = [psutil.Process(pid) for pid in pids]
        started.extend(children)
        return psutil.Process(child.pid), children

    yield run
    for child in held:
        child.kill()
        child.communicate()
    for process in started:
        if process.is_running():
            process.kill()


def test_supervisord_and_its_programs_die_with_a_killed_parent(parent: Parent, tmp_path: Path) -> None:
    owner, (supervisord, sleeper) = parent(SUPERVISING, str(tmp_path))
    assert sleeper.ppid() == supervisord.pid
    owner.kill()
    gone, alive = psutil.wait_procs([supervisord, sleeper], timeout=10)
    assert alive == []
    assert len(gone) == 2


def test_a_program_dies_with_a_killed_supervisord(parent: Parent, tmp_path: Path) -> None:
    owner, (supervisord, sleeper) = parent(SUPERVISING, str(tmp_path))
    supervisord.kill()
    assert psutil.wait_procs([sleeper], timeout=10)[1] == []
    assert owner.is_running()


def test_a_child_outlives_the_thread_that_asked_for_it_but_not_the_process(
    parent: Parent, tmp_path: Path
) -> None:
    owner, (sleeper,) = parent(FROM_A_THREAD_THAT_ENDS, str(tmp_path))
    with pytest.raises(psutil.TimeoutExpired):
        sleeper.wait(timeout=1)
    owner.kill()
    assert psutil.wait_procs([sleeper], timeout=10)[1] == []


def test_without_the_tether_a_child_survives_its_killed_parent(parent: Parent) -> None:
    """The control: the tests above see more than an end that comes anyway."""
    owner, (sleeper,) = parent(UNTETHERED)
    owner.kill()
    owner.wait(timeout=10)
    with pytest.raises(psutil.TimeoutExpired):
        sleeper.wait(timeout=1)


def test_where_the_kernel_cannot_do_it_a_watcher_does(parent: Parent, tmp_path: Path) -> None:
    program = tmp_path / "sleeper.json"
    program.write_text(json.dumps({"argv": SLEEP}))
    watched = f"""
        import os, subprocess, time
        child = subprocess.Popen(
            [{sys.executable!r}, "-I", "-S", {str(DIE_WITH_PARENT)!r}, "--watch", {str(program)!r}],
            env={{**os.environ, {PARENT!r}: str(os.getpid())}}, stdout=subprocess.PIPE,
        )
        child.stdout.readline()
        print(child.pid, flush=True)
        time.sleep(600)
    """
    owner, (sleeper,) = parent(watched)
    watchers = sleeper.children()
    assert len(watchers) == 1
    owner.kill()
    # The parent is a zombie, and so still there for its watcher, until it has been waited for.
    owner.wait(timeout=10)
    assert psutil.wait_procs([sleeper, *watchers], timeout=10)[1] == []


@pytest.mark.parametrize("mode", [[], ["--watch"]])
def test_a_program_whose_parent_is_gone_before_it_starts_does_not_start(
    tmp_path: Path, mode: list[str]
) -> None:
    program = tmp_path / "program.json"
    program.write_text(json.dumps({"argv": [sys.executable, "-c", "print('started')"]}))
    ran = subprocess.run(
        [sys.executable, "-I", "-S", str(DIE_WITH_PARENT), *mode, str(program)],
        env={PARENT: "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout == ""
    assert ran.returncode != 0
