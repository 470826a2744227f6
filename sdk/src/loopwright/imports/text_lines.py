"""Lines of a file in UTF-8, UTF-16 or UTF-32, with or without byte order mark. Memory is bounded by the longest row."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from loopwright.imports.rows import MAX_ROW_BYTES, TOO_LONG

CHUNK: Final = 65_536
_MARK: Final = "\ufeff".encode()
_INVALID: Final = b"\xff"
"""A byte that is not UTF-8, in place of what could not be decoded."""
NOT_TEXT: Final = "not UTF-8 (or UTF-16)"


@dataclass(frozen=True, slots=True)
class Line:
    """One line, without its end."""

    number: int
    text: str
    fault: str | None = None
    """Why the line has no text."""


def read_lines(stream: BinaryIO) -> Iterator[Line]:
    """Yield all lines, blank ones too. CRLF ends a line as well."""
    return lines_of(utf8_chunks(stream))


def lines_of(chunks: Iterable[bytes]) -> Iterator[Line]:
    """Yield the lines of UTF-8 text."""
    number, size = 0, 0
    parts: list[bytes] = []
    for chunk in chunks:
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            number += 1
            yield _line(number, b"".join([*parts, end]) if size + len(end) <= MAX_ROW_BYTES else None)
            parts, size = [], 0
        size += len(rest)
        # The rest of a too long line is counted, not kept.
        if size > MAX_ROW_BYTES:
            parts = []
        elif rest:
            parts.append(rest)
    if size:
        yield _line(number + 1, b"".join(parts) if size <= MAX_ROW_BYTES else None)


def _line(number: int, content: bytes | None) -> Line:
    if content is None:
        return Line(number, "", TOO_LONG)
    try:
        return Line(number, content.removesuffix(b"\r").decode())
    except UnicodeDecodeError:
        return Line(number, "", NOT_TEXT)


def utf8_chunks(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the file as UTF-8, without a byte order mark. What cannot be decoded becomes a byte that is not UTF-8."""
    first = _read_at_least(stream, 4)
    encoding = json.detect_encoding(first) if first else "utf-8"
    chunks = _chunks(stream, first)
    if encoding not in {"utf-8", "utf-8-sig"}:
        chunks = _transcoded(chunks, encoding)
    is_first = True
    for chunk in chunks:
        yield chunk.removeprefix(_MARK) if is_first else chunk
        is_first = False


def _read_at_least(stream: BinaryIO, size: int) -> bytes:
    content = stream.read(CHUNK)
    while len(content) < size and (more := stream.read(CHUNK)):
        content += more
    return content


def _chunks(stream: BinaryIO, first: bytes) -> Iterator[bytes]:
    chunk = first
    while chunk:
        yield chunk
        chunk = stream.read(CHUNK)


def _transcoded(chunks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    try:
        for chunk in chunks:
            # Lone surrogates become bytes that are not UTF-8, so only their line is refused.
            yield decoder.decode(chunk).encode("utf-8", "surrogatepass")
        yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        yield _INVALID
