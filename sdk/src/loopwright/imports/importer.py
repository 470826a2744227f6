"""Send the rows of readers in bulk, and count what became of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, Literal

from loopwright.client import Loopwright
from loopwright.errors import Overloaded, Unavailable
from loopwright.imports.rows import ParsedRow, Row, RowError
from loopwright.models import RowResult
from loopwright.retry import Retry

ROWS_AT_ONCE: Final = 256
MAX_LISTED: Final = 1_000
"""Refusals that a report lists. All of them are counted."""
RETRY: Final = Retry(first_wait_s=0.5, longest_wait_s=65.0)
"""An import can wait a quarter of a minute for a service that restarts, and for the minute that a limit names."""

Status = Literal["accepted", "duplicate", "valid", "ignored", "refused"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that was refused."""

    number: int
    """Line number (JSON lines, CSV) or position (JSON array), from 1."""
    reason: str
    """Why, without any text from the row."""
    file: str = ""
    """Name of the file, if there are several."""


@dataclass(slots=True)
class Report:
    """What became of the rows of an import."""

    rows: int = 0
    accepted: int = 0
    duplicate: int = 0
    valid: int = 0
    """Rows in which a dry run found no fault."""
    ignored: int = 0
    """Rows that say nothing that could be used."""
    refused: int = 0
    vague: int = 0
    """Accepted rows with a comment that is too vague to train on."""
    refusals: list[Refusal] = field(default_factory=list)
    """The first `MAX_LISTED`."""

    def count(self, status: Status, refusal: Refusal | None = None) -> None:
        """Count a row."""
        self.rows += 1
        setattr(self, status, getattr(self, status) + 1)
        if refusal is not None and len(self.refusals) < MAX_LISTED:
            self.refusals.append(refusal)


@dataclass(frozen=True, slots=True)
class RowOutcome:
    """What became of one row."""

    row: ParsedRow
    status: Status
    reason: str | None = None
    """Why it was refused."""
    hint: str | None = None
    """How to write its comment so that a model can be trained on it."""


@dataclass(slots=True)
class Importer:
    """Sends rows, responses before their feedback, and counts them in `report`.

    Each chunk of rows is sent completely before the next one is read, so `report.rows` says where to continue.

    Args:
        loop: The client. It should be patient (`RETRY`).
        report: Counts the rows.
        dry_run: Only validate.
        on_row: Called with what became of each row.

    """

    loop: Loopwright
    report: Report = field(default_factory=Report)
    dry_run: bool = False
    on_row: Callable[[RowOutcome], None] = lambda _: None

    def send(self, rows: Iterable[ParsedRow], file: str = "") -> Iterator[int]:
        """Send all rows of a file, and yield their number after each chunk. A bad row stops no other.

        Raises:
            LoopwrightError: The service is not reachable, not available, or refuses the caller. The rows that
                `report` counts were sent.

        """
        iterator = iter(rows)
        while chunk := list(islice(iterator, ROWS_AT_ONCE)):
            for outcome in self._send_chunk(chunk):
                refusal = None
                if outcome.status == "refused":
                    refusal = Refusal(outcome.row.number, outcome.reason or "", file)
                self.report.count(outcome.status, refusal)
                self.report.vague += outcome.hint is not None
                self.on_row(outcome)
            yield len(chunk)

    def _send_chunk(self, chunk: Sequence[ParsedRow]) -> list[RowOutcome]:
        rows = [row for row in chunk if isinstance(row, Row)]
        recorded = self._send_parts(self.loop.record_many, [row.responses for row in rows])
        # Feedback on a response that was refused would wait for it in vain.
        usable = [not any(result.is_refused for result in results) for results in recorded]
        sent = self._send_parts(
            self.loop.send_many, [row.events if ok else () for row, ok in zip(rows, usable, strict=True)]
        )
        outcomes = iter([_outcome(row, [*a, *b]) for row, a, b in zip(rows, recorded, sent, strict=True)])
        return [
            RowOutcome(row, "refused", row.reason) if isinstance(row, RowError) else next(outcomes)
            for row in chunk
        ]

    def _send_parts(
        self, send: Callable[..., list[RowResult]], parts: Sequence[Sequence[Any]]
    ) -> list[list[RowResult]]:
        """Send the parts of several rows at once, and return the results of each row."""
        together = [each for part in parts for each in part]
        results: Iterator[RowResult] = iter(send(together, dry_run=self.dry_run) if together else ())
        found = [list(islice(results, len(part))) for part in parts]
        for result in (result for part in found for result in part):
            raise_if_not_taken(result)
        return found


def raise_if_not_taken(result: RowResult) -> None:
    """Raise if the service could not take a row, after all retries: it is not the row's fault."""
    if result.status_code == 429:
        raise Overloaded(
            429, result.code or "overloaded", "Too many rows", result.detail or "try again later"
        )
    if result.status_code >= 500 or result.status_code == 408:
        code = result.code or "unavailable"
        raise Unavailable(result.status_code, code, "Rows were not taken", result.detail or "try again later")


def _outcome(row: Row, results: Sequence[RowResult]) -> RowOutcome:
    refused = next((result for result in results if result.is_refused), None)
    if refused is not None:
        return RowOutcome(row, "refused", refused.detail or refused.code or f"status {refused.status_code}")
    hint = next((result.hint for result in results if result.hint), None)
    # Responses have no status `duplicate`, so feedback decides if there is any.
    statuses = {result.status for result in results if result.event_id} or {
        result.status for result in results
    }
    if not results:
        return RowOutcome(row, "ignored")
    if statuses == {"duplicate"}:
        return RowOutcome(row, "duplicate", hint=hint)
    return RowOutcome(row, "valid" if "valid" in statuses else "accepted", hint=hint)
