"""I11 in the processor's rules: an erasure removes everything of its user, and nothing of others."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from services.processor.core.batches import BatchLimits
from services.processor.core.erasure.compaction import FILLER_INTERVAL_MS, FILLERS
from services.processor.core.erasure.process import (
    KEYS_PER_PIECE,
    RECORDS_PER_PIECE,
    REPORTS_AT_ONCE,
    ErasureConfig,
)
from services.processor.core.erasure.rules import (
    ErasedUser,
    ErasureProgress,
    ErasureTargets,
    ErasureTask,
    remove_users,
    rewrite_batch,
)
from services.processor.core.erasure.state_scan import BYTES_PER_PIECE, OUTPUTS_PER_PIECE
from services.processor.core.erasure.tasks import PROGRESS_KEY
from services.processor.core.join import MAX_LATE_RETRACTIONS_OF_USER, retraction_key, retraction_owner
from services.processor.core.state import JoinedResponse, SeenEvent, Signal, StoredResponse, prefix_end
from shared.events import (
    EARLIEST_MS,
    MAX_MS,
    MIN_MS,
    Batch,
    ErasureReport,
    ErasureRequest,
    ExampleRevision,
    LogRecord,
    Message,
    Outcome,
    OutcomeKind,
    RefusalReason,
    from_ms,
)
from shared.events import Signal as BatchSignal
from shared.records import Output
from shared.topics import (
    DAY_MS,
    ERASURE_REPORTS,
    FEEDBACK_OUTCOMES,
    FEEDBACK_TALLIES,
    TRAINING_BATCHES,
    WINDOW_DAYS,
)
from tests.unit.processor_driver import START, T0, ProcessorDriver, feedback, response

ANN, BOB = "u_ann", "u_bob"
SECRET = "the cat is called Pellworth"
DAY = DAY_MS / 1000
HOUR = 3600.0
CUT = 40.0
"""Seconds after the start when a batch opened at the start has been cut by its age."""


@pytest.fixture
def driver() -> ProcessorDriver:
    return ProcessorDriver(erasure=ErasureConfig(partitions=6))


def response_to(user: str | None, response_id: str = "r1", at_s: float = 0.0) -> LogRecord:
    """Return a response to `user`, whose question contains the secret."""
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
    """Append a request when it is made, and run the erasure to its end."""
    driver.append(erasure(subject, request_id, at_s), at_s)
    driver.finish_erasures(at_s)


def traces(driver: ProcessorDriver, *, of: tuple[str, ...] = (ANN, SECRET)) -> list[str]:
    """Return the places that still hold something of the subject: state (except `ErasedUser`) and newest rewrites."""
    needles = [needle.encode() for needle in of]
    places = [
        f"state {key!r}"
        for key, value in driver.store.scan(b"\x01", b"\xff")
        if key[:2] not in (b"f/", b"g/") and any(needle in key + value for needle in needles)
    ]
    return places + [
        f"batch {batch.batch_id}" for batch in driver.batches if any(n in batch.to_json() for n in needles)
    ]


def leaks(outputs: list[Output], *, of: tuple[str, ...] = (ANN, SECRET)) -> list[Output]:
    """Return the outputs that hold something of the subject, except reports and deletions, which must name it."""
    return [
        output
        for output in outputs
        if output.topic != ERASURE_REPORTS.name
        and any(
            needle.encode() in (output.key or b"") * (output.value is not None) + (output.value or b"")
            for needle in of
        )
    ]


def outcome_details(driver: ProcessorDriver) -> dict[str, tuple[str, str | None]]:
    outcomes = map(Outcome.from_json, driver.values(FEEDBACK_OUTCOMES.name))
    return {outcome.event_id: (str(outcome.outcome), outcome.detail) for outcome in outcomes}


# --- removal ---


def test_feedback_on_anothers_response_leaves_state_and_batch(
    driver: ProcessorDriver,
) -> None:
    driver.append(response_to(BOB, at_s=0))
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


def test_response_to_the_subject_becomes_an_empty_retraction(driver: ProcessorDriver) -> None:
    driver.append(response_to(ANN))
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
def test_erasure_spares_others_whose_times_are_before_1970(driver: ProcessorDriver, year: int) -> None:
    occurred_at = datetime(year, 1, 1, tzinfo=UTC)
    driver.append(response_to(BOB))
    driver.append(feedback("thumbs", "up", "e1", user=ANN), 1)
    driver.append(feedback("correction", "A language.", "e2", user=BOB, occurred_at=occurred_at), 2)
    driver.tick(CUT)
    erase(driver)
    driver.tick(2 * HOUR)
    assert driver.dataset == {"r1": [("e2", "A language.")]}


def test_pending_feedback_is_erased_and_others_learn_why(driver: ProcessorDriver) -> None:
    driver.append(response_to(ANN))
    driver.append(feedback("thumbs", "up", "e1", user=ANN), 1)
    driver.append(feedback("correction", "A language.", "e2", user=BOB), 2)
    driver.append(response_to(BOB, "r2"), 3)
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


def test_feedback_on_an_erased_response_is_erased_in_its_window(driver: ProcessorDriver) -> None:
    driver.append(response_to(ANN))
    erase(driver)
    driver.append(feedback("thumbs", "up", "e1", user=BOB), 2 * HOUR)
    driver.append(feedback("retract", "e1", "e2", user=BOB), 2 * HOUR)
    driver.append(response_to(ANN), 2 * HOUR)
    assert driver.outcomes == {"e1": "erased", "e2": "erased"}
    assert driver.errors == []
    assert traces(driver) == []


def test_only_the_subjects_tallies_are_deleted(driver: ProcessorDriver) -> None:
    for number, version in enumerate(["v", "v/1", "w"]):
        for user in (ANN, BOB):
            driver.append(response(f"r{number}", version=version))
            event = feedback("thumbs", "up", f"{user}{number}", user=user, response_id=f"r{number}")
            driver.append(event, number)
    assert set(driver.tallies) == {ANN, BOB}
    erase(driver)
    assert set(driver.tallies) == {BOB}
    deleted = [o.key for o in driver.outputs if o.topic == FEEDBACK_TALLIES.name and o.value is None]
    assert set(deleted) == {b"v|u_ann|0", b"v/1|u_ann|0", b"w|u_ann|0"}


def test_tally_restarted_after_an_erasure_stays_at_zero_or_above(driver: ProcessorDriver) -> None:
    driver.append(response_to(BOB))
    driver.append(feedback("thumbs", "up", "new", user=ANN), 3 * HOUR)
    driver.append(
        erasure(at_s=HOUR), 4 * HOUR
    )  # the request arrived hours later; feedback given since then stays
    driver.finish_erasures(4 * HOUR)
    driver.tick(4 * HOUR)
    assert driver.dataset == {"r1": [("new", "up")]}
    driver.append(feedback("retract", "new", "x", user=ANN, received_at=START + timedelta(hours=5)), 5 * HOUR)
    assert driver.tallies[ANN].up == 0


# --- what arrives later ---


def test_records_made_before_the_request_are_erased_on_arrival(driver: ProcessorDriver) -> None:
    erase(driver)
    driver.append(feedback("correction", SECRET, "e1", user=ANN), 2 * HOUR)
    driver.append(feedback("thumbs", "up", "e2", user=BOB, response_id="r2"), 2 * HOUR)
    driver.append(response_to(ANN, "r2"), 2 * HOUR)
    late = feedback("correction", SECRET, "e3", user=ANN, at_s=10, received_at=START + timedelta(days=3))
    driver.append(late, 3 * DAY)
    assert outcome_details(driver) == {
        "e1": ("erased", None),
        "e2": ("erased", "the response was erased"),
        "e3": ("erased", None),
    }
    assert traces(driver) == []
    assert leaks(driver.outputs) == []


def test_records_made_after_the_request_stay(driver: ProcessorDriver) -> None:
    driver.append(response_to(BOB))
    erase(driver)
    later = START + timedelta(hours=2)
    driver.append(feedback("thumbs", "up", "e1", user=ANN, received_at=later), 2 * HOUR)
    driver.append(response_to(ANN, "r2", at_s=2 * HOUR), 2 * HOUR)
    driver.append(feedback("thumbs", "down", "e2", user=BOB, response_id="r2", received_at=later), 2 * HOUR)
    driver.tick(3 * HOUR)
    assert driver.dataset == {"r1": [("e1", "up")], "r2": [("e2", "down")]}
    assert driver.newest["r2"].user_id == ANN


def test_erased_user_is_forgotten_after_the_window(driver: ProcessorDriver) -> None:
    erase(driver)
    driver.advance(WINDOW_DAYS * DAY + HOUR - 1)
    driver.tick(2 * WINDOW_DAYS * DAY)  # a tick's time may be wrong, so it ends no block
    assert [key for key, _ in driver.store.scan(b"f", b"h")]
    driver.advance(WINDOW_DAYS * DAY + HOUR + 10)
    assert traces(driver) == []
    assert not [key for key, _ in driver.store.scan(b"f", b"h")]
    driver.tick((2 * WINDOW_DAYS + 4) * DAY)


# --- how it proceeds ---


def test_repeated_request_is_reported_once_and_a_new_one_again(
    driver: ProcessorDriver,
) -> None:
    driver.append(response_to(ANN))
    erase(driver)
    erase(driver, at_s=2 * HOUR)
    erase(driver, request_id="q2", at_s=3 * HOUR)
    assert [report.request_id for report in driver.reports] == ["q1", "q2"]


def test_large_state_is_scanned_in_pieces_and_reported_once(
    driver: ProcessorDriver,
) -> None:
    count = 2 * KEYS_PER_PIECE
    for number in range(count):
        driver.append(response_to(ANN, f"r{number:04d}"), 1)
        driver.append(feedback("thumbs", "up", f"e{number}", user=BOB, response_id=f"r{number:04d}"), 1)
    driver.tick(CUT)

    def left() -> int:
        """Return how many responses are left."""
        return sum(1 for _ in driver.store.scan(b"a/r", b"a/s"))

    counts = [left()]
    driver.append(erasure(), HOUR)
    counts.append(left())
    for number in range(10 * RECORDS_PER_PIECE):  # a busy partition, which never ticks
        driver.append(response_to(BOB, f"z{number}", at_s=HOUR), HOUR)
        counts.append(left())
    removed = [a - b for a, b in pairwise(counts) if a > b]
    assert counts[0] == sum(removed) == count
    assert len(removed) > 1
    assert max(removed) <= KEYS_PER_PIECE
    assert driver.reports == []
    driver.finish_erasures(HOUR)
    (report,) = driver.reports
    assert report.responses == count
    assert len(report.batches) == -(-count // 64)
    assert traces(driver, of=(ANN,)) == []


def test_one_reread_serves_all_waiting_requests(
    driver: ProcessorDriver,
) -> None:
    for number, user in enumerate(["u_a", "u_b", "u_c"]):
        driver.append(response_to(BOB, f"r{number}"))
        driver.append(feedback("thumbs", "up", f"e{number}", user=user, response_id=f"r{number}"), 1)
    driver.tick(CUT)
    driver.append(erasure("u_a", "q1"), HOUR)
    assert driver.reread_end is not None
    driver.append(erasure("u_b", "q2"), HOUR)
    driver.append(erasure("u_c", "q3"), HOUR)
    driver.reread(2)  # its only batch, and the end of the reread
    assert [report.request_id for report in driver.reports] == ["q1"]
    driver.finish_erasures(HOUR)
    assert [report.request_id for report in driver.reports] == ["q1", "q2", "q3"]
    assert [report.batches for report in driver.reports] == [
        {"assistant-0-1": 1},
        {"assistant-0-1": 2},
        {"assistant-0-1": 2},
    ]


def test_older_copy_of_a_batch_in_the_log_is_ignored(driver: ProcessorDriver) -> None:
    """The log may hold a batch and all of its rewrites: the second erasure must not start from the first copy."""
    driver.append(response_to(BOB))
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


def test_restarted_reread_rewrites_nothing_twice(driver: ProcessorDriver) -> None:
    driver.append(response_to(ANN))
    driver.append(feedback("thumbs", "up", "e1", user=BOB), 1)
    driver.tick(CUT)
    driver.append(erasure(), HOUR)
    driver.reread(1)
    driver.reread_position, driver.reread_end = 0, len(driver.logged_batches)
    driver.finish_erasures(HOUR)
    assert [batch.rewrite for batch in driver.batches] == [1]


# --- retractions after the window ---


def trained_and_expired(driver: ProcessorDriver) -> float:
    """Put a correction of Ann's into a batch and close the window. Return the time."""
    driver.append(response_to(BOB))
    driver.append(feedback("correction", "A mistake.", "e1", user=ANN), 1)
    driver.append(feedback("correction", "A tool.", "e2", user=BOB), 1)
    driver.tick(CUT)
    driver.advance(WINDOW_DAYS * DAY + 100)
    return WINDOW_DAYS * DAY + 200


