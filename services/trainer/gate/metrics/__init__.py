"""The metrics of the gate. Figures, reasons, reports and evaluation all iterate over `METRICS`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from services.trainer.gate.eval_set import EvalOutputs, EvalSet
from services.trainer.gate.metrics.continuation import CONTINUATION
from services.trainer.gate.metrics.correction_likelihood import CORRECTION_LIKELIHOOD
from services.trainer.gate.metrics.corrections import CORRECTIONS
from services.trainer.gate.metrics.general_accuracy import GENERAL_ACCURACY
from services.trainer.gate.metrics.general_likelihood import GENERAL_LIKELIHOOD
from services.trainer.gate.metrics.golden_set import GOLDEN_SET
from services.trainer.gate.metrics.harness import HARNESS
from services.trainer.gate.metrics.judge_agreement import JUDGE_AGREEMENT
from services.trainer.gate.metrics.liked_answers import LIKED
from services.trainer.gate.metrics.metric import Metric
from services.trainer.gate.metrics.pair_margins import PAIR_MARGINS
from services.trainer.gate.metrics.safety import SAFETY
from services.trainer.gate.metrics.skills import SKILLS
from services.trainer.gate.metrics.unseen_questions import UNSEEN_QUESTIONS

Measurements = Mapping[str, Any]
"""Name of a metric -> what its `measure` returned."""

METRICS: Final[tuple[Metric[Any], ...]] = (
    CORRECTIONS,
    LIKED,
    JUDGE_AGREEMENT,
    CORRECTION_LIKELIHOOD,
    PAIR_MARGINS,
    UNSEEN_QUESTIONS,
    GENERAL_ACCURACY,
    GENERAL_LIKELIHOOD,
    CONTINUATION,
    SAFETY,
    *SKILLS,
    HARNESS,
    GOLDEN_SET,
)
"""All metrics, in the order of their figures and reasons in a report.

To add a metric, write a module with a `Metric` and add it here:

1. `tasks`: reuse another metric's tasks, or declare prompts to answer (`GenerationTask`) or answers whose likelihood
   to compute (`LikelihoodTask`).
2. `measure`: compute the metric's values from the outputs of the tasks.
3. `judge`: add figures. To fail the candidate, append a reason to `failures`; to withhold the verdict, to `doubts`.
   Comparisons that should count in the win rate go into `votes`.
4. `figures`: a label, description and unit for each figure.
5. `section`, optional: examples for the report.

Then add sample values to `tests/unit/test_gate_metrics.py`, which checks that every figure has a label.

`continuation.py` is a short example.
"""


AGAINST_BASE: Final = tuple(metric for metric in METRICS if metric.against_base)
"""Metrics that also compare the candidate with the base."""
VOTING: Final = tuple(metric for metric in METRICS if metric.votes)
"""Metrics whose votes decide whether the candidate is better. They also compare it with a control."""


def measure_all(
    eval_set: EvalSet, outputs: EvalOutputs, metrics: Sequence[Metric[Any]] = METRICS
) -> Measurements:
    """Return the values of all metrics, or of some."""
    return {metric.name: metric.measure(eval_set, outputs) for metric in metrics}
