"""JSON objects of a file, one row each: JSON lines, an array, or pages of an API (`{"data": [...], "meta": ...}`)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from loopwright.imports.json_buffer import DECODER, JsonBuffer, describe
from loopwright.imports.rows import BadRow, Json, ParsedRow, RowError
from loopwright.imports.text_lines import Line, lines_of, utf8_chunks

DATA: Final = "data"
_PAGE: Final = re.compile(r'\{\s{0,64}"data"\s{0,64}:\s{0,64}\[')
_LONGEST_PAGE_OPENING: Final = 256
_OBJECT_OVER_LINES: Final = re.compile(r"\{[ \t\r]*\n")
JSON_SPACE: Final = " \t\r\n"
"""White space in JSON. A line of other white space, such as a no-break space, is a wrong row."""
SHOWN_CHARS: Final = 2_000
"""Characters of a row that is not JSON that a report of refused rows repeats."""
NOT_READ: Final = "; the rest of the array was not read"

ParseRow = Callable[[int, Json], ParsedRow]
"""Makes a row of its number and its object. Raises `BadRow`."""


@dataclass(frozen=True, slots=True)
class Value:
    """One value, or why there is none."""

    number: int
    content: Any
    fault: str | None = None


def read_objects(stream: BinaryIO, parse: ParseRow) -> Iterator[ParsedRow]:
    """Yield one row or error for each value of a file."""
    for value in read_values(stream):
        yield _parse(value, parse)


def _parse(value: Value, parse: ParseRow) -> ParsedRow:
    if value.fault is not None:
        return RowError(value.number, value.fault, value.content)
    if not isinstance(value.content, dict):
        return RowError(value.number, "not a JSON object", value.content)
    try:
        return parse(value.number, value.content)
    except BadRow as error:
        return RowError(value.number, str(error), value.content)


def read_values(stream: BinaryIO) -> Iterator[Value]:
    """Yield the values of a file. The number is that of the line, or the position in the array."""
    chunks = utf8_chunks(stream)
    read: list[bytes] = []
    opening = ""
    for chunk in chunks:
        read.append(chunk)
        opening += chunk.decode("utf-8", "replace").lstrip(JSON_SPACE) if not opening else ""
        if opening:
            break
    everything = itertools.chain(read, chunks)
    if opening.startswith("["):
        yield from array_values(JsonBuffer(everything))
    elif _PAGE.match(opening):
        yield from _page_values(JsonBuffer(everything))
    elif _OBJECT_OVER_LINES.match(opening):
        yield from _object_values(JsonBuffer(everything))
    else:
        yield from _line_values(lines_of(everything))


def _line_values(lines: Iterator[Line]) -> Iterator[Value]:
    for line in lines:
        if line.fault is not None:
            yield Value(line.number, None, line.fault)
        elif line.text.strip(JSON_SPACE):
            yield from _unwrapped(_decoded(line))


def _decoded(line: Line) -> Value:
    try:
        return Value(line.number, DECODER.decode(line.text))
    except (ValueError, RecursionError) as error:
        return Value(line.number, line.text[:SHOWN_CHARS], describe(error))


def _unwrapped(value: Value) -> Iterator[Value]:
    """Yield the values of an API page under its line, and any other value as it is."""
    content = value.content
    if (
        isinstance(content, dict)
        and isinstance(content.get(DATA), list)
        and not content.keys() - {DATA, "meta"}
    ):
        yield from (Value(value.number, each) for each in content[DATA])
    else:
        yield value


def _object_values(buffer: JsonBuffer) -> Iterator[Value]:
    """Yield the values of objects that take several lines each."""
    number = 0
    buffer.skip_space()
    while buffer.peek():
        number += 1
        text = buffer.peek(SHOWN_CHARS)
        try:
            yield from _unwrapped(Value(number, buffer.next_value()))
        except ValueError as error:
            yield Value(number, text, f"{error}; the rest of the file was not read")
            return
        buffer.skip_space()


def _page_values(buffer: JsonBuffer) -> Iterator[Value]:
    """Yield the values of API pages, one after the other. Their position counts over all pages."""
    number = 0
    while buffer.skip_to(_PAGE, _LONGEST_PAGE_OPENING):
        for value in array_values(buffer, number, is_page=True):
            yield value
            number = value.number


def array_values(buffer: JsonBuffer, number: int = 0, *, is_page: bool = False) -> Iterator[Value]:
    """Yield the values of the array that begins next. Their numbers follow after `number`."""
    buffer.skip_to(_BRACKET, 1)
    buffer.drop(1)
    while True:
        buffer.skip_space()
        if buffer.peek() == "]":
            buffer.drop(1)
            buffer.skip_space()
            if buffer.peek() and not is_page:
                yield Value(number + 1, None, "text after the end of the array was not read")
            return
        number += 1
        text = buffer.peek(SHOWN_CHARS)
        try:
            yield Value(number, buffer.next_value())
        except ValueError as error:
            yield Value(number, text, f"{error}{NOT_READ}")
            return
        buffer.skip_space()
        if buffer.peek() not in {",", "]"}:
            yield Value(number + 1, None, "no comma or ] after the previous row" + NOT_READ)
            return
        if buffer.peek() == ",":
            buffer.drop(1)


_BRACKET: Final = re.compile(r"\[")
