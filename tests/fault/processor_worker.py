"""A process of the processor's step on the engine, made to be hurt: `python -m tests.fault.processor_worker '{...}'`.

It runs until SIGTERM. `engine`: its `EngineConfig`; `prefix`: of all topics; `folder`: where its stores lie.
`kill` and `stand`: [phase, n] kills it, or stops it as SIGSTOP does, the n-th time it comes to that phase; after the
work of a slice only slices with `least` records (1) count: ticks alone make some too. `variant` names a way to be
broken on purpose. `clock`: "jumping" is up to a day wrong, and changes its mind. `examples`, `age_ms`: when batches are
cut. `largest_file`: in bytes; from SIGUSR1 to SIGUSR2 the disk takes no file beyond it.
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
from shared.records import Output, Record
from shared.stream.config import EngineConfig
from shared.stream.rocksdb_store import RocksDBStoreFactory
from shared.stream.step import PrefetchingStep, RereadComplete, RereadingStep, RereadRequest, State, Tick
from shared.topics import BATCH_BYTES, DAY_MS
from tests.fault.broken_engines import broken

JUMP_MS = 700


class Renamed:
    """The step over topics that have a prefix. `records`: how many it was given since somebody set it back."""

    def __init__(self, step: RereadingStep, prefix: str) -> None:
        self._step = step
        self._prefix = prefix
        self.records = 0

    def prefetch_keys(self, record: Record) -> Iterable[bytes]:
        return self._step.prefetch_keys(record) if isinstance(self._step, PrefetchingStep) else ()

    def __call__(self, state: State, record: Record | Tick | RereadComplete) -> Iterator[Output | RereadRequest]:
        if not isinstance(record, Tick):
            record = replace(record, topic=record.topic.removeprefix(self._prefix))
        self.records += isinstance(record, Record)
        for output in self._step(state, record):
            yield replace(output, topic=self._prefix + output.topic)


class JumpingClock(SystemClock):
    """Right, a day ahead or a day behind, another way every moment."""

    def now_ms(self) -> int:
        now = super().now_ms()
        return now + random.Random(now // JUMP_MS).choice((-DAY_MS, 0, DAY_MS))


AFTER_WORK = ("after_produce", "after_commit", "after_store")


def probe_of(told: dict[str, Any], step: Renamed) -> Callable[[str], None]:
    """Hurts itself at the moments it was told."""
    left: dict[tuple[str, int], int] = {}
    for word, number in (("kill", signal.SIGKILL), ("stand", signal.SIGSTOP)):
        if told.get(word):
            phase, times = told[word]
            left[phase, number] = times

    def probe(now: str) -> None:
        if now == "before_transaction":
            step.records = 0
        elif now in AFTER_WORK and step.records < told.get("least", 1):
            return
        for (phase, number), times in left.items():
            if phase == now:
                left[phase, number] = times - 1
                if times == 1:
                    os.kill(os.getpid(), number)

    return probe


def limit_files(bytes_at_most: int) -> None:
    """From SIGUSR1 to SIGUSR2 no file may grow beyond this: EFBIG, as real as a full disk, and for anybody to have."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def set_limit(number: int, _frame: FrameType | None) -> None:
        soft = bytes_at_most if number == signal.SIGUSR1 else hard
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    signal.signal(signal.SIGUSR1, set_limit)
    signal.signal(signal.SIGUSR2, set_limit)


def main() -> None:
    told = json.loads(sys.argv[1])
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    engine_words = told["engine"]
    engine_words["inputs"] = tuple(engine_words["inputs"])
    engine_words["outputs"] = frozenset(engine_words["outputs"])
    config = EngineConfig(**engine_words, dead_letter_limit=DeadLetterLimit(max_share=0.5))
    step = ProcessorStep(BatchLimits(told.get("examples", 8), BATCH_BYTES, told.get("age_ms", 1_000)))
    folder = Path(told["folder"])
    make, step_of = broken(told.get("variant", ""), config, folder)
    renamed = Renamed(step_of(step), told["prefix"])
    engine = make(
        config,
        renamed,
        open_store=RocksDBStoreFactory(folder, cache_mb=8, flush_s=0.05),
        clock=JumpingClock() if told.get("clock") == "jumping" else SystemClock(),
        probe=probe_of(told, renamed),
    )
    stop = threading.Event()

    def terminate(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, terminate)
    if "largest_file" in told:
        limit_files(told["largest_file"])
    engine.run(stop)


if __name__ == "__main__":
    main()
