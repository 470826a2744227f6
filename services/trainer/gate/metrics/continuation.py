"""Whether the candidate ends long general answers earlier than stable does.

Likelihoods per token do not show this: one token in forty decides whether an answer ends. So the metric looks at the
base's answers that were cut at the token limit, and at the probability of not ending the turn anywhere in them.
"""

from __future__ import annotations

from services.trainer.gate.eval_set import EvalOutputs, EvalSet
from services.trainer.gate.metrics.general_likelihood import BASE_ANSWERS, scored_base_answers
from services.trainer.gate.metrics.metric import FigureInfo, Judgement, JudgeOptions, Metric
from services.trainer.gate.statistics import ScorePair, gains, stable_mean


def _measure(eval_set: EvalSet, outputs: EvalOutputs) -> list[ScorePair]:
    """Return both versions' probabilities of continuing, for each base answer that was cut at the limit."""
    likelihoods = outputs.likelihoods_of(BASE_ANSWERS)
    answered = zip(scored_base_answers(eval_set), likelihoods, strict=True)
    return [scores.continuation for (_, answer), scores in answered if not answer.ended]


def _judge(continuation: list[ScorePair], options: JudgeOptions) -> Judgement:
    judgement = Judgement()
    judgement.add_figure(
        "general_continuation",
        options.mean_interval([candidate for candidate, _ in continuation]),
        baseline=stable_mean(continuation),
    )
    change = options.mean_interval(gains(continuation))
    margin = options.shorter_margin
    kept = change.value is None or change.value >= -margin
    judgement.add_figure("general_continuation_change", change, bound=-margin, passed=kept)
    if not kept:
        judgement.failures.append(
            "general answers end sooner: the probability of continuing a long answer fell by "
            f"{-100 * (change.value or 0.0):.0f} points (if users want short answers, set "
            "LOOPWRIGHT_TRAINER_GATE_SHORTER=1)"
        )
    return judgement


CONTINUATION = Metric(
    name="continuation",
    figures=(
        FigureInfo(
            "general_continuation",
            "Long general answers continued",
            "probability of not ending an answer of the base that was cut at its token limit",
            "probability",
        ),
        FigureInfo(
            "general_continuation_change",
            "Long general answers continued, change from stable",
            "below zero, answers end earlier",
            "probability",
            is_change=True,
        ),
    ),
    measure=_measure,
    judge=_judge,
    tasks=(BASE_ANSWERS,),
    against_base=True,
)
