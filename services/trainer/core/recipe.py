"""How a run trains and is evaluated, and when it starts."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from services.trainer.core.quiet_hours import QuietHours

Mode = Literal["train", "export"]
"""export: write a dataset whenever a run would start, and never train."""
Method = Literal["lora", "full"]
WantedDtype = Literal["auto", "bfloat16", "float32"]
Schedule = Literal["linear", "cosine", "constant"]
Optimizer = Literal["adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit"]
SHORTER_MARGIN: Final = 0.4
"""How much less likely than stable a version may be to continue where the base continued."""
CommentMode = Literal["hold", "append", "revise"]
"""How a comment that is not vague trains: not at all (quarantined), appended to the answer, or as a rewrite of the
answer by a stronger model (`dataset/comment_rewriter.py`)."""
LONGEST_ROW: Final = 4096
"""Longest row in tokens by default, for bases with a context at least as long."""
GATE_TOKENS: Final = (40, 400)
"""Bounds of the longest answer at the gate in tokens, where it is derived."""
KTO_LEAST: Final = 50
"""Minimum number of rows with the rarer label. With fewer, KTO repeats the few rows of one side too often."""
CHANGED_FACT_USERS: Final = 3
MAX_DRAWS: Final = 6
"""Means of up to six answers are exact in the test of a change (`gate/statistics.py`)."""
VOTE_HALF_LIFE_DAYS: Final = 30.0


class Thresholds(BaseModel):
    """When a run starts without a command (`trigger.py`)."""

    model_config = ConfigDict(frozen=True)

    examples: int = 200
    users: int = 20
    aged_examples: int = 50
    age_s: float = 86_400.0
    interval_s: float = 0.0
    grow_percent: float = 0.0
    """How much must be new, in percent of what the last run trained on; `examples` is the minimum."""
    gate_items: int = 0
    """Items that the gate of a run without a command must be able to have."""
    erasure_interval_s: float = 86_400.0
    """Minimum time between two runs that replace a stable version after an erasure."""
    quiet: QuietHours | None = None
    time_zone: str = "UTC"


class Recipe(BaseModel):
    """How a run trains and is evaluated. Frozen into the run's row, so a resumed run is the same run.

    `TrainerSettings` inherits these fields, so each is declared once and set by `LOOPWRIGHT_TRAINER_<NAME>`.
    """

    model_config = ConfigDict(frozen=True)

    method: Method = Field(
        "lora",
        description="What is trained. lora: a LoRA adapter on the base. full: all weights of the base in fp32; "
        "inference cannot serve those, so SERVE_ELSEWHERE must be set.",
    )
    rank: int = Field(16, ge=1, le=512, description="LoRA rank.")
    alpha: int | None = Field(None, ge=1, description="LoRA alpha. Default: twice the rank.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the inputs of the adapter's layers.")
    lora_targets: str = Field(
        "all-linear",
        description="Layers that get an adapter: all-linear, or names of modules separated by commas, for example "
        "q_proj,v_proj.",
    )
    rslora: bool = Field(
        False, description="Scale the adapter by alpha / sqrt(rank) instead of alpha / rank."
    )
    learning_rate: float | None = Field(
        None, gt=0, description="Peak learning rate. Default: from METHOD and the width of the base."
    )
    schedule: Schedule = Field(
        "linear", description="How the learning rate falls after the warm-up: linear, cosine or constant."
    )
    warmup_steps: int | None = Field(
        None,
        ge=0,
        description="Steps over which the learning rate rises. Default: a tenth of the run, at most 5.",
    )
    optimizer: Optimizer = Field(
        "adamw_torch_fused",
        description="adamw_torch_fused, or adamw_8bit and paged_adamw_8bit of bitsandbytes, which need less memory.",
    )
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    early_stopping: int = Field(
        0,
        ge=0,
        description="Evaluations without a lower loss on held-out users' rows after which training stops; 0: never. "
        "Runs of less than 200 steps are not evaluated.",
    )
    average_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of the steps, at the end of a run, whose mean weights become the version's. 0: those of the "
        "last step. METHOD=full always uses the last ones.",
    )
    max_grad_norm: float = Field(
        1.0, ge=0, description="Norm above which the gradient of a step is scaled down; 0 never scales."
    )
    epochs: float = Field(6.0, gt=0, description="Passes over the training rows.")
    tokens_per_step: int | None = Field(
        None,
        ge=1,
        description="Tokens per optimiser step, on average. Default: those of 8 rows, and more as the data grow.",
    )
    micro_batch_tokens: int | None = Field(
        None,
        ge=1,
        description="Most tokens that go through the model at once. Default: from memory and the base's shape.",
    )
    max_tokens: int | None = Field(
        None,
        ge=16,
        description="Longest training row in tokens. Longer examples are quarantined. Default: the base's context, "
        "at most 4096.",
    )
    gradient_checkpointing: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Compute activations again in the backward pass. auto: if the longest row needs it.",
    )
    quantization: Literal["auto", "none", "4bit"] = Field(
        "auto",
        description="Weights of the base while an adapter trains. 4bit: NF4 of bitsandbytes, on a GPU. auto: 4bit if "
        "the GPU cannot hold the base otherwise.",
    )
    fused_kernels: bool = Field(
        True,
        description="Use Liger's fused kernels for norms, rotary embeddings, MLPs and the loss on a GPU. false: if a "
        "base does not train with them.",
    )
    sharding: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Divide the base's layers among the processes of a run (FSDP2) while an adapter trains. auto: if "
        "one GPU cannot hold the base, and all together can.",
    )
    token_budget: int = Field(
        4_000_000,
        ge=0,
        description="Most tokens of a run's training rows, each row once: half for the newest rows, half shared by all "
        "questions. 0: no limit.",
    )
    seed: int = Field(20, description="Seed of a run's data order and initial adapter weights.")
    checkpoint_minutes: float = Field(5.0, gt=0, description="Time between two checkpoints.")
    checkpoint_steps: int | None = Field(
        None,
        ge=1,
        description="Optimiser steps between two checkpoints, if that is sooner. Default: by time only.",
    )
    dtype: WantedDtype = Field(
        "auto",
        description="Type that a run computes in. auto: on a GPU bfloat16, or float16 if the GPU lacks bfloat16 units; "
        "on a CPU float32 if it multiplies that faster and memory is ample, else bfloat16.",
    )
    threads: int = Field(1, ge=0, description="Threads that torch uses in a run.")

    replay_prompts: int = Field(
        400,
        ge=1,
        description="General prompts whose base answers are mixed in, spread over the epochs. More are used, and then "
        "each up to once per epoch, if REPLAY_SHARE requires it.",
    )
    replay_share: float = Field(
        0.25, ge=0, le=0.9, description="Minimum share of trained tokens that is replay data."
    )
    replay_kl: float = Field(
        2.0,
        ge=0,
        description="Weight of the divergence from the base's predictions for its answers to general prompts, relative "
        "to an equal number of answer tokens, and to all corrections if these have more. With 0, and with METHOD=full, "
        "these answers train like corrections.",
    )
    replay_new_tokens: int = Field(
        40, ge=4, description="Longest answer of the base to a general prompt, in tokens."
    )

    comment_mode: CommentMode = Field(
        "hold",
        description="How comments train. hold: they do not. append: on response + ' ' + comment. "
        "revise: on the answer as rewritten by a stronger model (REVISER_URL).",
    )
    reviser_model: str = Field("", description="Name of the model that rewrites answers from comments.")
    changed_fact_users: int = Field(
        CHANGED_FACT_USERS,
        ge=2,
        description="Minimum number of users who say something new recently for it to replace what more users said "
        "long ago. Recent: within one VOTE_HALF_LIFE_DAYS of the newest vote.",
    )
    vote_half_life_days: float = Field(
        VOTE_HALF_LIFE_DAYS,
        gt=0,
        description="Days in which a vote about a fact loses half of its weight against newer votes.",
    )
    kto_least: int = Field(
        KTO_LEAST,
        ge=1,
        description="Minimum number of rows with the rarer label for KTO. With fewer, liked answers train by SFT.",
    )
    kto_beta: float = Field(0.1, gt=0, description="Beta of KTO. A higher value stays closer to the base.")
    dpo_beta: float = Field(0.1, gt=0, description="Beta of DPO. A higher value stays closer to the base.")
    dpo_nll: float = Field(
        1.0, ge=0, description="Weight of the chosen answer's negative log-likelihood in the DPO loss."
    )
    preference_weight: float = Field(
        1.0, gt=0, description="Weight of the KTO and DPO losses in a step, relative to the SFT loss."
    )

    gate_items: int = Field(
        30, ge=1, description="Minimum number of held-out items. With fewer, the verdict is inconclusive."
    )
    gate_control: Literal["auto", "always", "off"] = Field(
        "auto",
        description="Compare a candidate with a control too: trained like it, on permuted answers. It takes as long as "
        "training, and later runs use it again. auto: if the candidate passes otherwise. off: a version may pass by "
        "chance, as docs/decisions/gate.md says.",
    )
    gate_new_tokens: int | None = Field(
        None,
        ge=4,
        description="Longest answer to a held-out or golden question at the gate, in tokens. Default: the 95th "
        "percentile of the users' own answers, from 40 to 400.",
    )
    gate_eval_prompts: int = Field(
        600,
        ge=1,
        description="Shipped general questions at the gate. With fewer, a loss of general ability is noticed later.",
    )
    gate_safety_prompts: int | None = Field(
        None,
        ge=1,
        description="Shipped safety prompts at the gate. Default: all; on a CPU 60 for a base of more than 500 "
        "million weights.",
    )
    gate_skill_prompts: int | None = Field(
        None,
        ge=1,
        description="Shipped questions of each set of general skills at the gate. Default: all on a GPU; on a CPU 40, "
        "and 20 for a base of more than 500 million weights.",
    )
    gate_draws: int | None = Field(
        None,
        ge=1,
        le=MAX_DRAWS,
        description="Answers to each shipped general question and harmful request at the gate. They are sampled, and "
        "chance has less weight in the mean of several. Default: 3; on a CPU 1 for a base of more than 500 million "
        "weights.",
    )
    gate_temperature: float = Field(
        0.0,
        ge=0,
        le=2,
        description="Temperature of the answers at the gate. 0: greedy, which has the least noise. With that of "
        "production, answers vary as users see it; versions share the random numbers of each prompt.",
    )
    gate_adapters: Literal["auto", "merged", "separate"] = Field(
        "auto",
        description="How versions compute at the gate. merged: the adapter is added to the base's weights, as embedded "
        "inference does; each version takes as much memory as the layers that it changes. separate: next to them, as "
        "vLLM does. In bfloat16 they round differently. auto: merged on a CPU, separate on a GPU.",
    )
    gate_lm_eval: str = Field(
        "",
        pattern=r"^(?:[\w./-]+(?:,[\w./-]+)*)?$",
        description="Tasks of lm-evaluation-harness that the gate runs as well, separated by commas, for example "
        "ifeval,gsm8k. Needs the package lm_eval in the trainer's environment, and its data sets.",
    )
    gate_shorter: float = Field(
        SHORTER_MARGIN,
        ge=0,
        le=1,
        description="How much less likely than stable a version may be to continue a long general answer. "
        "Set 1 if your users want short answers.",
    )

    @property
    def gate_answer_tokens(self) -> int:
        """Return the longest answer at the gate in tokens; the least possible one before it is derived."""
        return self.gate_new_tokens or GATE_TOKENS[0]

    @property
    def lm_eval_tasks(self) -> tuple[str, ...]:
        """Names of the tasks in `gate_lm_eval`."""
        return tuple(task for task in self.gate_lm_eval.split(",") if task)

    @property
    def largest_max_tokens(self) -> int:
        """Return the longest training row in tokens, for a base whose context is not known."""
        return self.max_tokens or LONGEST_ROW
