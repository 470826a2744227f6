"""Target of an erasure, and the test whether a row of it must be deleted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from services.trainer.dataset.filters import Row


@dataclass(frozen=True, slots=True)
class ErasureTarget:
    """What a request takes away: all of `subject`, or (`retraction`) one event."""

    request_id: str
    kind: Literal["erasure", "retraction"]
    subject: str
    response_id: str | None = None
    event_id: str | None = None

    def means(self, row: Row, *, asker_known: bool = True) -> bool:
        """Whether the row is of that subject, or that event. Where it is not known who asked, it may be."""
        if self.kind == "retraction":
            return (row.response_id, row.event_id) == (self.response_id, self.event_id)
        return self.subject in (row.user_id, row.asked_by) or not asker_known


IsCurrent = Callable[[Row], bool]
"""Whether the collected table still has the row."""
