"""General knowledge: shipped questions with a known answer, none of which is in the replay data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.trainer.core.eval_size import GENERAL_TOKENS
from services.trainer.gate.eval_set import EvalOutputs, EvalSet
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
from services.trainer.gate.metrics.repeated_answers import RepeatedAnswers
from services.trainer.gate.scorers import contains_phrase
from services.trainer.gate.statistics import DOUBT_P, ScorePair

if TYPE_CHECKING:
    from services.trainer.base.base_answers import Prompt

ACCURACY_MARGIN = 0.03
"""Falls of accuracy up to this share are accepted."""


def _questions(eval_set: EvalSet) -> list[Prompt]:
    """Return the prompts whose answers can be checked."""
    return [prompt for prompt in eval_set.general_prompts if prompt.answer_key]


GENERAL_ANSWERS = RepeatedAnswers(
    "general",
    prompts=_questions,
    draws=lambda eval_set: eval_set.general_draws,
    new_tokens=GENERAL_TOKENS,
    is_right=lambda prompt, text: contains_phrase(text, prompt.answer_key),
)


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
    """Return the questions that one of the two versions answers correctly more often."""
    return [
        row
        for prompt, answers, outcome in GENERAL_ANSWERS.changed(eval_set, outputs)
        for row in changed_row(prompt.prompt, answers, outcome, right=" or ".join(prompt.answer_key))
    ]


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
    measure=GENERAL_ANSWERS.shares,
    judge=_judge,
    tasks=GENERAL_ANSWERS.tasks,
    against_base=True,
    section=ReportSection(
        name="general",
        title="General questions that one version answers correctly more often",
        layout="changes",
        rows=_rows,
        note=lambda row: f"correct answer: {row['right']}",
    ),
)
