"""What an erasure request deletes, and how to tell rows that it deletes from rows that stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from services.trainer.dataset.filters import Row


@dataclass(frozen=True, slots=True)
class ErasureTarget:
    """Target of a request: everything of `subject` (`erasure`), or one event (`retraction`)."""

    request_id: str
    kind: Literal["erasure", "retraction"]
    subject: str
    response_id: str | None = None
    event_id: str | None = None

    def matches(self, row: Row) -> bool:
        """Return whether the row is the event, or is by the subject, or answers a question that the subject asked."""
        if self.kind == "retraction":
            return (row.response_id, row.event_id) == (self.response_id, self.event_id)
        return self.subject in (row.user_id, row.asked_by)


IsCurrent = Callable[[Row], bool]
"""Returns whether the batch table still has the row. If so, it was given after the request, and stays."""


def targets_of(row: Row, targets: Sequence[ErasureTarget], is_current: IsCurrent) -> list[ErasureTarget]:
    """Return the targets that delete a row; none if the row is still current."""
    matching = [target for target in targets if target.matches(row)]
    return matching if matching and not is_current(row) else []


def row_for_erasure(
    response_id: str, revision: int, event_id: str, user_id: str, asked_by: str | None
) -> Row:
    """Return a row without text, for files that store only whose content they hold."""
    return Row(response_id, revision, event_id, user_id, (), "", "", 0, asked_by=asked_by)
