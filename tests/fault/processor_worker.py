"""A process that runs the processor's step on the engine until SIGTERM, with faults on demand.

`python -m tests.fault.processor_worker '{...}'` takes these options:

- `engine`: its `EngineConfig`; `prefix`: of all topics; `folder`: of its stores.
- `kill`, `freeze`: `[phase, n]` sends SIGKILL or SIGSTOP to itself the n-th time it reaches that phase. In phases after
  the work of a slice, only slices with at least `min_records` records (1) count, because ticks make slices too.
- `variant`: a way to be broken on purpose (`broken_engines`).
- `clock`: "jumping" is wrong by up to a year, in another way every moment; `clock_error_ms`: it is wrong by this.
- `examples`, `age_ms`: when batches are cut.
- `max_file_bytes`: from SIGUSR1 to SIGUSR2 no file can grow beyond this.
"""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import structlog

from services.processor.core.batches import BatchLimits
from services.processor.core.step import ProcessorStep
from shared.adapters.clock import SystemClock
from shared.dead_letters import DeadLetterLimit
from shared.kafka_connection import KafkaConnection
from shared.records import Output, Record
from shared.stream.config import EngineConfig
from shared.stream.rocksdb_store import RocksDBStoreFactory
from shared.stream.step import PrefetchingStep, RereadComplete, RereadingStep, RereadRequest, State, Tick
from shared.topics import BATCH_BYTES, DAY_MS
from tests.fault.broken_engines import broken

JUMP_MS = 700


class PrefixedStep:
    """The step over topics with a prefix. `records` counts its records until it is reset."""

    def __init__(self, step: RereadingStep, prefix: str) -> None:
        self._step = step
        self._prefix = prefix
        self.records = 0

    def prefetch_keys(self, record: Record) -> Iterable[bytes]:
        return self._step.prefetch_keys(record) if isinstance(self._step, PrefetchingStep) else ()

    def __call__(
        self, state: State, record: Record | Tick | RereadComplete
    ) -> Iterator[Output | RereadRequest]:
        if not isinstance(record, Tick):
            record = replace(record, topic=record.topic.removeprefix(self._prefix))
        self.records += isinstance(record, Record)
        for output in self._step(state, record):
            yield replace(output, topic=self._prefix + output.topic)


class JumpingClock(SystemClock):
    """A clock that is right, or wrong by minutes, a day, a month or a year, and changes every moment."""

    def now_ms(self) -> int:
        now, jumps = super().now_ms(), (5 * 60_000, DAY_MS, 31 * DAY_MS, 365 * DAY_MS)
        rng = random.Random(now // JUMP_MS)
        return now + rng.choice((-1, 0, 0, 1)) * rng.choice(jumps)


class WrongClock(SystemClock):
    """A clock that is always wrong by the same time."""

    def __init__(self, error_ms: int) -> None:
        self._error_ms = error_ms

    def now_ms(self) -> int:
        return super().now_ms() + self._error_ms


def clock_of(options: dict[str, Any]) -> SystemClock:
    """Return the clock that the options choose."""
    if options.get("clock") == "jumping":
        return JumpingClock()
    return WrongClock(options.get("clock_error_ms", 0))


PHASES_AFTER_WORK = ("after_produce", "after_commit", "after_store")


def probe_of(options: dict[str, Any], step: PrefixedStep) -> Callable[[str], None]:
    """Return the engine's probe, which sends signals to this process at the chosen moments."""
    left: dict[tuple[str, int], int] = {}
    for option, number in (("kill", signal.SIGKILL), ("freeze", signal.SIGSTOP)):
        if options.get(option):
            phase, times = options[option]
            left[phase, number] = times

    def probe(now: str) -> None:
        if now == "before_transaction":
            step.records = 0
        elif now in PHASES_AFTER_WORK and step.records < options.get("min_records", 1):
            return
        for (phase, number), times in left.items():
            if phase == now:
                left[phase, number] = times - 1
                if times == 1:
                    os.kill(os.getpid(), number)

    return probe


def limit_file_size(max_bytes: int) -> None:
    """Let writes beyond this size fail with EFBIG from SIGUSR1 to SIGUSR2, like a full disk and without privileges."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def set_limit(number: int, _frame: FrameType | None) -> None:
        soft = max_bytes if number == signal.SIGUSR1 else hard
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    signal.signal(signal.SIGUSR1, set_limit)
    signal.signal(signal.SIGUSR2, set_limit)


def main() -> None:
    options = json.loads(sys.argv[1])
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    engine_options = options["engine"]
    engine_options["kafka"] = KafkaConnection(**engine_options["kafka"])
    engine_options["inputs"] = tuple(engine_options["inputs"])
    engine_options["outputs"] = frozenset(engine_options["outputs"])
    config = EngineConfig(**engine_options, dead_letter_limit=DeadLetterLimit(max_share=0.5))
    step = ProcessorStep(BatchLimits(options.get("examples", 8), BATCH_BYTES, options.get("age_ms", 1_000)))
    folder = Path(options["folder"])
    make_engine, wrap = broken(options.get("variant", ""), config, folder)
    prefixed = PrefixedStep(wrap(step), options["prefix"])
    engine = make_engine(
        config,
        prefixed,
        open_store=RocksDBStoreFactory(folder, cache_mb=8, flush_s=0.05, partitions=config.partitions or 1),
        clock=clock_of(options),
        probe=probe_of(options, prefixed),
    )
    stop = threading.Event()

    def terminate(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, terminate)
    if "max_file_bytes" in options:
        limit_file_size(options["max_file_bytes"])
    engine.run(stop)


if __name__ == "__main__":
    main()
