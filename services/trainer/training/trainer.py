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
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer

from services.trainer.training.losses import (
    LossWeights,
    StepTotals,
    answer_log_probs,
    answer_logits,
    answer_states,
    divergence,
    dpo_losses,
    fused_cross_entropy,
    head_of,
    kl_estimate,
    kto_losses,
    linear_divergence,
    linear_log_probs,
)
from services.trainer.training.packing import Pack, pack, pad
from services.trainer.training.process_group import ALONE, ProcessGroup
from services.trainer.training.rows import AnsweredPrompt, TokenizedRow
from services.trainer.training.step_plan import Step, micro_batches, shares_of_processes

Schedule = Literal["linear", "cosine", "constant"]
References: TypeAlias = Mapping[AnsweredPrompt, float]
"""Log-likelihood of answers under the reference, by sequence."""
Packer: TypeAlias = Callable[[Sequence[AnsweredPrompt]], Pack]
STEP: Final = "step"


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
        batch = micro_batch(rows, mismatched, self._packer, references)
        return StepInputs((batch,), StepTotals.of(rows), len(mismatched), sum(row.tokens for row in rows))

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
        groups = [self._groups(share) for share in shares_of_processes(step, self.group.processes)]
        own = [
            micro_batch(group, mismatched, self._packer, self._references)
            for group in groups[self.group.rank]
        ]
        filler = filler_batch(step[0], self._packer)
        own += [filler] * (max(map(len, groups)) - len(own))
        if self._equal_passes:
            own = [
                with_fillers(
                    batch,
                    filler.packed,
                    [row for one in groups for row in (one[number] if number < len(one) else ())],
                    mismatched,
                    known=self._references is not None,
                )
                for number, batch in enumerate(own)
            ]
        return StepInputs(
            tuple(own),
            StepTotals.of(step),
            sum(row in mismatched for row in step),
            sum(row.tokens for row in step),
        )


def micro_batch(
    rows: Sequence[TokenizedRow],
    mismatched: Mapping[TokenizedRow, AnsweredPrompt],
    packer: Packer,
    references: References | None = None,
) -> MicroBatch:
    """Return rows as a micro-batch."""
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


def filler_batch(row: TokenizedRow, packer: Packer) -> MicroBatch:
    """Return a micro-batch without rows, as small as possible: one token that predicts another one of `row`."""
    packed = packer([AnsweredPrompt(row.prompt[:1], row.answer[:1] or row.prompt[:1])])
    empty = micro_batch((), {}, lambda _: packed)
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
        mismatched: As for `micro_batch`.
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