def test_retraction_after_the_window_removes_the_event(driver: ProcessorDriver) -> None:
    late = trained_and_expired(driver)
    driver.append(feedback("retract", "e1", "x1", user=ANN), late)
    driver.append(feedback("retract", "e1", "x1", user=ANN), late)
    driver.finish_erasures(late)
    assert driver.dataset == {"r1": [("e2", "A tool.")]}
    assert driver.outcomes == {"e1": "batched", "e2": "batched", "x1": "duplicate,applied_retract"}
    (report,) = driver.reports
    assert (report.kind, report.request_id[:8], report.partitions) == ("retraction", "retract:", 1)
    assert (report.response_id, report.event_id, report.subject) == ("r1", "e1", ANN)
    assert report.batches == {"assistant-0-1": 1}


@pytest.mark.parametrize(("user", "event"), [(BOB, "e1"), (ANN, "e7")])
def test_late_retraction_of_a_foreign_event_changes_nothing(
    driver: ProcessorDriver, user: str, event: str
) -> None:
    late = trained_and_expired(driver)
    driver.append(feedback("retract", event, "x1", user=user), late)
    driver.finish_erasures(late)
    assert driver.dataset == {"r1": [("e1", "A mistake."), ("e2", "A tool.")]}
    assert driver.outcomes["x1"] == "late"
    assert driver.reports == []


