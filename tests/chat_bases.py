"""Tokenizers and chat templates of several families of base models, built without a download.

The templates of Qwen3, Llama 3, Gemma and others are those that TRL ships. The tokenizers are small ones of each kind,
trained here, or SmolLM2's with the special tokens that a template writes.
"""

from __future__ import annotations

import json
import string
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram
from tokenizers.trainers import BpeTrainer, UnigramTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

LLAMA_2: Final = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + message['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
"""In the style of Llama 2 and Mistral: turn marks that are ordinary text, roles that alternate."""
SMOLLM3: Final = (
    "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
    "<|im_start|>system\nToday Date: {{ strftime_now('%d %B %Y') }}\n"
    "Reasoning Mode: {{ '/think' if enable_thinking else '/no_think' }}\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}\n{% set messages = messages[1:] %}{% endif %}"
    "<|im_end|>\n"
    "{% for message in messages %}{% if message.role == 'assistant' %}"
    "{{ '<|im_start|>assistant\n' + ('' if enable_thinking else '<think>\n\n</think>\n') }}"
    "{{ message.content.lstrip('\n') + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' + ('' if enable_thinking else '<think>\n\n</think>\n') }}{% endif %}"
)
"""In the style of SmolLM3: reasons by default, answers directly after the generation prompt, and writes the date."""

SPECIAL: Final = {
    "cohere": ["<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"],
    "deepseek_r1_distill": [
        "<｜User｜>",
        "<｜Assistant｜>",
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
    ],
    "gemma": ["<start_of_turn>", "<end_of_turn>", "<bos>"],
    "gptoss": ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"],
    "llama3": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "phi3": ["<|user|>", "<|assistant|>", "<|end|>", "<|system|>"],
    "qwen3": ["<|im_start|>", "<|im_end|>"],
}
"""Special tokens of the families."""
PLAIN_TOKENS: Final = {"qwen3": ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>"]}
"""Tokens of the families that are not marked as special."""
LINE_BREAKS_APART: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen 2 and 3 split text before tokenization; Llama 3's pattern differs in numbers only."""
TEXTS: Final = [
    "The library opens at nine and closes at ten. Who runs it? Ada runs it, since the spring of last year.",
    "def add(a, b): return a + b  # numbers below 100, user assistant system",
    "Die Bibliothek öffnet um neun Uhr. 图书馆九点开门。 अभी खुला है। Кто это?",
]


def shipped_template(family: str) -> str:
    """Return the chat template of a family that TRL ships."""
    return files("trl").joinpath("chat_templates", f"{family}.jinja").read_text(encoding="utf-8")


def family_tokenizer(tiny_model: Path, family: str, template: str | None = None) -> Any:
    """Return SmolLM2's tokenizer with the template and the special tokens of a family."""
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(
        [AddedToken(text, special=True) for text in SPECIAL.get(family, [])], special_tokens=True
    )
    tokenizer.add_tokens([AddedToken(text, special=False) for text in PLAIN_TOKENS.get(family, [])])
    if family in {"llama3", "qwen3"}:
        split = pre_tokenizers.Split(Regex(LINE_BREAKS_APART), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    if template is not None or family != "smollm2":
        tokenizer.chat_template = template if template is not None else shipped_template(family)
    return tokenizer


def small_tokenizer(kind: str) -> Any:
    """Return a small tokenizer without a chat template.

    Args:
        kind: `metaspace` or `prepend` for BPE as in Llama 2 and Mistral, `unigram` as in T5.

    """
    special = ["<unk>", "<s>", "</s>"]
    if kind == "unigram":
        backend = Tokenizer(Unigram())
        backend.normalizer = normalizers.NFKC()
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        backend.train_from_iterator(
            [*TEXTS, string.printable],
            UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False),
        )
    else:
        backend = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        replace = normalizers.Replace(" ", "▁")
        if kind == "metaspace":
            backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        else:
            backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
        bytes_ = [f"<0x{value:02X}>" for value in range(256)]
        trainer = BpeTrainer(
            vocab_size=600,
            special_tokens=[*special, *bytes_],
            initial_alphabet=list(string.printable),
            show_progress=False,
        )
        backend.train_from_iterator(TEXTS, trainer)
        fields = json.loads(backend.to_str())
        fields["added_tokens"] = fields["added_tokens"][: len(special)]  # bytes are tokens of the model only
        backend = Tokenizer.from_str(json.dumps(fields))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )  # type: ignore[no-untyped-call]
