"""Packed sequences give the likelihoods and gradients of separate ones, and none sees another."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen3Config,
    set_seed,
)

from services.trainer.training.cpu import segment_attention
from services.trainer.training.cpu.segment_attention import MAX_EAGER_KEYS
from services.trainer.training.likelihoods import answer_log_probs, has_plain_head, linear_log_probs
from services.trainer.training.packed_attention import PACKED, attention, can_pack
from services.trainer.training.packing import Pack, pack, pad
from services.trainer.training.rows import AnsweredPrompt

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
PACKABLE: list[PretrainedConfig] = [
    LlamaConfig(**SMALL),
    Qwen3Config(**SMALL, head_dim=8),
    MistralConfig(**SMALL, sliding_window=8),
    Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=16),
    GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0, attn_pdrop=0, embd_pdrop=0),
]
PADDED_ONLY: list[PretrainedConfig] = [
    MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2),  # recurrent
    BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4),  # attention of its own
    Gemma2Config(**SMALL, head_dim=8),  # soft caps
]
PROMPT = tuple(range(1, 50))


def sequences() -> list[AnsweredPrompt]:
    """Return sequences with a common beginning, two answers to one prompt, a short one, and the same one twice."""
    rng = random.Random(5)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(1, 64) for _ in range(count))

    pair = PROMPT + tokens(30)
    twice = AnsweredPrompt(PROMPT + tokens(4), tokens(6))
    return [
        AnsweredPrompt(pair, tokens(5)),
        AnsweredPrompt(PROMPT + tokens(9), tokens(11)),
        twice,
        AnsweredPrompt(tokens(2), tokens(3)),
        AnsweredPrompt(pair, tokens(7)),
        twice,
    ]


def model_of(config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> Any:
    set_seed(4)
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(config, dtype=dtype).train()
    for weight in model.parameters():  # so that attention matters, as it does in a trained model
        if weight.ndim == 2:
            weight.data.mul_(4)
    return model


def log_probs(model: Any, packed: Pack) -> torch.Tensor:
    return answer_log_probs(model, packed, plain_head=False)


def separate(model: Any, rows: Sequence[AnsweredPrompt]) -> torch.Tensor:
    return torch.cat([log_probs(model, pad([one])) for one in rows])


def gradients(model: Any, values: torch.Tensor) -> torch.Tensor:
    """Return all gradients of a weighted sum of `values`, as one vector."""
    model.zero_grad()
    torch.autograd.backward((values * torch.linspace(0.5, 1.5, len(values))).sum())
    return torch.cat([one.grad.flatten().float() for one in model.parameters() if one.grad is not None])


@pytest.mark.parametrize("config", PACKABLE, ids=lambda config: config.model_type)
@pytest.mark.parametrize("min_shared", [0, 8, 64])
def test_packed_likelihoods_and_gradients_equal_separate_ones(
    config: PretrainedConfig, min_shared: int
) -> None:
    model = model_of(config)
    wanted = separate(model, sequences())
    wanted_gradients = gradients(model, wanted)
    with attention(model, PACKED):
        found = log_probs(model, pack(sequences(), min_shared=min_shared))
        found_gradients = gradients(model, found)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert (found_gradients - wanted_gradients).norm() < 1e-4 * wanted_gradients.norm()


@pytest.mark.parametrize("config", PACKABLE[:2], ids=lambda config: config.model_type)
def test_packed_bfloat16_equals_separate_to_a_hundredth(config: PretrainedConfig) -> None:
    exact = model_of(config)
    model = model_of(config, torch.bfloat16)
    exact.load_state_dict(model.state_dict())
    wanted = separate(exact, sequences())
    wanted_gradients = gradients(exact, wanted)
    with attention(model, PACKED):
        found = log_probs(model, pack(sequences()))
        found_gradients = gradients(model, found)
    unpacked_gradients = gradients(model, separate(model, sequences()))
    assert (found.sum() - wanted.sum()).abs() < 1e-2 * wanted.sum().abs()
    noise = (unpacked_gradients - wanted_gradients).norm() / wanted_gradients.norm()
    packed_noise = (found_gradients - wanted_gradients).norm() / wanted_gradients.norm()
    assert packed_noise < noise + 1e-2, "no further from fp32 than separate rows in bfloat16"


@pytest.mark.parametrize("config", PACKABLE, ids=lambda config: config.model_type)
def test_no_sequence_sees_another(config: PretrainedConfig) -> None:
    model = model_of(config)
    rows = sequences()
    changed = [*rows]
    changed[1] = AnsweredPrompt(rows[1].prompt, rows[1].answer[::-1])
    with attention(model, PACKED), torch.no_grad():
        before, after = log_probs(model, pack(rows)), log_probs(model, pack(changed))
    own = pack(rows).sequence == 1
    torch.testing.assert_close(after[~own], before[~own], rtol=0, atol=0)
    assert not torch.allclose(after[own], before[own])


@pytest.mark.parametrize("config", PACKABLE, ids=lambda config: config.model_type)
def test_models_that_isolate_sequences_are_packed(config: PretrainedConfig) -> None:
    assert can_pack(model_of(config))


@pytest.mark.parametrize("config", PADDED_ONLY, ids=lambda config: config.model_type)
def test_other_models_get_padded_rows(config: PretrainedConfig) -> None:
    model = model_of(config)
    before = model.config._attn_implementation
    assert not can_pack(model)
    assert model.config._attn_implementation == before


def test_padded_rows_give_the_same_likelihoods() -> None:
    model = model_of(PACKABLE[0])
    torch.testing.assert_close(
        log_probs(model, pad(sequences())), separate(model, sequences()), rtol=1e-4, atol=1e-4
    )


def test_leaking_attention_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a mask by which each segment also sees what was packed before it."""
    model = model_of(PACKABLE[0])
    monkeypatch.setattr(segment_attention, "_keys", lambda segment: segment.end)
    monkeypatch.setattr(segment_attention, "_key_tokens", lambda segment: torch.arange(segment.end))
    assert not can_pack(model)


