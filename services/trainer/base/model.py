"""The pinned base and its adapters in torch: loading, greedy answers, likelihoods. For a run's process alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from services.trainer.base.dtype import Dtype
from services.trainer.base.shared_prefix import logits_at
from services.trainer.base.tokenization import prompt_ids
from services.trainer.core.chat import Messages
from services.trainer.progress import ProgressCallback, ignore_progress

GENERATE_BATCH = 64
SCORE_BATCH = 8


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_base(base: Path, threads: int = 1, computed_in: Dtype = "bfloat16") -> Any:
    """In that type (`dtype.py`), safetensors only, on the GPU where there is one. `threads`: of torch, from now on."""
    torch.set_num_threads(threads)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        base, dtype=getattr(torch, computed_in), use_safetensors=True, trust_remote_code=False
    )
    return loaded.to(device()).eval()


def generate_answers(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Messages],
    new_tokens: int,
    told: ProgressCallback = ignore_progress,
) -> list[str]:
    """Greedy answers in the order asked."""
    return [text for text, _ in generate_with_endings(model, tokenizer, conversations, new_tokens, told)]


def generate_with_endings(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Messages],
    new_tokens: int,
    told: ProgressCallback = ignore_progress,
) -> list[tuple[str, bool]]:
    """The same, each with whether the model ended it itself; batches are made of prompts of like length."""
    prompts = [prompt_ids(tokenizer, messages) for messages in conversations]
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    out = [("", True)] * len(prompts)
    for start in range(0, len(order), GENERATE_BATCH):
        part = order[start : start + GENERATE_BATCH]
        made = _generate(model, tokenizer, [prompts[i] for i in part], new_tokens)
        for i, said in zip(part, made, strict=True):
            out[i] = said
        told(min(start + GENERATE_BATCH, len(order)), len(order))
    return out


def _generate(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], new_tokens: int
) -> list[tuple[str, bool]]:
    ids, mask = _padded(prompts, tokenizer.pad_token_id, left=True)
    with torch.inference_mode():
        made = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
    said = made[:, ids.shape[1] :].tolist()
    texts = tokenizer.batch_decode(said, skip_special_tokens=True)
    ends = end_tokens(model)
    return [(str(text).strip(), not ends.isdisjoint(row)) for text, row in zip(texts, said, strict=True)]


def end_tokens(model: Any) -> frozenset[int]:
    """Those at which the model stops."""
    found = model.generation_config.eos_token_id
    return frozenset([found] if isinstance(found, int) else found or ())


def answer_losses(
    model: Any, tokenizer: Any, said: Sequence[tuple[Messages, str]], told: ProgressCallback = ignore_progress
) -> list[float]:
    """Mean negative log-likelihood in nats per token of each answer, given its conversation (no end of turn)."""
    out = [0.0] * len(said)
    done = 0
    for part in length_batches(tokenizer, said, SCORE_BATCH):
        for i, (given, wanted) in zip(
            part, answer_logits(model, tokenizer, [said[i] for i in part]), strict=True
        ):
            out[i] = float(cross_entropy(given, wanted)) if len(wanted) else 0.0
        done += len(part)
        told(done, len(said))
    return out


def length_batches(tokenizer: Any, said: Sequence[tuple[Messages, str]], size: int) -> Iterator[list[int]]:
    """Batches of texts of like length, by their places."""
    order = sorted(range(len(said)), key=lambda i: (len(tokenizer(said[i][1])["input_ids"]), i))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def answer_logits(
    model: Any, tokenizer: Any, said: Sequence[tuple[Messages, str]]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of each answer, given its conversation: (tokens, vocabulary) logits in fp32, and the tokens themselves."""
    pairs = [
        (prompt_ids(tokenizer, messages), list(tokenizer(answer, add_special_tokens=False)["input_ids"]))
        for messages, answer in said
    ]
    ids, mask = _padded([[*prompt, *answer] for prompt, answer in pairs], tokenizer.pad_token_id, left=False)
    places = torch.zeros_like(ids, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(pairs):
        places[row, len(prompt) - 1 : len(prompt) - 1 + len(answer)] = True
    wanted = [torch.tensor(answer, dtype=torch.long, device=model.device) for _, answer in pairs]
    if not places.any():
        return [(torch.empty(0, model.config.vocab_size, device=model.device), one) for one in wanted]
    given = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
    with torch.inference_mode():
        logits = logits_at(model, model, given, places.to(model.device)).float()
    return list(zip(torch.split(logits, [len(one) for one in wanted]), wanted, strict=True))


def _padded(rows: Sequence[Sequence[int]], pad: int, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(row) for row in rows)
    ids, mask = torch.full((len(rows), width), pad), torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, place] = torch.tensor(row)
        mask[i, place] = 1
    return ids, mask


@contextmanager
def with_adapter(base: Any, adapter: Path | None) -> Iterator[Any]:
    """The base with an adapter beside its own weights, for the length of the block. None: the base itself. A folder
    with a whole model is that model."""
    if adapter is None:
        yield base
        return
    if not (adapter / "adapter_config.json").exists():
        yield load_base(adapter, torch.get_num_threads()).to(base.dtype)
        return
    model = PeftModel.from_pretrained(base, adapter, is_trainable=False)
    try:
        yield model.eval()
    finally:
        model.unload()
