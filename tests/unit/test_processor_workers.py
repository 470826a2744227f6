"""Tests of several processor processes on one host: the settings of each, and when one is restarted."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from services.processor.settings import ProcessorSettings
from services.processor.workers import (
    LONGEST_WAIT_S,
    Worker,
    Workers,
    next_wait,
    run_workers,
    worker_environment,
)
from shared.errors import Misconfigured


def process(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code])


def test_each_worker_has_a_port_and_claims_its_own_instance() -> None:
    settings = ProcessorSettings(port=8002, worker_port=8102, workers=3)
    ports = [worker_environment(settings, n)["LOOPWRIGHT_PROCESSOR_PORT"] for n in (1, 2, 3)]
    assert ports == ["8002", "8102", "8103"]
    assert worker_environment(settings, 2)["LOOPWRIGHT_PROCESSOR_INSTANCE"] == "auto"
    assert worker_environment(settings, 2)["LOOPWRIGHT_PROCESSOR_WORKERS"] == "1"


def test_named_instance_is_numbered_per_worker() -> None:
    settings = ProcessorSettings(instance="east", workers=2)
    names = [worker_environment(settings, n)["LOOPWRIGHT_PROCESSOR_INSTANCE"] for n in (1, 2)]
    assert names == ["east-1", "east-2"]


def test_ports_beyond_the_last_one_are_refused() -> None:
    with pytest.raises(Misconfigured, match="LOOPWRIGHT_PROCESSOR_WORKER_PORT"):
        run_workers(ProcessorSettings(worker_port=65_535, workers=3))


def test_wait_doubles_until_a_worker_has_run_for_a_while() -> None:
    waits = [0.0]
    for ran_s in (1.0, 1.0, 1.0, 600.0, 1.0):
        waits.append(next_wait(waits[-1], ran_s))
    assert waits[1:] == [1.0, 2.0, 4.0, 1.0, 2.0]
    assert next_wait(LONGEST_WAIT_S, 1.0) == LONGEST_WAIT_S


def test_ended_worker_is_restarted_after_its_wait() -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        started.append(process("raise SystemExit(3)"))
        return started[-1]

    worker = Worker(1, start)
    worker.poll(100.0)
    started[0].wait(10)
    worker.poll(100.5)
    worker.poll(101.0)
    assert len(started) == 1
    worker.poll(101.5)
    assert len(started) == 2
    started[1].wait(10)


def test_stop_ends_all_workers_and_restarts_none() -> None:
    children: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        children.append(process("import time; time.sleep(60)"))
        return children[-1]

    workers = Workers([Worker(1, start), Worker(2, start)])
    thread = threading.Thread(target=workers.run)
    thread.start()
    deadline = time.monotonic() + 20
    while len(children) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    workers.stopping.set()
    thread.join(20)
    assert [child.poll() is not None for child in children] == [True, True]
