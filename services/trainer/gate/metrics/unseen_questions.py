"""Answers to held-out corrections whose fact was not trained. The candidate must not get worse on them."""

from __future__ import annotations

from services.trainer.gate.eval_set import EvalOutputs, EvalSet
from services.trainer.gate.metrics.corrections import CORRECTION_ANSWERS, item_scores
from services.trainer.gate.metrics.metric import EVEN, FigureInfo, Judgement, JudgeOptions, Metric
from services.trainer.gate.scorers import outcome
from services.trainer.gate.statistics import ScorePair, win_rate_interval


def _measure(eval_set: EvalSet, outputs: EvalOutputs) -> list[ScorePair]:
    answered = zip(eval_set.corrections, outputs.answers_to(CORRECTION_ANSWERS), strict=True)
    return [item_scores(item, *answers) for item, answers in answered if item.category == "unseen"]


def _judge(scores: list[ScorePair], _: JudgeOptions) -> Judgement:
    judgement = Judgement()
    outcomes = [outcome(candidate, stable) for candidate, stable in scores]
    rate = win_rate_interval(outcomes.count(1), outcomes.count(-1))
    worse = rate.high is not None and rate.high < EVEN
    judgement.add_figure("unseen_win_rate", rate, bound=EVEN, passed=not worse)
    if worse:
        judgement.failures.append("worse on questions that were not trained")
    return judgement


UNSEEN_QUESTIONS = Metric(
    name="unseen_questions",
    figures=(
        FigureInfo(
            "unseen_win_rate",
            "Untrained questions won",
            "corrections whose fact was not trained; must not be below one half",
            "share",
        ),
    ),
    measure=_measure,
    judge=_judge,
    tasks=(CORRECTION_ANSWERS,),
)
