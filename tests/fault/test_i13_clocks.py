"""I13, clocks: jumps of the host's clock change nothing, and ticks cut batches but never expire anything.

Clocks jump by minutes, a day, 31 days and a year, forwards and backwards. See also `tests/unit/test_stream_time.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import orjson
import pytest

from services.processor.core.batches import BatchLimits
from services.processor.core.erasure.process import ErasureConfig
from services.processor.core.step import ProcessorStep
from shared.records import Output, Record
from shared.stream.state_store import MemoryStore
from shared.stream.step import Tick
from shared.stream.write_buffer import WriteBuffer
from shared.topics import FEEDBACK_OUTCOMES, TRAINING_BATCHES
from tests.fault.fault_settings import SEEDS
from tests.fault.i13.generate import JUMPS_MS, generate
from tests.fault.i13.history import T0, Appended, History, HostClock, Idle, Step, is_honest
from tests.fault.i13.partition_run import PartitionRun, RunResult, silent

JUMPS = [jump * sign for jump in JUMPS_MS for sign in (1, -1)]
STORIES = range(4 if SEEDS == 1 else 40)


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    with silent():
        yield


def story(seed: int) -> list[Step]:
    """Return the honest records of a seed, with idle time after each."""
    steps: list[Step] = []
    for step in generate(seed).steps:
        if isinstance(step, Appended) and is_honest(step):
            steps += [step, Idle(step.real_ms + 900, 2)]
    return steps


def with_jump(steps: list[Step], jump_ms: int, at: int, until: int) -> list[Step]:
    """Return the steps with a host clock that is wrong for a while, and idle all the time."""
    return [*steps[:at], HostClock(jump_ms), *steps[at:until], HostClock(0), *steps[until:]]


def run(steps: list[Step], examples: int = 64) -> RunResult:
    driver = PartitionRun(History(0, BatchLimits(examples=examples), tuple(steps)))
    result = driver.run()
    newest = max(record.timestamp for record in result.records.values())
    assert driver.partition.positions.time_ms == newest, "only append times move the partition's time"
    return result


def outcomes(result: RunResult) -> Counter[tuple[str, str, str]]:
    found = (orjson.loads(output.value or b"") for output in result.outputs(FEEDBACK_OUTCOMES.name))
    return Counter((o["response_id"], o.get("event_id") or "", o["outcome"]) for o in found)


@pytest.mark.parametrize("jump_ms", JUMPS)
def test_host_clock_that_jumps_changes_no_outcome(jump_ms: int) -> None:
    for seed in STORIES:
        steps = story(seed)
        third = len(steps) // 3
        steady, jumping = run(steps, 1), run(with_jump(steps, jump_ms, third, 2 * third), 1)
        assert jumping.failures == []
        assert outcomes(jumping) == outcomes(steady), seed
        assert jumping.final_state.keys() == steady.final_state.keys(), seed


@pytest.mark.parametrize("jump_ms", JUMPS)
def test_host_clock_that_jumps_causes_no_more_batches(jump_ms: int) -> None:
    for seed in STORIES:
        steps = story(seed)
        third = len(steps) // 3
        steady, jumping = run(steps), run(with_jump(steps, jump_ms, third, 2 * third))
        assert count_batches(jumping) <= count_batches(steady), seed


def count_batches(result: RunResult) -> int:
    return sum(1 for _ in result.outputs(TRAINING_BATCHES.name))


# --- ticks, whatever time they carry --------------------------------------------------------------------------------


class StepDriver:
    """The step over a store, without an engine that would keep a wrong tick away from it."""

    def __init__(self) -> None:
        self.step = ProcessorStep(BatchLimits(), ErasureConfig(1))
        self.store = MemoryStore()
        self.outputs: list[Output] = []

    def process(self, record: Record | Tick) -> None:
        buffer = WriteBuffer(self.store, 1_000_000)
        self.outputs += [output for output in self.step(buffer, record) if isinstance(output, Output)]
        self.store.apply(buffer.writes, 0)

    def state(self) -> dict[bytes, bytes]:
        return dict(self.store.scan(b"\x01", b"\xff"))


@pytest.mark.parametrize("jump_ms", JUMPS)
def test_tick_of_any_time_expires_nothing(jump_ms: int) -> None:
    for seed in STORIES:
        driver = StepDriver()
        newest = T0
        for offset, step in enumerate(step for step in generate(seed).steps if is_honest(step)):
            assert isinstance(step, Appended)
            newest = max(newest, step.at_ms)
            driver.process(Record(step.topic, 0, offset, step.at_ms, step.key, step.value, step.headers))
        before = {key for key in driver.state() if key.startswith((b"a/", b"j/"))}
        for late_s in range(0, 300, 20):
            driver.process(Tick(0, newest + jump_ms + late_s * 1000, newest))
        assert {key for key in driver.state() if key.startswith((b"a/", b"j/"))} == before, seed


def test_partition_after_a_wrong_clock_equals_one_that_never_had_it() -> None:
    """A clock that is wrong by a year leaves nothing behind in the state."""
    for seed in STORIES:
        steps = story(seed)
        jumping = run([HostClock(JUMPS_MS[-1]), *steps], 1)
        assert jumping.final_state == run(steps, 1).final_state, seed


def test_records_of_a_wrong_broker_clock_stop_nothing() -> None:
    """The broker's clock is everybody's: records may expire with it, but each event still has one outcome."""
    for seed in STORIES:
        steps = [
            replace(step, at_ms=step.at_ms + JUMPS[seed % len(JUMPS)] * (number % 3 == 0))
            for number, step in enumerate(story(seed))
            if isinstance(step, Appended)
        ]
        result = PartitionRun(History(0, BatchLimits(), tuple(steps))).run()
        assert result.failures == [], seed
