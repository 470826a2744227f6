"""Batches are cut by age whatever a partition does, data expires by stream time only, and idle lines cost nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.processor.core.state import JUMP_MS, StreamClock
from services.processor.core.step import ProcessorStep
from shared.events import FeedbackBase
from shared.records import Record
from shared.stream.state_store import MemoryStore
from shared.stream.step import Tick
from shared.stream.write_buffer import WriteBuffer
from shared.topics import CHAT_RESPONSES, DAY_MS, FEEDBACK_EVENTS, FEEDBACK_TALLIES
from tests.unit.processor_driver import T0, ProcessorDriver, feedback, response

DAY = DAY_MS / 1000


@pytest.fixture
def driver() -> ProcessorDriver:
    return ProcessorDriver()


def outcome_times(driver: ProcessorDriver) -> dict[str, float]:
    """Return when each event got its outcome, in seconds after the start."""
    return {o.event_id: (o.decided_at.timestamp() * 1000 - T0) / 1000 for o in driver.decided if o.event_id}


# --- batches are cut by age ---


def test_busy_partition_cuts_a_quiet_lines_batch_by_age(driver: ProcessorDriver) -> None:
    """No tick ever comes while other lines have traffic."""
    driver.append(response(line="kettle"))
    driver.append(feedback("correction", "A language.", "e1", line="kettle"), 1)
    for second in range(2, 120):
        driver.append(response(f"b{second}"), second)
        driver.append(feedback("thumbs", "up", "busy", response_id=f"b{second}"), second)
    assert outcome_times(driver)["e1"] == 31
    assert next(batch for batch in driver.batches if batch.line == "kettle").reason == "age"


def test_batch_is_cut_by_age_while_only_answers_come(driver: ProcessorDriver) -> None:
    driver.append(response())
    driver.append(feedback("correction", "A language.", "e1"), 1)
    for second in range(2, 60):
        driver.append(response(f"only-{second}"), second)
    assert outcome_times(driver) == {"e1": 31}


def test_many_lines_that_are_due_are_cut_some_at_a_time(driver: ProcessorDriver) -> None:
    for number in range(100):
        driver.append(response(f"r{number}", line=f"line{number}"))
        event = feedback("thumbs", "up", f"e{number}", response_id=f"r{number}", line=f"line{number}")
        driver.append(event, 1)
    cuts = [len(driver.tick(at)) for at in range(40, 60)]
    assert max(cuts) < 50
    assert len(driver.batches) == 100


@pytest.mark.parametrize("ahead_s", [60, 3_600, 29 * DAY, 31 * DAY, 366 * DAY])
def test_clock_that_was_ahead_delays_no_batch(driver: ProcessorDriver, ahead_s: float) -> None:
    driver.append(response())
    driver.append(response("r2", line="kettle"), ahead_s)
    driver.append(feedback("thumbs", "up", "ahead", response_id="r2"), ahead_s)
    driver.append(feedback("thumbs", "up", "e1"), 1)
    for second in range(2, 100):
        driver.append(response(f"only-{second}"), second)
    assert driver.outcomes == {"ahead": "batched", "e1": "batched"}
    assert outcome_times(driver)["e1"] <= 32


def test_feedback_with_a_wrong_time_closes_no_window_for_others(driver: ProcessorDriver) -> None:
    driver.append(response())
    driver.append(feedback("thumbs", "up", "e1", user="u_eve"), 31 * DAY)
    driver.append(feedback("thumbs", "up", "w1", response_id="r2"), 1)
    driver.append(feedback("thumbs", "up", "w2", user="u_eve", response_id="r2"), 31 * DAY)
    driver.append(feedback("thumbs", "up", "e2"), 2)
    driver.append(response("r2"), 3)
    driver.tick(40)
    assert driver.outcomes == {"e1": "late", "e2": "batched", "w1": "batched", "w2": "batched"}


class CountingStore(MemoryStore):
    """Counts the keys that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def get(self, key: bytes) -> bytes | None:
        self.reads += 1
        return super().get(key)

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        for found in super().scan(start, end):
            self.reads += 1
            yield found


def test_idle_lines_cost_nothing_per_record_or_tick() -> None:
    """Anybody may make up lines, and their batch numbers are kept for ever."""
    reads = {}
    for lines in (1, 5_000):
        driver = ProcessorDriver()
        driver.store = store = CountingStore()
        for number in range(lines):
            name = f"made-up-{number}"
            driver.append(response(f"r{number}", line=name))
            driver.append(feedback("thumbs", "up", "e1", response_id=f"r{number}", line=name))
            if number % 16 == 15:
                driver.tick(40)
        for at in range(41, 400):
            driver.tick(at)
        driver.append(response("last"), 400)
        store.reads = 0
        driver.append(feedback("thumbs", "up", "e1", response_id="last"), 401)
        driver.tick(402)
        reads[lines] = store.reads
    assert reads[5_000] == reads[1] < 40


def test_batch_number_is_never_used_twice_by_an_emptied_batch(driver: ProcessorDriver) -> None:
    for number in range(3):
        driver.append(response(f"r{number}"), number)
        driver.append(feedback("thumbs", "up", "e1", response_id=f"r{number}"), number)
        driver.append(feedback("retract", "e1", "x1", response_id=f"r{number}"), number)
    assert not list(driver.store.scan(b"b/", b"b0"))
    driver.append(feedback("thumbs", "up", "e2", response_id="r0"), 4)
    driver.tick(40)
    driver.append(feedback("thumbs", "up", "e2", response_id="r1"), 41)
    driver.append(feedback("retract", "e2", "x2", response_id="r1"), 42)
    driver.append(feedback("thumbs", "up", "e2", response_id="r2"), 43)
    driver.tick(90)
    assert [batch.batch_id for batch in driver.batches] == ["assistant-0-1", "assistant-0-2"]


