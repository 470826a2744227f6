"""I11 in the processor's rules: what an erasure takes, from where, and what it leaves to others."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.processor.core.batches import BatchLimits
from services.processor.core.erasure.compaction import FILLER_INTERVAL_MS, FILLERS
from services.processor.core.erasure.process import KEYS_PER_PIECE, RECORDS_PER_PIECE, ErasureConfig
from shared.events import Batch, ErasureReport, ErasureRequest, LogRecord, Message, Outcome, OutcomeKind
from shared.records import Output
from shared.topics import (
    DAY_MS,
    ERASURE_REPORTS,
    FEEDBACK_OUTCOMES,
    FEEDBACK_TALLIES,
    TRAINING_BATCHES,
    WINDOW_DAYS,
)
from tests.unit.processor_driver import START, ProcessorDriver, feedback, response

ANN, BOB = "u_ann", "u_bob"
SECRET = "the cat is called Pellworth"
DAY = DAY_MS / 1000
HOUR = 3600.0
CUT = 40.0
"""By then a batch that was opened at the start has been cut by its age."""


@pytest.fixture
def driver() -> ProcessorDriver:
    return ProcessorDriver(erasure=ErasureConfig(partitions=6))


def asked(user: str | None, response_id: str = "r1", at_s: float = 0.0) -> LogRecord:
    """A response to what `user` asked; what was said holds the secret."""
    question = (Message(role="user", content=f"{SECRET}. What is Python?"),)
    made = START + timedelta(seconds=at_s)
    return response(response_id, messages=question, user_id=user, created_at=made)


def erasure(subject: str = ANN, request_id: str = "q1", at_s: float = HOUR) -> ErasureRequest:
    made = START + timedelta(seconds=at_s)
    return ErasureRequest(
        line="assistant",
        request_id=request_id,
        subject=subject,
        requested_at=made,
        deadline=made + timedelta(days=37),
    )


def erase(driver: ProcessorDriver, subject: str = ANN, request_id: str = "q1", at_s: float = HOUR) -> None:
    """All of it, as a request that is appended when it is made."""
    driver.append(erasure(subject, request_id, at_s), at_s)
    driver.finish_erasures(at_s)


def traces(driver: ProcessorDriver, *, of: tuple[str, ...] = (ANN, SECRET)) -> list[str]:
    """Where anything of the subject still stands: state (but for the fence), newest rewrites."""
    needles = [needle.encode() for needle in of]
    found = [
        f"state {key!r}"
        for key, value in driver.store.scan(b"\x01", b"\xff")
        if key[:2] not in (b"f/", b"g/") and any(needle in key + value for needle in needles)
    ]
    return found + [
        f"batch {batch.batch_id}" for batch in driver.batches if any(n in batch.to_json() for n in needles)
    ]


def told(outputs: list[Output], *, of: tuple[str, ...] = (ANN, SECRET)) -> list[Output]:
    """Outputs that hold something of the subject; reports, and deletions under its key, have to name it."""
    return [
        each
        for each in outputs
        if each.topic != ERASURE_REPORTS.name
        and any(
            needle.encode() in (each.key or b"") * (each.value is not None) + (each.value or b"")
            for needle in of
        )
    ]


def outcome_details(driver: ProcessorDriver) -> dict[str, tuple[str, str | None]]:
    found = map(Outcome.from_json, driver.values(FEEDBACK_OUTCOMES.name))
    return {outcome.event_id: (str(outcome.outcome), outcome.detail) for outcome in found}


# --- what is dropped ---


def test_what_the_subject_said_of_anothers_response_leaves_the_state_and_the_batch(
    driver: ProcessorDriver,
) -> None:
    driver.append(asked(BOB, at_s=0))
    driver.append(feedback("correction", f"{SECRET}!", "e1", user=ANN), 1)
    driver.append(feedback("thumbs", "down", "e2", user=BOB), 2)
    driver.tick(CUT)
    erase(driver)
    driver.tick(2 * HOUR)
    assert traces(driver, of=(ANN, f"{SECRET}!")) == []
    assert driver.dataset == {"r1": [("e2", "down")]}
    assert [(batch.batch_id, batch.rewrite, batch.reason) for batch in driver.batches] == [
        ("assistant-0-1", 1, "erasure"),
        ("assistant-0-2", 0, "age"),
    ]
    assert driver.newest["r1"].revision == 3
    assert driver.newest["r1"].user_id == BOB
    assert driver.outcomes == {"e1": "batched", "e2": "batched"}


def test_what_the_subject_asked_becomes_a_retraction_without_content(driver: ProcessorDriver) -> None:
    driver.append(asked(ANN))
    driver.append(feedback("correction", "A language.", "e1", user=BOB), 1)
    driver.tick(CUT)
    erase(driver)
    driver.tick(2 * HOUR)
    assert traces(driver, of=(ANN, SECRET, "A language.")) == []
    (batch,) = driver.batches
    (example,) = batch.examples
    assert (example.op, example.revision, example.messages, example.user_id) == ("retract", 1, (), None)
    (report,) = driver.reports
    assert report.batches == {"assistant-0-1": 1}
    assert (report.partition, report.partitions, report.responses) == (0, 6, 1)
    assert (report.request_id, report.subject, report.service) == ("q1", ANN, "processor")


@pytest.mark.parametrize("year", [1, 1969])
def test_an_erasure_spares_others_whose_times_are_before_1970(driver: ProcessorDriver, year: int) -> None:
    said_at = datetime(year, 1, 1, tzinfo=UTC)
    driver.append(asked(BOB))
    driver.append(feedback("thumbs", "up", "e1", user=ANN), 1)
    driver.append(feedback("correction", "A language.", "e2", user=BOB, occurred_at=said_at), 2)
    driver.tick(CUT)
    erase(driver)
    driver.tick(2 * HOUR)
    assert driver.dataset == {"r1": [("e2", "A language.")]}


def test_what_waited_for_a_batch_is_erased_and_others_are_told_why(driver: ProcessorDriver) -> None:
    driver.append(asked(ANN))
    driver.append(feedback("thumbs", "up", "e1", user=ANN), 1)
    driver.append(feedback("correction", "A language.", "e2", user=BOB), 2)
    driver.append(asked(BOB, "r2"), 3)
    driver.append(feedback("thumbs", "up", "e3", user=ANN, response_id="r2"), 3)
    driver.append(feedback("retract", "e9", "e4", user=ANN, response_id="r2"), 3)
    driver.append(feedback("thumbs", "up", "e5", user=ANN, response_id="never-came"), 3)
    erase(driver, at_s=5)
    driver.tick(CUT)
    assert driver.batches == []
    assert outcome_details(driver) == {
        "e1": ("erased", "the response was erased"),
        "e2": ("erased", "the response was erased"),
        "e3": ("erased", None),
        "e4": ("erased", None),
        "e5": ("erased", None),
    }
    assert traces(driver, of=(ANN,)) == []


def test_feedback_on_an_erased_response_is_erased_while_its_window_lasts(driver: ProcessorDriver) -> None:
    driver.append(asked(ANN))
    erase(driver)
    driver.append(feedback("thumbs", "up", "e1", user=BOB), 2 * HOUR)
    driver.append(feedback("retract", "e1", "e2", user=BOB), 2 * HOUR)
    driver.append(asked(ANN), 2 * HOUR)
    assert driver.outcomes == {"e1": "erased", "e2": "erased"}
    assert driver.errors == []
    assert traces(driver) == []


def test_the_subjects_tallies_are_deleted_and_nobody_elses(driver: ProcessorDriver) -> None:
    for number, version in enumerate(["v", "v/1", "w"]):
        for user in (ANN, BOB):
            driver.append(response(f"r{number}", version=version))
            said = feedback("thumbs", "up", f"{user}{number}", user=user, response_id=f"r{number}")
            driver.append(said, number)
    assert set(driver.tallies) == {ANN, BOB}
    erase(driver)
    assert set(driver.tallies) == {BOB}
    deleted = [o.key for o in driver.outputs if o.topic == FEEDBACK_TALLIES.name and o.value is None]
    assert set(deleted) == {b"v|u_ann|0", b"v/1|u_ann|0", b"w|u_ann|0"}


def test_a_tally_begun_anew_never_falls_below_nothing(driver: ProcessorDriver) -> None:
    driver.append(asked(BOB))
    driver.append(feedback("thumbs", "up", "new", user=ANN), 3 * HOUR)
    driver.append(erasure(at_s=HOUR), 4 * HOUR)  # the request took hours to come: what was said since stays
    driver.finish_erasures(4 * HOUR)
    driver.tick(4 * HOUR)
    assert driver.dataset == {"r1": [("new", "up")]}
    driver.append(feedback("retract", "new", "x", user=ANN, received_at=START + timedelta(hours=5)), 5 * HOUR)
    assert driver.tallies[ANN].up == 0


# --- what arrives later ---


def test_what_was_made_before_the_request_is_erased_when_it_arrives_after_it(driver: ProcessorDriver) -> None:
    erase(driver)
    driver.append(feedback("correction", SECRET, "e1", user=ANN), 2 * HOUR)
    driver.append(feedback("thumbs", "up", "e2", user=BOB, response_id="r2"), 2 * HOUR)
    driver.append(asked(ANN, "r2"), 2 * HOUR)
    late = feedback("correction", SECRET, "e3", user=ANN, at_s=10, received_at=START + timedelta(days=3))
    driver.append(late, 3 * DAY)
    assert outcome_details(driver) == {
        "e1": ("erased", None),
        "e2": ("erased", "the response was erased"),
        "e3": ("erased", None),
    }
    assert traces(driver) == []
    assert told(driver.outputs) == []


def test_what_was_made_after_the_request_is_new_and_stays(driver: ProcessorDriver) -> None:
    driver.append(asked(BOB))
    erase(driver)
    later = START + timedelta(hours=2)
    driver.append(feedback("thumbs", "up", "e1", user=ANN, received_at=later), 2 * HOUR)
    driver.append(asked(ANN, "r2", at_s=2 * HOUR), 2 * HOUR)
    driver.append(feedback("thumbs", "down", "e2", user=BOB, response_id="r2", received_at=later), 2 * HOUR)
    driver.tick(3 * HOUR)
    assert driver.dataset == {"r1": [("e1", "up")], "r2": [("e2", "down")]}
    assert driver.newest["r2"].user_id == ANN


def test_a_fence_goes_when_its_time_is_over(driver: ProcessorDriver) -> None:
    erase(driver)
    driver.tick(WINDOW_DAYS * DAY + HOUR - 1)
    assert [key for key, _ in driver.store.scan(b"f", b"h")]
    driver.tick(WINDOW_DAYS * DAY + HOUR + 10)
    assert traces(driver) == []
    assert not [key for key, _ in driver.store.scan(b"f", b"h")]
    driver.tick((WINDOW_DAYS + 4) * DAY)


# --- how it is carried through ---


def test_a_request_sent_twice_is_answered_once_and_another_of_the_same_subject_too(
    driver: ProcessorDriver,
) -> None:
    driver.append(asked(ANN))
    erase(driver)
    erase(driver, at_s=2 * HOUR)
    erase(driver, request_id="q2", at_s=3 * HOUR)
    assert [report.request_id for report in driver.reports] == ["q1", "q2"]


def test_a_large_state_is_walked_through_piece_by_piece_and_reported_at_the_end(
    driver: ProcessorDriver,
) -> None:
    many = 2 * KEYS_PER_PIECE
    for number in range(many):
        driver.append(asked(ANN, f"r{number:04d}"), 1)
        driver.append(feedback("thumbs", "up", f"e{number}", user=BOB, response_id=f"r{number:04d}"), 1)
    driver.tick(CUT)

    def left() -> int:
        return sum(1 for _ in driver.store.scan(b"a/r", b"a/s"))

    pieces = [left()]
    driver.append(erasure(), HOUR)
    pieces.append(left())
    for number in range(10 * RECORDS_PER_PIECE):  # a busy partition, which never ticks
        driver.append(asked(BOB, f"z{number}", at_s=HOUR), HOUR)
        pieces.append(left())
    taken = [a - b for a, b in pairwise(pieces) if a > b]
    assert pieces[0] == sum(taken) == many
    assert len(taken) > 1
    assert max(taken) <= KEYS_PER_PIECE
    assert driver.reports == []
    driver.finish_erasures(HOUR)
    (report,) = driver.reports
    assert report.responses == many
    assert len(report.batches) == -(-many // 64)
    assert traces(driver, of=(ANN,)) == []


def test_one_reread_serves_all_requests_that_wait_and_later_ones_wait_for_the_next(
    driver: ProcessorDriver,
) -> None:
    for number, user in enumerate(["u_a", "u_b", "u_c"]):
        driver.append(asked(BOB, f"r{number}"))
        driver.append(feedback("thumbs", "up", f"e{number}", user=user, response_id=f"r{number}"), 1)
    driver.tick(CUT)
    driver.append(erasure("u_a", "q1"), HOUR)
    assert driver.reread_end is not None
    driver.append(erasure("u_b", "q2"), HOUR)
    driver.append(erasure("u_c", "q3"), HOUR)
    driver.reread(2)  # its one batch, and that this was all
    assert [report.request_id for report in driver.reports] == ["q1"]
    driver.finish_erasures(HOUR)
    assert [report.request_id for report in driver.reports] == ["q1", "q2", "q3"]
    assert [report.batches for report in driver.reports] == [
        {"assistant-0-1": 1},
        {"assistant-0-1": 2},
        {"assistant-0-1": 2},
    ]


def test_an_older_copy_that_the_log_still_holds_brings_nobody_back(driver: ProcessorDriver) -> None:
    """Kafka may show a batch and its rewrites all: the second erasure must not begin from the first copy."""
    driver.append(asked(BOB))
    driver.append(feedback("thumbs", "up", "e1", user=ANN), 1)
    driver.append(feedback("thumbs", "up", "e2", user="u_carl"), 1)
    driver.append(feedback("thumbs", "down", "e3", user=BOB), 1)
    driver.tick(CUT)
    erase(driver)
    erase(driver, "u_carl", "q2", 2 * HOUR)
    first = driver.batches[0]
    assert first.rewrite == 2
    assert [signal.event_id for signal in first.examples[0].signals] == ["e3"]
    assert traces(driver, of=(ANN, "u_carl")) == []


def test_a_reread_that_begins_again_rewrites_nothing_twice(driver: ProcessorDriver) -> None:
    driver.append(asked(ANN))
    driver.append(feedback("thumbs", "up", "e1", user=BOB), 1)
    driver.tick(CUT)
    driver.append(erasure(), HOUR)
    driver.reread(1)
    driver.reread_position, driver.reread_end = 0, len(driver.logged_batches)
    driver.finish_erasures(HOUR)
    assert [batch.rewrite for batch in driver.batches] == [1]


# --- taken back too late ---


def aged(driver: ProcessorDriver) -> float:
    """Ann's correction was trained, and the window has closed. Returns the time."""
    driver.append(asked(BOB))
    driver.append(feedback("correction", "A mistake.", "e1", user=ANN), 1)
    driver.append(feedback("correction", "A tool.", "e2", user=BOB), 1)
    driver.tick(CUT)
    driver.tick(WINDOW_DAYS * DAY + 100)
    return WINDOW_DAYS * DAY + 200


