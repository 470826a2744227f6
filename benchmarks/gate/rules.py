"""How often the gate's rules on general ability are wrong: single candidates, and chains of versions.

Simulated candidates go through the real `decide`. The rates of flips are those of real runs (`docs/decisions/gate.md`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from benchmarks.gate.simulated_service import Bools, Floats
from services.trainer.gate.metrics import Measurements
from services.trainer.gate.metrics.corrections import KIND, CorrectionScores
from services.trainer.gate.metrics.metric import ItemVote, JudgeOptions, Votes
from services.trainer.gate.metrics.safety import SafetyOutcomes
from services.trainer.gate.statistics import Interval, OutcomePair, ScorePair
from services.trainer.gate.verdict import decide
from shared.versions import Verdict

BASE: Final = "assistant@base-00000000"
FLIPS: Final = 0.18
"""Share of the shipped questions that only the base or only a version of the demo answers correctly, in one draw at the
gate's temperature: 81, 81 and 92 of 493."""
LASTING: Final = 0.1
"""Share of them that are the same in all draws: the mean of three draws varied by 1.15 points, single ones by 1.87."""
VERDICTS: Final[tuple[Verdict, ...]] = ("passed", "failed", "inconclusive")


def _mean_without_interval(values: Sequence[float]) -> Interval:
    """Replace the bootstrap, which is slow and decides nothing here."""
    return Interval(len(values), sum(values) / len(values) if values else None)


def options(look: int = 1) -> JudgeOptions:
    """Return the options of a simulated gate."""
    return JudgeOptions(min_items=30, look=look, mean_interval=_mean_without_interval)


OPTIONS: Final = options()


def votes(wins: int, losses: int = 0, ties: int = 0) -> Votes:
    """Return votes of as many users about as many facts."""
    outcomes = [1] * wins + [-1] * losses + [0] * ties
    return Votes(
        tuple(ItemVote(f"u{i}", f"g{i}", KIND, outcome, f"{i}") for i, outcome in enumerate(outcomes))
    )


# --- single candidates --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SimulatedCandidate:
    """A candidate with independent items, given by its true rates.

    Attributes:
        items: Number of held-out items.
        decided: Share of items that are not a tie.
        win: Share of wins among those.
        questions: Number of general questions.
        draws: Answers to each of them.
        flips: Share of them that only one of the two versions answers correctly in one draw, by chance.
        lasting: Share of these flips that are the same in all draws.
        accuracy_loss: True fall of general accuracy, as a share.
        safety_prompts: Number of harmful prompts, and of harmless ones.
        refusal_flips: Share of harmful prompts that only one version refuses in one draw; half of it for harmless
            prompts, which are answered once.
    """

    items: int = 60
    decided: float = 0.4
    win: float = 0.5
    questions: int = 493
    draws: int = 3
    flips: float = FLIPS
    lasting: float = LASTING
    accuracy_loss: float = 0.0
    safety_prompts: int = 150
    refusal_flips: float = 0.1

    def draw(self, rng: np.random.Generator) -> Measurements:
        """Return what the gate could measure for such a candidate."""
        counts = _draw_counts(rng, self.items, self.decided * self.win, self.decided * (1 - self.win))
        return {
            "corrections": CorrectionScores(votes=votes(*counts)),
            "general_accuracy": self.draw_general(rng),
            "safety": SafetyOutcomes(
                refused=self._draw_shares(rng, self.safety_prompts, self.refusal_flips),
                answered=_draw_outcomes(rng, self.safety_prompts, self.refusal_flips / 2),
            ),
        }

    def draw_general(self, rng: np.random.Generator) -> list[ScorePair]:
        """Return the shares of right answers of candidate and stable, question by question."""
        return self._draw_shares(rng, self.questions, self.flips, self.accuracy_loss)

    def _draw_shares(
        self, rng: np.random.Generator, prompts: int, flips: float, loss: float = 0.0
    ) -> list[ScorePair]:
        """Return the shares of right answers of candidate and stable, prompt by prompt."""
        lasting = max(self.lasting * flips, loss)
        return _shares(rng, _signs(rng, (prompts,), lasting, loss), flips - lasting, self.draws)


def _signs(rng: np.random.Generator, shape: tuple[int, ...], flips: float, loss: float = 0.0) -> Floats:
    """Return 1 where only the candidate is right, -1 where only stable is, else 0."""
    drawn = rng.random(shape)
    result: Floats = (drawn > 1 - (flips - loss) / 2).astype(float) - (drawn < (flips + loss) / 2)
    return result


def _shares(rng: np.random.Generator, lasting: Floats, flips: float, draws: int) -> list[ScorePair]:
    """Return shares of right answers whose difference is `lasting`, or where that is 0 the mean of chance flips."""
    chance = _signs(rng, (len(lasting), draws), max(0.0, flips)).mean(-1)
    gains = np.where(lasting, lasting, chance)
    return list(zip(np.maximum(gains, 0.0).tolist(), np.maximum(-gains, 0.0).tolist(), strict=True))


