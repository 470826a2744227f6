"""Incremental detokenization: turns the tokens of one choice into text that can be streamed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

INCOMPLETE_CHARACTER = "\ufffd"
"""Decoders return this for bytes that do not form a character yet."""


class IncrementalDetokenizer:
    """Text of one choice, released as soon as it is final.

    Text is withheld while it ends in an incomplete character, or in a prefix of a stop string. A stop string and the
    text after it are never released. The cost per token does not grow with the length of the text.

    Args:
        decode: Decodes token ids to text.
        stop_strings: Strings that end the text. Empty ones are ignored.

    """

    def __init__(self, decode: Callable[[list[int]], str], stop_strings: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop_strings = tuple(stop for stop in stop_strings if stop)
        self._tokens: list[int] = []
        # Decoding starts at `_start`, one step before the new tokens: a tokenizer decides about the space before a
        # word by the token before it. The tokens up to `_decoded` are part of the text.
        self._start = 0
        self._decoded = 0
        self._withheld = ""
        self._released: list[str] = []
        self.length = 0
        """Number of released characters."""
        self.stopped = False
        """Whether a stop string was found."""

    @property
    def text(self) -> str:
        """All text released so far."""
        return "".join(self._released)

    def push(self, token: int) -> str:
        """Add a token and return the text that becomes final with it, often an empty string."""
        if self.stopped:
            return ""
        self._tokens.append(token)
        before = self._decode(self._tokens[self._start : self._decoded])
        after = self._decode(self._tokens[self._start :])
        if len(after) <= len(before) or after.endswith(INCOMPLETE_CHARACTER):
            return ""
        self._start, self._decoded = self._decoded, len(self._tokens)
        return self._check_stop_strings(after[len(before) :])

    def flush(self) -> str:
        """Return the withheld text. Call it once, after the last token."""
        if self.stopped:
            return ""
        before = self._decode(self._tokens[self._start : self._decoded])
        released = self._check_stop_strings(self._decode(self._tokens[self._start :])[len(before) :])
        self._start = self._decoded = len(self._tokens)
        withheld, self._withheld = self._withheld, ""
        return released + self._release(withheld)

    def _check_stop_strings(self, new: str) -> str:
        pending = self._withheld + new
        positions = [at for at in (pending.find(stop) for stop in self._stop_strings) if at >= 0]
        if positions:
            self.stopped, self._withheld = True, ""
            return self._release(pending[: min(positions)])
        overlap = max((_overlap(pending, stop) for stop in self._stop_strings), default=0)
        final = len(pending) - overlap
        self._withheld = pending[final:]
        return self._release(pending[:final])

    def _release(self, text: str) -> str:
        if text:
            self._released.append(text)
            self.length += len(text)
        return text


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
