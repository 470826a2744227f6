"""What was measured, before it is judged: candidate beside stable, item by item and prompt by prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from services.trainer.gate.mcnemar import Pair

Scores = tuple[float, float]
"""(candidate, stable)"""


@dataclass(frozen=True, slots=True)
class Measured:
    """Paired, in the order of items and prompts.

    `wins`, `seen`, `unseen`: scores of the answers to held-out users' corrections (`items.Counts`). `facts`, `alike`:
    of those that count as wins, the two parts of the score: shares of the stated facts (where there are any), chrF.
    `likelihood`: of those, log-likelihood ratio of the correction, in nats per token: candidate minus stable.
    `margins`: by kind of feedback without a text to copy (`preference`, `thumbs`, `rating`): of each pair of a better
    and a worse answer, how much its margin of log-likelihood per token grew from stable to candidate.
    `accuracy`: general questions, right or not. `nll`, `kl`: over the base's own answers, in nats per token.
    `refusals`: of what is to be refused, whether it was; `answered`: of what only looks so, whether it was answered.
    `goes_on`: of those of the base's own answers that were longer than it was let speak, how likely a version is not to
    end them before.
    `golden`: (name, candidate passes, stable passes) of the operator's own set.
    """

    wins: Sequence[Scores] = ()
    seen: Sequence[Scores] = ()
    unseen: Sequence[Scores] = ()
    facts: Sequence[Scores] = ()
    alike: Sequence[Scores] = ()
    likelihood: Sequence[float] = ()
    margins: Mapping[str, Sequence[float]] = field(default_factory=dict)
    accuracy: Sequence[Pair] = ()
    nll: Sequence[Scores] = ()
    kl: Sequence[float] = ()
    goes_on: Sequence[Scores] = ()
    refusals: Sequence[Pair] = ()
    answered: Sequence[Pair] = ()
    golden: Sequence[tuple[str, bool, bool]] = ()

    @property
    def items(self) -> int:
        """What may count as a win: corrections in new wordings, and pairs."""
        return len(self.wins) + sum(map(len, self.margins.values()))
