"""Answers at a temperature: exact samples, reproducible, and with the same random numbers for every version."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gate.null_adapters import null_adapter
from services.trainer.base.base_answers import EVAL_PROMPTS, Asked, BaseAnswerCache, shipped_prompts
from services.trainer.base.memory import BatchLimit
from services.trainer.base.model import generate_answers, load_base, with_adapter
from services.trainer.base.sampling import SharedNoise, uniform
from services.trainer.base.tokenization import load_chat
from services.trainer.core.decoding import GREEDY, Decoding
from services.trainer.core.recipe import Recipe
from services.trainer.progress import ignore_progress

CONVERSATIONS = [prompt.messages for prompt in shipped_prompts(EVAL_PROMPTS, 12)]
DRAWS = 4000


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Any:
    return load_base(tiny_model)


def test_noise_draws_from_the_softmax() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0])
    noise = SharedNoise([[i] for i in range(DRAWS)], Decoding(0.5))
    drawn = noise(torch.zeros(DRAWS, 1), logits.expand(DRAWS, 3)).argmax(-1).tolist()
    expected = (logits / 0.5).softmax(-1).tolist()
    shares = [Counter(drawn)[i] / DRAWS for i in range(3)]
    assert shares == pytest.approx(expected, abs=0.03)


def test_each_position_has_noise_of_its_own() -> None:
    noise = SharedNoise([[1], [2], [1]], Decoding(1.0))
    first, second = (noise(torch.zeros(3, 1), torch.zeros(3, 50)) for _ in range(2))
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first[0], first[2]), "a prompt has the same noise wherever it is in the batch"


@pytest.mark.parametrize("temperature", [0.2, 1.0, 2.0])
def test_draws_of_a_prompt_are_independent(temperature: float) -> None:
    """Pairs of draws have the product of the softmax, at each position and for seeds in a row."""
    logits = torch.tensor([0.3, 0.0, -0.6]) * temperature
    noises = [SharedNoise([[i] for i in range(DRAWS)], Decoding(temperature, draw)) for draw in (1, 2)]
    for _ in range(3):
        first, second = (
            noise(torch.zeros(DRAWS, 1), logits.expand(DRAWS, 3)).argmax(-1).tolist() for noise in noises
        )
        pairs = Counter(zip(first, second, strict=True))
        once = (logits / temperature).softmax(-1).tolist()
        for i, j in ((i, j) for i in range(3) for j in range(3)):
            assert pairs[i, j] / DRAWS == pytest.approx(once[i] * once[j], abs=0.03)


def test_random_numbers_are_uniform_and_never_zero_or_one() -> None:
    numbers = uniform(torch.arange(64) * 977, 5, 20_000)
    assert 0 < float(numbers.min()) < float(numbers.max()) < 1
    counts = torch.histc(numbers, 20, 0, 1)
    assert float((counts / numbers.numel() - 0.05).abs().max()) < 0.002
    rows = numbers - 0.5
    correlations = (rows @ rows.T) / rows.square().sum(-1).mean()
    assert float((correlations - torch.eye(64)).abs().max()) < 0.05
    columns = rows[:, :-1] * rows[:, 1:]
    assert abs(float(columns.mean())) < 0.001


def test_sampled_answers_do_not_depend_on_the_batch_size(base: Any, tiny_model: Path) -> None:
    chat = load_chat(tiny_model)
    by_size = {
        size: generate_answers(base, chat, CONVERSATIONS, 8, ignore_progress, BatchLimit(size), Decoding(1.0))
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
            said[name] = generate_answers(model, chat, CONVERSATIONS, 8, decoding=Decoding(1.0))
    assert said["unchanged"] == said["base"]
    assert said["changed"] != said["base"]


def test_sampled_answers_of_the_base_are_cached_apart(base: Any, tiny_model: Path, tmp_path: Path) -> None:
    chat = load_chat(tiny_model)
    recipe = Recipe(threads=1, replay_new_tokens=6)
    cache = BaseAnswerCache(tiny_model, "0" * 64, recipe, tmp_path)
    decodings = [GREEDY, *(Decoding(1.0, draw) for draw in range(3))]
    prompts = shipped_prompts(EVAL_PROMPTS, 12)
    answers = cache.answers_of([Asked(prompts, 6, one) for one in decodings], chat, ignore_progress)
    assert len({cache.file(one) for one in decodings}) == len(decodings)
    assert len({cache.shipped_file(one) for one in decodings}) == len(decodings)
    assert len({cache.fingerprint(chat, one) for one in decodings}) == len(decodings)
    assert len({tuple(one.answer for one in given) for given in answers}) == len(decodings)
    for decoding, given in zip(decodings, answers, strict=True):
        said = generate_answers(base, chat, [prompt.messages for prompt in prompts], 6, decoding=decoding)
        assert [one.answer for one in given] == said
