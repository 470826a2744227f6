"""A Kafka of a test's own that may be killed and started again, and the admin tool's way with hanging transactions."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

from deploy.local.children import Program, end, spawn, tail
from deploy.local.java import find_java
from deploy.local.kafka import java_command, prepare_kafka, wait_for_kafka
from deploy.local.kafka_jars import ensure_jars
from deploy.local.ports import HOST, choose

ROOT = Path(__file__).resolve().parents[2]


class Broker:
    """Started by `start`, once and again after each `kill`, under the same address and over the same data."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._libs = ensure_jars(ROOT / ".loopwright" / "kafka", print)
        ports = choose({"kafka": 0, "controller": 0})
        self._program: Program = prepare_kafka(
            libs=self._libs, data=folder / "data", port=ports["kafka"], controller_port=ports["controller"]
        )
        self._child: Popen[bytes] | None = None
        self.address = f"{HOST}:{ports['kafka']}"

    def start(self) -> None:
        """Returns when it answers."""
        log = self._folder / "kafka.log"
        self._child = spawn(self._program, folder=self._folder, log=log)
        assert wait_for_kafka(self.address, seconds=90), f"Kafka did not start:\n{tail(log)}"

    def kill(self) -> None:
        """-9."""
        assert self._child is not None
        self._child.kill()
        assert self._child.wait(10) == -signal.SIGKILL

    def end(self) -> None:
        if self._child is not None:
            end(self._child, seconds=self._program.stop_seconds)

    def end_hanging(self) -> int:
        """Aborts the transactions that the broker has lost track of; returns in how many partitions there were any.

        After a kill -9 Kafka may hold a transaction open in a partition that its coordinator knows nothing of.
        """
        found = self._tool("find-hanging", "--broker-id", "1", "--max-transaction-timeout", "0")
        hanging = re.findall(r"^(\S+)\s+(\d+)\s+\d+\s+\d+\s+-?\d+\s+(\d+)\s", found, re.MULTILINE)
        ended = 0
        for topic, partition, offset in hanging:
            place = ("--topic", topic, "--partition", partition, "--start-offset", offset)
            # One that is over by now was not hanging: it was found while the broker still decided it.
            ended += "Could not find any open transactions" not in self._tool("abort", *place)
        return ended

    def _tool(self, *words: str) -> str:
        """What `kafka-transactions.sh` says."""
        command = java_command(
            find_java(),
            self._libs,
            "org.apache.kafka.tools.TransactionsCommand",
            "--bootstrap-server",
            self.address,
            *words,
        )
        said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        return said.stdout + said.stderr


@contextmanager
def own_broker(folder: Path) -> Iterator[Broker]:
    """Started; stopped at the end."""
    broker = Broker(folder)
    try:
        broker.start()
        yield broker
    finally:
        broker.end()
