"""Answers at a temperature: exact samples, reproducible, and with the same random numbers for every version."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gate.null_adapters import null_adapter
from services.trainer.base.base_answers import EVAL_PROMPTS, BaseAnswerCache, shipped_prompts
from services.trainer.base.memory import BatchLimit
from services.trainer.base.model import generate_answers, load_base, with_adapter
from services.trainer.base.sampling import SharedNoise
from services.trainer.base.tokenization import load_chat
from services.trainer.core.recipe import Recipe
from services.trainer.progress import ignore_progress

CONVERSATIONS = [prompt.messages for prompt in shipped_prompts(EVAL_PROMPTS, 12)]
DRAWS = 4000


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Any:
    return load_base(tiny_model)


def test_noise_draws_from_the_softmax() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0])
    noise = SharedNoise([[i] for i in range(DRAWS)], temperature=0.5)
    drawn = noise(torch.zeros(DRAWS, 1), logits.expand(DRAWS, 3)).argmax(-1).tolist()
    expected = (logits / 0.5).softmax(-1).tolist()
    shares = [Counter(drawn)[i] / DRAWS for i in range(3)]
    assert shares == pytest.approx(expected, abs=0.03)


def test_each_position_has_noise_of_its_own() -> None:
    noise = SharedNoise([[1], [2], [1]], temperature=1.0)
    first, second = (noise(torch.zeros(3, 1), torch.zeros(3, 50)) for _ in range(2))
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first[0], first[2]), "a prompt has the same noise wherever it is in the batch"


def test_sampled_answers_do_not_depend_on_the_batch_size(base: Any, tiny_model: Path) -> None:
    chat = load_chat(tiny_model)
    by_size = {
        size: generate_answers(
            base, chat, CONVERSATIONS, 8, ignore_progress, BatchLimit(size), temperature=1.0
        )
        for size in (1, 5, 12)
    }
    assert by_size[1] == by_size[5] == by_size[12]
    greedy = generate_answers(base, chat, CONVERSATIONS, 8)
    assert sum(sampled != plain for sampled, plain in zip(by_size[12], greedy, strict=True)) >= 6


def test_versions_that_predict_the_same_say_the_same(base: Any, tiny_model: Path, tmp_path: Path) -> None:
    chat = load_chat(tiny_model)
    recipe = Recipe(rank=4, threads=1)
    unchanged, changed = (null_adapter(base, recipe, tmp_path / str(size), 1, size) for size in (0.0, 5.0))
    said = {}
    for name, adapter in (("base", None), ("unchanged", unchanged), ("changed", changed)):
        with with_adapter(base, adapter) as model:
            said[name] = generate_answers(model, chat, CONVERSATIONS, 8, temperature=1.0)
    assert said["unchanged"] == said["base"]
    assert said["changed"] != said["base"]


def test_sampled_answers_of_the_base_are_cached_apart(base: Any, tiny_model: Path, tmp_path: Path) -> None:
    chat = load_chat(tiny_model)
    recipe = Recipe(threads=1, replay_new_tokens=6)
    greedy = BaseAnswerCache(tiny_model, "0" * 64, recipe, tmp_path)
    sampled = replace(greedy, temperature=1.0)
    prompts = shipped_prompts(EVAL_PROMPTS, 12)
    answers = [cache.answers(prompts, chat, ignore_progress) for cache in (greedy, sampled)]
    assert greedy.file != sampled.file
    assert greedy.fingerprint(chat) != sampled.fingerprint(chat)
    assert [one.answer for one in answers[0]] != [one.answer for one in answers[1]]
    model = generate_answers(base, chat, [prompt.messages for prompt in prompts], 6, temperature=1.0)
    assert [one.answer for one in answers[1]] == model
