"""`send_many` and `record_many`: one result per row, repeatable, and against the real routes of feedback."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwright import AsyncLoopwright, Loopwright, Retry, Unavailable
from loopwright import bulk as bulk_module
from loopwright.bulk import Batch, batches
from tests.http_apis import Feedback, authorization
from tests.unit.sdk_server import FakeService, Reply

Json = dict[str, Any]
FAST_RETRY = Retry(attempts=3, first_wait_s=0.0)


def thumbs(event_id: str | None, **fields: Any) -> Json:
    event = {"response_id": "r1", "user_id": "ann", "kind": "thumbs", "value": "up"} | fields
    return event if event_id is None else event | {"event_id": event_id}


def answer(response_id: str, **fields: Any) -> Json:
    question = [{"role": "user", "content": "hi"}]
    return {
        "response_id": response_id,
        "version": "own",
        "messages": question,
        "choices": [{"text": "hello"}],
    } | fields


def replies(*results: Json) -> httpx.Response:
    return httpx.Response(200, text="".join(json.dumps(result) + "\n" for result in results))


def client(*answers: Reply) -> tuple[Loopwright, FakeService]:
    service = FakeService(answers)
    return Loopwright(
        feedback_url="http://feedback", retry=FAST_RETRY, transport=service.transport()
    ), service


def rows_of(request: httpx.Request) -> list[Json]:
    return [json.loads(line) for line in request.content.splitlines()]


# --- against the real service ---------------------------------------------------------------------------------------


@pytest.fixture
def service() -> Iterator[Feedback]:
    with Feedback().running() as feedback:
        yield feedback


def async_client(service: Feedback) -> AsyncLoopwright:
    return AsyncLoopwright(
        feedback_url="http://127.0.0.1",
        api_key=authorization()["Authorization"].removeprefix("Bearer "),
        retry=FAST_RETRY,
        transport=httpx.ASGITransport(service.app),
    )


async def test_each_row_has_its_result_and_none_stops_another(
    service: Feedback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_module, "MAX_ROWS", 2)
    async with async_client(service) as loop:
        recorded = await loop.record_many([answer("r1"), answer("r2", version=7), answer("r3")])
        assert [result.status_code for result in recorded] == [202, 422, 202]
        assert (recorded[0].response_id, recorded[1].is_refused) == ("r1", True)
        events = [
            thumbs("e1"),
            thumbs("e2", value=math.nan),
            thumbs("e3", value="sideways"),
            thumbs("e1"),
            thumbs(None),
        ]
        sent = await loop.send_many(iter(events))
        assert [result.line for result in sent] == [1, 2, 3, 4, 5]
        assert [result.status or result.code for result in sent] == [
            "accepted",
            "malformed",
            "malformed",
            "duplicate",
            "accepted",
        ]
        assert [
            result.status for result in await loop.send_many([thumbs("e1"), thumbs("e9")], dry_run=True)
        ] == [
            "duplicate",
            "valid",
        ]
    assert len(service.log.records("feedback.events")) == 2


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["event_id", "response_id", "user_id", "kind", "value", "tags", "x"]),
            st.none()
            | st.booleans()
            | st.floats()
            | st.text(st.characters(), max_size=5)
            | st.sampled_from(["e1", "up", "thumbs", "r1"])
            | st.sets(st.integers(), max_size=1)
            | st.lists(st.integers(), max_size=2),
        ),
        max_size=5,
    )
)
@settings(max_examples=60, deadline=None)
def test_every_row_gets_one_result_whatever_it_holds(rows: list[Json]) -> None:
    """The service is a fake that answers each row it can read, as the real one does."""

    def answer_rows(request: httpx.Request) -> httpx.Response:
        return replies(*({"line": at, "status_code": 202} for at, _ in enumerate(rows_of(request), 1)))

    loop = Loopwright(feedback_url="http://feedback", transport=httpx.MockTransport(answer_rows))
    assert [result.line for result in loop.send_many(rows)] == list(range(1, len(rows) + 1))


# --- what is sent again ---------------------------------------------------------------------------------------------


def test_rows_that_can_be_accepted_later_are_sent_again_alone() -> None:
    busy = {"line": 2, "status_code": 429, "code": "overloaded", "detail": "later"}
    loop, service = client(
        replies({"line": 1, "status_code": 202, "status": "accepted"}, busy),
        replies(
            {"line": 1, "status_code": 202, "status": "accepted"},
            {"line": 2, "status_code": 422, "code": "x"},
        ),
    )
    results = loop.send_many([thumbs("e1"), thumbs("e2"), thumbs("e3")])
    assert [(result.line, result.status_code) for result in results] == [(1, 202), (2, 202), (3, 422)]
    assert [[row["event_id"] for row in rows_of(request)] for request in service.requests] == [
        ["e1", "e2", "e3"],
        ["e2", "e3"],
    ]


def test_rows_that_are_never_accepted_keep_their_last_result() -> None:
    loop, service = client(replies({"line": 1, "status_code": 503, "code": "broker_unavailable"}))
    assert [result.code for result in loop.send_many([thumbs("e1"), thumbs("e2")])] == [
        "broker_unavailable",
        "no_result",
    ]
    assert len(service.requests) == FAST_RETRY.attempts


def test_broken_connection_sends_the_same_rows_again() -> None:
    loop, service = client(
        httpx.ReadError("reset"), replies({"line": 1, "status_code": 200, "status": "duplicate"})
    )
    assert [result.status for result in loop.send_many([thumbs(None)])] == ["duplicate"]
    first, second = (rows_of(request) for request in service.requests)
    assert first == second and first[0]["event_id"]


@pytest.mark.parametrize("body", ["<html>", '{"line": "x"}', "[]", '{"status_code": 202}'])
def test_answer_of_another_server_is_named(body: str) -> None:
    loop, _ = client(httpx.Response(200, text=body))
    with pytest.raises(Unavailable, match="did not answer like a Loopwright service"):
        loop.send_many([thumbs("e1")])


# --- batches --------------------------------------------------------------------------------------------------------


def test_batches_are_bounded_by_rows_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_module, "MAX_ROWS", 3)
    monkeypatch.setattr(bulk_module, "MAX_BYTES", 100)
    taken = 0

    def rows() -> Iterator[Json]:
        nonlocal taken
        for size in (1, 1, 1, 1, 200, 1):
            taken += 1
            yield {"text": "x" * size}

    sizes = []
    for batch in batches(rows()):
        sizes.append(len(batch.results))
        assert taken == sum(sizes), "rows are taken only when their batch is filled"
    assert sizes == [3, 2, 1]


def test_row_that_is_not_json_is_refused_without_being_sent() -> None:
    batch = Batch()
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for value in (math.inf, {1, 2}, deep):
        batch.add({"value": value})
    assert batch.body() == b""
    assert [result.code for result in batch.final_results()] == ["malformed"] * 3
