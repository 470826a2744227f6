"""Predictions of the model that trains, for a micro-batch: losses of SFT and replay, and the other log-likelihoods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn.functional import cross_entropy

from services.trainer.training.likelihoods import (
    FusedCrossEntropy,
    LanguageModel,
    answer_logits,
    answer_states,
    divergence,
    head_of,
    linear_divergence,
    linear_log_probs,
)
from services.trainer.training.micro_batches import MicroBatch


@dataclass(frozen=True, slots=True)
class Inside:
    """The model as seen from within the forward pass of the module that accelerate wraps around it.

    Only within that pass do several processes have what they need: with DDP the gradients of what is computed there are
    averaged, with FSDP the weights are complete.
    """

    forward: Callable[..., Any]
    """The model's own forward pass."""
    head: torch.nn.Linear

    def __call__(self, **inputs: Any) -> Any:
        """Return the model's output."""
        return self.forward(**inputs)

    def get_output_embeddings(self) -> torch.nn.Linear:
        """Return the module that maps hidden states to logits."""
        return self.head


class Predictions(NamedTuple):
    """What a model predicts for a micro-batch."""

    sft: torch.Tensor
    """Scalar: negative log-likelihood of the SFT rows' answers."""
    replay_kl: torch.Tensor
    """Scalar: KL divergence from the base, summed over the tokens of replay; 0 without the base's predictions."""
    tokens: torch.Tensor
    """(targets,): log-probabilities. Those that no loss needs are 0, if computing them can be avoided."""


def predict(
    model: LanguageModel, batch: MicroBatch, base: torch.Tensor | None, fused: FusedCrossEntropy | None
) -> Predictions:
    """Return the predictions of a model with a plain head (`has_plain_head`).

    Args:
        model: The model.
        batch: The micro-batch, its pack on the model's device.
        base: Hidden states of the base for the tokens of replay, (targets, hidden), if there are any.
        fused: Kernel for the loss of the SFT rows.

    """
    packed, sft, replay = batch.packed, batch.sft_targets, batch.replay_targets
    head, hidden = head_of(model), answer_states(model, packed)
    kl = hidden.new_zeros(())
    if base is not None:
        kl = linear_divergence(hidden[replay], base, head.weight, head.bias).sum()
    compared = linear_log_probs(hidden[replay.stop :], head.weight, head.bias, packed.targets[replay.stop :])
    unknown = compared.new_zeros(replay.stop)
    if fused is None or not sft:
        answers = linear_log_probs(hidden[:sft], head.weight, head.bias, packed.targets[:sft])
        return Predictions(-answers.sum(), kl, torch.cat([answers, unknown[sft:], compared]))
    loss = fused(head.weight, hidden[:sft], packed.targets[:sft], head.bias)
    return Predictions(loss, kl, torch.cat([unknown, compared]))


def predict_from_logits(model: LanguageModel, batch: MicroBatch, base: torch.Tensor | None) -> Predictions:
    """Return the predictions of a model that changes its head's output. `base` has logits, (targets, vocab)."""
    logits = answer_logits(model, batch.packed)
    tokens = -cross_entropy(logits, batch.packed.targets, reduction="none")
    kl = tokens.new_zeros(()) if base is None else divergence(logits[batch.replay_targets], base).sum()
    return Predictions(-tokens[: batch.sft_targets].sum(), kl, tokens)
