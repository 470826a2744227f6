"""I1-I4 in the processor's rules: each event gets one outcome, in any order of arrival."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.processor.core.batches import BatchLimits
from services.processor.core.state import JoinedResponse, joined_key
from shared.errors import Malformed
from shared.events import EARLIEST, EARLIEST_MS, MAX_MS, MIN_MS, LogRecord
from shared.records import Record
from shared.topics import CHAT_RESPONSES, DAY_MS, WINDOW_DAYS
from tests.unit.processor_driver import FILLER, T0, ProcessorDriver, feedback, response

DAY = DAY_MS / 1000
CUT = 1_000.0


@pytest.fixture
def driver() -> ProcessorDriver:
    return ProcessorDriver()


@pytest.mark.parametrize("response_first", [True, False])
def test_correction_finds_its_response_in_either_order(driver: ProcessorDriver, response_first: bool) -> None:
    records: list[LogRecord] = [response(), feedback("correction", "A language.", "e1")]
    for at, record in enumerate(records if response_first else reversed(records)):
        driver.append(record, at)
    driver.tick(CUT)
    assert driver.dataset == {"r1": [("e1", "A language.")]}
    assert driver.outcomes == {"e1": "batched"}


def test_newest_edit_supersedes_the_older_one(driver: ProcessorDriver) -> None:
    driver.append(response())
    driver.append(feedback("correction", "Old.", "e1", at_s=1), 1)
    driver.append(feedback("correction", "New.", "e2", at_s=2), 2)
    driver.tick(CUT)
    assert driver.dataset == {"r1": [("e2", "New.")]}
    assert driver.outcomes == {"e1": "superseded", "e2": "batched"}


def test_older_edit_that_arrives_later_is_superseded(driver: ProcessorDriver) -> None:
    driver.append(response())
    driver.append(feedback("correction", "New.", "e2", at_s=2), 3)
    driver.append(feedback("correction", "Old.", "e1", at_s=1), 4)
    driver.tick(CUT)
    assert driver.dataset == {"r1": [("e2", "New.")]}
    assert driver.outcomes == {"e1": "superseded", "e2": "batched"}


def test_time_in_the_future_is_clamped_to_the_append_time(driver: ProcessorDriver) -> None:
    driver.append(response())
    driver.append(feedback("thumbs", "up", "e1", at_s=9_999), 1)
    driver.append(feedback("thumbs", "down", "e2", at_s=2), 2)
    driver.tick(CUT)
    assert driver.dataset == {"r1": [("e2", "down")]}


UNRENDERABLE = [
    datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14))),
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC),
    datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-14))),
]


@pytest.mark.parametrize("at", UNRENDERABLE, ids=str)
@pytest.mark.parametrize("response_first", [True, False])
def test_foreign_record_with_an_impossible_time_trains(
    driver: ProcessorDriver, at: datetime, response_first: bool
) -> None:
    records: list[LogRecord] = [response(), feedback("correction", "A language.", "e1", occurred_at=at)]
    for second, record in enumerate(records if response_first else reversed(records)):
        driver.append(record, second)
    driver.tick(CUT)
    assert driver.errors == []
    assert driver.outcomes == {"e1": "batched"}
    (signal,) = driver.newest["r1"].signals
    assert EARLIEST <= signal.occurred_at <= datetime.fromtimestamp(T0 / 1000 + 1, UTC)


@pytest.mark.parametrize("at", UNRENDERABLE, ids=str)
def test_impossible_time_is_never_stored(driver: ProcessorDriver, at: datetime) -> None:
    driver.append(feedback("correction", "A language.", "e1", occurred_at=at))
    joined = JoinedResponse.from_json(driver.store.get(joined_key(b"r1")) or b"")
    assert EARLIEST_MS <= joined.signals["e1"].at_ms <= T0
    assert joined.events["e1"].at_ms == joined.signals["e1"].at_ms


def test_impossible_time_is_older_than_any_other(driver: ProcessorDriver) -> None:
    driver.append(response())
    driver.append(feedback("thumbs", "up", "e1", at_s=1), 1)
    driver.append(feedback("thumbs", "down", "e2", occurred_at=UNRENDERABLE[0]), 2)
    driver.tick(CUT)
    assert driver.dataset == {"r1": [("e1", "up")]}
    assert driver.outcomes == {"e1": "batched", "e2": "superseded"}


def poison(driver: ProcessorDriver, response_id: str, ms: int) -> None:
    """Store `ms` as the time of every signal, as code that does not clamp it would."""
    key = joined_key(response_id.encode())
    joined = JoinedResponse.from_json(driver.store.get(key) or b"")
    for event_id, signal in joined.signals.items():
        signal.at_ms = joined.events[event_id].at_ms = ms
    driver.store.apply({key: joined.to_json()}, 0)


@pytest.mark.parametrize("ms", [-62_135_647_200_000, MIN_MS, -1, EARLIEST_MS - 1, MAX_MS + 1, 2**63 - 1])
@pytest.mark.parametrize("response_first", [True, False])
def test_state_with_an_impossible_time_heals_at_the_cut(ms: int, response_first: bool) -> None:
    driver = ProcessorDriver()
    if response_first:
        driver.append(response())
    driver.append(feedback("correction", "A language.", "e1"), 1)
    poison(driver, "r1", ms)
    if not response_first:
        driver.append(response(), 2)
    driver.tick(CUT)
    assert driver.outcomes == {"e1": "batched"}
    assert driver.newest["r1"].signals[0].occurred_at >= EARLIEST


@pytest.mark.parametrize(
    "ms", [MIN_MS - 1, -1, 0, T0 * 1000, T0 + 366 * DAY_MS, T0 + 31 * DAY_MS, MAX_MS + 1]
)
def test_record_with_a_wrong_append_time_affects_no_other(driver: ProcessorDriver, ms: int) -> None:
    """As from a topic whose writers choose the times. Such a record is not unreadable, so it is processed."""
    driver.append(response())
    driver.append(feedback("correction", "A language.", "e1"), 1)
    driver.append(feedback("thumbs", "up", "e2", user="u_bob", response_id="r3"), 2)
    driver.process(Record(CHAT_RESPONSES.name, 0, 9, ms, b"r2", response("r2").to_json()))
    for second in range(3, 60):
        driver.append(response(f"other-{second}"), second)
    driver.append(response("r3"), 61)
    driver.tick(CUT)
    assert driver.errors == []
    assert driver.outcomes == {"e1": "batched", "e2": "batched"}


def test_repeated_event_is_a_duplicate_and_counts_once(driver: ProcessorDriver) -> None:
    driver.append(response())
    for at in range(3):
        driver.append(feedback("thumbs", "down", "e1"), at)
    driver.tick(CUT)
    assert driver.dataset == {"r1": [("e1", "down")]}
    assert sorted(driver.outcomes["e1"].split(",")) == ["batched", "duplicate", "duplicate"]
    assert driver.tallies["u_ann"].down == 1


def test_event_id_with_other_content_is_a_conflict(
    driver: ProcessorDriver,
) -> None:
    driver.append(response())
    driver.append(feedback("thumbs", "down", "e1"), 1)
    driver.append(feedback("thumbs", "up", "e1"), 2)
    driver.tick(CUT)
    assert driver.dataset == {"r1": [("e1", "down")]}
    assert driver.outcomes == {"e1": "refused:conflict,batched"}


def test_response_id_with_other_content_is_a_conflict(
    driver: ProcessorDriver,
) -> None:
    driver.append(response())
    assert driver.append(response(latency_ms=7.0), 1) == []
    driver.append(response(text="Another answer."), 2)
    driver.append(feedback("thumbs", "down", "e1"), 3)
    driver.tick(CUT)
    assert driver.refused_responses == [("r1", "conflict")]
    assert driver.newest["r1"].choices[0].text == "Python is a snake."


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 2, 0), (2, 1, 0), (2, 0, 1), (1, 0, 2)])
def test_retracted_correction_leaves_dataset_in_any_order(order: tuple[int, ...]) -> None:
    driver = ProcessorDriver()
    records: list[LogRecord] = [
        response(),
        feedback("correction", "Wrong again.", "e1", at_s=0),
        feedback("retract", "e1", "e2", at_s=1),
    ]
    for at, index in enumerate(order):
        driver.append(records[index], at + 1)
    driver.tick(CUT)
    assert driver.dataset == {}
    assert driver.outcomes == {"e1": "retracted", "e2": "applied_retract"}


def test_retraction_after_the_cut_retracts_the_example(driver: ProcessorDriver) -> None:
    driver.append(response())
    driver.append(feedback("correction", "A language.", "e1"), 1)
    driver.tick(CUT)
    driver.append(feedback("retract", "e1", "e2"), CUT + 1)
    driver.tick(2 * CUT)
    assert [example.op for batch in driver.batches for example in batch.examples] == ["upsert", "retract"]
    assert driver.newest["r1"].messages == ()
    assert driver.outcomes == {"e1": "batched", "e2": "applied_retract"}


def test_example_retracted_before_the_cut_is_never_in_a_batch(driver: ProcessorDriver) -> None:
    driver.append(response())
    driver.append(feedback("correction", "A language.", "e1"), 1)
    driver.append(feedback("retract", "e1", "e2"), 2)
    driver.tick(CUT)
    assert driver.batches == []


def test_user_cannot_retract_anothers_feedback(driver: ProcessorDriver) -> None:
    driver.append(response())
    driver.append(feedback("thumbs", "up", "e1", user="u_ann"), 1)
    driver.append(feedback("retract", "e1", "e2", user="u_bob"), 2)
    driver.tick(CUT)
    assert driver.dataset == {"r1": [("e1", "up")]}
    assert driver.outcomes == {"e1": "batched", "e2": "refused:not_yours"}


def test_vague_comments_are_counted_but_not_trained(driver: ProcessorDriver) -> None:
    driver.append(response())
    driver.append(feedback("comment", "bad answer", "e1"), 1)
    driver.tick(CUT)
    assert driver.batches == []
    assert driver.outcomes == {"e1": "tally_only"}
    assert driver.tallies["u_ann"].comments == 1


def test_feedback_without_a_response_ends_unmatched(driver: ProcessorDriver) -> None:
    driver.append(feedback("thumbs", "up", "e1"))
    driver.advance(WINDOW_DAYS * DAY - 30)
    assert driver.outcomes == {}
    driver.advance(WINDOW_DAYS * DAY + 1)
    assert driver.outcomes == {"e1": "unmatched"}


def test_each_event_waits_a_window_of_its_own(driver: ProcessorDriver) -> None:
    """Who spoke first on an unknown response decides nothing about the others."""
    driver.append(feedback("thumbs", "up", "e1", user="u_first"))
    driver.advance(29 * DAY)
    driver.append(feedback("correction", "It is a language.", "e2"), driver.now_s)
    driver.advance(31 * DAY)
    assert driver.outcomes == {"e1": "unmatched"}
    driver.append(response(), driver.now_s)
    driver.advance(driver.now_s + 60)
    assert driver.outcomes == {"e1": "unmatched", "e2": "batched"}
    assert driver.dataset == {"r1": [("e2", "It is a language.")]}


def test_later_event_does_not_prolong_the_wait_of_an_earlier_one(driver: ProcessorDriver) -> None:
    for number in range(4):
        driver.append(feedback("thumbs", "up", f"e{number}", user=f"u_{number}"), number * 20 * DAY)
        driver.advance((number + 1) * 20 * DAY - 60)
    assert driver.outcomes == {"e0": "unmatched", "e1": "unmatched", "e2": "unmatched"}
    driver.advance(200 * DAY)
    assert set(driver.outcomes.values()) == {"unmatched"}
    assert len(driver.outcomes) == 4


def test_feedback_after_the_window_is_late(driver: ProcessorDriver) -> None:
    driver.append(response())
    driver.append(feedback("thumbs", "up", "e1"), WINDOW_DAYS * DAY - 1)
    driver.append(feedback("thumbs", "down", "e2"), WINDOW_DAYS * DAY + 1)
    driver.tick(WINDOW_DAYS * DAY + CUT)
    assert driver.outcomes == {"e1": "batched", "e2": "late"}


def test_tick_closes_no_window(driver: ProcessorDriver) -> None:
    """Only the broker's clock, by append times, says that a window is over."""
    driver.append(response())
    driver.append(feedback("thumbs", "up", "e1", response_id="never-came"))
    driver.append(feedback("thumbs", "up", "e2"), 1)
    for days in (1, 31, 366):
        driver.tick(days * DAY)
    driver.append(feedback("thumbs", "down", "e3", user="u_bob"), 2)
    driver.tick(CUT)
    assert driver.outcomes == {"e2": "batched", "e3": "batched"}


