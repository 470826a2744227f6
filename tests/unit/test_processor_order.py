"""I1, I3, I4 in the core: any interleaving, duplication and reordering of a history gives the same newest revisions.

The histories contain everything that users do, in two lines, also feedback on missing choices and retractions of other
users' feedback. They leave out the one rule that depends on order: of two events with the same id, the first stands.
"""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from services.processor.core.batches import BatchLimits
from shared.events import ChatResponse, Choice, LogRecord, Outcome, OutcomeKind
from shared.topics import DAY_MS, FEEDBACK_OUTCOMES
from tests.fault.oracle import Content, newest
from tests.unit.processor_driver import ProcessorDriver, feedback, response

USERS = ("u_ann", "u_bob")
CONTENT = (
    ("thumbs", "up"),
    ("thumbs", "down"),
    ("correction", "A language."),
    ("correction", "A tool."),
    ("rating", 2),
    ("rating", 5),
    ("comment", "Name the year in which it was founded"),
    ("comment", "bad answer"),
    ("preference", {"over": 1}),
    ("preference", {"under": "Something else."}),
)
CUT_S = 1_000.0


@st.composite
def events(draw: st.DrawFn, response_id: str, line: str) -> list[LogRecord]:
    """Draw feedback on one response, with times before anything arrives."""
    records: list[LogRecord] = []
    for number in range(draw(st.integers(0, 6))):
        kind, value = draw(st.sampled_from(CONTENT))
        choice = draw(st.sampled_from((0, 0, 1, 5)))
        fields = {"response_id": response_id, "line": line}
        at, user = draw(st.integers(-50, -1)), draw(st.sampled_from(USERS))
        records.append(feedback(kind, value, f"e{number}", user=user, at_s=at, choice=choice, **fields))
        for again in range(draw(st.integers(0, 2))):
            author = draw(st.sampled_from((user, user, *USERS)))
            records.append(
                feedback("retract", f"e{number}", f"x{number}.{again}", user=author, at_s=0, **fields)
            )
    return records


@st.composite
def histories(draw: st.DrawFn) -> list[LogRecord]:
    """Draw up to three responses, which may have failed or never arrive, and feedback on them."""
    records: list[LogRecord] = []
    for number in range(draw(st.integers(1, 3))):
        response_id, line = f"r{number}", draw(st.sampled_from(("assistant", "coder")))
        fate = draw(st.sampled_from(("completed", "completed", "failed", "never")))
        choices = tuple(Choice(index=n, text=f"Answer {n}") for n in (0, 1)) if fate == "completed" else ()
        if fate != "never":
            records.append(response(response_id, line=line, choices=choices, status=fate))
        records += draw(events(response_id, line))
    return records


def process(
    records: list[LogRecord], limits: BatchLimits, rng: random.Random | None = None
) -> ProcessorDriver:
    """Process these records a second apart, with `rng` also ticks in between, and cut all batches."""
    driver = ProcessorDriver(limits)
    for at, record in enumerate(records):
        driver.append(record, at)
        if rng is not None and rng.random() < 0.2:
            driver.tick(at + 100)
    driver.tick(10 * CUT_S)
    return driver


def contents(driver: ProcessorDriver) -> dict[str, Content]:
    return newest(example for batch in driver.batches for example in batch.examples)


def counted(driver: ProcessorDriver) -> dict[str, dict[str, int]]:
    """Return each user's tally, without those that are zero."""
    names = {"up", "down", "ratings", "rating_sum", "corrections", "comments", "preferences"}
    tallies = {user: tally.model_dump(include=names) for user, tally in driver.tallies.items()}
    return {user: figures for user, figures in tallies.items() if any(figures.values())}


@settings(max_examples=200)
@given(histories(), st.integers(0, 2**32), st.sampled_from([1, 2, 64]))
def test_any_order_and_repetition_gives_the_same_newest_revisions(
    history: list[LogRecord], seed: int, per_batch: int
) -> None:
    rng = random.Random(seed)
    messy = history + rng.choices(history, k=rng.randrange(len(history) + 1))
    rng.shuffle(messy)
    plain, shuffled = process(history, BatchLimits()), process(messy, BatchLimits(examples=per_batch), rng)
    assert contents(shuffled) == contents(plain)
    assert counted(shuffled) == counted(plain)


@settings(max_examples=100)
@given(histories(), st.integers(0, 2**32))
def test_any_order_gives_each_record_one_outcome(history: list[LogRecord], seed: int) -> None:
    """After all windows, each record has an outcome or a dead letter, and all but one of an event are duplicates."""
    rng = random.Random(seed)
    messy = history + rng.choices(history, k=rng.randrange(len(history) + 1))
    rng.shuffle(messy)
    driver = process(messy, BatchLimits(examples=2), rng)
    driver.advance(31 * DAY_MS / 1000)
    driver.finish_erasures(driver.now_s)
    decided = [Outcome.from_json(value) for value in driver.values(FEEDBACK_OUTCOMES.name)]
    events_sent = sum(not isinstance(record, ChatResponse) for record in messy)
    assert driver.errors == []
    assert sum(outcome.event_id is not None for outcome in decided) == events_sent
    final = Counter((o.response_id, o.event_id) for o in decided if o.outcome is not OutcomeKind.DUPLICATE)
    assert all(count == 1 for count in final.values())


def test_own_retraction_applies_after_anothers_attempt() -> None:
    records: list[LogRecord] = [
        response(),
        feedback("correction", "A language.", "e0", user="u_ann", at_s=-1),
        feedback("retract", "e0", "x0", user="u_bob", at_s=0),
        feedback("retract", "e0", "x1", user="u_ann", at_s=0),
    ]
    answer, correction, by_another, own = records
    assert contents(process([answer, by_another, own, correction], BatchLimits())) == {}


def test_comment_on_a_missing_choice_counts_alike_in_any_order() -> None:
    answer = response()
    comment = feedback("comment", "Name the year in which it was founded", "e0", choice=5)
    early, late = process([comment, answer], BatchLimits()), process([answer, comment], BatchLimits())
    assert counted(early) == counted(late)
