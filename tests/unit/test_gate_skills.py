"""The metrics of general skills: what fails a candidate, and what cannot be seen."""

from __future__ import annotations

import random

import pytest

from services.trainer.base.base_answers import BaseAnswer
from services.trainer.core.eval_size import ALL, EvalSize, eval_size
from services.trainer.core.recipe import Recipe
from services.trainer.gate.eval_set import EvalOutputs, EvalSet
from services.trainer.gate.metrics.metric import Judgement, JudgeOptions
from services.trainer.gate.metrics.skills import ALL_SKILLS, CODE, LANGUAGES, TASKS, SkillOutcomes
from services.trainer.gate.skill_sets import SkillSet, read_skill_set
from services.trainer.gate.statistics import OutcomePair, mean_interval
from services.trainer.gate.verdict import decide

OPTIONS = JudgeOptions(min_items=30)
N = 80


def pairs(lost: int, won: int = 0, n: int = N) -> list[OutcomePair]:
    """Return outcomes of `n` questions, of which half are right with both versions."""
    kept = (n - lost - won) // 2
    return [
        *[(False, True)] * lost,
        *[(True, False)] * won,
        *[(True, True)] * kept,
        *[(False, False)] * (n - lost - won - kept),
    ]


def judged(values: SkillOutcomes) -> Judgement:
    return CODE.judge(values, OPTIONS)


@pytest.mark.parametrize(
    ("lost", "won", "fails"), [(0, 0, False), (6, 0, False), (7, 0, True), (14, 8, False), (14, 2, True)]
)
def test_clear_loss_of_one_skill_fails_and_chance_does_not(lost: int, won: int, *, fails: bool) -> None:
    judgement = judged(SkillOutcomes(pairs(lost, won)))
    assert bool(judgement.failures) is fails
    assert judgement.doubts == []
    passed = {figure.name: figure.passed for figure in judgement.figures}
    assert passed["skill_code_change"] is not fails


def test_loss_against_the_base_fails_even_if_stable_lost_it_before() -> None:
    report = decide(
        {"skill_code": SkillOutcomes(pairs(0))},
        gated_against="assistant@base-00000000",
        options=OPTIONS,
        against_base={"skill_code": SkillOutcomes(pairs(12))},
    )
    assert report.verdict == "failed"
    assert report.reasons == ("compared with the base, code fell by 15.0 points",)
    figure = next(figure for figure in report.figures if figure.name == "base_skill_code_change")
    assert (figure.value, figure.bound, figure.passed) == (-0.15, -0.03, False)


def test_skill_that_the_base_lacks_is_neither_kept_nor_lost() -> None:
    judgement = judged(SkillOutcomes(too_hard=[(i == 0, 0.01) for i in range(N)]))
    assert [figure.name for figure in judgement.figures] == ["skill_code_too_hard"]
    assert judgement.figures[0].passed is None
    assert (judgement.figures[0].value, judgement.figures[0].baseline) == (0.0125, 0.01)
    assert judgement.failures == []


def eval_set(right: int) -> EvalSet:
    """Return an evaluation with the languages, of which the base answers the first `right` questions."""
    questions = read_skill_set("languages")[:N]
    answers = [
        BaseAnswer(question.id, question.prompt, question.right if i < right else "?", 32, ended=True)
        for i, question in enumerate(questions)
    ]
    return EvalSet(skills={"languages": SkillSet("languages", questions, answers)})


def test_candidates_answers_are_judged_question_by_question() -> None:
    given = eval_set(N)
    questions = given.skills["languages"].questions
    task = TASKS["languages"]
    assert len(task.prompts(given)) == N
    answers = [
        (question.wrong if i < 8 else question.right, question.right) for i, question in enumerate(questions)
    ]
    outputs = EvalOutputs(answers={task: answers})
    values = LANGUAGES.measure(given, outputs)
    assert values.pairs == [(i >= 8, True) for i in range(N)]
    assert LANGUAGES.judge(values, OPTIONS).failures == ["languages fell by 10.0 points"]
    assert ALL_SKILLS.judge(ALL_SKILLS.measure(given, outputs), OPTIONS).failures
    assert ALL_SKILLS.section is not None
    rows = ALL_SKILLS.section.rows(given, outputs)
    assert [row["won"] for row in rows] == [False] * 8


def test_nobody_answers_what_the_base_cannot_do() -> None:
    given = eval_set(2)
    task = TASKS["languages"]
    assert task.prompts(given) == []
    assert task.base_answers is not None
    assert list(task.base_answers(given)) == []
    values = LANGUAGES.measure(given, EvalOutputs(answers={task: []}))
    assert (len(values.pairs), len(values.too_hard)) == (0, N)


def test_all_sets_together_show_a_loss_that_no_set_shows() -> None:
    one = SkillOutcomes(pairs(6, 1))
    assert judged(one).failures == []
    together = SkillOutcomes(pairs(24, 4, 4 * N))
    assert ALL_SKILLS.judge(together, OPTIONS).failures == ["general skills fell by 6.2 points"]


def test_candidate_that_is_no_worse_rarely_fails() -> None:
    """Sets of 120, 80, 80 and 120 questions of which a fifth flips by chance: at most 3 in 100 gates fail."""
    rng = random.Random(20)
    options = JudgeOptions(min_items=30, mean_interval=lambda values: mean_interval(values[:1]))

    def draw() -> OutcomePair:
        candidate = rng.random() < 0.5
        return candidate, candidate if rng.random() > 0.2 else not candidate

    def fails() -> bool:
        sets = [[draw() for _ in range(n)] for n in (120, 80, 80, 120)]
        together = [pair for one in sets for pair in one]
        return any(CODE.judge(SkillOutcomes(one), options).failures for one in [*sets, together])

    assert sum(fails() for _ in range(400)) <= 12


@pytest.mark.parametrize(
    ("device", "weights", "expected"),
    [
        ("cuda", 8_000_000_000, EvalSize(ALL, ALL, 3)),
        ("cpu", 135_000_000, EvalSize(ALL, 40, 3)),
        ("cpu", 1_700_000_000, EvalSize(60, 20, 1)),
    ],
)
def test_number_of_questions_depends_on_device_and_base(
    device: str, weights: int, expected: EvalSize
) -> None:
    assert eval_size(Recipe(), device, weights) == expected  # type: ignore[arg-type]
    asked = eval_size(Recipe(gate_safety_prompts=7, gate_skill_prompts=3, gate_draws=2), device, weights)  # type: ignore[arg-type]
    assert asked == EvalSize(7, 3, 2)
