"""Losses of the objectives, as functions of the likelihoods of answers.

One loss per step: `sft + replay + preference_weight * (kto + dpo)`. SFT and replay are one mean over the answer tokens
of both, KTO and DPO means over judgements and pairs, of the whole step, also where it is split into micro-batches or
over several processes. So the parts that are computed here are divided by the step's totals, and add up.

| objective | loss | source |
| --- | --- | --- |
| sft | negative log-likelihood per token of the answers | |
| replay | `w KL(base, policy)` per token of the base's answers; `w`: `replay_token_weight` | Hinton et al. 2015 |
| kto | `w (1 - sigmoid(±(beta (policy - reference) - KL)))` per judgement | Ethayarajh et al. 2024, equation 7 |
| dpo | `-log sigmoid(beta (chosen - rejected))` of log-ratios, and the chosen answers' NLL | Rafailov et al. 2023 |

The values of SFT, KTO and DPO equal those of TRL's trainers and of Liger's losses
(`tests/integration/test_trainer_loss.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from services.trainer.core.resolved_recipe import ResolvedRecipe, replay_token_weight
from services.trainer.dataset.objectives import kto_weights
from services.trainer.training.micro_batches import MicroBatch
from services.trainer.training.predictions import Predictions
from services.trainer.training.rows import TokenizedRow
from services.trainer.training.step_plan import Step


@dataclass(frozen=True, slots=True)
class StepTotals:
    """What a step's losses are divided by: sizes of the whole step, over all its micro-batches and processes."""

    sft_tokens: int
    """Answer tokens of SFT rows."""
    replay_tokens: int
    """Tokens of the base's answers."""
    judgements: int
    pairs: int
    chosen_tokens: int
    """Tokens of the chosen answers."""

    @classmethod
    def of(cls, rows: Sequence[TokenizedRow]) -> StepTotals:
        """Return the totals of a step's rows."""
        return cls(
            sum(len(row.answer) for row in rows if row.objective == "sft"),
            sum(len(row.answer) for row in rows if row.objective == "replay"),
            sum(row.objective == "kto" for row in rows),
            sum(row.objective == "dpo" for row in rows),
            sum(len(row.answer) for row in rows if row.objective == "dpo"),
        )


@dataclass(frozen=True, slots=True)
class LossWeights:
    """Constants of the losses, from the recipe and the labels of the run's judgements."""

    kto_beta: float
    dpo_beta: float
    dpo_nll: float
    preference: float
    liked: float
    disliked: float
    replay_kl: float
    """Weight of a replay token."""


def loss_weights(recipe: ResolvedRecipe, steps: Sequence[Step]) -> LossWeights:
    """Return the constants of a run's losses. Both labels of judgements weigh the same in total."""
    rows = [row for step in steps for row in step]
    labels = [row.liked for row in rows if row.objective == "kto"]
    liked, disliked = kto_weights(labels.count(True), labels.count(False))
    totals = StepTotals.of(rows)
    return LossWeights(
        recipe.kto_beta,
        recipe.dpo_beta,
        recipe.dpo_nll,
        recipe.preference_weight,
        liked,
        disliked,
        replay_token_weight(recipe.replay_kl, totals.sft_tokens, totals.replay_tokens),
    )


# --- a micro-batch ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MicroBatchLoss:
    """A micro-batch's part of the loss of a step, and of the metrics of each objective that it has rows of."""

    loss: torch.Tensor
    """Scalar, with gradient."""
    metrics: dict[str, torch.Tensor]
    """Scalars, by name."""


