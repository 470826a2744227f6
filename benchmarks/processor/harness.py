"""What all arms share: the broker, the inputs loaded once, and processes that are watched while they work."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.processor.broker import Broker
from benchmarks.processor.kafka_client import Log, WrongResult
from benchmarks.processor.votes import STATE_BYTES, Workload
from deploy.local.processes import Program, end, spawn, tail

LOOK_S, QUIET_S, STUCK_S = 0.25, 1.5, 60.0
CACHED = 0.1
"""The share of the keys that the cache of a store may hold."""


def cache_mb(keys: int) -> int:
    """At most a tenth of the keys with their states; a store needs 1 MiB."""
    return max(1, int(keys * STATE_BYTES * CACHED) >> 20)


@dataclass
class Lab:
    """One run of the benchmark."""

    broker: Broker
    log: Log
    folder: Path
    partitions: int
    _loaded: set[str] = field(default_factory=set)
    _count: int = 0

    def input(self, workload: Workload) -> str:
        """The topic with these votes, loaded when it is first asked for."""
        name = _named(workload)
        if name not in self._loaded:
            self.log.delete([name])
            self.log.create({name: {}}, self.partitions)
            self.log.load(name, workload)
            self._loaded.add(name)
        return name

    def forget_input(self, workload: Workload) -> None:
        """Something was added to its topic: who asks for it next gets a new one."""
        self._loaded.discard(_named(workload))

    def fresh(self, arm: str) -> tuple[str, Path]:
        """A name that no topic or group begins with yet, and an empty folder."""
        self._count += 1
        name = f"bench-{arm}-{self._count}-{round(time.time())}"
        folder = (self.folder / "arms" / name).resolve()
        folder.mkdir(parents=True)
        return name, folder

    def clean(self, name: str, folder: Path) -> None:
        """Removes what an arm made."""
        self.log.delete([topic for topic in self.log.topics() if name in topic])
        shutil.rmtree(folder, ignore_errors=True)

    def unload(self) -> None:
        """Removes the inputs."""
        self.log.delete(self._loaded)

    @contextmanager
    def running(
        self, name: str, argv: Sequence[str], env: Mapping[str, str] | None = None
    ) -> Iterator[Running]:
        """A process of an arm, stopped at the end of the block, and killed should this one be."""
        log = self.folder / "logs" / f"{name}.log"
        program = Program(name, argv, env or {}, cwd=Path())
        child = spawn(program, folder=self.folder / "programs", log=log)
        try:
            yield Running(child, log, self.broker.pid)
        finally:
            end(child, seconds=program.stop_seconds)


def _named(workload: Workload) -> str:
    return f"bench-votes-{workload.events}-{workload.keys}"


def python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


class Running:
    """A process, and what it and all others take of the machine while it works."""

    def __init__(self, child: subprocess.Popen[bytes], log: Path, broker: int | None) -> None:
        self.child = child
        self._log = log
        self._known = [psutil.Process()] + ([psutil.Process(broker)] if broker else [])
        self._process = psutil.Process(child.pid)
        self._began = time.monotonic()
        self._before = self._taken()
        self._now = self._before
        self._ended = self._began
        self.rss = self.rss_peak = 0

    def _taken(self) -> tuple[float, float, float]:
        """CPU seconds so far: of the machine, of those that belong here, of the process itself."""
        whole = psutil.cpu_times()
        busy = whole.user + whole.nice + whole.system
        own = sum(self._process.cpu_times()[:2])
        return busy, own + sum(sum(process.cpu_times()[:2]) for process in self._known), own

    def look(self) -> None:
        """Takes note. Raises `WrongResult` where the process has ended."""
        status = self.child.poll()
        if status is not None:
            raise WrongResult(f"the process ended with {status}:\n{tail(self._log)}")
        self._now, self._ended = self._taken(), time.monotonic()
        self.rss = self._process.memory_info().rss
        self.rss_peak = max(self.rss_peak, self.rss)

    def load(self) -> dict[str, float]:
        """CPU seconds of the process, and the cores that others than arm, broker and benchmark took meanwhile."""
        busy, known, own = (now - then for now, then in zip(self._now, self._before, strict=True))
        seconds = max(0.001, self._ended - self._began)
        return {
            "cpu_s": round(own, 2),
            "foreign_cores": round(max(0.0, busy - known) / seconds, 2),
            "rss_peak_mb": round(self.rss_peak / 2**20, 1),
        }

    def until_written(self, log: Log, topic: str, count: int, quiet_s: float = QUIET_S) -> None:
        """Waits until `count` records are in the topic, none of them undecided, and no more come."""
        at, moved = -1, time.monotonic()
        while True:
            self.look()
            high = sum(log.ends(topic).values())
            now = time.monotonic()
            if high != at:
                at, moved = high, now
            elif now > moved + STUCK_S:
                raise WrongResult(
                    f"{topic} stands still at {at}, at least {count} were to come:\n{tail(self._log)}"
                )
            elif (
                at >= count
                and now > moved + quiet_s
                and high == sum(log.ends(topic, committed=True).values())
            ):
                return
            time.sleep(LOOK_S)


def status(folder: Path) -> dict[str, Any]:
    """What an engine's process last wrote of itself; empty if it has not yet."""
    try:
        found: dict[str, Any] = json.loads((folder / "status.json").read_text())
    except FileNotFoundError:
        return {}
    return found
