"""Values of gate metrics with given outcomes."""

from __future__ import annotations

from collections.abc import Sequence

from services.trainer.gate.metrics.corrections import KIND, CorrectionScores
from services.trainer.gate.metrics.metric import ItemVote, Votes
from services.trainer.gate.metrics.pair_margins import MarginGain
from services.trainer.gate.statistics import ScorePair

SCORES: dict[int, ScorePair] = {1: (0.9, 0.1), -1: (0.1, 0.9), 0: (0.5, 0.5)}
"""Outcome -> scores of candidate and stable."""


def vote_items(
    wins: int, losses: int = 0, ties: int = 0, *, users: int | None = None, groups: int | None = None
) -> Votes:
    """Return votes with these outcomes, spread over so many users and question groups; else each has its own."""
    outcomes = [1] * wins + [-1] * losses + [0] * ties
    return Votes(
        tuple(
            ItemVote(f"u{i % (users or i + 1)}", f"g{i % (groups or i + 1)}", KIND, outcome, f"item {i}")
            for i, outcome in enumerate(outcomes)
        )
    )


def corrections(wins: int, losses: int = 0, ties: int = 0) -> CorrectionScores:
    """Return scores with these outcomes, each item of another user and about another fact."""
    votes = vote_items(wins, losses, ties)
    return CorrectionScores([SCORES[outcome] for outcome in votes.outcomes], votes=votes)


def margin_gains(gains: Sequence[float]) -> list[MarginGain]:
    """Return these gains, each of another user and about another question."""
    return [MarginGain(f"v{i}", f"h{i}", gain, f"pair {i}") for i, gain in enumerate(gains)]
