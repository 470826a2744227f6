"""Import of rows `{"input", "response", "feedback"}`, as a notebook stores them, as responses with comments.

The ids are derived from a row's content (`row_ids`), so importing a row again sends the same event, which counts once.
An invalid row is reported and skipped.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from loopwright.client import Loopwright
from loopwright.errors import Conflict, Invalid

FIELDS: Final = ("input", "response", "feedback")
MAX_ROW_BYTES: Final = 262_144
"""Maximum size of a row in the file."""
MAX_TEXT_CHARS: Final = 32_768
"""Maximum length of a field; the feedback service accepts no longer text."""
MAX_FILE_BYTES: Final = 268_435_456
DEFAULT_USER: Final = "seed-import"
DEFAULT_VERSION: Final = "imported"
IMPORT_TAG: Final = "imported"
"""Tag of imported comments. They do not come from a user of the app, so the trainer does not count their user."""
_NAMESPACE: Final = uuid.UUID("6f9c0e52-3a6b-5d0e-9f6e-2b1f4f0d8a11")
_WHITESPACE: Final = " \t\r\n\ufeff"


@dataclass(frozen=True, slots=True)
class Row:
    """A valid row."""

    number: int
    """Line number (JSON lines) or position (JSON array), from 1."""
    input: str
    response: str
    feedback: str


@dataclass(frozen=True, slots=True)
class RowError:
    """A row that cannot be imported."""

    number: int
    """As in `Row`."""
    reason: str
    """The faults, without any text from the row."""


ParsedRow: TypeAlias = Row | RowError


@dataclass(frozen=True, slots=True)
class ImportedRow:
    """A row that the feedback service accepted."""

    number: int
    status: Literal["accepted", "duplicate"]
    response_id: str
    event_id: str
    hint: str | None = None
    """How to write the feedback so that a model can be trained on it, if it cannot."""


@dataclass(slots=True)
class ImportReport:
    """Result of an import, row by row."""

    rows: list[ImportedRow] = field(default_factory=list)
    errors: list[RowError] = field(default_factory=list)

    def count(self, status: Literal["accepted", "duplicate"]) -> int:
        """Return the number of rows with this status."""
        return sum(row.status == status for row in self.rows)

    @property
    def vague(self) -> int:
        """Return the number of rows whose feedback is too vague to train on."""
        return sum(row.hint is not None for row in self.rows)


# --- reading ----------------------------------------------------------------------------------------------------


def read_rows(raw: bytes) -> list[ParsedRow]:
    """Parse a file: a JSON array, JSON lines, or a single object. Return valid and invalid rows in order.

    A byte order mark, blank lines and CRLF are accepted.

    Raises:
        ValueError: The file is larger than `MAX_FILE_BYTES`.

    """
    if len(raw) > MAX_FILE_BYTES:
        raise ValueError(f"the file is larger than {MAX_FILE_BYTES >> 20} MiB; split it")
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raw = raw.decode("utf-16", "replace").encode()
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    if raw.lstrip()[:1] == b"[":
        return list(_parse_array(raw))
    lines = [(number, line) for number, line in enumerate(raw.split(b"\n"), 1) if line.strip()]
    if len(lines) > 1 and _is_single_object(raw):
        return [_parse_row(1, raw)]
    return [_parse_row(number, line) for number, line in lines]


def _parse_array(raw: bytes) -> Iterator[ParsedRow]:
    """Parse element by element, so that a syntax error affects only the rows after it."""
    text, decoder = raw.decode("utf-8", "surrogateescape"), json.JSONDecoder()
    position, number = text.index("[") + 1, 0
    while True:
        position = _skip_whitespace(text, position)
        if text[position : position + 1] == "]":
            if text[position + 1 :].strip(_WHITESPACE):
                yield RowError(number + 1, "text after the end of the array was not read")
            return
        number += 1
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            yield RowError(number, f"{_describe(error)}; the rest of the array was not read")
            return
        yield _validate(number, value, len(text[position:end].encode("utf-8", "surrogateescape")))
        position = _skip_whitespace(text, end)
        if text[position : position + 1] not in (",", "]"):
            yield RowError(
                number + 1, "no comma or ] after the previous row; the rest of the array was not read"
            )
            return
        position += text[position] == ","


def _skip_whitespace(text: str, position: int) -> int:
    while position < len(text) and text[position] in _WHITESPACE:
        position += 1
    return position


def _is_single_object(raw: bytes) -> bool:
    """Return whether the file is one object on several lines."""
    try:
        return isinstance(json.loads(raw), dict)
    except (ValueError, RecursionError):
        return False


def _parse_row(number: int, raw: bytes) -> ParsedRow:
    if len(raw) > MAX_ROW_BYTES:
        return RowError(number, f"larger than {MAX_ROW_BYTES >> 10} KiB")
    try:
        return _validate(number, json.loads(raw.decode().strip(_WHITESPACE)), len(raw))
    except UnicodeDecodeError:
        return RowError(number, "not UTF-8")
    except (ValueError, RecursionError) as error:
        return RowError(number, _describe(error))


def _describe(error: ValueError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    fault = error.msg.lower() if isinstance(error, json.JSONDecodeError) else "a number is too long"
    return f"not JSON ({fault})"


def _validate(number: int, value: Any, size: int) -> ParsedRow:
    if size > MAX_ROW_BYTES:
        return RowError(number, f"larger than {MAX_ROW_BYTES >> 10} KiB")
    if not isinstance(value, dict):
        return RowError(number, 'not an object {"input", "response", "feedback"}')
    faults = [fault for name in FIELDS if (fault := _fault_of(name, value)) is not None]
    return RowError(number, "; ".join(faults)) if faults else Row(number, *(value[name] for name in FIELDS))


def _fault_of(name: str, row: dict[str, Any]) -> str | None:
    if name not in row:
        return f"{name} is missing"
    text = row[name]
    if not isinstance(text, str):
        return f"{name} is not a string"
    if not text.strip():
        return f"{name} is empty"
    if len(text) > MAX_TEXT_CHARS:
        return f"{name} is longer than {MAX_TEXT_CHARS} characters"
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"{name} is not UTF-8"
    return None


# --- sending ----------------------------------------------------------------------------------------------------


def row_ids(row: Row, *, user: str, line: str | None, version: str) -> tuple[str, str]:
    """Return the response id and the event id of a row: UUIDv5 of its content, independent of its number.

    Each row gets its own response, even if two rows have the same answer: of two comments by one user on one
    response, only the newer would count. `line` is hashed as given, so None differs from the default line's name.
    """
    content = [line, version, row.input, row.response, row.feedback]
    response = uuid.uuid5(_NAMESPACE, json.dumps(content, ensure_ascii=False))
    return f"seed-{response}", str(uuid.uuid5(response, user))


def import_rows(
    loop: Loopwright,
    rows: Iterable[ParsedRow],
    *,
    user: str = DEFAULT_USER,
    version: str = DEFAULT_VERSION,
    line: str | None = None,
    on_row: Callable[[ImportedRow | RowError], None] = lambda _: None,
) -> ImportReport:
    """Send each row as a response with a comment.

    A row that the feedback service rejects is reported as a `RowError`. Other errors of the client end the import; to
    resume it, import the same rows again.

    Args:
        loop: The client.
        rows: Rows from `read_rows`.
        user: Id of the user that the comments are attributed to.
        version: Name of the model that generated the responses.
        line: The line; the default is the service's own.
        on_row: Called with the result of each row.

    Raises:
        LoopwrightError: `Unreachable`, `Unavailable`, `Denied`, or `Overloaded`.

    """
    report = ImportReport()
    for row in rows:
        result = row if isinstance(row, RowError) else _send(loop, row, user, version, line)
        if isinstance(result, RowError):
            report.errors.append(result)
        else:
            report.rows.append(result)
        on_row(result)
    return report


def _send(loop: Loopwright, row: Row, user: str, version: str, line: str | None) -> ImportedRow | RowError:
    response_id, event_id = row_ids(row, user=user, line=line, version=version)
    messages = [{"role": "user", "content": row.input}]
    try:
        loop.record_response(response_id, messages, row.response, version=version, line=line)
        sent = loop.send(response_id, user, "comment", row.feedback, event_id, tags=_TAGS, line=line)
    except (Invalid, Conflict) as error:
        return RowError(row.number, f"rejected: {error}")
    return ImportedRow(row.number, sent.status, response_id, event_id, sent.hint)


_TAGS: Final[Sequence[str]] = (IMPORT_TAG,)
