"""Likelihoods under the reference, the base, which KTO and DPO compare those of the trained model with.

With an adapter, each step computes them with the adapter off. When all weights train, they are computed before the
first step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch

from services.trainer.core.resolved_recipe import ResolvedRecipe
from services.trainer.training.likelihoods import answer_log_probs
from services.trainer.training.packing import Packer
from services.trainer.training.rows import AnsweredPrompt, TokenizedRow
from services.trainer.training.step_plan import Step

if TYPE_CHECKING:
    from transformers import PreTrainedModel

References: TypeAlias = Mapping[AnsweredPrompt, float]
"""Log-likelihood of answers under the reference, by sequence."""


def mismatched_sequences(step: Step) -> dict[TokenizedRow, AnsweredPrompt]:
    """Return for each judgement of a step its conversation with the answer of the judgement before it.

    Empty with fewer than two judgements: KTO's KL term is 0 then.
    """
    judged = [row for row in step if row.objective == "kto"]
    if len(judged) < 2:
        return {}
    return {
        row: AnsweredPrompt(row.prompt, before.answer)
        for before, row in zip([judged[-1], *judged[:-1]], judged, strict=True)
    }


def reference_sequences(steps: Sequence[Step]) -> list[AnsweredPrompt]:
    """Return all sequences of a run whose likelihood under the reference is needed, each once."""
    found: dict[AnsweredPrompt, None] = {}
    for step in steps:
        for row in step:
            if row.is_compared:
                found.update(dict.fromkeys(row.sequences))
        found.update(dict.fromkeys(mismatched_sequences(step).values()))
    return list(found)


@torch.no_grad()
def likelihoods_of_base(
    base: PreTrainedModel,
    steps: Sequence[Step],
    recipe: ResolvedRecipe,
    packer: Packer,
    *,
    plain_head: bool,
) -> References:
    """Return the base's log-likelihoods of all sequences that KTO and DPO compare with, before any weight changes."""
    sequences = sorted(reference_sequences(steps), key=lambda one: len(one.ids))
    found: dict[AnsweredPrompt, float] = {}
    base.train(False)
    while sequences:
        width = len(sequences[-1].ids)
        batch = [
            sequences.pop() for _ in range(min(len(sequences), max(1, recipe.micro_batch_tokens // width)))
        ]
        packed = packer(batch).to(base.device)
        sums = packed.sums(answer_log_probs(base, packed, plain_head=plain_head))
        found |= dict(zip(batch, sums.tolist(), strict=True))
    return found
