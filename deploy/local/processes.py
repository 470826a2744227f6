"""Starting tethered children."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.local.die_with_parent import PARENT

DIE_WITH_PARENT = Path(__file__).with_name("die_with_parent.py")


@dataclass(frozen=True)
class Program:
    """A process of the stack: what to run, and what it sees."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    stop_seconds: int = 15
    """How long it may take to end after SIGTERM before it is killed."""
    once: bool = False
    """A job: it runs to its end and is not started again."""

    def write(self, folder: Path) -> list[str]:
        """Write the program's file for the tether and return the command that runs it.

        The file may hold secrets (they are part of the environment), so only the owner can read it.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        facts = {
            "argv": list(self.argv),
            "env": dict(self.env),
            "cwd": str(self.cwd.resolve()) if self.cwd else None,
        }
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(facts, file, indent=1)
        return [sys.executable, "-I", "-S", str(DIE_WITH_PARENT), str(path.resolve())]


def spawn(program: Program, *, folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start `program` as a child that dies with this process; its output is appended to `log`.

    The kernel ties a child to the *thread* that forked it. So a thread of its own forks the child and then
    stays until the child has ended: the caller may call from a thread that ends sooner.
    """
    command = program.write(folder)
    log.parent.mkdir(parents=True, exist_ok=True)
    started: queue.SimpleQueue[subprocess.Popen[bytes] | OSError] = queue.SimpleQueue()

    def hold() -> None:
        try:
            with log.open("ab") as out:
                child = subprocess.Popen(
                    command,
                    env={**os.environ, PARENT: str(os.getpid())},
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    # A Ctrl-C at the terminal is for the parent, which then stops its children in order.
                    process_group=0,
                )
        except OSError as error:
            started.put(error)
            return
        started.put(child)
        child.wait()

    threading.Thread(target=hold, name=f"holds {program.name}", daemon=True).start()
    outcome = started.get()
    if isinstance(outcome, OSError):
        raise outcome
    return outcome


def terminate(child: subprocess.Popen[bytes], *, seconds: float) -> None:
    """SIGTERM, and SIGKILL if the child has not ended in time."""
    if child.poll() is None:
        child.terminate()
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log; empty if there is none."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 16384))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
