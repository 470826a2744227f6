"""Start child processes that die with this process."""

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

from deploy.local.die_with_parent import PARENT_PID_VARIABLE

DIE_WITH_PARENT = Path(__file__).with_name("die_with_parent.py")


@dataclass(frozen=True)
class Program:
    """A command with its environment and working directory."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    stop_seconds: int = 15
    """Seconds between SIGTERM and SIGKILL."""
    once: bool = False
    """Whether it is a job, which is not restarted when it ends."""

    def write(self, folder: Path) -> list[str]:
        """Write the program's file for `die_with_parent.py` and return the command that runs it.

        Only the owner can read the file, because the environment may contain secrets.
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
    """Start `program` as a child that dies with this process; append its output to `log`.

    The kernel ties a child to the *thread* that forked it. Therefore a dedicated thread forks the child and waits for
    it, so that the caller's thread may end earlier.
    """
    command = program.write(folder)
    log.parent.mkdir(parents=True, exist_ok=True)
    started: queue.SimpleQueue[subprocess.Popen[bytes] | OSError] = queue.SimpleQueue()

    def fork_and_wait() -> None:
        try:
            with log.open("ab") as out:
                child = subprocess.Popen(
                    command,
                    env={**os.environ, PARENT_PID_VARIABLE: str(os.getpid())},
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    # Ctrl-C must reach only the parent, which stops its children in order.
                    process_group=0,
                )
        except OSError as error:
            started.put(error)
            return
        started.put(child)
        child.wait()

    threading.Thread(target=fork_and_wait, name=f"parent of {program.name}", daemon=True).start()
    outcome = started.get()
    if isinstance(outcome, OSError):
        raise outcome
    return outcome


def terminate(child: subprocess.Popen[bytes], *, seconds: float) -> None:
    """Send SIGTERM, and SIGKILL if the child does not end within `seconds`."""
    if child.poll() is None:
        child.terminate()
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def tail(log: Path, lines: int = 15) -> str:
    """Return the last lines of a log, or an empty string if the file is missing."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 16384))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
