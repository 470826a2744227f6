"""The operator's golden set. A question that stable passes and the candidate does not fails the gate."""

from __future__ import annotations

from services.trainer.gate.eval_set import EvalOutputs, EvalSet, GenerationTask
from services.trainer.gate.metrics.metric import (
    FigureInfo,
    Json,
    Judgement,
    JudgeOptions,
    Metric,
    ReportSection,
)
from services.trainer.gate.statistics import proportion_interval, stable_mean

MAX_NAMED = 5
"""Number of broken questions that the reason names."""
GoldenOutcome = tuple[str, bool, bool]
"""(name of the question, candidate passes, stable passes)"""
GOLDEN_ANSWERS = GenerationTask(
    name="golden set",
    prompts=lambda eval_set: [question.messages for question in eval_set.golden],
    max_new_tokens=lambda recipe: recipe.gate_answer_tokens,
)


def _measure(eval_set: EvalSet, outputs: EvalOutputs) -> list[GoldenOutcome]:
    return [
        (question.name, not question.faults(candidate), not question.faults(stable))
        for question, (candidate, stable) in zip(
            eval_set.golden, outputs.answers_to(GOLDEN_ANSWERS), strict=True
        )
    ]


def _judge(outcomes: list[GoldenOutcome], _: JudgeOptions) -> Judgement:
    judgement = Judgement()
    passing = sum(candidate for _, candidate, _ in outcomes)
    broken = [name for name, candidate, stable in outcomes if stable and not candidate]
    judgement.add_figure(
        "golden_passed",
        proportion_interval(passing, len(outcomes)),
        baseline=stable_mean([(candidate, stable) for _, candidate, stable in outcomes]),
        passed=not broken,
    )
    if broken:
        more = f" and {len(broken) - MAX_NAMED} more" if len(broken) > MAX_NAMED else ""
        names = ", ".join(broken[:MAX_NAMED])
        judgement.failures.append(f"golden set: stable passes {names}{more}, the candidate does not")
    return judgement


def _rows(eval_set: EvalSet, outputs: EvalOutputs) -> list[Json]:
    return [
        {
            "question": question.question,
            "candidate": candidate,
            "stable": stable,
            "name": question.name,
            "candidate_faults": question.faults(candidate),
            "stable_faults": question.faults(stable),
        }
        for question, (candidate, stable) in zip(
            eval_set.golden, outputs.answers_to(GOLDEN_ANSWERS), strict=True
        )
    ]


GOLDEN_SET = Metric(
    name="golden_set",
    figures=(FigureInfo("golden_passed", "Golden set passed", "your own questions", "share"),),
    measure=_measure,
    judge=_judge,
    tasks=(GOLDEN_ANSWERS,),
    section=ReportSection(name="golden", title="Golden set", layout="golden", rows=_rows),
)
