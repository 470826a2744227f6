"""Tests of a partition's time: ticks follow the monotonic clock, and wrong wall clocks change nothing."""

from __future__ import annotations

import pytest

from shared.kafka_connection import KafkaConnection
from shared.records import Record
from shared.stream.config import EngineConfig
from shared.stream.partition import OwnedPartition, PartitionSlice
from shared.stream.state_store import MemoryStore
from shared.stream.step import Tick
from shared.stream.stream_time import MAX_TICK_STEP_S, MEASURE_INTERVAL_S, ClockComparison, IdleTime

CONFIG = EngineConfig(
    kafka=KafkaConnection("broker:9092"),
    application="processor",
    instance="one",
    inputs=("a",),
    changelog="c",
    dead_letters="d",
    outputs=frozenset({"out"}),
)
T0 = 1_700_000_000_000
MINUTE_S, DAY_S = 60, 86_400
JUMPS_S = [s * sign for s in (5 * MINUTE_S, DAY_S, 31 * DAY_S, 365 * DAY_S) for sign in (1, -1)]


class PartitionDriver:
    """One partition with a monotonic clock, a wall clock that may be wrong, and a broker clock that is right."""

    def __init__(self) -> None:
        self.partition = OwnedPartition(0, CONFIG, MemoryStore())
        self.partition.merge_buffer.mark_end("a")
        self.now = 1_000.0
        self.wall_error_s = 0.0
        self.commits = 0
        self._offset = 0

    @property
    def broker_ms(self) -> int:
        return T0 + round((self.now - 1_000.0) * 1000)

    def add(self, append_ms: int | None = None) -> None:
        """Append a record to the input, which is read to its end."""
        time_ms = self.broker_ms if append_ms is None else append_ms
        self.partition.merge_buffer.add(Record("a", 0, self._offset, time_ms, b"k", b"v"))
        self.partition.merge_buffer.mark_end("a")
        self._offset += 1

    def take(self) -> PartitionSlice:
        return self.partition.take_slice(
            100,
            1 << 20,
            now=self.now,
            clock_ms=self.broker_ms + round(self.wall_error_s * 1000),
            tick_interval=1.0,
        )

    def run(self, seconds: float = 1.0) -> Tick | None:
        """Let time pass, then run a slice as the engine does. Returns its tick."""
        self.now += seconds
        part = self.take()
        if part.records or part.measures_clock:
            self.commits += 1
            part.changelog_offset = self.commits
            part.changelog_times = self.broker_ms, self.now, self.now
            self.partition.apply_commit(part, 0)
        else:
            self.partition.skip_commit(part)
        return part.tick


@pytest.fixture
def driver() -> PartitionDriver:
    """A partition that has processed one record at `T0` and ticks."""
    started = PartitionDriver()
    started.add()
    started.run(0)
    started.run()
    return started


def test_partition_without_records_has_no_time_and_no_ticks() -> None:
    empty = PartitionDriver()
    assert [empty.run() for _ in range(3)] == [None] * 3
    assert empty.commits == 0


def test_tick_adds_the_time_that_passed_since_the_newest_record(driver: PartitionDriver) -> None:
    ticks = [driver.run() for _ in range(3)]
    assert ticks == [Tick(0, T0 + s * 1000, T0) for s in (2, 3, 4)]
    driver.add()
    assert driver.run() == Tick(0, T0 + 4_000, T0 + 4_000)


def test_time_of_ticks_never_becomes_durable(driver: PartitionDriver) -> None:
    for _ in range(10):
        driver.run()
    assert driver.partition.positions.time_ms == T0


def test_one_tick_adds_a_bounded_time(driver: PartitionDriver) -> None:
    tick = driver.run(31 * DAY_S)
    assert tick is not None
    assert tick.timestamp - T0 <= MAX_TICK_STEP_S * 1000 + 1_000


@pytest.mark.parametrize("jump_s", JUMPS_S)
def test_wall_clock_jump_stops_ticks_and_moves_no_time(driver: PartitionDriver, jump_s: float) -> None:
    driver.wall_error_s = jump_s
    assert [driver.run() for _ in range(3)] == [None] * 3
    driver.add()
    assert driver.run() is None
    assert driver.partition.positions.time_ms == T0 + 4_000
    driver.wall_error_s = 0
    assert driver.run() == Tick(0, T0 + 5_000, T0 + 4_000)


@pytest.mark.parametrize("error_s", [-59, -10, 10, 59])
def test_clocks_within_the_limit_change_nothing(driver: PartitionDriver, error_s: float) -> None:
    driver.wall_error_s = error_s
    assert driver.run() == Tick(0, T0 + 2_000, T0)


@pytest.mark.parametrize("jump_s", JUMPS_S)
def test_wrong_clock_of_a_broker_leaves_nothing_behind(driver: PartitionDriver, jump_s: float) -> None:
    """Ticks follow the newest record, so an open batch of an idle partition waits for its age and no longer."""
    driver.add(driver.broker_ms + round(jump_s * 1000))
    driver.run()
    driver.add()
    assert driver.run() == Tick(0, T0 + 2_000, T0 + 2_000)
    assert driver.run() == Tick(0, T0 + 3_000, T0 + 2_000)
    assert driver.partition.positions.time_ms == T0 + 2_000


def test_impossible_append_time_never_becomes_stream_time(driver: PartitionDriver) -> None:
    driver.add(T0 * 1000)
    assert driver.run() == Tick(0, T0, T0)
    assert driver.partition.positions.time_ms == T0


def test_restart_of_an_idle_partition_counts_from_zero(driver: PartitionDriver) -> None:
    driver.run(50)
    restarted = PartitionDriver()
    restarted.partition.positions = driver.partition.positions
    assert restarted.run() is None, "it measures the broker's clock first"
    assert restarted.run() == Tick(0, T0, T0)
    assert restarted.run(30) == Tick(0, T0 + 30_000, T0)


def test_disagreement_is_measured_again_now_and_then(driver: PartitionDriver) -> None:
    """After the host slept, its monotonic clock may be behind: a new measurement ends the disagreement."""
    driver.run()
    before = driver.commits
    driver.partition.clocks.measure(T0 - DAY_S * 1000, driver.now, driver.now)
    assert driver.run() is None
    assert driver.commits == before
    assert driver.run(MEASURE_INTERVAL_S) is None
    assert driver.commits == before + 1
    assert driver.run() is not None


# --- the comparison alone -----------------------------------------------------------------------------------------


def test_slow_commit_makes_the_difference_uncertain() -> None:
    clocks = ClockComparison(60_000)
    clocks.measure(T0, sent=10.0, acknowledged=14.0)
    assert clocks.difference_ms(T0 + 2_000, 14.0) == 0
    assert clocks.difference_ms(T0 + 64_500, 14.0) == 60_500
    assert clocks.difference_ms(T0 - 64_500, 14.0) == -64_500


def test_unknown_append_time_gives_no_difference() -> None:
    clocks = ClockComparison(60_000)
    assert not clocks.allows_tick(T0, 1.0)
    clocks.measure(None, 1.0, 1.0)
    assert clocks.difference_ms(T0, 1.0) is None
    assert clocks.allows_tick(T0, 1.0)


def test_idle_time_is_never_negative() -> None:
    idle = IdleTime()
    idle.restart(10.0)
    assert idle.advance(9.0) == 0
