"""A single Apache Kafka broker (KRaft mode) as a child process on the loopback interface."""

from __future__ import annotations

import base64
import subprocess
import uuid
from pathlib import Path

from confluent_kafka import KafkaException
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from deploy.local.errors import StackError
from deploy.local.java import find_java
from deploy.local.ports import HOST
from deploy.local.processes import Program
from shared.adapters.kafka_clients import build_admin
from shared.kafka_connection import KafkaConnection

HEAP = "512m"

# Settings for one broker on a developer's machine. The topics job sets retention and timestamps per topic.
SETTINGS = """\
process.roles=broker,controller
node.id=1
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
auto.create.topics.enable=false

offsets.topic.replication.factor=1
offsets.topic.num.partitions=6
offsets.retention.minutes=525600
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=6
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1

# Assign partitions to a joining consumer at once, and allow short session timeouts, so that a dead one is noticed soon.
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=1000
# The open transaction of a killed process blocks readers until it is aborted, so check every second.
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000

# The cleaner's default buffer would take a quarter of the heap.
log.cleaner.dedupe.buffer.size=33554432
num.network.threads=2
num.io.threads=4
background.threads=4
"""

LOGGING = """\
status=error
appender.console.type=Console
appender.console.name=console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d{ISO8601} %p %m (%c{1})%n
rootLogger.level=info
rootLogger.appenderRef.console.ref=console
"""


def java_command(java: str, libs: Path, main: str, *arguments: str) -> list[str]:
    """Return the command that runs one of Kafka's main classes."""
    # Without the optimizing compiler, which took a quarter of a core during the first minute of a broker.
    options = [f"-Xmx{HEAP}", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    # Java itself expands the wildcard. A class path cannot contain a colon.
    return [java, *options, "-cp", f"{libs.resolve()}/*", main, *arguments]


def server_properties(*, port: int, controller_port: int) -> str:
    """Return the broker's server.properties.

    The broker runs in its data folder, because `log.dirs` cannot express every path.
    """
    return (
        f"{SETTINGS}\n"
        f"listeners=PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{controller_port}\n"
        f"advertised.listeners=PLAINTEXT://{HOST}:{port}\n"
        f"controller.quorum.voters=1@{HOST}:{controller_port}\n"
        "log.dirs=log\n"
    )


def prepare_kafka(*, libs: Path, data: Path, port: int, controller_port: int) -> Program:
    """Write the broker's configuration, format its storage if it is new, and return the program that runs it.

    The ports may change between starts; the data in `data` stays readable.
    """
    java = find_java()
    data.mkdir(parents=True, exist_ok=True)
    config = data / "server.properties"
    config.write_text(server_properties(port=port, controller_port=controller_port))
    logging = data / "log4j2.properties"
    logging.write_text(LOGGING)
    if not (data / "log" / "meta.properties").exists():
        format_storage(java, libs, config)
    command = java_command(java, libs, "kafka.Kafka", str(config.resolve()))
    command[1:1] = [f"-Dlog4j2.configurationFile={logging.resolve().as_uri()}", "-Djava.awt.headless=true"]
    return Program(name="kafka", argv=command, cwd=data, stop_seconds=30)


def format_storage(java: str, libs: Path, config: Path) -> None:
    """Format an empty log folder with a new cluster id; Kafka does not start without one."""
    # Cluster ids are UUIDs in URL-safe base64. Kafka refuses an id that starts with a dash.
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")
    command = java_command(
        java, libs, "kafka.tools.StorageTool",
        "format", "--config", str(config.resolve()), "--cluster-id", cluster, "--ignore-formatted",
    )  # fmt: skip
    process = subprocess.run(command, cwd=config.parent, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        raise StackError(f"Kafka could not format its storage:\n{process.stdout}{process.stderr}".strip())


def is_ready(kafka: KafkaConnection, *, seconds: float = 5.0) -> bool:
    """Return whether a broker answers and accepts the credentials."""
    admin = build_admin(kafka, {"log_level": 0})
    try:
        return bool(admin.list_topics(timeout=seconds).brokers)
    except KafkaException:
        return False


def wait_for_kafka(kafka: KafkaConnection, *, seconds: float) -> bool:
    """Wait until a broker answers; return False if none does within `seconds`."""
    waiting = Retrying(
        stop=stop_after_delay(seconds), wait=wait_fixed(0.2), retry=retry_if_result(lambda ready: not ready)
    )
    try:
        return waiting(is_ready, kafka, seconds=2.0)
    except RetryError:
        return False
