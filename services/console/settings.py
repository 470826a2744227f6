"""Settings of the console: `LOOPWRIGHT_CONSOLE_*`, beside the common ones of `shared/settings.py`."""

from __future__ import annotations

from pydantic import AliasChoices, Field

from shared.settings import Settings


def _own(name: str) -> AliasChoices:
    return AliasChoices(f"LOOPWRIGHT_CONSOLE_{name.upper()}", name)


class ConsoleSettings(Settings):
    """Bounds of one console process."""

    port: int = Field(8080, ge=0, le=65535, validation_alias=_own("port"))
    ack_timeout_s: float = Field(
        5.0, gt=0, le=60, validation_alias=_own("ack_timeout_s"), description="wait for Kafka before 503"
    )
    hosts: frozenset[str] = Field(
        frozenset(),
        validation_alias=_own("hosts"),
        description='JSON list of names, beside localhost and IP addresses, that it is reached by: ["console"]',
    )
