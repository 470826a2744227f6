"""Tokens of one answer to text, as they come: no split character, no stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"
"""What a decoder shows for bytes that are not a whole character yet."""


class IncrementalDetokenizer:
    """Takes tokens, returns the text that can be sent.

    A character whose bytes are spread over tokens comes when it is whole; text that may turn out to be the
    beginning of a stop string is held back until it does not. The stop string itself, and what follows, is
    never returned. Cost per token does not grow with the answer.
    """

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stops = tuple(stop for stop in stops if stop)
        self._tokens: list[int] = []
        self._from = 0  # tokens before it are settled; decoding starts here, for the space before a word
        self._read = 0  # tokens before it are in the text already
        self._held = ""
        self._sent: list[str] = []
        self.length = 0
        self.stopped = False

    @property
    def text(self) -> str:
        """All that was returned so far."""
        return "".join(self._sent)

    def push(self, token: int) -> str:
        """The text that this token sets free; often empty."""
        if self.stopped:
            return ""
        self._tokens.append(token)
        known = self._decode(self._tokens[self._from : self._read])
        shown = self._decode(self._tokens[self._from :])
        if len(shown) <= len(known) or shown.endswith(UNFINISHED):
            return ""
        self._from, self._read = self._read, len(self._tokens)
        return self._release(shown[len(known) :])

    def flush(self) -> str:
        """The rest, when no token will follow."""
        if self.stopped:
            return ""
        known = self._decode(self._tokens[self._from : self._read])
        rest = self._release(self._decode(self._tokens[self._from :])[len(known) :])
        self._from = self._read = len(self._tokens)
        held, self._held = self._held, ""
        return rest + self._send(held)

    def _release(self, new: str) -> str:
        buffer = self._held + new
        found = [at for at in (buffer.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return self._send(buffer[: min(found)])
        keep = max((_overlap(buffer, stop) for stop in self._stops), default=0)
        self._held = buffer[len(buffer) - keep :]
        return self._send(buffer[: len(buffer) - keep])

    def _send(self, text: str) -> str:
        if text:
            self._sent.append(text)
            self.length += len(text)
        return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`, short of all of it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
