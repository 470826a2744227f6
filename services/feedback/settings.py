"""Settings of feedback: `LOOPWRIGHT_FEEDBACK_*`, beside the common ones of `shared/settings.py`."""

from __future__ import annotations

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from shared.settings import Settings


class FeedbackSettings(Settings):
    """Bounds of one feedback process."""

    model_config = SettingsConfigDict(env_prefix="LOOPWRIGHT_FEEDBACK_")

    port: int = Field(8001, ge=0, le=65535)
    ack_timeout_s: float = Field(5.0, gt=0, le=60, description="wait for Kafka before 503")
    user_per_minute: int = Field(
        600,
        ge=1,
        description="events of one user; one more gets 429",
    )
    identity_ttl_s: float = Field(
        172_800,
        gt=0,
        description="how long retries get 200 `duplicate` here",
    )
    receipt_ttl_s: float = Field(
        2_592_000,
        gt=0,
        description="how long an outcome stays in Redis",
    )
    pending_ttl_s: float = Field(
        5.0,
        gt=0,
        description="how long `pending` is believed without a look",
    )
    scan_timeout_s: float = Field(8.0, gt=0, description="for looking a receipt up in the log")
    scans: int = Field(2, ge=1, le=64, description="such look-ups at once")
    erasure_token: SecretStr | None = Field(
        None,
        description="who shows it may erase users; without it the door erases nobody",
    )
    erasures_per_minute: int = Field(
        60,
        ge=1,
        description="of all callers; one more gets 429",
    )
