"""Handlers of the bulk routes: rows of feedback or of responses, each with the result that a single request would have.

Rows are handed to the log in their order. Sending a request again changes nothing, because each row has its id.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from services.feedback.bulk_stream import Finish, Json
from services.feedback.core.ndjson import Row
from services.feedback.core.schemas import FEEDBACK_BODY, RESPONSE_BODY, parse_body
from services.feedback.handlers import FeedbackHandlers, conflict, feedback_answer, response_answer
from services.feedback.rate_limit import count_request, wait_s
from shared.adapters.http import status_of
from shared.errors import LoopwrightError, Malformed, Overloaded, Oversized
from shared.events import ChatResponse, Feedback
from shared.ports import CacheCommand, Get, PutIfAbsent
from shared.records import Output
from shared.telemetry import FEEDBACK_ACCEPTED, FEEDBACK_REFUSED

ID_NEEDED: Final = (
    "event_id: a bulk row needs your own id, so that the request can be sent again without counting twice: "
    "send one"
)


@dataclass(slots=True)
class _Valid:
    """A row that became a record."""

    line: int
    record: Feedback | ChatResponse
    output: Output
    caller: str
    """Whose limit the row counts against."""
    answer: Callable[[str], Json]
    """Returns the body of the result for a status such as `accepted`."""
    identity: PutIfAbsent | None = None
    same_as: _Valid | None = None
    """An earlier row of this group with the same identity."""
    error: LoopwrightError | None = None


@dataclass(frozen=True, slots=True)
class BulkHandlers:
    """Handlers of the bulk routes."""

    handlers: FeedbackHandlers

    async def begin_feedback(self, rows: Sequence[Row], *, dry_run: bool) -> Finish:
        """Validate rows of feedback, and hand those that are valid and new to the log."""
        return await self._begin(rows, self._feedback, dry_run)

    async def begin_responses(self, rows: Sequence[Row], *, dry_run: bool) -> Finish:
        """Validate rows of responses, and hand those that are valid to the log."""
        return await self._begin(rows, self._response, dry_run)

    async def _begin(
        self, rows: Sequence[Row], parse: Callable[[Row, bytes], _Valid], dry_run: bool
    ) -> Finish:
        results: dict[int, Json] = {}
        valid = []
        for row in rows:
            try:
                if row.content is None:
                    raise Oversized("the row is longer than a single request may be: shorten the text")
                valid.append(parse(row, row.content))
            except LoopwrightError as error:
                results[row.line] = _refused(row.line, error)
        new = []
        for each, known in await self._look_up(valid, dry_run):
            if isinstance(known, LoopwrightError):
                results[each.line] = _refused(each.line, known)
            elif known:
                results[each.line] = _result(each, 200, "duplicate")
            elif dry_run:
                results[each.line] = _result(each, 200, "valid")
            else:
                new.append(each)
        sent = [asyncio.ensure_future(self._send(each)) for each in new if each.same_as is None]

        async def finish() -> list[Json]:
            await asyncio.gather(*sent)
            await self._remember([each for each in new if each.error is None and each.same_as is None])
            results.update({each.line: _sent(each) for each in new})
            return [results[row.line] for row in rows]

        return finish

    def _feedback(self, row: Row, content: bytes) -> _Valid:
        body = parse_body(FEEDBACK_BODY, content)
        if body.event_id is None:
            raise Malformed(ID_NEEDED)
        event = self.handlers.to_event(body, body.event_id)
        return _Valid(
            row.line,
            event,
            self.handlers.feedback_record(event, None),
            f"bulk/{event.user_id}",
            lambda status: feedback_answer(event, status),
            identity=self.handlers.identity_of(event),
        )

    def _response(self, row: Row, content: bytes) -> _Valid:
        response = self.handlers.to_response(parse_body(RESPONSE_BODY, content))
        return _Valid(
            row.line,
            response,
            self.handlers.response_record(response, None),
            f"bulk/responses/{response.user_id or f'line/{response.line}'}",
            lambda status: response_answer(response, status),
        )

    async def _look_up(
        self, rows: list[_Valid], dry_run: bool
    ) -> list[tuple[_Valid, bool | LoopwrightError]]:
        """Return each row with whether it repeats an acknowledged one, or why it is refused."""
        now_ms, limit = self.handlers.clock.now_ms(), self.handlers.settings.bulk_per_minute
        by_caller = Counter() if dry_run else Counter(row.caller for row in rows)
        counts = [count_request(caller, now_ms, by=number) for caller, number in by_caller.items()]
        identities = [row.identity for row in rows if row.identity is not None]
        commands: list[CacheCommand] = [*counts, *(Get(identity.key) for identity in identities)]
        answers = await self.handlers.cache.run(commands) if commands else []
        over = dict(zip(by_caller, answers, strict=False))
        known = dict(zip((identity.key for identity in identities), answers[len(counts) :], strict=True))
        first: dict[str, _Valid] = {}
        found: list[tuple[_Valid, bool | LoopwrightError]] = []
        for row in rows:
            wait = wait_s(over.get(row.caller), limit, now_ms)
            if wait:
                error = Overloaded(
                    f"{limit} bulk rows per user and minute are accepted: send this row in {wait} s"
                )
                found.append((row, error))
                continue
            stored = known.get(row.identity.key) if row.identity is not None else None
            if row.identity is not None and stored is None:
                earlier = first.setdefault(row.identity.key, row)
                row.same_as = earlier if earlier is not row else None
                if row.same_as is not None and earlier.identity is not None:
                    stored = None if earlier.identity.value == row.identity.value else earlier.identity.value
            if stored is None or row.identity is None or isinstance(row.record, ChatResponse):
                found.append((row, False))
            elif stored == row.identity.value:
                found.append((row, True))
            else:
                found.append((row, conflict(row.record)))
        return found

    async def _send(self, row: _Valid) -> None:
        try:
            await self.handlers.publish(row.output)
        except LoopwrightError as error:
            row.error = error
        else:
            if isinstance(row.record, ChatResponse):
                return
            FEEDBACK_ACCEPTED.labels(row.record.kind).inc()

    async def _remember(self, rows: list[_Valid]) -> None:
        identities = [row.identity for row in rows if row.identity is not None]
        if identities:
            await self.handlers.cache.run(identities)


def _sent(row: _Valid) -> Json:
    error = row.error if row.same_as is None else row.same_as.error
    if error is not None:
        return _refused(row.line, error)
    return _result(row, 202, "accepted") if row.same_as is None else _result(row, 200, "duplicate")


def _result(row: _Valid, status_code: int, status: str) -> Json:
    return {"line": row.line, "status_code": status_code} | row.answer(status)


def _refused(line: int, error: LoopwrightError) -> Json:
    FEEDBACK_REFUSED.labels(error.code).inc()
    return {
        "line": line,
        "status_code": status_of(error),
        "code": error.code,
        "title": type(error).__name__,
        "detail": str(error),
    }
