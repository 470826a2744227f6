"""Settings of inference: `LOOPWRIGHT_INFERENCE_*`, beside the common ones of `shared/settings.py`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.settings import Settings


class InferenceSettings(Settings):
    """What one inference process may use, in memory, on disk and in time."""

    model_config = SettingsConfigDict(env_prefix="LOOPWRIGHT_INFERENCE_")

    port: int = Field(8000, ge=0, le=65535)
    device: Literal["auto", "cpu", "cuda"] = Field("auto")
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16")
    threads: int = Field(
        1,
        ge=1,
        le=256,
        description="threads of torch within the one engine thread",
    )

    max_batch: int = Field(
        16,
        ge=8,
        le=256,
        description="answers generated at once; at least n's bound",
    )
    max_batch_tokens: int = Field(
        32_768,
        ge=1024,
        description="padded prompt and answer tokens at once",
    )
    batch_wait_ms: int = Field(
        10,
        ge=0,
        le=1000,
        description="how long a batch waits for company",
    )
    max_waiting: int = Field(
        256,
        ge=1,
        description="requests in the queue; one more is refused with 429",
    )
    max_context: int = Field(
        4096,
        ge=64,
        description="prompt and answer in tokens; never above the model's",
    )
    max_tokens: int = Field(
        1024,
        ge=1,
        le=8192,
        description="the most tokens a request may ask for",
    )
    default_tokens: int = Field(
        256,
        ge=1,
        le=8192,
        description="where a request names no bound",
    )

    delivery: Literal["spool", "strict"] = Field("spool")
    spool_mb: int = Field(256, ge=1, description="response records kept on disk")
    strict_timeout_s: float = Field(
        5.0,
        gt=0,
        description="delivery strict: wait for Kafka before 503",
    )
    drain_s: int = Field(
        20,
        ge=1,
        le=600,
        description="for requests under way when told to stop",
    )
    flush_s: float = Field(5.0, ge=0, description="for the spool when told to stop")
