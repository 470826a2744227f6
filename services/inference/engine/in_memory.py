"""The engine without a model, for tests: each character is a token."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from services.inference.core.detokenizer import IncrementalDetokenizer
from services.inference.core.generation_options import OPTION_NAMES
from services.inference.core.generation_request import (
    ChoiceResult,
    ContextExceeded,
    FinishReason,
    FunctionCall,
    GenerationRequest,
    GenerationResult,
    Piece,
    Status,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    join_tool_calls,
)
from services.inference.engine.port import GenerationListener
from shared.errors import BadArtifact, Overloaded, Retryable, UnknownVersion
from shared.events import Usage

ALPHABET = "etaoin shrdlu"


def random_answer(request: GenerationRequest, choice: int) -> str:
    """Return random letters that depend on version and conversation, and on the seed if the request is sampled.

    A request that demands a tool call gets no text.
    """
    if forced_call(request, choice):
        return ""
    sampled = request.sampling.temperature > 0
    seed = request.sampling.seed if sampled else 0
    parts = (
        request.version,
        [message.content for message in request.messages],
        seed,
        choice if sampled else 0,
    )
    source = random.Random(None if seed is None else json.dumps(parts))  # noqa: S311 - not a secret
    return "".join(source.choices(ALPHABET, k=request.max_tokens + 1))


def forced_call(request: GenerationRequest, choice: int) -> tuple[FunctionCall, ...]:
    """Return a call without arguments of the function that the request demands; none if it leaves the model free."""
    options = request.options
    if not options.tools or options.tool_choice in (None, "none", "auto"):
        return ()
    first = options.tools[0].function.name
    chosen = first if isinstance(options.tool_choice, str) else options.tool_choice.function.name
    return (FunctionCall(f"call_{request.response_id}_{choice}", chosen, "{}"),)


class InMemoryGeneration:
    """A request of the in-memory engine."""

    def __init__(self, request: GenerationRequest, listener: GenerationListener, max_tokens: int) -> None:
        self.request = request
        self.listener = listener
        self.max_tokens = max_tokens
        self.prompt_tokens = _prompt_tokens(request)
        self.choices: list[ChoiceResult] = []
        self.completion_tokens = 0
        self.first_token_at: float | None = None
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        """End the request with its next token."""
        self.cancelled.set()

    def end(self, status: Status, error: str | None = None) -> None:
        """Report the result. Called once."""
        usage = Usage(prompt_tokens=self.prompt_tokens, completion_tokens=self.completion_tokens)
        result = GenerationResult(status, usage, tuple(self.choices), error, self.first_token_at)
        self.listener.on_result(result)


class InMemoryEngine:
    """`InferenceEngine` that answers one request after the other, from a thread of its own.

    Tests control it by its attributes. While `resume` is cleared, the engine blocks with one request started
    (`busy` is set then). While `failure` is set, requests end as `failed` with it. A folder without files, or a
    version in `unusable`, is refused as `BadArtifact`. `requests` has all requests that were accepted. `options` are
    the supported ones: it follows `logprobs`, `top_logprobs`, `tools` and `tool_choice`, and only records the others.

    Args:
        base: Version name of the base.
        answer: Returns the answer to a choice; the engine cuts it off at stop strings and at the token limit.
        calls: Returns the tool calls that follow the answer of a choice.
        max_waiting: Limit of waiting requests.
        max_context: Limit of prompt and answer together, in tokens.
        seconds_per_token: How long a token takes.

    """

    def __init__(
        self,
        base: str,
        *,
        answer: Callable[[GenerationRequest, int], str] = random_answer,
        calls: Callable[[GenerationRequest, int], tuple[FunctionCall, ...]] = forced_call,
        max_waiting: int = 256,
        max_context: int = 4096,
        seconds_per_token: float = 0.0,
    ) -> None:
        self.unusable: set[str] = set()
        self.failure: Exception | None = None
        self.busy = threading.Event()
        self.resume = threading.Event()
        self.resume.set()
        self.requests: list[GenerationRequest] = []
        self.options = OPTION_NAMES
        self._base = base
        self._answer = answer
        self._calls = calls
        self._max_waiting = max_waiting
        self._max_context = max_context
        self._seconds_per_token = seconds_per_token
        self._changed = threading.Condition()
        self._closing = False
        self._versions = [base]
        self._waiting: deque[InMemoryGeneration] = deque()
        self._running: InMemoryGeneration | None = None
        self._thread = threading.Thread(target=self._run, name="in-memory-engine", daemon=True)

    def supported_options(self) -> frozenset[str]:
        """Return `options`. See `InferenceEngine.supported_options`."""
        return self.options

    def start(self) -> Future[None]:
        """Start the thread. The engine is ready at once."""
        self._thread.start()
        started: Future[None] = Future()
        started.set_result(None)
        return started

    def stop(self, timeout_s: float) -> None:
        """Stop the thread. See `InferenceEngine.stop`."""
        with self._changed:
            self._closing = True
            unstarted, self._waiting = list(self._waiting), deque()
            self._changed.notify_all()
        for generation in unstarted:
            generation.end("failed", "the engine was stopped")
        self._thread.join(timeout_s)
        if self._running is not None:
            self._running.cancel()
            self._thread.join(timeout_s)

    async def submit(self, request: GenerationRequest, listener: GenerationListener) -> InMemoryGeneration:
        """Queue a request. See `InferenceEngine.submit`."""
        remaining = self._max_context - _prompt_tokens(request)
        if remaining < 1:
            raise ContextExceeded(f"the conversation is longer than {self._max_context - 1} characters")
        generation = InMemoryGeneration(request, listener, min(request.max_tokens, remaining))
        with self._changed:
            if self._closing:
                raise Retryable("the engine is stopped")
            if request.version not in self._versions:
                raise UnknownVersion(f"the version {request.version} is not loaded")
            if len(self._waiting) >= self._max_waiting:
                raise Overloaded(f"{self._max_waiting} requests are waiting already")
            self.requests.append(request)
            self._waiting.append(generation)
            self._changed.notify_all()
        return generation

    def load(self, version: str, folder: Path) -> None:
        """Accept a version whose folder has files. See `InferenceEngine.load`."""
        if version in self.unusable or not any(folder.iterdir()):
            raise BadArtifact(f"{version} cannot be loaded")
        with self._changed:
            if version not in self._versions:
                self._versions.append(version)

    def unload(self, version: str) -> None:
        """Refuse further requests of a version. See `InferenceEngine.unload`."""
        with self._changed:
            if version != self._base and version in self._versions:
                self._versions.remove(version)

    def versions(self) -> tuple[str, ...]:
        """Return the versions that accept requests, the base first."""
        with self._changed:
            return tuple(self._versions)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if self._closing:
                    return
                self._running = generation = self._waiting.popleft()
            self.busy.set()
            self.resume.wait()
            if generation.cancelled.is_set():
                generation.end("cancelled")
            elif self.failure is not None:
                generation.end("failed", f"{type(self.failure).__name__}: {self.failure}")
            else:
                self._generate(generation)
            self.busy.clear()
            self._running = None

    def _generate(self, generation: InMemoryGeneration) -> None:
        for choice in range(generation.request.n):
            self._generate_choice(generation, choice)
        generation.end("cancelled" if generation.cancelled.is_set() else "completed")

    def _generate_choice(self, generation: InMemoryGeneration, choice: int) -> None:
        request = generation.request
        detokenizer = IncrementalDetokenizer(lambda tokens: "".join(map(chr, tokens)), request.stop)
        answer, calls = self._answer(request, choice), self._calls(request, choice)
        logprobs: list[TokenLogprob] = []
        finish_reason: FinishReason | None = None
        token_count = 0
        while finish_reason is None:
            if self._seconds_per_token:
                time.sleep(self._seconds_per_token)
            token_count += 1
            generation.completion_tokens += 1
            generation.first_token_at = generation.first_token_at or time.monotonic()
            at_end = token_count > len(answer)  # the end of the text is a token too
            new_text = "" if at_end else detokenizer.push(ord(answer[token_count - 1]))
            if generation.cancelled.is_set():
                finish_reason = "cancelled"
            elif at_end or detokenizer.stopped:
                finish_reason = "tool_calls" if at_end and calls else "stop"
            elif token_count >= generation.max_tokens:
                finish_reason = "length"
            if finish_reason is not None:
                new_text += detokenizer.flush()
            new_logprobs = () if at_end else _logprobs(request, answer[token_count - 1])
            logprobs += new_logprobs
            if finish_reason == "tool_calls":
                _send_calls(generation, choice, calls)
            if new_text or new_logprobs or finish_reason is not None:
                piece = Piece(choice, new_text, finish_reason, logprobs=new_logprobs)
                generation.listener.on_piece(piece)
        made = calls if finish_reason == "tool_calls" else ()
        generation.choices.append(
            ChoiceResult(choice, detokenizer.text, finish_reason, made, tuple(logprobs))
        )


def _send_calls(generation: InMemoryGeneration, choice: int, calls: tuple[FunctionCall, ...]) -> None:
    """Send each call in parts: its id and name, then its arguments character by character."""
    for index, call in enumerate(calls):
        deltas = [ToolCallDelta(index, call.id, call.name)]
        deltas += [ToolCallDelta(index, arguments=character) for character in call.arguments]
        assert join_tool_calls(deltas) == (call,)
        for delta in deltas:
            generation.listener.on_piece(Piece(choice, "", tool_calls=(delta,)))


def _logprobs(request: GenerationRequest, token: str) -> tuple[TokenLogprob, ...]:
    """Return the log-probability of a token, if the request wants it: they fall by 1 from -0.5 with the rank."""
    if not request.options.logprobs:
        return ()
    ranked = [token, *(other for other in ALPHABET if other != token)]
    top = tuple(
        TopLogprob(text, -0.5 - rank, tuple(text.encode()))
        for rank, text in enumerate(ranked[: request.options.top_logprobs or 0])
    )
    return (TokenLogprob(token, -0.5, tuple(token.encode()), top),)


def _prompt_tokens(request: GenerationRequest) -> int:
    return sum(len(message.content) for message in request.messages)