def test_state_is_empty_once_all_windows_and_traces_ended(driver: ProcessorDriver) -> None:
    driver.append(response())
    driver.append(feedback("retract", "never-came", "e1"), 1)
    driver.append(feedback("correction", "A language.", "e2"), 1)
    driver.tick(CUT)
    for at in (WINDOW_DAYS * DAY + 60, 2 * WINDOW_DAYS * DAY + 120, 2 * WINDOW_DAYS * DAY + 180):
        driver.advance(at)
    assert driver.outcomes == {"e1": "unmatched", "e2": "batched"}
    left = [key for key, _ in driver.store.scan(b"a", b"z") if FILLER.encode() not in key]
    assert left == [b"b/assistant", b"m/clock"]


def test_feedback_on_a_missing_choice_is_not_trained(driver: ProcessorDriver) -> None:
    driver.append(feedback("thumbs", "up", "e1", choice=3))
    driver.append(response(), 1)
    driver.append(feedback("thumbs", "up", "e2", choice=4), 2)
    driver.tick(CUT)
    assert driver.batches == []
    assert driver.outcomes == {"e1": "tally_only", "e2": "tally_only"}


@pytest.mark.parametrize("value", [b"", b"{", b"\xff\xfe", b"[]", b'{"line":1}', b"[" * 100_000])
def test_unreadable_record_is_malformed_and_changes_nothing(driver: ProcessorDriver, value: bytes) -> None:
    driver.process(Record(CHAT_RESPONSES.name, 0, 0, T0, b"r1", value))
    assert [type(error) for error in driver.errors] == [Malformed]
    assert driver.store.key_count() == 0


