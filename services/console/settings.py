"""Settings of the console: `LOOPWRIGHT_CONSOLE_*`, beside the common ones of `shared/settings.py`."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.settings import Settings


class ConsoleSettings(Settings):
    """Bounds of one console process."""

    model_config = SettingsConfigDict(env_prefix="LOOPWRIGHT_CONSOLE_")

    port: int = Field(8080, ge=0, le=65535)
    ack_timeout_s: float = Field(5.0, gt=0, le=60, description="wait for Kafka before 503")
    hosts: frozenset[str] = Field(
        frozenset(),
        description='JSON list of names, beside localhost and IP addresses, that it is reached by: ["console"]',
    )
