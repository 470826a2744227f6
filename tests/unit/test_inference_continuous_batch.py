"""The running rows on a tiny model: joining, leaving, lanes, memory, and the same answers as one row alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from services.inference.core.generation_request import Sampling
from services.inference.engine.batch_limits import BLOCK_TOKENS, BatchLimits
from services.inference.engine.continuous_batch import ContinuousBatch, cache_layout
from services.inference.engine.generation_rows import ChoiceRow, QueuedGeneration
from services.inference.engine.paged_attention import PAGED_ATTENTION, attention_for
from services.inference.engine.version_models import VersionModels
from tests.inference_factories import BASE, RecordingListener, generation_request, make_adapter

V1 = "assistant@v1-00000000"
VOCABULARY = 49_152
SEEDED = Sampling(1.0, 1.0, 7)


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> VersionModels:
    """The base and a version of it, in float32."""
    models = VersionModels(tiny_model, BASE.version, device="cpu", dtype="float32")
    for _ in models.load(V1, make_adapter(tiny_model, tmp_path_factory.mktemp("v1"), 1)):
        pass
    return models


@pytest.fixture(scope="module")
def bfloat16_models(tiny_model: Path) -> VersionModels:
    return VersionModels(tiny_model, BASE.version, device="cpu", dtype="bfloat16")


def batch_of(models: VersionModels, **changes: int) -> ContinuousBatch:
    limits = BatchLimits(**({"rows": 16, "step_tokens": 256, "blocks": 200} | changes))
    return ContinuousBatch(models.base, models.model_of, frozenset(), limits)


class TokenRow(ChoiceRow):
    """Row that keeps its tokens and the numbers of the steps that generated them."""

    def __init__(self, generation: QueuedGeneration, clock: Callable[[], int]) -> None:
        super().__init__(generation, 0, lambda tokens: " " * len(tokens))
        self.tokens: list[int] = []
        self.steps: list[int] = []
        self._clock = clock

    def push(self, token: int, eos_token_ids: frozenset[int]) -> None:
        self.tokens.append(token)
        self.steps.append(self._clock())
        super().push(token, eos_token_ids)


class Run:
    """A batch with rows that join and leave in given steps."""

    def __init__(self, batch: ContinuousBatch) -> None:
        self.batch = batch
        self.step = 0

    def add(self, prompt: list[int], tokens: int, version: str = BASE.version, **fields: Any) -> TokenRow:
        request = generation_request(version=version, max_tokens=tokens, **fields)
        generation = QueuedGeneration(request, prompt, tokens, (), RecordingListener())
        row = TokenRow(generation, lambda: self.step)
        generation.rows = [row]
        self.batch.add(row)
        return row

    def steps(self, count: int = 1_000) -> None:
        """Run steps until no row is left, at most `count`."""
        for _ in range(count):
            self.batch.remove_ended()
            if not self.batch.rows:
                return
            self.batch.step()
            self.step += 1


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return torch.randint(100, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@functools.cache
def reference(folder: Path) -> Any:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    return model


def expected(model_folder: Path, prompt: list[int], tokens: int) -> list[int]:
    """Return the greedy answer of transformers' own `generate`, without end-of-text."""
    model = reference(model_folder)
    output = model.generate(torch.tensor([prompt]), max_new_tokens=tokens, do_sample=False)
    return output[0, len(prompt) :].tolist()


# --- the same answers as one row alone ----------------------------------------------------------------------------


@pytest.mark.parametrize("attention", [PAGED_ATTENTION, "paged|sdpa", "paged|eager"])
def test_rows_that_join_and_leave_get_the_answers_of_generate(
    models: VersionModels, tiny_model: Path, attention: str
) -> None:
    """Prompts shorter and longer than a block and than a step, joining while others generate."""
    lengths = [5, 1, 33, 150, 64, 2, 90]
    models.base.set_attn_implementation(attention)
    try:
        run = Run(batch_of(models, step_tokens=64))
        rows = []
        for number, length in enumerate(lengths):
            rows.append(run.add(prompt_of(length, number), 6 + number))
            run.steps(2)
        run.steps()
    finally:
        models.base.set_attn_implementation(PAGED_ATTENTION)
    for number, (length, row) in enumerate(zip(lengths, rows, strict=True)):
        assert row.tokens == expected(tiny_model, prompt_of(length, number), 6 + number)


