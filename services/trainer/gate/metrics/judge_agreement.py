"""How often the judge model agrees with users, if there is one. For information: its votes are among those of items."""

from __future__ import annotations

from services.trainer.gate.eval_set import EvalOutputs, EvalSet
from services.trainer.gate.metrics.metric import FigureInfo, Judgement, JudgeOptions, Metric
from services.trainer.gate.statistics import proportion_interval

MIN_AGREEMENT = 0.8
"""Share of users' corrections that a judge must prefer for its votes to count."""


def _measure(_: EvalSet, outputs: EvalOutputs) -> tuple[int, int]:
    """Return on how many corrections the judge agreed with their users, and on how many it had a preference."""
    return (0, 0) if outputs.judge is None else (outputs.judge.agreed, outputs.judge.compared)


def _judge(counts: tuple[int, int], _: JudgeOptions) -> Judgement:
    judgement = Judgement()
    agreed, compared = counts
    if compared:
        enough = agreed >= MIN_AGREEMENT * compared
        judgement.add_figure(
            "judge_agreement", proportion_interval(agreed, compared), bound=MIN_AGREEMENT, passed=enough
        )
    return judgement


JUDGE_AGREEMENT = Metric(
    name="judge_agreement",
    figures=(
        FigureInfo(
            "judge_agreement",
            "Judge model agrees with users",
            "corrections that it prefers to the originals; below the bound, its votes do not count",
            "share",
        ),
    ),
    measure=_measure,
    judge=_judge,
)
