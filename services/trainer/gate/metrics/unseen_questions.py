"""Answers to held-out questions whose fact was not trained. The candidate must not get worse on them."""

from __future__ import annotations

from services.trainer.gate.eval_set import EvalOutputs, EvalSet
from services.trainer.gate.metrics.corrections import CORRECTION_ANSWERS, item_scores
from services.trainer.gate.metrics.liked_answers import LIKED_ANSWERS, liked_vote
from services.trainer.gate.metrics.metric import EVEN, FigureInfo, Judgement, JudgeOptions, Metric
from services.trainer.gate.scorers import outcome
from services.trainer.gate.statistics import ScorePair, win_rate_interval


def _measure(eval_set: EvalSet, outputs: EvalOutputs) -> list[ScorePair]:
    """Return the scores of both versions; for a liked answer, 1 for the one that still gives it alone."""
    corrected = zip(eval_set.corrections, outputs.answers_to(CORRECTION_ANSWERS), strict=True)
    liked = zip(eval_set.liked, outputs.answers_to(LIKED_ANSWERS), strict=True)
    outcomes = [liked_vote(item, *answers).outcome for item, answers in liked if item.category == "unseen"]
    return [item_scores(item, *answers) for item, answers in corrected if item.category == "unseen"] + [
        (float(outcome > 0), float(outcome < 0)) for outcome in outcomes
    ]


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
            "corrections and liked answers whose fact was not trained; must not be below one half",
            "share",
        ),
    ),
    measure=_measure,
    judge=_judge,
    tasks=(CORRECTION_ANSWERS, LIKED_ANSWERS),
)
