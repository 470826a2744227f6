from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from services.trainer.base.base_answers import BaseAnswers
from services.trainer.base.dtype import Dtype
from services.trainer.base.replay import (
    EVAL_PROMPTS,
    REPLAY_PROMPTS,
    Prompt,
    cached_answers,
    shipped_prompts,
    spread,
)
from services.trainer.core.chat import Messages
from services.trainer.core.recipe import Recipe


def test_the_bases_answers_are_made_once_and_only_what_is_missing_later(tmp_path: Path) -> None:
    asked: list[str] = []

    def answering(prompts: Sequence[Prompt], new_tokens: int) -> list[tuple[str, bool]]:
        asked.extend(prompt.id for prompt in prompts)
        return [(f"about {prompt.prompt}", len(prompt.prompt) < 40) for prompt in prompts]

    prompts = shipped_prompts(REPLAY_PROMPTS, 6)
    file = tmp_path / "replay" / "ab.jsonl"
    first = cached_answers(file, prompts[:4], 48, answering)
    again = cached_answers(file, prompts, 48, answering)
    assert again[:4] == first
    assert asked == [prompt.id for prompt in prompts]
    assert cached_answers(file, prompts, 48, answering) == again
    assert len(asked) == 6


def test_what_the_base_says_in_another_type_is_asked_anew_and_kept_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def load(base: Path, threads: int, computed_in: str) -> str:
        loaded.append(computed_in)
        return computed_in

    def answer(
        model: str, tokenizer: Any, asked: Sequence[Messages], tokens: int, told: Any
    ) -> list[tuple[str, bool]]:
        return [(f"said in {model}", True) for _ in asked]

    monkeypatch.setattr("services.trainer.base.model.load_base", load)
    monkeypatch.setattr("services.trainer.base.model.generate_with_endings", answer)
    kinds: tuple[Dtype, ...] = ("bfloat16", "float32")
    for _ in range(2):
        for kind in kinds:
            says = BaseAnswers(tmp_path / "base", "ab" * 32, Recipe(), tmp_path / "replay", kind)
            (said,) = says(shipped_prompts(REPLAY_PROMPTS, 1), None, lambda *_: None)
            assert said.answer == f"said in {kind}"
    assert loaded == ["bfloat16", "float32"]


def test_prompts_are_spread_over_all_kinds_and_those_for_measuring_are_never_replayed() -> None:
    assert spread(range(10), 3) == [0, 3, 6]
    assert len(shipped_prompts(REPLAY_PROMPTS, 100)) == 100
    replayed = {prompt.prompt for prompt in shipped_prompts(REPLAY_PROMPTS, 10_000)}
    assert not replayed & {prompt.prompt for prompt in shipped_prompts(EVAL_PROMPTS, 10_000)}


def test_answers_of_which_nobody_kept_whether_they_had_ended_are_made_anew(tmp_path: Path) -> None:
    prompt = shipped_prompts(REPLAY_PROMPTS, 1)[0]
    file = tmp_path / "ab.jsonl"
    older = {"id": prompt.id, "prompt": prompt.prompt, "answer": "It is", "new_tokens": 2}
    file.write_text(json.dumps(older) + "\n")
    (made,) = cached_answers(file, [prompt], 2, lambda prompts, _: [("It is", False)] * len(prompts))
    assert made.answer == "It is" and not made.ended
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    assert kept == [older | {"ended": False}]
