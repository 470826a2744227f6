"""General skills: shipped questions in several languages, instructions, conversations and code, checked by rules.

Each set is a metric of its own, so that a loss of one skill is seen even if the others hide it, and all sets together
are one more, which sees a small loss of all of them.

A set of which the base can do too little shows no loss, so neither version answers it, and the report says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.trainer.core.eval_size import SKILL_TOKENS
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
from services.trainer.gate.skill_sets import (
    SKILL_FAIL_P,
    SKILL_MARGIN,
    SkillQuestion,
    SkillSet,
)
from services.trainer.gate.statistics import OutcomePair, proportion_interval

Answered = tuple[SkillQuestion, str, str]
"""(question, the candidate's answer, the stable version's answer)"""


@dataclass(frozen=True, slots=True)
class SkillOutcomes:
    """Which answers to the questions of one or more sets were right.

    Attributes:
        pairs: Whether candidate and stable were right, question by question.
        too_hard: Whether the base was right, and the probability that it is right by chance, question by question, if
            it can do too little for the versions to be compared.
    """

    pairs: Sequence[OutcomePair] = ()
    too_hard: Sequence[tuple[bool, float]] = ()


def _set_of(eval_set: EvalSet, name: str) -> SkillSet:
    return eval_set.skills.get(name) or SkillSet(name)


def _task(name: str) -> GenerationTask:
    return GenerationTask(
        name=name,
        prompts=lambda eval_set: [
            question.as_prompt().messages for question in _set_of(eval_set, name).compared
        ],
        max_new_tokens=lambda _: SKILL_TOKENS[name],
        base_answers=lambda eval_set: (
            _set_of(eval_set, name).base_answers if _set_of(eval_set, name).can_show_a_loss else ()
        ),
    )


TASKS = {name: _task(name) for name in SKILL_TOKENS}


def _answered(eval_set: EvalSet, outputs: EvalOutputs, name: str) -> list[Answered]:
    answers = outputs.answers_to(TASKS[name])
    questions = _set_of(eval_set, name).compared if answers else ()
    return [(question, *both) for question, both in zip(questions, answers, strict=True)]


def _measure(eval_set: EvalSet, outputs: EvalOutputs, name: str) -> SkillOutcomes:
    asked = _set_of(eval_set, name)
    if asked.questions and not asked.can_show_a_loss:
        return SkillOutcomes(too_hard=list(zip(asked.base_right, asked.chance, strict=True)))
    return SkillOutcomes(
        pairs=[
            (question.accepts(candidate), question.accepts(stable))
            for question, candidate, stable in _answered(eval_set, outputs, name)
        ]
    )


def _measure_all(eval_set: EvalSet, outputs: EvalOutputs) -> SkillOutcomes:
    return SkillOutcomes(pairs=[pair for name in TASKS for pair in _measure(eval_set, outputs, name).pairs])


def judge_skill(values: SkillOutcomes, options: JudgeOptions, name: str, subject: str) -> Judgement:
    """Return the judgement of a set: figures named after `name`, and a reason if `subject` fell."""
    judgement = Judgement()
    if values.too_hard:
        right = sum(outcome for outcome, _ in values.too_hard)
        chance = sum(probability for _, probability in values.too_hard) / len(values.too_hard)
        judgement.add_figure(
            f"{name}_too_hard", proportion_interval(right, len(values.too_hard)), baseline=chance
        )
    if not values.pairs:
        return judgement
    # Chance decides one of several comparisons too easily, so only a clear loss counts, and no doubt does.
    add_paired_share(
        judgement,
        name,
        subject,
        values.pairs,
        margin=SKILL_MARGIN,
        doubt_p=SKILL_FAIL_P,
        fail_p=SKILL_FAIL_P,
        options=options,
    )
    return judgement


def _rows(eval_set: EvalSet, outputs: EvalOutputs) -> list[Json]:
    """Return the questions to which only one of the two versions gives a right answer."""
    rows = []
    for name in TASKS:
        for question, *answers in _answered(eval_set, outputs, name):
            candidate, stable = answers
            right = (question.accepts(candidate), question.accepts(stable))
            rows += changed_row(question.as_prompt().text, (candidate, stable), right, right=question.right)
    return rows


def _figures(name: str, label: str, description: str) -> tuple[FigureInfo, ...]:
    decides = "beyond the bound, McNemar's exact test decides"
    return (
        FigureInfo(name, f"{label}: right answers", description, "share"),
        FigureInfo(f"{name}_change", f"{label}: change from stable", decides, "share", is_change=True),
    )


def _skill_metric(name: str, label: str, description: str) -> Metric[Any]:
    figure = f"skill_{name}"
    too_hard = FigureInfo(
        f"{figure}_too_hard",
        f"{label}: the base cannot do this",
        "the base's right answers are too few, or no more than chance (hollow dot) gives, so a loss could not be "
        "seen, and the versions are not compared",
        "share",
    )
    return Metric(
        name=figure,
        figures=(*_figures(figure, label, description), too_hard),
        measure=lambda eval_set, outputs: _measure(eval_set, outputs, name),
        judge=lambda values, options: judge_skill(values, options, figure, label.lower()),
        tasks=(TASKS[name],),
        against_base=True,
    )


INSTRUCTIONS = _skill_metric(
    "instructions",
    "Instructions",
    "shipped requests with a form that a rule checks, such as a number of words",
)
CONVERSATIONS = _skill_metric(
    "conversations", "Conversations", "shipped conversations whose last question needs an earlier turn"
)
CODE = _skill_metric("code", "Code", "shipped tasks in Python; the code of an answer is read, and never run")
LANGUAGES = _skill_metric(
    "languages", "Languages", "shipped questions with a known answer in twelve languages"
)
ALL_SKILLS = Metric(
    name="skills",
    figures=_figures("skills", "All skills together", "the shipped sets that the base can do"),
    measure=_measure_all,
    judge=lambda values, options: judge_skill(values, options, "skills", "general skills"),
    tasks=tuple(TASKS.values()),
    against_base=True,
    section=ReportSection(
        name="skills",
        title="Questions about general skills that only one version answers correctly",
        layout="changes",
        rows=_rows,
        note=lambda row: f"a right answer: {row['right']}",
    ),
)
SKILLS = (INSTRUCTIONS, CONVERSATIONS, CODE, LANGUAGES, ALL_SKILLS)
