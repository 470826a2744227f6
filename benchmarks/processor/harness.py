"""Harness of all arms: the broker, inputs that are loaded once, and measured processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.processor.broker import Broker
from benchmarks.processor.kafka_client import KafkaClient, WrongResult
from benchmarks.processor.votes import STATE_BYTES, Workload
from deploy.local.processes import Program, spawn, tail, terminate

SAMPLE_INTERVAL_S, SETTLE_S, STALLED_AFTER_S = 0.25, 1.5, 60.0
CACHED_SHARE = 0.1
"""Share of the keys that fit into the cache of a store."""


def cache_mb(keys: int) -> int:
    """Return the cache size in MiB for this number of keys: `CACHED_SHARE` of their states, and at least 1."""
    return max(1, int(keys * STATE_BYTES * CACHED_SHARE) >> 20)


@dataclass
class BenchmarkRun:
    """One run of the benchmark."""

    broker: Broker
    kafka: KafkaClient
    folder: Path
    partitions: int
    _loaded: set[str] = field(default_factory=set)
    _count: int = 0

    def input(self, workload: Workload) -> str:
        """Return the topic with this workload; the first call loads it."""
        name = self._topic_of(workload)
        if name not in self._loaded:
            self.kafka.delete([name])
            self.kafka.create({name: {}}, self.partitions)
            self.kafka.load(name, workload)
            self._loaded.add(name)
        return name

    def discard_input(self, workload: Workload) -> None:
        """Make the next call of `input` load a new topic, because records were added to this one."""
        self._loaded.discard(self._topic_of(workload))

    def with_partitions(self, partitions: int) -> BenchmarkRun:
        """Return the same run with topics of another number of partitions."""
        return replace(self, partitions=partitions)

    def _topic_of(self, workload: Workload) -> str:
        return f"bench-votes-{workload.events}-{workload.keys}-{self.partitions}"

    def new_name(self, arm: str) -> tuple[str, Path]:
        """Return a new name for an arm's topics and groups, and an empty folder."""
        self._count += 1
        name = f"bench-{arm}-{self._count}-{round(time.time())}"
        folder = (self.folder / "arms" / name).resolve()
        folder.mkdir(parents=True)
        return name, folder

    def clean(self, name: str, folder: Path) -> None:
        """Delete the topics and the folder of an arm."""
        self.kafka.delete([topic for topic in self.kafka.topics() if name in topic])
        shutil.rmtree(folder, ignore_errors=True)

    def unload(self) -> None:
        """Delete the loaded inputs."""
        self.kafka.delete(self._loaded)

    @contextmanager
    def running(
        self, name: str, argv: Sequence[str], env: Mapping[str, str] | None = None
    ) -> Iterator[MeasuredProcess]:
        """Run a process of an arm until the end of the block. It is killed if this process dies."""
        log = self.folder / "logs" / f"{name}.log"
        program = Program(name, argv, env or {}, cwd=Path())
        child = spawn(program, folder=self.folder / "programs", log=log)
        try:
            yield MeasuredProcess(child, log, self.broker.pid)
        finally:
            terminate(child, seconds=program.stop_seconds)


def python(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs a module."""
    return [sys.executable, "-m", module, *arguments]


class MeasuredProcess:
    """A process, and the CPU time and memory that it and others use while it runs."""

    def __init__(self, child: subprocess.Popen[bytes], log: Path, broker: int | None) -> None:
        self.child = child
        self._log = log
        self._known = [psutil.Process()] + ([psutil.Process(broker)] if broker else [])
        self._process = psutil.Process(child.pid)
        self._began = time.monotonic()
        self._before = self._cpu_seconds()
        self._now = self._before
        self._ended = self._began
        self.rss = self.rss_peak = 0

    def _cpu_seconds(self) -> tuple[float, float, float]:
        """Return CPU seconds so far: of the machine, of the benchmark's processes, and of this process."""
        whole = psutil.cpu_times()
        busy = whole.user + whole.nice + whole.system
        own = sum(self._process.cpu_times()[:2])
        return busy, own + sum(sum(process.cpu_times()[:2]) for process in self._known), own

    def sample(self) -> None:
        """Measure CPU time and memory now. Raises `WrongResult` if the process has ended."""
        status = self.child.poll()
        if status is not None:
            raise WrongResult(f"the process ended with status {status}:\n{tail(self._log)}")
        self._now, self._ended = self._cpu_seconds(), time.monotonic()
        self.rss = self._process.memory_info().rss
        self.rss_peak = max(self.rss_peak, self.rss)

    def load(self) -> dict[str, float]:
        """Return the process's CPU seconds and peak memory, and the cores that foreign processes used meanwhile."""
        busy, known, own = (now - then for now, then in zip(self._now, self._before, strict=True))
        seconds = max(0.001, self._ended - self._began)
        return {
            "cpu_s": round(own, 2),
            "foreign_cores": round(max(0.0, busy - known) / seconds, 2),
            "rss_peak_mb": round(self.rss_peak / 2**20, 1),
        }

    def wait_until_written(
        self, kafka: KafkaClient, topic: str, count: int, settle_s: float = SETTLE_S
    ) -> None:
        """Wait until `count` records are in the topic, all committed, and none arrives for `settle_s` seconds."""
        at, moved = -1, time.monotonic()
        while True:
            self.sample()
            high = sum(kafka.ends(topic).values())
            now = time.monotonic()
            if high != at:
                at, moved = high, now
            elif now > moved + STALLED_AFTER_S:
                raise WrongResult(
                    f"{topic} stopped at {at} records, but at least {count} are expected:\n{tail(self._log)}"
                )
            elif (
                at >= count
                and now > moved + settle_s
                and high == sum(kafka.ends(topic, committed=True).values())
            ):
                return
            time.sleep(SAMPLE_INTERVAL_S)


def read_status(folder: Path) -> dict[str, Any]:
    """Return the last status that an engine's process wrote, or an empty dict."""
    try:
        status: dict[str, Any] = json.loads((folder / "status.json").read_text())
    except FileNotFoundError:
        return {}
    return status
