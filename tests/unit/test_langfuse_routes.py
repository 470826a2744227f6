"""The Langfuse-compatible routes of the feedback service, over a log in memory."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from services.feedback.service import FeedbackService
from services.feedback.settings import FeedbackSettings
from shared.adapters.access import Access
from shared.adapters.clock import ManualClock
from shared.adapters.in_memory import InMemoryLog
from shared.adapters.key_file import KeyFile
from tests.access import make_keys
from tests.unit.test_feedback_service import P, adapters

TRACE = hashlib.sha256(b"message-1").hexdigest()[:32]
SCORES = "/api/public/scores"


class Langfuse:
    """A client of the routes, and the log behind them."""

    def __init__(self, log: InMemoryLog, http: httpx.AsyncClient) -> None:
        self.log = log
        self.http = http

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(record.value or b"") for record in self.log.records("feedback.events")]

    async def librechat(self, rating: str | None, text: str | None = None) -> httpx.Response:
        """Send what LibreChat sends when a user likes, dislikes or clears a message."""
        score_id = f"feedback-{TRACE}"
        if rating is None:
            return await self.http.delete(f"{SCORES}/{quote(score_id, safe='')}")
        body = {
            "id": score_id,
            "traceId": TRACE,
            "name": "user-feedback",
            "value": 1 if rating == "thumbsUp" else 0,
            "dataType": "BOOLEAN",
            "metadata": {"rating": rating, "userId": "ann"},
            "environment": "production",
        }
        return await self.http.post(SCORES, json=body | ({"comment": text} if text else {}))

    async def ingest(self, *events: dict[str, Any]) -> dict[str, Any]:
        response = await self.http.post(
            "/api/public/ingestion", json={"batch": events, "metadata": {"sdk": 1}}
        )
        assert response.status_code == 207
        body: dict[str, Any] = response.json()
        return body


@asynccontextmanager
async def serving(service: FeedbackService, auth: tuple[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(service.app)
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://feedback", auth=auth) as http,
        service.app.router.lifespan_context(service.app),
        asyncio.timeout(30),
    ):
        while (await http.get("/readyz")).status_code != 200:
            pass
        yield http


@pytest.fixture
async def langfuse() -> AsyncIterator[Langfuse]:
    log = InMemoryLog(P)
    service = FeedbackService(FeedbackSettings(partitions=P), b"a key that is long enough", adapters(log))
    async with serving(service, auth=("pk-lf-1", "lw_1")) as http:
        yield Langfuse(log, http)


async def test_librechat_likes_edits_and_clears(langfuse: Langfuse) -> None:
    assert (await langfuse.librechat("thumbsUp")).json() == {"id": f"feedback-{TRACE}"}
    assert (await langfuse.librechat("thumbsUp")).status_code == 200
    assert [(event["kind"], event["value"]) for event in langfuse.events] == [("thumbs", "up")]
    await langfuse.librechat("thumbsDown", "inaccurate — It is Bergen.")
    await langfuse.librechat("thumbsDown")
    down, comment, withdrawn = langfuse.events[1:]
    assert (down["value"], comment["value"]) == ("down", "inaccurate — It is Bergen.")
    assert (withdrawn["kind"], withdrawn["value"]) == ("retract", comment["event_id"])
    assert (await langfuse.librechat(None)).status_code == 202
    assert (langfuse.events[-1]["kind"], langfuse.events[-1]["value"]) == ("retract", down["event_id"])
    sent = len(langfuse.events)
    assert (await langfuse.librechat(None)).status_code == 202
    assert len(langfuse.events) == sent, "nothing is left to withdraw"
    await langfuse.librechat("thumbsDown")
    assert langfuse.events[-1]["value"] == "down"
    assert len({event["event_id"] for event in langfuse.events}) == len(langfuse.events)
    assert {event["response_id"] for event in langfuse.events} == {TRACE}
    assert len({event["user_id"] for event in langfuse.events}) == 1
    assert b"ann" not in b"".join(record.value or b"" for record in langfuse.log.records("feedback.events"))


async def test_unknown_score_is_not_found(langfuse: Langfuse) -> None:
    response = await langfuse.http.delete(f"{SCORES}/a%2Fb")
    assert response.status_code == 404
    assert "check the id" in response.json()["detail"]


async def test_score_ids_may_contain_slashes(langfuse: Langfuse) -> None:
    body = {"id": "a/b ü", "traceId": "t1", "name": "thumbs", "value": 1}
    assert (await langfuse.http.post(SCORES, json=body)).json() == {"id": "a/b ü"}
    assert (await langfuse.http.delete(f"{SCORES}/{quote('a/b ü', safe='')}")).status_code == 202
    assert [event["kind"] for event in langfuse.events] == ["thumbs", "retract"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        7,
        [7],
        {"name": "thumbs", "value": 1},
        {"traceId": "a trace", "name": "thumbs", "value": 1},
        {"traceId": "t1", "name": "hallucination", "value": 0},
        {"traceId": "t1", "name": "thumbs", "value": {"a": 1}},
        {"traceId": "t1", "name": "thumbs", "value": 1, "metadata": {"userId": "a\nb"}},
    ],
)
async def test_wrong_scores_are_refused_with_the_reason(langfuse: Langfuse, body: Any) -> None:
    response = await langfuse.http.post(SCORES, json=body)
    assert response.status_code == 422
    assert response.json()["detail"]
    assert langfuse.events == []


async def test_score_without_id_gets_one_that_deletes_it(langfuse: Langfuse) -> None:
    body = {"traceId": "t1", "name": "user-rating", "value": 5}
    score_id = (await langfuse.http.post(SCORES, json=body)).json()["id"]
    assert (await langfuse.http.delete(f"{SCORES}/{score_id}")).status_code == 202


async def test_list_of_scores_counts_accepted_and_rejected(langfuse: Langfuse) -> None:
    good = [{"id": f"s{n}", "traceId": f"t{n}", "name": "thumbs", "value": 1.0} for n in range(2)]
    whole = await langfuse.http.post(SCORES, json=good)
    assert (whole.status_code, whole.json()) == (202, {"message": "Accepted"})
    mixed = await langfuse.http.post(
        SCORES, json=[{"name": "accuracy", "value": 1, "traceId": "t"}, *good, {}]
    )
    assert mixed.status_code == 207
    body = mixed.json()
    assert (body["accepted"], body["rejected"]) == (2, 2)
    assert all(error["message"] for error in body["errors"])
    assert len(langfuse.events) == 2, "repeated scores add nothing"


async def test_list_fails_as_a_whole_if_a_score_can_be_accepted_later(langfuse: Langfuse) -> None:
    limit = FeedbackSettings().user_per_minute
    scores = [
        {"id": f"s{n}", "traceId": "t1", "name": "thumbs", "value": n % 2, "metadata": {"userId": "ann"}}
        for n in range(limit + 1)
    ]
    assert (await langfuse.http.post(SCORES, json=scores)).status_code == 429


@pytest.mark.parametrize("route", ["score", "scores", "ingestion"])
async def test_limits_of_an_api_key_count_for_langfuse_routes(tmp_path: Path, route: str) -> None:
    log, limit = InMemoryLog(P), 3
    keys = make_keys(tmp_path / "keys.json", {"app": ["ingest"]})
    access = Access(KeyFile(tmp_path / "keys.json", ManualClock()), hosts=["feedback"])
    settings = FeedbackSettings(partitions=P, key_per_minute=limit)
    service = FeedbackService(settings, b"a key that is long enough", adapters(log, access))
    scores = [{"id": f"s{n}", "traceId": f"t{n}", "name": "thumbs", "value": 1} for n in range(limit + 1)]
    async with serving(service, auth=("pk-lf-1", keys["app"])) as http:
        if route == "score":
            statuses = [(await http.post(SCORES, json=score)).status_code for score in scores]
            assert statuses == [200] * limit + [429]
        elif route == "scores":
            assert (await http.post(SCORES, json=scores)).status_code == 429
        else:
            batch = [{"id": score["id"], "type": "score-create", "body": score} for score in scores]
            answer = (await http.post("/api/public/ingestion", json={"batch": batch})).json()
            assert [error["status"] for error in answer["errors"]] == [429]
    assert len(log.records("feedback.events")) == limit


async def test_batch_answers_for_each_event(langfuse: Langfuse) -> None:
    chat = [{"role": "user", "content": "What is Norway's capital?"}]
    score = {"id": "s1", "traceId": "t1", "name": "user-feedback", "value": 1}
    answer = await langfuse.ingest(
        {"id": "e1", "type": "score-create", "timestamp": "2026-01-01T00:00:00Z", "body": score},
        {
            "id": "e2",
            "type": "trace-create",
            "body": {"id": "t1", "userId": "ann", "input": chat, "output": "Oslo"},
        },
        {"id": "e3", "type": "span-create", "body": {"traceId": "t1"}},
        {"id": "e4", "type": "score-create", "body": score | {"id": "s2", "value": 0.5}},
        {"id": "e5", "type": "surprise", "body": {}},
        {"type": "score-create"},
        {"id": "e7", "type": "trace-create", "body": {"id": "a trace", "input": chat, "output": "Oslo"}},
    )
    assert answer["successes"] == [{"id": name, "status": 201} for name in ("e1", "e2", "e3")]
    assert [(error["id"], error["status"]) for error in answer["errors"]] == [
        ("e4", 400),
        ("e5", 400),
        ("", 400),
        ("e7", 400),
    ]
    assert all(error["message"] for error in answer["errors"])
    [response] = [json.loads(record.value or b"") for record in langfuse.log.records("chat.responses")]
    [event] = langfuse.events
    assert response["response_id"] == event["response_id"] == "t1"
    assert response["user_id"] == event["user_id"], "the score's user is that of its trace"
    again = await langfuse.ingest({"id": "e8", "type": "score-create", "body": score})
    assert (again["successes"], again["errors"]) == ([{"id": "e8", "status": 201}], [])


async def test_broken_batch_is_refused(langfuse: Langfuse) -> None:
    assert (await langfuse.http.post("/api/public/ingestion", json={"batch": 1})).status_code == 422
