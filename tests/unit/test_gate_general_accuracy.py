"""General accuracy at the gate: repeated answers, of which the mean counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.base.base_answers import BaseAnswer, Prompt
from services.trainer.core.decoding import DRAW_TEMPERATURE, Decoding, at_gate, draw_at_gate
from services.trainer.core.eval_size import eval_size
from services.trainer.core.recipe import MAX_DRAWS, Recipe
from services.trainer.gate.eval_set import EvalOutputs, EvalSet
from services.trainer.gate.metrics.general_accuracy import GENERAL_ACCURACY, GENERAL_ANSWERS

RIGHT, WRONG = "It is Paris.", "It is Rome."
PROMPTS = [Prompt(f"p{i}", f"Question {i}?", ("Paris",)) for i in range(3)]
OPEN = Prompt("open", "Write a poem.")


def said_if(right: bool) -> str:
    return RIGHT if right else WRONG


def eval_set(draws: int) -> EvalSet:
    answers = [BaseAnswer(prompt.id, prompt.prompt, RIGHT, 24, ended=True) for prompt in PROMPTS]
    return EvalSet(general_prompts=[PROMPTS[0], OPEN, *PROMPTS[1:]], general_draws=[answers] * draws)


@given(
    st.integers(1, MAX_DRAWS).flatmap(
        lambda draws: st.lists(
            st.lists(st.tuples(st.booleans(), st.booleans()), min_size=3, max_size=3),
            min_size=draws,
            max_size=draws,
        )
    )
)
def test_each_question_has_the_share_of_its_right_answers(outcomes: list[list[tuple[bool, bool]]]) -> None:
    asked = eval_set(len(outcomes))
    said = EvalOutputs(
        answers={
            GENERAL_ANSWERS.tasks[draw]: [
                (said_if(candidate), said_if(stable)) for candidate, stable in pairs
            ]
            for draw, pairs in enumerate(outcomes)
        }
    )
    shares = GENERAL_ACCURACY.measure(asked, said)
    for place, (candidate, stable) in enumerate(shares):
        given_here = [pairs[place] for pairs in outcomes]
        assert candidate == pytest.approx(sum(right for right, _ in given_here) / len(outcomes))
        assert stable == pytest.approx(sum(right for _, right in given_here) / len(outcomes))
    section = GENERAL_ACCURACY.section
    assert section is not None
    differing = [place for place, (candidate, stable) in enumerate(shares) if candidate != stable]
    rows = section.rows(asked, said)
    assert [row["question"] for row in rows] == [PROMPTS[place].prompt for place in differing]
    for place, row in zip(differing, rows, strict=True):
        assert row["won"] == (shares[place][0] > shares[place][1])
        assert (row["candidate"] == RIGHT) == row["won"] == (row["stable"] == WRONG)


def test_only_questions_with_a_key_are_asked_and_only_as_often_as_wanted() -> None:
    asked = eval_set(2)
    counts = [len(task.prompts(asked)) for task in GENERAL_ANSWERS.tasks]
    assert counts == [3, 3, 0, 0, 0, 0]
    assert [len(task.base_answers(asked)) for task in GENERAL_ANSWERS.tasks if task.base_answers] == counts


def test_draws_are_sampled_and_differ() -> None:
    recipe = Recipe()
    decodings = [task.decoding(recipe) for task in GENERAL_ANSWERS.tasks]
    assert len(set(decodings)) == MAX_DRAWS
    assert {one.temperature for one in decodings} == {DRAW_TEMPERATURE}
    assert at_gate(recipe) == Decoding()
    warm = Recipe(gate_temperature=0.7)
    assert draw_at_gate(warm, 1).temperature == at_gate(warm).temperature == 0.7
    assert draw_at_gate(warm, 1) != at_gate(warm)


@pytest.mark.parametrize(
    ("device", "weights", "draws"), [("cuda", 10**10, 3), ("cpu", 10**8, 3), ("cpu", 10**9, 1)]
)
def test_large_base_on_a_cpu_answers_once(device: str, weights: int, draws: int) -> None:
    assert eval_size(Recipe(), device, weights).draws == draws  # type: ignore[arg-type]
    assert eval_size(Recipe(gate_draws=5), device, weights).draws == 5  # type: ignore[arg-type]