def test_late_retraction_by_another_user_does_not_hide_the_authors(driver: ProcessorDriver) -> None:
    late = trained_and_expired(driver)
    driver.append(feedback("retract", "e1", "x1", user=ANN), late)
    driver.append(feedback("retract", "e1", "x2", user="u_eve"), late + 1)
    driver.finish_erasures(late + 2)
    assert driver.dataset == {"r1": [("e2", "A tool.")]}
    assert (driver.outcomes["x1"], driver.outcomes["x2"]) == ("applied_retract", "late")


def test_retraction_after_the_trace_is_gone_waits_for_a_window(driver: ProcessorDriver) -> None:
    """Its response might only be late, so the batches are searched once it is not."""
    trained_and_expired(driver)
    driver.advance(2 * WINDOW_DAYS * DAY + 200)
    late = 2 * WINDOW_DAYS * DAY + 300
    driver.append(feedback("retract", "e1", "x1", user=ANN), late)
    driver.advance(late + WINDOW_DAYS * DAY - 60)
    driver.finish_erasures(driver.now_s)
    assert "x1" not in driver.outcomes
    assert driver.rereads == 0
    driver.advance(late + WINDOW_DAYS * DAY + 60)
    driver.finish_erasures(driver.now_s)
    assert driver.dataset == {"r1": [("e2", "A tool.")]}
    assert driver.outcomes["x1"] == "applied_retract"
    driver.append(feedback("retract", "e1", "x2", user=ANN), driver.now_s)
    driver.advance(late + 3 * WINDOW_DAYS * DAY)
    driver.finish_erasures(driver.now_s)
    assert (driver.outcomes["x1"], driver.outcomes["x2"]) == ("applied_retract", "unmatched")
    assert driver.rereads == 2


def test_retraction_that_came_early_waits_for_its_event(driver: ProcessorDriver) -> None:
    driver.append(feedback("retract", "e1", "x1", user=ANN))
    driver.finish_erasures(1)
    assert driver.outcomes == {}
    driver.append(response_to(BOB), 2)
    driver.append(feedback("thumbs", "up", "e1", user=ANN), 3)
    assert driver.outcomes == {"e1": "retracted", "x1": "applied_retract"}
    assert driver.rereads == 0


def test_retraction_on_a_response_that_was_set_aside_searches_too(driver: ProcessorDriver) -> None:
    driver.append(response_to(BOB))
    driver.append(feedback("correction", "A mistake.", "e1", user=ANN), 1)
    driver.tick(CUT)
    driver.store.apply({b"j/r1": b"unreadable"}, 0)
    driver.append(feedback("thumbs", "up", "e2", user=BOB), HOUR)
    driver.append(feedback("retract", "e1", "x1", user=ANN), HOUR)
    driver.finish_erasures(HOUR)
    assert driver.outcomes == {"e1": "batched", "e2": "refused:unusable", "x1": "applied_retract"}
    assert driver.dataset == {}


def test_retraction_of_nothing_is_unmatched_after_one_search(driver: ProcessorDriver) -> None:
    driver.append(feedback("retract", "e1", "x1", user=ANN))
    driver.append(feedback("thumbs", "up", "e2", user=BOB), 1)
    driver.advance(WINDOW_DAYS * DAY + 60)
    driver.finish_erasures(driver.now_s)
    assert driver.outcomes == {"x1": "unmatched", "e2": "unmatched"}
    assert driver.rereads == 1


