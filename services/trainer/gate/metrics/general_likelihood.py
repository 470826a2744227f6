"""Drift from the base: how likely each version finds the base's own answers to general prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.trainer.gate.eval_set import EvalOutputs, EvalSet, LikelihoodTask
from services.trainer.gate.metrics.metric import FigureInfo, Judgement, JudgeOptions, Metric
from services.trainer.gate.statistics import ScorePair, exp_interval, gains, stable_mean

if TYPE_CHECKING:
    from services.trainer.base.base_answers import BaseAnswer, Prompt

MAX_ANSWERS = 80
"""Number of base answers whose likelihood is computed, spread evenly over the prompts."""
NLL_MARGIN = 0.15
"""Nats per token by which the candidate may find the base's answers less likely than stable does."""


def scored_base_answers(eval_set: EvalSet) -> list[tuple[Prompt, BaseAnswer]]:
    """Return the base's answers whose likelihood is computed, with their prompts."""
    from services.trainer.base.base_answers import spread  # noqa: PLC0415 - imports transformers, see `eval_set`

    answered = list(zip(eval_set.general_prompts, eval_set.general_base_answers, strict=True))
    return [(prompt, answer) for prompt, answer in spread(answered, MAX_ANSWERS) if answer.answer]


BASE_ANSWERS = LikelihoodTask(
    name="base answers",
    texts=lambda eval_set: [
        (prompt.messages, answer.answer) for prompt, answer in scored_base_answers(eval_set)
    ],
)


@dataclass(frozen=True, slots=True)
class GeneralLikelihoods:
    """Negative log-likelihoods and KL divergences of the base's answers, in nats per token."""

    nll: Sequence[ScorePair] = ()
    kl: Sequence[float] = ()


def _measure(_: EvalSet, outputs: EvalOutputs) -> GeneralLikelihoods:
    likelihoods = outputs.likelihoods_of(BASE_ANSWERS)
    return GeneralLikelihoods(
        nll=[(scores.candidate_nll, scores.stable_nll) for scores in likelihoods],
        kl=[scores.kl for scores in likelihoods],
    )


def _judge(values: GeneralLikelihoods, options: JudgeOptions) -> Judgement:
    judgement = Judgement()
    rise = options.mean_interval(gains(values.nll))
    kept = rise.value is None or rise.value <= NLL_MARGIN
    stable = stable_mean(values.nll)
    judgement.add_figure("general_nll_rise", rise, baseline=stable, bound=NLL_MARGIN, passed=kept)
    if not kept:
        judgement.failures.append(
            f"the base's own answers became less likely by {rise.value or 0.0:.2f} nats per token"
        )
    judgement.add_figure(
        "general_perplexity",
        exp_interval(options.mean_interval([candidate for candidate, _ in values.nll])),
        baseline=None if stable is None else math.exp(stable),
    )
    judgement.add_figure("general_kl", options.mean_interval(values.kl))
    return judgement


GENERAL_LIKELIHOOD = Metric(
    name="general_likelihood",
    figures=(
        FigureInfo(
            "general_nll_rise",
            "Drift from the base's answers",
            "rise of their negative log-likelihood over stable",
            "nats per token",
            is_change=True,
        ),
        FigureInfo("general_perplexity", "Perplexity of the base's answers", "for information"),
        FigureInfo(
            "general_kl",
            "KL divergence from stable",
            "over the base's answers, for information",
            "nats per token",
        ),
    ),
    measure=_measure,
    judge=_judge,
    tasks=(BASE_ANSWERS,),
)
