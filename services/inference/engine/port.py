"""The engine port: what the gateway requires of anything that generates answers."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

from services.inference.core.generation_request import GenerationRequest, GenerationResult, Piece


class GenerationListener(Protocol):
    """Receiver of one request's output.

    The engine calls it from any thread, one call at a time: all pieces first, then `on_result` exactly once. Calls
    return quickly and do not raise.
    """

    def on_piece(self, piece: Piece) -> None:
        """Receive new text. The pieces of one choice arrive in order; choices may be interleaved."""

    def on_result(self, result: GenerationResult) -> None:
        """Receive the end of the request.

        The text, log-probabilities and tool calls (`join_tool_calls`) of each choice equal its pieces joined together.
        """


class Generation(Protocol):
    """A request that an engine has accepted."""

    def cancel(self) -> None:
        """Stop generating soon and end the request as `cancelled`.

        Returns at once, can be called from any thread, and has no effect on a request that has ended.
        """


class InferenceEngine(Protocol):
    """An engine that generates answers with several versions of one base model at once.

    The gateway decides which version answers a request, records the answer, and swaps versions. The engine renders
    prompts, batches requests, generates text, and keeps versions in memory. How it does that (threads, processes,
    one server or several) is invisible behind this port. All methods are thread-safe.

    Prompts: the engine renders `messages` with the base model's own chat template, or with
    `shared.chat_template` if it has none. Training uses the same templates, so a version is served the prompts that it
    was trained on.

    Versions: a version name is immutable and never denotes two sets of weights. A request is answered by the
    version it names from its first token to its last, whichever versions are loaded or unloaded meanwhile. The base
    is a version too; it is always loaded. A loaded version accepts requests until `unload`, even if a process behind
    the engine restarts in between.

    Seeds: two equal requests with a seed get the same answer.

    Options: the gateway refuses a request that has an option which is not in `supported_options`, so an engine gets
    only requests that it can follow. Without `tools` among them, no message has tool calls.

    Text, names, ids and arguments that an engine returns are valid Unicode (no lone surrogates); log-probabilities are
    finite.
    """

    def supported_options(self) -> frozenset[str]:
        """Return the names of the fields of `GenerationOptions` that this engine follows.

        It is asked for every request and returns at once. The answer does not change while the engine runs.
        """

    def start(self) -> Future[None]:
        """Start loading the base model and return at once.

        The future completes when the base is ready for requests, or fails with the reason why it never will be.
        """

    def stop(self, timeout_s: float) -> None:
        """Shut down and end every accepted request.

        New requests are refused from now on, and waiting ones end as `failed`. Running ones have `timeout_s` seconds
        to finish before they are cancelled, and the same time again to react to that.
        """

    async def submit(self, request: GenerationRequest, listener: GenerationListener) -> Generation:
        """Accept a request and return a handle to cancel it.

        The request is accepted if and only if the call returns; `listener` may be called before that. If the call
        raises or is cancelled, `listener` is never called.

        Raises:
            UnknownVersion: if the version is not loaded.
            ContextExceeded: if the prompt leaves no room for an answer in the context.
            Rejected: if the chat template refuses the conversation, or an option has a value that cannot be followed,
                such as a JSON Schema that is not valid (`InvalidParameter`, which names the field).
            Overloaded: if the engine's queue is full. The same request may succeed a moment later.
            Retryable: if the engine is shutting down.

        """

    def load(self, version: str, folder: Path) -> None:
        """Load a version, let it answer a smoke test, and warm it up; block until requests can name it.

        If the engine has several servers, the version is then loaded on all of them. If any step fails, the version
        is not loaded anywhere. Loading a version that is loaded has no effect. Requests of other versions may be
        delayed meanwhile, but none fails.

        Args:
            version: The version's name.
            folder: Verified files of the artifact. They may be deleted once this call has returned; an engine that
                reads them again later keeps a copy.

        Raises:
            BadArtifact: if this engine cannot serve the version.
            Retryable: if loading may succeed later, for example because a server is unreachable.

        """

    def unload(self, version: str) -> None:
        """Free the memory of a version and return at once, possibly before that has happened.

        The caller has waited for the end of the version's last request. New ones are refused with `UnknownVersion`
        from now on. The base, and versions that are not loaded, are ignored.
        """

    def versions(self) -> tuple[str, ...]:
        """Return the versions that accept requests, the base first."""