def test_models_with_grouped_heads_get_the_same_answers(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    models = VersionModels(tmp_path, BASE.version, device="cpu", dtype="float32")
    run = Run(batch_of(models))
    rows = [run.add(prompt_of(length, length), 8) for length in (3, 40, 100)]
    run.steps()
    for length, row in zip((3, 40, 100), rows, strict=True):
        assert row.tokens == expected(tmp_path, prompt_of(length, length), 8)


def test_seeded_row_repeats_whatever_else_runs(bfloat16_models: VersionModels) -> None:
    """In bfloat16, where the batch changes the rounding."""
    alone = Run(batch_of(bfloat16_models))
    row = alone.add(prompt_of(40), 30, sampling=SEEDED)
    alone.steps()
    assert len(set(row.tokens)) > 5
    crowded = Run(batch_of(bfloat16_models))
    others = [crowded.add(prompt_of(10 + n, n), 20, sampling=Sampling(1.0)) for n in range(6)]
    crowded.steps(3)
    again = [crowded.add(prompt_of(40), 30, sampling=SEEDED) for _ in range(2)]
    crowded.steps()
    assert [again[0].tokens, again[1].tokens] == [row.tokens, row.tokens]
    assert all(len(other.tokens) == 20 for other in others)


def test_seeded_row_shares_no_step(models: VersionModels, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of(models)
    steps: list[set[str]] = []
    process = batch._scheduler._process_candidates

    def recorded(*arguments: Any) -> Any:
        result = process(*arguments)
        steps.append({future.state.request_id for future in result[0]})
        return result

    monkeypatch.setattr(batch._scheduler, "_process_candidates", recorded)
    run = Run(batch)
    seeded = [run.add(prompt_of(10, n), 4, sampling=SEEDED) for n in range(2)]
    greedy = [run.add(prompt_of(10, n), 4, sampling=Sampling(0.0, 1.0, 7)) for n in range(2)]
    run.steps()
    assert all(step in ({seeded[0].id}, {seeded[1].id}, {row.id for row in greedy}) for step in steps)
    assert len(steps) == 12


# --- joining and lanes --------------------------------------------------------------------------------------------


def test_row_that_joins_gets_its_token_in_the_next_step(models: VersionModels) -> None:
    run = Run(batch_of(models))
    long = [run.add(prompt_of(20, n), 60) for n in range(4)]
    run.steps(10)
    short = run.add(prompt_of(20, 9), 1)
    run.steps(1)
    assert short.steps == [10]
    assert all(len(row.tokens) == 11 for row in long)


def test_long_prompt_takes_several_steps_and_stops_nobody(models: VersionModels) -> None:
    run = Run(batch_of(models, step_tokens=64))
    running = run.add(prompt_of(20), 40)
    run.steps(3)
    long = run.add(prompt_of(300), 2)
    run.steps(5)
    assert len(running.tokens) == 8
    run.steps()
    assert long.steps[0] == 3 + -(-300 // 63) - 1


def test_versions_take_turns(models: VersionModels) -> None:
    run = Run(batch_of(models))
    base = [run.add(prompt_of(20, n), 20) for n in range(8)]
    run.steps(5)
    other = run.add(prompt_of(20), 5, version=V1)
    run.steps(9)
    assert other.steps == [6, 8, 10, 12]
    run.steps()
    assert all(len(row.tokens) == 20 for row in base)
    assert other.tokens != base[0].tokens[:5]


def test_seeded_rows_leave_every_second_step_to_the_others(models: VersionModels) -> None:
    run = Run(batch_of(models))
    seeded = [run.add(prompt_of(20, n), 10, sampling=SEEDED) for n in range(5)]
    greedy = [run.add(prompt_of(20, n), 10) for n in range(5)]
    run.steps(20)
    assert [len(row.tokens) for row in greedy] == [10] * 5
    assert [len(row.tokens) for row in seeded] == [2] * 5
    run.steps()
    assert [len(row.tokens) for row in seeded] == [10] * 5


def test_new_seeded_rows_do_not_overtake_the_ones_that_run(models: VersionModels) -> None:
    run = Run(batch_of(models))
    first = run.add(prompt_of(20), 10, sampling=SEEDED)
    for number in range(30):
        run.add(prompt_of(20, number), 1, sampling=SEEDED)
        run.steps(1)
    assert len(first.tokens) >= 5


# --- memory and errors --------------------------------------------------------------------------------------------


def test_rows_use_no_more_blocks_than_they_reserve(models: VersionModels) -> None:
    """A row whose cache is full would lose its keys and values and repeat its prompt."""
    batch = batch_of(models, blocks=40)
    run = Run(batch)
    cache = batch._scheduler.cache
    number = rows = 0
    while number < 60:
        prompt, tokens = prompt_of(1 + number * 7 % 90, number), 1 + number * 13 % 50
        if batch.has_memory(len(prompt) + tokens):
            row = run.add(prompt, tokens)
            rows += 1
            number += 1
        run.steps(1)
        for row in batch.rows:
            assert cache.blocks_in_use(row.id) <= batch._reserved[row.id]
    run.steps()
    assert rows == 60
    assert cache.get_num_free_blocks() == 40
    assert batch.has_memory(batch.max_length)
    assert not batch.has_memory(batch.max_length + 1)


def test_longest_row_generates_to_its_end(models: VersionModels, tiny_model: Path) -> None:
    batch = batch_of(models, blocks=5)
    assert batch.max_length == 4 * BLOCK_TOKENS
    run = Run(batch)
    row = run.add(prompt_of(100), 28)
    run.steps()
    assert row.tokens == expected(tiny_model, prompt_of(100), 28)


def test_cancelled_rows_free_their_memory(models: VersionModels) -> None:
    batch = batch_of(models)
    run = Run(batch)
    rows = [run.add(prompt_of(40, n), 50) for n in range(4)]
    run.steps(5)
    for row in rows[:3]:
        row.generation.cancel()
    run.steps(1)
    assert [row.finish_reason for row in rows] == ["cancelled"] * 3 + [None]
    assert [len(row.tokens) for row in rows] == [5, 5, 5, 6]
    run.steps()
    assert batch._scheduler.cache.get_num_free_blocks() == 200


def test_error_of_a_version_ends_its_rows_only(
    models: VersionModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(batch_of(models))
    base = run.add(prompt_of(20), 10)
    broken = run.add(prompt_of(20), 10, version=V1)
    run.steps(4)

    def forward(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(models.model_of(V1), "forward", forward)
        run.steps()
    assert len(base.tokens) == 10
    listener = broken.generation._listener
    assert isinstance(listener, RecordingListener)
    assert listener.result(0).error == "OutOfMemoryError: CUDA out of memory"
    again = run.add(prompt_of(20), 3, version=V1)
    run.steps()
    assert len(again.tokens) == 3
    assert run.batch._scheduler.cache.get_num_free_blocks() == 200


def test_rows_whose_output_is_not_finite_fail_alone(
    models: VersionModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(batch_of(models))
    rows = [run.add(prompt_of(20, n), 5) for n in range(3)]
    run.steps(1)
    forward = models.base.lm_head.forward

    def damaged(hidden: torch.Tensor) -> torch.Tensor:
        scores = forward(hidden)
        scores[:, 1] = torch.nan
        return scores

    monkeypatch.setattr(models.base.lm_head, "forward", damaged)
    run.steps(1)
    monkeypatch.undo()
    run.steps()
    assert [len(row.tokens) for row in rows] == [5, 1, 5]
    listener = rows[1].generation._listener
    assert isinstance(listener, RecordingListener)
    assert "not finite" in str(listener.result(0).error)


# --- which models -------------------------------------------------------------------------------------------------


def test_layout_of_the_cache_is_that_of_the_model(models: VersionModels) -> None:
    config = models.base.config
    groups, block_bytes = cache_layout(models.base)
    assert groups == 1
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    assert block_bytes == numbers * BLOCK_TOKENS * 4
    cache = batch_of(models)._scheduler.cache
    stored = sum(tensor.nbytes for tensor in (*cache.key_cache, *cache.value_cache))
    assert stored == (cache.num_blocks + 2) * block_bytes


def test_attention_is_ours_only_where_it_computes_the_same(models: VersionModels) -> None:
    assert attention_for(models.base) == PAGED_ATTENTION
    config = models.base.config
    for name, value, attention in (
        ("sliding_window", 32, "paged|sdpa"),
        ("layer_types", ["full_attention", "sliding_attention"], "paged|sdpa"),
    ):
        setattr(config, name, value)
        try:
            assert attention_for(models.base) == attention
        finally:
            delattr(config, name)
    config.attn_logit_softcapping = 30.0
    try:
        with pytest.raises(ValueError, match="serve it with vLLM"):
            attention_for(models.base)
    finally:
        del config.attn_logit_softcapping
