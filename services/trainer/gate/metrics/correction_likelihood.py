"""How likely each version finds the corrections of held-out users. A candidate that finds them less likely fails."""

from __future__ import annotations

from services.trainer.gate.eval_set import EvalOutputs, EvalSet, LikelihoodTask
from services.trainer.gate.metrics.metric import FigureInfo, Judgement, JudgeOptions, Metric

CORRECTION_LIKELIHOODS = LikelihoodTask(
    name="corrections",
    texts=lambda eval_set: [(item.row.messages, item.row.answer) for item in eval_set.corrections],
)


def _measure(eval_set: EvalSet, outputs: EvalOutputs) -> list[float]:
    """Return the log-likelihood ratios (candidate over stable) of the items that count in the win rate."""
    likelihoods = outputs.likelihoods_of(CORRECTION_LIKELIHOODS)
    return [
        scores.gain
        for item, scores in zip(eval_set.corrections, likelihoods, strict=True)
        if item.category == "wins"
    ]


def _judge(ratios: list[float], options: JudgeOptions) -> Judgement:
    judgement = Judgement()
    ratio = options.mean_interval(ratios)
    worse = ratio.high is not None and ratio.high < 0
    judgement.add_figure("correction_likelihood_gain", ratio, bound=0.0, passed=not worse)
    if worse:
        judgement.failures.append("held-out corrections are less likely than under stable")
    return judgement


CORRECTION_LIKELIHOOD = Metric(
    name="correction_likelihood",
    figures=(
        FigureInfo(
            "correction_likelihood_gain",
            "Likelihood of corrections",
            "log-likelihood ratio of held-out corrections, candidate over stable",
            "nats per token",
            is_change=True,
        ),
    ),
    measure=_measure,
    judge=_judge,
    tasks=(CORRECTION_LIKELIHOODS,),
)
