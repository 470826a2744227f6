"""How often the rules are wrong, by simulation: `python -m benchmarks.gate.calibration`.

What is drawn goes through `decide` itself. A null candidate differs from stable by chance alone: an item that the two
answer otherwise is won or lost by a coin, a question flips either way as often as the other. The rates of ties and
flips are those that real runs showed (`docs/decisions/gate.md`).
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

import numpy as np

from services.trainer.gate.confidence_intervals import Interval
from services.trainer.gate.mcnemar import Pair
from services.trainer.gate.metrics import Measured
from services.trainer.gate.verdict import decide
from shared.versions import Verdict

AGAINST = "assistant@base-00000000"
LEAST_ITEMS = 30
WON, LOST, TIE = (0.9, 0.1), (0.1, 0.9), (0.5, 0.5)
RUNS = 2000


@dataclass(frozen=True, slots=True)
class Simulated:
    """A candidate by its true rates. `decided`: share of items that are no tie; `win`: of those, won. `flips`: share of
    general questions that are right with one of the two alone; `worse`: true fall of accuracy, as a share."""

    items: int = 60
    decided: float = 0.4
    win: float = 0.5
    questions: int = 493
    flips: float = 0.24
    worse: float = 0.0
    prompts: int = 30
    refusal_flips: float = 0.1

    def drawn(self, dice: np.random.Generator) -> Measured:
        """One such candidate as the gate may measure it."""
        won, lost, tied = _counts(dice, self.items, self.decided * self.win, self.decided * (1 - self.win))
        return Measured(
            wins=[WON] * won + [LOST] * lost + [TIE] * tied,
            accuracy=_pairs(dice, self.questions, self.flips, self.worse),
            refusals=_pairs(dice, self.prompts, self.refusal_flips),
            answered=_pairs(dice, self.prompts, self.refusal_flips / 2),
        )


def _counts(dice: np.random.Generator, n: int, first: float, second: float) -> tuple[int, int, int]:
    found = dice.multinomial(n, [first, second, max(0.0, 1 - first - second)])
    return int(found[0]), int(found[1]), int(found[2])


def _pairs(dice: np.random.Generator, n: int, flips: float, worse: float = 0.0) -> list[Pair]:
    lost, won, same = _counts(dice, n, (flips + worse) / 2, (flips - worse) / 2)
    return [(False, True)] * lost + [(True, False)] * won + [(True, True)] * same


def simulate(candidate: Simulated, runs: int = RUNS, seed: int = 20) -> dict[Verdict, float]:
    """The share of each verdict among so many draws."""
    dice = np.random.default_rng(seed)
    found = Counter(
        decide(candidate.drawn(dice), AGAINST, LEAST_ITEMS, mean=_plain).verdict for _ in range(runs)
    )
    names: tuple[Verdict, ...] = ("passed", "failed", "inconclusive")
    return {name: found[name] / runs for name in names}


def _plain(values: Sequence[float]) -> Interval:
    """No rule that is drawn here asks for the interval of a mean."""
    return Interval(len(values), sum(values) / len(values) if values else None)


NULL: Final = Simulated()
GOOD: Final = Simulated(decided=0.8, win=0.95)
CASES: Final = {
    "null, 40 % decided": NULL,
    "null, 90 % decided": replace(NULL, decided=0.9),
    "null, 200 items": replace(NULL, items=200, decided=0.8),
    "null, 15 items": replace(NULL, items=15, decided=0.9),
    "better, nothing lost": GOOD,
    "better, nothing lost, 16 % flips": replace(GOOD, flips=0.16),
    "better, half a point lost": replace(GOOD, worse=0.005),
    "better, 3 points lost": replace(GOOD, worse=0.03),
    "better, 5 points lost": replace(GOOD, worse=0.05),
    "better, 8 points lost": replace(GOOD, worse=0.08),
    "better, 5 points lost, 194 questions": replace(GOOD, worse=0.05, questions=194),
    "better, 8 points lost, 194 questions": replace(GOOD, worse=0.08, questions=194),
    "slightly better (60 % won)": replace(GOOD, win=0.6),
}


def main() -> None:
    """Writes a table, and a line of JSON."""
    out = sys.stdout
    shares = {name: simulate(candidate) for name, candidate in CASES.items()}
    out.write(f"{RUNS} candidates each, share of each verdict\n")
    for name, found in shares.items():
        told = "  ".join(f"{verdict} {share:6.1%}" for verdict, share in found.items())
        out.write(f"{name:40} {told}\n")
    out.write(json.dumps({"runs": RUNS, "null": asdict(NULL), "shares": shares}) + "\n")


if __name__ == "__main__":
    main()
