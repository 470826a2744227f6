"""Settings that every service on the stream engine has."""

from __future__ import annotations

from pydantic import Field

from shared.dead_letters import DeadLetterLimit
from shared.settings import Settings


class StreamSettings(Settings):
    """Common settings of services on the stream engine. Each has them under its own prefix."""

    dead_letter_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="A partition halts if records that raised unexpected errors are more than this share of the last "
        "`DEAD_LETTER_WINDOW` ones, and more than `DEAD_LETTER_COUNT`. 1 never halts. Unreadable records do not count.",
    )
    dead_letter_count: int = Field(
        20,
        ge=0,
        description="Records with unexpected errors that never halt a partition, whatever their share.",
    )
    dead_letter_window: int = Field(
        1_000,
        ge=1,
        le=1_000_000,
        description="Number of newest records of a partition of which the share is taken.",
    )

    @property
    def dead_letter_limit(self) -> DeadLetterLimit:
        """The limit beyond which a partition halts."""
        return DeadLetterLimit(self.dead_letter_window, self.dead_letter_share, self.dead_letter_count)
