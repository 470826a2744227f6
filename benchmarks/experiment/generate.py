"""What a version says, in a process of its own: `python -m benchmarks.experiment.generate TASK OUT`.

Both are JSON files. TASK: base, adapter (or null), threads, seed, greedy (questions) within `tokens`, sampled
(question, how many) within `sampled_tokens`. OUT, written whole: greedy (question to answer), sampled (to answers).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import logging as transformers_logging

from services.trainer.base.dtype import fastest
from services.trainer.base.model import generate_answers, load_base, with_adapter
from services.trainer.base.tokenization import load_tokenizer, prompt_ids
from services.trainer.files import write_whole
from services.trainer.worker.launcher import PARENT_PID_VARIABLE
from shared.adapters.parent_death import die_with

TOP_K = 50
"""Without the tail. A bound on probability would sort the whole vocabulary for each token, which a CPU feels."""
AT_ONCE = 96


def sampled(
    model: Any, tokenizer: Any, asked: Sequence[tuple[str, int]], tokens: int, seed: int
) -> dict[str, list[str]]:
    """At temperature 1, of the likeliest `TOP_K` tokens."""
    torch.manual_seed(seed)
    wanted = sorted(
        (question for question, times in asked for _ in range(times)), key=lambda text: (len(text), text)
    )
    out: dict[str, list[str]] = {}
    tokenizer.padding_side = "left"
    for start in range(0, len(wanted), AT_ONCE):
        part = wanted[start : start + AT_ONCE]
        prompts = [prompt_ids(tokenizer, (("user", question),)) for question in part]
        given = tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            made = model.generate(
                **given,
                max_new_tokens=tokens,
                do_sample=True,
                temperature=1.0,
                top_k=TOP_K,
                top_p=1.0,
                pad_token_id=tokenizer.pad_token_id,
            )
        new = made[:, given["input_ids"].shape[1] :]
        for question, text in zip(part, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
            out.setdefault(question, []).append(str(text).strip())
    return out


def main(task: Path, out: Path) -> None:
    if PARENT_PID_VARIABLE in os.environ:
        die_with(int(os.environ[PARENT_PID_VARIABLE]))
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    told = json.loads(task.read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(Path(told["base"]))
    base = load_base(Path(told["base"]), told["threads"], fastest(Path(told["base"])))
    with with_adapter(base, Path(told["adapter"]) if told["adapter"] else None) as model:
        asked = [(("user", question),) for question in told["greedy"]]
        said = dict(zip(told["greedy"], generate_answers(model, tokenizer, asked, told["tokens"]), strict=True))
        also = sampled(
            model,
            tokenizer,
            [(question, times) for question, times in told["sampled"]],
            told["sampled_tokens"],
            told["seed"],
        )
    write_whole(out, json.dumps({"greedy": said, "sampled": also}, ensure_ascii=False, indent=1).encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