def test_response_at_the_end_of_a_wait_hides_no_outcome(driver: ProcessorDriver) -> None:
    """The response ends the wait for it. A repetition then waits for its event in the response's own window."""
    driver.append(feedback("retract", "e1", "x1", user=ANN))
    window = WINDOW_DAYS * DAY
    for before in (2 * HOUR, HOUR):
        driver.append(response_to(BOB, f"other-{before}"), window - before)
    driver.append(response_to(BOB), window)
    driver.append(feedback("retract", "e1", "x1", user=ANN), window + 1)
    driver.finish_erasures(window + 2 * HOUR)
    assert driver.outcomes == {"x1": "unmatched"}
    driver.advance(2 * window + 60)
    assert driver.outcomes == {"x1": "unmatched,unmatched"}


def test_retraction_repeated_after_its_window_has_two_outcomes(driver: ProcessorDriver) -> None:
    """The second one waits in a window of its own while the search for the first is not over."""
    driver.append(feedback("retract", "e1", "t1", ANN))
    driver.advance(62 * DAY)
    driver.append(feedback("retract", "e1", "t1", ANN), driver.now_s)
    driver.finish_erasures(driver.now_s)
    assert driver.outcomes == {"t1": "unmatched"}
    driver.advance(93 * DAY)
    driver.finish_erasures(driver.now_s)
    assert driver.outcomes == {"t1": "unmatched,unmatched"}


def test_retraction_on_a_known_response_is_never_searched_for(driver: ProcessorDriver) -> None:
    """The state has known every event of the response, so no batch can hold another."""
    driver.append(response_to(BOB))
    driver.append(feedback("retract", "e9", "x1", user=ANN), 1)
    driver.advance(WINDOW_DAYS * DAY + 60)
    driver.finish_erasures(driver.now_s)
    assert driver.outcomes == {"x1": "unmatched"}
    assert driver.rereads == 0


def test_late_retractions_share_a_search_and_its_interval(driver: ProcessorDriver) -> None:
    late = trained_and_expired(driver)
    for number in range(300):
        event = feedback("retract", f"e{number}", f"x{number}", user=f"u_{number % 7}")
        driver.append(event, late + 60 * number)
        driver.reread()
        driver.tick(late + 60 * number)
    hours = 300 * 60 / 3600
    assert 1 <= driver.rereads <= hours
    driver.finish_erasures(driver.now_s)
    assert driver.rereads <= hours + 2
    assert set(driver.outcomes.values()) == {"batched", "late"}
    assert len(driver.outcomes) == 302


def test_erasure_takes_waiting_retractions_along(driver: ProcessorDriver) -> None:
    late = trained_and_expired(driver)
    driver.append(feedback("retract", "e2", "x1", user=BOB), late)
    driver.append(feedback("retract", "e1", "x2", user=ANN), late)
    driver.append(erasure("u_carl", "q1", at_s=late), late + 1)
    while driver.reread_end is None:
        driver.tick(late + 1)
    driver.reread()
    driver.tick(late + 2)
    assert driver.dataset == {}
    assert (driver.outcomes["x1"], driver.outcomes["x2"]) == ("applied_retract", "applied_retract")
    assert driver.rereads == 1


def test_erasing_a_user_decides_their_waiting_retractions(driver: ProcessorDriver) -> None:
    late = trained_and_expired(driver)
    driver.append(feedback("retract", "e1", "x1", user=ANN), late)
    driver.append(feedback("retract", "e2", "x2", user=BOB), late)
    erase(driver, at_s=late + 1)
    assert (driver.outcomes["x1"], driver.outcomes["x2"]) == ("erased", "applied_retract")
    assert traces(driver) == []


