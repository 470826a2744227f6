"""Tasks of lm-evaluation-harness that the operator named, judged like the shipped sets of skills."""

from __future__ import annotations

from services.trainer.gate.eval_set import EvalOutputs, EvalSet
from services.trainer.gate.harness import HarnessResults
from services.trainer.gate.metrics.metric import Judgement, JudgeOptions, Metric
from services.trainer.gate.metrics.skills import SkillOutcomes, judge_skill


def _measure(_: EvalSet, outputs: EvalOutputs) -> HarnessResults:
    return outputs.harness


def _judge(results: HarnessResults, options: JudgeOptions) -> Judgement:
    judgement = Judgement()
    for task, pairs in results.pairs.items():
        of_task = judge_skill(SkillOutcomes(pairs), options, f"lm_eval_{task}", f"lm_eval {task}")
        judgement.figures += of_task.figures
        judgement.failures += of_task.failures
    if results.error:
        judgement.doubts.append(f"lm_eval gave no result: {results.error}")
    return judgement


HARNESS = Metric(name="lm_eval", figures=(), measure=_measure, judge=_judge, against_base=True)
"""Its figures are named by task, so the report labels them with their names."""
