"""What a gate asks: the product's system prompt, shipped skills, and the base's own answers to all of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from services.trainer.core.eval_size import SKILL_TOKENS
from services.trainer.dataset import snapshot_files
from services.trainer.dataset.snapshot_files import Snapshot
from services.trainer.gate.metrics.general_accuracy import GENERAL_ANSWERS
from services.trainer.gate.metrics.general_likelihood import BASE_ANSWERS
from services.trainer.gate.stage import build_eval_set
from services.trainer.run.context import RunContext
from shared.chat_format import TemplateRefused
from tests.integration.test_trainer_gate import RECIPE, run_context

SYSTEM = ("system", "You are the assistant of a kettle shop.")


def sampled(context: RunContext) -> RunContext:
    """Return the run with answers at a temperature: the greedy ones of a model with random weights are alike."""
    recipe = RECIPE.model_copy(update={"gate_temperature": 1.0})
    return replace(context, config=replace(context.config, recipe=recipe))


def context_with_system_prompt(tiny_model: Path, folder: Path) -> RunContext:
    """Return a run whose held-out users all have one system prompt."""
    context = sampled(run_context(tiny_model, folder))
    trained = snapshot_files.read_rows(context.folder)
    held = [
        replace(one, row=replace(one.row, messages=(SYSTEM, *one.row.messages)))
        for one in snapshot_files.read_rows(context.folder, snapshot_files.HELDOUT_ROWS)
    ]
    snapshot_files.write(context.folder, Snapshot(tuple(trained), tuple(held), (), {"0": 1}), 10)
    return context


def test_half_of_the_general_questions_have_the_products_system_prompt(
    tiny_model: Path, tmp_path: Path
) -> None:
    eval_set = build_eval_set(context_with_system_prompt(tiny_model, tmp_path))
    assert [bool(prompt.turns) for prompt in eval_set.general_prompts].count(True) == 6
    asked = [messages[0] for messages in GENERAL_ANSWERS.prompts(eval_set)]
    scored = [messages[0] for messages, _ in BASE_ANSWERS.texts(eval_set)]
    for first_turns in (asked, scored):
        assert SYSTEM in first_turns
        assert {role for role, _ in first_turns} == {"system", "user"}
    answers = {prompt.prompt: base.answer for prompt, base in zip(
        eval_set.general_prompts, eval_set.general_base_answers, strict=True)}  # fmt: skip
    plain = build_eval_set(sampled(run_context(tiny_model, tmp_path / "plain")))
    assert not any(prompt.turns for prompt in plain.general_prompts)
    changed = [
        answers[prompt.prompt] != base.answer
        for prompt, base in zip(plain.general_prompts, plain.general_base_answers, strict=True)
    ]
    assert 0 < sum(changed) <= 6, "the base answered below the system prompt, and only there"


def test_template_without_system_prompts_leaves_out_what_it_refuses(tiny_model: Path, tmp_path: Path) -> None:
    context = context_with_system_prompt(tiny_model, tmp_path)
    context.config = replace(context.config, recipe=RECIPE.model_copy(update={"gate_skill_prompts": 80}))
    render = context.chat.prompt_ids

    def refuse_system(messages: list[tuple[str, str]]) -> list[int]:
        if messages[0][0] == "system":
            raise TemplateRefused("System role not supported")
        return render(messages)

    context.chat.prompt_ids = refuse_system  # type: ignore[method-assign, assignment]
    eval_set = build_eval_set(context)
    assert not any(prompt.turns for prompt in eval_set.general_prompts)
    assert len(eval_set.skills["conversations"].questions) == 77
    assert len(eval_set.skills["code"].questions) == 80


def test_base_answers_as_the_gate_samples(tiny_model: Path, tmp_path: Path) -> None:
    greedy = run_context(tiny_model, tmp_path)
    sets = [build_eval_set(context) for context in (greedy, sampled(greedy), sampled(greedy))]
    by_gate = [[base.answer for base in one.general_base_answers] for one in sets]
    assert by_gate[0] != by_gate[1] == by_gate[2]
    assert set(sets[0].skills) == set(SKILL_TOKENS)
    assert all(len(one.questions) == RECIPE.gate_skill_prompts for one in sets[0].skills.values())