def test_flood_of_late_retractions_is_refused_in_words(
    driver: ProcessorDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.processor.core.erasure.tasks.MAX_SEARCHES", 20)
    monkeypatch.setattr("services.processor.core.erasure.tasks.MAX_SEARCHES_OF_USER", 8)
    late = trained_and_expired(driver)
    for number in range(10):
        driver.append(feedback("retract", f"m{number}", f"x{number}", user="u_mallory"), late)
    driver.append(feedback("retract", "e1", "x-ann", user=ANN), late)
    for number in range(30):
        driver.append(feedback("retract", "z", f"y{number}", user=f"u_{number}"), late)
    refused = [o for o in map(Outcome.from_json, driver.values(FEEDBACK_OUTCOMES.name)) if o.reason]
    assert {(o.outcome, o.reason) for o in refused} == {(OutcomeKind.REFUSED, RefusalReason.TOO_MANY)}
    assert len(refused) == 2 + 30 - (20 - 8 - 1)
    assert all(o.detail and "send it again" in o.detail for o in refused)
    driver.finish_erasures(late)
    assert driver.outcomes["x-ann"] == "applied_retract"
    assert all("," not in kinds for kinds in driver.outcomes.values())
    driver.append(feedback("retract", "m9", "again", user="u_mallory"), driver.now_s)
    driver.finish_erasures(driver.now_s)
    assert driver.outcomes["again"] == "late"


def test_no_user_keeps_anothers_retraction_waiting(
    driver: ProcessorDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.processor.core.erasure.tasks.TASKS_AT_ONCE", 5)
    at, numbers = trained_and_expired(driver), itertools.count()
    driver.append(feedback("retract", "e1", "x-ann", user=ANN), at)
    for _ in range(2):
        for _ in range(20):  # users that come before Ann in any order of keys
            number = next(numbers)
            event = feedback("retract", "z", f"y{number}", user=f"a{number % 7}", at_s=number)
            driver.append(event.model_copy(update={"value": f"z{number}"}), at)
        at += HOUR
        driver.tick(at)
        driver.reread()
        driver.tick(at)
    assert driver.outcomes["x-ann"] == "applied_retract"


def test_retractions_without_end_leave_a_bounded_trace(driver: ProcessorDriver) -> None:
    late = trained_and_expired(driver)
    for number in range(MAX_LATE_RETRACTIONS_OF_USER + 5):
        driver.append(feedback("retract", f"m{number}", f"x{number}", user="u_mallory"), late)
    driver.append(feedback("retract", "e1", "x-ann", user=ANN), late)
    stored = JoinedResponse.from_json(driver.store.get(b"j/r1") or b"")
    owners = [retraction_owner(key) for key in stored.retractions]
    assert (owners.count("u_mallory"), owners.count(ANN)) == (MAX_LATE_RETRACTIONS_OF_USER, 1)


STEPS = st.lists(
    st.tuples(
        st.sampled_from([0, 60, HOUR, DAY, 29 * DAY, 31 * DAY, 61 * DAY, 91 * DAY]),
        st.sampled_from(["response", "correction", "retract", "retract", "again", "erase", "reread"]),
        st.integers(0, 2),
        st.sampled_from([ANN, BOB]),
    ),
    max_size=14,
)


@settings(max_examples=100, deadline=None)
@given(STEPS)
def test_each_retraction_gets_one_outcome_on_every_path(steps: list[tuple[float, str, int, str]]) -> None:
    """Of known, late, unknown, forgotten and erased responses, before, during and after searches."""
    driver = ProcessorDriver(BatchLimits(examples=2))
    sent: Counter[str] = Counter()
    last: LogRecord | None = None
    at = 0.0
    for number, (passed, action, which, user) in enumerate(steps):
        at += passed
        response_id, event_id = f"r{which % 2}", f"e{which}-{user}"
        made = START + timedelta(seconds=at)
        if action == "response":
            driver.append(response(response_id, user_id=user, created_at=made), at)
        elif action == "erase":
            driver.append(erasure(user, f"q{number}", at), at)
        elif action == "reread":
            driver.reread(2)
        elif action == "again" and last is not None:
            driver.append(last, at)
            sent[last.event_id] += 1  # type: ignore[attr-defined]
        elif action in {"correction", "retract"}:
            kind, value, name = (
                ("correction", "Wrong.", event_id)
                if action == "correction"
                else ("retract", event_id, f"x{number}")
            )
            last = feedback(kind, value, name, user=user, response_id=response_id, received_at=made)
            driver.append(last, at)
            sent[name] += 1
        driver.tick(at + 1)
    for _ in range(4):
        at += 31 * DAY
        driver.advance(at)
        driver.finish_erasures(driver.now_s)
    assert driver.errors == []
    outcomes = map(Outcome.from_json, driver.values(FEEDBACK_OUTCOMES.name))
    assert Counter(o.event_id for o in outcomes if o.event_id is not None) == sent
    retractions = sum(count for name, count in sent.items() if name.startswith("x"))
    erasures = sum(action == "erase" for _, action, _, _ in steps)
    assert driver.rereads <= erasures + retractions


# --- quiet partitions ---


def test_fillers_are_appended_to_every_compacted_topic(
    driver: ProcessorDriver,
) -> None:
    """That they make a real broker compact its segments is shown by `test_erasure_on_disk.py`."""
    driver.append(response_to(ANN))
    driver.append(feedback("thumbs", "up", "e1", user=BOB), 1)
    driver.tick(CUT)
    erase(driver)
    filled_at: list[float] = []
    for hours in range(2, 24 * 6):
        before = dict(driver.store.scan(b"\x01", b"\xff"))
        outputs = driver.tick(hours * HOUR)
        topics = {output.topic for output in outputs}
        if outputs:
            assert topics == {TRAINING_BATCHES.name, FEEDBACK_TALLIES.name}
            assert (
                dict(driver.store.scan(b"\x01", b"\xff")) != before
            )  # so the changelog is appended to as well
            filled_at.append(hours * HOUR)
    assert len(filled_at) == FILLERS
    assert filled_at[0] - HOUR > DAY
    assert all(b - a > DAY for a, b in pairwise(filled_at))
    assert [len(batch.examples) for batch in driver.batches] == [1, 0, 0, 0]
    assert [batch.number for batch in driver.batches] == [1, 2, 3, 4]


def test_fillers_come_in_a_quiet_partition_that_restarts_daily(driver: ProcessorDriver) -> None:
    """The time of ticks starts again at the newest record whenever the process does."""
    driver.append(response_to(ANN))
    driver.append(feedback("thumbs", "up", "e1", user=BOB), 1)
    driver.tick(CUT)
    erase(driver)
    filled_after: list[int] = []
    hours = 0
    for _ in range(6):
        for minutes in range(1, 20 * 60):
            hours += minutes % 60 == 0
            if driver.tick(HOUR + minutes * 60):
                filled_after.append(hours)
    assert len(filled_after) == FILLERS
    assert all(b - a >= 24 for a, b in pairwise([0, *filled_after]))
    assert filled_after[-1] <= 3 * 28


def test_search_in_between_makes_no_filler_too_early(driver: ProcessorDriver) -> None:
    late = trained_and_expired(driver)
    driver.append(feedback("retract", "e1", "x1", user=ANN), late)
    minute, rewritten, filled = 0, None, None
    while filled is None:
        minute += 1
        outputs = driver.tick(late + minute * 60)
        filled = minute if rewritten is not None and outputs else None
        if driver.reread_end is not None:
            # A reread carries stream time, an hour before the ticks.
            tick_ms, driver.now_ms = driver.now_ms, T0 + round(late * 1000)
            driver.reread()
            driver.now_ms = tick_ms
        if rewritten is None and driver.batches and driver.batches[0].rewrite:
            rewritten = minute
    assert rewritten is not None
    assert filled - rewritten >= 24 * 60 + 40


def test_erasure_that_rewrote_no_batch_appends_none(driver: ProcessorDriver) -> None:
    erase(driver)
    driver.tick(HOUR + FILLER_INTERVAL_MS / 1000 + 20)
    assert driver.batches == []


# --- any time, any state ---


TIMES = st.one_of(
    st.sampled_from(
        [MIN_MS, -DAY_MS, -60_001, -2, -1, 0, 1, EARLIEST_MS - 1, EARLIEST_MS, T0, T0 + 30 * DAY_MS, MAX_MS]
    ),
    st.integers(MIN_MS, MAX_MS),
)
"""Times in ms since the epoch that a record may hold."""


def said_by(user: str, at_ms: int) -> JoinedResponse:
    """Return a response of Bob's with a signal, a vague comment and a waiting retraction of `user`."""
    return JoinedResponse(
        line="assistant",
        since_ms=at_ms,
        responded_ms=at_ms,
        version="v",
        revision=1,
        events={
            "e1": SeenEvent("0" * 32, user, "correction", at_ms),
            "e2": SeenEvent("1" * 32, user, "comment"),
        },
        slots={f"{user}|correction|0": "e1"},
        signals={"e1": Signal("correction", user, Raw(b'"A language."'), at_ms)},
        retractions={retraction_key("e3", user): "e4"},
    )


@given(TIMES, TIMES, TIMES)
def test_erasing_one_user_removes_nothing_of_another_at_any_time(at_ms: int, asked: int, cutoff: int) -> None:
    """There is no time that means "no time"."""
    stored = said_by(BOB, at_ms)
    before = stored.to_json()
    change = remove_users(stored, ["e1"], {ANN: cutoff})
    assert (change.outcomes, change.removed, change.revised) == ([], [], False)
    assert stored.to_json() == before
    example = ExampleRevision(
        line="assistant",
        response_id="r1",
        revision=1,
        op="upsert",
        version="v",
        user_id=BOB,
        signals=(
            BatchSignal(event_id="e1", kind="thumbs", user_id=BOB, value="up", occurred_at=from_ms(at_ms)),
        ),
        responded_at=from_ms(asked),
        revised_at=from_ms(asked),
    )
    batch = Batch(
        line="assistant",
        batch_id="assistant-0-1",
        partition=0,
        number=1,
        reason="age",
        examples=(example, example.model_copy(update={"response_id": "r2", "user_id": None})),
        content_hash="0" * 64,
        cut_at=from_ms(asked),
    )
    targets = ErasureTargets.of([ErasureTask("q1", "assistant", ANN, cutoff)])
    assert rewrite_batch(batch, targets, 1) is None
    of_bob = ErasureTargets.of([ErasureTask("q1", "assistant", BOB, cutoff)])
    assert (rewrite_batch(batch, of_bob, 1) is not None) == (min(asked, at_ms) <= cutoff)


@settings(max_examples=60, deadline=None)
@given(TIMES, TIMES, st.sampled_from([T0, T0 + DAY_MS, MIN_MS, -1, 0, MAX_MS]))
def test_erasing_one_user_leaves_anothers_state_as_it_is(at_ms: int, asked: int, requested_ms: int) -> None:
    driver = ProcessorDriver()
    stored = StoredResponse(
        "assistant", "v", "completed", asked, Raw(b"[]"), Raw(b"[]"), indices=(0,), user_id=BOB
    )
    driver.store.apply(
        {b"a/r1": stored.to_json(), b"a/r2": stored.to_json(), b"j/r2": said_by(BOB, at_ms).to_json()}, 0
    )
    before = [*driver.store.scan(b"a/", b"b"), *driver.store.scan(b"j/", b"k")]
    moment = from_ms(requested_ms)
    request = ErasureRequest(
        line="assistant", request_id="q1", subject=ANN, requested_at=moment, deadline=moment
    )
    driver.append(request, 1)
    driver.finish_erasures(1)
    assert driver.errors == []
    assert [*driver.store.scan(b"a/", b"b"), *driver.store.scan(b"j/", b"k")] == before
    assert [report.request_id for report in driver.reports] == ["q1"]


@given(TIMES, TIMES, TIMES, st.text("ab", min_size=1, max_size=2))
def test_block_of_an_erased_user_covers_only_earlier_records(
    requested: int, until: int, at_ms: int, request_id: str
) -> None:
    user = ErasedUser(requested, until, ("q",))
    assert user.covers(at_ms, until - 1) == (at_ms < requested)
    assert not user.covers(at_ms, until)
    further = user.extended(request_id, requested - 1, until - 1)
    assert (further.requested_ms, further.until_ms) == (requested, until)


LONG_ID = st.text("".join(map(chr, range(ord("!"), ord("~") + 1))), min_size=120, max_size=128)


@settings(max_examples=30, deadline=None)
@given(LONG_ID, LONG_ID, LONG_ID, LONG_ID)
def test_late_retraction_is_reported_whatever_its_ids(
    response_id: str, event_id: str, retraction: str, user: str
) -> None:
    driver = ProcessorDriver()
    driver.append(response(response_id))
    driver.append(feedback("correction", "Wrong.", event_id, user=user, response_id=response_id), 1)
    driver.tick(CUT)
    late = (WINDOW_DAYS + 1) * DAY
    driver.advance(late)
    event = feedback("retract", event_id, retraction, user=user, response_id=response_id)
    driver.append(event, late)
    driver.finish_erasures(late)
    assert driver.errors == []
    (report,) = driver.reports
    assert (report.response_id, report.event_id, report.subject) == (response_id, event_id, user)
    assert driver.dataset == {}


def test_stored_retraction_with_an_overlong_request_id_is_reported(driver: ProcessorDriver) -> None:
    late = trained_and_expired(driver)
    overlong = "retract:" + "r" * 128 + "/" + "e" * 128
    task = ErasureTask(
        overlong, "assistant", ANN, driver.now_ms, "retraction", "r1", "e1", retraction_id="x1"
    )
    progress = ErasureProgress(requests=1, waiting=1)
    driver.store.apply({b"e/wait/000000000001": task.to_json(), PROGRESS_KEY: progress.to_json()}, 0)
    driver.finish_erasures(late)
    assert driver.errors == []
    (report,) = driver.reports
    assert (report.response_id, report.event_id, len(report.request_id)) == ("r1", "e1", 39)
    assert driver.dataset == {"r1": [("e2", "A tool.")]}


def busy_with_erasures(rng: random.Random, steps: int) -> ProcessorDriver:
    """Return a partition in the middle of erasures and late retractions of several users, after that many steps."""
    driver = ProcessorDriver(BatchLimits(examples=2))
    late = trained_and_expired(driver)
    for number in range(3):
        driver.append(response_to(ANN, f"s{number}", late), late)
        event = feedback("thumbs", "up", f"t{number}", user=ANN, response_id=f"s{number}")
        driver.append(event.model_copy(update={"received_at": START + timedelta(seconds=late)}), late)
    driver.tick(late + CUT)
    at = late + 100
    todo: list[LogRecord] = [
        erasure("u_carl", "q1", at),
        erasure("u_dan", "q2", at),
        erasure("u_dan", "q3", at),
        feedback("retract", "e2", "x1", user=BOB),
        feedback("retract", "e7", "x2", user="u_eve"),
    ]
    for _ in range(steps):
        match rng.randrange(4):
            case 0 if todo:
                driver.append(todo.pop(0), at)
            case 1:
                driver.reread(1)
            case 2:
                at += rng.choice((1, 4_000))
            case _:
                driver.tick(at)
    return driver


GARBAGE = (
    b"", b"{", b"null", b"[]", b"{}", b"0", b"-1", b"x", b"\xff\xfe", b'"scan"', b"1e999", b'{"phase":"dance"}',
    b'{"requests":"many"}', b'{"subject":7}', b'{"request_id":"","line":"UPPER","subject":"","cutoff_ms":0}',
    b'{"until_ms":null,"requested_ms":[]}',
)  # fmt: skip
ERASURE_KEYS = (b"e/", b"f/", b"g/", b"q/", b"r/", b"w/", PROGRESS_KEY)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 40), st.sampled_from(GARBAGE), st.booleans())
def test_unreadable_erasure_state_stops_nothing(
    seed: int, steps: int, garbage: bytes, everything: bool
) -> None:
    """A later erasure removes all of its user, and nothing raises."""
    rng = random.Random(seed)
    driver = busy_with_erasures(rng, steps)
    keys = [key for prefix in ERASURE_KEYS for key, _ in driver.store.scan(prefix, prefix_end(prefix))]
    poisoned = keys if everything or not keys else [rng.choice(keys)]
    driver.store.apply(dict.fromkeys(poisoned, garbage), 0)
    at = driver.now_s + 1
    driver.append(erasure(ANN, "last", at), at)
    for _ in range(30):
        at += 200
        driver.append(response(f"z{at}"), at)
        driver.reread(rng.randrange(3))
        driver.tick(at)
    driver.reread()
    driver.finish_erasures(at + 3600)
    assert driver.errors == []
    assert [report.request_id for report in driver.reports].count("last") == 1
    assert [key for key, _ in driver.store.scan(b"e/", b"f")] == []
    if not any(key.startswith(b"w/") for key in poisoned):  # else older copies of batches are rewritten too
        assert traces(driver, of=(ANN,)) == []


