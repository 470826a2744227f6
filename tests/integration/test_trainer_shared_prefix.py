"""A common prefix of a batch is computed once; likelihoods and gradients equal those of whole rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    set_seed,
)

from services.trainer.base.shared_prefix import MIN_SAVED_TOKENS, common_tokens, logits_at

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SHARED: list[PretrainedConfig] = [
    LlamaConfig(**SMALL),
    Qwen2Config(**SMALL),
    Qwen3Config(**SMALL, head_dim=8),
    GemmaConfig(**SMALL, head_dim=8),
    GPTNeoXConfig(**{name: size for name, size in SMALL.items() if name != "num_key_value_heads"}),
    GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.0, attn_pdrop=0.0, embd_pdrop=0.0
    ),
]
NOT_SHARED: list[PretrainedConfig] = [
    MistralConfig(**SMALL, sliding_window=8),
    MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2),
]
PREFIX, ROWS, REST = MIN_SAVED_TOKENS // 2 + 2, 3, (9, 5, 7)


class CountingModel:
    """Model that counts its forward passes."""

    def __init__(self, config: PretrainedConfig) -> None:
        set_seed(4)
        self.model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager").train()
        self.calls = 0

    def __call__(self, **arguments: Any) -> Any:
        self.calls += 1
        return self.model(**arguments)

    def logits(self, inputs: dict[str, torch.Tensor], positions: torch.Tensor) -> torch.Tensor:
        return logits_at(self.model, self, inputs, positions)

    def gradients(self) -> dict[str, torch.Tensor]:
        found = {name: one.grad for name, one in self.model.named_parameters() if one.grad is not None}
        self.model.zero_grad()
        return found


def batch() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return rows of different lengths with a common prefix, and positions that start at another column in each row."""
    torch.manual_seed(5)
    ids = torch.randint(1, 64, (ROWS, PREFIX + max(REST)))
    ids[:, :PREFIX] = ids[0, :PREFIX]
    ids[:, PREFIX] = torch.arange(1, ROWS + 1)
    mask = torch.stack([(torch.arange(ids.shape[1]) < PREFIX + rest).long() for rest in REST])
    positions = torch.stack([torch.arange(ids.shape[1]) >= PREFIX + row for row in range(ROWS)]) & mask.bool()
    return {"input_ids": ids * mask, "attention_mask": mask}, positions


def forward_passes(model: CountingModel) -> int:
    """Check logits and gradients against whole rows; return the number of forward passes that `logits_at` made."""
    inputs, positions = batch()
    whole = model.model(**inputs, use_cache=False).logits[positions]
    whole.square().sum().backward()
    wanted = model.gradients()
    short = model.logits(inputs, positions)
    short.square().sum().backward()
    torch.testing.assert_close(short, whole, rtol=1e-4, atol=1e-5)
    found = model.gradients()
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-4)
    return model.calls


@pytest.mark.parametrize("config", SHARED, ids=lambda config: config.model_type)
def test_likelihoods_and_gradients_equal_those_of_whole_rows(config: PretrainedConfig) -> None:
    assert forward_passes(CountingModel(config)) == 2


@pytest.mark.parametrize("config", NOT_SHARED, ids=lambda config: config.model_type)
def test_models_with_other_caches_get_whole_rows(
    config: PretrainedConfig,
) -> None:
    assert forward_passes(CountingModel(config)) == 1


def test_rows_do_not_attend_to_each_other() -> None:
    model = CountingModel(SHARED[0])
    inputs, positions = batch()
    before = model.logits(inputs, positions)
    other = dict(inputs, input_ids=inputs["input_ids"].clone())
    other["input_ids"][0, PREFIX + 2 :] = 7
    after = model.logits(other, positions)
    assert model.calls == 4
    own = int(positions[0].sum())
    torch.testing.assert_close(after[own:], before[own:], rtol=0, atol=0)
    assert not torch.allclose(after[:own], before[:own])


def test_prefix_ends_before_the_first_position() -> None:
    """Even if all rows are equal up to it: its logits come from the last token before it."""
    model = CountingModel(SHARED[0])
    inputs, _ = batch()
    inputs["input_ids"][:] = inputs["input_ids"][0]
    inputs["attention_mask"][:] = 1
    positions = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    positions[:, PREFIX - 2 : PREFIX + 3] = True
    found = model.logits(inputs, positions)
    wanted = model.model(**inputs, use_cache=False).logits[positions]
    assert model.calls == 2
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_short_prefix_is_not_shared() -> None:
    model = CountingModel(SHARED[0])
    inputs, positions = batch()
    model.logits({name: one[:2] for name, one in inputs.items()}, positions[:2])
    assert model.calls == 1


def test_padding_is_not_common() -> None:
    ids = torch.tensor([[3, 4, 0, 0], [3, 4, 0, 0]])
    assert common_tokens(ids, torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])) == 2
    assert common_tokens(ids[:, :2], torch.ones(2, 2)) == 2
    assert common_tokens(torch.tensor([[3, 4], [4, 4]]), torch.ones(2, 2)) == 0
