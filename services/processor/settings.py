"""Settings of the processor: `LOOPWRIGHT_PROCESSOR_*`, in addition to the common ones."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.processor.core.batches import BatchLimits
from shared.stream.instance import AUTO, INSTANCE_PATTERN
from shared.stream.settings import StreamSettings
from shared.stream.state_store import DEFAULT_CACHE_MB, StoreKind
from shared.topics import BATCH_BYTES


class ProcessorSettings(StreamSettings):
    """Settings of one processor process."""

    model_config = SettingsConfigDict(env_prefix="LOOPWRIGHT_PROCESSOR_")

    port: int = Field(8002, ge=0, le=65535, description="Port of the web views.")
    instance: str = Field(
        AUTO,
        pattern=INSTANCE_PATTERN,
        description="Name of this process among those that share the data folder, or `auto`: the lowest free number. "
        "Its stores are named after it.",
    )
    workers: int = Field(
        1, ge=1, le=64, description="Processes that this command runs on this host; also `--workers`."
    )
    worker_port: int = Field(
        8102,
        ge=1,
        le=65_535,
        description="Port of the second worker's web views. The first has `port`; further ones follow this number.",
    )
    batch_examples: int = Field(64, ge=1, le=64, description="Examples at which a batch is cut.")
    batch_bytes: int = Field(
        BATCH_BYTES, ge=1024, le=BATCH_BYTES, description="Size in bytes that no batch exceeds."
    )
    batch_age_s: float = Field(
        30.0, gt=0, description="Seconds after which an open batch is cut although it is not full."
    )
    store: StoreKind = Field(
        "rocksdb",
        description="Where the state is kept: `rocksdb` in the data folder, or `memory`, which is read from Kafka at "
        "each start.",
    )
    store_cache_mb: int = Field(
        DEFAULT_CACHE_MB,
        ge=8,
        le=65_536,
        description="Size of the RocksDB read cache in MB, shared by all partitions.",
    )
    live_view: bool = Field(
        True, description="Keep the sums that `/tallies` shows. Off, this saves their memory and CPU time."
    )

    @property
    def limits(self) -> BatchLimits:
        """The bounds of a batch."""
        return BatchLimits(self.batch_examples, self.batch_bytes, round(self.batch_age_s * 1000))