def test_record_under_a_foreign_key_is_malformed(driver: ProcessorDriver) -> None:
    driver.process(Record(CHAT_RESPONSES.name, 0, 0, T0, b"r2", response("r1").to_json()))
    assert [type(error) for error in driver.errors] == [Malformed]


def test_tally_follows_edits_and_retractions(driver: ProcessorDriver) -> None:
    driver.append(feedback("thumbs", "down", "e1", at_s=0))
    assert driver.tallies == {}
    driver.append(response(), 1)
    assert (driver.tallies["u_ann"].up, driver.tallies["u_ann"].down) == (0, 1)
    driver.append(feedback("thumbs", "up", "e2", at_s=2), 2)
    assert (driver.tallies["u_ann"].up, driver.tallies["u_ann"].down) == (1, 0)
    driver.append(feedback("retract", "e2", "e3", at_s=3), 3)
    assert (driver.tallies["u_ann"].up, driver.tallies["u_ann"].down) == (0, 0)


# --- any order, any repetition ---

KINDS = [
    ("thumbs", "up"),
    ("thumbs", "down"),
    ("correction", "A language."),
    ("correction", "A tool."),
    ("rating", 4),
]


@st.composite
def histories(draw: st.DrawFn) -> list[LogRecord]:
    """Draw up to three responses and feedback of two users, each event with its own time, some of it retracted."""
    responses = draw(st.integers(1, 3))
    records: list[LogRecord] = [response(f"r{n}") for n in range(responses)]
    for number in range(draw(st.integers(1, 10))):
        kind, value = draw(st.sampled_from(KINDS))
        user, target = draw(st.sampled_from(["u_ann", "u_bob"])), f"r{draw(st.integers(0, responses - 1))}"
        event_id, at = f"e{number}", draw(st.integers(-50, -1))
        records.append(feedback(kind, value, event_id, user=user, at_s=at, response_id=target))
        if draw(st.booleans()):
            retraction = feedback("retract", event_id, f"x{number}", user=user, at_s=0, response_id=target)
            records.append(retraction)
    return records


