"""Runs a history through the real step, slice runner and owned partition, with a log in memory instead of Kafka."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import structlog

from services.processor.core.erasure.process import ErasureConfig
from services.processor.core.state import JUMP_MS
from services.processor.core.step import ProcessorStep
from services.processor.service import engine_config
from services.processor.settings import ProcessorSettings
from shared.dead_letter_replay import make_replay_record, parse_dead_letter
from shared.records import Output, Record
from shared.stream.partition import OwnedPartition, RereadCursor
from shared.stream.slice_runner import SliceRunner
from shared.stream.state_store import MemoryStore
from shared.topics import DAY_MS, DEAD_LETTERS
from tests.fault.i13 import requests
from tests.fault.i13.history import T0, Appended, History, HostClock, Idle, Replay, Stored

SLICE_RECORDS = 8
EPOCHS_DAYS = (31, 62, 93, 124, 155, 186)
"""When harmless records come after a history, so that its windows close, its erasures end, and all their fillers are
appended: one in each such time at least."""
CLOSERS_MS = (0, 2 * JUMP_MS, 2 * JUMP_MS + 11_000)
"""The records of such a time: stream time follows a jump only slowly, and windows are looked for now and then."""
MAX_ROUNDS = 600
"""Ticks after which all erasures of a history must have ended."""
CLOSER = "closer"


class Clocks:
    """`Clock` of the processor's host. True time and monotonic time go on together; the host and the broker may err."""

    def __init__(self) -> None:
        self.real_ms = T0
        self.host_offset_ms = 0
        self.broker_offset_ms = 0

    @property
    def broker_ms(self) -> int:
        return self.real_ms + self.broker_offset_ms

    def now_ms(self) -> int:
        return self.real_ms + self.host_offset_ms

    def monotonic(self) -> float:
        return (self.real_ms - T0) / 1000

    def wait(self, seconds: float) -> None:
        self.real_ms += round(seconds * 1000)

    def pass_until(self, real_ms: int) -> None:
        self.real_ms = max(self.real_ms, real_ms)


class MemoryProducer:
    """Stands in for `TransactionalProducer`: a commit appends everything to the log."""

    def __init__(self, log: list[Output], clocks: Clocks) -> None:
        self._log = log
        self._clocks = clocks
        self._open: list[Output] = []
        self.changelog_bytes = 0
        """Size of the largest value that was written to the state."""

    def produce(self, outputs: Iterable[Output]) -> None:
        self._open += outputs

    def produce_tracked(self, output: Output, on_offset: Callable[[int, int | None], None]) -> None:
        on_offset(0, self._clocks.broker_ms)

    def produce_changelog(self, topic: str, partition: int, writes: dict[bytes, bytes | None]) -> None:
        for value in writes.values():
            self.changelog_bytes = max(self.changelog_bytes, len(value or b""))

    def commit(
        self,
        _positions: object,
        _group: object,
        *,
        meanwhile: Callable[[], None],
        before_commit: Callable[[], None],
    ) -> None:
        before_commit()
        self._log += self._open
        self._open = []


@dataclass
class RunResult:
    """Everything that a run left behind."""

    records: dict[tuple[str, int], Record] = field(default_factory=dict)
    """All input records, by topic and offset."""
    honest: set[tuple[str, int]] = field(default_factory=set)
    log: list[Output] = field(default_factory=list)
    """All outputs, in order."""
    failures: list[str] = field(default_factory=list)
    """What must never happen while a history runs."""
    state: dict[bytes, bytes] = field(default_factory=dict)
    """The state after the history, before the windows were closed."""
    final_state: dict[bytes, bytes] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    """Responses whose stored values a step changed."""
    rereads: int = 0
    """How often the partition's batches were read again."""
    rereads_in_time: int = 0
    """The same before the windows were closed."""

    def outputs(self, topic: str) -> Iterator[Output]:
        """Yield the outputs to one topic."""
        return (output for output in self.log if output.topic == topic)


