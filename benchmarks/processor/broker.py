"""The one Kafka that all arms of a run share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.local.errors import StackError
from deploy.local.kafka import answers, prepare_kafka, wait_for_kafka
from deploy.local.kafka_jars import ensure_jars
from deploy.local.ports import HOST, choose
from deploy.local.processes import end, spawn, tail

PREPARED = Path(".loopwright")


@dataclass(frozen=True)
class Broker:
    """`pid` is None for one that was there before."""

    address: str
    pid: int | None


@contextmanager
def broker(folder: Path) -> Iterator[Broker]:
    """KAFKA_BOOTSTRAP_SERVERS, else one for this run: its data lies in `folder`, and it ends with the block."""
    given = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    if given:
        if not answers(given):
            raise StackError(f"KAFKA_BOOTSTRAP_SERVERS: no broker answers at {given}.")
        yield Broker(given, None)
        return
    ports = choose({"kafka": 0, "controller": 0})
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
        if not wait_for_kafka(address, seconds=90):
            raise StackError(f"Kafka did not start:\n{tail(log)}")
        yield Broker(address, child.pid)
    finally:
        end(child, seconds=program.stop_seconds)