def micro_batch_loss(
    batch: MicroBatch,
    predicted: Predictions,
    reference: torch.Tensor,
    kl: torch.Tensor,
    totals: StepTotals,
    weights: LossWeights,
) -> MicroBatchLoss:
    """Return a micro-batch's part of the loss of its step.

    Args:
        batch: The micro-batch, which is no filler.
        predicted: What the model predicts for it.
        reference: (sequences,): log-likelihoods of the judged sequences under the reference, in the order of the batch.
        kl: Scalar: KTO's KL term of the whole step.
        totals: Sizes of the whole step.
        weights: Constants of the losses.

    """
    loss = predicted.tokens.new_zeros(())
    metrics: dict[str, torch.Tensor] = {}
    answer_tokens = totals.sft_tokens + totals.replay_tokens
    if batch.sft_targets:
        metrics["sft/loss"] = predicted.sft / totals.sft_tokens
        loss = loss + predicted.sft / answer_tokens
    if batch.replay is not None:
        metrics["replay/kl"] = predicted.replay_kl / totals.replay_tokens
        loss = loss + weights.replay_kl * predicted.replay_kl / answer_tokens
    compared = batch.packed.sums(predicted.tokens)[batch.answers :]
    if batch.judgements:
        kto = _kto_part(batch, compared, reference, kl, totals, weights)
        metrics |= kto.metrics
        loss = loss + weights.preference * kto.loss
    if batch.pairs:
        dpo = _dpo_part(batch, predicted.tokens, compared, reference, totals, weights)
        metrics |= dpo.metrics
        loss = loss + weights.preference * dpo.loss
    return MicroBatchLoss(loss, metrics)


def _kto_part(
    batch: MicroBatch,
    compared: torch.Tensor,
    reference: torch.Tensor,
    kl: torch.Tensor,
    totals: StepTotals,
    weights: LossWeights,
) -> MicroBatchLoss:
    """Return the part of the judgements, given the log-likelihoods of all answers that are compared."""
    policy, reference = compared[: batch.judgements], reference[: batch.judgements]
    liked = batch.liked.to(policy.device)
    loss = kto_losses(policy, reference, liked, kl, weights).sum() / totals.judgements
    rewards = weights.kto_beta * torch.where(liked, 1.0, -1.0) * (policy - reference)
    return MicroBatchLoss(loss, {"kto/loss": loss, "kto/margin": rewards.sum() / totals.judgements})


def _dpo_part(
    batch: MicroBatch,
    tokens: torch.Tensor,
    compared: torch.Tensor,
    reference: torch.Tensor,
    totals: StepTotals,
    weights: LossWeights,
) -> MicroBatchLoss:
    """Return the part of the preferences, given the log-probabilities of tokens and the log-likelihoods of answers."""
    chosen = slice(batch.judgements, batch.judgements + batch.pairs)
    rejected = slice(chosen.stop, chosen.stop + batch.pairs)
    losses = dpo_losses(
        compared[chosen], compared[rejected], reference[chosen], reference[rejected], weights.dpo_beta
    )
    nll = -tokens[batch.chosen_targets].sum() / totals.chosen_tokens
    loss = losses.sum() / totals.pairs + weights.dpo_nll * nll
    ratios = compared - reference[: len(compared)]
    margin = weights.dpo_beta * (ratios[chosen] - ratios[rejected]).sum() / totals.pairs
    return MicroBatchLoss(loss, {"dpo/loss": loss, "dpo/margin": margin})


# --- the objectives --------------------------------------------------------------------------------------------


def kto_losses(
    policy: torch.Tensor,
    reference: torch.Tensor,
    liked: torch.Tensor,
    kl: torch.Tensor,
    weights: LossWeights,
) -> torch.Tensor:
    """Return the loss of each judgement, (rows,).

    Args:
        policy: (rows,): log-likelihoods of the judged answers.
        reference: (rows,): the same under the reference.
        liked: (rows,), boolean.
        kl: Scalar: how far the policy has moved from the reference (`kl_estimate`), without gradient.
        weights: Beta, and the weights of liked and disliked answers.

    """
    sign = torch.where(liked, 1.0, -1.0)
    weight = torch.where(liked, weights.liked, weights.disliked)
    return weight * (1 - torch.sigmoid(sign * weights.kto_beta * (policy - reference - kl)))


def kl_estimate(policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return KTO's estimate of the KL divergence, a scalar of at least 0.

    Args:
        policy: (rows,): log-likelihoods of answers given the conversations of other answers.
        reference: (rows,): the same under the reference.

    """
    return (policy - reference).mean().clamp(min=0)


def dpo_losses(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """Return the loss of each pair, (pairs,), given the log-likelihoods of its answers, each (pairs,)."""
    return -logsigmoid(beta * ((chosen - reference_chosen) - (rejected - reference_rejected)))
