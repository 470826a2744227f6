"""Settings of the rollout: `LOOPWRIGHT_ROLLOUT_*`, in addition to the common ones."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.rollout.core.policy import CanaryPolicy, PolicyName
from shared.stream.instance import AUTO, INSTANCE_PATTERN
from shared.stream.settings import StreamSettings
from shared.stream.state_store import StoreKind

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS


class RolloutSettings(StreamSettings):
    """Settings of the rollout."""

    model_config = SettingsConfigDict(env_prefix="LOOPWRIGHT_ROLLOUT_")

    port: int = Field(8003, ge=0, le=65535, description="Port of the web views.")
    instance: str = Field(
        AUTO,
        pattern=INSTANCE_PATTERN,
        description="Name of this process among those that share the data folder, or `auto`: the lowest free number. "
        "Its stores are named after it.",
    )
    store: StoreKind = Field(
        "rocksdb",
        description="Where the state is kept: `rocksdb` in the data folder, or `memory`, which is read from Kafka at "
        "each start.",
    )
    policy: PolicyName = Field(
        "canary",
        description="How a version that passed its gate takes over: `canary` tries it on 5 %, then on 25 % of the "
        "users first, and needs feedback of many users; `direct` lets it serve everyone at once.",
    )
    canary_feedback_users: int = Field(
        1_000,
        ge=0,
        description="A version whose training data has feedback of fewer users takes over at once, because so few "
        "could not decide about a canary. 0 tries every version.",
    )
    canary_dwell_minutes: float = Field(
        60, ge=0, le=30 * 24 * 60, description="Shortest time of a canary in each step."
    )
    canary_settle_seconds: float = Field(
        300,
        ge=0,
        le=24 * 3600,
        description="Time at the beginning of a step of which no response counts, because replicas still load the "
        "version.",
    )
    canary_min_users: int = Field(
        30,
        ge=1,
        le=100_000,
        description="Fewest users with feedback that a canary, and the stable version, need in each step.",
    )
    canary_margin: float = Field(
        0.05,
        gt=0,
        le=0.5,
        description="Largest loss of users' satisfaction, from 0 to 1, with which a canary still takes over. Half "
        "of it needs four times as many users.",
    )
    canary_alpha: float = Field(
        0.05,
        gt=0,
        le=0.5,
        description="Probability of an error: that a canary that is as good is rolled back by itself, and that one "
        "that is worse by more than the margin takes over.",
    )
    canary_deadline_hours: float = Field(
        14 * 24, gt=0, le=28 * 24, description="Time after which an inconclusive canary is paused."
    )
    canary_cooldown_hours: float = Field(
        24, ge=0, le=30 * 24, description="Time after the rollback of a canary in which no other one starts."
    )

    @property
    def canary_policy(self) -> CanaryPolicy:
        """The policy of these settings."""
        return CanaryPolicy(
            name=self.policy,
            feedback_users=self.canary_feedback_users,
            dwell_ms=round(self.canary_dwell_minutes * MINUTE_MS),
            settle_ms=round(self.canary_settle_seconds * 1000),
            min_users=self.canary_min_users,
            margin=self.canary_margin,
            alpha=self.canary_alpha,
            deadline_ms=round(self.canary_deadline_hours * HOUR_MS),
            cooldown_ms=round(self.canary_cooldown_hours * HOUR_MS),
        )