def test_a_retraction_after_the_window_takes_the_event_out_of_its_batch(driver: ProcessorDriver) -> None:
    late = aged(driver)
    driver.append(feedback("retract", "e1", "x1", user=ANN), late)
    driver.append(feedback("retract", "e1", "x1", user=ANN), late)
    driver.finish_erasures(late)
    assert driver.dataset == {"r1": [("e2", "A tool.")]}
    assert driver.outcomes == {"e1": "batched", "e2": "batched", "x1": "duplicate,applied_retract"}
    (report,) = driver.reports
    assert (report.kind, report.request_id, report.partitions) == ("retraction", "retract:r1/x1", 1)
    assert (report.response_id, report.event_id, report.subject) == ("r1", "e1", ANN)
    assert report.batches == {"assistant-0-1": 1}


@pytest.mark.parametrize(("user", "event"), [(BOB, "e1"), (ANN, "e7")])
def test_a_late_retraction_of_anothers_or_no_event_changes_nothing(
    driver: ProcessorDriver, user: str, event: str
) -> None:
    late = aged(driver)
    driver.append(feedback("retract", event, "x1", user=user), late)
    driver.finish_erasures(late)
    assert driver.dataset == {"r1": [("e1", "A mistake."), ("e2", "A tool.")]}
    assert driver.outcomes["x1"] == "late"
    assert driver.reports[0].batches == {}


