"""The gate report as JSON: verdict, figures, and the examples behind them.

It holds users' text. So it is stored with the run's files and not in the artifact, and an erasure deletes it
(`services/trainer/erasure/redact_run.py`).
"""

from __future__ import annotations

from services.trainer.core.recipe import GATE_TOKENS
from services.trainer.gate.eval_set import EvalOutputs, EvalSet
from services.trainer.gate.metrics import METRICS
from services.trainer.gate.metrics.metric import Json, ReportSection
from shared.versions import GateReport

SECTIONS: tuple[ReportSection, ...] = tuple(metric.section for metric in METRICS if metric.section)


def report_json(
    report: GateReport,
    eval_set: EvalSet,
    outputs: EvalOutputs,
    *,
    line: str,
    run_id: str,
    answer_tokens: int = GATE_TOKENS[0],
) -> Json:
    """Return the report, with one field for each section of examples.

    `given` has how many items of each kind held-out users gave, and `left_out` how many of these were not evaluated.
    `answer_tokens` is the longest answer to a held-out question, and `judge` what a judge model contributed.
    """
    return {
        "line": line,
        "run_id": run_id,
        "report": report.model_dump(mode="json"),
        "given": dict(eval_set.given),
        "left_out": dict(eval_set.left_out),
        "answer_tokens": answer_tokens,
        "judge": None if outputs.judge is None else outputs.judge.summary(),
        **{section.name: section.rows(eval_set, outputs) for section in SECTIONS},
    }
