"""Generates a version's answers, in a process of its own: `python -m benchmarks.generate TASK OUTPUT`.

TASK is a JSON file with the fields `base`, `adapter` (or null), `threads`, `seed`, `greedy` (conversations as lists of
[role, text]), `tokens` (limit of their answers), `sampled` (pairs of question and number of answers),
`sampled_tokens`, `drawn` (conversations), `draws` (lists of temperature and draw) and `drawn_tokens`. OUTPUT is written
when it is complete: `greedy` has [answer, whether the model ended it] for each conversation, `sampled` maps questions
to lists of answers, `drawn` has a list of answers for each draw.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import logging as transformers_logging

from services.trainer.base.dtype import fastest
from services.trainer.base.model import generate_answers, generate_with_endings, load_base, with_adapter
from services.trainer.base.tokenization import load_chat
from services.trainer.core.decoding import Decoding
from services.trainer.files import write_whole
from services.trainer.worker.child import die_with_parent
from shared.chat_format import ChatFormat

TOP_K = 50
"""Sampling without the unlikely tail. Top-p would sort the vocabulary for each token, which is slow on a CPU."""
BATCH_SIZE = 96


def sample_answers(
    model: Any,
    chat: ChatFormat,
    counts: Sequence[tuple[str, int]],
    max_new_tokens: int,
    seed: int,
) -> dict[str, list[str]]:
    """Return sampled answers by question, at temperature 1 from the `TOP_K` most likely tokens.

    Args:
        model: A model that generates: transformers' or PEFT's, which share no typed `generate`.
        chat: The base's chat format.
        counts: Questions, each with the number of answers.
        max_new_tokens: Longest answer, in tokens.
        seed: Seed of torch.
    """
    torch.manual_seed(seed)
    questions = sorted(
        (question for question, count in counts for _ in range(count)), key=lambda text: (len(text), text)
    )
    answers: dict[str, list[str]] = {}
    tokenizer = chat.tokenizer
    tokenizer.padding_side = "left"
    for start in range(0, len(questions), BATCH_SIZE):
        batch = questions[start : start + BATCH_SIZE]
        prompts = [chat.prompt_ids((("user", question),)) for question in batch]
        inputs = tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            outputs = model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=True,
                temperature=1.0,
                top_k=TOP_K,
                top_p=1.0,
                pad_token_id=tokenizer.pad_token_id,
            )
        new_tokens = outputs[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
        for question, text in zip(batch, texts, strict=True):
            answers.setdefault(question, []).append(str(text).strip())
    return answers


def main(task_file: Path, output: Path) -> None:
    """Run the task and write its output."""
    die_with_parent()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    task = json.loads(task_file.read_text(encoding="utf-8"))
    base_folder = Path(task["base"])
    chat = load_chat(base_folder)
    base = load_base(base_folder, task["threads"], fastest(base_folder))
    with with_adapter(base, Path(task["adapter"]) if task["adapter"] else None) as model:
        conversations = [[(role, text) for role, text in conversation] for conversation in task["greedy"]]
        greedy = generate_with_endings(model, chat, conversations, task["tokens"])
        sampled = sample_answers(
            model,
            chat,
            [(question, count) for question, count in task["sampled"]],
            task["sampled_tokens"],
            task["seed"],
        )
        conversations = [[(role, text) for role, text in conversation] for conversation in task["drawn"]]
        drawn = [
            generate_answers(
                model, chat, conversations, task["drawn_tokens"], decoding=Decoding(temperature, draw)
            )
            for temperature, draw in task["draws"]
        ]
    answers = {"greedy": greedy, "sampled": sampled, "drawn": drawn}
    write_whole(output, json.dumps(answers, ensure_ascii=False, indent=1).encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