def test_a_retraction_so_late_that_nothing_is_known_any_more_is_sought_too(driver: ProcessorDriver) -> None:
    aged(driver)
    driver.tick(2 * WINDOW_DAYS * DAY + 200)
    late = 2 * WINDOW_DAYS * DAY + 300
    driver.append(feedback("retract", "e1", "x1", user=ANN), late)
    driver.finish_erasures(late)
    assert driver.dataset == {"r1": [("e2", "A tool.")]}
    assert driver.outcomes["x1"] == "applied_retract"
    driver.tick(late + WINDOW_DAYS * DAY + 60)
    assert driver.outcomes["x1"] == "applied_retract"


def test_a_retraction_that_only_came_early_waits_as_ever(driver: ProcessorDriver) -> None:
    driver.append(feedback("retract", "e1", "x1", user=ANN))
    driver.finish_erasures(1)
    assert driver.outcomes == {}
    driver.append(asked(BOB), 2)
    driver.append(feedback("thumbs", "up", "e1", user=ANN), 3)
    assert driver.outcomes == {"e1": "retracted", "x1": "applied_retract"}


# --- quiet partitions ---


def test_after_a_rewrite_every_compacted_topic_gets_something_to_close_its_segment(
    driver: ProcessorDriver,
) -> None:
    """What the broker needs is tried on a real one: `test_erasure_on_disk.py`."""
    driver.append(asked(ANN))
    driver.append(feedback("thumbs", "up", "e1", user=BOB), 1)
    driver.tick(CUT)
    erase(driver)
    touched: list[float] = []
    for hours in range(2, 24 * 6):
        before = dict(driver.store.scan(b"\x01", b"\xff"))
        made = driver.tick(hours * HOUR)
        topics = {output.topic for output in made}
        if made:
            assert topics == {TRAINING_BATCHES.name, FEEDBACK_TALLIES.name}
            assert dict(driver.store.scan(b"\x01", b"\xff")) != before  # so the changelog gets something too
            touched.append(hours * HOUR)
    assert len(touched) == FILLERS
    assert touched[0] - HOUR > DAY
    assert all(b - a > DAY for a, b in pairwise(touched))
    assert [len(batch.examples) for batch in driver.batches] == [1, 0, 0, 0]
    assert [batch.number for batch in driver.batches] == [1, 2, 3, 4]


