"""Handlers of the Langfuse-compatible routes. Each answers once all events that follow are durable in Kafka."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from uuid6 import uuid7

from services.feedback.core.langfuse_edits import Add, Withdraw, plan, score_key
from services.feedback.core.langfuse_ingestion import (
    BATCH,
    ENVELOPE,
    GENERATIONS,
    IGNORED,
    SCORE,
    TRACE,
    Envelope,
    responses_of,
    users_of_traces,
)
from services.feedback.core.langfuse_scores import (
    MAX_SCORE_ID,
    SCORE_BODY,
    SCORES_BODY,
    ScoreBody,
    response_id_of,
    signals_of,
    user_of,
)
from services.feedback.core.schemas import check_id, describe_faults, parse_body
from services.feedback.handlers import FeedbackHandlers
from shared.adapters.access import Caller
from shared.adapters.http import status_of
from shared.errors import LoopwrightError, Malformed, NotYet, Rejected
from shared.events import Retract, from_ms
from shared.user_ids import check_user_id

USER_OF_TRACE: Final = "langfuse-trace:"
"""Prefix of the user id of scores that name no user: one user per trace."""


@dataclass(frozen=True, slots=True)
class ScoreHandlers:
    """Handlers of scores and of ingestion batches."""

    feedback: FeedbackHandlers

    async def post_score(self, raw: bytes, traceparent: str | None, caller: Caller) -> Response:
        """Create or replace a score: 200 with its id, or 429. For a list of scores: 202, 207 or 429.

        Raises:
            Rejected: if the score cannot be understood as feedback (422).
            BrokerUnavailable: if Kafka does not acknowledge in time, or the index is not complete (503).

        """
        if raw.lstrip()[:1] == b"[":
            return await self._post_scores(raw, traceparent, caller)
        score = parse_body(SCORE_BODY, raw)
        score_id = score.id or f"score-{uuid7()}"
        refusal = await self._apply(score, score_id, None, traceparent, caller)
        return refusal or JSONResponse({"id": score_id})

    async def _post_scores(self, raw: bytes, traceparent: str | None, caller: Caller) -> Response:
        """Take a list of scores: 202, or 207 if some are refused.

        Clients do not send refused scores again. So if one can be accepted later, the whole request fails; to repeat it
        has no further effect on those that were accepted.
        """
        errors = []
        bodies = parse_body(SCORES_BODY, raw)
        for body in bodies:
            try:
                score = SCORE_BODY.validate_python(body)
                refusal = await self._apply(score, score.id or f"score-{uuid7()}", None, traceparent, caller)
            except ValidationError as error:
                errors.append({"message": describe_faults(error)})
            except Rejected as error:
                errors.append({"message": str(error)})
            else:
                if refusal is not None:
                    return refusal
        accepted = len(bodies) - len(errors)
        if not errors:
            return JSONResponse({"message": "Accepted"}, 202)
        return JSONResponse({"accepted": accepted, "rejected": len(errors), "errors": errors}, 207)

    async def delete_score(self, score_id: str, traceparent: str | None) -> JSONResponse:
        """Withdraw all signals of a score: 202. Repeating it has no further effect.

        Raises:
            Malformed: if no score can have this id (422).
            NotYet: if there is no such score (404).
            BrokerUnavailable: as for `post_score` (503).

        """
        if not 1 <= len(score_id) <= MAX_SCORE_ID:
            raise Malformed(f"the score's id is empty or longer than {MAX_SCORE_ID} characters: check it")
        events = await run_in_threadpool(self.feedback.receipts.score_events, score_key(score_id))
        if not events:
            raise NotYet(
                "there is no score with this id: check the id. Scores are kept for 35 days, and those of other "
                "Langfuse servers are not known here"
            )
        for step in plan(score_id, events, "", "", ()):
            await self._withdraw(step, traceparent)
        return JSONResponse({"message": "Score deletion accepted: its feedback is withdrawn."}, 202)

    async def post_batch(self, raw: bytes, traceparent: str | None, caller: Caller) -> JSONResponse:
        """Take a batch: 207 with the result of each event.

        Raises:
            Malformed: if the body is not a batch (422).

        """
        entries = parse_body(BATCH, raw).batch
        results: dict[int, LoopwrightError | Response | None] = {}
        events: dict[int, Envelope] = {}
        for at, entry in enumerate(entries):
            try:
                events[at] = ENVELOPE.validate_python(entry)
                results[at] = _check_type(events[at])
            except ValidationError as error:
                results[at] = Malformed(describe_faults(error))
        readable = list(events.values())
        users = users_of_traces(readable)
        # Responses come first, so that feedback in the same batch seldom waits for its response.
        failed = await self._record_responses(readable, traceparent, caller)
        for at, event in events.items():
            if event.type == SCORE:
                results[at] = await self._apply_event(event, users, traceparent, caller)
            elif event.id in failed:
                results[at] = failed[event.id]
        return JSONResponse(_multi_status(entries, results), 207)

    async def _record_responses(
        self, events: Sequence[Envelope], traceparent: str | None, caller: Caller
    ) -> dict[str, LoopwrightError | Response]:
        """Record the responses of a batch. Return the refusals by id of the envelope."""
        failed: dict[str, LoopwrightError | Response] = {}
        for response in responses_of(events):
            try:
                answer = await self.feedback.post_response(
                    json.dumps(response.body).encode(), traceparent, caller
                )
            except LoopwrightError as error:
                failed[response.envelope_id] = error
                continue
            if answer.status_code >= 400:
                failed[response.envelope_id] = answer
        return failed

    async def _apply_event(
        self, event: Envelope, users: Mapping[str, str], traceparent: str | None, caller: Caller
    ) -> LoopwrightError | Response | None:
        try:
            score = SCORE_BODY.validate_python(event.body)
            # The envelope's id is the same whenever the client sends the event again.
            return await self._apply(
                score, score.id or event.id, users.get(score.trace_id or ""), traceparent, caller
            )
        except ValidationError as error:
            return Malformed(describe_faults(error))
        except LoopwrightError as error:
            return error

    async def _apply(
        self,
        score: ScoreBody,
        score_id: str,
        trace_user: str | None,
        traceparent: str | None,
        caller: Caller,
    ) -> Response | None:
        """Make a score's signals the present ones. Return the response to a refused request, or None."""
        signals = signals_of(score, self.feedback.settings.langfuse_scores)
        if not signals:
            return None
        response_id = check_id(response_id_of(score), "traceId (or metadata.response_id)")
        user_id = user_of(score) or trace_user or f"{USER_OF_TRACE}{response_id}"
        try:
            check_user_id(user_id)
        except ValueError as error:
            raise Malformed(f"metadata: {error}") from None
        pseudonym = self.feedback.pseudonymiser.of(user_id)
        events = await run_in_threadpool(
            self.feedback.receipts.score_events, score_key(score_id), response_id
        )
        erased = self.feedback.erasures.count(pseudonym) > 0
        for step in plan(score_id, events, response_id, pseudonym, signals, erased=erased):
            if isinstance(step, Withdraw):
                await self._withdraw(step, traceparent)
                continue
            body = {
                "event_id": step.event_id,
                "response_id": response_id,
                "user_id": user_id,
                "kind": step.signal.kind,
                "value": step.signal.value,
            }
            answer = await self.feedback.post_feedback(json.dumps(body).encode(), None, traceparent, caller)
            if answer.status_code >= 400:
                return answer
        return None

    async def _withdraw(self, step: Add | Withdraw, traceparent: str | None) -> None:
        assert isinstance(step, Withdraw), "a deletion adds nothing"
        event = Retract(
            line=step.event.line,
            response_id=step.event.response_id,
            event_id=step.event_id,
            user_id=step.event.user_id,
            received_at=from_ms(self.feedback.clock.now_ms()),
            value=step.event.event_id,
        )
        await self.feedback.retract(event, traceparent)


def _check_type(event: Envelope) -> LoopwrightError | None:
    if event.type in {SCORE, TRACE} or event.type in GENERATIONS or event.type in IGNORED:
        return None
    return Rejected(
        "this type of event is unknown: score-create, trace-create, generation-create and -update are used"
    )


def _multi_status(
    entries: Sequence[Any], results: Mapping[int, LoopwrightError | Response | None]
) -> dict[str, list[dict[str, Any]]]:
    successes, errors = [], []
    for at, result in results.items():
        entry = entries[at]
        name = entry.get("id") if isinstance(entry, dict) else None
        event_id = name if isinstance(name, str) else ""
        if result is None:
            successes.append({"id": event_id, "status": 201})
        elif isinstance(result, LoopwrightError):
            # Langfuse's clients know 400 for a wrong event, and send others again.
            status = 400 if status_of(result) == 422 else status_of(result)
            errors.append({"id": event_id, "status": status, "message": str(result), "error": result.code})
        else:
            problem = json.loads(bytes(result.body))
            errors.append(
                {
                    "id": event_id,
                    "status": result.status_code,
                    "message": problem["detail"],
                    "error": problem["code"],
                }
            )
    return {"successes": successes, "errors": errors}
