"""Whether something got worse that candidate and stable were both asked: right or not, question by question.

A question counts where the two differ. By a coin for each of those, so many losses or more have the probability `p`
(McNemar's exact test, one-sided). A fall counts from a margin on, for some questions flip with any training at all:

- `fell`: by more than the margin, and p < 0.05;
- `unsettled`: by more than the margin, and p < 0.2: neither chance nor a loss, so the candidate does not pass;
- `kept` otherwise.

`docs/decisions/gate.md` has what these let through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.special import bdtrc

SURE, DOUBTED = 0.05, 0.2
Pair = tuple[bool, bool]
"""(candidate, stable)"""


@dataclass(frozen=True, slots=True)
class Change:
    """`value`: candidate minus stable, as a share of all asked; 0 where nothing was."""

    n: int
    lost: int
    won: int

    @property
    def value(self) -> float:
        return (self.won - self.lost) / self.n if self.n else 0.0

    @property
    def p(self) -> float:
        """1 where no question tells the two apart."""
        return float(bdtrc(self.lost - 1, self.lost + self.won, 0.5)) if self.lost else 1.0


def change(pairs: Sequence[Pair]) -> Change:
    lost = sum(stable and not candidate for candidate, stable in pairs)
    won = sum(candidate and not stable for candidate, stable in pairs)
    return Change(len(pairs), lost, won)


def judged(found: Change, margin: float, doubted: float = DOUBTED) -> Literal["kept", "unsettled", "fell"]:
    """See the module. `margin` and the value are shares, such as 0.03."""
    if found.value >= -margin:
        return "kept"
    p = found.p
    return "fell" if p < SURE else "unsettled" if p < doubted else "kept"
