"""A Kafka broker that a test may kill and start again."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

from deploy.local.kafka import prepare_kafka, wait_for_kafka
from deploy.local.kafka_jars import ensure_jars
from deploy.local.ports import HOST, choose_ports
from deploy.local.processes import Program, spawn, tail, terminate
from shared.kafka_connection import KafkaConnection

ROOT = Path(__file__).resolve().parents[2]
SHORT_SESSION = "broker.session.timeout.ms=500\nbroker.heartbeat.interval.ms=100\n"
"""With these, the session of a killed broker times out before it is back: see `lost_markers`."""
LOST_MARKERS = "these partitions are likely deleted already and hence can be skipped"


class Broker:
    """A broker that keeps its address and its data over every `kill` and `start`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        ports = choose_ports({"kafka": 0, "controller": 0})
        self._program: Program = prepare_kafka(
            libs=ensure_jars(ROOT / ".loopwright" / "kafka", print),
            data=folder / "data",
            port=ports["kafka"],
            controller_port=ports["controller"],
        )
        with (folder / "data" / "server.properties").open("a") as properties:
            properties.write(SHORT_SESSION)
        self._child: Popen[bytes] | None = None
        self.address = f"{HOST}:{ports['kafka']}"

    def start(self) -> None:
        """Start the broker and wait until it answers."""
        log = self._folder / "kafka.log"
        self._child = spawn(self._program, folder=self._folder, log=log)
        assert wait_for_kafka(KafkaConnection(self.address), seconds=90), f"Kafka did not start:\n{tail(log)}"

    def kill(self) -> None:
        """Kill the broker with SIGKILL."""
        assert self._child is not None
        self._child.kill()
        assert self._child.wait(10) == -signal.SIGKILL

    def end(self) -> None:
        """Stop the broker gracefully, if it runs."""
        if self._child is not None:
            terminate(self._child, seconds=self._program.stop_seconds)

    def lost_markers(self) -> bool:
        """Return whether the broker has dropped markers of a decided transaction: no client can then be exactly once.

        A killed broker stays registered until its session times out. If it is back before that, it loads its
        transactions, and then its own partitions lose their leader for a moment: it drops the markers that it still has
        to write to them, as if the topics were deleted. The transaction stays open there and is complete elsewhere.
        """
        return LOST_MARKERS in (self._folder / "kafka.log").read_text(errors="replace")


@contextmanager
def own_broker(folder: Path) -> Iterator[Broker]:
    """Provide a running broker, and stop it at the end."""
    broker = Broker(folder)
    try:
        broker.start()
        yield broker
    finally:
        broker.end()
