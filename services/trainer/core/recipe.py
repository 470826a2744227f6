"""How a run trains and is judged, and when it starts: values frozen into the run's row."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from services.trainer.core.quiet_hours import QuietHours

Mode = Literal["train", "export"]
Method = Literal["lora", "full"]
WantedDtype = Literal["auto", "bfloat16", "float32"]
SHORTER_MARGIN: Final = 0.4
"""By so much a version may be less likely than stable to go on where the base went on."""
CommentMode = Literal["hold", "append", "revise"]
"""What becomes of a comment that is not vague: held with its reason, appended to the answer (`appended`), or followed
by a stronger model (`comment_rewriter.py`)."""

KTO_LEAST: Final = 50
"""Of the rarer label. With fewer, KTO's few rows of one side are seen again and again, and weigh much each."""


class Thresholds(BaseModel):
    """When a run starts by itself (`trigger.py`)."""

    model_config = ConfigDict(frozen=True)

    examples: int = 200
    users: int = 20
    aged_examples: int = 50
    age_s: float = 86_400.0
    interval_s: float = 0.0
    quiet: QuietHours | None = None
    time_zone: str = "UTC"


class Recipe(BaseModel):
    """How a run trains and is judged. Frozen into the run's row, so that a resumed run is the same run."""

    model_config = ConfigDict(frozen=True)

    rank: int = 16
    learning_rate: float = 1.5e-3
    epochs: float = 4.0
    batch_size: int = 8
    max_tokens: int = 512
    seed: int = 20
    checkpoint_steps: int = 20
    replay_prompts: int = 320
    replay_share: float = 0.05
    replay_new_tokens: int = 40
    gate_items: int = 30
    gate_new_tokens: int = 40
    gate_eval_prompts: int = 600
    gate_safety_prompts: int = 60
    gate_shorter: float = SHORTER_MARGIN
    comment_mode: CommentMode = "hold"
    reviser_model: str = ""
    kto_least: int = KTO_LEAST
    kto_beta: float = 0.1
    dpo_beta: float = 0.1
    dpo_nll: float = 1.0
    preference_rate: float = 0.1
    method: Method = "lora"
    dtype: WantedDtype = "auto"
    threads: int = 1
