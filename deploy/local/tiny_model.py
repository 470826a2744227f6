"""Create the tests' model: `python -m deploy.local.tiny_model BASE FOLDER SEED`.

A two-layer Llama with random weights and SmolLM2's tokenizer. It has about 3 million parameters, nearly all of them
embeddings. It loads, answers and trains within moments; its answers are meaningless.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig


def make_tiny_model(base: Path, folder: Path, seed: int) -> None:
    """Write model and tokenizer into `folder`; the same seed gives the same weights."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config.dtype = torch.bfloat16
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    make_tiny_model(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
