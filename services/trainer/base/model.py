"""The pinned base model and its adapters in torch: loading, greedy answers, likelihoods.

Imports torch, so only the processes of runs use it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from services.trainer.base.device import describe, device_kind
from services.trainer.base.dtype import weight_bytes
from services.trainer.base.memory import GENERATE_BATCH, SCORE_BATCH, BatchLimit, run_in_batches
from services.trainer.base.sampling import SharedNoise
from services.trainer.base.shared_prefix import logits_at
from services.trainer.core.chat import Messages
from services.trainer.core.decoding import GREEDY, Decoding
from services.trainer.core.hardware import DeviceKind, Dtype, Quantization, spreads_over_gpus
from services.trainer.progress import ProgressCallback, ignore_progress
from shared.adapter_merge import copy_sharing_weights, merge_adapter
from shared.chat_format import ChatFormat

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    Model: TypeAlias = PreTrainedModel | PeftModel


def default_device() -> DeviceKind:
    """Return `cuda` if torch sees a GPU, else `cpu`. `base/device.py` decides which GPU that is."""
    return device_kind()


def load_base(
    base: Path,
    threads: int = 1,
    dtype: Dtype = "bfloat16",
    quantization: Quantization = "none",
    device: DeviceKind | None = None,
) -> PreTrainedModel:
    """Load a model from safetensors files, without remote code, for evaluation on a device.

    By default that is the default one, or all GPUs that this process sees if one of them cannot hold the model.
    `threads` sets the number of torch threads of this process from now on. Weights with `quantization` are converted
    while they are loaded, which needs a GPU.
    """
    torch.set_num_threads(threads)
    placement = quantization_options(quantization, dtype)
    if device is None and not placement and spreads_over_gpus(bytes_in(dtype, base), describe()):
        placement = {"device_map": "auto"}
    model: Any = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        trust_remote_code=False,
        **placement,
    )
    loaded: PreTrainedModel = (model if placement else model.to(device or default_device())).eval()
    return loaded


def bytes_in(dtype: Dtype, base: Path) -> int:
    """Return the memory that the weights of a base take in a data type, if its files have two bytes per weight."""
    return weight_bytes(base) * (2 if dtype == "float32" else 1)


def quantization_options(quantization: Quantization, dtype: Dtype) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` for weights of 4 bits (NF4, Dettmers et al. 2023), or none.

    Layers compute in `dtype`. Norms, embeddings and the head stay in `dtype`, too: PEFT's preparation for training
    would convert them to fp32, which variable-length attention does not take.
    """
    if quantization == "none":
        return {}
    config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    return {"quantization_config": config, "device_map": {"": int(os.environ.get("LOCAL_RANK", "0"))}}


def load_whole_model(folder: Path, base: PreTrainedModel, threads: int = 1) -> PreTrainedModel:
    """Load a version that is a whole model, in the data type of the base."""
    model: Any = load_base(folder, threads)
    converted: PreTrainedModel = model.to(base.dtype)
    return converted


def load_merged(base: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """Return a copy of the base with an adapter merged into it, as embedded inference serves it.

    It shares the weights that the adapter does not change with the base, which stays as it is.
    """
    adapted: Any = PeftModel.from_pretrained(copy_sharing_weights(base), adapter, is_trainable=False)
    with torch.no_grad():
        for _ in merge_adapter(adapted, adapted.active_adapter):
            pass
    merged: PreTrainedModel = adapted.base_model.unload().eval()
    return merged


@contextmanager
def with_adapter(base: PreTrainedModel, adapter: Path | None) -> Iterator[Model]:
    """Yield the base with an adapter, and unload the adapter afterwards.

    Yields the base itself for None, and the model in `adapter` if that folder contains a whole model.
    """
    if adapter is None:
        yield base
        return
    if not (adapter / "adapter_config.json").exists():
        yield load_whole_model(adapter, base, torch.get_num_threads())
        return
    model: Any = PeftModel.from_pretrained(base, adapter, is_trainable=False)
    try:
        yield model.eval()
    finally:
        model.unload()


# --- answers ----------------------------------------------------------------------------------------------------


def generate_answers(
    model: Model,
    chat: ChatFormat,
    conversations: Sequence[Messages],
    max_new_tokens: int,
    progress: ProgressCallback = ignore_progress,
    limit: BatchLimit | None = None,
    decoding: Decoding = GREEDY,
) -> list[str]:
    """Return the answer to each conversation, in order. See `generate_with_endings`."""
    answers = generate_with_endings(model, chat, conversations, max_new_tokens, progress, limit, decoding)
    return [text for text, _ in answers]


def generate_with_endings(
    model: Model,
    chat: ChatFormat,
    conversations: Sequence[Messages],
    max_new_tokens: int,
    progress: ProgressCallback = ignore_progress,
    limit: BatchLimit | None = None,
    decoding: Decoding = GREEDY,
) -> list[tuple[str, bool]]:
    """Return the answers, each with whether the model ended it within `max_new_tokens`.

    Sampled answers depend on the prompt and on the draw (`decoding`), and not on other prompts.
    Prompts of similar length share a batch. Batches get smaller if memory does not suffice, and `limit` keeps their
    size for the next call.
    """
    prompts = [chat.prompt_ids(messages) for messages in conversations]
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    out = [("", True)] * len(prompts)

    def answer(batch: Sequence[int]) -> None:
        generated = _generate(model, chat, [prompts[i] for i in batch], max_new_tokens, decoding)
        for i, text in zip(batch, generated, strict=True):
            out[i] = text

    run_in_batches(order, limit or BatchLimit(GENERATE_BATCH), answer, progress)
    return out


def _generate(
    model: Any, chat: ChatFormat, prompts: Sequence[Sequence[int]], max_new_tokens: int, decoding: Decoding
) -> list[tuple[str, bool]]:
    ids, mask = _padded(prompts, chat.pad_id, left=True)
    ends = end_tokens(model, chat)
    with torch.inference_mode():
        generated = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            logits_processor=[SharedNoise(prompts, decoding)] if decoding.temperature else [],
            eos_token_id=sorted(ends),
            pad_token_id=chat.pad_id,
        )
    answers = generated[:, ids.shape[1] :].tolist()
    return [(chat.decode(answer).strip(), not ends.isdisjoint(answer)) for answer in answers]