def test_requests_for_one_user_share_a_task_and_are_all_reported(driver: ProcessorDriver) -> None:
    driver.append(response_to(ANN))
    driver.append(feedback("correction", SECRET, "e1", user=BOB), 1)
    driver.tick(CUT)
    driver.append(erasure("u_carl", "q0"), HOUR)  # active, so all others wait
    for number in range(1, 251):
        driver.append(erasure(ANN, f"q{number}", at_s=HOUR), HOUR)
    assert sum(1 for _ in driver.store.scan(b"e/wait/", b"e/wait0")) == 1
    driver.finish_erasures(HOUR)
    reports = driver.reports
    assert sorted(report.request_id for report in reports) == sorted(f"q{n}" for n in range(251))
    assert {tuple(report.batches.items()) for report in reports[1:]} == {(("assistant-0-1", 1),)}
    assert {report.responses for report in reports[1:]} == {1}
    assert driver.rereads == 2
    assert [key for key, _ in driver.store.scan(b"q/", b"s")] == []


def test_flood_of_erasures_neither_starves_feedback_nor_grows_a_turn() -> None:
    """10,000 users are erased, then one repeatedly; others' feedback is batched and no turn does much."""
    driver = ProcessorDriver()
    driver.append(response_to(BOB))
    most = 0
    for number in range(10_000):
        most = max(most, len(driver.append(erasure(f"u_{number}", f"q{number}"), HOUR)))
    driver.append(feedback("thumbs", "up", "e1", user=BOB), HOUR + 1)
    driver.tick(HOUR + CUT)
    assert driver.outcomes == {"e1": "batched"}
    assert len(driver.store.get(PROGRESS_KEY) or b"") < 1_000
    while (value := driver.store.get(PROGRESS_KEY)) and ErasureProgress.from_json(value).waiting:
        driver.reread()
        most = max(most, len(driver.tick(HOUR + CUT)))
    driver.finish_erasures(HOUR + CUT)
    assert len({report.request_id for report in driver.reports}) == 10_000
    assert driver.dataset == {"r1": [("e1", "up")]}
    assert most <= REPORTS_AT_ONCE + 5


