"""The short request that a version must answer before it serves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final

from services.inference.core.generation_request import GenerationRequest, GenerationResult, Piece
from services.inference.engine.generation_rows import QueuedGeneration
from services.inference.engine.refusals import SHUT_DOWN
from shared.errors import BadArtifact, Retryable
from shared.events import Message

MESSAGES: Final = (Message(role="user", content="Say hello."),)
MAX_TOKENS: Final = 4


class SmokeTest:
    """A greedy request of the engine's own, and its listener.

    It runs like any other request, so it also does what is done once per version, such as reading all weights.

    Args:
        version: The version that must answer.
        encode: Encodes a conversation.

    """

    def __init__(self, version: str, encode: Callable[[Sequence[Message]], list[int]]) -> None:
        request = GenerationRequest("smoke test", version, MESSAGES, MAX_TOKENS)
        self.generation = QueuedGeneration(request, encode(MESSAGES), MAX_TOKENS, (), self)
        self.result: Future[GenerationResult] = Future()
        self._version = version

    def on_piece(self, piece: Piece) -> None:
        """Ignore the text."""

    def on_result(self, result: GenerationResult) -> None:
        """Complete `result`."""
        self.result.set_result(result)

    def check(self) -> None:
        """Wait for the answer and check it.

        Raises:
            Retryable: if the engine was stopped before there was one.
            BadArtifact: if the version cannot answer, or its answer is empty.

        """
        result = self.result.result()
        if result.error == SHUT_DOWN:
            raise Retryable(SHUT_DOWN)
        if result.status != "completed":
            raise BadArtifact(f"{self._version} cannot answer: {result.error or result.status}")
        if result.usage.completion_tokens == 1 and result.choices[0].finish_reason == "stop":
            raise BadArtifact(f"{self._version}: the answer to {MESSAGES[0].content!r} is empty")
