"""Settings of feedback: `LOOPWRIGHT_FEEDBACK_*`, beside the common ones of `shared/settings.py`."""

from __future__ import annotations

from pydantic import AliasChoices, Field, SecretStr

from shared.settings import Settings


def _own(name: str) -> AliasChoices:
    return AliasChoices(f"LOOPWRIGHT_FEEDBACK_{name.upper()}", name)


class FeedbackSettings(Settings):
    """Bounds of one feedback process."""

    port: int = Field(8001, ge=0, le=65535, validation_alias=_own("port"))
    ack_timeout_s: float = Field(
        5.0, gt=0, le=60, validation_alias=_own("ack_timeout_s"), description="wait for Kafka before 503"
    )
    user_per_minute: int = Field(
        600,
        ge=1,
        validation_alias=_own("user_per_minute"),
        description="events of one user; one more gets 429",
    )
    identity_ttl_s: float = Field(
        172_800,
        gt=0,
        validation_alias=_own("identity_ttl_s"),
        description="how long retries get 200 `duplicate` here",
    )
    receipt_ttl_s: float = Field(
        2_592_000,
        gt=0,
        validation_alias=_own("receipt_ttl_s"),
        description="how long an outcome stays in Redis",
    )
    pending_ttl_s: float = Field(
        5.0,
        gt=0,
        validation_alias=_own("pending_ttl_s"),
        description="how long `pending` is believed without a look",
    )
    scan_timeout_s: float = Field(
        8.0, gt=0, validation_alias=_own("scan_timeout_s"), description="for looking a receipt up in the log"
    )
    scans: int = Field(2, ge=1, le=64, validation_alias=_own("scans"), description="such look-ups at once")
    erasure_token: SecretStr | None = Field(
        None,
        validation_alias=_own("erasure_token"),
        description="who shows it may erase users; without it the door erases nobody",
    )
    erasures_per_minute: int = Field(
        60,
        ge=1,
        validation_alias=_own("erasures_per_minute"),
        description="of all callers; one more gets 429",
    )
