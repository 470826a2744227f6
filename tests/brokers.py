"""A separate Kafka broker, for the test session and for tests that count all records of a topic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from deploy.local.kafka import prepare_kafka, wait_for_kafka
from deploy.local.kafka_jars import ensure_jars
from deploy.local.ports import HOST, choose_ports
from deploy.local.processes import spawn, tail, terminate
from shared.adapters.topic_admin import create_topics
from shared.kafka_connection import KafkaConnection

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def own_kafka(
    folder: Path,
    settings: Mapping[str, str] | None = None,
    *,
    secure_port: int | None = None,
    partitions: int | None = None,
) -> Iterator[str]:
    """Run a broker with its data in `folder` and additional `settings`; yield its address.

    With `partitions`, it has the services' topics, whose names are fixed, with this many partitions. With
    `secure_port`, it has a SASL_SSL listener there too; `settings` then configure TLS and SASL.
    """
    ports = choose_ports({"kafka": 0, "controller": 0})
    settings = dict(settings or {})
    if secure_port is not None:
        open_to_clients = f"PLAINTEXT://{HOST}:{ports['kafka']},SASL_SSL://{HOST}:{secure_port}"
        settings |= {
            "listeners": f"{open_to_clients},CONTROLLER://{HOST}:{ports['controller']}",
            "advertised.listeners": open_to_clients,
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL",
        }
    program = prepare_kafka(
        libs=ensure_jars(ROOT / ".loopwright" / "kafka", print),
        data=folder / "data",
        port=ports["kafka"],
        controller_port=ports["controller"],
    )
    with (folder / "data" / "server.properties").open("a") as file:
        file.writelines(f"{name}={value}\n" for name, value in settings.items())
    log = folder / "kafka.log"
    child = spawn(program, folder=folder, log=log)
    try:
        address = f"{HOST}:{ports['kafka']}"
        assert wait_for_kafka(KafkaConnection(address), seconds=90), f"Kafka did not start:\n{tail(log)}"
        if partitions is not None:
            create_topics(KafkaConnection(address), partitions)
        yield address
    finally:
        terminate(child, seconds=program.stop_seconds)
