"""A micro-batch: rows of all objectives that go through the model at once, as tensors.

Processes that train together run the model equally often, so one with fewer rows than another computes fillers: a
micro-batch without rows, or sequences whose results it drops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from services.trainer.training.packing import Pack, Packer
from services.trainer.training.references import References
from services.trainer.training.rows import AnsweredPrompt, TokenizedRow


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows that go through the model at once.

    The sequences of `packed` are in this order: SFT rows, replay, judgements, chosen answers, rejected answers. The
    sequences that are compared with the reference are the judgements and answers, then the judged answers in the
    conversations of others (for KTO's KL).
    """

    packed: Pack
    answers: int
    """Number of SFT and replay rows, the first sequences."""
    judgements: int
    pairs: int
    sft_targets: int
    """Answer tokens of the SFT rows: the first targets."""
    replay_targets: slice
    """Targets that are tokens of replay."""
    chosen_targets: slice
    """Targets that are tokens of chosen answers."""
    liked: torch.Tensor
    """(judgements,), boolean."""
    replay: Pack | None
    """The replay rows, whose distributions under the base are needed."""
    judged: Pack | None
    """Sequences whose likelihood under the reference is needed, unless it is known."""
    mismatched: Pack | None
    """Judged answers in the conversations of other judgements."""
    reference: torch.Tensor | None
    """(sequences of `judged`,): their log-likelihoods, if they are known."""
    is_filler: bool = False
    """It has no rows: another process has more micro-batches in this step, and waits for this one."""
    judged_filler: Pack | None = None
    """A sequence instead of `judged`, if another process needs its own, and all must run the model equally often."""
    mismatched_filler: Pack | None = None
    """The same instead of `mismatched`."""
    replay_filler: Pack | None = None
    """The same instead of `replay`."""


def make_micro_batch(
    rows: Sequence[TokenizedRow],
    mismatched: Mapping[TokenizedRow, AnsweredPrompt],
    packer: Packer,
    references: References | None = None,
) -> MicroBatch:
    """Return rows as a micro-batch.

    Args:
        rows: Rows of one step.
        mismatched: The sequences for KTO's KL term, by judgement (`mismatched_sequences`).
        packer: Makes packs.
        references: Likelihoods under the reference, if they are known.

    """
    sft = [row for row in rows if row.objective == "sft"]
    replay = [row for row in rows if row.objective == "replay"]
    kto = [row for row in rows if row.objective == "kto"]
    dpo = [row for row in rows if row.objective == "dpo"]
    trained = [row.sequences[0] for row in (*sft, *replay)]
    judged = [row.sequences[0] for row in (*kto, *dpo)] + [row.sequences[1] for row in dpo]
    others = [mismatched[row] for row in kto if row in mismatched]
    sft_targets, replay_targets, kto_targets, chosen_targets = (
        sum(len(row.answer) for row in part) for part in (sft, replay, kto, dpo)
    )
    before_judged = sft_targets + replay_targets
    before_chosen = before_judged + kto_targets
    known = references is not None
    return MicroBatch(
        packed=packer(trained + judged),
        answers=len(trained),
        judgements=len(kto),
        pairs=len(dpo),
        sft_targets=sft_targets,
        replay_targets=slice(sft_targets, before_judged),
        chosen_targets=slice(before_chosen, before_chosen + chosen_targets),
        liked=torch.tensor([row.liked for row in kto], dtype=torch.bool),
        replay=packer(trained[len(sft) :]) if replay else None,
        judged=packer(judged + others) if judged and not known else None,
        mismatched=packer(others) if others else None,
        reference=torch.tensor([references[one] for one in judged + others])
        if references is not None
        else None,
    )


def make_filler(row: TokenizedRow, packer: Packer) -> MicroBatch:
    """Return a micro-batch without rows, as small as possible: one token that predicts another one of `row`."""
    packed = packer([AnsweredPrompt(row.prompt[:1], row.answer[:1] or row.prompt[:1])])
    empty = make_micro_batch((), {}, lambda _: packed)
    return replace(empty, is_filler=True)


def with_fillers(
    batch: MicroBatch,
    filler: Pack,
    rows: Sequence[TokenizedRow],
    mismatched: Mapping[TokenizedRow, AnsweredPrompt],
    *,
    known: bool,
) -> MicroBatch:
    """Return a micro-batch that runs the model as often as those of the other processes.

    Args:
        batch: The micro-batch of this process.
        filler: A pack to run the model on.
        rows: The rows of all processes' micro-batches with this number.
        mismatched: As for `make_micro_batch`.
        known: The likelihoods under the reference are known.

    """
    needs_judged = not known and any(row.is_compared for row in rows)
    needs_replay = any(row.objective == "replay" for row in rows)
    needs_mismatched = any(row in mismatched for row in rows)
    return replace(
        batch,
        judged_filler=filler if needs_judged and batch.judged is None else None,
        mismatched_filler=filler if needs_mismatched and batch.mismatched is None else None,
        replay_filler=filler if needs_replay and batch.replay is None else None,
    )
