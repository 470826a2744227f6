"""The ledger: feedback events by outcome, counted per day so that accepted events and outcomes cover the same time.

Topics forget their records after different times: feedback events after 35 days, outcomes and results of commands after
90. Sums over whole topics would drift apart, so all figures are of the window that every topic still holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from shared.events import OutcomeKind
from shared.topics import DAY_MS, INPUT_DAYS, WINDOW_DAYS


def window_start_ms(now_ms: int) -> int:
    """Return the start of the day since when `feedback.events` and `dead.letters` still hold every record."""
    return max(0, now_ms // DAY_MS - (INPUT_DAYS - 1)) * DAY_MS


@dataclass(frozen=True, slots=True)
class CountedRecords:
    """Number of records that were appended to a topic since a time.

    If retention has deleted nothing yet, it is the number of all records, and `complete` is set.
    """

    records: int
    complete: bool


@dataclass(frozen=True, slots=True)
class LedgerCounts:
    """Figures of one window, over all lines."""

    outcomes: Counter[str]
    """Outcome -> events. Dead letters of feedback count as `dead` until they are replayed."""
    refusals: Counter[str]
    """Reason -> events with the outcome `refused`."""
    refused_responses: Counter[str]
    """Reason -> responses that were refused."""
    decided: int
    """Events that arrived in the window and have an outcome."""
    replays: int
    """Records of feedback that are replays of dead letters of the window, and so were accepted before."""

    def accepted(self, records: int) -> int:
        """Return how many events were accepted, given the number of records of `feedback.events` in the window."""
        return max(0, records - self.replays)

    def pending(self, records: int) -> int:
        """Return how many accepted events have no outcome yet."""
        return max(0, self.accepted(records) - self.decided)


_OUTCOMES: Final = "outcomes"
_REFUSALS: Final = "refusals"
_RESPONSES: Final = "refused_responses"


@dataclass
class Ledger:
    """Outcomes per day of their record."""

    _days: dict[int, dict[str, Counter[str]]] = field(default_factory=dict)
    """Day -> kind of count -> counts."""
    _dead: dict[str, int] = field(default_factory=dict)
    """Position of a dead letter of feedback -> its day."""
    _replayed: set[str] = field(default_factory=set)
    """Positions of dead letters that were replayed."""

    def add(self, outcome: OutcomeKind, reason: str | None, at_ms: int) -> None:
        """Count the outcome of a feedback event."""
        self._count(_OUTCOMES, outcome, at_ms)
        if outcome is OutcomeKind.REFUSED:
            self._count(_REFUSALS, reason or "unknown", at_ms)

    def add_refused_response(self, reason: str | None, at_ms: int) -> None:
        """Count a response that was refused."""
        self._count(_RESPONSES, reason or "unknown", at_ms)

    def add_dead_letter(self, position: str, at_ms: int) -> None:
        """Count a dead letter of feedback. `position` is `<partition>-<offset>`."""
        self._dead[position] = at_ms // DAY_MS

    def add_replay(self, positions: Iterable[str]) -> None:
        """Note that dead letters were replayed.

        Replayed events are no longer dead: their outcomes are counted when they arrive, or were counted already.
        """
        self._replayed.update(positions)

    def counts(self, since_ms: int | None = None) -> LedgerCounts:
        """Return the figures since the start of a day, or of everything that was read."""
        first = 0 if since_ms is None else since_ms // DAY_MS
        sums: dict[str, Counter[str]] = {name: Counter() for name in (_OUTCOMES, _REFUSALS, _RESPONSES)}
        earlier_unmatched = 0
        for day, counts in self._days.items():
            if day < first:
                continue
            for name, counter in counts.items():
                sums[name].update(counter)
            if since_ms is not None and day < first + WINDOW_DAYS:
                # An event is unmatched once its window has passed, so these events arrived before the first day.
                earlier_unmatched += counts[_OUTCOMES][OutcomeKind.UNMATCHED] if _OUTCOMES in counts else 0
        outcomes = sums[_OUTCOMES]
        dead = [position for position, day in self._dead.items() if day >= first]
        replays = sum(position in self._replayed for position in dead)
        if len(dead) > replays:
            outcomes[OutcomeKind.DEAD] += len(dead) - replays
        return LedgerCounts(
            outcomes=outcomes,
            refusals=sums[_REFUSALS],
            refused_responses=sums[_RESPONSES],
            decided=outcomes.total() - earlier_unmatched,
            replays=replays,
        )

    def _count(self, name: str, key: str, at_ms: int) -> None:
        self._days.setdefault(at_ms // DAY_MS, {}).setdefault(name, Counter())[key] += 1
