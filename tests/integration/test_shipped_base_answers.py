"""The shipped answers of the demo's base: complete, made for this base, and what the base really answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local.model import ensure_base_model
from services.trainer.base.base_answers import (
    EVAL_PROMPTS,
    REPLAY_PROMPTS,
    SAFETY_PROMPTS,
    SKILL_PROMPTS,
    BaseAnswer,
    BaseAnswerCache,
    read_shipped,
    shipped_prompts,
    spread,
)
from services.trainer.base.model import generate_with_endings, load_base
from services.trainer.base.shape import base_shape
from services.trainer.base.tokenization import load_chat
from services.trainer.core.eval_size import SKILL_TOKENS, eval_size
from services.trainer.core.hardware import Dtype
from services.trainer.core.recipe import Recipe
from services.trainer.progress import ignore_progress
from shared.adapters.base_model import find_base

ROOT = Path(__file__).resolve().parents[2]
DTYPES: tuple[Dtype, ...] = ("bfloat16", "float32")
SAMPLE = 12
OPENING = 20
"""Characters compared: after one close greedy choice, which rounding decides, the rest of an answer differs."""
MIN_EQUAL = 9
"""Answers of the sample that must begin equally: rounding differs between processors and batches."""


@pytest.fixture(scope="module")
def demo_base() -> Path:
    return ensure_base_model(ROOT / ".loopwright", print)


def shipped(base: Path, dtype: Dtype, folder: Path) -> list[BaseAnswer]:
    cache = BaseAnswerCache(base, find_base(str(base)).digest, Recipe(), folder, dtype)
    return read_shipped(cache.digest, cache.fingerprint(load_chat(base)), cache.shipped_file)


@pytest.mark.parametrize("dtype", DTYPES)
def test_shipped_answers_cover_all_prompts_of_a_run(demo_base: Path, dtype: Dtype, tmp_path: Path) -> None:
    recipe = Recipe()
    size = eval_size(recipe, "cpu", base_shape(demo_base).weights)
    prompts = [
        *shipped_prompts(REPLAY_PROMPTS, recipe.replay_prompts),
        *shipped_prompts(EVAL_PROMPTS, recipe.gate_eval_prompts),
        *shipped_prompts(SAFETY_PROMPTS, size.safety),
    ]
    wanted = {(prompt.id, prompt.text, recipe.replay_new_tokens) for prompt in prompts}
    for name, new_tokens in SKILL_TOKENS.items():
        questions = shipped_prompts(SKILL_PROMPTS.format(name), size.skills)
        wanted |= {(prompt.id, prompt.text, new_tokens) for prompt in questions}
    answers = shipped(demo_base, dtype, tmp_path)
    assert {(answer.id, answer.prompt, answer.new_tokens) for answer in answers} == wanted


@pytest.mark.timeout(600)
@pytest.mark.parametrize("dtype", DTYPES)
def test_shipped_answers_are_what_the_base_answers(demo_base: Path, dtype: Dtype, tmp_path: Path) -> None:
    answers = shipped(demo_base, dtype, tmp_path)
    single = [answer for answer in answers if answer.id.startswith(("eval-", "replay-", "safety-"))]
    sample = spread(single, SAMPLE)
    model, chat = load_base(demo_base, 2, dtype), load_chat(demo_base)
    conversations = [answer.messages for answer in sample]
    made = generate_with_endings(model, chat, conversations, Recipe().replay_new_tokens, ignore_progress)
    equal = sum(
        answer.answer[:OPENING] == again[:OPENING] for answer, (again, _) in zip(sample, made, strict=True)
    )
    assert equal >= MIN_EQUAL, [(a.answer, again) for a, again in zip(sample, made, strict=True)]
