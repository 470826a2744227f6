"""How often the gate's rules are wrong, by simulation: `python -m benchmarks.gate.calibration`.

Simulated candidates go through the real `decide`. A null candidate differs from stable only by chance: an item that
the two answer differently is won or lost by a coin, and a general question flips in either direction equally often.
The rates of ties and flips are those of real runs (`docs/decisions/gate.md`). The simulation is seeded, so it always
prints the same figures.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer

from services.trainer.gate.metrics import Measurements
from services.trainer.gate.metrics.corrections import KIND, CorrectionScores
from services.trainer.gate.metrics.metric import ItemVote, JudgeOptions, Votes
from services.trainer.gate.metrics.safety import SafetyOutcomes
from services.trainer.gate.statistics import Interval, OutcomePair
from services.trainer.gate.verdict import decide
from shared.versions import Verdict

STABLE = "assistant@base-00000000"
CANDIDATES = 2000
"""Simulated candidates of each kind."""
VERDICTS: tuple[Verdict, ...] = ("passed", "failed", "inconclusive")
RESULTS = Path(__file__).parent.with_name("gate.json")


def _mean_without_interval(values: Sequence[float]) -> Interval:
    """Replace the bootstrap, which is slow and decides nothing here."""
    return Interval(len(values), sum(values) / len(values) if values else None)


OPTIONS = JudgeOptions(min_items=30, mean_interval=_mean_without_interval)


@dataclass(frozen=True, slots=True)
class SimulatedCandidate:
    """A candidate, given by its true rates.

    Attributes:
        items: Number of held-out items.
        decided: Share of items that are not a tie.
        win: Share of wins among those.
        questions: Number of general questions.
        flips: Share of general questions that only one of the two versions answers correctly.
        accuracy_loss: True fall of general accuracy, as a share.
        safety_prompts: Number of harmful prompts, and of harmless ones.
        refusal_flips: Share of harmful prompts that only one version refuses; half of it for harmless prompts.
    """

    items: int = 60
    decided: float = 0.4
    win: float = 0.5
    questions: int = 493
    flips: float = 0.24
    accuracy_loss: float = 0.0
    safety_prompts: int = 30
    refusal_flips: float = 0.1

    def draw(self, rng: np.random.Generator) -> Measurements:
        """Return what the gate could measure for such a candidate."""
        wins, losses, ties = _draw_counts(
            rng, self.items, self.decided * self.win, self.decided * (1 - self.win)
        )
        return {
            "corrections": CorrectionScores(votes=_votes(wins, losses, ties)),
            "general_accuracy": _draw_outcomes(rng, self.questions, self.flips, self.accuracy_loss),
            "safety": SafetyOutcomes(
                refused=_draw_outcomes(rng, self.safety_prompts, self.refusal_flips),
                answered=_draw_outcomes(rng, self.safety_prompts, self.refusal_flips / 2),
            ),
        }


def _votes(wins: int, losses: int, ties: int) -> Votes:
    outcomes = [1] * wins + [-1] * losses + [0] * ties
    return Votes(
        tuple(ItemVote(f"u{i}", f"g{i}", KIND, outcome, f"{i}") for i, outcome in enumerate(outcomes))
    )


def _draw_counts(rng: np.random.Generator, n: int, first: float, second: float) -> tuple[int, int, int]:
    counts = rng.multinomial(n, [first, second, max(0.0, 1 - first - second)])
    return int(counts[0]), int(counts[1]), int(counts[2])


def _draw_outcomes(rng: np.random.Generator, n: int, flips: float, loss: float = 0.0) -> list[OutcomePair]:
    lost, won, same = _draw_counts(rng, n, (flips + loss) / 2, (flips - loss) / 2)
    return [(False, True)] * lost + [(True, False)] * won + [(True, True)] * same


def simulate(
    candidate: SimulatedCandidate, candidates: int = CANDIDATES, seed: int = 20
) -> dict[Verdict, float]:
    """Return the share of each verdict among `candidates` independent draws."""
    rng = np.random.default_rng(seed)
    counts = Counter(
        decide(candidate.draw(rng), gated_against=STABLE, options=OPTIONS).verdict for _ in range(candidates)
    )
    return {verdict: counts[verdict] / candidates for verdict in VERDICTS}


NULL: Final = SimulatedCandidate()
BETTER: Final = SimulatedCandidate(decided=0.8, win=0.95)
CASES: Final = {
    "null, 40 % of items decided": NULL,
    "null, 90 % of items decided": replace(NULL, decided=0.9),
    "null, 200 items, 80 % decided": replace(NULL, items=200, decided=0.8),
    "null, 15 items": replace(NULL, items=15, decided=0.9),
    "better, nothing lost": BETTER,
    "better, nothing lost, 16 % flips": replace(BETTER, flips=0.16),
    "better, half a point of accuracy lost": replace(BETTER, accuracy_loss=0.005),
    "better, 3 points lost": replace(BETTER, accuracy_loss=0.03),
    "better, 5 points lost": replace(BETTER, accuracy_loss=0.05),
    "better, 8 points lost": replace(BETTER, accuracy_loss=0.08),
    "better, 5 points lost, 194 questions": replace(BETTER, accuracy_loss=0.05, questions=194),
    "better, 8 points lost, 194 questions": replace(BETTER, accuracy_loss=0.08, questions=194),
    "slightly better (60 % of decided items won)": replace(BETTER, win=0.6),
}


def main(
    candidates: Annotated[int, typer.Option(help="Simulated candidates of each kind.", min=1)] = CANDIDATES,
    output: Annotated[Path, typer.Option(help="JSON file for the results.")] = RESULTS,
) -> None:
    """Simulate candidates with known true rates, and print how often each verdict comes out."""
    shares = {name: simulate(candidate, candidates) for name, candidate in CASES.items()}
    print(f"{candidates} candidates of each kind, share of each verdict")
    print(f"{'true candidate':45}{''.join(f'{verdict:>14}' for verdict in VERDICTS)}")
    for name, by_verdict in shares.items():
        print(f"{name:45}{''.join(f'{by_verdict[verdict]:14.1%}' for verdict in VERDICTS)}")
    result = {"bench": "gate", "candidates": candidates, "null": asdict(NULL), "figures": shares}
    output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    typer.run(main)
