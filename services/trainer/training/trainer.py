"""transformers' `Trainer` over steps that mix all objectives, with one loss and one optimiser.

A step's rows go through the model in micro-batches whose gradients are summed. The reference of KTO and DPO is the base
with the adapter off, so there is no second copy of it; when all weights train, its likelihoods are computed before the
first step. Nothing of a step is read back to the host except for the logs, so a GPU never waits for the next kernel;
Liger's loss reads one number per micro-batch, which costs some microseconds.

Several processes share the rows of each step, and learn from it what one process would. Gradients are averaged by the
module that accelerate wraps around the model, so every forward pass goes through that (`Inside`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from peft import PeftModel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer

from services.trainer.core.recipe import Schedule
from services.trainer.training.likelihoods import (
    answer_log_probs,
    answer_logits,
    answer_states,
    fused_cross_entropy,
    head_of,
)
from services.trainer.training.losses import LossWeights, StepTotals, kl_estimate, micro_batch_loss
from services.trainer.training.micro_batches import MicroBatch
from services.trainer.training.packing import Pack
from services.trainer.training.predictions import Inside, Predictions, predict, predict_from_logits
from services.trainer.training.rows import TokenizedRow
from services.trainer.training.schedule import rate_factor
from services.trainer.training.step_dataset import StepDataset, StepInputs

STEP: Final = "step"


class StepTrainer(Trainer):
    """Trainer of a run.

    Args:
        steps: The rows of each step, with the micro-batches of this process.
        weights: Constants of the losses.
        plain_head: See `answer_log_probs`.
        fused_kernels: Compute the loss of the SFT rows by Liger's kernel, on a GPU.
        schedule: How the learning rate falls after the warm-up.
        warmup: Steps over which it rises.
        validation: Rows of held-out users, for `evaluate`.
        trainer_arguments: Arguments of `transformers.Trainer`.

    """

    def __init__(
        self,
        steps: StepDataset,
        weights: LossWeights,
        *,
        plain_head: bool,
        fused_kernels: bool = False,
        schedule: Schedule,
        warmup: int,
        validation: Sequence[TokenizedRow] = (),
        **trainer_arguments: Any,
    ) -> None:
        self._weights = weights
        self._plain_head = plain_head
        use_gpu = fused_kernels and not trainer_arguments["args"].use_cpu
        self._fused = fused_cross_entropy("cuda" if use_gpu else "cpu")
        self._schedule: Schedule = schedule
        self._warmup = warmup
        self._validation = steps.evaluated(validation)
        self._group = steps.group
        self._step_metrics: dict[str, torch.Tensor] = {}
        self._pending_metrics: dict[str, list[torch.Tensor]] = {}
        super().__init__(train_dataset=steps, **trainer_arguments)
        model: Any = self.model
        inside = Inside(model.forward, head_of(model))
        model.forward = lambda work: work(inside)

    def train(self, *arguments: Any, **options: Any) -> Any:
        """Train. Afterwards the model's forward pass is its own again."""
        try:
            return super().train(*arguments, **options)
        finally:
            vars(self.model).pop("forward", None)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the steps in order. They are already divided among the processes."""
        steps: Any = self.train_dataset
        return DataLoader(steps, batch_size=1, shuffle=False, collate_fn=lambda items: {STEP: items[0]})

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LambdaLR:
        """Create the schedule of the learning rate."""
        scheduled: Any = optimizer or self.optimizer
        self.lr_scheduler = LambdaLR(
            scheduled, lambda step: rate_factor(self._schedule, step, num_training_steps, self._warmup)
        )
        return self.lr_scheduler

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Run forward and backward for all micro-batches of a step. Returns this process's part of the loss."""
        model.train()
        step: StepInputs = inputs[STEP]
        device = self.args.device
        self.state.num_input_tokens_seen += step.tokens
        self._seed_dropout()
        self._step_metrics = {name: torch.zeros((), device=device) for name in step.metrics}
        references = [self._reference(model, one) for one in step.micro_batches]
        kl = self._kl(model, step, references)
        total = torch.zeros((), device=device)
        for number, (batch, reference) in enumerate(zip(step.micro_batches, references, strict=True)):
            is_last = number == len(step.micro_batches) - 1
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    loss = self._loss(model, batch, step.totals, reference, kl)
                # Gradients are averaged over processes, and the loss is already divided by the totals of all.
                self.accelerator.backward(loss * self.accelerator.num_processes)
            total += loss.detach()
        for name, value in self._step_metrics.items():
            self._pending_metrics.setdefault(name, []).append(value)
        whole: torch.Tensor = total * self.accelerator.num_processes
        return whole

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Return and log the mean loss per answer token of the held-out rows, as `eval_loss`.

        Each process evaluates every n-th pack, and all of them the same number.
        """
        model: Any = self.model_wrapped
        model.train(False)
        group, packs = self._group, self._validation
        total = 0.0
        for start in range(0, len(packs), group.processes):
            index = start + group.rank
            likelihood = float(self._likelihoods(model, packs[min(index, len(packs) - 1)]).sum())
            total += likelihood if index < len(packs) else 0.0
        (total,) = group.sum([total])
        metrics = {"eval_loss": -total / max(1, sum(len(packed.targets) for packed in packs))}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def resize_micro_batches(self, tokens: int) -> None:
        """Use micro-batches of another size from the next step on."""
        steps: Any = self.train_dataset
        steps.resize(tokens)

    def try_micro_batch(self, rows: Sequence[TokenizedRow]) -> None:
        """Run the forward and the backward pass of rows at once, without an effect on the training."""
        steps: Any = self.train_dataset
        tokens_seen = self.state.num_input_tokens_seen
        try:
            with torch.random.fork_rng():
                self.training_step(self.model_wrapped, {STEP: steps.trial(rows)})
        finally:
            self.forget_gradients()
            self.state.num_input_tokens_seen = tokens_seen

    def vocabulary(self) -> int:
        """Return the number of tokens that the model has embeddings for."""
        model: Any = self.model
        return int(model.get_input_embeddings().num_embeddings)

    def forget_gradients(self) -> None:
        """Drop gradients and metrics that no step has used."""
        self.model_wrapped.zero_grad()
        self._step_metrics.clear()
        self._pending_metrics.clear()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: transformers would count the model's parameters in every step, for a figure that nothing uses."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the metrics, and the means of each objective's metrics since the last call."""
        parts = [float(torch.stack(values).mean()) for values in self._pending_metrics.values()]
        logs |= dict(zip(self._pending_metrics, self._group.sum(parts), strict=True))
        self._pending_metrics.clear()
        super().log(logs, start_time)

    def _seed_dropout(self) -> None:
        """With several processes, make dropout a function of seed, step and process: a resumed run draws the same."""
        if self._group.processes > 1:
            order = self.state.global_step * self._group.processes + self._group.rank
            torch.manual_seed(self.args.seed + 1 + order)

    @torch.no_grad()
    def _likelihoods(self, model: Any, packed: Pack) -> torch.Tensor:
        """Return the log-likelihood of each sequence's answer, (sequences,)."""
        packed = packed.to(self.args.device)

        def within(inside: Inside) -> torch.Tensor:
            return answer_log_probs(inside, packed, plain_head=self._plain_head)

        with self.compute_loss_context_manager():
            sums: torch.Tensor = packed.sums(model(within))
        return sums

    def _reference(self, model: Any, batch: MicroBatch) -> torch.Tensor:
        """Return the log-likelihoods of the judged sequences under the reference."""
        if batch.reference is not None:
            return batch.reference.to(self.args.device)
        judged = batch.judged or batch.judged_filler
        if judged is None:
            return torch.zeros(0, device=self.args.device)
        adapted: PeftModel = self.accelerator.unwrap_model(model)
        with adapted.disable_adapter():
            return self._likelihoods(model, judged)

    def _kl(self, model: Any, step: StepInputs, references: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return KTO's KL term of the whole step, a scalar; 0 with fewer than two judgements."""
        policy, reference = [], []
        for batch, known in zip(step.micro_batches, references, strict=True):
            if batch.mismatched is not None:
                policy.append(self._likelihoods(model, batch.mismatched))
                reference.append(known[-batch.mismatched.sequences :])
            elif batch.mismatched_filler is not None:
                self._likelihoods(model, batch.mismatched_filler)
        if not step.mismatched:
            return torch.zeros((), device=self.args.device)
        moved = (
            torch.cat(policy) - torch.cat(reference) if policy else torch.zeros(1, device=self.args.device)
        )
        if self._group.processes > 1:
            whole: Any = self.accelerator.reduce(moved.sum(), "sum")
            moved = whole / step.mismatched
        kl = kl_estimate(moved, torch.zeros_like(moved))
        self._record("kto/kl", kl / self._group.processes)
        return kl

    def _loss(
        self,
        model: Any,
        batch: MicroBatch,
        totals: StepTotals,
        reference: torch.Tensor,
        kl: torch.Tensor,
    ) -> torch.Tensor:
        """Return a micro-batch's part of the step's loss, a scalar, and record its part of the metrics."""
        batch = replace(batch, packed=batch.packed.to(self.args.device))
        predicted = self._predictions(model, batch)
        if batch.is_filler:
            return 0 * predicted.tokens.sum()
        part = micro_batch_loss(batch, predicted, reference, kl, totals, self._weights)
        for name, value in part.metrics.items():
            self._record(name, value)
        return part.loss

    def _predictions(self, model: Any, batch: MicroBatch) -> Predictions:
        """Return what the model predicts for a micro-batch whose pack is on the device."""
        base = self._base_predictions(model, batch)

        def within(inside: Inside) -> Predictions:
            if self._plain_head:
                return predict(inside, batch, base, self._fused)
            return predict_from_logits(inside, batch, base)

        predicted: Predictions = model(within)
        return predicted

    @torch.no_grad()
    def _base_predictions(self, model: Any, batch: MicroBatch) -> torch.Tensor | None:
        """Return what the base predicts for the tokens of replay: hidden states, or logits without a plain head."""
        replay = batch.replay or batch.replay_filler
        if replay is None:
            return None
        packed = replay.to(self.args.device)
        outputs = answer_states if self._plain_head else answer_logits
        adapted: PeftModel = self.accelerator.unwrap_model(model)
        with adapted.disable_adapter(), self.compute_loss_context_manager():
            predicted: torch.Tensor = model(lambda inside: outputs(inside, packed))
        return predicted if batch.replay is not None else None

    def _record(self, name: str, value: torch.Tensor) -> None:
        """Add a micro-batch's part to a metric of the step."""
        self._step_metrics[name] += value.detach()
