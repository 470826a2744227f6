"""Expands SmolLM2's GGUF to bfloat16 safetensors: `python -m deploy.local.convert_gguf GGUF FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

END_OF_TURN = "<|im_end|>"
PADDING = "<|endoftext|>"
CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n' }}"
    "{{ 'You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM2's own template, for a file that lacks one."""


def convert(gguf: Path, folder: Path) -> None:
    """Write model and tokenizer into `folder`, as if they had never been quantised."""
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The file names <|im_end|> as the end, but it is loaded with <|im_start|> as both, and with no padding.
    tokenizer.eos_token = END_OF_TURN
    tokenizer.pad_token = PADDING
    if not tokenizer.chat_template:
        tokenizer.chat_template = CHATML
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    # The weights are dequantised by now; with these left, the next loader would look for a GGUF again.
    for leftover in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, leftover):
            delattr(model.config, leftover)
    model.__dict__.update(hf_quantizer=None, is_quantized=False)
    for settings in (model.config, model.generation_config):
        settings.eos_token_id = tokenizer.convert_tokens_to_ids(END_OF_TURN)
        settings.pad_token_id = tokenizer.convert_tokens_to_ids(PADDING)
        settings.bos_token_id = tokenizer.bos_token_id
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
