"""Text of a file from which JSON values are taken one by one, in memory that is bounded by the longest value."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, Final, NoReturn

from loopwright.imports.rows import MAX_ROW_BYTES, TOO_LONG
from loopwright.imports.text_lines import NOT_TEXT

_SPACE: Final = re.compile(r"[ \t\r\n]*")
FILL: Final = 65_536


class JsonBuffer:
    """The part of a file that was read and not taken yet."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text, self._at = "", 0
        self.is_complete = False
        """Whether nothing is left to read."""
        self._fault: str | None = None

    def peek(self, size: int = 1) -> str:
        """Return the text that comes next: this many characters, or all that is left."""
        while len(self._text) - self._at < size and not self.is_complete:
            self._read()
        return self._text[self._at : self._at + size]

    def drop(self, size: int) -> None:
        """Take this many characters off."""
        self._at += size

    def skip_space(self) -> None:
        """Take white space off."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self.peek():
                if self._text[self._at] not in " \t\r\n":
                    return
            elif self.is_complete:
                return

    def skip_to(self, pattern: re.Pattern[str], longest: int) -> bool:
        """Take off what comes before a pattern, if it matches. Its matches have at most `longest` characters."""
        while True:
            found = pattern.search(self._text, self._at)
            if found:
                self._at = found.start()
                return True
            if self.is_complete:
                return False
            self._at = max(self._at, len(self._text) - longest)
            self._read()

    def next_value(self) -> Any:
        """Take a value off.

        Raises:
            ValueError: The text is not JSON, or the value is too long. The message does not repeat the text.

        """
        self.peek(FILL)
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if isinstance(error, RecursionError) or self.is_complete:
                    raise ValueError(self._fault or describe(error)) from None
                if len(self._text) - self._at > MAX_ROW_BYTES:
                    raise ValueError(f"{describe(error)}, or {TOO_LONG}") from None
            else:
                # The rest of a number may not have been read yet.
                if end < len(self._text) or self.is_complete:
                    self._at = end
                    return value
            self.peek(2 * (len(self._text) - self._at) + 1)

    def _read(self) -> None:
        chunk = next(self._chunks, None)
        try:
            text = self._decoder.decode(chunk or b"", final=chunk is None)
        except UnicodeDecodeError:
            text, chunk, self._fault = "", None, NOT_TEXT
        self.is_complete = chunk is None
        self._text, self._at = self._text[self._at :] + text, 0


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant)
"""Decodes JSON. Refuses NaN and Infinity, which Python's own accepts."""


def describe(error: ValueError | RecursionError) -> str:
    """Return the fault of a text that is not JSON, without the text."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg.lower()})"
    return f"not JSON ({error if 'JSON' in str(error) else 'a number is too long'})"