def test_scan_of_the_state_reads_bounded_bytes_and_sends_bounded_records(driver: ProcessorDriver) -> None:
    value = StoredResponse(
        "assistant", "v", "completed", T0, Raw(b'["' + b"x" * 600_000 + b'"]'), Raw(b"[]"), user_id=ANN
    ).to_json()
    driver.store.apply({b"a/r%02d" % number: value for number in range(40)}, 0)
    driver.append(erasure(), HOUR)
    left = [sum(1 for _ in driver.store.scan(b"a/", b"b"))]
    while left[-1]:
        driver.tick(HOUR)
        left.append(sum(1 for _ in driver.store.scan(b"a/", b"b")))
    assert max(a - b for a, b in pairwise(left)) <= BYTES_PER_PIECE // len(value) + 1
    assert left[0] >= 32
    many = said_by(BOB, T0)
    many.signals |= {f"s{n}": many.signals["e1"] for n in range(200)}
    many.events |= {f"s{n}": many.events["e1"] for n in range(200)}
    many.responded_ms = None  # so that each signal still needs an outcome
    driver.store.apply({b"a/v%02d" % n: value for n in range(40)}, 0)
    driver.store.apply({b"j/v%02d" % n: many.to_json() for n in range(40)}, 0)
    driver.finish_erasures(HOUR)
    sent = [len(driver.outputs)]
    driver.append(erasure(request_id="q2", at_s=2 * HOUR), 2 * HOUR)
    sent.append(len(driver.outputs))
    while driver.reread_end is None:
        driver.tick(2 * HOUR)
        sent.append(len(driver.outputs))
    assert sent[-1] - sent[0] >= 40 * 200
    assert max(b - a for a, b in pairwise(sent)) <= OUTPUTS_PER_PIECE + 250
    assert driver.errors == []


