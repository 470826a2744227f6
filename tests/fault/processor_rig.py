"""The processor's topics under a prefix, its processes, and everything that the log holds of them afterwards."""

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

from deploy.local.processes import Program, end, spawn, tail
from services.processor.service import engine_config
from services.processor.settings import ProcessorSettings
from shared.adapters.kafka import to_record
from shared.records import Record
from shared.stream.config import EngineConfig
from shared.topics import TOPICS
from tests.fault.oracle import Seen, complaints
from tests.fault.workload import Load, history

ROOT = Path(__file__).resolve().parents[2]
SHORT = {"session_timeout": 2.0, "transaction_timeout": 1.5}
SHIPPED: dict[str, float] = {}
ASK_S = 2.0
T = TypeVar("T")


@dataclass(frozen=True)
class ProcessorRig:
    """One processor application on a shared broker."""

    kafka: str
    name: str
    partitions: int = 2

    @property
    def prefix(self) -> str:
        return f"{self.name}."

    def config(self, instance: str, **changes: Any) -> EngineConfig:
        """What is shipped, under other names."""
        settings = ProcessorSettings(
            kafka_bootstrap_servers=self.kafka, processor_instance=instance, partitions=self.partitions
        )
        shipped = engine_config(settings)
        return replace(
            shipped,
            application=self.name,
            inputs=tuple(self.prefix + topic for topic in shipped.inputs),
            changelog=self.prefix + shipped.changelog,
            dead_letters=self.prefix + shipped.dead_letters,
            outputs=frozenset(self.prefix + topic for topic in shipped.outputs),
            **changes,
        )

    def create(self, *, create_time: bool = False) -> ProcessorRig:
        """The topics as the topics job makes them; with `create_time` the inputs' writers say when they wrote."""
        stamp = {"message.timestamp.type": "CreateTime", "retention.ms": "-1"} if create_time else {}
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

    def seen(self, seconds: float = 30.0) -> Seen:
        """Every committed record. Raises `AssertionError` where a transaction stays open for so long."""
        found: dict[str, list[Record]] = {name: [] for name in self._topics()}
        for record in self._read(seconds):
            name = record.topic.removeprefix(self.prefix)
            found[name].append(replace(record, topic=name))
        shipped = engine_config(ProcessorSettings())
        dead = [replace(r, headers=self._told(r)) for r in found.pop(shipped.dead_letters)]
        changelog = found.pop(shipped.changelog)
        return Seen(found, dead, changelog)

    def consumed(self) -> bool:
        """Whether the group's committed positions are where the inputs end."""
        places = self._places(self.config("any").inputs)

        def at_their_ends(reader: Consumer) -> bool:
            committed = [max(0, place.offset) for place in reader.committed(places, timeout=ASK_S)]
            return committed == _ends(reader, places)

        return self._asked(at_their_ends, False)

    def decided(self) -> bool:
        """Whether no transaction is open in any topic: readers of committed records come to the end."""
        places = self._places([self.prefix + topic for topic in self._topics()])
        stable = self._asked(lambda reader: _ends(reader, places), list[int]())
        return stable == self._asked(lambda reader: _ends(reader, places), [0], "read_uncommitted")

    def written(self) -> int:
        """The ends of the changelog, added up: they grow with each commit, and with each attempt at one."""
        places = self._places([self.config("any").changelog])
        return self._asked(lambda reader: sum(_ends(reader, places)), 0, "read_uncommitted")

    def _asked(self, question: Callable[[Consumer], T], otherwise: T, isolation: str = "read_committed") -> T:
        """`otherwise`: where the broker cannot answer, being away or undecided."""
        settings = {"bootstrap.servers": self.kafka, "group.id": self.name, "log_level": 2}
        reader = Consumer(settings | {"isolation.level": isolation})
        try:
            return question(reader)
        except KafkaException:
            return otherwise
        finally:
            reader.close()

    def _places(self, topics: Iterable[str]) -> list[TopicPartition]:
        return [TopicPartition(topic, n) for topic in topics for n in range(self.partitions)]

    def _topics(self) -> list[str]:
        shipped = engine_config(ProcessorSettings())
        return [*shipped.inputs, *sorted(shipped.outputs), shipped.changelog, shipped.dead_letters]

    def _told(self, letter: Record) -> tuple[tuple[str, bytes], ...]:
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
    """For a reader of committed records: where the first open transaction begins."""
    return [reader.get_watermark_offsets(place, timeout=ASK_S)[1] for place in places]


