"""A separate Kafka broker, for the test session and for tests that count all records of a topic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from deploy.local.kafka import prepare_kafka, wait_for_kafka
from deploy.local.kafka_jars import ensure_jars
from deploy.local.ports import HOST, choose_ports
from deploy.local.processes import spawn, tail, terminate

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def own_kafka(folder: Path, settings: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run a broker with its data in `folder` and additional `settings`; yield its address."""
    ports = choose_ports({"kafka": 0, "controller": 0})
    program = prepare_kafka(
        libs=ensure_jars(ROOT / ".loopwright" / "kafka", print),
        data=folder / "data",
        port=ports["kafka"],
        controller_port=ports["controller"],
    )
    with (folder / "data" / "server.properties").open("a") as file:
        file.writelines(f"{name}={value}\n" for name, value in (settings or {}).items())
    log = folder / "kafka.log"
    child = spawn(program, folder=folder, log=log)
    try:
        address = f"{HOST}:{ports['kafka']}"
        assert wait_for_kafka(address, seconds=90), f"Kafka did not start:\n{tail(log)}"
        yield address
    finally:
        terminate(child, seconds=program.stop_seconds)
