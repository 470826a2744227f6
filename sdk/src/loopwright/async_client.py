"""Asynchronous client, and the source of the synchronous one, which `sdk/generate_sync_client.py` generates.

Requests are built and responses parsed by the pure functions in `wire.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Literal

import httpx
from tenacity import AsyncRetrying, stop_after_attempt

from loopwright import bulk
from loopwright.base_urls import resolve_api_key, resolve_base_urls
from loopwright.errors import LoopwrightError, StillRunning, Unreachable
from loopwright.event_ids import new_event_id
from loopwright.feedback_kinds import FeedbackKind
from loopwright.models import (
    Accepted,
    BrowserToken,
    CertificateKey,
    Command,
    CommandKind,
    CommandResult,
    DeadLetterContent,
    DeadLetterPage,
    Diff,
    Erasure,
    GateReport,
    Lineage,
    Quarantine,
    Receipt,
    Recorded,
    RolloutState,
    RowResult,
    SignedCertificate,
    Status,
    Trace,
    Version,
)
from loopwright.retry import Retry, last_response, should_retry
from loopwright.wire import (
    POLL_INTERVAL_S,
    FeedbackValue,
    Service,
    check,
    choices_of,
    exported_records,
    feedback_body,
    format_time,
    parse,
    path_of,
    preference_value,
    response_body,
    unexpected_response,
    without_none,
)


class AsyncLoopwright:
    """Asynchronous client for the feedback service, the console and the trainer. Use it in one event loop.

    Close it with `close`, or use it in an `async with` block:

        async with AsyncLoopwright() as loop:
            sent = await loop.correct(response_id, user_id="u-17", text="Wellington is the capital.")
            print((await loop.receipt(response_id, sent.event_id)).detail)

    Broken connections and the statuses 429 and 503 are retried. A feedback event keeps its id over all attempts, so it
    is counted once. Every method that sends a request raises `Unreachable` or a `Problem` if it fails.
    """

    def __init__(
        self,
        *,
        feedback_url: str | None = None,
        console_url: str | None = None,
        inference_url: str | None = None,
        trainer_url: str | None = None,
        api_key: str | None = None,
        timeout: float = 10.0,
        retry: Retry | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Create a client. It connects with the first request.

        Args:
            feedback_url: Base URL of the feedback service. Default: `LOOPWRIGHT_FEEDBACK_URL`, else the local stack's.
            console_url: Base URL of the console. Default: `LOOPWRIGHT_CONSOLE_URL`, else the local stack's.
            inference_url: Base URL of inference. Default: `LOOPWRIGHT_INFERENCE_URL`, else the local stack's.
            trainer_url: Base URL of the trainer. Default: `LOOPWRIGHT_TRAINER_URL`, else the local stack's.
            api_key: API key, sent to the services above with every request. Default: `LOOPWRIGHT_API_KEY`. Not needed
                where the services have no keys.
            timeout: Timeout of one attempt, in seconds.
            retry: Retry policy.
            transport: HTTP transport to use instead of the network, for tests.

        """
        self._base_urls = resolve_base_urls(feedback_url, console_url, inference_url, trainer_url)
        key = resolve_api_key(api_key)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._retry = retry or Retry()
        self._http = httpx.AsyncClient(timeout=timeout, transport=transport)

    @property
    def openai_base_url(self) -> str:
        """Return the `base_url` with which an OpenAI client chats with the serving version."""
        return f"{self._base_urls.inference}/v1"

    # --- feedback ---------------------------------------------------------------------------------------------------

    async def send(
        self,
        response_id: str,
        user_id: str,
        kind: FeedbackKind,
        value: FeedbackValue,
        event_id: str | None = None,
        *,
        choice: int = 0,
        tags: Sequence[str] = (),
        occurred_at: datetime | None = None,
        line: str | None = None,
    ) -> Accepted:
        """Send one feedback event. Returns once it is stored durably in the log.

        Args:
            response_id: The `id` of the chat completion.
            user_id: Your id of the user. Only a pseudonym of it is stored.
            kind: Kind of feedback.
            value: Content, depending on the kind; see `FeedbackValue`.
            event_id: Id of the event. Pass your own to make your retries recognisable; the default is a new UUIDv7.
            choice: Index of the choice that the feedback is about, if the completion has several.
            tags: Labels to store with the event.
            occurred_at: When the user gave the feedback, with a time zone; the default is now.
            line: Line of the response; the default is the service's own.

        Raises:
            Conflict: The event id was already used for different feedback.
            ValueError: `occurred_at` has no time zone.

        """
        event = feedback_body(
            response_id,
            user_id,
            kind,
            value,
            event_id=event_id or new_event_id(),
            choice=choice,
            tags=tags,
            occurred_at=occurred_at,
            line=line,
        )
        return parse(await self._post("feedback", path_of("v1", "feedback"), event), Accepted)

    async def thumbs_up(
        self, response_id: str, user_id: str, *, choice: int = 0, event_id: str | None = None
    ) -> Accepted:
        """Send that the user liked the answer."""
        return await self.send(response_id, user_id, "thumbs", "up", event_id, choice=choice)

    async def thumbs_down(
        self, response_id: str, user_id: str, *, choice: int = 0, event_id: str | None = None
    ) -> Accepted:
        """Send that the user disliked the answer."""
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
        """Send the user's rating, from 1 (worst) to 5 stars."""
        return await self.send(response_id, user_id, "rating", stars, event_id, choice=choice)

    async def correct(
        self, response_id: str, user_id: str, text: str, *, choice: int = 0, event_id: str | None = None
    ) -> Accepted:
        """Send the user's correction: `text` is what the answer should have been."""
        return await self.send(response_id, user_id, "correction", text, event_id, choice=choice)

    async def comment(
        self, response_id: str, user_id: str, text: str, *, choice: int = 0, event_id: str | None = None
    ) -> Accepted:
        """Send the user's comment: `text` names the faults of the answer."""
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
        """Send that the user prefers this answer to another one, or another one to this answer.

        Args:
            response_id: The `id` of the chat completion.
            user_id: Your id of the user.
            over: The worse answer: its text, or the index of another choice of the same completion.
            under: The better answer, likewise. Give exactly one of the two.
            choice: Index of the choice that is compared.
            event_id: Id of the event; the default is a new UUIDv7.

        Raises:
            ValueError: Not exactly one of `over` and `under` is given.

        """
        value = preference_value(over, under)
        return await self.send(response_id, user_id, "preference", value, event_id, choice=choice)

    async def retract(
        self, response_id: str, user_id: str, retracted_event_id: str, *, event_id: str | None = None
    ) -> Accepted:
        """Retract an earlier event of the same user. The retraction is itself an event."""
        return await self.send(response_id, user_id, "retract", retracted_event_id, event_id)

    async def record_response(
        self,
        response_id: str,
        messages: Sequence[Mapping[str, Any]],
        text: str,
        *,
        version: str,
        user_id: str | None = None,
        finish_reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        usage: Mapping[str, int] | None = None,
        latency_ms: float | None = None,
        created_at: datetime | None = None,
        line: str | None = None,
    ) -> Recorded:
        """Record an answer that Loopwright did not generate, so that it can learn from feedback on it.

        Feedback may be sent before or after. If the id was recorded before, the first record stays in force.

        Args:
            response_id: Your id of the response.
            messages: The conversation before the answer, as OpenAI's clients send it: `{"role": ..., "content": ...}`.
            text: The answer.
            version: Your name of the model that answered.
            user_id: Your id of the user who asked, so that an erasure finds the response. Only a pseudonym is stored.
            finish_reason: Why the answer ended, as in the OpenAI API. With `length`, its end is not trained on.
            metadata: Up to 16 labels of your own.
            usage: `prompt_tokens` and `completion_tokens`.
            latency_ms: Time from the request to the end of the answer, in milliseconds.
            created_at: When the model answered; the default is now.
            line: Line of the response; the default is the service's own.

        Raises:
            Invalid: The response is larger than a training batch can hold (code `oversized`), or a field is invalid.

        """
        response = response_body(
            response_id,
            messages,
            choices_of(text, finish_reason),
            version=version,
            user_id=user_id,
            metadata=metadata,
            usage=usage,
            latency_ms=latency_ms,
            created_at=created_at,
            line=line,
        )
        return parse(await self._post("feedback", path_of("v1", "responses"), response), Recorded)

    async def send_many(
        self, events: Iterable[Mapping[str, Any]], *, dry_run: bool = False
    ) -> list[RowResult]:
        """Send many feedback events, and return one result per event, in order. A bad event stops no other.

        Events are sent in batches of at most 1000, so `events` may be a generator. The results of all of them are kept
        in memory: call this in portions if there are millions.

        Args:
            events: The fields of `send` as mappings: `response_id`, `user_id`, `kind`, `value`, and optionally the
                others, with times as ISO 8601. Pass your own `event_id`s: then all can be sent again, and count once.
            dry_run: Only validate, and report hints, duplicates and conflicts.

        """
        rows = ({**event, "event_id": event.get("event_id") or new_event_id()} for event in events)
        return await self._send_rows(bulk.FEEDBACK_ROWS, rows, dry_run)

    async def record_many(
        self, responses: Iterable[Mapping[str, Any]], *, dry_run: bool = False
    ) -> list[RowResult]:
        """Record many responses, and return one result per response, in order. A bad response stops no other.

        Args:
            responses: Bodies of `POST /v1/responses`: `response_id`, `version`, `messages`, `choices`, and optionally
                others.
            dry_run: Only validate.

        """
        return await self._send_rows(bulk.RESPONSE_ROWS, responses, dry_run)

    async def receipt(self, response_id: str, event_id: str) -> Receipt:
        """Return the receipt of a feedback event: its outcome, followed to the version that serves."""
        return parse(await self._get("feedback", path_of("v1", "feedback", response_id, event_id)), Receipt)

    async def browser_token(
        self, response_id: str, user_id: str | None = None, *, lifetime_s: int | None = None
    ) -> BrowserToken:
        """Make a token with which a page may send feedback on one response, without an API key.

        Needs an API key with the scope `ingest`. `loopwright.browser_tokens` makes tokens without a request.

        Args:
            response_id: The `id` of the chat completion.
            user_id: Your id of the user. With it, the token is for the feedback of this user only.
            lifetime_s: Seconds for which the token is valid; the default is an hour.

        """
        wanted = {"response_id": response_id, "user_id": user_id, "lifetime_s": lifetime_s}
        return parse(await self._post("feedback", path_of("v1", "feedback-tokens"), wanted), BrowserToken)

    # --- erasure ----------------------------------------------------------------------------------------------------

    async def erase(self, user_id: str, request_id: str | None = None, *, line: str | None = None) -> Erasure:
        """Request the erasure of all data of a user. Returns once the request is stored durably in the log.

        Versions that were trained on the data are listed, not changed. Needs an API key with the scope `erase`. Follow
        the erasure with `wait_for_erasure`.

        Args:
            user_id: Your id of the user.
            request_id: Id of the request. Repeating a request under its id has no further effect; the default is a new
                UUIDv7.
            line: Line of the request; the default is the service's own.

        Raises:
            Conflict: The request id was already used for another user.
            Denied: The API key is missing or wrong, or lacks the scope `erase`.

        """
        request = {"user_id": user_id, "request_id": request_id or new_event_id(), "line": line}
        return parse(await self._post("feedback", path_of("v1", "erasure"), request), Erasure)

    async def erasure(self, request_id: str) -> Erasure:
        """Return the progress of an erasure. Needs an API key with the scope `erase`."""
        return parse(await self._get("feedback", path_of("v1", "erasure", request_id)), Erasure)

    async def wait_for_erasure(
        self,
        request_id: str,
        *,
        timeout: float = 600.0,
        poll: float = POLL_INTERVAL_S,
    ) -> Erasure:
        """Wait until an erasure is done and return it. Needs an API key with the scope `erase`.

        Args:
            request_id: Id of the request.
            timeout: Longest wait, in seconds.
            poll: Interval between two requests, in seconds.

        Raises:
            StillRunning: The erasure is not done within the timeout.

        """
        end = time.monotonic() + timeout
        while (erasure := await self.erasure(request_id)).status != "done":
            if time.monotonic() + poll > end:
                raise StillRunning(request_id, timeout, "erasure")
            await asyncio.sleep(poll)
        return erasure

    async def certificate(self, request_id: str) -> SignedCertificate:
        """Return the signed certificate of a finished erasure. Needs a key with the scope `erase`.

        Raises:
            NotFound: The erasure is not done yet, or there is none with this id.

        """
        path = path_of("v1", "erasure-certificates", request_id)
        return parse(await self._get("feedback", path), SignedCertificate)

    async def certificate_key(self) -> str:
        """Return the public key that verifies this deployment's certificates, as 64 hex digits."""
        response = await self._get("feedback", path_of("v1", "erasure-certificate-key"))
        return parse(response, CertificateKey).public_key

    async def export(
        self,
        user_id: str,
        *,
        timeout: float = 3600.0,
    ) -> list[dict[str, Any]]:
        """Return everything that the log has about a user. Needs a key with the scope `erase`.

        Args:
            user_id: Your id of the user.
            timeout: Longest wait for the next record, in seconds. The service reads the whole log.

        Raises:
            Unavailable: The service could not read the whole log.

        """
        response = await self._post("feedback", path_of("v1", "export"), {"user_id": user_id}, timeout)
        return exported_records(response)

    # --- state of the loop ------------------------------------------------------------------------------------------

    async def status(self, line: str | None = None) -> Status:
        """Return what a line of the loop is doing now. The default is the console's own line."""
        return parse(await self._get("console", path_of("api", "status", line=line)), Status)

    async def versions(self, line: str | None = None) -> list[Version]:
        """Return all versions of a line with their verdicts, the base first."""
        return parse(await self._get("console", path_of("api", "versions", line=line)), list[Version])

    async def rollout(self, line: str | None = None) -> RolloutState:
        """Return what serves a line, and the figures of its canary. The default is the console's own line."""
        name = (await self.status()).line if line is None else line
        return parse(await self._get("console", path_of("api", "rollout", name)), RolloutState)

    async def lineage(self, version: str) -> Lineage:
        """Return what a version was trained on: run, dataset snapshot, batches, responses and events."""
        return parse(await self._get("trainer", path_of("api", "lineage", version=version)), Lineage)

    async def trace(self, event_id: str, response_id: str | None = None) -> Trace:
        """Return what each run did with an event, and the versions that came out of the runs.

        Args:
            event_id: Id of the event.
            response_id: Id of its response, if the event id is not unique.

        """
        path = path_of("api", "lineage", event_id=event_id, response_id=response_id)
        return parse(await self._get("trainer", path), Trace)

    async def diff(self, one: str, other: str) -> Diff:
        """Return the differences between two versions: recipe, training rows, gate figures, base and software."""
        return parse(await self._get("trainer", path_of("api", "diff", one=one, other=other)), Diff)

    async def gate_report(self, version: str) -> GateReport:
        """Return the gate's report on a version: verdict, reasons and figures.

        It contains the answers that were compared only if the trainer is allowed to return users' text.
        """
        return parse(await self._get("trainer", path_of("api", "gate", version=version)), GateReport)

    async def gate_report_html(self, version: str) -> str:
        """Return the gate's report on a version as one self-contained HTML page."""
        return (await self._get("trainer", path_of("gate", version=version))).text

    # --- commands ---------------------------------------------------------------------------------------------------

    async def command(
        self,
        kind: CommandKind,
        *,
        line: str | None = None,
        version: str | None = None,
        leaving: str | None = None,
        dry_run: bool = False,
        again: bool = False,
        command_id: str | None = None,
    ) -> Command:
        """Issue an operator command. Returns once it is stored durably in the log; see `wait_for_result`.

        A command is executed once, however often it is sent with the same id. If `Unreachable` or `Unavailable` is
        raised it may have been accepted: call again with the `command_id` of the error.

        Args:
            kind: Kind of command. For `replay`, `skip` and `release`, use the methods of that name.
            line: The line; the default is the console's own.
            version: The version, for `promote`, `rollback`, `pin`, `reproduce` and `gate_again`.
            leaving: For `rollback`: the version to roll back from. If another one serves, nothing changes.
            dry_run: Only report what would be done. For `train_now` and `collect_garbage`.
            again: For `train_now`: train also if nothing is new, on the same data with the trainer's present settings.
            command_id: Id of the command; the default is a new one.

        """
        command = {
            "kind": kind,
            "line": line,
            "version": version,
            "leaving": leaving,
            "dry_run": dry_run or None,
            "again": again or None,
        }
        return await self._issue(command, command_id)

    async def result(self, command_id: str) -> CommandResult | None:
        """Return the result of a command, or None if it has not been executed yet."""
        response = await self._get("console", path_of("api", "commands", command_id))
        return None if response.status_code == httpx.codes.ACCEPTED else parse(response, CommandResult)

    async def wait_for_result(
        self,
        command_id: str,
        *,
        timeout: float = 600.0,
        poll: float = POLL_INTERVAL_S,
    ) -> CommandResult:
        """Wait until a command has been executed and return its result.

        Args:
            command_id: Id of the command.
            timeout: Longest wait, in seconds.
            poll: Interval between two requests, in seconds.

        Raises:
            StillRunning: There is no result within the timeout.

        """
        end = time.monotonic() + timeout
        while (result := await self.result(command_id)) is None:
            if time.monotonic() + poll > end:
                raise StillRunning(command_id, timeout)
            await asyncio.sleep(poll)
        return result

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
        """Return one page of the records that could not be processed, newest first.

        Args:
            error_class: Only records that failed with this class of error.
            topic: Only records from this topic.
            since: Only records that failed at this time or later, with a time zone.
            until: Only records that failed before this time, with a time zone.
            replayed: Only records that were replayed (True), or were not (False).
            cursor: `next` of the page before. A page may be short or even empty although there is a next one.
            limit: Most records in the page, 1 to 200.

        Raises:
            ValueError: `since` or `until` has no time zone.

        """
        path = path_of(
            "api",
            "dead-letters",
            error_class=error_class,
            topic=topic,
            since=format_time("since", since),
            until=format_time("until", until),
            replayed=None if replayed is None else str(replayed).lower(),
            cursor=cursor,
            limit=limit,
        )
        return parse(await self._get("console", path), DeadLetterPage)

    async def dead_letter(self, position: str) -> DeadLetterContent:
        """Return one dead letter with the content of its record."""
        return parse(await self._get("console", path_of("api", "dead-letters", position)), DeadLetterContent)

    async def replay(
        self, positions: Sequence[str], *, line: str | None = None, command_id: str | None = None
    ) -> Command:
        """Issue a command that sends dead letters back to their topics; `wait_for_result` returns how many were.

        Each dead letter is replayed once, however often it is requested. If it fails again, the new dead letter names
        this one.

        Args:
            positions: Positions of the dead letters, at most 1000.
            line: The line; the default is the console's own.
            command_id: Id of the command; the default is a new one.

        """
        return await self._issue({"kind": "replay", "positions": list(positions), "line": line}, command_id)

    async def skip(
        self,
        topic: str,
        partition: int,
        offset: int,
        reason: str,
        *,
        line: str | None = None,
        command_id: str | None = None,
    ) -> Command:
        """Issue a command that lets a halted partition continue without the record at which it stopped.

        The record becomes a dead letter. The command is refused if the partition is not halted at this record.

        Args:
            topic: Topic of the record.
            partition: The halted partition.
            offset: Offset of the record, as `/readyz` of the processor or the rollout names it.
            reason: Why the record may be skipped; it is kept with the command.
            line: The line; the default is the console's own.
            command_id: Id of the command; the default is a new one.

        """
        command = {
            "kind": "skip",
            "topic": topic,
            "partition": partition,
            "offset": offset,
            "reason": reason,
            "line": line,
        }
        return await self._issue(command, command_id)

    async def quarantine(self, line: str | None = None) -> Quarantine:
        """Return the events that were kept out of training and can be released: ids and reasons, no text."""
        return parse(await self._get("console", path_of("api", "quarantine", line=line)), Quarantine)

    async def release(
        self, response_ids: Sequence[str], *, line: str | None = None, command_id: str | None = None
    ) -> Command:
        """Issue a command that releases quarantined events; they can train from the next run on.

        Args:
            response_ids: Ids of the responses whose events are released, at most 1000.
            line: The line; the default is the console's own.
            command_id: Id of the command; the default is a new one.

        """
        command = {"kind": "release", "response_ids": list(response_ids), "line": line}
        return await self._issue(command, command_id)

    # --- requests ---------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncLoopwright:
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _issue(self, command: Mapping[str, Any], command_id: str | None = None) -> Command:
        """Send a command, repeatedly if necessary: it is executed once under its id."""
        body = {**command, "command_id": command_id or new_event_id()}
        try:
            return parse(await self._post("console", path_of("api", "commands"), body), Command)
        except LoopwrightError as error:
            error.command_id = body["command_id"]
            raise

    async def _get(self, service: Service, path: str) -> httpx.Response:
        return await self._request("GET", service, path, None)

    async def _post(
        self,
        service: Service,
        path: str,
        body: Mapping[str, Any],
        timeout: float | None = None,
    ) -> httpx.Response:
        return await self._request("POST", service, path, without_none(body), timeout)

    async def _send_rows(
        self, path: str, rows: Iterable[Mapping[str, Any]], dry_run: bool
    ) -> list[RowResult]:
        path += "?dryrun=true" if dry_run else ""
        results: list[RowResult] = []
        for batch in bulk.batches(rows):
            await self._send_batch(path, batch)
            results += batch.final_results(len(results))
        return results

    async def _send_batch(self, path: str, batch: bulk.Batch) -> None:
        """Send a batch, and again what the service could not take yet."""
        for attempt in range(1, self._retry.attempts + 1):
            if not batch.waiting:
                return
            if attempt > 1:
                await asyncio.sleep(self._retry.backoff(attempt - 1))
            response = await self._request("POST", "feedback", path, None, bulk.TIMEOUT_S, rows=batch.body())
            try:
                batch.take(response.text)
            except ValueError as error:
                raise unexpected_response(response, error) from error

    async def _request(
        self,
        method: Literal["GET", "POST"],
        service: Service,
        path: str,
        json: Mapping[str, Any] | None,
        timeout: float | None = None,
        rows: bytes | None = None,
    ) -> httpx.Response:
        """Send a request and return the successful response.

        It may be sent several times. Each request has an id, so that this has the same effect as sending it once.
        """
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self._retry.attempts),
            wait=self._retry.wait,
            retry=should_retry,
            retry_error_callback=last_response,
        )
        base_url = self._base_urls.of(service)
        options: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
        headers = self._headers
        if rows is not None:
            options["content"] = rows
            headers = headers | {"Content-Type": bulk.MEDIA_TYPE}
        try:
            response: httpx.Response = await retrying(
                self._http.request, method, base_url + path, json=json, headers=headers, **options
            )
        except httpx.TransportError as error:
            raise Unreachable(base_url, self._base_urls.variable(service), str(error)) from error
        return check(response)
