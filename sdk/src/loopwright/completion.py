"""Read OpenAI's chat completions, whole or in chunks, into a response to record. No I/O and no clock."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from loopwright.event_ids import new_event_id
from loopwright.wire import response_body, version_name, without_none

Ending = Literal["completed", "failed", "cancelled"]
MAX_CHOICES: Final = 8
MAX_ERROR: Final = 2_000
_OWN_VERSION: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}@(v[1-9][0-9]*|base)-[0-9a-f]{8}")
"""Version names that only Loopwright's inference has. It records its answers itself."""
_ID: Final = re.compile(r"[!-~]{1,128}")


@dataclass(slots=True)
class _Choice:
    text: str = ""
    finish_reason: str | None = None
    calls: dict[int, dict[str, str]] = field(default_factory=dict)

    def to_json(self, index: int) -> dict[str, Any]:
        calls = [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": call["arguments"]},
            }
            for _, call in sorted(self.calls.items())
        ]
        found = {"index": index, "text": self.text, "finish_reason": self.finish_reason}
        return without_none({**found, "tool_calls": calls or None})


class CompletionReader:
    """Collects the answer to one request.

    Args:
        request: Body of the request.
        started: Time of the request, in seconds on any clock.
        labels: Fields of the response that the app sets: `user_id`, `metadata`, `line`.

    """

    def __init__(self, request: Mapping[str, Any], started: float, labels: Mapping[str, Any]) -> None:
        self._request = request
        self._started = started
        self._labels = labels
        self._choices: dict[int, _Choice] = {}
        self._id: str | None = None
        self._model: str | None = None
        self._usage: Mapping[str, Any] | None = None
        self._error: str | None = None
        self._first_token: float | None = None

    def completion(self, completion: Mapping[str, Any], now: float) -> None:
        """Take a whole completion."""
        self._take(completion, now, "message")
        self._first_token = None  # known only of streams

    def chunk(self, chunk: Mapping[str, Any], now: float) -> None:
        """Take a chunk of a streamed completion."""
        self._take(chunk, now, "delta")

    def response(self, ending: Ending, error: object, now: float) -> dict[str, Any] | None:
        """Return the body of `POST /v1/responses`; None without an answer, or if Loopwright's inference gave it."""
        version = self._model or str(self._request.get("model") or "")
        if not self._choices or _OWN_VERSION.fullmatch(version):
            return None
        message = self._error if self._error is not None or error is None else str(error)
        failed = ending == "failed" or self._error is not None
        counted = self._usage or {}
        usage = {
            name: counted[name]
            for name in ("prompt_tokens", "completion_tokens")
            if isinstance(counted.get(name), int)
        }
        body = response_body(
            self._id if self._id and _ID.fullmatch(self._id) else new_event_id(),
            self._request["messages"],
            [choice.to_json(index) for index, choice in sorted(self._choices.items())],
            version=version_name(version),
            user_id=self._labels.get("user_id")
            or self._request.get("safety_identifier")
            or self._request.get("user"),
            metadata={**(self._request.get("metadata") or {}), **(self._labels.get("metadata") or {})},
            usage=usage,
            latency_ms=self._milliseconds(now),
            line=self._labels.get("line"),
        )
        body |= {
            "status": "failed" if failed else ending,
            "error": (message or "")[:MAX_ERROR] or None if failed else None,
            "first_token_ms": None if self._first_token is None else self._milliseconds(self._first_token),
        }
        return without_none(body)

    def _milliseconds(self, until: float) -> float:
        return (until - self._started) * 1000

    def _take(self, part: Mapping[str, Any], now: float, field_name: str) -> None:
        error = part.get("error")
        if error:
            text = error.get("message") if isinstance(error, Mapping) else error
            self._error = str(text or "the stream ended with an error")
        self._id = self._id or part.get("id")
        self._model = self._model or part.get("model")
        self._usage = part.get("usage") or self._usage
        for choice in part.get("choices") or ():
            index = choice.get("index") or 0
            if index < MAX_CHOICES:
                self._add(index, choice, choice.get(field_name) or {}, now)

    def _add(self, index: int, choice: Mapping[str, Any], content: Mapping[str, Any], now: float) -> None:
        known = self._choices.setdefault(index, _Choice())
        text = content.get("content") or content.get("refusal") or ""
        calls = content.get("tool_calls") or ()
        if (text or calls) and self._first_token is None:
            self._first_token = now
        known.text += text
        known.finish_reason = choice.get("finish_reason") or known.finish_reason
        for position, call in enumerate(calls):
            # A chunk repeats neither id nor name, and continues the arguments.
            at = call.get("index")
            found = known.calls.setdefault(
                position if at is None else at, {"id": "", "name": "", "arguments": ""}
            )
            function = call.get("function") or {}
            found["id"] = found["id"] or call.get("id") or ""
            found["name"] += function.get("name") or ""
            found["arguments"] += function.get("arguments") or ""


class AnswerObserver:
    """Reads the bytes of an answer while they pass through, and reports the response once, when it ends.

    It never raises: `failed` is called with an error, and the app gets its answer in any case.

    Args:
        reader: Collects the answer.
        is_stream: Whether the answer consists of server-sent events.
        report: Called with the response, unless there is none.
        failed: Called with an error of this class.
        clock: Returns the time in seconds.

    """

    def __init__(
        self,
        reader: CompletionReader,
        *,
        is_stream: bool,
        report: Callable[[dict[str, Any]], None],
        failed: Callable[[Exception], None],
        clock: Callable[[], float],
    ) -> None:
        self._reader = reader
        self._is_stream = is_stream
        self._report = report
        self._failed = failed
        self._clock = clock
        self._rest = b""
        self._ended = False

    def whole(self, content: bytes) -> None:
        """Take a whole answer."""
        self.data(content)
        self.end("completed")

    def data(self, content: bytes) -> None:
        """Take the next bytes, decompressed."""
        if self._ended:
            return
        try:
            self._rest += content
            if self._is_stream:
                *lines, self._rest = self._rest.replace(b"\r\n", b"\n").split(b"\n")
                for line in lines:
                    self._line(line)
        except Exception as error:  # noqa: BLE001 - the app must get its answer
            self._ended = True
            self._failed(error)

    def end(self, ending: Ending, error: object = None) -> None:
        """Take the end of the answer. Only the first call counts."""
        if self._ended:
            return
        self._ended = True
        try:
            if ending == "completed" and not self._is_stream:
                self._reader.completion(json.loads(self._rest), self._clock())
            response = self._reader.response(ending, error, self._clock())
            if response is not None:
                self._report(response)
        except Exception as failure:  # noqa: BLE001 - the app must get its answer
            self._failed(failure)

    def _line(self, line: bytes) -> None:
        if self._ended or not line.startswith(b"data:"):
            return
        data = line[5:].strip()
        if data == b"[DONE]":
            # Clients close the stream here, which must not look like a user who stopped the answer.
            self.end("completed")
        elif data:
            self._reader.chunk(json.loads(data), self._clock())