class Processors:
    """Starts processes of the real step on the real engine, and ends by pid those that are left. Counts the kills."""

    def __init__(self, rig: ProcessorRig, folder: Path) -> None:
        self.rig = rig
        self.folder = folder
        self.load = Load(rig.kafka, rig.prefix)
        self.kills = 0
        self.complained = 0
        self._started: list[tuple[Popen[bytes], Path]] = []

    def state(self, instance: str = "one") -> Path:
        """Where an instance keeps its stores, a folder per partition."""
        return self.folder / "state" / instance

    def start(
        self, instance: str = "one", *, timeouts: Mapping[str, float] = SHORT, **told: Any
    ) -> Popen[bytes]:
        """A process. `told`: see `processor_worker`."""
        config = self.rig.config(instance, slice_records=told.pop("slice_records", 40), **timeouts)
        words = asdict(config) | {"outputs": sorted(config.outputs), "client": {}}
        words.pop("dead_letter_limit")
        name = f"{len(self._started)}-{instance}"
        told = {"engine": words, "prefix": self.rig.prefix, "folder": str(self.state(instance))} | told
        log = self.folder / f"{name}.log"
        program = Program(
            name=name,
            argv=[sys.executable, "-m", "tests.fault.processor_worker", json.dumps(told)],
            cwd=ROOT,
        )
        child = spawn(program, folder=self.folder / "programs", log=log)
        self._started.append((child, log))
        return child

    def killed(self, instance: str = "one", seconds: float = 40.0, **told: Any) -> None:
        """Runs one until it kills itself as it was told."""
        child = self.start(instance, **told)
        assert child.wait(seconds) == -signal.SIGKILL, self.logs()
        self.kills += 1

    def kill(self, child: Popen[bytes]) -> None:
        """From outside, wherever it is."""
        child.kill()
        assert child.wait(10) == -signal.SIGKILL, self.logs()
        self.kills += 1

    def stop(self, child: Popen[bytes], seconds: float = 20.0) -> None:
        """Gracefully; it must end well. SIGTERM itself ends one that has not even begun."""
        child.terminate()
        assert child.wait(seconds) in (0, -signal.SIGTERM), self.logs()

    def finish(self, instance: str = "one", seconds: float = 60.0, **told: Any) -> None:
        """Runs one until all is consumed, then stops it."""
        child = self.start(instance, **told)
        self.until_consumed(seconds, child)
        self.stop(child)

    def until_consumed(self, seconds: float = 60.0, *children: Popen[bytes]) -> None:
        """Waits; `children` may not end meanwhile."""

        def done() -> bool:
            assert all(child.poll() is None for child in children), self.logs()
            return self.rig.consumed()

        self.until(done, "all is consumed", seconds)

    def until(self, holds: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
        """Looks five times a second."""
        deadline, pause = time.monotonic() + seconds, Event()
        while not holds():
            assert time.monotonic() < deadline, f"not in {seconds} s: {what}\n{self.logs()}"
            pause.wait(0.2)

    def complaints(self) -> list[str]:
        """The oracle's, of a processor that should give no cause."""
        found = self.caught()
        self.complained += len(found)
        return found

    def caught(self) -> list[str]:
        """The oracle's, of one that is broken on purpose."""
        return complaints(self.rig.seen(), self.load.sent())

    def logs(self) -> str:
        """The last words of each process."""
        return "\n".join(
            f"--- {log.name}, status {child.poll()}\n{tail(log, 12)}" for child, log in self._started
        )

    def log_of(self, child: Popen[bytes]) -> str:
        """All that one process has said."""
        return next(log.read_text(errors="replace") for started, log in self._started if started is child)

    def end(self) -> None:
        """Whatever is left. A stopped process must go on to be killed."""
        for child, _ in self._started:
            if child.poll() is None:
                os.kill(child.pid, signal.SIGCONT)
                child.kill()
                end(child, seconds=10)


@contextmanager
def processors(rig: ProcessorRig, folder: Path, record: Callable[[str, int], None]) -> Iterator[Processors]:
    """Processes of one rig; none is left behind. `record` is told what there is to count."""
    started = Processors(rig, folder)
    try:
        yield started
    finally:
        started.end()
        record("kills", started.kills)
        record("complaints", started.complained)


@contextmanager
def under_load(workers: Processors, seed: int) -> Iterator[None]:
    """Sends a little every tenth of a second, until left."""
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
        workers.load.settled()


def is_stopped(child: Popen[bytes]) -> bool:
    """Whether a signal has stopped it (SIGSTOP)."""
    return psutil.Process(child.pid).status() == psutil.STATUS_STOPPED
