"""I1, I3, I4 in the core: any interleaving, duplication and reordering of a history gives the same newest revisions.

Everything that users do is in these histories, in two lines, with choices that a response does not have and retractions
of what is not one's own. Left out is what depends on the order by its rule: of two events under one id the first
stands.
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
SAID = (
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
    """What is said of one response; times are the users' own, all before anything arrives."""
    found: list[LogRecord] = []
    for number in range(draw(st.integers(0, 6))):
        kind, value = draw(st.sampled_from(SAID))
        choice = draw(st.sampled_from((0, 0, 1, 5)))
        said = {"response_id": response_id, "line": line}
        at, user = draw(st.integers(-50, -1)), draw(st.sampled_from(USERS))
        found.append(feedback(kind, value, f"e{number}", user=user, at_s=at, choice=choice, **said))
        for again in range(draw(st.integers(0, 2))):
            who = draw(st.sampled_from((user, user, *USERS)))
            found.append(feedback("retract", f"e{number}", f"x{number}.{again}", user=who, at_s=0, **said))
    return found


@st.composite
def histories(draw: st.DrawFn) -> list[LogRecord]:
    """Up to three responses, one of which may never come or may have failed, and what is said of them."""
    records: list[LogRecord] = []
    for number in range(draw(st.integers(1, 3))):
        response_id, line = f"r{number}", draw(st.sampled_from(("assistant", "coder")))
        fate = draw(st.sampled_from(("completed", "completed", "failed", "never")))
        choices = tuple(Choice(index=n, text=f"Answer {n}") for n in (0, 1)) if fate == "completed" else ()
        if fate != "never":
            records.append(response(response_id, line=line, choices=choices, status=fate))
        records += draw(events(response_id, line))
    return records


def after(
    records: list[LogRecord], limits: BatchLimits, dice: random.Random | None = None
) -> ProcessorDriver:
    """A partition that has got all of these a second apart; with `dice`, ticks cut batches in between."""
    driver = ProcessorDriver(limits)
    for at, record in enumerate(records):
        driver.append(record, at)
        if dice is not None and dice.random() < 0.2:
            driver.tick(at + 100)
    driver.tick(10 * CUT_S)
    return driver


def contents(driver: ProcessorDriver) -> dict[str, Content]:
    return newest(example for batch in driver.batches for example in batch.examples)


def counted(driver: ProcessorDriver) -> dict[str, dict[str, int]]:
    """What each user's tallies say, without those that say nothing."""
    names = {"up", "down", "ratings", "rating_sum", "corrections", "comments", "preferences"}
    found = {user: tally.model_dump(include=names) for user, tally in driver.tallies.items()}
    return {user: figures for user, figures in found.items() if any(figures.values())}


@settings(max_examples=200)
@given(histories(), st.integers(0, 2**32), st.sampled_from([1, 2, 64]))
def test_any_order_and_repetition_gives_the_same_newest_revisions(
    history: list[LogRecord], seed: int, per_batch: int
) -> None:
    dice = random.Random(seed)
    messy = history + dice.choices(history, k=dice.randrange(len(history) + 1))
    dice.shuffle(messy)
    plain, shuffled = after(history, BatchLimits()), after(messy, BatchLimits(examples=per_batch), dice)
    assert contents(shuffled) == contents(plain)
    assert counted(shuffled) == counted(plain)


@settings(max_examples=100)
@given(histories(), st.integers(0, 2**32))
def test_in_any_order_each_record_has_one_outcome_and_each_event_one_fate(
    history: list[LogRecord], seed: int
) -> None:
    """Once the windows are closed: an outcome or a dead letter for each record; all but one of an event's repeat it."""
    dice = random.Random(seed)
    messy = history + dice.choices(history, k=dice.randrange(len(history) + 1))
    dice.shuffle(messy)
    driver = after(messy, BatchLimits(examples=2), dice)
    driver.tick(31 * DAY_MS / 1000)
    decided = [Outcome.from_json(value) for value in driver.values(FEEDBACK_OUTCOMES.name)]
    said = sum(not isinstance(record, ChatResponse) for record in messy)
    assert len(decided) + len(driver.errors) == said
    fates = Counter((o.response_id, o.event_id) for o in decided if o.outcome is not OutcomeKind.DUPLICATE)
    assert all(count == 1 for count in fates.values())


def test_ones_own_retraction_holds_whatever_others_sent_before() -> None:
    records: list[LogRecord] = [
        response(),
        feedback("correction", "A language.", "e0", user="u_ann", at_s=-1),
        feedback("retract", "e0", "x0", user="u_bob", at_s=0),
        feedback("retract", "e0", "x1", user="u_ann", at_s=0),
    ]
    answer, said, by_another, own = records
    assert contents(after([answer, by_another, own, said], BatchLimits())) == {}


def test_a_comment_on_a_choice_that_is_not_there_counts_alike_in_any_order() -> None:
    answer = response()
    comment = feedback("comment", "Name the year in which it was founded", "e0", choice=5)
    early, late = after([comment, answer], BatchLimits()), after([answer, comment], BatchLimits())
    assert counted(early) == counted(late)
