"""Shipped prompts, and the cache of the base model's own answers to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from services.trainer.base.base_answers import (
    EVAL_PROMPTS,
    REPLAY_PROMPTS,
    BaseAnswer,
    BaseAnswerCache,
    Prompt,
    cached_answers,
    read_shipped,
    shipped_prompts,
    spread,
)
from services.trainer.core.chat import Messages
from services.trainer.core.hardware import Dtype
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
    chat: Any = FakeChat()

    def load(base: Path, threads: int, dtype: str, quantization: str) -> str:
        loaded.append(dtype)
        return dtype

    def generate(model: str, chat: Any, conversations: Sequence[Messages], *_: Any) -> list[tuple[str, bool]]:
        return [(f"answer in {model}", True) for _ in conversations]

    monkeypatch.setattr("services.trainer.base.model.load_base", load)
    monkeypatch.setattr("services.trainer.base.model.generate_with_endings", generate)
    dtypes: tuple[Dtype, ...] = ("bfloat16", "float32")
    for _ in range(2):
        for dtype in dtypes:
            cache = BaseAnswerCache(tmp_path / "base", "ab" * 32, Recipe(), tmp_path / "replay", dtype)
            (found,) = cache.answers(shipped_prompts(REPLAY_PROMPTS, 1), chat, ignore_progress)
            assert found.answer == f"answer in {dtype}"
    assert loaded == ["bfloat16", "float32"]


@dataclass
class FakeChat:
    """The parts of a chat format that an answer depends on."""

    chat_template: str = "{{ messages }}"
    eos_token: str = "<|im_end|>"
    template_kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def tokenizer(self) -> FakeChat:
        return self


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BaseAnswerCache:
    """A cache whose base has one shipped answer, in bfloat16."""
    monkeypatch.setattr("services.trainer.base.base_answers.SHIPPED_ANSWERS", tmp_path / "shipped")
    cache = BaseAnswerCache(tmp_path / "base", "ab" * 32, Recipe(), tmp_path / "replay")
    (prompt,) = shipped_prompts(REPLAY_PROMPTS, 1)
    answer = BaseAnswer(prompt.id, prompt.prompt, "shipped", Recipe().replay_new_tokens, ended=True)
    cache.ship([answer], cast(Any, FakeChat()))
    return cache


def test_answers_of_4_bit_weights_are_kept_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shipped: BaseAnswerCache
) -> None:
    loaded: list[str] = []

    def load(base: Path, threads: int, dtype: str, quantization: str) -> str:
        loaded.append(quantization)
        return quantization

    monkeypatch.setattr("services.trainer.base.model.load_base", load)
    monkeypatch.setattr(
        "services.trainer.base.model.generate_with_endings",
        lambda model, chat, conversations, *_: [(f"answer of {model}", True) for _ in conversations],
    )
    prompts = shipped_prompts(REPLAY_PROMPTS, 1)
    quantized = replace(shipped, quantization="4bit")
    for cache, expected in (
        (quantized, "answer of 4bit"),
        (shipped, "shipped"),
        (quantized, "answer of 4bit"),
    ):
        (found,) = cache.answers(prompts, cast(Any, FakeChat()), ignore_progress)
        assert found.answer == expected
    assert loaded == ["4bit"]


def test_each_setting_of_the_template_has_its_own_answers(tmp_path: Path) -> None:
    caches = [
        BaseAnswerCache(tmp_path, "ab" * 32, Recipe(), tmp_path, "float32", chat_template_kwargs=kwargs)
        for kwargs in ({}, {"enable_thinking": False}, {"enable_thinking": True})
    ]
    assert len({cache.file() for cache in caches}) == len(caches)


def test_shipped_answers_need_no_generation(shipped: BaseAnswerCache) -> None:
    prompts = shipped_prompts(REPLAY_PROMPTS, 1)
    (answer,) = shipped.answers(prompts, cast(Any, FakeChat()), ignore_progress)
    assert answer.answer == "shipped"
    assert not shipped.folder.exists(), "nothing is left to cache"


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("chat_template", "{{ other }}"),
        ("eos_token", "</s>"),
        ("new_tokens", 41),
        ("template_kwargs", {"enable_thinking": False}),
    ],
)
def test_shipped_answers_of_other_settings_are_not_used(
    shipped: BaseAnswerCache, change: str, value: Any
) -> None:
    chat, cache = FakeChat(), shipped
    if change == "new_tokens":
        cache = replace(shipped, recipe=Recipe(replay_new_tokens=41))
    else:
        setattr(chat, change, value)
    fingerprint = cache.fingerprint(cast(Any, chat))
    assert read_shipped(cache.digest, fingerprint, cache.shipped_file()) == []
    assert read_shipped(cache.digest, shipped.fingerprint(cast(Any, FakeChat())), cache.shipped_file())
    assert read_shipped("cd" * 32, fingerprint, cache.shipped_file()) == []


def test_prompts_are_spread_evenly() -> None:
    assert spread(range(10), 3) == [0, 3, 6]
    assert len(shipped_prompts(REPLAY_PROMPTS, 100)) == 100


def test_no_evaluated_prompt_is_replayed() -> None:
    replayed = {prompt.prompt for prompt in shipped_prompts(REPLAY_PROMPTS)}
    assert not replayed & {prompt.prompt for prompt in shipped_prompts(EVAL_PROMPTS)}