def test_an_erasure_that_found_no_batch_appends_none(driver: ProcessorDriver) -> None:
    erase(driver)
    driver.tick(HOUR + FILLER_INTERVAL_MS / 1000 + 20)
    assert driver.batches == []


# --- any order ---


KINDS: list[tuple[str, Any]] = [
    ("thumbs", "up"),
    ("correction", SECRET),
    ("correction", f"no: {SECRET}"),
    ("comment", f"I think {SECRET}"),
    ("comment", "bad answer"),
    ("rating", 4),
]


@st.composite
def histories(draw: st.DrawFn) -> list[LogRecord]:
    """Responses to Ann, Bob and nobody, what both say of them, some of it taken back."""
    responses = draw(st.integers(1, 4))
    records: list[LogRecord] = []
    for number in range(responses):
        asker = draw(st.sampled_from([ANN, BOB, None]))
        said = SECRET if asker == ANN else "What is it?"
        question = (Message(role="user", content=said),)
        records.append(response(f"r{number}", messages=question, user_id=asker))
    for number in range(draw(st.integers(1, 12))):
        who, target = draw(st.sampled_from([ANN, BOB])), f"r{draw(st.integers(0, responses))}"
        kind, value = draw(st.sampled_from(KINDS))
        if who == BOB and isinstance(value, str):
            value = value.replace(SECRET, "something else altogether")
        event_id, at = f"e{number}", draw(st.integers(-50, -1))
        records.append(feedback(kind, value, event_id, user=who, at_s=at, response_id=target))
        if draw(st.booleans()):
            records.append(feedback("retract", event_id, f"x{number}", user=who, at_s=0, response_id=target))
    return records


