"""Settings of the feedback service: `LOOPWRIGHT_FEEDBACK_*`, in addition to the common ones."""

from __future__ import annotations

from typing import Final

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from services.feedback.core.langfuse_scores import ScoreUse
from shared.events import Line
from shared.settings import Settings

SERVICE: Final = "feedback"


class FeedbackSettings(Settings):
    """Settings of one feedback process."""

    model_config = SettingsConfigDict(env_prefix="LOOPWRIGHT_FEEDBACK_")

    port: int = Field(8001, ge=0, le=65535, description="Port that the HTTP API listens on.")
    ack_timeout_s: float = Field(
        5.0,
        gt=0,
        le=60,
        description="Seconds to wait for Kafka's acknowledgement before a request gets 503.",
    )
    user_per_minute: int = Field(
        600, ge=1, description="Feedback events accepted per user and minute; further events get 429."
    )
    key_per_minute: int = Field(
        60_000,
        ge=1,
        description="Feedback events and responses accepted per API key and minute; further ones get 429.",
    )
    token_per_minute: int = Field(
        60,
        ge=1,
        description="Events with browser tokens accepted per response and minute; further ones get 429.",
    )
    responses_per_minute: int = Field(
        6_000,
        ge=1,
        description="Responses accepted per minute from one user, or on one line from requests that name no user; "
        "further ones get 429.",
    )
    bulk_per_minute: int = Field(
        600_000,
        ge=1,
        description="Rows of bulk requests accepted per minute about one user, or on one line from responses that name "
        "no user; further rows get 429. Bulk requests do not count against the limits of single ones.",
    )
    lines: tuple[Line, ...] = Field(
        (),
        description="Lines to accept besides LOOPWRIGHT_LINE and those that have a version, as a JSON list. Requests "
        "for any other line get 422.",
    )
    identity_ttl_s: float = Field(
        172_800,
        gt=0,
        description="Seconds for which a repeated event is answered with 200 `duplicate`. Later repetitions are "
        "accepted again and deduplicated by the processor.",
    )
    langfuse_scores: dict[str, ScoreUse] = Field(
        {},
        description="What Langfuse scores mean by their name, as a JSON object: `thumbs`, `rating`, `comment` or "
        "`ignore`. Known without it: `user-feedback` and `thumbs`, `user-rating` and `rating`, `comment`, and a few "
        "alike. Scores with other names get 422.",
    )
    receipt_records: int = Field(
        50_000_000,
        ge=1_000,
        description="Limit of the records in the index of receipts, which is in the data folder; an event has two, of "
        "about 100 bytes each. Above it, the oldest receipts are removed before their 90 days have passed.",
    )
    receipt_cache_mb: int = Field(
        32, ge=8, le=65_536, description="Size of the read cache of the index of receipts in MB."
    )
    scan_timeout_s: float = Field(
        8.0,
        gt=0,
        description="Seconds that a request may spend reading earlier erasures in Kafka before it gets 503.",
    )
    token_key: SecretStr | None = Field(
        None,
        min_length=32,
        description="Secret that signs browser tokens. Without it none are made or accepted. A new secret makes "
        "all present tokens invalid.",
    )
    origins: tuple[str, ...] = Field(
        (),
        description="Origins whose pages may send feedback with a browser token, as a JSON list: "
        '["https://app.example.org"].',
    )
    certificate_key: SecretStr | None = Field(
        None,
        description="Ed25519 key that signs certificates of erasures: 64 hex digits, made with `openssl rand -hex 32`. "
        "Without it, requests for certificates get 403. Keep the public key of a key that you replace: it verifies the "
        "certificates that the old key signed.",
    )
    erasures_per_minute: int = Field(
        60, ge=1, description="Erasure requests accepted per minute from all callers; further ones get 429."
    )
