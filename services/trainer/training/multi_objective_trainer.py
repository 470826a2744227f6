"""One run over batches of several objectives, each with TRL's own loss (SFT on CPUs: `cpu/sft_trainer.py`).

A step trains one batch, and a batch is of one objective. All train one adapter (or all weights) with one optimiser; the
reference of KTO and DPO is the base itself, with the adapter off: there is no second copy of it. The batches of the
objectives are spread over the run (`batch_order.py`), so that none is forgotten for another, and a checkpoint is a
place in one order. Where memory does not suffice for a batch, it is taken in pieces whose gradients add up.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from types import MethodType
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer
from trl.trainer.utils import FusedCausalLMOutput

from services.trainer.base.shared_prefix import logits_at
from services.trainer.dataset.objectives import Objective, objective_of
from services.trainer.training.cpu.sft_trainer import IGNORED

WARMUP_STEPS = 5
"""Or a tenth of the run, where that is less."""
LOGGED_METRICS = ("rewards/", "kl")
"""Of what TRL's trainers measure on the way; the rest costs time, or says little of one batch."""
Fields = dict[str, Any]


def plan_steps(rows: Sequence[Mapping[str, Any]], size: int) -> Iterator[tuple[Objective, range]]:
    """The rows of each step, by their places: `size` of one objective, or what is left of it before another begins."""
    start = 0
    while start < len(rows):
        kind = objective_of(rows[start])
        end = start + 1
        while end < len(rows) and end - start < size and objective_of(rows[end]) == kind:
            end += 1
        yield kind, range(start, end)
        start = end


class StepDataset(torch.utils.data.Dataset[tuple[Objective, list[Fields]]]):
    """One item a step: its objective, and its rows as that objective's trainer has tokenised them."""

    def __init__(self, plan: Sequence[tuple[Objective, int]], parts: Mapping[Objective, Trainer]) -> None:
        """`plan`: objective and rows of each step. Raises `ValueError` where a trainer has left rows out, as TRL does
        with those whose conversation alone is longer than the limit."""
        taken: dict[Objective, int] = dict.fromkeys(parts, 0)
        self._where: list[tuple[Objective, range]] = []
        for kind, count in plan:
            self._where.append((kind, range(taken[kind], taken[kind] + count)))
            taken[kind] += count
        self._rows: dict[Objective, Any] = {kind: part.train_dataset for kind, part in parts.items()}
        short = {kind: count - len(self._rows[kind]) for kind, count in taken.items()}
        if any(short.values()):
            raise ValueError(f"rows do not fit into the limit of tokens: {short}")

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, step: int) -> tuple[Objective, list[Fields]]:
        kind, places = self._where[step]
        return kind, [self._rows[kind][place] for place in places]


class MultiObjectiveTrainer(Trainer):
    """`parts`: a TRL trainer of each objective, over the same model. `rates`: the share of the learning rate at which
    its steps are made. `piece`: how many rows are taken at a time."""

    def __init__(
        self,
        plan: Sequence[tuple[Objective, int]],
        parts: Mapping[Objective, Any],
        rates: Mapping[Objective, float],
        piece: int,
        **given: Any,
    ) -> None:
        self._parts = parts
        self._piece = piece
        self._rates = [rates[kind] for kind, _ in plan]
        self._heard: dict[str, list[float]] = {}
        super().__init__(train_dataset=StepDataset(plan, parts), data_collator=self._collate, **given)

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LambdaLR:
        """Up in a few steps, then down to nothing, times the rate of the step's objective."""
        rates = self._rates
        warm = max(1, min(WARMUP_STEPS, num_training_steps // 10))

        def share(step: int) -> float:
            left = (num_training_steps - step) / max(1, num_training_steps - warm)
            rate = rates[min(step, len(rates) - 1)]
            return rate * max(0.0, min(1.0, (step + 1) / (warm + 1), left))

        steered: Any = optimizer or self.optimizer
        self.lr_scheduler = LambdaLR(steered, share)
        return self.lr_scheduler

    def _collate(self, steps: list[tuple[Objective, list[Fields]]]) -> Fields:
        ((kind, rows),) = steps
        collator = self._parts[kind].data_collator
        starts = range(0, len(rows), self._piece)
        pieces = [collator(rows[start : start + self._piece]) for start in starts]
        shares = [len(rows[start : start + self._piece]) / len(rows) for start in starts]
        answered = sum(
            int((piece["labels"][:, 1:] != IGNORED).sum()) for piece in pieces if "labels" in piece
        )
        return {
            "pieces": [
                {"objective": kind, "share": share, "answered": answered, **piece}
                for share, piece in zip(shares, pieces, strict=True)
            ]
        }

    def training_step(self, model: Any, inputs: Fields, num_items_in_batch: Any = None) -> torch.Tensor:
        """All pieces of a batch; returns its loss."""
        total = torch.zeros((), device=self.args.device)
        for piece in inputs["pieces"]:
            self.state.num_input_tokens_seen += int(piece["attention_mask"].sum())
            total += super().training_step(model, piece)
        objective = inputs["pieces"][0]["objective"]
        self._heard.setdefault(f"{objective}/loss", []).append(float(total))
        return total

    def compute_loss(
        self, model: Any, inputs: Fields, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """A piece's part of its batch's loss: by its share of the answers' tokens (SFT), or of the rows."""
        inputs = dict(inputs)
        objective, share, answered = (inputs.pop(name) for name in ("objective", "share", "answered"))
        part = self._parts[objective]
        if objective == "sft":
            loss = part.compute_loss(model, inputs, num_items_in_batch=max(1, answered))
        else:
            loss = share * part.compute_loss(model, inputs)
        for name, found in part._metrics["train"].items():
            if name.startswith(LOGGED_METRICS):
                self._heard.setdefault(f"{objective}/{name}", []).extend(found)
        part._metrics["train"].clear()
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """With what was heard of each objective since the last time."""
        logs.update({name: sum(found) / len(found) for name, found in self._heard.items() if found})
        self._heard.clear()
        super().log(logs, start_time)


def add_answers_head(base: Any) -> None:
    """For a CPU: what TRL's trainers ask of the language model's head, applied once to the answers' tokens, as in
    `sft_trainer.py`. The likelihoods of the labels are TRL's; what it measures beside them is 0."""
    forward = base.forward

    @functools.wraps(type(base).forward)
    def answered(
        _self: Any, *args: Any, fused_lm_head: bool = False, labels: torch.Tensor | None = None, **rest: Any
    ) -> Any:
        if not fused_lm_head or labels is None:
            return forward(*args, **rest, **({} if labels is None else {"labels": labels}))
        wanted = labels[:, 1:]
        kept = wanted != IGNORED
        likely = -cross_entropy(logits_at(base, forward, rest, kept).float(), wanted[kept], reduction="none")
        log_probs = likely.new_zeros(wanted.shape).masked_scatter(kept, likely)
        nothing = log_probs.detach().new_zeros(wanted.shape)
        return FusedCausalLMOutput(
            log_probs=log_probs, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
        )

    base.forward = MethodType(answered, base)
