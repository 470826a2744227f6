"""Settings of the rollout: `LOOPWRIGHT_ROLLOUT_*`, in addition to the common ones."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.stream.instance import AUTO, INSTANCE_PATTERN
from shared.stream.settings import StreamSettings
from shared.stream.state_store import StoreKind


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
