"""What a run trains with: the recipe, with every value that it leaves open derived from base, hardware and data. Pure.

A value that is set stays as it is. The derived ones are recorded in the run's folder, so a resumed run keeps them, and
printed in the model card.

| value | derived from |
| --- | --- |
| learning rate | method and width of the base: wider models need less |
| longest row | context of the base |
| tokens per step | number and size of the rows: 8 rows, and more as the data grow |
| tokens per micro-batch | memory, and activations per token; on a GPU, measured before the first step |
| gradient checkpointing | whether the longest row fits without |
| 4-bit weights | whether the weights fit without |
| sharding | whether the weights fit one GPU, or all of them together |
"""

from __future__ import annotations

import math
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from services.trainer.core.hardware import Quantization
from services.trainer.core.recipe import Optimizer, Recipe, Schedule

REFERENCE_WIDTH: Final = 576
REFERENCE_RATE: Final = 2e-3
"""Learning rate of an adapter on a base of `REFERENCE_WIDTH`, measured (docs/decisions/training-recipe.md)."""
WIDTH_EXPONENT: Final = 1.16
"""Gives 2.1e-4 for a width of 4096, in the range that is common for adapters of such bases."""
FULL_RATE: Final = 1 / 15
"""Learning rate with METHOD=full, relative to that of an adapter."""
ROWS_PER_STEP: Final = 8
REFERENCE_ROWS: Final = 920
"""Trained rows of a run for which `ROWS_PER_STEP` was measured. With more, rows per step and steps both grow."""
MAX_TOKENS_PER_STEP: Final = 32_768
WARMUP_STEPS: Final = 5
"""Steps over which the learning rate rises, or a tenth of the run if that is shorter."""
VALIDATIONS: Final = 10
"""Evaluations of a run's loss on held-out users' rows."""
MIN_VALIDATED_STEPS: Final = 200
"""Steps of the shortest run that is evaluated: evaluations cost time, and shorter runs do not overfit."""
USABLE_MEMORY: Final = 0.7
"""Share of the memory that weights and activations may take by estimate."""
MIN_MICRO_BATCH: Final = 64
QUANTIZED_BYTES: Final = 0.6
"""Bytes per weight of a 4-bit base, with its scales and the layers that are not quantised."""


class BaseShape(BaseModel):
    """Dimensions of a base model, from its `config.json`, and the number of its weights."""

    model_config = ConfigDict(frozen=True)

    hidden: int
    intermediate: int
    layers: int
    vocabulary: int
    context: int
    """Tokens of the longest conversation, or 0 if the configuration does not say."""
    weights: int


class Machine(BaseModel):
    """Where a run computes."""

    model_config = ConfigDict(frozen=True)

    device: Literal["cpu", "cuda"]
    memory: int
    """Bytes that the run may use: of the GPU, or of the container."""
    weight_bytes: int
    """Bytes per weight in the run's data type."""
    processes: int = 1
    """Processes that train together, each with this memory."""


class DataSize(BaseModel):
    """Size of what a run trains, all epochs and replay included."""

    model_config = ConfigDict(frozen=True)

    rows: int
    tokens: int
    longest: int
    """Tokens of the largest row: of a preference, both answers with their prompts."""


class ResolvedRecipe(BaseModel):
    """The values that a run trains with. Frozen into the run's folder when training starts."""

    model_config = ConfigDict(frozen=True)

    method: Literal["lora", "full"]
    rank: int
    alpha: int
    lora_dropout: float
    rslora: bool
    lora_targets: str
    learning_rate: float
    schedule: Schedule
    warmup_steps: int
    optimizer: Optimizer
    weight_decay: float
    max_grad_norm: float
    average_share: float
    """Share of the steps, at the end, whose mean weights become the version's."""
    epochs: float
    validation_steps: int
    """Steps between two evaluations of the loss on held-out users' rows; 0 for none."""
    early_stopping: int
    seed: int
    max_tokens: int
    tokens_per_step: int
    micro_batch_tokens: int
    micro_batch_limit: int | None
    """Most tokens of a micro-batch whose size is measured before the first step; None: it is not measured."""
    gradient_checkpointing: bool
    quantization: Quantization
    fused_kernels: bool
    kto_beta: float
    dpo_beta: float
    dpo_nll: float
    preference_weight: float
    replay_kl: float
    """0 if the base's answers train like corrections."""
    checkpoint_minutes: float
    checkpoint_steps: int | None
    processes: int
    """Processes that train together. Checkpoints resume with the same number only."""
    sharded: bool
    """Each process holds a part of the base's layers (FSDP2), not all of them."""


def longest_row(recipe: Recipe, context: int) -> int:
    """Return the longest row that trains, in tokens. `context`: the base's, or 0 if unknown."""
    longest = recipe.largest_max_tokens
    return min(context, longest) if context and recipe.max_tokens is None else longest


def learning_rate(recipe: Recipe, hidden: int) -> float:
    """Return the peak learning rate for a base with hidden states of width `hidden`, at most `REFERENCE_RATE`."""
    if recipe.learning_rate is not None:
        return recipe.learning_rate
    rate = REFERENCE_RATE * min(1.0, REFERENCE_WIDTH / hidden) ** WIDTH_EXPONENT
    return float(f"{rate * (FULL_RATE if recipe.method == 'full' else 1):.3g}")


def tokens_per_step(recipe: Recipe, data: DataSize) -> int:
    """Return the tokens of an optimiser step: those of 8 rows, times the root of how much more data there is."""
    if recipe.tokens_per_step is not None:
        return recipe.tokens_per_step
    least = ROWS_PER_STEP * data.tokens / max(1, data.rows)
    grown = least * math.sqrt(data.rows / REFERENCE_ROWS)
    return max(1, round(max(least, min(grown, MAX_TOKENS_PER_STEP))))


