"""`--workers N`: one command runs several processors, restarts one that dies, and ends them all."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen

import httpx
import pytest

from deploy.local.ports import HOST, choose_ports
from deploy.local.processes import Program, spawn, tail, terminate
from tests.brokers import own_kafka
from tests.integration.stream_hosts import ROOT
from tests.integration.stream_rig import until

PARTITIONS = 4


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a separate Kafka with the processor's topics, whose names are fixed."""
    with own_kafka(tmp_path_factory.mktemp("own"), partitions=PARTITIONS) as address:
        yield address


class Command:
    """The command with two workers, and what they say over HTTP."""

    def __init__(self, kafka: str, folder: Path) -> None:
        self.ports = list(choose_ports({"first": 0, "second": 0}).values())
        env = {
            "KAFKA_BOOTSTRAP_SERVERS": kafka,
            "LOOPWRIGHT_PARTITIONS": str(PARTITIONS),
            "LOOPWRIGHT_DATA_DIR": str(folder / "data"),
            "LOOPWRIGHT_PROCESSOR_PORT": str(self.ports[0]),
            "LOOPWRIGHT_PROCESSOR_WORKER_PORT": str(self.ports[1]),
        }
        argv = [sys.executable, "-m", "services.processor", "--workers", "2"]
        self.log = folder / "log"
        self.child: Popen[bytes] = spawn(Program("workers", argv, env, cwd=ROOT), folder=folder, log=self.log)

    def owned(self) -> list[int]:
        """Return all partitions of the workers that are ready."""
        found: list[int] = []
        for port in self.ports:
            try:
                if httpx.get(f"http://{HOST}:{port}/readyz").status_code == 200:
                    body = httpx.get(f"http://{HOST}:{port}/partitions").json()
                    found += [each["partition"] for each in body["partitions"]]
            except httpx.TransportError:
                continue
        return sorted(found)

    def pids(self) -> dict[int, int]:
        """Return worker -> the process id that it was last started with."""
        rows = [json.loads(row) for row in self.log.read_text().splitlines() if row.startswith("{")]
        return {row["worker"]: row["pid"] for row in rows if row["event"] == "worker_started"}

    def ready(self, port: int) -> bool:
        try:
            return httpx.get(f"http://{HOST}:{port}/readyz").status_code == 200
        except httpx.TransportError:
            return False


def gone(pid: int) -> bool:
    """Return whether a process has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def test_killed_worker_is_restarted_and_no_partition_stays_without_an_owner(own: str, tmp_path: Path) -> None:
    command = Command(own, tmp_path)
    try:
        everything = list(range(PARTITIONS))
        until(lambda: all(map(command.ready, command.ports)) and command.owned() == everything, "both", 60)
        before = command.pids()
        os.kill(before[2], signal.SIGKILL)
        until(lambda: command.pids()[2] != before[2], "the restart", 30)
        until(lambda: all(map(command.ready, command.ports)) and command.owned() == everything, "again", 60)
        assert command.pids()[1] == before[1]
        command.child.terminate()
        assert command.child.wait(20) == 0
        assert all(map(gone, command.pids().values()))
    except AssertionError as failed:
        raise AssertionError(f"{failed}\n{tail(command.log, 40)}") from failed
    finally:
        terminate(command.child, seconds=15)


def test_workers_end_with_the_command_even_if_it_is_killed(own: str, tmp_path: Path) -> None:
    command = Command(own, tmp_path)
    try:
        until(lambda: command.log.exists() and len(command.pids()) == 2, "both workers", 60)
        pids = command.pids().values()
        command.child.kill()
        command.child.wait(10)
        until(lambda: all(map(gone, pids)), "their end")
    finally:
        terminate(command.child, seconds=15)
