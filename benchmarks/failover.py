"""What a process that is killed with a transaction open costs the others: `python -m benchmarks.failover`.

In each round two processes with the shipped settings share four partitions, and one kills itself (SIGKILL) between
sending a slice with its positions and committing it. Measured from that moment: how long a reader of committed
records is held up in a partition that others go on writing to (`blocked`), and when each partition of the dead one
has an output of its successor that can be read (`takeover`). Once against a broker that looks for timed-out
transactions every second, as the local stack's does, and once every ten seconds, which is Kafka's default. Rounds run
side by side (they wait, most of the time), their kills spread over the broker's interval. Ends in one JSON line.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.machine import machine
from benchmarks.processor.kafka_client import Log, WrongResult
from deploy.local.kafka import prepare_kafka, wait_for_kafka
from deploy.local.kafka_jars import ensure_jars
from deploy.local.ports import HOST, choose
from deploy.local.processes import Program, end, spawn, tail

PARTITIONS = 4
PACE_S = 0.005
STEADY_S = 3.0
LONGEST_S = 60.0
SCAN = "transaction.abort.timed.out.transaction.cleanup.interval.ms"
CREATED = {"message.timestamp.type": "CreateTime"}

app = typer.Typer(add_completion=False)


@app.command()
def main(
    rounds: Annotated[int, typer.Option(help="Kills per broker.", min=1)] = 5,
    scans: Annotated[
        str, typer.Option(help="How often the broker looks, in ms; with commas.")
    ] = "1000,10000",
) -> None:
    """Measures, and prints one JSON line."""
    figures: dict[str, Any] = {}
    for scan in (int(each) for each in scans.split(",")):
        with tempfile.TemporaryDirectory() as folder, broker(Path(folder), scan) as kafka:
            found = side_by_side(kafka, Path(folder), rounds, scan / 1000)
        figures[f"scan_{scan}_ms"] = {
            name: _told([each[name] for each in found]) for name in ("blocked_ms", "takeover_ms")
        }
        print(f"scan {scan} ms: {figures[f'scan_{scan}_ms']}", file=sys.stderr)
    print(json.dumps({"bench": "takeover", "ratios": {}, "figures": figures, "machine": machine()}))


def side_by_side(kafka: str, folder: Path, rounds: int, scan_s: float) -> list[dict[str, float]]:
    """What each round found."""
    log = Log(kafka)
    try:
        with ThreadPoolExecutor(rounds) as pool:
            return list(
                pool.map(
                    lambda n: one_round(log, folder, f"takeover-{n}", n * scan_s / rounds), range(rounds)
                )
            )
    finally:
        log.close()


def _told(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values)), "least": round(min(values)), "most": round(max(values)),
        "n": len(values),
    }  # fmt: skip


@contextmanager
def broker(folder: Path, scan_ms: int) -> Iterator[str]:
    """One of its own, which looks for timed-out transactions so often."""
    ports = choose({"kafka": 0, "controller": 0})
    program = prepare_kafka(
        libs=ensure_jars(Path(".loopwright") / "kafka", lambda text: print(text, file=sys.stderr)),
        data=folder / "data",
        port=ports["kafka"],
        controller_port=ports["controller"],
    )
    config = folder / "data" / "server.properties"
    # The last of two settings of one name counts.
    config.write_text(f"{config.read_text()}\n{SCAN}={scan_ms}\n")
    child = spawn(program, folder=folder, log=folder / "kafka.log")
    try:
        address = f"{HOST}:{ports['kafka']}"
        if not wait_for_kafka(address, seconds=90):
            sys.exit(f"Kafka did not start:\n{tail(folder / 'kafka.log')}")
        yield address
    finally:
        end(child, seconds=program.stop_seconds)


def one_round(log: Log, folder: Path, name: str, later_s: float) -> dict[str, float]:
    """Milliseconds from the kill, which comes `later_s` later than it might."""
    log.create({f"{name}.in": {}, f"{name}.dead": {}, f"{name}.out": CREATED}, PARTITIONS)
    log.create({f"{name}.changelog": {"cleanup.policy": "compact"}}, PARTITIONS)
    homes = {instance: folder / name / instance for instance in ("a", "b")}
    with worker(log, name, "a", homes["a"]), worker(log, name, "b", homes["b"]):
        _until(lambda: all(len(_owned(home)) == PARTITIONS // 2 for home in homes.values()), "both at work")
        scene = Scene(log, name, _owned(homes["a"]))
        with scene.writing(), scene.reading():
            _until(lambda: len(scene.spoke) == PARTITIONS, "an output in every partition")
            time.sleep(STEADY_S + later_s)
            (homes["a"] / "die").touch()
            _until((homes["a"] / "died").exists, "the kill")
            died = float((homes["a"] / "died").read_text())
            _until(lambda: scene.taken_over(died), "the takeover")
            time.sleep(0.5)  # what came last may have been held up longest
    return scene.figures(died)


@contextmanager
def worker(log: Log, name: str, instance: str, home: Path) -> Iterator[None]:
    """One process, stopped at the end if it still lives."""
    home.mkdir(parents=True)
    told = json.dumps({"kafka": log.kafka, "name": name, "instance": instance, "folder": str(home)})
    argv = [sys.executable, "-m", "benchmarks.failover_worker", told]
    child = spawn(Program(f"{name}-{instance}", argv, {}, cwd=Path()), folder=home, log=home / "log")
    try:
        yield
    finally:
        end(child, seconds=15)


class Scene:
    """Writes to the partitions, and watches what a reader of committed records sees there."""

    def __init__(self, log: Log, name: str, victim: list[int]) -> None:
        self._log, self._name, self._victim = log, name, victim
        self._done = threading.Event()
        self.spoke: dict[int, float] = {}
        """When something was last read, by partition."""
        self._seen: list[tuple[int, str, float, float]] = []
        """Partition; who wrote it, "" for what is in no transaction; when it was written; when it was read."""

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Inputs for the engines, and records beside their outputs that belong to no transaction."""
        thread = threading.Thread(target=self._write)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()

    @contextmanager
    def reading(self) -> Iterator[None]:
        thread = threading.Thread(target=self._read)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()

    def _write(self) -> None:
        producer, turn = self._log.sender(linger_ms=0), 0
        while not self._done.wait(PACE_S):
            turn += 1
            producer.produce(f"{self._name}.in", str(time.time()).encode(), b"k%d" % turn, turn % PARTITIONS)
            producer.produce(f"{self._name}.out", str(time.time()).encode(), b"", turn % PARTITIONS)
            producer.poll(0)
        producer.flush(10)

    def _read(self) -> None:
        reader = self._log.follow([f"{self._name}.out"])
        while not self._done.is_set():
            for message in reader.consume(1_000, 0.005):
                if message.error() is None:
                    partition, key, value = message.partition(), message.key(), message.value()
                    assert partition is not None and value is not None
                    who = key.decode() if isinstance(key, bytes) else ""
                    self.spoke[partition] = time.time()
                    self._seen.append((partition, who, float(value), time.time()))
        reader.close()

    def _again(self, died: float) -> dict[int, float]:
        again: dict[int, float] = {}
        for partition, who, _, read in list(self._seen):
            if who == "b" and read > died and partition in self._victim:
                again.setdefault(partition, read)
        return again

    def taken_over(self, died: float) -> bool:
        """Whether each partition of the dead has an output of the other."""
        return self._again(died).keys() == set(self._victim)

    def figures(self, died: float) -> dict[str, float]:
        """Raises `WrongResult` where the reader missed what nobody held up."""
        held = [read - written for partition, who, written, read in self._seen
                if not who and partition in self._victim and written > died - 0.2]  # fmt: skip
        others = [read - written for partition, who, written, read in self._seen
                  if not who and partition not in self._victim and written > died - 0.2]  # fmt: skip
        if not held or not others:
            raise WrongResult(f"{self._name}: nothing was read beside the engines' outputs")
        return {
            "blocked_ms": 1000 * max(held),
            "others_blocked_ms": 1000 * max(others),
            "takeover_ms": 1000 * (max(self._again(died).values()) - died),
        }


def _owned(home: Path) -> list[int]:
    path = home / "owned.json"
    return list(json.loads(path.read_text())) if path.exists() else []


def _until(holds: Any, what: str) -> None:
    deadline = time.monotonic() + LONGEST_S
    while not holds():
        if time.monotonic() > deadline:
            raise WrongResult(f"not in {LONGEST_S:.0f} s: {what}")
        time.sleep(0.05)


if __name__ == "__main__":
    app()
