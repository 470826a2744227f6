"""The rollout's settings."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.settings import Settings
from shared.stream.state_store import StoreKind


class RolloutSettings(Settings):
    """`LOOPWRIGHT_ROLLOUT_...` for what is its own."""

    model_config = SettingsConfigDict(env_prefix="LOOPWRIGHT_ROLLOUT_")

    port: int = Field(8003, ge=0, le=65535)
    store: StoreKind = Field(
        "rocksdb",
        description="where its state lies: under DATA_DIR, or in memory and read from Kafka at each start",
    )
