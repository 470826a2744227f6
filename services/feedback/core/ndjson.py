"""Split a stream of bytes into the rows of newline-delimited JSON. Pure; memory is bounded by the longest row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MEDIA_TYPE: Final = "application/x-ndjson"
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Row:
    """One line. `content` is None if it is longer than the limit."""

    line: int
    """Number of the line, from 1. Blank lines count."""
    content: bytes | None


class RowSplitter:
    """Splits chunks into rows. Blank lines are skipped, and a byte order mark at the beginning is removed."""

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._line = 0
        self._parts: list[bytes] = []
        """The beginning of the current line; empty while the rest of a too long one is skipped."""
        self._size = 0

    @property
    def next_line(self) -> int:
        """Number of the line that has not been returned yet."""
        return self._line + 1

    def feed(self, chunk: bytes) -> list[Row]:
        """Return the rows that end in this chunk."""
        *ends, rest = chunk.split(b"\n")
        rows = []
        for end in ends:
            self._keep(end)
            rows.extend(self._end_line())
        self._keep(rest)
        return rows

    def finish(self) -> list[Row]:
        """Return the last row, if no newline follows it."""
        return self._end_line() if self._size else []

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._max:
            self._parts.clear()
        elif part:
            self._parts.append(part)

    def _end_line(self) -> list[Row]:
        self._line += 1
        content = b"".join(self._parts)
        if self._line == 1:
            content = content.removeprefix(_BYTE_ORDER_MARK)
        is_too_long = self._size > self._max
        self._parts.clear()
        self._size = 0
        if is_too_long:
            return [Row(self._line, None)]
        return [Row(self._line, content)] if content.strip() else []
