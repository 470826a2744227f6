"""Runs the real processor in processes that can be killed, and reads everything that the log then holds."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from subprocess import Popen
from threading import Event, Thread
from typing import Any, TypeVar

import psutil
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from deploy.local.processes import Program, spawn, tail, terminate
from services.processor.service import engine_config
from services.processor.settings import ProcessorSettings
from shared.adapters.kafka import to_record
from shared.records import Record
from shared.stream.config import EngineConfig
from shared.topics import TOPICS
from tests.fault.oracle import LogContents, violations
from tests.fault.workload import LoadGenerator, history

ROOT = Path(__file__).resolve().parents[2]
SHORT_TIMEOUTS = {"session_timeout": 2.0, "transaction_timeout": 1.5}
SHIPPED_TIMEOUTS: dict[str, float] = {}
CALL_S = 2.0
T = TypeVar("T")


@dataclass(frozen=True)
class ProcessorRig:
    """The topics of one processor application under a prefix, on a shared broker."""

    kafka: str
    name: str
    partitions: int = 2
    create_time: bool = False
    """Whether writers choose the append times of the inputs."""

    @property
    def prefix(self) -> str:
        return f"{self.name}."

    def config(self, instance: str, **changes: Any) -> EngineConfig:
        """Return the shipped configuration with prefixed topic names."""
        settings = ProcessorSettings(
            kafka_bootstrap_servers=self.kafka, instance=instance, partitions=self.partitions
        )
        shipped = engine_config(settings)
        return replace(
            shipped,
            application=self.name,
            inputs=tuple(self.prefix + topic for topic in shipped.inputs),
            changelog=self.prefix + shipped.changelog,
            dead_letters=self.prefix + shipped.dead_letters,
            outputs=frozenset(self.prefix + topic for topic in shipped.outputs),
            numbered_outputs=tuple(self.prefix + topic for topic in shipped.numbered_outputs),
            require_append_time=not self.create_time,
            **changes,
        )

    def create(self) -> ProcessorRig:
        """Create the topics as the topics job does, except for `create_time`."""
        stamp = {"message.timestamp.type": "CreateTime", "retention.ms": "-1"} if self.create_time else {}
        inputs = engine_config(ProcessorSettings()).inputs
        wanted = [
            NewTopic(
                self.prefix + name,
                self.partitions,
                1,
                config=TOPICS[name].broker_config() | (stamp if name in inputs else {}),
            )
            for name in self._topics()
        ]
        admin = AdminClient({"bootstrap.servers": self.kafka})
        for future in admin.create_topics(wanted).values():
            future.result()
        return self

    def read_log(self, seconds: float = 30.0) -> LogContents:
        """Return all committed records. Raises `AssertionError` if a transaction stays open for this long."""
        records: dict[str, list[Record]] = {name: [] for name in self._topics()}
        for record in self._read(seconds):
            name = record.topic.removeprefix(self.prefix)
            records[name].append(replace(record, topic=name))
        shipped = engine_config(ProcessorSettings())
        dead = [replace(r, headers=self._without_prefix(r)) for r in records.pop(shipped.dead_letters)]
        changelog = records.pop(shipped.changelog)
        return LogContents(records, dead, changelog)

    def consumed(self) -> bool:
        """Return whether the group has committed the ends of all inputs."""
        places = self._places(self.config("any").inputs)

        def at_their_ends(reader: Consumer) -> bool:
            committed = [max(0, place.offset) for place in reader.committed(places, timeout=CALL_S)]
            return committed == _ends(reader, places)

        return self._query(at_their_ends, False)

    def has_no_open_transaction(self) -> bool:
        """Return whether readers of committed records can reach the end of every topic."""
        places = self._places([self.prefix + topic for topic in self._topics()])
        stable = self._query(lambda reader: _ends(reader, places), list[int]())
        return stable == self._query(lambda reader: _ends(reader, places), [0], "read_uncommitted")

    def changelog_end(self) -> int:
        """Return the sum of the changelog's end offsets, which grows with every attempt to commit."""
        places = self._places([self.config("any").changelog])
        return self._query(lambda reader: sum(_ends(reader, places)), 0, "read_uncommitted")

    def _query(self, query: Callable[[Consumer], T], default: T, isolation: str = "read_committed") -> T:
        """Ask the broker. Returns `default` if it is down or undecided."""
        settings = {"bootstrap.servers": self.kafka, "group.id": self.name, "log_level": 2}
        reader = Consumer(settings | {"isolation.level": isolation})
        try:
            return query(reader)
        except KafkaException:
            return default
        finally:
            reader.close()

    def _places(self, topics: Iterable[str]) -> list[TopicPartition]:
        return [TopicPartition(topic, n) for topic in topics for n in range(self.partitions)]

    def _topics(self) -> list[str]:
        shipped = engine_config(ProcessorSettings())
        return [*shipped.inputs, *sorted(shipped.outputs), shipped.changelog, shipped.dead_letters]

    def _without_prefix(self, letter: Record) -> tuple[tuple[str, bytes], ...]:
        prefix = self.prefix.encode()
        return tuple((n, v.removeprefix(prefix) if n == "dl_topic" else v) for n, v in letter.headers)

    def _read(self, seconds: float) -> Iterator[Record]:
        settings = {
            "bootstrap.servers": self.kafka,
            "group.id": f"{self.name}-oracle",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 50,
            "log_level": 2,
        }
        ends = Consumer(settings | {"isolation.level": "read_uncommitted"})
        reader = Consumer(settings | {"isolation.level": "read_committed"})
        places = [
            TopicPartition(self.prefix + t, n, 0) for t in self._topics() for n in range(self.partitions)
        ]
        left = {(p.topic, p.partition): ends.get_watermark_offsets(p, timeout=10)[1] for p in places}
        left = {place: high for place, high in left.items() if high > 0}
        reader.assign(places)
        deadline = time.monotonic() + seconds
        try:
            while left:
                assert time.monotonic() < deadline, f"a transaction stays open before {left}"
                for message in reader.consume(1_000, 0.05):
                    at = message.offset() or 0
                    if message.error() is None:
                        yield to_record(message)
                        at += 1
                    place = (str(message.topic()), int(message.partition() or 0))
                    if at >= left.get(place, at + 1):
                        del left[place]
        finally:
            ends.close()
            reader.close()


