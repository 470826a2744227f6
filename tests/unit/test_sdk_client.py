"""The SDK's clients: what they send, retry and raise."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime

import httpx
import pytest

from loopwright import (
    Accepted,
    AsyncLoopwright,
    Conflict,
    Denied,
    Invalid,
    Loopwright,
    NotFound,
    Overloaded,
    Problem,
    Retry,
    StillRunning,
    Unavailable,
    Unreachable,
    new_event_id,
)
from loopwright.retry import retry_after
from tests.unit.sdk_server import FakeService, Reply, json_response, problem_response

ACCEPTED = {"event_id": "e-1", "status": "accepted", "actionable": True, "hint": None}
FAST_RETRY = Retry(attempts=3, first_wait_s=0.0)


def sync_client(service: FakeService) -> Loopwright:
    return Loopwright(
        feedback_url="http://feedback/",
        console_url="http://console",
        retry=FAST_RETRY,
        transport=service.transport(),
    )


# --- requests --------------------------------------------------------------------------------------------------


def test_feedback_event_is_sent_with_all_its_fields() -> None:
    service = FakeService([json_response(ACCEPTED, 202)])
    occurred_at = datetime(2026, 3, 1, 12, tzinfo=UTC)
    accepted = sync_client(service).send(
        "chat-1",
        "alice",
        "correction",
        "Wellington.",
        "e-1",
        choice=2,
        tags=["geo"],
        occurred_at=occurred_at,
        line="assistant",
    )
    assert accepted == Accepted(event_id="e-1", status="accepted", actionable=True, hint=None)
    assert (service.requests[0].method, str(service.requests[0].url)) == (
        "POST",
        "http://feedback/v1/feedback",
    )
    assert service.bodies() == [
        {
            "event_id": "e-1",
            "response_id": "chat-1",
            "user_id": "alice",
            "kind": "correction",
            "value": "Wellington.",
            "choice": 2,
            "tags": ["geo"],
            "occurred_at": "2026-03-01T12:00:00+00:00",
            "line": "assistant",
        }
    ]


def test_event_ids_are_unique_and_sort_by_time() -> None:
    service = FakeService([json_response(ACCEPTED, 202)])
    for _ in range(2):
        sync_client(service).thumbs_up("chat-1", "alice")
    ids = [uuid.UUID(body["event_id"]) for body in service.bodies()]
    assert ids[0] != ids[1]
    assert [(i.version, i.variant) for i in ids] == [(7, uuid.RFC_4122)] * 2
    assert ids[0].int >> 80 <= ids[1].int >> 80


def test_event_id_contains_its_creation_time() -> None:
    before = datetime.now(UTC).timestamp()
    created_at = (uuid.UUID(new_event_id()).int >> 80) / 1000
    assert before - 0.002 <= created_at <= datetime.now(UTC).timestamp()


@pytest.mark.parametrize(
    ("call", "kind", "value"),
    [
        (lambda c: c.thumbs_up("r", "u"), "thumbs", "up"),
        (lambda c: c.thumbs_down("r", "u"), "thumbs", "down"),
        (lambda c: c.rate("r", "u", 4), "rating", 4),
        (lambda c: c.correct("r", "u", "so"), "correction", "so"),
        (lambda c: c.comment("r", "u", "add the date"), "comment", "add the date"),
        (lambda c: c.prefer("r", "u", over="worse"), "preference", {"over": "worse"}),
        (lambda c: c.prefer("r", "u", under=1), "preference", {"under": 1}),
        (lambda c: c.retract("r", "u", "e-9"), "retract", "e-9"),
    ],
)
def test_each_method_sends_its_kind_and_value(
    call: Callable[[Loopwright], Accepted], kind: str, value: object
) -> None:
    service = FakeService([json_response(ACCEPTED, 202)])
    call(sync_client(service))
    (body,) = service.bodies()
    assert (body["kind"], body["value"], body["response_id"], body["user_id"]) == (kind, value, "r", "u")


def test_preference_needs_exactly_one_of_over_and_under() -> None:
    service = FakeService([json_response(ACCEPTED, 202)])
    with pytest.raises(ValueError, match="exactly one"):
        sync_client(service).prefer("r", "u")
    with pytest.raises(ValueError, match="exactly one"):
        sync_client(service).prefer("r", "u", over="a", under="b")
    assert service.requests == []


def test_time_without_time_zone_is_rejected_before_sending() -> None:
    service = FakeService([json_response(ACCEPTED, 202)])
    with pytest.raises(ValueError, match="time zone"):
        sync_client(service).send("r", "u", "thumbs", "up", occurred_at=datetime(2026, 3, 1))  # noqa: DTZ001
    assert service.requests == []


def test_urls_come_from_arguments_then_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOOPWRIGHT_FEEDBACK_URL", "http://from-env:1")
    monkeypatch.setenv("LOOPWRIGHT_CONSOLE_URL", "http://from-env:2")
    monkeypatch.setenv("LOOPWRIGHT_INFERENCE_URL", "http://from-env:3/")
    service = FakeService([json_response([])])
    with Loopwright(feedback_url="http://given", transport=service.transport()) as client:
        client.versions()
        assert client.openai_base_url == "http://from-env:3/v1"
    service.replies = [json_response(ACCEPTED, 202)]
    with Loopwright(feedback_url="http://given", transport=service.transport()) as client:
        client.thumbs_up("r", "u")
    assert [request.url.host for request in service.requests] == ["from-env", "given"]


# --- responses ------------------------------------------------------------------------------------------------


def test_receipt_is_parsed_and_keeps_unknown_fields() -> None:
    body = {
        "response_id": "r/1",
        "event_id": "e 1",
        "outcome": "batched",
        "batch_id": "p0-7",
        "version": "assistant@v1-0a1b2c3d",
        "verdict": "passed",
        "serving": True,
        "stage": "serving",
        "detail": "It serves.",
        "since": "yesterday",
    }
    service = FakeService([json_response(body)])
    receipt = sync_client(service).receipt("r/1", "e 1")
    assert service.requests[0].url.raw_path == b"/v1/feedback/r%2F1/e%201"
    assert (receipt.serving, receipt.stage, receipt.run_id) == (True, "serving", None)
    assert receipt.model_extra == {"since": "yesterday"}


def test_duplicate_is_not_an_error() -> None:
    service = FakeService([json_response(ACCEPTED | {"status": "duplicate"})])
    assert sync_client(service).thumbs_up("r", "u").status == "duplicate"


def test_versions_include_the_gate_figures() -> None:
    figure = {"name": "wins", "n": 40, "value": 0.9, "low": 0.7, "high": 1.0, "bound": 0.5, "passed": True}
    body = {
        "version": "assistant@v1-0a1b2c3d",
        "verdict": "passed",
        "serving": True,
        "figures": [figure],
        "new": 1,
    }
    service = FakeService([json_response([{"version": "assistant@base-0a1b2c3d", "verdict": None}, body])])
    base, first = sync_client(service).versions("assistant")
    assert (base.verdict, base.serving, first.serving, first.figures[0].low) == (None, False, True, 0.7)
    assert str(service.requests[0].url) == "http://console/api/versions?line=assistant"


def test_status_includes_serving_version_and_reason() -> None:
    serving = {
        "version": "assistant@v1-0a1b2c3d",
        "seq": 2,
        "since": "2026-03-01T12:00:00+00:00",
        "reason": "It won.",
    }
    body = {
        "line": "assistant",
        "serving": serving,
        "ledger": {"batched": 3},
        "pending": None,
        "run": {"step": 4},
    }
    service = FakeService([json_response(body)])
    status = sync_client(service).status()
    assert status.serving is not None
    assert (status.serving.version, status.serving.paused) == ("assistant@v1-0a1b2c3d", False)
    assert (status.ledger, status.pending, status.model_extra) == ({"batched": 3}, None, {"run": {"step": 4}})
    assert str(service.requests[0].url) == "http://console/api/status"


def test_wait_for_result_polls_until_the_result_is_known() -> None:
    pending = {"command_id": "c-1", "status": "pending", "message": "not executed yet"}
    done = {"command_id": "c-1", "status": "done", "message": "v2 serves", "executor": "rollout"}
    service = FakeService(
        [
            json_response({"command_id": "c-1"}, 202),
            json_response(pending, 202),
            json_response(pending, 202),
            json_response(done),
        ]
    )
    client = sync_client(service)
    command = client.command("promote", version="assistant@v2-0a1b2c3d", command_id="c-1")
    assert client.wait_for_result(command.command_id, poll=0.0).message == "v2 serves"
    assert service.bodies() == [{"kind": "promote", "version": "assistant@v2-0a1b2c3d", "command_id": "c-1"}]
    assert len(service.requests) == 4


def test_wait_for_result_of_unknown_command_raises() -> None:
    with pytest.raises(NotFound):
        sync_client(FakeService([problem_response(404)])).wait_for_result("c-9")


def test_wait_for_result_times_out_with_the_command_id() -> None:
    service = FakeService([json_response({}, 202)])
    with pytest.raises(StillRunning, match="c-1") as raised:
        sync_client(service).wait_for_result("c-1", timeout=0.0, poll=0.01)
    assert raised.value.command_id == "c-1"


# --- retries ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure",
    [
        problem_response(503, retry_after="0"),
        problem_response(429, retry_after="0"),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
    ],
    ids=["503", "429", "no connection", "no response"],
)
def test_feedback_is_retried_with_the_same_id(failure: Reply) -> None:
    service = FakeService([failure, json_response(ACCEPTED, 202)])
    sync_client(service).thumbs_up("r", "u")
    first, second = service.bodies()
    assert first == second


def test_rejected_feedback_is_not_retried() -> None:
    service = FakeService([problem_response(422)])
    with pytest.raises(Invalid):
        sync_client(service).thumbs_up("r", "u")
    assert len(service.requests) == 1


def test_unsupported_url_is_not_retried() -> None:
    service = FakeService([httpx.UnsupportedProtocol("ftp")])
    with pytest.raises(Unreachable):
        sync_client(service).status()
    assert len(service.requests) == 1


def test_command_is_retried_with_the_same_id() -> None:
    service = FakeService(
        [
            httpx.ReadTimeout("slow"),
            problem_response(503, retry_after="0"),
            json_response({"command_id": "c-2"}, 202),
        ]
    )
    assert sync_client(service).command("train_now").command_id == "c-2"
    assert len({body["command_id"] for body in service.bodies()}) == 1


def test_each_command_has_its_own_id_unless_one_is_given() -> None:
    service = FakeService([json_response({"command_id": "c"}, 202)])
    client = sync_client(service)
    client.command("pause")
    client.command("rollback", leaving="v2", command_id="again")
    client.replay(["0-1"])
    client.release(["r-1"])
    bodies = service.bodies()
    assert len({body["command_id"] for body in bodies}) == 4
    assert (bodies[1]["command_id"], bodies[1]["leaving"]) == ("again", "v2")


@pytest.mark.parametrize(
    ("failure", "error"),
    [(httpx.ReadTimeout("slow"), Unreachable), (problem_response(503, retry_after="0"), Unavailable)],
    ids=["no response", "503"],
)
def test_failed_command_names_the_id_to_send_it_again_with(failure: Reply, error: type[Exception]) -> None:
    service = FakeService([failure])
    with pytest.raises(error) as raised:
        sync_client(service).command("train_now")
    assert {body["command_id"] for body in service.bodies()} == {raised.value.command_id}  # type: ignore[attr-defined]


def test_last_error_is_raised_after_all_attempts() -> None:
    service = FakeService([problem_response(503, detail="Kafka is away.", retry_after="0")])
    with pytest.raises(Unavailable, match="Kafka is away") as raised:
        sync_client(service).thumbs_up("r", "u")
    assert (len(service.requests), raised.value.status) == (3, 503)


def test_retry_after_header_is_parsed() -> None:
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def response_with(value: str) -> httpx.Response:
        return httpx.Response(503, headers={"Retry-After": value})

    assert retry_after(response_with("7"), now) == 7.0
    assert retry_after(response_with("Sun, 01 Mar 2026 12:00:30 GMT"), now) == 30.0
    assert retry_after(response_with("Sun, 01 Mar 2026 11:00:00 GMT"), now) == 0.0
    assert retry_after(response_with("soon"), now) is None
    assert retry_after(httpx.Response(503), now) is None
    assert retry_after(None, now) is None


# --- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, Invalid),
        (401, Denied),
        (403, Denied),
        (404, NotFound),
        (409, Conflict),
        (413, Invalid),
        (422, Invalid),
        (429, Overloaded),
        (500, Unavailable),
        (503, Unavailable),
    ],
)
def test_each_status_raises_its_own_error_with_the_detail(status: int, kind: type[Problem]) -> None:
    service = FakeService([problem_response(status, "the_code", "Send it under a new id.", retry_after="0")])
    with pytest.raises(kind, match="Send it under a new id") as raised:
        sync_client(service).thumbs_up("r", "u")
    assert type(raised.value) is kind
    assert (raised.value.status, raised.value.code) == (status, "the_code")


def test_error_without_problem_document_names_the_request() -> None:
    service = FakeService([httpx.Response(502, text="<html>Bad Gateway</html>")])
    with pytest.raises(Unavailable, match=r"http://feedback/v1/feedback failed with status 502"):
        sync_client(service).thumbs_up("r", "u")


@pytest.mark.parametrize(
    "body", [json_response({"hello": "world"}), httpx.Response(200, text="hello"), json_response([1])]
)
def test_response_of_another_service_is_detected(body: httpx.Response) -> None:
    with pytest.raises(Unavailable, match="Check the address"):
        sync_client(FakeService([body])).thumbs_up("r", "u")


def test_unreachable_error_names_the_url_and_its_variable() -> None:
    service = FakeService([httpx.ConnectError("refused")])
    with pytest.raises(Unreachable, match=r"http://console .*LOOPWRIGHT_CONSOLE_URL"):
        sync_client(service).status()
    assert len(service.requests) == 3


# --- erasures ---------------------------------------------------------------------------------------------------

ERASURE = {"request_id": "q-1", "subject": "u_1", "status": "in_processor"}
DONE = ERASURE | {"status": "done", "versions": ["assistant@v1-0a1b2c3d"]}


def client_with_key(service: FakeService) -> Loopwright:
    return Loopwright(api_key="lw_the_key", retry=FAST_RETRY, transport=service.transport())


def test_api_key_is_sent_with_every_request() -> None:
    service = FakeService(
        [json_response(ERASURE, 202), json_response(ERASURE), json_response(ACCEPTED, 202), json_response([])]
    )
    client = client_with_key(service)
    client.erase("alice", "q-1")
    client.erasure("a/b")
    client.thumbs_up("r", "u")
    client.versions()
    keys = [request.headers.get("authorization") for request in service.requests]
    assert keys == ["Bearer lw_the_key"] * 4
    assert service.requests[1].url.raw_path == b"/v1/erasure/a%2Fb"


def test_erasure_is_retried_with_the_same_id() -> None:
    service = FakeService(
        [httpx.ReadError("broke"), problem_response(503, retry_after="0"), json_response(ERASURE, 202)]
    )
    assert client_with_key(service).erase("alice").status == "in_processor"
    assert len({body["request_id"] for body in service.bodies()}) == 1
    assert len(service.requests) == 3


def test_wait_for_erasure_polls_until_done() -> None:
    service = FakeService([json_response(ERASURE), json_response(DONE)])
    assert client_with_key(service).wait_for_erasure("q-1", poll=0.0).versions == ("assistant@v1-0a1b2c3d",)
    with pytest.raises(StillRunning, match="erasure q-1"):
        client_with_key(FakeService([json_response(ERASURE)])).wait_for_erasure("q-1", timeout=0.0, poll=0.01)


# --- async client -----------------------------------------------------------------------------------------------


async def test_async_client_retries_with_the_same_id() -> None:
    service = FakeService(
        [httpx.ConnectError("refused"), problem_response(503, retry_after="0"), json_response(ACCEPTED, 202)]
    )
    async with AsyncLoopwright(
        feedback_url="http://feedback", retry=FAST_RETRY, transport=service.transport()
    ) as client:
        assert (await client.correct("r", "u", "so")).event_id == "e-1"
    assert len({body["event_id"] for body in service.bodies()}) == 1
    assert len(service.requests) == 3


async def test_async_client_raises_the_same_errors() -> None:
    async with AsyncLoopwright(
        retry=FAST_RETRY, transport=FakeService([problem_response(409)]).transport()
    ) as client:
        with pytest.raises(Conflict):
            await client.thumbs_up("r", "u")
    async with AsyncLoopwright(
        retry=FAST_RETRY, transport=FakeService([httpx.ConnectError("no")]).transport()
    ) as client:
        with pytest.raises(Unreachable):
            await client.status()


async def test_async_client_waits_for_results() -> None:
    done = {"command_id": "c-1", "status": "refused", "message": "no such version"}
    service = FakeService(
        [json_response({"command_id": "c-1"}, 202), json_response({}, 202), json_response(done)]
    )
    async with AsyncLoopwright(retry=FAST_RETRY, transport=service.transport()) as client:
        command = await client.command("rollback")
        assert (await client.wait_for_result(command.command_id, poll=0.0)).status == "refused"
    service = FakeService([json_response({}, 202)])
    async with AsyncLoopwright(retry=FAST_RETRY, transport=service.transport()) as client:
        with pytest.raises(StillRunning):
            await client.wait_for_result("c-1", timeout=0.0, poll=0.01)
