"""Rows `{"input", "response", "feedback"}`, as a notebook keeps them, as responses with comments.

Nothing here remembers what was imported: the ids are made from what a row says (`ids_of`), so that the same row again
is the same event again, and counts once. A bad row spoils no other: reading yields what is wrong with it.
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
"""The whole row as it stands in the file."""
MAX_TEXT: Final = 32_768
"""Characters of one of its texts; the door takes no more."""
MAX_FILE_BYTES: Final = 268_435_456
USER: Final = "seed-import"
VERSION: Final = "imported"
TAG: Final = "imported"
"""On every imported comment: nobody who uses the app said it, so the trainer never counts it as a tester's."""
_SPACE = uuid.UUID("6f9c0e52-3a6b-5d0e-9f6e-2b1f4f0d8a11")
_BLANK = " \t\r\n\ufeff"


@dataclass(frozen=True, slots=True)
class Row:
    """One row that can be sent. `number`: its line (JSONL) or its place (array), from 1."""

    number: int
    input: str
    response: str
    feedback: str


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that cannot be sent, and what is wrong with it; never what it says."""

    number: int
    reason: str


Found: TypeAlias = Row | Fault


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of a row at the door. `hint`: why nothing can be learned from it as it stands."""

    number: int
    status: Literal["accepted", "duplicate"]
    response_id: str
    event_id: str
    hint: str | None = None


@dataclass(slots=True)
class Imported:
    """All that became of an import."""

    sent: list[Sent] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def count(self, status: str) -> int:
        """Rows that the door answered so."""
        return sum(sent.status == status for sent in self.sent)

    @property
    def vague(self) -> int:
        """Rows with a hint."""
        return sum(sent.hint is not None for sent in self.sent)


# --- reading ----------------------------------------------------------------------------------------------------


def read_rows(raw: bytes) -> list[Found]:
    """The rows of a JSON array, of JSONL, or one row alone, in order, good and bad.

    A byte order mark, blank lines and CRLF mean nothing. Raises ValueError where the file as a whole is no such thing.
    """
    if len(raw) > MAX_FILE_BYTES:
        raise ValueError(f"the file is larger than {MAX_FILE_BYTES >> 20} MiB: import it in parts")
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raw = raw.decode("utf-16", "replace").encode()
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    if raw.lstrip()[:1] == b"[":
        return list(_of_array(raw))
    lines = [(number, line) for number, line in enumerate(raw.split(b"\n"), 1) if line.strip()]
    if len(lines) > 1 and _is_one_object(raw):
        return [_row(1, raw)]
    return [_row(number, line) for number, line in lines]


def _of_array(raw: bytes) -> Iterator[Found]:
    """Element by element, so that a fault in the array's form costs only the rows behind it."""
    text, decoder = raw.decode("utf-8", "surrogateescape"), json.JSONDecoder()
    at, number = text.index("[") + 1, 0
    while True:
        at = _past(text, at, _BLANK)
        if text[at : at + 1] == "]":
            behind = text[at + 1 :].strip(_BLANK)
            if behind:
                yield Fault(number + 1, "something stands behind the end of the array, and was not read")
            return
        number += 1
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            yield Fault(number, f"{_not_json(error)}; the array was not read further")
            return
        yield _checked(number, value, len(text[at:end].encode("utf-8", "surrogateescape")))
        at = _past(text, end, _BLANK)
        if text[at : at + 1] not in (",", "]"):
            yield Fault(number + 1, "no comma or ] behind the row before; the array was not read further")
            return
        at += text[at] == ","


def _past(text: str, at: int, skipped: str) -> int:
    while at < len(text) and text[at] in skipped:
        at += 1
    return at


def _is_one_object(raw: bytes) -> bool:
    """One object over several lines, as a pretty-printer writes it."""
    try:
        return isinstance(json.loads(raw), dict)
    except (ValueError, RecursionError):
        return False


def _row(number: int, raw: bytes) -> Found:
    if len(raw) > MAX_ROW_BYTES:
        return Fault(number, f"larger than {MAX_ROW_BYTES >> 10} KiB")
    try:
        return _checked(number, json.loads(raw.decode().strip(_BLANK)), len(raw))
    except UnicodeDecodeError:
        return Fault(number, "not UTF-8")
    except (ValueError, RecursionError) as error:
        return Fault(number, _not_json(error))


def _not_json(error: ValueError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    what = error.msg.lower() if isinstance(error, json.JSONDecodeError) else "a number that is too long"
    return f"not JSON ({what})"


def _checked(number: int, value: Any, size: int) -> Found:
    if size > MAX_ROW_BYTES:
        return Fault(number, f"larger than {MAX_ROW_BYTES >> 10} KiB")
    if not isinstance(value, dict):
        return Fault(number, 'not an object {"input", "response", "feedback"}')
    faults = [fault for name in FIELDS if (fault := _fault_of(name, value)) is not None]
    return Fault(number, "; ".join(faults)) if faults else Row(number, *(value[name] for name in FIELDS))


def _fault_of(name: str, row: dict[str, Any]) -> str | None:
    if name not in row:
        return f"{name} is missing"
    text = row[name]
    if not isinstance(text, str):
        return f"{name} is not a text"
    if not text.strip():
        return f"{name} is empty"
    if len(text) > MAX_TEXT:
        return f"{name} is longer than {MAX_TEXT} characters"
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"{name} is not UTF-8"
    return None


# --- sending ----------------------------------------------------------------------------------------------------


def ids_of(row: Row, *, user: str, line: str | None, version: str) -> tuple[str, str]:
    """(response_id, event_id), UUIDv5 over what the row says and whom it is imported as, wherever it stands.

    Every row is a response of its own, also where two rows quote the same answer: of two comments by one user on one
    response, only the newer would count. `line` counts as given: unnamed and named are two imports.
    """
    content = [line, version, row.input, row.response, row.feedback]
    response = uuid.uuid5(_SPACE, json.dumps(content, ensure_ascii=False))
    return f"seed-{response}", str(uuid.uuid5(response, user))


def import_rows(
    loop: Loopwright,
    found: Iterable[Found],
    *,
    user: str = USER,
    version: str = VERSION,
    line: str | None = None,
    told: Callable[[Sent | Fault], None] = lambda _: None,
) -> Imported:
    """Sends each row as a response with a comment; `told` hears of each as it is done.

    What the door refuses about a row is that row's fault and stops nothing. Raises the client's other errors
    (`Unreachable`, `Unavailable`, `Denied`, `Overloaded`): then the same import again goes on where it stopped.
    """
    imported = Imported()
    for row in found:
        done = row if isinstance(row, Fault) else _send(loop, row, user, version, line)
        if isinstance(done, Fault):
            imported.faults.append(done)
        else:
            imported.sent.append(done)
        told(done)
    return imported


def _send(loop: Loopwright, row: Row, user: str, version: str, line: str | None) -> Sent | Fault:
    response_id, event_id = ids_of(row, user=user, line=line, version=version)
    asked = [{"role": "user", "content": row.input}]
    try:
        loop.record_response(response_id, asked, row.response, version=version, line=line)
        answer = loop.send(response_id, user, "comment", row.feedback, event_id, tags=_TAGS, line=line)
    except (Invalid, Conflict) as error:
        return Fault(row.number, f"refused: {error}")
    return Sent(row.number, answer.status, response_id, event_id, answer.hint)


_TAGS: Sequence[str] = (TAG,)
