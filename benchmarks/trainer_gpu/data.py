"""Data sets of rows with exact sizes: random letters, each of which is one token."""

from __future__ import annotations

import random
import string
from typing import Any, Final

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from benchmarks.trainer_gpu.plan import Workload
from services.trainer.training.rows import TokenizedRow
from shared.chat_format import ChatFormat

TEMPLATE: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_tokenizer() -> Any:
    """Return a tokenizer with one token per byte, and a chat template in the style of ChatML."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=TEMPLATE,
    )


def make_texts(chat: ChatFormat, workload: Workload, count: int) -> list[dict[str, Any]]:
    """Return questions and answers of random letters. Each is one token, so rows have exact sizes."""
    rng = random.Random(7)
    prompt = workload.prompt - len(chat.prompt_ids((("user", ""),)))
    answer = workload.answer - len(chat.answer_ids(""))

    def text(length: int) -> str:
        return "".join(rng.choices(string.ascii_letters, k=length))

    return [
        {
            "kind": workload.kinds[number % len(workload.kinds)],
            "question": text(prompt),
            "answer": text(answer),
            "rejected": text(answer),
            "liked": bool(number // len(workload.kinds) % 2),
        }
        for number in range(count)
    ]


def make_rows(chat: ChatFormat, workload: Workload, count: int) -> list[TokenizedRow]:
    """Return the rows of a data set as a run has them."""
    return [
        TokenizedRow(
            str(number),
            one["kind"],
            tuple(chat.prompt_ids((("user", one["question"]),))),
            tuple(chat.answer_ids(one["answer"])),
            tuple(chat.answer_ids(one["rejected"])) if one["kind"] == "dpo" else (),
            one["liked"],
        )
        for number, one in enumerate(make_texts(chat, workload, count))
    ]