def test_long_segments_use_fused_attention() -> None:
    model = model_of(PACKABLE[0])
    rng = random.Random(1)
    long = [
        AnsweredPrompt(tuple(rng.randrange(1, 64) for _ in range(MAX_EAGER_KEYS)), (5, 6, 7, step))
        for step in (8, 9)
    ]
    with torch.no_grad():
        wanted = separate(model, long)
        with attention(model, PACKED):
            found = log_probs(model, pack(long))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@given(
    st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=12), min_size=1, max_size=8), st.integers(0, 6)
)
def test_every_sequence_is_the_path_to_its_last_segment(rows: list[list[int]], min_shared: int) -> None:
    answered = [AnsweredPrompt(tuple(row[:1]), tuple(row[1:])) for row in rows]
    packed = pack(answered, min_shared=min_shared)
    ids, positions = packed.inputs["input_ids"][0].tolist(), packed.inputs["position_ids"][0].tolist()
    segments = packed.inputs["packed"].segments
    assert [one.start for one in segments] == [0, *(one.end for one in segments[:-1])]
    paths = set()
    for one in segments:
        places = [index for part in (*one.ancestors, range(one.start, one.end)) for index in part]
        assert [positions[index] for index in places] == list(range(len(places)))
        paths.add(tuple(ids[index] for index in places))
    assert {one.ids for one in answered} <= paths
    assert packed.targets.tolist() == [token for one in answered for token in one.answer]
    assert packed.tokens == sum(map(len, rows)) >= len(ids)
    for selected, target, owner in zip(packed.select, packed.targets, packed.sequence, strict=True):
        sequence = answered[owner].ids
        position = positions[int(selected)]
        assert sequence[position + 1] == target
        assert sequence[position] == ids[int(selected)]


def test_shared_beginnings_are_computed_once() -> None:
    packed = pack(sequences())
    whole = sum(len(one.ids) for one in sequences())
    assert packed.inputs["input_ids"].shape[1] < whole - 3 * len(PROMPT)
    assert pack(sequences(), min_shared=0).inputs["input_ids"].shape[1] == whole


def test_head_with_soft_caps_is_left_to_the_model() -> None:
    capped = model_of(Gemma2Config(**SMALL, head_dim=8))
    assert not has_plain_head(capped, pad(sequences()))
    plain = model_of(PACKABLE[0])
    assert has_plain_head(plain, pad(sequences()))
    torch.testing.assert_close(
        answer_log_probs(plain, pad(sequences()), plain_head=True), log_probs(plain, pad(sequences()))
    )


@pytest.mark.parametrize("bias", [False, True])
def test_chunks_of_the_head_give_the_same_gradients(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    hidden, weight = torch.randn(40, 16), torch.randn(64, 16)
    offset = torch.randn(64) if bias else None
    targets = torch.randint(0, 64, (40,))

    def run() -> list[torch.Tensor]:
        inputs = [one.clone().requires_grad_() for one in (hidden, weight)]
        values = linear_log_probs(inputs[0], inputs[1], offset, targets)
        torch.autograd.backward((values * torch.arange(40)).sum())
        return [values.detach(), *(one.grad for one in inputs if one.grad is not None)]

    whole = run()
    monkeypatch.setattr("services.trainer.training.likelihoods.CHUNK_BYTES", 4 * 64 * 7)
    for one, other in zip(run(), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