@settings(max_examples=150)
@given(histories(), st.integers(0, 2**32), st.sampled_from([1, 2, 64]))
def test_any_order_and_duplication_gives_the_same_dataset(
    history: list[LogRecord], seed: int, per_batch: int
) -> None:
    """I3, I4: order, repetition and the position of the cuts do not change the dataset."""
    plain, shuffled = ProcessorDriver(), ProcessorDriver(BatchLimits(examples=per_batch))
    rng = random.Random(seed)
    messy = history + rng.choices(history, k=rng.randrange(len(history) + 1))
    rng.shuffle(messy)
    for driver, records in ((plain, history), (shuffled, messy)):
        for at, record in enumerate(records):
            driver.append(record, at)
            if driver is shuffled and rng.random() < 0.2:
                driver.tick(at + 100)
        driver.tick(10 * CUT)
        assert driver.errors == []
    assert shuffled.dataset == plain.dataset
    # I1: nothing waits once everything arrived and was cut, and each record got exactly one outcome.
    events = len(messy) - sum(1 for record in messy if record.event_type == "loopwright.chat.response")
    assert sum(len(kinds.split(",")) for kinds in shuffled.outcomes.values()) == events
    final = {
        event_id: [k for k in kinds.split(",") if k != "duplicate"]
        for event_id, kinds in shuffled.outcomes.items()
    }
    assert all(len(kinds) == 1 for kinds in final.values()), final