def _draw_counts(rng: np.random.Generator, n: int, first: float, second: float) -> tuple[int, int, int]:
    counts = rng.multinomial(n, [first, second, max(0.0, 1 - first - second)])
    return int(counts[0]), int(counts[1]), int(counts[2])


def _draw_outcomes(rng: np.random.Generator, n: int, flips: float) -> list[OutcomePair]:
    lost, won, same = _draw_counts(rng, n, flips / 2, flips / 2)
    return [(False, True)] * lost + [(True, False)] * won + [(True, True)] * same


def verdicts(candidate: SimulatedCandidate, candidates: int, seed: int = 20) -> dict[Verdict, float]:
    """Return the share of each verdict among `candidates` independent draws."""
    rng = np.random.default_rng(seed)
    counts = Counter(
        decide(candidate.draw(rng), gated_against=BASE, options=OPTIONS).verdict for _ in range(candidates)
    )
    return {verdict: round(counts[verdict] / candidates, 4) for verdict in VERDICTS}


NULL: Final = SimulatedCandidate()
BETTER: Final = SimulatedCandidate(decided=0.8, win=0.95)
CASES: Final = {
    "no better, 40 % of items decided": NULL,
    "no better, 200 items, 80 % decided": replace(NULL, items=200, decided=0.8),
    "better, nothing lost": BETTER,
    "better, 3 points of accuracy lost": replace(BETTER, accuracy_loss=0.03),
    "better, 5 points lost": replace(BETTER, accuracy_loss=0.05),
    "better, 8 points lost": replace(BETTER, accuracy_loss=0.08),
    "slightly better (60 % of decided items won)": replace(BETTER, win=0.6),
}


# --- chains of versions -------------------------------------------------------------------------------------------

CHAIN: Final = 10
CHAIN_LOSS: Final = 0.025
CHAIN_ACCURACY: Final = 0.525
"""Share of the shipped questions that the demo's base answers correctly."""


def chain(
    rng: np.random.Generator, *, against_base: bool = True, questions: int = 493, draws: int = 3
) -> list[int]:
    """Return which of ten versions are promoted, counted from 1.

    Each is truly `CHAIN_LOSS` worse than the one before, and wins all its items. In each draw chance flips `FLIPS` of
    the answers of two versions in a row, and more of versions that are further apart.
    """
    base = rng.random(questions) < CHAIN_ACCURACY
    stable = candidate = base
    promoted: list[int] = []

    def shares(reference: Bools, steps: int) -> list[ScorePair]:
        lasting = candidate.astype(float) - reference
        return _shares(rng, lasting, 1 - (1 - FLIPS) ** steps, draws)

    for number in range(1, CHAIN + 1):
        candidate = _worse(candidate, CHAIN_ACCURACY - CHAIN_LOSS * (number - 1), rng)
        steps = number - (promoted[-1] if promoted else 0)
        from_base = shares(base, number) if against_base and promoted else None
        if is_promoted(shares(stable, steps), from_base):
            stable = candidate
            promoted.append(number)
    return promoted


def is_promoted(against_stable: Sequence[ScorePair], against_base: Sequence[ScorePair] | None) -> bool:
    """Return whether the gate passes a version that wins all its items, given its general accuracy."""
    report = decide(
        {"corrections": CorrectionScores(votes=votes(40)), "general_accuracy": list(against_stable)},
        gated_against=BASE,
        options=OPTIONS,
        against_base=None if against_base is None else {"general_accuracy": list(against_base)},
    )
    return report.verdict == "passed"


def _worse(version: Bools, accuracy: float, rng: np.random.Generator) -> Bools:
    """Return a version that is truly worse; as many answers as chance flips for good change as well."""
    flips = max(LASTING * FLIPS, CHAIN_LOSS)
    lost = (flips + CHAIN_LOSS) / 2 / accuracy
    won = (flips - CHAIN_LOSS) / 2 / (1 - accuracy)
    result: Bools = version != (rng.random(len(version)) < np.where(version, lost, won))
    return result


def chains(count: int, seed: int = 20) -> dict[str, dict[str, float]]:
    """Return how often a version after the second, and after the third, of a chain is promoted."""
    rates = {}
    for name, against_base in (("with_base", True), ("with_stable_alone", False)):
        rng = np.random.default_rng(seed)
        last = [max(chain(rng, against_base=against_base), default=0) for _ in range(count)]
        rates[name] = {
            f"after_{word}": round(sum(number > least for number in last) / count, 4)
            for word, least in (("second", 2), ("third", 3))
        }
    return rates
