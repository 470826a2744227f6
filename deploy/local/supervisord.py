"""Run programs under supervisord, which restarts them when they die and writes their logs.

supervisord dies with this process, and each program dies with supervisord (see `die_with_parent.py`), so a SIGKILL
leaves nothing running.
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
"""Unix socket paths are limited to about 100 bytes, and supervisor first creates one with its pid appended."""
ENDED_STATES = frozenset({"STOPPED", "EXITED", "FATAL"})


@dataclass(frozen=True)
class ProgramStatus:
    """Status of a program. `state` is supervisor's: STARTING, RUNNING, BACKOFF, EXITED, FATAL, ..."""

    state: str
    pid: int
    exit_status: int


def socket_path(run: Path) -> Path:
    """Return supervisord's socket: in `run` if that path is short enough, else in a private temporary folder."""
    path = run.resolve() / "supervisor.sock"
    if len(os.fsencode(path)) <= SOCKET_BYTES:
        return path
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    return private_folder(digest) / "s.sock"


def escape_percent(text: str | Path) -> str:
    """Escape `%`, which starts an expansion in supervisor's configuration."""
    return str(text).replace("%", "%%")


def program_section(program: Program, *, priority: int, programs: Path) -> str:
    """Return a program's section of the configuration.

    Paths are relative to the run folder, where supervisord runs, because it expands `%` twice in log file names.
    """
    command = shlex.join(program.write(programs))
    return f"""
[program:{program.name}]
command={escape_percent(command)}
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


class Supervisord:
    """A supervisord process and its programs. `open` starts supervisord, `close` stops everything."""

    def __init__(self, run: Path, programs: Sequence[Program]) -> None:
        self.run = run.resolve()
        self.logs = self.run / "logs"
        self.programs = {program.name: program for program in programs}
        self._child: subprocess.Popen[bytes] | None = None
        self._socket = socket_path(self.run)

    def open(self) -> None:
        """Start supervisord without starting any program.

        Raises:
            StackError: if supervisord does not start; with the end of its log.

        """
        self.logs.mkdir(parents=True, exist_ok=True)
        folder = self.run / "programs"
        head = f"""\
[unix_http_server]
file={escape_percent(self._socket)}
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
            program_section(program, priority=100 + number, programs=folder)
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
        while not self._is_ready():
            if self._child.poll() is not None or time.monotonic() > deadline:
                terminate(self._child, seconds=2)
                raise StackError(f"supervisord did not start:\n{tail(log)}")
            time.sleep(0.05)

    def _is_ready(self) -> bool:
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
        """Whether supervisord is running. If not, its programs are not running either."""
        return self._child is not None and self._child.poll() is None

    def start_program(self, name: str) -> None:
        """Start a program without waiting for it."""
        self._call("startProcess", name, False)

    def stop_programs(self, names: Sequence[str]) -> None:
        """Stop these programs in parallel and wait until they have ended; kill those that take too long.

        Raises:
            StackError: if a program does not end.

        """
        running = [name for name, status in self.statuses().items() if status.state not in ENDED_STATES]
        for name in names:
            if name in running:
                try:
                    self._call("stopProcess", name, False)
                except Fault as fault:
                    # The program may have ended in the meantime.
                    if "NOT_RUNNING" not in fault.faultString:
                        raise
        deadline = (
            time.monotonic() + 10 + max((self.programs[name].stop_seconds for name in names), default=0)
        )
        while time.monotonic() < deadline:
            statuses = self.statuses()
            if all(statuses[name].state in ENDED_STATES for name in names):
                return
            time.sleep(0.05)
        raise StackError(f"could not stop: {', '.join(names)}")

    def statuses(self) -> Mapping[str, ProgramStatus]:
        """Return the status of every program."""
        return {
            info["name"]: ProgramStatus(info["statename"], info["pid"], info["exitstatus"])
            for info in self._call("getAllProcessInfo")
        }

    def log_of(self, name: str) -> Path:
        """Return the path of a program's log."""
        return self.logs / f"{name}.log"

    def close(self) -> None:
        """Stop the remaining programs, the last in the list first, then supervisord. Idempotent."""
        if self._child is None:
            return
        # supervisord stops the programs one after another, each within its own time limit.
        terminate(self._child, seconds=15 + sum(program.stop_seconds for program in self.programs.values()))
        self._child = None