def rate_factor(schedule: Schedule, step: int, steps: int, warmup: int) -> float:
    """Return the share of the peak learning rate at a step: a linear warm-up, then the schedule down to 0."""
    rising = (step + 1) / (warmup + 1)
    remaining = max(0.0, min(1.0, (steps - step) / max(1, steps - warmup)))
    match schedule:
        case "linear":
            falling = remaining
        case "cosine":
            falling = (1 - math.cos(math.pi * remaining)) / 2
        case "constant":
            falling = 1.0
    return min(1.0, rising, falling)


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
        if self._group.processes > 1:
            # What dropout draws is a function of seed, step and process, so a resumed run draws the same.
            order = self.state.global_step * self._group.processes + self._group.rank
            torch.manual_seed(self.args.seed + 1 + order)
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

    @torch.no_grad()
    def _likelihoods(self, model: Any, packed: Pack) -> torch.Tensor:
        """Return the log-likelihood of each sequence's answer, (sequences,)."""
        packed = packed.to(self.args.device)

        def predict(inside: Inside) -> torch.Tensor:
            return answer_log_probs(inside, packed, plain_head=self._plain_head)

        with self.compute_loss_context_manager():
            sums: torch.Tensor = packed.sums(model(predict))
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
        """Return a micro-batch's part of the step's loss, a scalar."""
        weights = self._weights
        packed = batch.packed.to(self.args.device)
        sft, replay, tokens = self._predictions(model, batch, packed)
        answers = packed.sums(tokens)[batch.answers :]
        loss = torch.zeros((), device=self.args.device)
        answer_tokens = totals.sft_tokens + totals.replay_tokens
        if batch.is_filler:
            loss = 0 * tokens.sum()
        if batch.sft_targets:
            self._record("sft/loss", sft / totals.sft_tokens)
            loss = loss + sft / answer_tokens
        if batch.replay is not None:
            self._record("replay/kl", replay / totals.replay_tokens)
            loss = loss + weights.replay_kl * replay / answer_tokens
        if batch.judgements:
            count = batch.judgements
            liked = batch.liked.to(tokens.device)
            kto = kto_losses(answers[:count], reference[:count], liked, kl, weights).sum() / totals.judgements
            reward = weights.kto_beta * torch.where(liked, 1.0, -1.0) * (answers[:count] - reference[:count])
            self._record("kto/loss", kto)
            self._record("kto/margin", reward.sum() / totals.judgements)
            loss = loss + weights.preference * kto
        if batch.pairs:
            chosen = slice(batch.judgements, batch.judgements + batch.pairs)
            rejected = slice(chosen.stop, chosen.stop + batch.pairs)
            ratios = answers - reference[: len(answers)]
            losses = dpo_losses(
                answers[chosen], answers[rejected], reference[chosen], reference[rejected], weights.dpo_beta
            )
            nll = -tokens[batch.chosen_targets].sum() / totals.chosen_tokens
            dpo = losses.sum() / totals.pairs + weights.dpo_nll * nll
            self._record("dpo/loss", dpo)
            self._record(
                "dpo/margin", weights.dpo_beta * (ratios[chosen] - ratios[rejected]).sum() / totals.pairs
            )
            loss = loss + weights.preference * dpo
        return loss

    def _predictions(
        self, model: Any, batch: MicroBatch, packed: Pack
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the summed losses of SFT and of replay, and the log-probabilities of all targets, (targets,).

        With a fused kernel, those of the SFT rows' targets are 0: it does not compute them. Those of replay are 0 if
        they are not computed either.
        """
        count, replay = batch.sft_targets, batch.replay_targets
        base = self._base_predictions(model, batch)

        def predict(inside: Inside) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            if not self._plain_head:
                logits = answer_logits(inside, packed)
                tokens = -cross_entropy(logits, packed.targets, reduction="none")
                kl = tokens.new_zeros(()) if base is None else divergence(logits[replay], base).sum()
                return -tokens[:count].sum(), kl, tokens
            head, hidden = head_of(inside), answer_states(inside, packed)
            kl = hidden.new_zeros(())
            if base is not None:
                kl = linear_divergence(hidden[replay], base, head.weight, head.bias).sum()
            others = linear_log_probs(
                hidden[replay.stop :], head.weight, head.bias, packed.targets[replay.stop :]
            )
            before = others.new_zeros(replay.stop)
            if self._fused is None or not count:
                answers = linear_log_probs(hidden[:count], head.weight, head.bias, packed.targets[:count])
                return -answers.sum(), kl, torch.cat([answers, before[count:], others])
            sft = self._fused(head.weight, hidden[:count], packed.targets[:count], head.bias)
            return sft, kl, torch.cat([before, others])

        predicted: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = model(predict)
        return predicted

    @torch.no_grad()
    def _base_predictions(self, model: Any, batch: MicroBatch) -> torch.Tensor | None:
        """Return what the base predicts for the tokens of replay: hidden states, or logits without a plain head."""
        replay = batch.replay or batch.replay_filler
        if replay is None:
            return None
        packed = replay.to(self.args.device)
        predict = answer_states if self._plain_head else answer_logits
        adapted: PeftModel = self.accelerator.unwrap_model(model)
        with adapted.disable_adapter(), self.compute_loss_context_manager():
            predicted: torch.Tensor = model(lambda inside: predict(inside, packed))
        return predicted if batch.replay is not None else None

    def _record(self, name: str, value: torch.Tensor) -> None:
        """Add a micro-batch's part to a metric of the step."""
        self._step_metrics[name] += value.detach()
