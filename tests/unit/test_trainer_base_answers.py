"""Shipped prompts, and the cache of the base model's own answers to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from services.trainer.base.base_answers import (
    EVAL_PROMPTS,
    REPLAY_PROMPTS,
    BaseAnswerCache,
    Prompt,
    cached_answers,
    shipped_prompts,
    spread,
)
from services.trainer.base.dtype import Dtype
from services.trainer.core.chat import Messages
from services.trainer.core.recipe import Recipe
from services.trainer.progress import ignore_progress


def test_only_missing_answers_are_generated(tmp_path: Path) -> None:
    generated: list[str] = []

    def generate(prompts: Sequence[Prompt], max_new_tokens: int) -> list[tuple[str, bool]]:
        generated.extend(prompt.id for prompt in prompts)
        return [(f"about {prompt.prompt}", len(prompt.prompt) < 40) for prompt in prompts]

    prompts = shipped_prompts(REPLAY_PROMPTS, 6)
    file = tmp_path / "replay" / "ab.jsonl"
    first = cached_answers(file, prompts[:4], 48, generate)
    again = cached_answers(file, prompts, 48, generate)
    assert again[:4] == first
    assert generated == [prompt.id for prompt in prompts]
    assert cached_answers(file, prompts, 48, generate) == again
    assert len(generated) == 6


def test_each_data_type_has_its_own_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    tokenizer: Any = None

    def load(base: Path, threads: int, dtype: str) -> str:
        loaded.append(dtype)
        return dtype

    def generate(
        model: str, tokenizer: Any, conversations: Sequence[Messages], max_new_tokens: int, progress: Any
    ) -> list[tuple[str, bool]]:
        return [(f"answer in {model}", True) for _ in conversations]

    monkeypatch.setattr("services.trainer.base.model.load_base", load)
    monkeypatch.setattr("services.trainer.base.model.generate_with_endings", generate)
    dtypes: tuple[Dtype, ...] = ("bfloat16", "float32")
    for _ in range(2):
        for dtype in dtypes:
            cache = BaseAnswerCache(tmp_path / "base", "ab" * 32, Recipe(), tmp_path / "replay", dtype)
            (found,) = cache.answers(shipped_prompts(REPLAY_PROMPTS, 1), tokenizer, ignore_progress)
            assert found.answer == f"answer in {dtype}"
    assert loaded == ["bfloat16", "float32"]


def test_prompts_are_spread_evenly() -> None:
    assert spread(range(10), 3) == [0, 3, 6]
    assert len(shipped_prompts(REPLAY_PROMPTS, 100)) == 100


def test_no_evaluated_prompt_is_replayed() -> None:
    replayed = {prompt.prompt for prompt in shipped_prompts(REPLAY_PROMPTS)}
    assert not replayed & {prompt.prompt for prompt in shipped_prompts(EVAL_PROMPTS)}
