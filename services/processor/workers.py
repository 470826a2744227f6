"""Runs several processor processes on one host as one command: `python -m services.processor --workers N`.

Each worker is a complete processor: a process with its own engine, stores and web views. This process only starts the
workers, restarts those that end, and stops them. A worker that ends is no gap: its partitions move to the others.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from services.processor.settings import ProcessorSettings
from shared.errors import Fatal, Misconfigured
from shared.settings import variable_of
from shared.stream.instance import AUTO

PARENT_PID_VARIABLE: Final = "LOOPWRIGHT_PROCESSOR_PARENT"
"""Environment variable with the process id of the parent, with which a worker has to end."""
POLL_S: Final = 0.2
STOP_TIMEOUT_S: Final = 15.0
"""Longer than a worker takes to commit its last slice and leave the group."""
FIRST_WAIT_S: Final = 1.0
LONGEST_WAIT_S: Final = 30.0
STABLE_S: Final = 60.0
"""A worker that ran this long is restarted after `FIRST_WAIT_S` again."""
MAX_PORT: Final = 65_535
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Worker:
    """One worker. `start` starts its process."""

    number: int
    start: Callable[[], subprocess.Popen[bytes]]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    wait_s: float = 0.0

    def poll(self, now: float) -> None:
        """Start the process when it is due, and schedule its restart when it has ended."""
        if self.process is None:
            if now >= self.start_at:
                self.process, self.started_at = self.start(), now
                log.info("worker_started", worker=self.number, pid=self.process.pid)
            return
        status = self.process.poll()
        if status is None:
            return
        self.process = None
        self.wait_s = next_wait(self.wait_s, now - self.started_at)
        self.start_at = now + self.wait_s
        log.warning("worker_ended", worker=self.number, status=status, restart_in_s=self.wait_s)


def next_wait(last_wait_s: float, ran_s: float) -> float:
    """Return the time until a worker that ran for `ran_s` is restarted: doubling, unless it had run for a while."""
    if last_wait_s == 0.0 or ran_s >= STABLE_S:
        return FIRST_WAIT_S
    return min(2 * last_wait_s, LONGEST_WAIT_S)


@dataclass(slots=True)
class Workers:
    """The workers of this host. `run` is for the main thread: with its end, the kernel ends the workers."""

    workers: Sequence[Worker]
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Keep the workers running until `stopping` is set, then stop them.

        Raises:
            Fatal: A worker did not stop in time and was killed.

        """
        try:
            while not self.stopping.wait(POLL_S):
                for worker in self.workers:
                    worker.poll(time.monotonic())
        finally:
            killed = self._stop()
        if killed:
            raise Fatal(
                f"workers {killed} did not stop within {STOP_TIMEOUT_S:.0f} s and were killed; nothing was lost"
            )

    def _stop(self) -> list[int]:
        """Stop all workers at the same time. Return the numbers of those that had to be killed."""
        running = [(worker, worker.process) for worker in self.workers if worker.process is not None]
        for _, process in running:
            process.terminate()
        deadline, killed = time.monotonic() + STOP_TIMEOUT_S, []
        for worker, process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                killed.append(worker.number)
        return killed


def run_workers(settings: ProcessorSettings) -> None:
    """Run the workers of this host until SIGTERM or SIGINT."""
    last_port = settings.worker_port + settings.workers - 2
    if last_port > MAX_PORT:
        raise Misconfigured(
            f"{settings.workers} workers need ports up to {last_port}: choose a lower "
            f"{variable_of(ProcessorSettings, 'worker_port')}"
        )
    environments = [worker_environment(settings, number) for number in range(1, settings.workers + 1)]
    workers = Workers(
        [
            Worker(number, lambda environment=environment: _start(environment))  # type: ignore[misc]
            for number, environment in enumerate(environments, 1)
        ]
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: workers.stopping.set())
    workers.run()


def worker_environment(settings: ProcessorSettings, number: int) -> dict[str, str]:
    """Return the environment variables in which worker `number`, from 1, differs from this process.

    The first one has the configured port, the others the ports from `worker_port` on.
    """
    port = settings.port if number == 1 else settings.worker_port + number - 2
    values = {
        "workers": "1",
        "port": str(port),
        "instance": AUTO if settings.instance == AUTO else f"{settings.instance}-{number}",
    }
    return {variable_of(ProcessorSettings, name): value for name, value in values.items()}


def _start(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "services.processor"],
        env={**os.environ, **environment, PARENT_PID_VARIABLE: str(os.getpid())},
        stdin=subprocess.DEVNULL,
        # Ctrl-C must reach only this process, which then stops the workers.
        process_group=0,
    )
