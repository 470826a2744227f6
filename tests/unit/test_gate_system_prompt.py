"""Which system prompt general questions are asked with, and which of them."""

from __future__ import annotations

from dataclasses import replace

from services.trainer.base.base_answers import EVAL_PROMPTS, shipped_prompts
from services.trainer.dataset.filters import GroupedRow
from services.trainer.gate.system_prompt import MAX_TOKENS, frequent_system_prompt, with_system_prompt
from tests.trainer_factories import grouped, row

OURS = "You are the assistant of a kettle shop."
PROMPTS = shipped_prompts(EVAL_PROMPTS)


def held_out(*systems: tuple[str, str]) -> list[GroupedRow]:
    """Return a row of a held-out user for each (user, system prompt); an empty one has none."""
    rows = [row("When do you open?", "At nine.", user, f"r{i}") for i, (user, _) in enumerate(systems)]
    turns = [((("system", system),) if system else ()) for _, system in systems]
    return grouped(
        [replace(one, messages=(*before, *one.messages)) for one, before in zip(rows, turns, strict=True)]
    )


def test_system_prompt_of_the_most_users_is_used() -> None:
    users = [*((f"u{i}", OURS) for i in range(4)), *((f"v{i}", "Be brief.") for i in range(3))]
    assert frequent_system_prompt(held_out(*users)) == OURS


def test_system_prompt_of_few_users_is_not_used() -> None:
    """It may contain a user's name, and one user's many rows are one user."""
    rows = held_out(*[("u1", "You talk to Ida.")] * 5, ("u2", "You talk to Ida."), ("u3", ""), ("u4", ""))
    assert frequent_system_prompt(rows) is None
    assert frequent_system_prompt([]) is None


def test_half_of_the_questions_have_the_system_prompt() -> None:
    asked = with_system_prompt(PROMPTS, OURS, 12)
    below = [prompt for prompt in asked if prompt.turns]
    assert len(below) == len(PROMPTS) // 2
    assert {prompt.messages[0] for prompt in below} == {("system", OURS)}
    assert [prompt.prompt for prompt in asked] == [prompt.prompt for prompt in PROMPTS]
    assert [prompt.answer_key for prompt in asked] == [prompt.answer_key for prompt in PROMPTS]
    assert asked == with_system_prompt(PROMPTS, OURS, 12)


def test_answers_below_another_system_prompt_are_cached_apart() -> None:
    one, other = (with_system_prompt(PROMPTS, system, 12) for system in (OURS, "Be brief."))
    plain = {prompt.id for prompt in PROMPTS}
    assert {prompt.id for prompt in one} & {prompt.id for prompt in other} <= plain
    assert len({prompt.id for prompt in one}) == len(PROMPTS)


def test_long_system_prompt_goes_with_fewer_questions() -> None:
    asked = with_system_prompt(PROMPTS, OURS, MAX_TOKENS // 7)
    assert sum(bool(prompt.turns) for prompt in asked) == 7
    assert with_system_prompt(PROMPTS, OURS, MAX_TOKENS + 1) == PROMPTS
