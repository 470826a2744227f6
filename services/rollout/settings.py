"""The rollout's settings."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.settings import Settings


class RolloutSettings(Settings):
    """`LOOPWRIGHT_ROLLOUT_...` for what is its own."""

    model_config = SettingsConfigDict(
        env_prefix="LOOPWRIGHT_", extra="ignore", frozen=True, populate_by_name=True
    )

    rollout_port: int = Field(8003, ge=0, le=65535)
