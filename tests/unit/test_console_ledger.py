"""The ledger stays true however old the deployment is: topics forget their records after different times."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from services.console.core.ledger import Ledger, window_start_ms
from services.console.pages.formatting import OUTCOMES, REASONS
from shared.events import OutcomeKind, RefusalReason
from shared.topics import DAY_MS, FEEDBACK_OUTCOMES, INPUT_DAYS, WINDOW_DAYS

OUTCOME_DAYS = FEEDBACK_OUTCOMES.keep_days or 0
NOON_MS = DAY_MS // 2


@dataclass(frozen=True)
class Day:
    """What arrives on one day: events by what becomes of them."""

    batched: int
    refused: int
    dead: int
    replayed: int
    """How many of the dead ones are replayed on the next day, and batched then."""
    never_matched: int


class Deployment:
    """A simulated deployment, and what its topics still hold."""

    def __init__(self, days: list[Day]) -> None:
        self.events: list[int] = []
        """Append time of each record of feedback.events."""
        self.outcomes: list[tuple[int, OutcomeKind, str | None]] = []
        self.dead: list[tuple[int, str]] = []
        self.replays: list[tuple[int, tuple[str, ...]]] = []
        for number, day in enumerate(days):
            at = number * DAY_MS + NOON_MS
            replayed = min(day.replayed, day.dead)
            self.events += [at] * (day.batched + day.refused + day.dead + day.never_matched)
            self.events += [at + DAY_MS] * replayed
            self.outcomes += [(at + 30_000, OutcomeKind.BATCHED, None)] * day.batched
            self.outcomes += [(at, OutcomeKind.REFUSED, "too_many")] * day.refused
            self.outcomes += [(at + DAY_MS, OutcomeKind.BATCHED, None)] * replayed
            self.outcomes += [(at + WINDOW_DAYS * DAY_MS, OutcomeKind.UNMATCHED, None)] * day.never_matched
            letters = [f"0-{number * 10 + n}" for n in range(day.dead)]
            self.dead += [(at, letter) for letter in letters]
            if replayed:
                self.replays.append((at + DAY_MS, tuple(letters[:replayed])))

    def ledger(self, now_ms: int) -> Ledger:
        """Return the ledger of a console that starts now."""
        ledger = Ledger()
        for at, kind, reason in self.outcomes:
            if now_ms - OUTCOME_DAYS * DAY_MS <= at <= now_ms:
                ledger.add(kind, reason, at)
        for at, position in self.dead:
            if now_ms - INPUT_DAYS * DAY_MS <= at <= now_ms:
                ledger.add_dead_letter(position, at)
        for at, positions in self.replays:
            if now_ms - OUTCOME_DAYS * DAY_MS <= at <= now_ms:
                ledger.add_replay(positions)
        return ledger

    def records_since(self, since_ms: int, now_ms: int) -> int:
        """Return the number of records of feedback.events in a window."""
        return sum(since_ms <= at <= now_ms for at in self.events)

    def pending(self, now_ms: int) -> int:
        """Return how many events of the last 35 days truly have no outcome."""
        since = window_start_ms(now_ms)
        recent = Counter(since <= at <= now_ms for at in self.events)[True]
        settled = sum(
            since <= at - (WINDOW_DAYS * DAY_MS if kind is OutcomeKind.UNMATCHED else 0) and at <= now_ms
            for at, kind, _ in self.outcomes
        )
        dead = sum(since <= at <= now_ms for at, _ in self.dead)
        return recent - settled - dead


@settings(max_examples=100)
@given(st.randoms(use_true_random=False), st.integers(0, 130))
def test_pending_is_true_at_any_age_and_no_count_is_negative(random: Random, age: int) -> None:
    deployment = Deployment([Day(*(random.randint(0, most) for most in (5, 2, 2, 2, 2))) for _ in range(age)])
    now_ms = age * DAY_MS + DAY_MS - 1
    since_ms = window_start_ms(now_ms)
    counts = deployment.ledger(now_ms).counts(since_ms)
    records = deployment.records_since(since_ms, now_ms)
    assert counts.pending(records) == deployment.pending(now_ms)
    assert all(count >= 0 for count in counts.outcomes.values())


def test_young_deployment_counts_everything() -> None:
    deployment = Deployment([Day(batched=3, refused=1, dead=2, replayed=1, never_matched=1)] * 5)
    now_ms = 6 * DAY_MS
    counts = deployment.ledger(now_ms).counts()
    accepted = counts.accepted(deployment.records_since(0, now_ms))
    assert accepted == 5 * 7
    assert counts.outcomes == {"batched": 20, "refused": 5, "dead": 5}
    assert counts.outcomes.total() + counts.pending(deployment.records_since(0, now_ms)) == accepted


def test_replay_of_a_forgotten_dead_letter_is_not_negative() -> None:
    ledger = Ledger()
    ledger.add_replay(["0-1", "0-2"])
    assert ledger.counts().outcomes == {}
    assert ledger.counts(0).outcomes == {}


def test_refusals_are_counted_by_reason_and_apart_from_responses() -> None:
    ledger = Ledger()
    ledger.add(OutcomeKind.REFUSED, "too_many", DAY_MS)
    ledger.add(OutcomeKind.REFUSED, "too_many", DAY_MS)
    ledger.add_refused_response("conflict", DAY_MS)
    counts = ledger.counts()
    assert (counts.outcomes, counts.refusals, counts.refused_responses) == (
        {"refused": 2},
        {"too_many": 2},
        {"conflict": 1},
    )
    assert ledger.counts(2 * DAY_MS).refusals == {}


def test_every_outcome_and_reason_has_words() -> None:
    assert set(OUTCOMES) == {*OutcomeKind, "pending"}
    assert set(REASONS) == set(RefusalReason)
