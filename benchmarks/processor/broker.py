"""Kafka broker that all arms of a run share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.local.errors import StackError
from deploy.local.kafka import is_ready, prepare_kafka, wait_for_kafka
from deploy.local.kafka_jars import ensure_jars
from deploy.local.ports import HOST, choose_ports
from deploy.local.processes import spawn, tail, terminate
from shared.kafka_connection import KafkaConnection

PREPARED = Path(".loopwright")


@dataclass(frozen=True)
class Broker:
    """A running broker."""

    address: str
    pid: int | None
    """None if the broker was running before the benchmark."""


@contextmanager
def running_broker(folder: Path) -> Iterator[Broker]:
    """Use the broker at KAFKA_BOOTSTRAP_SERVERS, or start one with its data in `folder` until the end of the block."""
    address = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    if address:
        if not is_ready(KafkaConnection(address)):
            raise StackError(
                f"KAFKA_BOOTSTRAP_SERVERS: no broker answers at {address}. Start it, or unset the variable."
            )
        yield Broker(address, None)
        return
    ports = choose_ports({"kafka": 0, "controller": 0})
    program = prepare_kafka(
        libs=ensure_jars(PREPARED / "kafka", print),
        data=folder / "data",
        port=ports["kafka"],
        controller_port=ports["controller"],
    )
    log = folder / "kafka.log"
    child = spawn(program, folder=folder, log=log)
    try:
        address = f"{HOST}:{ports['kafka']}"
        if not wait_for_kafka(KafkaConnection(address), seconds=90):
            raise StackError(f"Kafka did not start:\n{tail(log)}")
        yield Broker(address, child.pid)
    finally:
        terminate(child, seconds=program.stop_seconds)