def _ends(reader: Consumer, places: Iterable[TopicPartition]) -> list[int]:
    """Return end offsets; for a reader of committed records, where the first open transaction begins."""
    return [reader.get_watermark_offsets(place, timeout=CALL_S)[1] for place in places]


class ProcessorGroup:
    """Processes of one processor: starts, kills and stops them by pid, and counts the kills."""

    def __init__(self, rig: ProcessorRig, folder: Path) -> None:
        self.rig = rig
        self.folder = folder
        self.load = LoadGenerator(rig.kafka, rig.prefix)
        self.kills = 0
        self.violation_count = 0
        self._started: list[tuple[Popen[bytes], Path]] = []

    def state(self, instance: str = "one") -> Path:
        """Return the folder of an instance's stores, which has a folder per partition."""
        return self.folder / "state" / instance

    def start(
        self, instance: str = "one", *, timeouts: Mapping[str, float] = SHORT_TIMEOUTS, **options: Any
    ) -> Popen[bytes]:
        """Start a process. `options` are those of `processor_worker`."""
        config = self.rig.config(instance, slice_records=options.pop("slice_records", 40), **timeouts)
        connection = {"servers": config.kafka.servers, "namespace": config.kafka.namespace}
        engine = asdict(config) | {"outputs": sorted(config.outputs), "kafka": connection}
        engine.pop("dead_letter_limit")
        name = f"{len(self._started)}-{instance}"
        options = {
            "engine": engine, "prefix": self.rig.prefix, "folder": str(self.state(instance)),
        } | options  # fmt: skip
        log = self.folder / f"{name}.log"
        program = Program(
            name=name,
            argv=[sys.executable, "-m", "tests.fault.processor_worker", json.dumps(options)],
            cwd=ROOT,
        )
        child = spawn(program, folder=self.folder / "programs", log=log)
        self._started.append((child, log))
        return child

    def run_until_killed(self, instance: str = "one", seconds: float = 40.0, **options: Any) -> None:
        """Run a process until it kills itself, as its options say."""
        child = self.start(instance, **options)
        assert child.wait(seconds) == -signal.SIGKILL, self.logs()
        self.kills += 1

    def kill(self, child: Popen[bytes]) -> None:
        """Kill a process at an arbitrary moment."""
        child.kill()
        assert child.wait(10) == -signal.SIGKILL, self.logs()
        self.kills += 1

    def stop(self, child: Popen[bytes], seconds: float = 20.0) -> None:
        """Stop a process gracefully. SIGTERM itself ends one that has no handler for it yet."""
        child.terminate()
        assert child.wait(seconds) in (0, -signal.SIGTERM), self.logs()

    def run_to_end(self, instance: str = "one", seconds: float = 60.0, **options: Any) -> None:
        """Run a process until all inputs are consumed, then stop it."""
        child = self.start(instance, **options)
        self.until_consumed(seconds, child)
        self.stop(child)

    def until_consumed(self, seconds: float = 60.0, *children: Popen[bytes]) -> None:
        """Wait until all inputs are consumed. Fails if one of `children` ends before."""

        def consumed() -> bool:
            assert all(child.poll() is None for child in children), self.logs()
            return self.rig.consumed()

        self.until(consumed, "all inputs are consumed", seconds)

    def until(self, condition: Callable[[], bool], description: str, seconds: float = 30.0) -> None:
        """Wait until a condition holds, checking five times a second."""
        deadline, pause = time.monotonic() + seconds, Event()
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s: {description}\n{self.logs()}"
            pause.wait(0.2)

    def violations(self) -> list[str]:
        """Return what the oracle finds; the test fails if that is anything."""
        found = self.expected_violations()
        self.violation_count += len(found)
        return found

    def expected_violations(self) -> list[str]:
        """Return what the oracle finds about a processor that is broken on purpose."""
        return violations(self.rig.read_log(), self.load.sent())

    def logs(self) -> str:
        """Return the end of each process's log."""
        return "\n".join(
            f"--- {log.name}, status {child.poll()}\n{tail(log, 12)}" for child, log in self._started
        )

    def log_of(self, child: Popen[bytes]) -> str:
        """Return the whole log of one process."""
        return next(log.read_text(errors="replace") for started, log in self._started if started is child)

    def end(self) -> None:
        """Kill the processes that are left. A frozen one must be resumed for that."""
        for child, _ in self._started:
            if child.poll() is None:
                os.kill(child.pid, signal.SIGCONT)
                child.kill()
                terminate(child, seconds=10)


@contextmanager
def processor_group(
    rig: ProcessorRig, folder: Path, record: Callable[[str, int], None]
) -> Iterator[ProcessorGroup]:
    """Provide processes of one rig and leave none behind. Kills and violations are passed to `record`."""
    group = ProcessorGroup(rig, folder)
    try:
        yield group
    finally:
        group.end()
        record("kills", group.kills)
        record("violations", group.violation_count)


@contextmanager
def under_load(workers: ProcessorGroup, seed: int) -> Iterator[None]:
    """Send a few records every tenth of a second while the block runs."""
    stop = Event()

    def send() -> None:
        part = 0
        while not stop.wait(0.1):
            workers.load.send(history(seed * 1_000 + part, 4, name=f"load{part}"))
            part += 1

    sender = Thread(target=send, name="load")
    sender.start()
    try:
        yield
    finally:
        stop.set()
        sender.join()
        workers.load.flush()


def is_frozen(child: Popen[bytes]) -> bool:
    """Return whether a process is stopped by SIGSTOP."""
    return psutil.Process(child.pid).status() == psutil.STATUS_STOPPED
