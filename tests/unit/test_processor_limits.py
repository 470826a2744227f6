"""I13 in the processor's rules: what cannot be applied is refused with a reason, and nobody else pays for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.processor.core.batches import BatchLimits
from services.processor.core.join import (
    MAX_LABELS,
    MAX_USER_EVENTS,
    MAX_USER_SIGNALS,
    MEMORY_BYTES,
    signal_bytes,
    slot_of,
)
from services.processor.core.state import JoinedResponse, joined_key, tally_ids, tally_key
from shared.composed_ids import join_ids, split_ids
from shared.events import MAX_TEXT, Choice, ErasureRequest, FeedbackBase, Message, OutcomeKind
from shared.records import Record
from shared.topics import BATCH_BYTES, DAY_MS, FEEDBACK_EVENTS, WINDOW_DAYS
from tests.unit.processor_driver import START, T0, ProcessorDriver, feedback, response

DAY = DAY_MS / 1000
CUT = 1_000.0
MAX_JOINED_BYTES = BATCH_BYTES + 2 * MEMORY_BYTES
KINDS: tuple[tuple[str, Any], ...] = (
    ("thumbs", "up"),
    ("rating", 2),
    ("correction", "A language."),
    ("comment", "Name the year in which it was founded"),
    ("comment", "bad answer"),
    ("preference", {"over": "Something else."}),
    ("retract", "e0"),
    ("retract", "never-sent"),
)


@pytest.fixture
def driver() -> ProcessorDriver:
    return ProcessorDriver()


def joined(driver: ProcessorDriver, response_id: str = "r1") -> tuple[JoinedResponse, int]:
    """Return the join state of a response, and its size in bytes."""
    value = driver.store.get(joined_key(response_id.encode())) or b""
    return JoinedResponse.from_json(value), len(value)


def details(driver: ProcessorDriver, event_id: str | None) -> list[str | None]:
    return [outcome.detail for outcome in driver.decided if outcome.event_id == event_id]


# --- one outcome in every state ---


def _waiting(driver: ProcessorDriver) -> None:
    driver.append(feedback("thumbs", "down", "e0", user="u_bob"))


def _answered(driver: ProcessorDriver) -> None:
    driver.append(response())
    _waiting(driver)


def _batched(driver: ProcessorDriver) -> None:
    _answered(driver)
    driver.tick(CUT)


def _expired(driver: ProcessorDriver) -> None:
    _answered(driver)
    driver.advance(WINDOW_DAYS * DAY + 1)


def _never_answered(driver: ProcessorDriver) -> None:
    _waiting(driver)
    driver.advance(WINDOW_DAYS * DAY + 1)


def _erased(driver: ProcessorDriver) -> None:
    driver.append(response(user_id="u_carl"))
    _waiting(driver)
    later = START + timedelta(hours=1)
    request = ErasureRequest(
        line="assistant",
        request_id="q1",
        subject="u_carl",
        requested_at=later,
        deadline=later + timedelta(days=37),
    )
    driver.append(request, 3_600)
    driver.finish_erasures(3_600)


def _full(driver: ProcessorDriver) -> None:
    _answered(driver)
    for kind, value, count in (("thumbs", "up", 200), ("correction", "A language.", 70)):
        for number in range(count):
            driver.append(feedback(kind, value, f"{kind}-{number}", user=f"u{number}"), 1)


def _conflicting(driver: ProcessorDriver) -> None:
    _answered(driver)
    driver.append(feedback("thumbs", "down", "e1", user="u_bob"), 1)


def _unusable(driver: ProcessorDriver) -> None:
    _answered(driver)
    driver.store.apply({joined_key(b"r1"): b"\xff"}, 0)


STATES: tuple[Callable[[ProcessorDriver], None], ...] = (
    lambda driver: None,
    _waiting,
    _answered,
    _batched,
    _expired,
    _never_answered,
    _erased,
    _full,
    _conflicting,
    _unusable,
)


@pytest.mark.parametrize(("kind", "value"), KINDS)
@pytest.mark.parametrize("prepare", STATES, ids=lambda prepare: prepare.__name__.strip("_<>"))
def test_every_record_gets_one_outcome_in_every_state(
    driver: ProcessorDriver, prepare: Callable[[ProcessorDriver], None], kind: str, value: Any
) -> None:
    prepare(driver)
    at = (driver.now_ms - T0) / 1000 + 1
    event = feedback(kind, value, "e1", received_at=START + timedelta(days=400))
    for _ in range(3):
        driver.append(event, at)
    driver.tick(at + CUT)
    driver.advance(at + WINDOW_DAYS * DAY + 60)
    driver.advance(at + WINDOW_DAYS * DAY + 3 * 3_600)
    driver.finish_erasures(driver.now_s)
    driver.advance(driver.now_s + 3 * 3_600)
    driver.finish_erasures(driver.now_s)
    assert driver.errors == []
    outcomes = [outcome for outcome in driver.decided if outcome.event_id == "e1"]
    assert len(outcomes) == (4 if prepare is _conflicting else 3)
    assert len({(o.outcome, o.reason) for o in outcomes if not o.is_repetition}) <= 1
    assert all(outcome.detail for outcome in driver.decided if outcome.outcome is OutcomeKind.REFUSED)


def test_conflict_names_the_remedy_and_changes_nothing(driver: ProcessorDriver) -> None:
    driver.append(response())
    driver.append(feedback("thumbs", "down", "e1"), 1)
    driver.append(feedback("correction", "Mine!", "e1", user="u_bob"), 2)
    driver.tick(CUT)
    assert driver.outcomes == {"e1": "refused:conflict,batched"}
    assert driver.dataset == {"r1": [("e1", "down")]}
    assert "new event_id" in (details(driver, "e1")[0] or "")


def test_response_that_comes_again_after_its_window_is_refused(driver: ProcessorDriver) -> None:
    driver.append(response())
    driver.append(feedback("thumbs", "down", "e1"), 1)
    driver.advance(WINDOW_DAYS * DAY + 1)
    driver.append(response(), WINDOW_DAYS * DAY + 2)
    assert driver.refused_responses == [("r1", "response_late")]
    assert driver.errors == []


def test_feedback_before_a_response_never_shuts_it_out(driver: ProcessorDriver) -> None:
    """Whoever guesses an id must not decide what becomes of the response."""
    driver.append(feedback("thumbs", "down", "guessed", user="u_eve"))
    driver.advance(WINDOW_DAYS * DAY + 1)
    later = WINDOW_DAYS * DAY + 2
    driver.append(response(), later)
    driver.append(feedback("correction", "A language.", "e1"), later + 1)
    driver.tick(later + 60)
    assert driver.outcomes == {"guessed": "unmatched", "e1": "batched"}
    assert driver.refused_responses == []


def test_response_that_no_record_can_hold_is_refused(driver: ProcessorDriver) -> None:
    messages = tuple(Message(role="user", content="x" * 32_000) for _ in range(31))
    large = response(messages=messages)
    room = 999_990 - len(large.to_json())
    driver.append(response(messages=(*messages, Message(role="user", content="x" * (room - 40)))))
    assert driver.refused_responses == [("r1", "too_large")]
    driver.append(response(), 1)
    driver.append(feedback("thumbs", "down", "e1"), 2)
    driver.tick(CUT)
    assert driver.outcomes == {"e1": "batched"}
    assert driver.errors == []


def test_retraction_cannot_be_retracted(driver: ProcessorDriver) -> None:
    driver.append(response())
    driver.append(feedback("thumbs", "down", "e1"), 1)
    driver.append(feedback("retract", "e1", "e2"), 2)
    driver.append(feedback("retract", "e2", "e3"), 3)
    assert driver.outcomes == {"e1": "retracted", "e2": "applied_retract", "e3": "refused:not_yours"}


def test_outcome_names_the_line_of_its_own_event(driver: ProcessorDriver) -> None:
    """As long as the response is unknown, nobody's line is the response's."""
    driver.append(feedback("thumbs", "down", "e1", user="u_eve", line="made-up"))
    driver.append(feedback("comment", "bad answer", "e2"), 1)
    driver.append(feedback("thumbs", "down", "e3"), 2)
    driver.append(feedback("thumbs", "up", "e4", at_s=3), 3)
    driver.advance(WINDOW_DAYS * DAY + 60)
    lines = {outcome.event_id: outcome.line for outcome in driver.decided}
    assert lines == {"e1": "made-up", "e2": "assistant", "e3": "assistant", "e4": "assistant"}


# --- limits ---


def test_popular_answer_can_still_be_corrected_and_retracted(driver: ProcessorDriver) -> None:
    """300 people's thumbs and 1,023 comments of one user do not shut out the next one."""
    driver.append(response())
    for number in range(300):
        driver.append(feedback("thumbs", "up", f"t{number}", user=f"u{number}"), 1)
    for number in range(1_023):
        driver.append(feedback("comment", "bad answer", f"c{number}", user="u_eve"), 2)
    driver.append(feedback("correction", "My number is 555.", "e1"), 3)
    driver.tick(CUT)
    assert driver.outcomes["e1"] == "batched"
    driver.append(feedback("retract", "e1", "e2"), CUT + 1)
    driver.tick(3 * CUT)
    outcomes = driver.outcomes
    assert outcomes["e2"] == "applied_retract"
    assert "e1" not in [event_id for event_id, _ in driver.dataset["r1"]]
    thumbs = Counter(outcomes[f"t{number}"] for number in range(300))
    assert thumbs == {"batched": MAX_LABELS, "refused:too_many": 300 - MAX_LABELS}
    assert {outcomes[f"c{number}"] for number in range(1_023)} == {"tally_only"}
    assert driver.tallies["u_eve"].comments == 1_023
    assert driver.errors == []


