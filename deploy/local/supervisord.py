"""Running programs under supervisord: it starts them again when they die and keeps their logs.

supervisord is a tethered child of this process, and each program is a tethered child of supervisord: whichever of
them is killed, whatever it had started dies too.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy

from supervisor.xmlrpc import SupervisorTransport

from deploy.local.atomic_dirs import private_folder
from deploy.local.errors import StackError
from deploy.local.processes import Program, spawn, tail, terminate

SOCKET_BYTES = 80
"""A unix socket's path may take about 100 bytes, and supervisor first makes one with its pid appended."""
ENDED = frozenset({"STOPPED", "EXITED", "FATAL"})


@dataclass(frozen=True)
class Standing:
    """Where a program stands; `state` is supervisor's word (STARTING, RUNNING, BACKOFF, EXITED, FATAL, ...)."""

    state: str
    pid: int
    exit_status: int


def socket_path(run: Path) -> Path:
    """Where supervisord listens: in `run` if its path is short enough, else in a private folder of this user's."""
    path = run.resolve() / "supervisor.sock"
    if len(os.fsencode(path)) <= SOCKET_BYTES:
        return path
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    return private_folder(digest) / "s.sock"


def value(text: str | Path) -> str:
    """As supervisor's configuration takes it: a % starts an expansion there."""
    return str(text).replace("%", "%%")


def section(program: Program, *, priority: int, programs: Path) -> str:
    """A program's part of the configuration.

    supervisord runs in its run folder, and its paths are relative to it: it expands log files twice.
    """
    command = shlex.join(program.write(programs))
    return f"""
[program:{program.name}]
command={value(command)}
priority={priority}
autostart=false
autorestart={"false" if program.once else "true"}
startsecs={0 if program.once else 1}
startretries=30
stopsignal=TERM
stopwaitsecs={program.stop_seconds}
killasgroup=true
redirect_stderr=true
stdout_logfile=logs/{program.name}.log
stdout_logfile_maxbytes=20MB
stdout_logfile_backups=3
"""


class Supervision:
    """supervisord over a list of programs, started in the order given to `launch` and stopped in reverse."""

    def __init__(self, run: Path, programs: Sequence[Program]) -> None:
        self.run = run.resolve()
        self.logs = self.run / "logs"
        self.programs = {program.name: program for program in programs}
        self._child: subprocess.Popen[bytes] | None = None
        self._socket = socket_path(self.run)

    def open(self) -> None:
        """Start supervisord; no program runs yet."""
        self.logs.mkdir(parents=True, exist_ok=True)
        folder = self.run / "programs"
        head = f"""\
[unix_http_server]
file={value(self._socket)}
chmod=0700

[supervisord]
nodaemon=true
silent=true
logfile=logs/supervisor.log
logfile_maxbytes=5MB
logfile_backups=1
pidfile=supervisor.pid
childlogdir=logs

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""
        sections = [
            section(program, priority=100 + number, programs=folder)
            for number, program in enumerate(self.programs.values())
        ]
        (self.run / "supervisor.conf").write_text(head + "".join(sections))
        supervisord = Program(
            name="supervisord",
            argv=[sys.executable, "-m", "supervisor.supervisord", "-n", "-c", "supervisor.conf"],
            cwd=self.run,
        )
        log = self.logs / "supervisor.out"
        self._child = spawn(supervisord, folder=folder, log=log)
        deadline = time.monotonic() + 20
        while not self._answers():
            if self._child.poll() is not None or time.monotonic() > deadline:
                terminate(self._child, seconds=2)
                raise StackError(f"supervisord did not start:\n{tail(log)}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            self._call("getState")
        except OSError:
            return False
        return True

    def _call(self, method: str, *arguments: object) -> Any:
        transport = SupervisorTransport(None, None, serverurl=f"unix://{self._socket}")
        with ServerProxy("http://127.0.0.1", transport=transport) as proxy:
            return getattr(proxy.supervisor, method)(*arguments)

    @property
    def alive(self) -> bool:
        """Whether supervisord runs. If it does not, its programs do not either."""
        return self._child is not None and self._child.poll() is None

    def launch(self, name: str) -> None:
        """Start one program; it need not have come up when this returns."""
        self._call("startProcess", name, False)

    def halt(self, names: Sequence[str]) -> None:
        """Stop these programs side by side and wait until they have ended; SIGKILL for those that take too long."""
        running = [name for name, standing in self.standings().items() if standing.state not in ENDED]
        for name in names:
            if name in running:
                try:
                    self._call("stopProcess", name, False)
                except Fault as fault:
                    # It may have ended by itself in between.
                    if "NOT_RUNNING" not in fault.faultString:
                        raise
        deadline = (
            time.monotonic() + 10 + max((self.programs[name].stop_seconds for name in names), default=0)
        )
        while time.monotonic() < deadline:
            standings = self.standings()
            if all(standings[name].state in ENDED for name in names):
                return
            time.sleep(0.05)
        raise StackError(f"these programs do not end: {', '.join(names)}")

    def standings(self) -> Mapping[str, Standing]:
        """Where every program stands."""
        return {
            info["name"]: Standing(info["statename"], info["pid"], info["exitstatus"])
            for info in self._call("getAllProcessInfo")
        }

    def log_of(self, name: str) -> Path:
        """The file that gets what the program prints."""
        return self.logs / f"{name}.log"

    def close(self) -> None:
        """Stop what still runs, the last in the list first, then supervisord. Calling it again does nothing."""
        if self._child is None:
            return
        # supervisord stops one program after the other, each within its own bound.
        terminate(self._child, seconds=15 + sum(program.stop_seconds for program in self.programs.values()))
        self._child = None
