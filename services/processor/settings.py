"""The processor's settings."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.processor.core.batches import BatchLimits
from shared.settings import Settings
from shared.stream.state_store import DEFAULT_CACHE_MB, StoreKind
from shared.topics import BATCH_BYTES


class ProcessorSettings(Settings):
    """`LOOPWRIGHT_PROCESSOR_...` for what is its own."""

    model_config = SettingsConfigDict(env_prefix="LOOPWRIGHT_PROCESSOR_")

    port: int = Field(8002, ge=0, le=65535)
    instance: str = Field("0", pattern=r"^[A-Za-z0-9_-]+$", description="stable name among its processes")
    batch_examples: int = Field(64, ge=1, le=64)
    batch_bytes: int = Field(BATCH_BYTES, ge=1024, le=BATCH_BYTES)
    batch_age_s: float = Field(30.0, gt=0, description="a quiet partition cuts its open batch after so long")

    store: StoreKind = Field(
        "rocksdb",
        description="where its state lies: under DATA_DIR, or in memory and read from Kafka at each start",
    )
    store_cache_mb: int = Field(
        DEFAULT_CACHE_MB,
        ge=8,
        le=65_536,
        description="what the rocksdb stores keep of what they read, all partitions together",
    )
    live_view: bool = Field(
        True, description="keeps the sums that /tallies shows; off saves the memory and time that they take"
    )

    @property
    def limits(self) -> BatchLimits:
        """When batches are cut."""
        return BatchLimits(
            self.batch_examples,
            self.batch_bytes,
            round(self.batch_age_s * 1000),
        )