def end_tokens(model: Model, chat: ChatFormat) -> frozenset[int]:
    """Return the token ids at which generation stops: the model's, and the chat format's."""
    eos: int | list[int] | None = model.generation_config.eos_token_id
    return frozenset([eos] if isinstance(eos, int) else eos or ()) | chat.stop_ids


# --- likelihoods ------------------------------------------------------------------------------------------------


def answer_losses(
    model: Model,
    chat: ChatFormat,
    answered: Sequence[tuple[Messages, str]],
    progress: ProgressCallback = ignore_progress,
    limit: BatchLimit | None = None,
) -> list[float]:
    """Return the mean negative log-likelihood of each answer given its conversation, in nats per token.

    The end of the turn is not scored. An answer without tokens has loss 0. `limit`: as for `generate_with_endings`.
    """
    out = [0.0] * len(answered)

    def score(batch: Sequence[int]) -> None:
        scored = answer_logits(model, chat, [answered[i] for i in batch])
        for i, (logits, ids) in zip(batch, scored, strict=True):
            out[i] = float(cross_entropy(logits, ids)) if len(ids) else 0.0

    run_in_batches(by_length(chat, answered), limit or BatchLimit(SCORE_BATCH), score, progress)
    return out


def by_length(chat: ChatFormat, answered: Sequence[tuple[Messages, str]]) -> list[int]:
    """Return the indices of answers, the shortest answers first, so that neighbours have similar length."""
    lengths = [len(chat.answer_ids(answer, ended=False)) for _, answer in answered]
    return sorted(range(len(answered)), key=lambda i: (lengths[i], i))


def answer_logits(
    model: Any, chat: ChatFormat, answered: Sequence[tuple[Messages, str]]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return for each answer the fp32 logits (answer_tokens, vocab) that predict it, and its ids (answer_tokens,)."""
    pairs = [
        (chat.prompt_ids(messages), chat.answer_ids(answer, ended=False)) for messages, answer in answered
    ]
    rows = [[*prompt, *answer] for prompt, answer in pairs]
    ids, mask = _padded(rows, chat.pad_id, left=False)
    positions = torch.zeros_like(ids, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(pairs):
        positions[row, len(prompt) - 1 : len(prompt) - 1 + len(answer)] = True
    answer_ids = [torch.tensor(answer, dtype=torch.long, device=model.device) for _, answer in pairs]
    if not positions.any():
        return [
            (torch.empty(0, model.config.vocab_size, device=model.device), answer) for answer in answer_ids
        ]
    inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
    with torch.inference_mode():
        logits = logits_at(model, model, inputs, positions.to(model.device)).float()
    return list(zip(torch.split(logits, [len(answer) for answer in answer_ids]), answer_ids, strict=True))


def _padded(rows: Sequence[Sequence[int]], pad: int, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask, both (batch, seq)."""
    width = max(len(row) for row in rows)
    ids, mask = torch.full((len(rows), width), pad), torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        filled = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, filled] = torch.tensor(row)
        mask[i, filled] = 1
    return ids, mask
