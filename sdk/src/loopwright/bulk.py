"""Bulk requests: rows in batches of bounded size, and one result per row. No I/O.

Each row has its id, so a batch may be sent any number of times. Rows that the service could not take yet (408, 429,
503) and rows without a result stay in the batch until it is sent again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from loopwright.models import RowResult
from loopwright.wire import without_none

FEEDBACK_ROWS: Final = "/v1/feedback:bulk"
RESPONSE_ROWS: Final = "/v1/responses:bulk"
MEDIA_TYPE: Final = "application/x-ndjson"
MAX_ROWS: Final = 1_000
"""Most rows in one request. Their results fit into the service's memory, so they may be read after the last row."""
MAX_BYTES: Final = 4_194_304
"""Size above which a batch takes no further row."""
TIMEOUT_S: Final = 60.0
"""Timeout of one request, in seconds."""
LATER: Final = frozenset({408, 429, 503})
"""Statuses of rows that can be accepted if they are sent again."""


@dataclass(slots=True)
class Batch:
    """The rows of one request, and the results that they have so far."""

    results: list[RowResult | None] = field(default_factory=list)
    waiting: dict[int, bytes] = field(default_factory=dict)
    """Rows that must be sent, by position."""
    size: int = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row. One that is not JSON is not sent: it has its result already."""
        at = len(self.results)
        try:
            content = json.dumps(without_none(row), allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            fault = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            detail = f"the row is not JSON ({fault}): send texts, finite numbers, lists and objects"
            self.results.append(RowResult(line=at + 1, status_code=422, code="malformed", detail=detail))
            return
        self.results.append(None)
        self.waiting[at] = content
        self.size += len(content) + 1

    @property
    def is_full(self) -> bool:
        """Return whether the batch takes no further row."""
        return len(self.results) >= MAX_ROWS or self.size >= MAX_BYTES

    def body(self) -> bytes:
        """Return the rows that wait, one per line."""
        return b"".join(content + b"\n" for content in self.waiting.values())

    def take(self, answer: str) -> None:
        """Take the service's answer to `body`.

        Raises:
            ValueError: The answer is not that of a bulk route.

        """
        sent = list(self.waiting)
        # Not `splitlines`: texts in JSON may have other line separators.
        for line in answer.split("\n"):
            if not line:
                continue
            result = RowResult.model_validate_json(line)
            if not 1 <= result.line <= len(sent):
                continue
            at = sent[result.line - 1]
            self.results[at] = result.model_copy(update={"line": at + 1})
            if result.status_code not in LATER:
                self.waiting.pop(at, None)

    def final_results(self, offset: int = 0) -> list[RowResult]:
        """Return one result per row, in order. `offset` is the number of rows in the batches before."""
        return [_result_of(offset + at, result) for at, result in enumerate(self.results, 1)]


def _result_of(line: int, result: RowResult | None) -> RowResult:
    if result is not None:
        return result.model_copy(update={"line": line})
    detail = "the service did not process the row: send it again"
    return RowResult(line=line, status_code=503, code="no_result", detail=detail)


def batches(rows: Iterable[Mapping[str, Any]]) -> Iterator[Batch]:
    """Yield the rows in batches. Only one batch is in memory."""
    batch = Batch()
    for row in rows:
        batch.add(row)
        if batch.is_full:
            yield batch
            batch = Batch()
    if batch.results:
        yield batch