def replay_weight(recipe: Recipe) -> float:
    """Return the weight of the divergence from the base. It needs the base, which METHOD=full changes."""
    return recipe.replay_kl if recipe.method == "lora" else 0.0


def replay_token_weight(replay_kl: float, sft_tokens: int, replay_tokens: int) -> float:
    """Return the weight of the divergence at a replay token.

    A run has about as much replay however much feedback it trains. So where corrections have more answer tokens, each
    replay token counts for more, and all of them together weigh `replay_kl` times as much as all corrections.

    Args:
        replay_kl: Setting `REPLAY_KL`.
        sft_tokens: Answer tokens of SFT rows in the whole run.
        replay_tokens: Tokens of the base's answers in the whole run.

    """
    return replay_kl * max(1.0, sft_tokens / replay_tokens) if replay_tokens else replay_kl


def activation_bytes(base: BaseShape, weight_bytes: int, *, checkpointed: bool) -> int:
    """Return the estimated bytes per token that the forward pass keeps for the backward pass.

    Per layer: inputs of norms, projections and attention, and the gated products of the MLP. With gradient
    checkpointing each layer keeps its input only, and one layer at a time is computed again.
    """
    layer = (16 * base.hidden + 6 * base.intermediate) * weight_bytes
    if checkpointed:
        return base.layers * base.hidden * weight_bytes + layer
    return base.layers * layer


def resolve(recipe: Recipe, base: BaseShape, machine: Machine, data: DataSize) -> ResolvedRecipe:
    """Return the values that a run trains with."""
    sharded = wants_sharding(recipe, base, machine)
    quantization = base_quantization(recipe, base, machine)
    per_weight = machine.weight_bytes if quantization == "none" else QUANTIZED_BYTES
    if sharded:
        per_weight /= machine.processes
    if recipe.method == "full":
        per_weight = 16  # fp32 weights, gradients and two moments
    free = max(0.0, USABLE_MEMORY * machine.memory - per_weight * base.weights)
    step = tokens_per_step(recipe, data)
    plain = activation_bytes(base, machine.weight_bytes, checkpointed=False)
    match recipe.gradient_checkpointing:
        case "auto":
            checkpointed = free < plain * max(data.longest, MIN_MICRO_BATCH)
        case chosen:
            checkpointed = chosen == "on"
    per_token = activation_bytes(base, machine.weight_bytes, checkpointed=checkpointed)
    micro_batch = recipe.micro_batch_tokens or max(MIN_MICRO_BATCH, min(2 * step, int(free / per_token)))
    measured = machine.device == "cuda" and recipe.micro_batch_tokens is None
    steps = max(1, round(data.tokens / step))
    return ResolvedRecipe(
        method=recipe.method,
        rank=recipe.rank,
        alpha=2 * recipe.rank if recipe.alpha is None else recipe.alpha,
        lora_dropout=recipe.lora_dropout,
        rslora=recipe.rslora,
        lora_targets=recipe.lora_targets,
        learning_rate=learning_rate(recipe, base.hidden),
        schedule=recipe.schedule,
        warmup_steps=max(1, min(WARMUP_STEPS, steps // 10))
        if recipe.warmup_steps is None
        else recipe.warmup_steps,
        optimizer=recipe.optimizer,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        average_share=recipe.average_share if recipe.method == "lora" else 0.0,
        epochs=recipe.epochs,
        validation_steps=steps // VALIDATIONS if steps >= MIN_VALIDATED_STEPS else 0,
        early_stopping=recipe.early_stopping,
        seed=recipe.seed,
        max_tokens=longest_row(recipe, base.context),
        tokens_per_step=step,
        micro_batch_tokens=micro_batch,
        micro_batch_limit=max(micro_batch, 2 * step) if measured else None,
        gradient_checkpointing=checkpointed,
        quantization=quantization,
        fused_kernels=recipe.fused_kernels,
        kto_beta=recipe.kto_beta,
        dpo_beta=recipe.dpo_beta,
        dpo_nll=recipe.dpo_nll,
        preference_weight=recipe.preference_weight,
        replay_kl=replay_weight(recipe),
        checkpoint_minutes=recipe.checkpoint_minutes,
        checkpoint_steps=recipe.checkpoint_steps,
        processes=machine.processes,
        sharded=sharded,
    )


def base_quantization(recipe: Recipe, base: BaseShape, machine: Machine) -> Quantization:
    """Return how a run loads the weights of the base, to train and to evaluate."""
    wanted = wants_quantization(recipe, base, machine) and not wants_sharding(recipe, base, machine)
    return "4bit" if wanted else "none"


def wants_sharding(recipe: Recipe, base: BaseShape, machine: Machine) -> bool:
    """Return whether several processes divide the base: if asked, or if only all GPUs together can hold it.

    A base that is small enough in 4 bits, but not otherwise, is divided nevertheless if that keeps its precision.
    """
    if machine.processes == 1 or recipe.method == "full" or recipe.quantization == "4bit":
        return False
    if recipe.sharding != "auto":
        return recipe.sharding == "on"
    size, usable = machine.weight_bytes * base.weights, USABLE_MEMORY * machine.memory
    together = size / machine.processes <= usable or recipe.quantization == "none"
    return machine.device == "cuda" and size > usable and together


def wants_quantization(recipe: Recipe, base: BaseShape, machine: Machine) -> bool:
    """Return whether the base is loaded with 4-bit weights: if asked, or if a GPU cannot hold it otherwise."""
    if recipe.quantization != "auto":
        return recipe.quantization == "4bit"
    too_large = machine.weight_bytes * base.weights > USABLE_MEMORY * machine.memory
    return machine.device == "cuda" and recipe.method == "lora" and too_large