# --- any time, from any producer ---

MOMENTS = st.one_of(
    st.sampled_from(UNRENDERABLE),
    st.builds(
        lambda naive, minutes: naive.replace(tzinfo=timezone(timedelta(minutes=minutes))),
        st.datetimes(),
        st.integers(-1439, 1439),
    ),
)
STORED_MS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(MIN_MS - 1000, MIN_MS + 1000),
    st.integers(MAX_MS - 1000, MAX_MS + 1000),
    st.integers(-1000, 1000),
)


@settings(max_examples=150)
@given(
    history=st.lists(
        st.tuples(
            st.sampled_from([*KINDS, ("comment", "Name the year in which it was founded")]),
            st.sampled_from(["u_ann", "u_bob"]),
            st.none() | MOMENTS,
            st.none() | STORED_MS,
        ),
        min_size=1,
        max_size=6,
    ),
    answered_after=st.integers(0, 6),
    per_batch=st.sampled_from([1, 64]),
)
def test_feedback_with_any_time_gets_one_outcome(
    history: list[tuple[tuple[str, str | int], str, datetime | None, int | None]],
    answered_after: int,
    per_batch: int,
) -> None:
    """Records may have any datetime with any offset, and stored state any number of ms."""
    driver = ProcessorDriver(BatchLimits(examples=per_batch))
    events = [
        feedback(kind, value, f"e{number}", user=user, occurred_at=at)
        for number, ((kind, value), user, at, _) in enumerate(history)
    ]
    records: list[LogRecord] = [*events[:answered_after], response(), *events[answered_after:]]
    stored = [ms for *_, ms in history]
    stored.insert(answered_after, None)
    for second, (record, ms) in enumerate(zip(records, stored, strict=True)):
        driver.append(record, second)
        if ms is not None and driver.store.get(joined_key(b"r1")) is not None:
            poison(driver, "r1", ms)
    driver.tick(CUT)
    assert driver.errors == []
    assert set(driver.outcomes) == {event.event_id for event in events}
    assert not [kinds for kinds in driver.outcomes.values() if kinds not in ("batched", "superseded")]
    assert all(
        signal.occurred_at >= EARLIEST
        for batch in driver.batches
        for example in batch.examples
        for signal in example.signals
    )