@settings(max_examples=200)
@given(histories(), st.integers(0, 2**32), st.sampled_from([1, 2, 64]))
def test_any_interleaving_of_an_erasure_leaves_nothing_of_the_subject(
    history: list[LogRecord], seed: int, per_batch: int
) -> None:
    """I11 with I1-I3: before, while and after it runs, other records come, batches are cut and others are erased."""
    dice = random.Random(seed)
    messy = history + dice.choices(history, k=dice.randrange(len(history) + 1))
    dice.shuffle(messy)
    asked_at = dice.randrange(len(messy) + 1)
    driver = ProcessorDriver(BatchLimits(examples=per_batch))
    for at, record in enumerate([*messy[:asked_at], erasure(), *messy[asked_at:]]):
        if record.event_type == ErasureRequest.event_type and dice.random() < 0.5:
            driver.append(erasure("u_carl", "q0"), at)
        driver.append(record, at)
        if dice.random() < 0.3:
            driver.reread(dice.randrange(1, 4))
        if dice.random() < 0.2:
            driver.tick(at + 100)
    driver.finish_erasures(HOUR)
    assert traces(driver) == []
    settled = len(driver.outputs)
    for record in messy:
        driver.append(record, HOUR)
    driver.tick(2 * HOUR)
    driver.finish_erasures(2 * HOUR)
    assert driver.errors == []
    assert traces(driver) == []
    assert told(driver.outputs[settled:]) == []
    assert [report.request_id for report in driver.reports if report.kind == "erasure"].count("q1") == 1
    _named_as_they_are(driver)
    _all_decided_once(driver, [*messy, *messy])
    assert driver.dataset == _without_ann(history)