class PartitionRun:
    """One partition, from empty state."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.result = RunResult()
        self.config = CONFIG
        self.clocks = Clocks()
        self._step = ProcessorStep(history.limits, ErasureConfig(1))
        self._runner = SliceRunner(self.config, self._step, self.clocks, lambda _phase: None)
        self._producer: Any = MemoryProducer(self.result.log, self.clocks)
        self._runner.use_producer(self._producer)
        self.partition = OwnedPartition(0, self.config, MemoryStore())
        self._offsets: Counter[str] = Counter()
        self._last_at_ms = T0

    def run(self) -> RunResult:
        """Run all steps, and then enough time that nothing may be pending any more."""
        try:
            self._run_steps()
            self.result.state = self._user_state()
            self.result.rereads_in_time = self.result.rereads
            self._let_time_pass()
        except Exception as error:  # noqa: BLE001 - any exception is a finding, also a halt
            self.result.failures.append(f"raised: {type(error).__name__}: {error}")
        self.result.final_state = self._user_state()
        return self.result

    def _run_steps(self) -> None:
        waiting = 0
        for step in self.history.steps:
            ends_slice = not isinstance(step, Appended) or step.at_ms <= self._last_at_ms
            if waiting and (ends_slice or waiting >= SLICE_RECORDS):
                self._run_slice()
                waiting = 0
            if isinstance(step, Appended):
                output = Output(step.topic, step.key, step.value, step.headers)
                self._append(step.at_ms, step.real_ms, output, step.honest)
                waiting += 1
            elif isinstance(step, Idle):
                self._idle(step)
            elif isinstance(step, HostClock):
                self.clocks.host_offset_ms = step.offset_ms
            elif isinstance(step, Replay):
                self._replay_dead_letters(step)
            else:
                self._change_state(step)
        if waiting:
            self._run_slice()

    def _idle(self, step: Idle) -> None:
        start = self.clocks.real_ms
        for number in range(1, step.ticks + 1):
            self.clocks.pass_until(start + max(0, step.real_ms - start) * number // step.ticks)
            self._run_slice()

    def _replay_dead_letters(self, step: Replay) -> None:
        for output in list(self.result.outputs(DEAD_LETTERS.name)):
            letter = Record(output.topic, 0, 0, step.at_ms, output.key, output.value, output.headers)
            dead = parse_dead_letter(letter)
            if dead.omitted_bytes is None:
                self._append(step.at_ms, step.real_ms, make_replay_record(dead, "replay"), honest=False)
        self._run_slice()

    def _append(self, at_ms: int, real_ms: int, output: Output, honest: bool) -> None:
        self.clocks.pass_until(real_ms)
        self.clocks.broker_offset_ms = at_ms - real_ms
        offset = self._offsets[output.topic]
        self._offsets[output.topic] += 1
        record = Record(output.topic, 0, offset, at_ms, output.key, output.value, output.headers)
        self.result.records[output.topic, offset] = record
        if honest:
            self.result.honest.add((output.topic, offset))
        self.partition.merge_buffer.add(record)
        self._last_at_ms = at_ms

    def _run_slice(self) -> None:
        """Run everything that waits, a tick if one is due, and the next piece of a reread."""
        partition = self.partition
        for topic in self.config.inputs:
            partition.mark_end(topic, self._offsets[topic])
        for topic in partition.positions.rereads:
            if topic not in partition.reread_cursors:
                self._begin_reread(topic)
        part = partition.take_slice(
            self.config.slice_records,
            self.config.slice_bytes,
            now=self.clocks.monotonic(),
            clock_ms=self.clocks.now_ms(),
            tick_interval=self.config.tick_interval,
            max_reread_records=64,
        )
        self._runner.run([part], None)
        if partition.halted or part.halt:
            self.result.failures.append(f"halted: {partition.halted or part.halt}")
        if partition.failed_ticks:
            self.result.failures.append("raised: a tick")
        if any(cursor.failed_completions for cursor in partition.reread_cursors.values()):
            self.result.failures.append("raised: a completed reread")

    def _begin_reread(self, topic: str) -> None:
        outputs = list(self.result.outputs(topic))
        cursor = RereadCursor(self.partition.positions.rereads[topic], len(outputs))
        for offset, output in enumerate(outputs):
            cursor.add(Record(topic, 0, offset, 0, output.key, output.value, output.headers))
        cursor.position = cursor.end
        self.partition.reread_cursors[topic] = cursor
        self.result.rereads += 1

    def _change_state(self, step: Stored) -> None:
        """Replace stored values, as if an earlier release had written them."""
        name = b"/" + step.response_id.encode()
        prefixes = (b"a/", b"j/", b"p/")
        found = {k: v for k, v in self._user_state().items() if k.startswith(prefixes) and k.endswith(name)}
        if found:
            self.result.damaged.add(step.response_id)
            self.partition.store.apply(step.change(found), 0)

    def _let_time_pass(self) -> None:
        """Append harmless records much later, and let ticks and rereads come until the partition is at rest."""
        self.clocks.host_offset_ms = 0
        last = max(
            max((record.timestamp for record in self.result.records.values()), default=T0),
            self.clocks.real_ms,
        )
        for days in EPOCHS_DAYS:
            for number, later_ms in enumerate(CLOSERS_MS):
                at_ms = last + days * DAY_MS + later_ms
                self._append(at_ms, at_ms, _closer(days, number), honest=False)
            self._run_slice()
            self._finish_erasures()

    def _finish_erasures(self) -> None:
        for _ in range(MAX_ROUNDS):
            self.clocks.wait(1)
            self._run_slice()
            if not self._is_erasing():
                return
        self.result.failures.append("bounded: erasures never end")

    def _is_erasing(self) -> bool:
        store = self.partition.store
        return bool(self.partition.positions.rereads) or any(
            next(store.scan(prefix, prefix[:-1] + b"0"), None) for prefix in (b"e/now/", b"e/wait/")
        )

    def _user_state(self) -> dict[bytes, bytes]:
        return dict(self.partition.store.scan(b"\x01", b"\xff\xff"))


@cache
def _closer(days: int, number: int) -> Output:
    """Return harmless feedback on a response that nobody knows."""
    ids = {"response_id": f"{CLOSER}-{days}-{number}", "event_id": CLOSER, "user_id": CLOSER}
    record = requests.feedback(ids | {"kind": "thumbs", "value": "up"}, T0)
    assert record is not None
    return record


@contextmanager
def silent() -> Iterator[None]:
    """Silence the engine's log: it reports each of some thousands of dead letters."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)


CONFIG = engine_config(ProcessorSettings(partitions=1))