def test_stored_search_for_a_retraction_that_still_waits_decides_nothing(driver: ProcessorDriver) -> None:
    """A search that began before the response's window ended leaves the outcome to the window."""
    driver.append(feedback("retract", "e9", "x1", user=ANN))
    task = {
        "request_id": "retract:r1/x1", "line": "assistant", "subject": ANN, "cutoff_ms": T0, "kind": "retraction",
        "response_id": "r1", "event_id": "e9", "retraction_id": "x1",
    }  # fmt: skip
    progress = {"requests": 1, "waiting": 1, "next_filler_ms": 5}
    driver.store.apply(
        {b"e/wait/000000000001": json.dumps(task).encode(), PROGRESS_KEY: json.dumps(progress).encode()}, 0
    )
    driver.finish_erasures(HOUR)
    assert (driver.outcomes, driver.rereads) == ({}, 1)
    driver.advance((WINDOW_DAYS + 1) * DAY)
    driver.finish_erasures(driver.now_s)
    assert driver.outcomes == {"x1": "unmatched"}


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
    """Draw responses to Ann, Bob or no user, and feedback by both, some of it retracted."""
    responses = draw(st.integers(1, 4))
    records: list[LogRecord] = []
    for number in range(responses):
        asker = draw(st.sampled_from([ANN, BOB, None]))
        question = SECRET if asker == ANN else "What is it?"
        messages = (Message(role="user", content=question),)
        records.append(response(f"r{number}", messages=messages, user_id=asker))
    for number in range(draw(st.integers(1, 12))):
        user, target = draw(st.sampled_from([ANN, BOB])), f"r{draw(st.integers(0, responses))}"
        kind, value = draw(st.sampled_from(KINDS))
        if user == BOB and isinstance(value, str):
            value = value.replace(SECRET, "something else altogether")
        event_id, at = f"e{number}", draw(st.integers(-50, -1))
        records.append(feedback(kind, value, event_id, user=user, at_s=at, response_id=target))
        if draw(st.booleans()):
            records.append(feedback("retract", event_id, f"x{number}", user=user, at_s=0, response_id=target))
    return records


@settings(max_examples=200)
@given(histories(), st.integers(0, 2**32), st.sampled_from([1, 2, 64]))
def test_erasure_at_any_moment_leaves_nothing_of_the_subject(
    history: list[LogRecord], seed: int, per_batch: int
) -> None:
    """I11 with I1-I3: other records arrive, batches are cut and other users are erased before, during and after it."""
    rng = random.Random(seed)
    messy = history + rng.choices(history, k=rng.randrange(len(history) + 1))
    rng.shuffle(messy)
    requested_at = rng.randrange(len(messy) + 1)
    driver = ProcessorDriver(BatchLimits(examples=per_batch))
    for at, record in enumerate([*messy[:requested_at], erasure(), *messy[requested_at:]]):
        if record.event_type == ErasureRequest.event_type and rng.random() < 0.5:
            driver.append(erasure("u_carl", "q0"), at)
        driver.append(record, at)
        if rng.random() < 0.3:
            driver.reread(rng.randrange(1, 4))
        if rng.random() < 0.2:
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
    assert leaks(driver.outputs[settled:]) == []
    assert [report.request_id for report in driver.reports if report.kind == "erasure"].count("q1") == 1
    _assert_reports_name_real_rewrites(driver)
    _assert_one_outcome_each(driver, [*messy, *messy])
    assert driver.dataset == _without_ann(history)


def _assert_reports_name_real_rewrites(driver: ProcessorDriver) -> None:
    logged = {
        (batch.batch_id, batch.rewrite) for batch in (Batch.from_json(v) for _, v in driver.logged_batches)
    }
    for report in driver.reports:
        assert set(report.batches.items()) <= logged


def _assert_one_outcome_each(driver: ProcessorDriver, messy: list[LogRecord]) -> None:
    """Close all windows, then check that every feedback record got one outcome."""
    for days in (WINDOW_DAYS + 1, 2 * WINDOW_DAYS + 2, 2 * WINDOW_DAYS + 3):
        driver.advance(days * DAY)
    events = sum(1 for record in messy if record.event_type != "loopwright.chat.response")
    assert sum(len(kinds.split(",")) for kinds in driver.outcomes.values()) == events
    # A repetition of an erased event is erased itself, because nothing is left to recognise it by.
    repeatable = {OutcomeKind.DUPLICATE, OutcomeKind.ERASED}
    for event_id, kinds in driver.outcomes.items():
        final = [kind for kind in kinds.split(",") if kind not in repeatable]
        assert len(final) <= 1, (event_id, kinds)


def _without_ann(history: list[LogRecord]) -> dict[str, list[tuple[str, Any]]]:
    """Return what the dataset would be if Ann had never used the app."""
    her_responses = {
        r.response_id for r in history if r.event_type == "loopwright.chat.response" and r.user_id == ANN
    }  # type: ignore[attr-defined]
    plain = ProcessorDriver()
    for at, record in enumerate(history):
        if record.response_id not in her_responses and record.user_id != ANN:  # type: ignore[attr-defined]
            plain.append(record, at)
    plain.tick(HOUR)
    return plain.dataset


def test_report_holds_only_names_and_counts(driver: ProcessorDriver) -> None:
    driver.append(response_to(ANN))
    driver.append(feedback("correction", SECRET, "e1", user=ANN), 1)
    driver.tick(CUT)
    erase(driver)
    (value,) = driver.values(ERASURE_REPORTS.name)
    assert SECRET.encode() not in value
    assert ErasureReport.from_json(value).signals == 2  # one in the state, one in the batch
