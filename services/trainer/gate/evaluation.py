"""Runs the tasks of all metrics on both versions: answers and likelihoods. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from services.trainer.base.base_answers import BaseAnswer
from services.trainer.base.memory import EvalLimits
from services.trainer.base.model import generate_answers
from services.trainer.base.tokenization import truncate
from services.trainer.core.recipe import Recipe
from services.trainer.gate.eval_set import EvalOutputs, EvalSet, GenerationTask, LikelihoodTask
from services.trainer.gate.metrics import METRICS
from services.trainer.gate.metrics.metric import Metric
from services.trainer.gate.model_pair import SIDES, ModelPair, Side, score_likelihoods
from services.trainer.gate.stored_answers import StoredAnswers
from services.trainer.progress import ProgressCallback
from shared.chat_format import ChatFormat

ProgressFactory = Callable[[str], ProgressCallback]
"""Returns the progress callback of a stage of the run."""


def evaluate(
    models: ModelPair,
    chat: ChatFormat,
    eval_set: EvalSet,
    recipe: Recipe,
    progress: ProgressFactory,
    limits: EvalLimits | None = None,
    stored: StoredAnswers | None = None,
) -> EvalOutputs:
    """Run every task that a metric needs, on both versions.

    `limits`: how many rows go through a model at once. `stored`: what an earlier process of this gate has generated.
    """
    limits = limits or EvalLimits()
    tasks = dict.fromkeys(task for metric in METRICS for task in metric.tasks)
    generations = [task for task in tasks if isinstance(task, GenerationTask)]
    by_side = {
        side: [
            _generate(models, side, chat, task, eval_set, recipe, progress, limits, stored)
            for task in generations
        ]
        for side in SIDES
    }
    return EvalOutputs(
        answers={
            task: list(zip(candidate, stable, strict=True))
            for task, candidate, stable in zip(
                generations, by_side["candidate"], by_side["stable"], strict=True
            )
        },
        likelihoods={
            task: score_likelihoods(
                models,
                chat,
                task.texts(eval_set),
                progress(f"gate: likelihood of {task.name}"),
                limits.score,
            )
            for task in tasks
            if isinstance(task, LikelihoodTask)
        },
    )


def evaluate_against(
    side: Side,
    metrics: Sequence[Metric[Any]],
    models: ModelPair,
    chat: ChatFormat,
    eval_set: EvalSet,
    recipe: Recipe,
    outputs: EvalOutputs,
    progress: ProgressFactory,
    limits: EvalLimits | None = None,
    stored: StoredAnswers | None = None,
) -> EvalOutputs:
    """Run the tasks of some metrics with another version, the base or a control, in the place of stable.

    The candidate's answers are those in `outputs`.
    """
    limits = limits or EvalLimits()
    tasks = dict.fromkeys(task for metric in metrics for task in metric.tasks)
    return EvalOutputs(
        answers={
            task: [
                (candidate, other)
                for (candidate, _), other in zip(
                    outputs.answers_to(task),
                    _generate(models, side, chat, task, eval_set, recipe, progress, limits, stored),
                    strict=True,
                )
            ]
            for task in tasks
            if isinstance(task, GenerationTask)
        },
        likelihoods={
            task: score_likelihoods(
                models,
                chat,
                task.texts(eval_set),
                progress(f"gate, {side}: likelihood of {task.name}"),
                limits.score,
                ("candidate", side),
            )
            for task in tasks
            if isinstance(task, LikelihoodTask)
        },
    )


def _generate(
    models: ModelPair,
    side: Side,
    chat: ChatFormat,
    task: GenerationTask,
    eval_set: EvalSet,
    recipe: Recipe,
    progress: ProgressFactory,
    limits: EvalLimits,
    stored: StoredAnswers | None,
) -> list[str]:
    max_new_tokens = task.max_new_tokens(recipe)
    if task.base_answers is not None and models.is_base(side):
        return [_cut(chat, answer, max_new_tokens) for answer in task.base_answers(eval_set)]
    prompts = task.prompts(eval_set)

    def generate() -> list[str]:
        report = progress(f"gate, {side}: {task.name}")
        with models.activate(side) as model:
            return generate_answers(
                model, chat, prompts, max_new_tokens, report, limits.generate, task.decoding(recipe)
            )

    if stored is None:
        return generate()
    return stored.answers(side, task.name, prompts, max_new_tokens, generate)


def _cut(chat: ChatFormat, answer: BaseAnswer, max_new_tokens: int) -> str:
    """Return a cached answer as a shorter token limit would have left it."""
    if answer.new_tokens <= max_new_tokens:
        return answer.answer
    return truncate(chat, answer.answer, max_new_tokens)
