"""General knowledge: shipped questions with a known answer, none of which is in the replay data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.trainer.gate.eval_set import EvalOutputs, EvalSet, GenerationTask
from services.trainer.gate.metrics.metric import (
    FigureInfo,
    Json,
    Judgement,
    JudgeOptions,
    Metric,
    ReportSection,
    add_paired_share,
    changed_row,
)
from services.trainer.gate.scorers import contains_phrase
from services.trainer.gate.statistics import DOUBT_P, OutcomePair

if TYPE_CHECKING:
    from services.trainer.base.base_answers import BaseAnswer, Prompt

ACCURACY_MARGIN = 0.03
"""Falls of accuracy up to this share are accepted."""
MAX_NEW_TOKENS = 24
"""The answer keys are short facts."""


def _questions(eval_set: EvalSet) -> list[tuple[Prompt, BaseAnswer]]:
    """Return the prompts that have an answer key, with the base's answers."""
    answered = zip(eval_set.general_prompts, eval_set.general_base_answers, strict=True)
    return [(prompt, answer) for prompt, answer in answered if prompt.answer_key]


GENERAL_ANSWERS = GenerationTask(
    name="general",
    prompts=lambda eval_set: [prompt.messages for prompt, _ in _questions(eval_set)],
    max_new_tokens=lambda _: MAX_NEW_TOKENS,
    base_answers=lambda eval_set: [answer for _, answer in _questions(eval_set)],
)


def _measure(eval_set: EvalSet, outputs: EvalOutputs) -> list[OutcomePair]:
    return [
        (contains_phrase(candidate, prompt.answer_key), contains_phrase(stable, prompt.answer_key))
        for (prompt, _), (candidate, stable) in zip(
            _questions(eval_set), outputs.answers_to(GENERAL_ANSWERS), strict=True
        )
    ]


def _judge(correct: list[OutcomePair], options: JudgeOptions) -> Judgement:
    judgement = Judgement()
    add_paired_share(
        judgement,
        "general_accuracy",
        "general accuracy",
        correct,
        margin=ACCURACY_MARGIN,
        doubt_p=DOUBT_P,
        options=options,
    )
    return judgement


def _rows(eval_set: EvalSet, outputs: EvalOutputs) -> list[Json]:
    """Return the questions that only one of the two versions answers correctly."""
    rows = []
    answered = zip(_questions(eval_set), outputs.answers_to(GENERAL_ANSWERS), strict=True)
    for ((prompt, _), answers), right in zip(answered, _measure(eval_set, outputs), strict=True):
        rows += changed_row(prompt.prompt, answers, right, right=" or ".join(prompt.answer_key))
    return rows


GENERAL_ACCURACY = Metric(
    name="general_accuracy",
    figures=(
        FigureInfo(
            "general_accuracy",
            "General questions answered correctly",
            "shipped questions with a known answer",
            "share",
        ),
        FigureInfo(
            "general_accuracy_change",
            "General questions, change from stable",
            "beyond the bound, McNemar's exact test decides",
            "share",
            is_change=True,
        ),
    ),
    measure=_measure,
    judge=_judge,
    tasks=(GENERAL_ANSWERS,),
    against_base=True,
    section=ReportSection(
        name="general",
        title="General questions that only one version answers correctly",
        layout="changes",
        rows=_rows,
        note=lambda row: f"correct answer: {row['right']}",
    ),
)
