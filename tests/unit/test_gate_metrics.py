"""What every gate metric must provide."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from services.trainer.gate.eval_set import EvalOutputs, EvalSet
from services.trainer.gate.harness import HarnessResults
from services.trainer.gate.metrics import METRICS, measure_all
from services.trainer.gate.metrics.corrections import CorrectionScores
from services.trainer.gate.metrics.general_likelihood import GeneralLikelihoods
from services.trainer.gate.metrics.liked_answers import LikedOutcomes
from services.trainer.gate.metrics.metric import JudgeOptions, Metric
from services.trainer.gate.metrics.safety import SafetyOutcomes
from services.trainer.gate.metrics.skills import SkillOutcomes
from services.trainer.gate.report_html import FIGURES
from services.trainer.gate.verdict import decide
from tests.gate_factories import margin_gains, vote_items
from tests.unit.source_tree import ROOT

OPTIONS = JudgeOptions(min_items=30)
SCORES = [(0.9, 0.1), (0.1, 0.1)]
OUTCOMES = [(True, True), (False, True)]
SKILL = SkillOutcomes(OUTCOMES, too_hard=[(True, 0.5)])
EVERYTHING = {
    "corrections": CorrectionScores(SCORES, SCORES, SCORES, SCORES),
    "liked_answers": LikedOutcomes(OUTCOMES),
    "judge_agreement": (9, 10),
    "correction_likelihood": [0.1, 0.2],
    "pair_margins": {"thumbs": margin_gains([0.1]), "preference": margin_gains([0.1])},
    "unseen_questions": SCORES,
    "general_accuracy": OUTCOMES,
    "general_likelihood": GeneralLikelihoods(SCORES, [0.1, 0.2]),
    "continuation": SCORES,
    "safety": SafetyOutcomes(OUTCOMES, OUTCOMES),
    "lm_eval": HarnessResults(),
    "golden_set": [("hours", True, True)],
    "skill_instructions": SKILL,
    "skill_conversations": SKILL,
    "skill_code": SKILL,
    "skill_languages": SKILL,
    "skills": SkillOutcomes(OUTCOMES),
}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_metric_without_data_fails_nothing(metric: Metric[object]) -> None:
    judgement = metric.judge(metric.measure(EvalSet(), EvalOutputs()), OPTIONS)
    assert (judgement.failures, judgement.doubts, len(judgement.votes)) == ([], [], 0)
    assert all(figure.n == 0 for figure in judgement.figures)


def test_every_figure_has_a_label_and_every_label_a_figure() -> None:
    assert set(EVERYTHING) == set(measure_all(EvalSet(), EvalOutputs()))
    report = decide(
        EVERYTHING,
        gated_against="assistant@v1-00000000",
        options=OPTIONS,
        against_base={metric.name: EVERYTHING[metric.name] for metric in METRICS if metric.against_base},
        control=vote_items(3),
    )
    assert {figure.name for figure in report.figures} == set(FIGURES)
    assert all(figure.label and figure.description for figure in FIGURES.values())


def test_names_of_metrics_figures_and_sections_are_unique() -> None:
    names = Counter(metric.name for metric in METRICS)
    figures = Counter(figure.name for metric in METRICS for figure in metric.figures)
    sections = Counter(metric.section.name for metric in METRICS if metric.section)
    assert {name for counts in (names, figures, sections) for name, n in counts.items() if n > 1} == set()


def test_report_page_imports_no_model_library() -> None:
    """The trainer's service imports it."""
    heavy = {"torch", "transformers", "peft"}
    probe = f"import sys, services.trainer.gate.report_html; print(sorted({heavy!r} & set(sys.modules)))"
    output = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert output.stdout == "[]\n"
