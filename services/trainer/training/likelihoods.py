"""Likelihoods of answers under a model, computed from the hidden states that predict their tokens.

The model's head is applied to those states only, and to at most `CHUNK_BYTES` of logits at a time: with a large
vocabulary, logits would need more memory than all else.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Final, Protocol, TypeAlias, cast

import torch
from torch.nn.functional import cross_entropy, kl_div, linear
from torch.utils.checkpoint import checkpoint

from services.trainer.training.packing import Pack


class LanguageModel(Protocol):
    """A model that returns logits: a `Model`, or one as seen from within a wrapper's forward pass."""

    def __call__(self, **inputs: Any) -> Any:
        """Return the model's output."""

    def get_output_embeddings(self) -> Any:
        """Return the module that maps hidden states to logits."""


FusedCrossEntropy: TypeAlias = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor
]
"""Returns the summed negative log-likelihood of targets (n,), given the head's weight (vocab, hidden), hidden states
(n, hidden), the targets, and the head's bias."""
CHUNK_BYTES: Final = 2**28
"""Logits in fp32 that are kept for the backward pass; those of more answers are computed again, chunk by chunk."""


def answer_log_probs(model: LanguageModel, packed: Pack, *, plain_head: bool) -> torch.Tensor:
    """Return the fp32 log-probability of each token of the answers, (targets,).

    The model's head is applied to the positions that predict answers only.

    Args:
        model: The model; on the device of the pack.
        packed: The sequences.
        plain_head: The logits are a linear function of the last hidden states, so their chunks can be computed here.
            Otherwise, as with soft caps, the model's own forward pass computes them.

    """
    if plain_head:
        head = head_of(model)
        return linear_log_probs(answer_states(model, packed), head.weight, head.bias, packed.targets)
    return -cross_entropy(answer_logits(model, packed), packed.targets, reduction="none")


def answer_logits(model: LanguageModel, packed: Pack) -> torch.Tensor:
    """Return the fp32 logits from which the tokens of the answers are predicted, (targets, vocab)."""

    def select(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (arguments[0].flatten(0, 1)[packed.select].unsqueeze(0),)

    hook = head_of(model).register_forward_pre_hook(select)
    try:
        logits: torch.Tensor = model(**packed.inputs).logits
    finally:
        hook.remove()
    return logits.squeeze(0).float()


def answer_states(model: LanguageModel, packed: Pack) -> torch.Tensor:
    """Return the last hidden states that predict the tokens of the answers, (targets, hidden)."""
    selected: list[torch.Tensor] = []

    def select(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = arguments[0].flatten(0, 1)[packed.select]
        selected.append(hidden)
        return (hidden[:1].detach().unsqueeze(0),)  # the caller applies the head

    hook = head_of(model).register_forward_pre_hook(select)
    try:
        model(**packed.inputs)
    finally:
        hook.remove()
    return selected[0]


def head_of(model: LanguageModel) -> torch.nn.Linear:
    """Return the module that maps hidden states to logits."""
    return cast("torch.nn.Linear", model.get_output_embeddings())


def fused_cross_entropy(device: str) -> FusedCrossEntropy | None:
    """Return Liger's head and cross entropy in one kernel; None on a CPU, or where Liger is not installed."""
    if device != "cuda" or find_spec("liger_kernel") is None:
        return None
    from liger_kernel.transformers import (  # noqa: PLC0415 - imports Triton, which needs a GPU
        LigerFusedLinearCrossEntropyLoss,
    )

    kernel: FusedCrossEntropy = LigerFusedLinearCrossEntropyLoss(reduction="sum")
    return kernel


def linear_log_probs(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> torch.Tensor:
    """Return the fp32 log-probabilities of `targets` (targets,) under logits `hidden @ weight.T + bias`.

    The logits of at most `CHUNK_BYTES` exist at a time. With more, the backward pass computes them again.

    Args:
        hidden: (targets, hidden).
        weight: (vocab, hidden).
        bias: (vocab,) or None.
        targets: (targets,), int64.

    """

    def of_chunk(chunk: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return -cross_entropy(linear(chunk, weight, bias).float(), wanted, reduction="none")

    return _in_chunks(of_chunk, hidden, targets, weight.shape[0])


def linear_divergence(
    hidden: torch.Tensor, reference: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return the KL divergence of each predicted distribution from the reference's, (targets,), in fp32.

    Memory is limited as for `linear_log_probs`.

    Args:
        hidden: (targets, hidden).
        reference: (targets, hidden): the hidden states of the reference, without gradient.
        weight: (vocab, hidden), of both.
        bias: (vocab,) or None.

    """

    def of_chunk(chunk: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return divergence(linear(chunk, weight, bias).float(), linear(other, weight, bias).float())

    return _in_chunks(of_chunk, hidden, reference, weight.shape[0])


def divergence(logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return KL(reference, policy) of each position, (targets,), given the logits of both, (targets, vocab)."""
    policy, wanted = logits.log_softmax(-1), reference.log_softmax(-1)
    return kl_div(policy, wanted, reduction="none", log_target=True).sum(-1)


def _in_chunks(
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    hidden: torch.Tensor,
    others: torch.Tensor,
    vocabulary: int,
) -> torch.Tensor:
    """Return a function of hidden states and of something else per target, chunk by chunk."""
    rows = max(1, CHUNK_BYTES // (4 * vocabulary))
    if len(hidden) <= rows:
        return function(hidden, others)
    chunks = zip(torch.split(hidden, rows), torch.split(others, rows), strict=True)
    return torch.cat([checkpoint(function, chunk, other, use_reentrant=False) for chunk, other in chunks])


def has_plain_head(model: LanguageModel, packed: Pack) -> bool:
    """Return whether the model returns its head's output as it is, without scaling or soft caps.

    Runs the model on `packed`, with hidden states that make the logits large: a cap changes small ones hardly.
    """
    head: Any = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        return False
    outputs: list[torch.Tensor] = []
    hooks = [
        head.register_forward_pre_hook(lambda _, arguments: (arguments[0] * 100,)),
        head.register_forward_hook(lambda _module, _arguments, output: outputs.append(output)),
    ]
    try:
        with torch.no_grad():
            logits = model(**packed.inputs).logits
    finally:
        for hook in hooks:
            hook.remove()
    return logits.shape == outputs[0].shape and torch.allclose(logits.float(), outputs[0].float())
