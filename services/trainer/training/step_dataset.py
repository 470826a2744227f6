"""The steps of a run as a dataset: one item per step, with the micro-batches of this process."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

import torch

from services.trainer.training.losses import StepTotals
from services.trainer.training.micro_batches import MicroBatch, make_filler, make_micro_batch, with_fillers
from services.trainer.training.packing import Pack, Packer, pack, pad
from services.trainer.training.process_group import ALONE, ProcessGroup
from services.trainer.training.references import References, mismatched_sequences
from services.trainer.training.rows import AnsweredPrompt, TokenizedRow
from services.trainer.training.step_plan import Step, micro_batches, shares_of_processes


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What one process computes in a step."""

    micro_batches: tuple[MicroBatch, ...]
    totals: StepTotals
    """Sizes of the whole step, over all processes."""
    mismatched: int
    """Mismatched sequences of the whole step (`mismatched_sequences`)."""
    tokens: int
    """Tokens of the whole step."""

    @classmethod
    def of(
        cls,
        step: Sequence[TokenizedRow],
        mismatched: Mapping[TokenizedRow, AnsweredPrompt],
        micro_batches: Sequence[MicroBatch],
    ) -> StepInputs:
        """Return the micro-batches of one process with the sizes of the step."""
        return cls(
            tuple(micro_batches),
            StepTotals.of(step),
            sum(row in mismatched for row in step),
            sum(row.tokens for row in step),
        )

    @property
    def metrics(self) -> list[str]:
        """Return the names of the step's metrics, which are the same for all processes."""
        return [
            *(["sft/loss"] if self.totals.sft_tokens else []),
            *(["replay/kl"] if self.totals.replay_tokens else []),
            *(["kto/loss", "kto/margin"] if self.totals.judgements else []),
            *(["kto/kl"] if self.mismatched else []),
            *(["dpo/loss", "dpo/margin"] if self.totals.pairs else []),
        ]


class StepDataset(torch.utils.data.Dataset[StepInputs]):
    """Dataset with one item per step: the micro-batches of this process.

    Args:
        steps: The rows of each step.
        limit: Tokens of a micro-batch.
        packer: `pack`, or `pad` for models that cannot isolate the sequences of a pack.
        references: Likelihoods under the reference, if they are known.
        group: The processes that share each step.
        equal_passes: All processes must run the model equally often, because each holds a part of it.

    """

    def __init__(
        self,
        steps: Sequence[Step],
        limit: int,
        packer: Packer = pack,
        references: References | None = None,
        group: ProcessGroup = ALONE,
        *,
        equal_passes: bool = False,
    ) -> None:
        self._equal_passes = equal_passes
        self._steps = steps
        self._limit = limit
        self._packer = packer
        self._references = references
        self.group = group

    def resize(self, limit: int) -> None:
        """Make micro-batches of `limit` tokens from now on."""
        self._limit = limit

    def trial(self, rows: Sequence[TokenizedRow]) -> StepInputs:
        """Return rows that are in no step as one micro-batch, whose references are 0 where they are known."""
        references = None if self._references is None else defaultdict[AnsweredPrompt, float](float)
        mismatched = mismatched_sequences(tuple(rows))
        batch = make_micro_batch(rows, mismatched, self._packer, references)
        return StepInputs.of(rows, mismatched, [batch])

    def evaluated(self, rows: Sequence[TokenizedRow]) -> list[Pack]:
        """Return rows in packs of the size of a micro-batch."""
        return [self._packer([one for row in group for one in row.sequences]) for group in self._groups(rows)]

    def _groups(self, rows: Sequence[TokenizedRow]) -> list[list[TokenizedRow]]:
        return micro_batches(rows, self._limit, padded=self._packer is pad)

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, number: int) -> StepInputs:
        step = self._steps[number]
        mismatched = mismatched_sequences(step)
        by_process = [self._groups(share) for share in shares_of_processes(step, self.group.processes)]
        own = [
            make_micro_batch(group, mismatched, self._packer, self._references)
            for group in by_process[self.group.rank]
        ]
        filler = make_filler(step[0], self._packer)
        own += [filler] * (max(map(len, by_process)) - len(own))
        if self._equal_passes:
            known = self._references is not None
            at_once = [list(chain(*groups)) for groups in zip_longest(*by_process, fillvalue=())]
            own = [
                with_fillers(batch, filler.packed, rows, mismatched, known=known)
                for batch, rows in zip(own, at_once, strict=True)
            ]
        return StepInputs.of(step, mismatched, own)
