"""Settings of the console: `LOOPWRIGHT_CONSOLE_*`, in addition to the common ones."""

from __future__ import annotations

from typing import Final

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.settings import Settings

SERVICE: Final = "console"


class ConsoleSettings(Settings):
    """Settings of one console process."""

    model_config = SettingsConfigDict(env_prefix="LOOPWRIGHT_CONSOLE_")

    port: int = Field(8080, ge=0, le=65535, description="Port that the console listens on.")
    ack_timeout_s: float = Field(
        5.0,
        gt=0,
        le=60,
        description="Seconds to wait for Kafka's acknowledgement before a command gets 503.",
    )
