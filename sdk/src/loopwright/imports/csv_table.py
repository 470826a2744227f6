"""Tables in CSV: one row per answer, with the columns that `Columns` names. An empty cell is the same as no cell."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

from loopwright.imports.rows import (
    MAX_ROW_BYTES,
    TOO_LONG,
    BadRow,
    Defaults,
    Json,
    ParsedRow,
    Row,
    RowError,
    content_id,
    time_of,
)
from loopwright.imports.text_lines import Line, read_lines

COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "input": ("input", "prompt", "question"),
    "response": ("response", "answer", "output", "completion"),
    "response_id": ("response_id",),
    "user": ("user_id", "user"),
    "thumbs": ("thumbs", "liked"),
    "rating": ("rating", "stars"),
    "correction": ("correction", "corrected", "ideal"),
    "comment": ("comment", "feedback"),
    "rejected": ("rejected", "worse"),
    "version": ("version", "model"),
    "created_at": ("created_at", "timestamp"),
}
"""What a column is for, and the names that it has unless an option names another one."""
UP: Final = frozenset({"up", "1", "true", "yes", "good", "like", "liked", "👍"})
DOWN: Final = frozenset({"down", "0", "-1", "false", "no", "bad", "dislike", "disliked", "👎"})
DELIMITERS: Final = ",;\t|"


@dataclass(slots=True)
class Columns:
    """Names of the columns that an option gave, by what they are for."""

    names: Mapping[str, str] = field(default_factory=dict)
    delimiter: str | None = None
    """The default is the one of `DELIMITERS` that the first line has most of."""

    def positions(self, header: Sequence[str]) -> dict[str, int]:
        """Return the position of each column that the header has.

        Raises:
            BadRow: A column that an option named is missing, or a needed one is not known.

        """
        known = [name.strip().lower() for name in header]
        missing = [name for name in self.names.values() if name.strip().lower() not in known]
        if missing:
            raise BadRow(f"the file has no column {missing[0]!r}: its columns are {', '.join(header)[:500]}")
        found = {}
        for use, defaults in COLUMNS.items():
            wanted = [self.names[use].strip().lower()] if use in self.names else list(defaults)
            position = next((known.index(name) for name in wanted if name in known), None)
            if position is not None:
                found[use] = position
        if "response_id" not in found and not {"input", "response"} <= found.keys():
            raise BadRow(
                "the first line must name the columns input and response, or response_id: name yours with options like "
                f"--input. The columns are {', '.join(header)[:500]}"
            )
        return found


def read_csv(stream: BinaryIO, defaults: Defaults, columns: Columns) -> Iterator[ParsedRow]:
    """Yield the rows of a file, without the header. If that does not fit, it is the only row, and wrong."""
    lines = _Lines(read_lines(stream))
    csv.field_size_limit(MAX_ROW_BYTES)
    table = csv.reader(lines, delimiter=columns.delimiter or lines.delimiter(), strict=True)
    header = _next_cells(table, lines)
    if header is None or isinstance(header, RowError):
        yield from [header] if header else []
        return
    try:
        positions = columns.positions(header)
    except BadRow as error:
        yield RowError(lines.first, str(error), header)
        return
    while (cells := _next_cells(table, lines)) is not None:
        if isinstance(cells, RowError):
            yield cells
        elif cells:
            yield _parse(lines.first, cells, positions, len(header), defaults)


class _Lines(Iterator[str]):
    """Lines for `csv.reader`, and the faults of those that a row was made of."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self._peeked = next(lines, None)
        self.first = 1
        """Number of the first line of the row that is read."""
        self.last = 0
        self.fault: str | None = None
        self.size = 0

    def delimiter(self) -> str:
        text = self._peeked.text if self._peeked else ""
        return max(DELIMITERS, key=text.count)

    def begin_row(self) -> None:
        self.first, self.fault, self.size = self.last + 1, None, 0

    def __next__(self) -> str:
        line, self._peeked = self._peeked, None
        line = line or next(self._lines, None)
        if line is None:
            raise StopIteration
        self.last = line.number
        self.fault = self.fault or line.fault
        self.size += len(line.text)
        if self.size > MAX_ROW_BYTES:
            self.fault = TOO_LONG
            raise csv.Error(TOO_LONG)
        return line.text + "\n"


def _next_cells(table: Iterator[list[str]], lines: _Lines) -> list[str] | RowError | None:
    """Return the cells of the next row, or why they cannot be read. None at the end of the file."""
    lines.begin_row()
    try:
        cells = next(table, None)
    except csv.Error as error:
        return RowError(lines.first, lines.fault or f"not CSV ({error})")
    if lines.fault is not None:
        return RowError(lines.first, lines.fault)
    return cells


def _parse(
    number: int, cells: list[str], positions: Mapping[str, int], width: int, defaults: Defaults
) -> ParsedRow:
    if len(cells) > width:
        return RowError(
            number, f"{len(cells)} cells, but the header has {width}: quote cells with commas", cells
        )
    row = {use: cells[at].strip() for use, at in positions.items() if at < len(cells) and cells[at].strip()}
    if not row:
        return RowError(number, "all cells are empty", cells)
    try:
        return _row(number, row, cells, defaults)
    except BadRow as error:
        return RowError(number, str(error), cells)


def _row(number: int, row: dict[str, str], cells: list[str], defaults: Defaults) -> Row:
    answered = {"input", "response"} <= row.keys()
    if not answered and "response_id" not in row:
        raise BadRow("input or response is empty, and there is no response_id")
    version, user = row.get("version"), row.get("user")
    time = time_of(row.get("created_at"), "created_at")
    response_id = row.get("response_id") or content_id(
        "csv", defaults.line, version or defaults.version, row["input"], row["response"], user
    )
    events = [
        defaults.event(response_id, kind, value, user=user, occurred_at=time) for kind, value in _signals(row)
    ]
    responses: list[Json] = []
    if answered:
        messages = [{"role": "user", "content": row["input"]}]
        responses.append(
            defaults.response(
                response_id,
                messages,
                row["response"],
                version=version,
                user_id=user,
                created_at=time,
            )
        )
    elif not events:
        raise BadRow("there is neither an answer nor feedback")
    return Row(number, responses, events, cells)


def _signals(row: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    if "thumbs" in row:
        yield "thumbs", _thumbs(row["thumbs"])
    if "rating" in row:
        yield "rating", _rating(row["rating"])
    if "rejected" in row:
        yield "preference", {"over": row["rejected"]}
    for kind in ("correction", "comment"):
        if kind in row:
            yield kind, row[kind]


def _thumbs(text: str) -> str:
    label = text.lower()
    if label in UP or label in DOWN:
        return "up" if label in UP else "down"
    raise BadRow("thumbs is not up or down (or 1 or 0, yes or no)")


def _rating(text: str) -> int:
    whole = text.removesuffix(".0")
    if whole not in {"1", "2", "3", "4", "5"}:
        raise BadRow("rating is not a whole number from 1 to 5: convert other scales")
    return int(whole)