def test_user_has_a_share_of_a_response_and_not_more(driver: ProcessorDriver) -> None:
    choices = tuple(Choice(index=n, text=f"Answer {n}") for n in range(8))
    driver.append(response(choices=choices))
    kinds = KINDS[:4]
    for number in range(4 * 8):
        kind, value = kinds[number % 4]
        driver.append(feedback(kind, value, f"e{number}", user="u_eve", choice=number // 4), 1)
    driver.tick(CUT)
    counts = Counter(driver.outcomes.values())
    assert counts == {"batched": MAX_USER_SIGNALS, "refused:too_many": 32 - MAX_USER_SIGNALS}
    driver.append(feedback("retract", "e0", "x0", user="u_eve"), CUT + 1)
    driver.append(feedback("rating", 5, "again", user="u_eve", choice=7), CUT + 2)
    driver.tick(3 * CUT)
    assert driver.outcomes["again"] == "batched"


def test_long_feedback_of_one_user_leaves_room_for_others(driver: ProcessorDriver) -> None:
    choices = tuple(Choice(index=n, text="x") for n in range(8))
    driver.append(response(choices=choices))
    long = "\N{OLD PERSIAN SIGN A}" * MAX_TEXT
    for number in range(8):
        driver.append(feedback("correction", long, f"e{number}", user="u_eve", choice=number), 1)
    driver.append(feedback("correction", long, "mine"), 2)
    driver.tick(CUT)
    assert Counter(driver.outcomes.values()) == {"refused:too_many": 7, "batched": 2}
    assert driver.outcomes["mine"] == "batched"


def test_edits_of_long_feedback_replace_each_other(driver: ProcessorDriver) -> None:
    driver.append(response())
    for number in range(100):
        event = feedback("correction", f"{number} " + "x" * 32_000, f"e{number}", at_s=number / 10)
        driver.append(event, number / 10)
    driver.tick(10 * CUT)
    assert Counter(driver.outcomes.values()) == {"superseded": 99, "batched": 1}
    assert [event_id for event_id, _ in driver.dataset["r1"]] == ["e99"]
    state, size = joined(driver)
    assert len(state.events) == MAX_USER_EVENTS + 1
    assert size < 60_000


@pytest.mark.parametrize("response_first", [True, False])
def test_example_never_outgrows_a_batch(driver: ProcessorDriver, response_first: bool) -> None:
    answer = response(text="y" * 30_000)
    if response_first:
        driver.append(answer)
    for number in range(256):
        event = feedback("correction", f"{number} " + "x" * 32_000, f"e{number}", user=f"u{number}")
        driver.append(event, 1)
        assert joined(driver)[1] <= MAX_JOINED_BYTES
    if not response_first:
        driver.append(answer, 2)
    driver.tick(CUT)
    assert driver.errors == []
    counts = Counter(driver.outcomes.values())
    assert set(counts) == {"batched", "refused:too_large"}
    assert counts["batched"] == len(driver.newest["r1"].signals) > 10
    outcomes = driver.outcomes
    assert [outcomes[f"e{number}"] for number in range(counts["batched"])] == ["batched"] * counts["batched"]
    assert all(len(value) <= BATCH_BYTES for _, value in driver.logged_batches)


def test_edit_that_does_not_fit_leaves_the_example_as_it_was(driver: ProcessorDriver) -> None:
    driver = ProcessorDriver(BatchLimits(size=8_000))
    driver.append(response())
    driver.append(feedback("correction", "Short.", "e1"), 1)
    driver.append(feedback("correction", "x" * 8_000, "e2"), 2)
    driver.append(feedback("correction", "x" * 8_000, "e2"), 3)
    driver.tick(CUT)
    assert driver.dataset == {"r1": [("e1", "Short.")]}
    assert driver.outcomes == {"e1": "batched", "e2": "refused:too_large,duplicate"}
    assert driver.newest["r1"].revision == 1


def test_response_that_fills_a_batch_refuses_its_feedback_alone(driver: ProcessorDriver) -> None:
    messages = tuple(Message(role="user", content="x" * 32_000) for _ in range(17))
    driver.append(response("large", messages=messages))
    driver.append(response())
    for response_id in ("large", "r1"):
        driver.append(feedback("thumbs", "up", f"on-{response_id}", response_id=response_id), 1)
    driver.tick(CUT)
    assert driver.outcomes == {"on-large": "refused:too_large", "on-r1": "batched"}


def test_waiting_retractions_of_one_user_are_bounded(driver: ProcessorDriver) -> None:
    driver.append(response())
    driver.append(feedback("retract", "late", "mine", user="u_ann"))
    for number in range(2_000):
        driver.append(feedback("retract", f"never-{number}", f"x{number}", user="u_eve"), 1)
    state, size = joined(driver)
    assert len(state.retractions) == MAX_USER_EVENTS + 1
    assert size < 60_000
    driver.append(feedback("thumbs", "up", "late", user="u_ann"), 2)
    assert (driver.outcomes["late"], driver.outcomes["mine"]) == ("retracted", "applied_retract")
    driver.advance(WINDOW_DAYS * DAY + 1)
    assert Counter(driver.outcomes.values()) == {"retracted": 1, "applied_retract": 1, "unmatched": 2_000}


def test_memory_of_many_users_with_long_ids_is_bounded(driver: ProcessorDriver) -> None:
    driver.append(response())
    for number in range(220):
        user, event_id = f"u{number}" + "|" * 100 + '"' * 20, f"e{number}" + "\\" * 100
        driver.append(feedback("thumbs", "up", event_id, user=user), 1)
        driver.append(feedback("retract", f"n{event_id}", f"x{event_id}", user=user), 1)
    driver.append(feedback("correction", "A language.", "e1"), 2)
    driver.tick(CUT)
    assert joined(driver)[1] <= MAX_JOINED_BYTES
    assert driver.outcomes["e1"] == "batched"
    assert driver.errors == []


def test_size_of_a_signal_covers_what_a_batch_holds(driver: ProcessorDriver) -> None:
    driver.append(response())
    long = "x" * 90 + '"\\' * 19
    event = feedback("preference", {"over": "\x01" * 900}, long, user=long, tags=("\x01" * 64,) * 16)
    driver.append(event, 1)
    state, size = joined(driver)
    driver.tick(CUT)
    (signal,) = driver.newest["r1"].signals
    bound = signal_bytes(long, state.signals[long])
    assert len(signal.model_dump_json()) <= bound
    assert size - len(JoinedResponse.from_json(b'{"line":"assistant","since_ms":1}').to_json()) <= bound + 300


# --- others are not affected ---

HOSTILE_USER = "u_eve"
honest_events = st.lists(
    st.tuples(st.sampled_from(KINDS[:6]), st.sampled_from(["u_ann", "u_bob"]), st.booleans()), max_size=6
)
hostile_events = st.lists(
    st.tuples(
        st.sampled_from(KINDS) | st.just(("correction", "x" * MAX_TEXT)),
        st.integers(0, 9),
        st.sampled_from(["assistant", "made-up"]),
        st.sampled_from([1, 1, 1, 70, 300]),
    ),
    max_size=6,
)


@settings(max_examples=40)
@given(honest_events, hostile_events, st.integers(0, 12), st.randoms(use_true_random=False))
def test_hostile_user_changes_nothing_for_others(
    honest: list[Any], hostile: list[Any], answered_after: int, rng: Any
) -> None:
    """With batches of one example, so that only the hostile user could make a difference."""
    records: list[tuple[bool, Any]] = []
    for number, ((kind, value), user, retracted) in enumerate(honest):
        records.append((True, feedback(kind, value, f"h{number}", user=user, at_s=number)))
        if retracted:
            records.append((True, feedback("retract", f"h{number}", f"x{number}", user=user)))
    for number, ((kind, value), choice, line, times) in enumerate(hostile):
        target = f"h{choice}" if kind == "retract" else value
        for again in range(times):
            event = feedback(
                kind,
                target,
                f"z{number}-{again}",
                user=HOSTILE_USER,
                choice=choice % 8,
                line=line,
                occurred_at=rng.choice([None, datetime(1, 1, 1, tzinfo=UTC), START]),
            )
            records.insert(rng.randrange(len(records) + 1), (False, event))
    records.insert(min(answered_after, len(records)), (True, response()))
    fates = []
    for with_hostile in (True, False):
        driver = ProcessorDriver(BatchLimits(examples=1))
        for at, (is_honest, record) in enumerate(records):
            if is_honest or with_hostile:
                driver.append(record, at / 100)
        driver.tick(CUT)
        driver.advance(WINDOW_DAYS * DAY + 60)
        driver.finish_erasures(driver.now_s)
        assert driver.errors == []
        fates.append(
            {
                outcome.event_id: (outcome.outcome, outcome.line, outcome.reason)
                for outcome in driver.decided
                if outcome.event_id is not None and outcome.event_id[0] in "hx"
            }
        )
        sent = sum(isinstance(record, FeedbackBase) for _, record in records)
        if with_hostile:
            assert sum(outcome.event_id is not None for outcome in driver.decided) == sent
    # The order of arrival of honest records differs by nothing but the time at which it happens.
    assert fates[0] == fates[1]


# --- keys ---

versions = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
users = st.text(st.sampled_from("ab/|%2F5C"), min_size=1, max_size=6)


@settings(max_examples=300)
@given(st.tuples(versions | users, users), st.tuples(versions | users, users))
def test_tallies_of_different_users_or_versions_never_share_a_key(
    one: tuple[str, str], other: tuple[str, str]
) -> None:
    assert (tally_key(*one) == tally_key(*other)) == (one == other)
    assert tally_ids(tally_key(*one)) == one
    names = [join_ids(version, user, "0", separator="|") for version, user in (one, other)]
    assert (names[0] == names[1]) == (one == other)
    assert split_ids(names[0], "|") == [*one, "0"]


@settings(max_examples=300)
@given(
    st.tuples(users, st.sampled_from(["thumbs", "rating"]), st.integers(0, 7)),
    st.tuples(users, st.sampled_from(["thumbs", "rating"]), st.integers(0, 7)),
)
def test_different_slots_never_share_a_name(one: tuple[str, str, int], other: tuple[str, str, int]) -> None:
    assert (slot_of(*one) == slot_of(*other)) == (one == other)


def test_versions_and_users_with_slashes_are_counted_apart(driver: ProcessorDriver) -> None:
    for number, (version, user) in enumerate([("x", "y/z"), ("x/y", "z"), ("x|y", "z"), ("x", "y|z")]):
        response_id = f"r{number}"
        driver.append(response(response_id, version=version))
        driver.append(feedback("thumbs", "up", "e1", user=user, response_id=response_id), 1)
    tallies = [o for o in driver.outputs if o.topic == "feedback.tallies"]
    assert len({output.key for output in tallies}) == 4
    assert all(b'"up":1' in (output.value or b"") for output in tallies)


# --- traces ---

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_trace_of_a_record_goes_only_onto_its_own_outcome() -> None:
    driver = ProcessorDriver(BatchLimits(examples=2))
    driver.append(response())
    driver.append(response("r2"))
    driver.append(feedback("thumbs", "up", "e1"), 1)
    event = feedback("comment", "bad answer", "e1", response_id="r2")
    headers = (("traceparent", TRACE.encode()),)
    driver.process(Record(FEEDBACK_EVENTS.name, 0, 90, T0 + 2_000, b"r2", event.to_json(), headers))
    cutter = feedback("thumbs", "up", "e2", response_id="r2")
    driver.process(Record(FEEDBACK_EVENTS.name, 0, 91, T0 + 3_000, b"r2", cutter.to_json(), headers))
    traced = [
        (output.topic, output.value)
        for output in driver.outputs
        if dict(output.headers).get("traceparent") == TRACE.encode()
    ]
    assert [topic for topic, _ in traced] == ["feedback.outcomes", "feedback.outcomes"]
    assert [b'"event_id":"e1"' in (value or b"") for _, value in traced] == [True, False]
    assert driver.batches[0].reason == "count"


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"x" * 900_000,
        TRACE.encode() + b"-more",
        TRACE.upper().encode(),
        b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01",
        b"00-4bf92f3577b34da6a3ce929d0e0e4736-" + b"0" * 16 + b"-01",
        b"\xff" * 55,
    ],
    ids=range(7),
)
def test_malformed_trace_is_ignored(driver: ProcessorDriver, header: bytes) -> None:
    event = feedback("comment", "bad answer", "e1")
    driver.append(response())
    driver.process(
        Record(FEEDBACK_EVENTS.name, 0, 90, T0, b"r1", event.to_json(), (("traceparent", header),))
    )
    assert driver.outcomes == {"e1": "tally_only"}
    assert all("traceparent" not in dict(output.headers) for output in driver.outputs)
