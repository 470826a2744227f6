"""The figures of a report, made of intervals; and what the rules found while making them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from services.trainer.gate.confidence_intervals import Interval
from services.trainer.gate.metrics import Scores
from shared.versions import Figure


@dataclass(slots=True)
class Findings:
    """All figures; what speaks against the candidate; what is neither shown nor excluded. `mean` makes the intervals of
    means."""

    mean: Callable[[Sequence[float]], Interval]
    figures: list[Figure] = field(default_factory=list)
    against: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    def add(
        self,
        name: str,
        found: Interval,
        *,
        baseline: float | None = None,
        bound: float | None = None,
        passed: bool | None = None,
    ) -> None:
        """One figure. Of what was not measured those that decide are listed all the same, with n = 0."""
        if found.n == 0 and bound is None:
            return
        self.figures.append(
            Figure(
                name=name,
                n=found.n,
                value=_short(found.value),
                low=_short(found.low),
                high=_short(found.high),
                baseline=_short(baseline),
                bound=bound,
                passed=passed if found.n else None,
            )
        )


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def average(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def of_stable(scores: Sequence[Scores]) -> float | None:
    return average([stable for _, stable in scores])


def gains(scores: Sequence[Scores]) -> list[float]:
    return [candidate - stable for candidate, stable in scores]


def exponent(found: Interval) -> Interval:
    """Of an interval of logarithms."""

    def of(value: float | None) -> float | None:
        return None if value is None else math.exp(value)

    return Interval(found.n, of(found.value), of(found.low), of(found.high))
