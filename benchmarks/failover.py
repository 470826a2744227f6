"""Cost of a kill -9 with a transaction open, for the other processes: `python -m benchmarks.failover`.

In each round, two workers with the shipped settings share four partitions. One kills itself between sending a slice,
offsets included, and committing it. Measured from that moment:

- `blocked_ms`: how long a reader of committed records is blocked in a partition that others keep writing to.
- `failover_ms`: when the surviving worker's first output is readable in each of the dead worker's partitions.

The rounds are repeated with a broker that looks for timed-out transactions every second, as the local stack's does,
and with one that looks every ten seconds, Kafka's default. The rounds of one broker run in parallel, because they
mostly wait, with their kills spread over the broker's interval. The last line of output is JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.machine import machine
from benchmarks.processor.kafka_client import KafkaClient, WrongResult
from deploy.local.kafka import prepare_kafka, wait_for_kafka
from deploy.local.kafka_jars import ensure_jars
from deploy.local.ports import HOST, choose_ports
from deploy.local.processes import Program, spawn, tail, terminate
from shared.kafka_connection import KafkaConnection

PARTITIONS = 4
WRITE_INTERVAL_S = 0.005
STEADY_S = 3.0
TIMEOUT_S = 60.0
CLEANUP_INTERVAL = "transaction.abort.timed.out.transaction.cleanup.interval.ms"
CREATE_TIME = {"message.timestamp.type": "CreateTime"}

app = typer.Typer(add_completion=False)


@app.command()
def main(
    rounds: Annotated[int, typer.Option(help="Number of kills per broker.", min=1)] = 5,
    intervals: Annotated[
        str, typer.Option(help="Cleanup intervals of the brokers in ms, comma-separated.")
    ] = "1000,10000",
) -> None:
    """Measure, and print one JSON line."""
    figures: dict[str, Any] = {}
    for interval_ms in (int(each) for each in intervals.split(",")):
        with tempfile.TemporaryDirectory() as folder, start_broker(Path(folder), interval_ms) as kafka:
            results = run_rounds(kafka, Path(folder), rounds, interval_ms / 1000)
        name = f"cleanup_interval_{interval_ms}_ms"
        figures[name] = {
            figure: _summarize([result[figure] for result in results])
            for figure in ("blocked_ms", "failover_ms")
        }
        print(f"{name}: {figures[name]}", file=sys.stderr)
    print(json.dumps({"bench": "failover", "ratios": {}, "figures": figures, "machine": machine()}))


def run_rounds(kafka: str, folder: Path, rounds: int, interval_s: float) -> list[dict[str, float]]:
    """Run the rounds in parallel and return the figures of each."""
    log = KafkaClient(kafka)

    def run(number: int) -> dict[str, float]:
        return run_round(log, folder, f"failover-{number}", number * interval_s / rounds)

    try:
        with ThreadPoolExecutor(rounds) as pool:
            return list(pool.map(run, range(rounds)))
    finally:
        log.close()


def _summarize(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values)), "least": round(min(values)), "most": round(max(values)),
        "n": len(values),
    }  # fmt: skip


@contextmanager
def start_broker(folder: Path, interval_ms: int) -> Iterator[str]:
    """Start a Kafka broker with this cleanup interval and return its address."""
    ports = choose_ports({"kafka": 0, "controller": 0})
    program = prepare_kafka(
        libs=ensure_jars(Path(".loopwright") / "kafka", lambda text: print(text, file=sys.stderr)),
        data=folder / "data",
        port=ports["kafka"],
        controller_port=ports["controller"],
    )
    config = folder / "data" / "server.properties"
    # If a setting occurs twice, the last one counts.
    config.write_text(f"{config.read_text()}\n{CLEANUP_INTERVAL}={interval_ms}\n")
    child = spawn(program, folder=folder, log=folder / "kafka.log")
    try:
        address = f"{HOST}:{ports['kafka']}"
        if not wait_for_kafka(KafkaConnection(address), seconds=90):
            sys.exit(f"Kafka did not start:\n{tail(folder / 'kafka.log')}")
        yield address
    finally:
        terminate(child, seconds=program.stop_seconds)


def run_round(log: KafkaClient, folder: Path, name: str, delay_s: float) -> dict[str, float]:
    """Return the figures of one kill, which is delayed by `delay_s`."""
    log.create({f"{name}.in": {}, f"{name}.dead": {}, f"{name}.out": CREATE_TIME}, PARTITIONS)
    log.create({f"{name}.changelog": {"cleanup.policy": "compact"}}, PARTITIONS)
    folders = {instance: folder / name / instance for instance in ("a", "b")}
    victim = folders["a"]
    with start_worker(log, name, "a", folders["a"]), start_worker(log, name, "b", folders["b"]):
        _wait_until(
            lambda: all(len(_owned_partitions(each)) == PARTITIONS // 2 for each in folders.values()),
            "both workers own their partitions",
        )
        traffic = Traffic(log, name, _owned_partitions(victim))
        with traffic.write(), traffic.read():
            _wait_until(lambda: len(traffic.read_partitions) == PARTITIONS, "each partition has an output")
            time.sleep(STEADY_S + delay_s)
            (victim / "die").touch()
            _wait_until((victim / "died").exists, "the kill")
            died_at = float((victim / "died").read_text())
            _wait_until(lambda: traffic.has_failed_over(died_at), "the failover")
            time.sleep(0.5)  # the records that are read last may have been blocked longest
    return traffic.figures(died_at)


@contextmanager
def start_worker(log: KafkaClient, name: str, instance: str, folder: Path) -> Iterator[None]:
    """Start a worker, and stop it at the end if it is still alive."""
    folder.mkdir(parents=True)
    arguments = json.dumps({"kafka": log.address, "name": name, "instance": instance, "folder": str(folder)})
    argv = [sys.executable, "-m", "benchmarks.failover_worker", arguments]
    program = Program(f"{name}-{instance}", argv, {}, cwd=Path())
    child = spawn(program, folder=folder, log=folder / "log")
    try:
        yield
    finally:
        terminate(child, seconds=15)


@dataclass(frozen=True)
class ReadRecord:
    """A record of the output topic. `worker` is None for the records that belong to no transaction."""

    partition: int
    worker: str | None
    written_at: float
    read_at: float


class Traffic:
    """Writer of all partitions, and reader of their committed output records.

    Args:
        log: The broker.
        name: Prefix of the round's topics.
        victim_partitions: The partitions of the worker that is killed.

    """

    def __init__(self, log: KafkaClient, name: str, victim_partitions: list[int]) -> None:
        self._log, self._name, self._victim_partitions = log, name, victim_partitions
        self._done = threading.Event()
        self._records: list[ReadRecord] = []
        self.read_partitions: set[int] = set()
        """Partitions in which a record was read."""

    @contextmanager
    def write(self) -> Iterator[None]:
        """Write inputs for the workers, and output records outside of any transaction."""
        with self._run_thread(self._write):
            yield

    @contextmanager
    def read(self) -> Iterator[None]:
        """Read the output topic."""
        with self._run_thread(self._read):
            yield

    @contextmanager
    def _run_thread(self, target: Callable[[], None]) -> Iterator[None]:
        thread = threading.Thread(target=target)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()

    def _write(self) -> None:
        producer, number = self._log.producer(linger_ms=0), 0
        while not self._done.wait(WRITE_INTERVAL_S):
            number += 1
            value, key, partition = str(time.time()).encode(), b"k%d" % number, number % PARTITIONS
            producer.produce(f"{self._name}.in", value, key, partition)
            producer.produce(f"{self._name}.out", value, b"", partition)
            producer.poll(0)
        producer.flush(10)

    def _read(self) -> None:
        reader = self._log.open_reader([f"{self._name}.out"])
        while not self._done.is_set():
            for message in reader.consume(1_000, 0.005):
                if message.error() is None:
                    partition, key, value = message.partition(), message.key(), message.value()
                    assert partition is not None and value is not None
                    worker = key.decode() if isinstance(key, bytes) and key else None
                    self._records.append(ReadRecord(partition, worker, float(value), time.time()))
                    self.read_partitions.add(partition)
        reader.close()

    def _failover_times(self, died_at: float) -> dict[int, float]:
        """Return when the survivor's first output was read, by partition of the victim."""
        times: dict[int, float] = {}
        for record in list(self._records):
            if (
                record.worker == "b"
                and record.read_at > died_at
                and record.partition in self._victim_partitions
            ):
                times.setdefault(record.partition, record.read_at)
        return times

    def has_failed_over(self, died_at: float) -> bool:
        """Return whether the survivor's output was read in each of the victim's partitions."""
        return self._failover_times(died_at).keys() == set(self._victim_partitions)

    def figures(self, died_at: float) -> dict[str, float]:
        """Return the figures of the round, in milliseconds.

        Raises:
            WrongResult: if records outside of transactions were not read.

        """
        delays: dict[bool, list[float]] = {True: [], False: []}
        for record in self._records:
            if record.worker is None and record.written_at > died_at - 0.2:
                is_victim = record.partition in self._victim_partitions
                delays[is_victim].append(record.read_at - record.written_at)
        if not delays[True] or not delays[False]:
            raise WrongResult(f"{self._name}: no records outside of transactions were read")
        return {
            "blocked_ms": 1000 * max(delays[True]),
            "others_blocked_ms": 1000 * max(delays[False]),
            "failover_ms": 1000 * (max(self._failover_times(died_at).values()) - died_at),
        }


def _owned_partitions(folder: Path) -> list[int]:
    path = folder / "owned.json"
    return list(json.loads(path.read_text())) if path.exists() else []


def _wait_until(condition: Callable[[], bool], description: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise WrongResult(f"not within {TIMEOUT_S:.0f} s: {description}")
        time.sleep(0.05)


if __name__ == "__main__":
    app()
