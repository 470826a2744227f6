"""Measure the feedback API next to plain handlers; print a table and a closing JSON line.

Each arm is one process with uvloop and httptools, on one Kafka and one Redis that all arms share. Every round measures
every arm at every number of clients, in an order that changes with the round. A ratio is of two arms in one round; its
median over the rounds counts. Every 202 of the feedback API is counted in the log afterwards.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from tenacity import Retrying, retry_if_not_result, stop_after_delay, wait_fixed

from benchmarks.feedback.handlers import TOPIC
from benchmarks.machine import machine
from benchmarks.processor.broker import running_broker
from benchmarks.processor.kafka_client import KafkaClient
from deploy.local.ports import HOST, choose_ports
from deploy.local.processes import Program, spawn, tail, terminate
from deploy.local.redis import prepare_redis, wait_for_redis
from shared.adapters.topic_admin import create_topics
from shared.kafka_connection import KafkaConnection

PARTITIONS = 6
CLIENTS = (1, 16, 64)
ARMS = ("feedback", "plain", "empty")
WARM_UP_S = 1.0
OUTPUT = Path(__file__).parents[1] / "feedback.json"
PSEUDONYM_KEY = "a key for this benchmark only, of no value"

Cell = dict[str, float]


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the median counts.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.5, help="Seconds per cell.")] = 5.0,
    arms: Annotated[str, typer.Option(help="Arms, separated by commas.")] = ",".join(ARMS),
    output: Annotated[Path, typer.Option(help="File for the JSON.")] = OUTPUT,
) -> None:
    """Measure the feedback API next to plain handlers."""
    chosen = arms.split(",")
    with tempfile.TemporaryDirectory() as name, ExitStack() as running:
        folder = Path(name)
        kafka = running.enter_context(running_broker(folder / "kafka")).address
        redis = running.enter_context(running_redis(folder / "redis"))
        create_topics(KafkaConnection(kafka), PARTITIONS)
        client = KafkaClient(kafka)
        client.create({TOPIC: {}}, PARTITIONS)
        env = {"KAFKA_BOOTSTRAP_SERVERS": kafka, "REDIS_URL": redis, "LOOPWRIGHT_PARTITIONS": str(PARTITIONS)}
        ports = {arm: running.enter_context(running_arm(arm, folder / arm, env)) for arm in chosen}
        cells = [measure_round(number, ports, client, seconds) for number in range(rounds)]
    report = summarise(cells, chosen) | {"rounds": rounds, "seconds": seconds, "machine": machine()}
    print_table(report)
    output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


@contextmanager
def running_redis(folder: Path) -> Iterator[str]:
    """Run Redis as the local stack does; yield its URL."""
    port = choose_ports({"redis": 0})["redis"]
    program = prepare_redis(data=folder / "data", port=port)
    child = spawn(program, folder=folder, log=folder / "redis.log")
    try:
        url = f"redis://{HOST}:{port}/0"
        assert wait_for_redis(url, seconds=20), tail(folder / "redis.log")
        yield url
    finally:
        terminate(child, seconds=program.stop_seconds)


@contextmanager
def running_arm(arm: str, folder: Path, env: Mapping[str, str]) -> Iterator[int]:
    """Run the server of an arm; yield its port."""
    port = choose_ports({arm: 0})[arm]
    if arm == "feedback":
        argv = [sys.executable, "-m", "services.feedback"]
        env = {
            **env,
            "LOOPWRIGHT_FEEDBACK_PORT": str(port),
            "LOOPWRIGHT_DATA_DIR": str(folder.resolve() / "data"),
            "LOOPWRIGHT_PSEUDONYM_KEY": PSEUDONYM_KEY,
        }
    else:
        argv = [
            sys.executable, "-m", "uvicorn", f"benchmarks.feedback.handlers:{arm}", "--host", HOST,
            "--port", str(port), "--no-access-log", "--log-level", "warning",
        ]  # fmt: skip
    log = folder / f"{arm}.log"
    child = spawn(Program(name=arm, argv=argv, env=env, cwd=Path.cwd()), folder=folder, log=log)
    try:
        ready = Retrying(
            stop=stop_after_delay(60), wait=wait_fixed(0.2), retry=retry_if_not_result(bool),
            retry_error_callback=lambda _: False,
        )  # fmt: skip
        assert ready(is_ready, port), f"{arm} did not become ready:\n{tail(log)}"
        yield port
    finally:
        terminate(child, seconds=20)


def is_ready(port: int) -> bool:
    """Return whether a server answers that it is ready."""
    try:
        return httpx.get(f"http://{HOST}:{port}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def measure_round(
    number: int, ports: Mapping[str, int], kafka: KafkaClient, seconds: float
) -> dict[str, dict[int, Cell]]:
    """Measure every arm at every number of clients once."""
    found: dict[str, dict[int, Cell]] = {arm: {} for arm in ports}
    order = [*ports][number % len(ports) :] + [*ports][: number % len(ports)]
    for clients in CLIENTS:
        for arm in order:
            load(ports[arm], clients, WARM_UP_S)
            before = sum(kafka.ends("feedback.events").values())
            cell = load(ports[arm], clients, seconds)
            written = sum(kafka.ends("feedback.events").values()) - before
            assert not cell["failed"], f"{arm}: {cell['failed']} requests were refused"
            assert arm != "feedback" or written == cell["requests"], (
                f"{written} of {cell['requests']} are durable"
            )
            found[arm][clients] = cell
            print(f"round {number + 1}  {arm:9} {clients:3} clients  {cell}", file=sys.stderr)
    return found


def load(port: int, clients: int, seconds: float) -> Cell:
    """Run the clients in a process of their own; return their figures."""
    argv = [
        sys.executable, "-m", "benchmarks.feedback.load", "--port", str(port), "--clients", str(clients),
        "--seconds", str(seconds),
    ]  # fmt: skip
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True, timeout=seconds + 60)
    cell: Cell = json.loads(done.stdout)
    return cell


def summarise(rounds: list[dict[str, dict[int, Cell]]], arms: list[str]) -> dict[str, Any]:
    """Return the medians of all cells, and of the ratios of the feedback API to the plain handler."""
    figures = {
        arm: {
            str(clients): {
                name: statistics.median(each[arm][clients][name] for each in rounds)
                for name in ("per_s", "p50_ms", "p99_ms")
            }
            for clients in CLIENTS
        }
        for arm in arms
    }
    ratios = {
        f"{name} to {other} at {clients} clients": round(
            statistics.median(
                each["feedback"][clients][name] / each[other][clients][name] for each in rounds
            ),
            3,
        )
        for other in arms
        if other != "feedback" and "feedback" in arms
        for clients in CLIENTS
        for name in ("per_s", "p99_ms")
    }
    return {"bench": "feedback", "figures": figures, "ratios": ratios}


def print_table(report: Mapping[str, Any]) -> None:
    """Print the figures and ratios."""
    print(f"{'':10}{'clients':>8}{'durable/s':>11}{'p50 ms':>9}{'p99 ms':>9}")
    for arm, by_clients in report["figures"].items():
        for clients, cell in by_clients.items():
            print(f"{arm:10}{clients:>8}{cell['per_s']:>11,.0f}{cell['p50_ms']:>9.2f}{cell['p99_ms']:>9.2f}")
    for name, ratio in report["ratios"].items():
        print(f"{name}: {ratio:.2f}")


if __name__ == "__main__":
    typer.run(main)
