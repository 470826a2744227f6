"""transformers' `Trainer` over batches of several objectives, each with TRL's own loss.

A step trains one batch, and a batch has one objective. All objectives train the same adapter (or all weights) with one
optimizer. The reference model of KTO and DPO is the base with the adapter off, so there is no second copy of it.
Batches of the objectives are spread over the run (`batch_order.py`), so that none is forgotten for another, and a
checkpoint is a position in one order. If memory does not suffice for a batch, it is split into micro-batches whose
gradients are summed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer

from services.trainer.dataset.objectives import objective_of
from services.trainer.training.cpu.sft_trainer import IGNORE_INDEX
from shared.feedback_kinds import Objective

WARMUP_STEPS: Final = 5
"""Steps over which the learning rate rises, or a tenth of the run if that is shorter."""
LOGGED_METRICS: Final = ("rewards/", "kl")
"""Prefixes of the metrics of TRL's trainers that are logged. Others cost time, or say little about one batch."""
TokenizedRow: TypeAlias = dict[str, Any]
"""A row as a TRL trainer tokenizes it: lists of token ids by column."""
Inputs: TypeAlias = dict[str, Any]
"""Inputs of one micro-batch: the tensors of a TRL collator, and `objective`, `share` and `answer_tokens`."""


def plan_steps(rows: Sequence[Mapping[str, Any]], batch_size: int) -> Iterator[tuple[Objective, range]]:
    """Yield the objective and the row indices of each step.

    A step has `batch_size` rows of one objective, or fewer if a row of another objective follows.
    """
    start = 0
    while start < len(rows):
        objective = objective_of(rows[start])
        end = start + 1
        while end < len(rows) and end - start < batch_size and objective_of(rows[end]) == objective:
            end += 1
        yield objective, range(start, end)
        start = end


class StepDataset(torch.utils.data.Dataset[tuple[Objective, list[TokenizedRow]]]):
    """Dataset with one item per step: its objective, and its rows as that objective's trainer has tokenized them."""

    def __init__(self, plan: Sequence[tuple[Objective, int]], trainers: Mapping[Objective, Trainer]) -> None:
        """Create the dataset.

        Args:
            plan: Objective and number of rows of each step.
            trainers: Trainer of each objective, with its rows in the order of the plan.

        Raises:
            ValueError: If a trainer has dropped rows, as TRL does if a conversation alone exceeds the token limit.

        """
        counts: dict[Objective, int] = dict.fromkeys(trainers, 0)
        self._steps: list[tuple[Objective, range]] = []
        for objective, count in plan:
            self._steps.append((objective, range(counts[objective], counts[objective] + count)))
            counts[objective] += count
        self._rows: dict[Objective, Any] = {name: trainer.train_dataset for name, trainer in trainers.items()}
        dropped = {name: count - len(self._rows[name]) for name, count in counts.items()}
        if any(dropped.values()):
            raise ValueError(f"rows exceed the token limit: {dropped}")

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, step: int) -> tuple[Objective, list[TokenizedRow]]:
        objective, indices = self._steps[step]
        return objective, [self._rows[objective][index] for index in indices]


class MultiObjectiveTrainer(Trainer):
    """Trainer whose loss and collator are those of a TRL trainer, chosen by the objective of each step.

    Args:
        plan: Objective and number of rows of each step.
        trainers: TRL trainer of each objective, all over the same model.
        rates: Factor of the learning rate for each objective's steps.
        micro_batch_size: Rows that go through the model at once.
        trainer_arguments: Arguments of `transformers.Trainer`.

    """

    def __init__(
        self,
        plan: Sequence[tuple[Objective, int]],
        trainers: Mapping[Objective, Any],
        rates: Mapping[Objective, float],
        micro_batch_size: int,
        **trainer_arguments: Any,
    ) -> None:
        self._trainers = trainers
        self._micro_batch_size = micro_batch_size
        self._rates = [rates[objective] for objective, _ in plan]
        self._pending_metrics: dict[str, list[float]] = {}
        super().__init__(
            train_dataset=StepDataset(plan, trainers), data_collator=self._collate, **trainer_arguments
        )

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LambdaLR:
        """Create a schedule: warm-up, then linear decay to 0, times the rate of the step's objective."""
        rates = self._rates
        warmup = max(1, min(WARMUP_STEPS, num_training_steps // 10))

        def factor(step: int) -> float:
            remaining = (num_training_steps - step) / max(1, num_training_steps - warmup)
            rate = rates[min(step, len(rates) - 1)]
            return rate * max(0.0, min(1.0, (step + 1) / (warmup + 1), remaining))

        scheduled: Any = optimizer or self.optimizer
        self.lr_scheduler = LambdaLR(scheduled, factor)
        return self.lr_scheduler

    def _collate(self, steps: list[tuple[Objective, list[TokenizedRow]]]) -> dict[str, list[Inputs]]:
        """Return the micro-batches of one step, each with its share of the rows and the step's answer tokens."""
        ((objective, rows),) = steps
        collator = self._trainers[objective].data_collator
        parts = [
            rows[start : start + self._micro_batch_size]
            for start in range(0, len(rows), self._micro_batch_size)
        ]
        collated = [collator(part) for part in parts]
        answer_tokens = sum(
            int((inputs["labels"][:, 1:] != IGNORE_INDEX).sum()) for inputs in collated if "labels" in inputs
        )
        return {
            "micro_batches": [
                {
                    "objective": objective,
                    "share": len(part) / len(rows),
                    "answer_tokens": answer_tokens,
                    **inputs,
                }
                for part, inputs in zip(parts, collated, strict=True)
            ]
        }

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Run forward and backward for all micro-batches of a step. Returns the loss of the batch, a scalar."""
        total = torch.zeros((), device=self.args.device)
        for micro_batch in inputs["micro_batches"]:
            self.state.num_input_tokens_seen += int(micro_batch["attention_mask"].sum())
            total += super().training_step(model, micro_batch)
        objective = inputs["micro_batches"][0]["objective"]
        self._pending_metrics.setdefault(f"{objective}/loss", []).append(float(total))
        return total

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Inputs,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return a micro-batch's part of the batch's loss: its share of the answer tokens (SFT), or of the rows."""
        inputs = dict(inputs)
        objective = inputs.pop("objective")
        share = inputs.pop("share")
        answer_tokens = inputs.pop("answer_tokens")
        trainer = self._trainers[objective]
        if objective == "sft":
            loss = trainer.compute_loss(model, inputs, num_items_in_batch=max(1, answer_tokens))
        else:
            loss = share * trainer.compute_loss(model, inputs)
        for name, values in trainer._metrics["train"].items():
            if name.startswith(LOGGED_METRICS):
                self._pending_metrics.setdefault(f"{objective}/{name}", []).extend(values)
        trainer._metrics["train"].clear()
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the metrics, and the means of each objective's metrics since the last call."""
        logs.update(
            {name: sum(values) / len(values) for name, values in self._pending_metrics.items() if values}
        )
        self._pending_metrics.clear()
        super().log(logs, start_time)
