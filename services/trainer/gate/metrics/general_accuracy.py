"""General knowledge: shipped questions with a known answer, none of which is in the replay data.

Each is answered several times, because chance decides between close words: of greedy answers a sixth or more change
between right and wrong with any training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from services.trainer.core.decoding import draw_at_gate
from services.trainer.core.eval_size import GENERAL_TOKENS
from services.trainer.core.recipe import MAX_DRAWS
from services.trainer.gate.eval_set import EvalOutputs, EvalSet, GenerationTask
from services.trainer.gate.metrics.metric import (
    FigureInfo,
    Json,
    Judgement,
    JudgeOptions,
    Metric,
    ReportSection,
    add_paired_mean,
    changed_row,
)
from services.trainer.gate.scorers import contains_phrase
from services.trainer.gate.statistics import DOUBT_P, OutcomePair, ScorePair

if TYPE_CHECKING:
    from services.trainer.base.base_answers import BaseAnswer, Prompt

ACCURACY_MARGIN = 0.03
"""Falls of accuracy up to this share are accepted."""


def _questions(eval_set: EvalSet) -> list[Prompt]:
    """Return the prompts whose answers can be checked."""
    return [prompt for prompt in eval_set.general_prompts if prompt.answer_key]


def _task(draw: int) -> GenerationTask:
    """Return the task of one of the repeated answers, counted from 1."""

    def base_answers(eval_set: EvalSet) -> Sequence[BaseAnswer]:
        return eval_set.general_draws[draw - 1] if draw <= len(eval_set.general_draws) else ()

    return GenerationTask(
        name=f"general-{draw}",
        prompts=lambda eval_set: (
            [prompt.messages for prompt in _questions(eval_set)]
            if draw <= len(eval_set.general_draws)
            else []
        ),
        max_new_tokens=lambda _: GENERAL_TOKENS,
        base_answers=base_answers,
        decoding=lambda recipe: draw_at_gate(recipe, draw),
    )


GENERAL_ANSWERS = tuple(_task(draw) for draw in range(1, MAX_DRAWS + 1))
"""The tasks of the repeated answers. Those that this gate does not need have no prompts."""


def _outcomes(eval_set: EvalSet, outputs: EvalOutputs, draw: int) -> list[OutcomePair]:
    """Return whether candidate and stable are right in one of the repeated answers, question by question."""
    answered = zip(_questions(eval_set), outputs.answers_to(GENERAL_ANSWERS[draw]), strict=True)
    return [
        (contains_phrase(candidate, prompt.answer_key), contains_phrase(stable, prompt.answer_key))
        for prompt, (candidate, stable) in answered
    ]


def _measure(eval_set: EvalSet, outputs: EvalOutputs) -> list[ScorePair]:
    """Return the shares of right answers of candidate and stable, question by question."""
    draws = [_outcomes(eval_set, outputs, draw) for draw in range(len(eval_set.general_draws))]
    return [
        (
            sum(candidate for candidate, _ in pairs) / len(pairs),
            sum(stable for _, stable in pairs) / len(pairs),
        )
        for pairs in zip(*draws, strict=True)
    ]


def _judge(shares: list[ScorePair], options: JudgeOptions) -> Judgement:
    judgement = Judgement()
    add_paired_mean(
        judgement,
        "general_accuracy",
        "general accuracy",
        shares,
        margin=ACCURACY_MARGIN,
        doubt_p=DOUBT_P,
        options=options,
    )
    return judgement


def _rows(eval_set: EvalSet, outputs: EvalOutputs) -> list[Json]:
    """Return the questions that one of the two versions answers correctly more often, with the first such answers."""
    rows = []
    draws = range(len(eval_set.general_draws))
    outcomes = [_outcomes(eval_set, outputs, draw) for draw in draws]
    for place, prompt in enumerate(_questions(eval_set)):
        pairs = [outcome[place] for outcome in outcomes]
        lead = sum(candidate - stable for candidate, stable in pairs)
        if not lead:
            continue
        draw = next(i for i, (candidate, stable) in enumerate(pairs) if (candidate - stable) * lead > 0)
        answers = outputs.answers_to(GENERAL_ANSWERS[draw])[place]
        rows += changed_row(prompt.prompt, answers, pairs[draw], right=" or ".join(prompt.answer_key))
    return rows


GENERAL_ACCURACY = Metric(
    name="general_accuracy",
    figures=(
        FigureInfo(
            "general_accuracy",
            "General questions answered correctly",
            "shipped questions with a known answer, each answered several times",
            "share",
        ),
        FigureInfo(
            "general_accuracy_change",
            "General questions, change from stable",
            "beyond the bound, a test of signs decides",
            "share",
            is_change=True,
        ),
    ),
    measure=_measure,
    judge=_judge,
    tasks=GENERAL_ANSWERS,
    against_base=True,
    section=ReportSection(
        name="general",
        title="General questions that one version answers correctly more often",
        layout="changes",
        rows=_rows,
        note=lambda row: f"correct answer: {row['right']}",
    ),
)
