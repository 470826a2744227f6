"""The client for programs with an event loop: `client.py` with `async` and `await`, nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Literal, Self, TypeVar

import httpx
from tenacity import AsyncRetrying, stop_after_attempt

from loopwright import endpoints
from loopwright.base_urls import find_erasure_token, find_places
from loopwright.endpoints import POLL_S, Call, Value
from loopwright.errors import StillRunning, Unreachable
from loopwright.models import (
    Accepted,
    Command,
    CommandKind,
    CommandResult,
    DeadLetterContent,
    DeadLetterPage,
    Diff,
    Erasure,
    GateReport,
    Kind,
    Lineage,
    Quarantine,
    Receipt,
    Recorded,
    Status,
    Trace,
    Version,
)
from loopwright.retry import Retry, last_answer, worth_repeating

A = TypeVar("A")


class AsyncLoopwright:
    """As `Loopwright`, for one event loop; close it, or use it in an `async with`."""

    def __init__(
        self,
        *,
        feedback_url: str | None = None,
        console_url: str | None = None,
        inference_url: str | None = None,
        trainer_url: str | None = None,
        erasure_token: str | None = None,
        timeout: float = 10.0,
        retry: Retry | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._places = find_places(feedback_url, console_url, inference_url, trainer_url)
        self._erasure_token = find_erasure_token(erasure_token)
        self._retry = retry or Retry()
        self._http = httpx.AsyncClient(timeout=timeout, transport=transport)

    @property
    def openai_base_url(self) -> str:
        """What the official OpenAI client takes as `base_url` to chat with the line's serving version."""
        return f"{self._places.inference}/v1"

    async def send(
        self,
        response_id: str,
        user_id: str,
        kind: Kind,
        value: Value,
        event_id: str | None = None,
        *,
        choice: int = 0,
        tags: Sequence[str] = (),
        occurred_at: datetime | None = None,
        line: str | None = None,
    ) -> Accepted:
        """Send one feedback event; returns once it is in the log for good.

        `response_id` is the chat completion's `id`, `user_id` your name of the user (it is pseudonymised at the
        door). Without an `event_id` a UUIDv7 is made; give one to make your own retries recognisable. `occurred_at`
        is when the user said it, if that was not now.
        """
        return await self._run(
            endpoints.send(
                response_id,
                user_id,
                kind,
                value,
                event_id=event_id,
                choice=choice,
                tags=tags,
                occurred_at=occurred_at,
                line=line,
            )
        )

    async def thumbs_up(
        self, response_id: str, user_id: str, *, choice: int = 0, event_id: str | None = None
    ) -> Accepted:
        """The user liked the answer."""
        return await self.send(response_id, user_id, "thumbs", "up", event_id, choice=choice)

    async def thumbs_down(
        self, response_id: str, user_id: str, *, choice: int = 0, event_id: str | None = None
    ) -> Accepted:
        """The user disliked the answer."""
        return await self.send(response_id, user_id, "thumbs", "down", event_id, choice=choice)

    async def rate(
        self,
        response_id: str,
        user_id: str,
        stars: Literal[1, 2, 3, 4, 5],
        *,
        choice: int = 0,
        event_id: str | None = None,
    ) -> Accepted:
        """The user gave 1 (worst) to 5 stars."""
        return await self.send(response_id, user_id, "rating", stars, event_id, choice=choice)

    async def correct(
        self, response_id: str, user_id: str, text: str, *, choice: int = 0, event_id: str | None = None
    ) -> Accepted:
        """The user says what the answer should have been."""
        return await self.send(response_id, user_id, "correction", text, event_id, choice=choice)

    async def comment(
        self, response_id: str, user_id: str, text: str, *, choice: int = 0, event_id: str | None = None
    ) -> Accepted:
        """The user says what is missing or wrong."""
        return await self.send(response_id, user_id, "comment", text, event_id, choice=choice)

    async def prefer(
        self,
        response_id: str,
        user_id: str,
        *,
        over: str | int | None = None,
        under: str | int | None = None,
        choice: int = 0,
        event_id: str | None = None,
    ) -> Accepted:
        """This answer is better than `over`, or worse than `under`: a text, or another choice of the response."""
        return await self.send(
            response_id, user_id, "preference", endpoints.preference(over, under), event_id, choice=choice
        )

    async def retract(
        self, response_id: str, user_id: str, retracted: str, *, event_id: str | None = None
    ) -> Accepted:
        """The user takes back the event `retracted`. This is an event of its own."""
        return await self.send(response_id, user_id, "retract", retracted, event_id)

    async def record_response(
        self,
        response_id: str,
        messages: Sequence[Mapping[str, str]],
        text: str,
        *,
        version: str,
        finish_reason: str | None = None,
        line: str | None = None,
    ) -> Recorded:
        """Record an answer of your own model, so that feedback on it can be learned from.

        `messages` is the conversation up to the answer, as `{"role", "content"}`; `text` the answer; `version` your
        name of the model that gave it; `finish_reason` how it ended, as OpenAI has it: one that was
        cut off (`length`) does not teach to end there. Feedback may come before or after its response.
        """
        return await self._run(
            endpoints.record_response(
                response_id, messages, text, version=version, finish_reason=finish_reason, line=line
            )
        )

    async def receipt(self, response_id: str, event_id: str) -> Receipt:
        """What became of a feedback event, up to the version that serves."""
        return await self._run(endpoints.receipt(response_id, event_id))

    async def erase(self, user_id: str, request_id: str | None = None, *, line: str | None = None) -> Erasure:
        """Erase all that a user said and asked; returns once that is in the log for good. See `wait_for_erasure`.

        `user_id` is your name of the user. Without a `request_id` a UUIDv7 is made; the same one again is the same
        erasure. This is an operator's call: it needs `erasure_token`. Versions that were trained from it are named, not
        undone.
        """
        return await self._run(endpoints.erase(user_id, request_id, line))

    async def erasure(self, request_id: str) -> Erasure:
        """How far an erasure has come. Needs `erasure_token`."""
        return await self._run(endpoints.erasure(request_id))

    async def wait_for_erasure(
        self,
        request_id: str,
        *,
        timeout: float = 600.0,  # noqa: ASYNC109 - the mirror of the other client
        poll: float = POLL_S,
    ) -> Erasure:
        """As `erasure`, but asks again every `poll` seconds until it is done; raises `StillRunning` after `timeout`
        seconds."""
        end = time.monotonic() + timeout
        while (found := await self.erasure(request_id)).status != "done":
            if time.monotonic() + poll > end:
                raise StillRunning(request_id, timeout, "erasure")
            await asyncio.sleep(poll)
        return found

    async def status(self, line: str | None = None) -> Status:
        """What the loop is doing now, for one line; absent, the console's own."""
        return await self._run(endpoints.status(line))

    async def versions(self, line: str | None = None) -> list[Version]:
        """All versions of a line with their verdicts, the base first."""
        return await self._run(endpoints.versions(line))

    async def command(
        self,
        kind: CommandKind,
        *,
        line: str | None = None,
        version: str | None = None,
        dry_run: bool = False,
    ) -> Command:
        """Give an operator's command; returns once it is in the log for good. See `wait_for_result`.

        Where no answer says whether it was taken, it is not given again: `Unreachable` or `Unavailable` is raised.
        `dry_run` belongs to `train_now` and `collect_garbage`: the result says what would be done, and nothing is.
        """
        return await self._run(endpoints.command(kind, line, version, dry_run=dry_run))

    async def dead_letters(
        self,
        *,
        error_class: str | None = None,
        topic: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        replayed: bool | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> DeadLetterPage:
        """Records that could not be processed, newest first, a page at a time.

        Wanted are those of one `error_class` and one original `topic`, that died from `since` and before `until`, and
        that were `replayed` or not; None takes all. `cursor` is the `next` of the page before; a page may be short,
        even empty, while there is a `next`. `limit` is 1 to 200.
        """
        return await self._run(
            endpoints.dead_letters(
                error_class=error_class,
                topic=topic,
                since=since,
                until=until,
                replayed=replayed,
                cursor=cursor,
                limit=limit,
            )
        )

    async def dead_letter(self, position: str) -> DeadLetterContent:
        """One dead letter with what the record held."""
        return await self._run(endpoints.dead_letter(position))

    async def replay(self, positions: Sequence[str], *, line: str | None = None) -> Command:
        """Send dead letters, at most 1000, back to their topics; returns once the order is in the log for good.

        Each goes back once, whatever is asked how often; one that fails again is a new dead letter that names the one
        before. `wait_for_result` tells how many went back.
        """
        return await self._run(endpoints.replay(positions, line))

    async def quarantine(self, line: str | None = None) -> Quarantine:
        """What is held back from training and can be released: ids and reasons, never a text."""
        return await self._run(endpoints.quarantine(line))

    async def release(self, response_ids: Sequence[str], *, line: str | None = None) -> Command:
        """Let what is held of these responses, at most 1000, train from the next run on; returns once the order is in
        the log for good. `wait_for_result` tells what of it was released."""
        return await self._run(endpoints.release(response_ids, line))

    async def lineage(self, version: str) -> Lineage:
        """What a version was made from: run, snapshot, batches, responses, events. Asks the trainer."""
        return await self._run(endpoints.lineage(version))

    async def trace(self, event_id: str, response_id: str | None = None) -> Trace:
        """What became of an event in each run, and in the versions that came of them. `response_id` where the event's
        id alone is not enough. Asks the trainer."""
        return await self._run(endpoints.trace(event_id, response_id))

    async def diff(self, one: str, other: str) -> Diff:
        """What two versions differ in: recipe, rows, figures, base, software. Asks the trainer."""
        return await self._run(endpoints.diff(one, other))

    async def gate_report(self, version: str) -> GateReport:
        """What the gate found of a version: verdict, reasons, figures, and where the trainer tells them the answers.
        Asks the trainer."""
        return await self._run(endpoints.gate_report(version))

    async def gate_page(self, version: str) -> str:
        """The same as one HTML page that needs nothing else. Asks the trainer."""
        return await self._run(endpoints.gate_page(version))

    async def result(self, command_id: str) -> CommandResult | None:
        """What came of a command, None while nothing is known."""
        return await self._run(endpoints.result(command_id))

    async def wait_for_result(
        self,
        command_id: str,
        *,
        timeout: float = 600.0,  # noqa: ASYNC109 - the mirror of the other client
        poll: float = POLL_S,
    ) -> CommandResult:
        """As `result`, but asks again every `poll` seconds; raises `StillRunning` after `timeout` seconds."""
        end = time.monotonic() + timeout
        while (found := await self.result(command_id)) is None:
            if time.monotonic() + poll > end:
                raise StillRunning(command_id, timeout)
            await asyncio.sleep(poll)
        return found

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, call: Call[A]) -> A:
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self._retry.attempts),
            wait=self._retry.wait,
            retry=partial(worth_repeating, call.repeatable),
            retry_error_callback=last_answer,
        )
        url = self._places.of(call.service) + call.path
        try:
            answer: httpx.Response = await retrying(
                self._http.request,
                call.method,
                url,
                json=call.body,
                headers=call.headers(self._erasure_token),
            )
        except httpx.TransportError as error:
            base, variable = self._places.of(call.service), self._places.variable(call.service)
            raise Unreachable(base, variable, str(error)) from error
        return call.read(answer)