# --- stream time ---

HOUR = JUMP_MS


def observed(*times: int) -> int:
    clock = StreamClock()
    for ms in times:
        clock.observe(ms)
    return clock.stream_ms


def test_stream_time_follows_the_records() -> None:
    hours = [T0 + HOUR * n // 2 for n in range(10)]
    assert observed(*hours) == hours[-1]


def test_jump_ahead_counts_once_records_span_an_hour() -> None:
    before = [T0 + n for n in range(0, 3 * HOUR, HOUR // 4)]
    ahead = before[-1] + 366 * DAY_MS
    assert observed(*before, ahead, ahead + HOUR - 1) == before[-1]
    assert observed(*before, ahead, ahead + HOUR) == ahead + HOUR
    assert observed(*before, ahead, ahead + 5, before[-1] + 7) == before[-1] + 7


def test_silence_counts_with_the_record_after_it() -> None:
    assert observed(T0, T0 + 10 * DAY_MS, T0 + 20 * DAY_MS) == T0 + 10 * DAY_MS


@given(st.lists(st.integers(T0 - 400 * DAY_MS, T0 + 400 * DAY_MS), min_size=1, max_size=20))
def test_stream_time_is_never_ahead_of_the_newest_record(times: list[int]) -> None:
    clock = StreamClock()
    for ms in times:
        clock.observe(ms)
        assert clock.stream_ms <= ms


@pytest.mark.parametrize("jump_s", [-366 * DAY, -31 * DAY, -DAY, -60.0, 60.0, DAY, 31 * DAY, 366 * DAY])
@pytest.mark.parametrize("records", [1, 50])
def test_clock_that_jumps_and_comes_back_expires_nothing(
    driver: ProcessorDriver, jump_s: float, records: int
) -> None:
    driver.append(response())
    driver.append(feedback("thumbs", "up", "waiting", response_id="r2"), 1)
    for number in range(records):
        driver.append(response(f"other-{number}"), 2 + jump_s + number)
    driver.append(feedback("correction", "A language.", "e1"), 60)
    driver.append(response("r2"), 61)
    for second in range(62, 120):
        driver.append(response(f"then-{second}"), second)
    driver.tick(200)
    assert driver.outcomes == {"waiting": "batched", "e1": "batched"}


def test_tick_with_any_time_never_raises() -> None:
    for ms in (-(2**63), -1, 0, T0 * 1000, 2**63 - 1):
        driver = ProcessorDriver()
        driver.append(response())
        driver.append(feedback("thumbs", "up", "e1"), 1)
        driver.process(Tick(0, ms, ms))
        driver.append(feedback("thumbs", "up", "e2", user="u_bob"), 2)
        driver.tick(100)
        assert driver.outcomes == {"e1": "batched", "e2": "batched"}


# --- tallies ---


def tombstones(driver: ProcessorDriver) -> Counter[bytes | None]:
    return Counter(o.key for o in driver.outputs if o.topic == FEEDBACK_TALLIES.name and o.value is None)


def test_tally_expires_a_month_after_its_newest_change(driver: ProcessorDriver) -> None:
    for user, day in (("u_ann", 0), ("u_bob", 0), ("u_bob", 20)):
        driver.append(response(f"{user}{day}"), day * DAY)
        driver.append(feedback("thumbs", "up", "e1", user=user, response_id=f"{user}{day}"), day * DAY + 1)
    driver.advance(30 * DAY)
    assert not tombstones(driver)
    driver.advance(32 * DAY)
    assert tombstones(driver) == {b"assistant@base-00000000|u_ann|0": 1}
    assert set(driver.tallies) == {"u_bob"}
    assert driver.tallies["u_bob"].up == 2
    driver.advance(52 * DAY)
    assert driver.tallies == {}
    assert not [key for key, _ in driver.store.scan(b"t/", b"t0")]
    assert not [key for key, _ in driver.store.scan(b"y/", b"y0")]


def test_tally_starts_anew_after_it_expired(driver: ProcessorDriver) -> None:
    driver.append(response())
    driver.append(feedback("thumbs", "up", "e1"), 1)
    driver.advance(32 * DAY)
    driver.append(response("r2"), 32 * DAY + 1)
    driver.append(feedback("thumbs", "down", "e1", response_id="r2"), 32 * DAY + 2)
    assert (driver.tallies["u_ann"].up, driver.tallies["u_ann"].down) == (0, 1)


def test_tallies_expire_some_at_a_time() -> None:
    step, store = ProcessorStep(), MemoryStore()

    def process(record: FeedbackBase | Record, at_ms: int) -> int:
        buffer = WriteBuffer(store, 1_000_000)
        if isinstance(record, FeedbackBase):
            record = Record(FEEDBACK_EVENTS.name, 0, 0, at_ms, record.response_id.encode(), record.to_json())
        outputs = list(step(buffer, record))
        store.apply(buffer.writes, 0)
        return sum(output.topic == FEEDBACK_TALLIES.name for output in outputs)

    for number in range(1_000):
        answer = response(f"r{number}")
        process(Record(CHAT_RESPONSES.name, 0, 0, T0, b"r%d" % number, answer.to_json()), T0)
        process(feedback("thumbs", "up", "e1", user=f"u{number}", response_id=f"r{number}"), T0)
    late = T0 + 40 * DAY_MS
    deleted = []
    for number in range(20):
        at_ms = late + number * JUMP_MS
        filler = response(f"filler-{number}").to_json()
        deleted.append(
            process(Record(CHAT_RESPONSES.name, 0, 0, at_ms, b"filler-%d" % number, filler), at_ms)
        )
    assert max(deleted) <= 200
    assert sum(deleted) == 1_000