def _named_as_they_are(driver: ProcessorDriver) -> None:
    """A report names rewrites that are in the log."""
    logged = {
        (batch.batch_id, batch.rewrite) for batch in (Batch.from_json(v) for _, v in driver.logged_batches)
    }
    for report in driver.reports:
        assert set(report.batches.items()) <= logged


def _all_decided_once(driver: ProcessorDriver, messy: list[LogRecord]) -> None:
    """Each record of an event ends in one outcome; at the latest when the window of its response closes."""
    for days in (WINDOW_DAYS + 1, 2 * WINDOW_DAYS + 2, 2 * WINDOW_DAYS + 3):
        driver.tick(days * DAY)
    events = sum(1 for record in messy if record.event_type != "loopwright.chat.response")
    assert sum(len(kinds.split(",")) for kinds in driver.outcomes.values()) == events
    # A repetition of an event that was erased is erased itself: there is nothing left to tell it by.
    once = {OutcomeKind.DUPLICATE, OutcomeKind.ERASED}
    for event_id, kinds in driver.outcomes.items():
        final = [kind for kind in kinds.split(",") if kind not in once]
        assert len(final) <= 1, (event_id, kinds)


def _without_ann(history: list[LogRecord]) -> dict[str, list[tuple[str, Any]]]:
    """What the dataset would be had she never been there."""
    hers = {r.response_id for r in history if r.event_type == "loopwright.chat.response" and r.user_id == ANN}  # type: ignore[attr-defined]
    plain = ProcessorDriver()
    for at, record in enumerate(history):
        if record.response_id not in hers and record.user_id != ANN:  # type: ignore[attr-defined]
            plain.append(record, at)
    plain.tick(HOUR)
    return plain.dataset


def test_a_report_holds_names_and_counts_alone(driver: ProcessorDriver) -> None:
    driver.append(asked(ANN))
    driver.append(feedback("correction", SECRET, "e1", user=ANN), 1)
    driver.tick(CUT)
    erase(driver)
    (value,) = driver.values(ERASURE_REPORTS.name)
    assert SECRET.encode() not in value
    assert ErasureReport.from_json(value).signals == 2  # once in the join, once in the batch
