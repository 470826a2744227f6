"""Convert SmolLM2's GGUF file to bfloat16 safetensors: `python -m deploy.local.convert_gguf GGUF FOLDER`."""

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
"""SmolLM2's chat template, used if the GGUF file has none."""


def convert(gguf: Path, folder: Path) -> None:
    """Write the dequantised model and its tokenizer into `folder`."""
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # transformers reads <|im_start|> as BOS and EOS from this file, and no padding token.
    tokenizer.eos_token = END_OF_TURN
    tokenizer.pad_token = PADDING
    if not tokenizer.chat_template:
        tokenizer.chat_template = CHATML
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    # The weights are dequantised now. With these attributes, the next loader would look for a GGUF file again.
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
