"""Bases with random weights, made on the card: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, set_seed

from benchmarks.trainer_gpu.plan import Shape


def make_config(shape: Shape) -> Any:
    """Return the configuration of a base."""
    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=256,
        pad_token_id=257,
        dtype="bfloat16",
    )


def weights_of(shape: Shape) -> int:
    """Return the number of weights of a base, whose head is its embeddings."""
    keys = shape.hidden // shape.heads * shape.key_heads
    layer = 2 * shape.hidden * (shape.hidden + keys) + 3 * shape.hidden * shape.intermediate
    return shape.layers * layer + shape.vocabulary * shape.hidden


def make_base(shape: Shape, dtype: str, device: str) -> Any:
    """Return a base with random weights, made on the device."""
    set_seed(11)
    auto: Any = AutoModelForCausalLM
    with torch.device(device):
        model = auto.from_config(make_config(shape), dtype=getattr(torch, dtype))
    return model.to(device).eval()
