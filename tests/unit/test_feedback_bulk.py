"""Bulk routes: one result per row in order, bounded memory, repeatable; and dry runs, which write nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.feedback.bulk_stream import BulkStream, Finish
from services.feedback.core.ndjson import Row, RowSplitter
from shared.errors import BrokerUnavailable
from tests.http_apis import Feedback, authorization

NDJSON = {"Content-Type": "application/x-ndjson"}
Json = dict[str, Any]


def thumbs(event_id: str, **fields: Any) -> Json:
    return {
        "response_id": "r1",
        "event_id": event_id,
        "user_id": "ann",
        "kind": "thumbs",
        "value": "up",
    } | fields


def answer(response_id: str, **fields: Any) -> Json:
    return {
        "response_id": response_id,
        "version": "own",
        "messages": [{"role": "user", "content": "hi"}],
        "choices": [{"text": "hello"}],
    } | fields


def lines(*rows: Json | str) -> bytes:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()


@pytest.fixture
def service() -> Iterator[Feedback]:
    with Feedback().running() as feedback:
        yield feedback


async def post(service: Feedback, path: str, content: bytes, **headers: str) -> list[Json]:
    transport = httpx.ASGITransport(service.app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://127.0.0.1", headers=authorization()
    ) as http:
        response = await http.post(path, content=content, headers=NDJSON | headers)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def written(service: Feedback, topic: str = "feedback.events") -> list[Json]:
    return [json.loads(record.value or b"") for record in service.log.records(topic)]


# --- rows and results ---------------------------------------------------------------------------------------------


async def test_each_row_gets_the_result_of_a_single_request(service: Feedback) -> None:
    rows = lines(
        thumbs("e1"),
        "{not json",
        "",
        thumbs("e2", kind="comment", value="不好"),
        {"response_id": "r1", "user_id": "ann", "kind": "thumbs", "value": "up"},
        thumbs("e3", value="sideways"),
        thumbs("e4", line="made-up"),
        thumbs("e5", user_id=17),
        thumbs("e6", kind="rating", value=5.0),
    )
    results = await post(service, "/v1/feedback:bulk", rows)
    assert [(result["line"], result["status_code"]) for result in results] == [
        (1, 202), (2, 422), (4, 202), (5, 422), (6, 422), (7, 422), (8, 422), (9, 202)
    ]  # fmt: skip
    assert results[0] == {
        "line": 1,
        "status_code": 202,
        "event_id": "e1",
        "status": "accepted",
        "actionable": True,
        "hint": None,
    }
    assert results[2]["hint_code"] == "vague_comment"
    assert "学习" in results[2]["hint"]
    assert results[3]["detail"].startswith("event_id: ")
    assert {event["event_id"] for event in written(service)} == {"e1", "e2", "e6"}


async def test_rows_of_responses_are_recorded(service: Feedback) -> None:
    rows = lines(answer("a1"), answer("a2", choices=[]), answer("a3", user_id="ann"))
    results = await post(service, "/v1/responses:bulk", rows)
    assert [result["status_code"] for result in results] == [202, 422, 202]
    assert results[0] == {"line": 1, "status_code": 202, "response_id": "a1", "status": "accepted"}
    assert {record["response_id"] for record in written(service, "chat.responses")} == {"a1", "a3"}


async def test_request_that_is_sent_again_changes_nothing(service: Feedback) -> None:
    rows = lines(*(thumbs(f"e{number}") for number in range(600)))
    first = await post(service, "/v1/feedback:bulk", rows)
    again = await post(service, "/v1/feedback:bulk", rows)
    assert {result["status_code"] for result in first} == {202}
    assert {(result["status_code"], result["status"]) for result in again} == {(200, "duplicate")}
    assert len(written(service)) == 600


async def test_other_content_under_one_id_is_a_conflict_also_within_a_request(service: Feedback) -> None:
    rows = lines(thumbs("e1"), thumbs("e1"), thumbs("e1", value="down"))
    results = await post(service, "/v1/feedback:bulk", rows)
    assert [result["status_code"] for result in results] == [202, 200, 409]
    assert len(written(service)) == 1


async def test_row_that_kafka_does_not_acknowledge_stops_no_other(service: Feedback) -> None:
    service.publisher.failure = BrokerUnavailable("away")
    results = await post(
        service, "/v1/feedback:bulk", lines(thumbs("e1"), thumbs("e1"), thumbs("e2", value=1))
    )
    assert [result["status_code"] for result in results] == [503, 503, 422]
    service.publisher.failure = None
    again = await post(service, "/v1/feedback:bulk", lines(thumbs("e1")))
    assert again[0]["status_code"] == 202, "an event that was not acknowledged is no duplicate"


async def test_rows_of_one_response_reach_the_log_in_their_order(service: Feedback) -> None:
    rows = lines(*(thumbs(f"e{number}") for number in range(1_500)))
    await post(service, "/v1/feedback:bulk", rows)
    assert [event["event_id"] for event in written(service)] == [f"e{number}" for number in range(1_500)]


async def test_other_media_types_are_refused(service: Feedback) -> None:
    transport = httpx.ASGITransport(service.app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://127.0.0.1", headers=authorization()
    ) as http:
        for media_type in ("application/json", "text/plain", "application/x-www-form-urlencoded"):
            refused = await http.post(
                "/v1/feedback:bulk", content=b"{}", headers={"Content-Type": media_type}
            )
            assert refused.status_code == 415


# --- dry runs -----------------------------------------------------------------------------------------------------


async def test_dry_run_reports_and_writes_nothing(service: Feedback) -> None:
    await post(service, "/v1/feedback:bulk", lines(thumbs("known")))
    before = written(service)
    rows = lines(thumbs("known"), thumbs("known", value="down"), thumbs("new"), thumbs("bad", value=3))
    results = await post(service, "/v1/feedback:bulk?dryrun=true", rows)
    assert [(result["status_code"], result.get("status")) for result in results] == [
        (200, "duplicate"),
        (409, None),
        (200, "valid"),
        (422, None),
    ]
    assert await post(service, "/v1/responses:bulk?dryrun=true", lines(answer("a1"))) == [
        {"line": 1, "status_code": 200, "response_id": "a1", "status": "valid"}
    ]
    transport = httpx.ASGITransport(service.app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://127.0.0.1", headers=authorization()
    ) as http:
        for path, body, status in (
            ("/v1/feedback", thumbs("new", kind="comment", value="bad"), 200),
            ("/v1/feedback", thumbs("known", value="down"), 409),
            ("/v1/feedback", thumbs("bad", value=3), 422),
            ("/v1/responses", answer("a1"), 200),
        ):
            response = await http.post(path, json=body, params={"dryrun": "true"})
            assert response.status_code == status, response.text
            if status == 200:
                assert response.json()["status"] == "valid"
    assert written(service) == before
    assert written(service, "chat.responses") == []
    after = await post(service, "/v1/feedback:bulk", lines(thumbs("new")))
    assert after[0]["status_code"] == 202, "a dry run must not remember ids"


# --- the stream ---------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(
    st.lists(st.binary(max_size=12).map(lambda text: text.replace(b"\n", b"")), max_size=8),
    st.lists(st.integers(1, 5), min_size=1, max_size=30),
    st.booleans(),
)
def test_rows_do_not_depend_on_where_chunks_end(texts: list[bytes], sizes: list[int], ends: bool) -> None:
    limit = 8
    whole = b"\n".join(texts) + (b"\n" if ends and texts else b"")
    splitter, rows, position, turn = RowSplitter(limit), [], 0, 0
    while position < len(whole):
        size = sizes[turn % len(sizes)]
        rows += splitter.feed(whole[position : position + size])
        position, turn = position + size, turn + 1
    rows += splitter.finish()
    expected = [
        Row(number, None if len(text) > limit else text)
        for number, text in enumerate(texts, 1)
        if len(text) > limit or text.strip()
    ]
    if not (texts and texts[0].startswith(b"\xef\xbb\xbf")):
        assert rows == expected


def test_byte_order_mark_of_a_spreadsheet_is_removed() -> None:
    assert RowSplitter(100).feed(b"\xef\xbb\xbf{}\r\n") == [Row(1, b"{}\r")]


def echo(processed: list[int]) -> Callable[[Sequence[Row]], Any]:
    async def begin(rows: Sequence[Row]) -> Finish:
        processed.extend(row.line for row in rows)

        async def finish() -> list[Json]:
            return [{"line": row.line, "padding": "x" * 80} for row in rows]

        return finish

    return begin


async def endless(chunks: int, taken: list[int]) -> AsyncIterator[bytes]:
    for number in range(chunks):
        taken.append(number)
        yield b"{}\n" * 100
        await asyncio.sleep(0)


async def test_client_that_does_not_read_stops_the_work_and_learns_where_to_continue() -> None:
    taken: list[int] = []
    processed: list[int] = []
    stream = BulkStream(
        endless(1_000, taken), echo(processed), max_row_bytes=100, max_unread_bytes=20_000, stall_s=0.05
    )
    results = stream.results()
    first = await anext(results)
    for _ in range(1_000):  # the client sends everything before it reads on
        await asyncio.sleep(0.01)
        if len(taken) == 1_000:
            break
    assert len(taken) == 1_000
    assert len(processed) < 2_000, "memory would not be bounded"
    rest = [line async for line in results]
    answers = [json.loads(line) for line in b"".join([first, *rest]).splitlines()]
    assert [each["line"] for each in answers[:-1]] == processed
    assert (answers[-1]["line"], answers[-1]["code"]) == (processed[-1] + 1, "results_unread")


async def test_client_that_reads_slowly_holds_the_body_back() -> None:
    taken: list[int] = []
    processed: list[int] = []
    stream = BulkStream(
        endless(200, taken), echo(processed), max_row_bytes=100, max_unread_bytes=20_000, stall_s=30
    )
    ahead, read = 0, 0
    async for chunk in stream.results():
        read += chunk.count(b"\n")
        await asyncio.sleep(0.001)
        ahead = max(ahead, len(taken) * 100 - read)
    assert read == 20_000
    assert ahead < 3_000


async def test_body_that_stops_arriving_ends_with_the_line_to_continue_at() -> None:
    async def stuck() -> AsyncIterator[bytes]:
        yield b"{}\n{}\n{"
        await asyncio.sleep(60)

    stream = BulkStream(stuck(), echo([]), max_row_bytes=100, idle_s=0.05)
    answers = [json.loads(line) async for chunk in stream.results() for line in chunk.splitlines()]
    assert [each["line"] for each in answers] == [1, 2, 3]
    assert (answers[-1]["status_code"], answers[-1]["code"]) == (408, "too_slow")


async def test_row_longer_than_the_limit_is_refused_and_the_next_one_is_not(service: Feedback) -> None:
    long = thumbs("long", kind="comment", value="x" * 300_000)
    results = await post(service, "/v1/feedback:bulk", lines(long, thumbs("e2")))
    assert [result["status_code"] for result in results] == [413, 202]
