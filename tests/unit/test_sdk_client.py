"""The SDK's client: what it sends, what it tries again, what it raises."""

from __future__ import annotations

import inspect
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
from tests.unit.sdk_server import Answer, Service, ok, refused

ACCEPTED = {"event_id": "e-1", "status": "accepted", "actionable": True, "hint": None}
AT_ONCE = Retry(attempts=3, first_wait_s=0.0)


def client_of(service: Service) -> Loopwright:
    return Loopwright(
        feedback_url="http://door/", console_url="http://desk", retry=AT_ONCE, transport=service.transport()
    )


# --- what is sent -----------------------------------------------------------------------------------------------


def test_feedback_goes_to_the_door_with_all_that_was_said() -> None:
    service = Service([ok(ACCEPTED, 202)])
    at = datetime(2026, 3, 1, 12, tzinfo=UTC)
    accepted = client_of(service).send(
        "chat-1",
        "alice",
        "correction",
        "Wellington.",
        "e-1",
        choice=2,
        tags=["geo"],
        occurred_at=at,
        line="assistant",
    )
    assert accepted == Accepted(event_id="e-1", status="accepted", actionable=True, hint=None)
    assert (service.asked[0].method, str(service.asked[0].url)) == ("POST", "http://door/v1/feedback")
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


def test_every_event_has_an_id_of_its_own_that_sorts_by_time() -> None:
    service = Service([ok(ACCEPTED, 202)])
    for _ in range(2):
        client_of(service).thumbs_up("chat-1", "alice")
    ids = [uuid.UUID(body["event_id"]) for body in service.bodies()]
    assert ids[0] != ids[1]
    assert [(i.version, i.variant) for i in ids] == [(7, uuid.RFC_4122)] * 2
    assert ids[0].int >> 80 <= ids[1].int >> 80


def test_an_event_id_holds_the_moment_it_was_made() -> None:
    before = datetime.now(UTC).timestamp()
    made = (uuid.UUID(new_event_id()).int >> 80) / 1000
    assert before - 0.002 <= made <= datetime.now(UTC).timestamp()


@pytest.mark.parametrize(
    ("say", "kind", "value"),
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
def test_each_kind_has_its_own_word(say: Callable[[Loopwright], Accepted], kind: str, value: object) -> None:
    service = Service([ok(ACCEPTED, 202)])
    say(client_of(service))
    (body,) = service.bodies()
    assert (body["kind"], body["value"], body["response_id"], body["user_id"]) == (kind, value, "r", "u")


def test_a_preference_names_exactly_one_side() -> None:
    service = Service([ok(ACCEPTED, 202)])
    with pytest.raises(ValueError, match="exactly one"):
        client_of(service).prefer("r", "u")
    with pytest.raises(ValueError, match="exactly one"):
        client_of(service).prefer("r", "u", over="a", under="b")
    assert service.asked == []


def test_a_moment_without_a_time_zone_is_refused_before_sending() -> None:
    service = Service([ok(ACCEPTED, 202)])
    with pytest.raises(ValueError, match="time zone"):
        client_of(service).send("r", "u", "thumbs", "up", occurred_at=datetime(2026, 3, 1))  # noqa: DTZ001
    assert service.asked == []


def test_addresses_come_from_the_environment_and_arguments_come_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOOPWRIGHT_FEEDBACK_URL", "http://from-env:1")
    monkeypatch.setenv("LOOPWRIGHT_CONSOLE_URL", "http://from-env:2")
    monkeypatch.setenv("LOOPWRIGHT_INFERENCE_URL", "http://from-env:3/")
    service = Service([ok([])])
    with Loopwright(feedback_url="http://given", transport=service.transport()) as client:
        client.versions()
        assert client.openai_base_url == "http://from-env:3/v1"
    service.answers = [ok(ACCEPTED, 202)]
    with Loopwright(feedback_url="http://given", transport=service.transport()) as client:
        client.thumbs_up("r", "u")
    assert [request.url.host for request in service.asked] == ["from-env", "given"]


# --- what comes back --------------------------------------------------------------------------------------------


def test_a_receipt_tells_the_way_to_the_serving_version_and_keeps_fields_it_does_not_know() -> None:
    told = {
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
    service = Service([ok(told)])
    receipt = client_of(service).receipt("r/1", "e 1")
    assert service.asked[0].url.raw_path == b"/v1/feedback/r%2F1/e%201"
    assert (receipt.serving, receipt.stage, receipt.run_id) == (True, "serving", None)
    assert receipt.model_extra == {"since": "yesterday"}


def test_a_duplicate_is_no_error() -> None:
    service = Service([ok(ACCEPTED | {"status": "duplicate"})])
    assert client_of(service).thumbs_up("r", "u").status == "duplicate"


def test_versions_come_with_the_gates_figures() -> None:
    figure = {"name": "wins", "n": 40, "value": 0.9, "low": 0.7, "high": 1.0, "bound": 0.5, "passed": True}
    told = {
        "version": "assistant@v1-0a1b2c3d",
        "verdict": "passed",
        "serving": True,
        "figures": [figure],
        "new": 1,
    }
    service = Service([ok([{"version": "assistant@base-0a1b2c3d", "verdict": None}, told])])
    base, first = client_of(service).versions("assistant")
    assert (base.verdict, base.serving, first.serving, first.figures[0].low) == (None, False, True, 0.7)
    assert str(service.asked[0].url) == "http://desk/api/versions?line=assistant"


def test_status_says_what_serves_and_why() -> None:
    serving = {
        "version": "assistant@v1-0a1b2c3d",
        "seq": 2,
        "since": "2026-03-01T12:00:00+00:00",
        "reason": "It won.",
    }
    told = {
        "line": "assistant",
        "serving": serving,
        "ledger": {"batched": 3},
        "pending": None,
        "run": {"step": 4},
    }
    service = Service([ok(told)])
    status = client_of(service).status()
    assert status.serving is not None
    assert (status.serving.version, status.serving.paused) == ("assistant@v1-0a1b2c3d", False)
    assert (status.ledger, status.pending, status.model_extra) == ({"batched": 3}, None, {"run": {"step": 4}})
    assert str(service.asked[0].url) == "http://desk/api/status"


def test_the_result_of_a_command_is_asked_for_until_it_is_known() -> None:
    pending = {"command_id": "c-1", "status": "pending", "message": "waits to be carried out"}
    done = {"command_id": "c-1", "status": "done", "message": "v2 serves", "executor": "rollout"}
    service = Service([ok({"command_id": "c-1"}, 202), ok(pending, 202), ok(pending, 202), ok(done)])
    client = client_of(service)
    given = client.command("promote", version="assistant@v2-0a1b2c3d")
    assert client.wait_for_result(given.command_id, poll=0.0).message == "v2 serves"
    assert service.bodies() == [{"kind": "promote", "version": "assistant@v2-0a1b2c3d"}]
    assert len(service.asked) == 4


def test_a_command_that_was_never_given_is_not_waited_for() -> None:
    with pytest.raises(NotFound):
        client_of(Service([refused(404)])).wait_for_result("c-9")


def test_waiting_for_a_result_ends_with_the_commands_id_in_hand() -> None:
    service = Service([ok({}, 202)])
    with pytest.raises(StillRunning, match="c-1") as raised:
        client_of(service).wait_for_result("c-1", timeout=0.0, poll=0.01)
    assert raised.value.command_id == "c-1"


# --- trying again -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble",
    [
        refused(503, wait="0"),
        refused(429, wait="0"),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
    ],
    ids=["503", "429", "no connection", "no answer"],
)
def test_feedback_is_sent_again_under_the_same_id(trouble: Answer) -> None:
    service = Service([trouble, ok(ACCEPTED, 202)])
    client_of(service).thumbs_up("r", "u")
    first, second = service.bodies()
    assert first == second


def test_what_was_refused_is_not_sent_again() -> None:
    service = Service([refused(422)])
    with pytest.raises(Invalid):
        client_of(service).thumbs_up("r", "u")
    assert len(service.asked) == 1


def test_an_address_that_is_none_is_not_tried_again() -> None:
    service = Service([httpx.UnsupportedProtocol("ftp")])
    with pytest.raises(Unreachable):
        client_of(service).status()
    assert len(service.asked) == 1


@pytest.mark.parametrize(
    ("trouble", "error"),
    [(httpx.ReadTimeout("slow"), Unreachable), (refused(503, wait="0"), Unavailable)],
    ids=["no answer", "503"],
)
def test_a_command_that_may_have_been_taken_is_not_given_twice(
    trouble: Answer, error: type[Exception]
) -> None:
    service = Service([trouble, ok({"command_id": "c-2"}, 202)])
    with pytest.raises(error):
        client_of(service).command("train_now")
    assert len(service.asked) == 1


def test_a_command_that_cannot_have_been_taken_is_given_again() -> None:
    service = Service([httpx.ConnectError("refused"), refused(429, wait="0"), ok({"command_id": "c-2"}, 202)])
    assert client_of(service).command("train_now").command_id == "c-2"


def test_attempts_end_and_the_last_trouble_is_told() -> None:
    service = Service([refused(503, detail="Kafka is away.", wait="0")])
    with pytest.raises(Unavailable, match="Kafka is away") as raised:
        client_of(service).thumbs_up("r", "u")
    assert (len(service.asked), raised.value.status) == (3, 503)


def test_the_service_is_believed_about_when_to_come_back() -> None:
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def said(value: str) -> httpx.Response:
        return httpx.Response(503, headers={"Retry-After": value})

    assert retry_after(said("7"), now) == 7.0
    assert retry_after(said("Sun, 01 Mar 2026 12:00:30 GMT"), now) == 30.0
    assert retry_after(said("Sun, 01 Mar 2026 11:00:00 GMT"), now) == 0.0
    assert retry_after(said("soon"), now) is None
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
def test_each_refusal_is_an_error_of_its_own_that_says_what_to_do(status: int, kind: type[Problem]) -> None:
    service = Service([refused(status, "the_code", "Send it under a new id.", wait="0")])
    with pytest.raises(kind, match="Send it under a new id") as raised:
        client_of(service).thumbs_up("r", "u")
    assert type(raised.value) is kind
    assert (raised.value.status, raised.value.code) == (status, "the_code")


def test_an_answer_that_is_no_problem_document_still_says_where_to_look() -> None:
    service = Service([httpx.Response(502, text="<html>Bad Gateway</html>")])
    with pytest.raises(Unavailable, match=r"http://door/v1/feedback failed with status 502"):
        client_of(service).thumbs_up("r", "u")


@pytest.mark.parametrize("body", [ok({"hello": "world"}), httpx.Response(200, text="hello"), ok([1])])
def test_an_answer_of_something_else_is_recognised(body: httpx.Response) -> None:
    with pytest.raises(Unavailable, match="check the address"):
        client_of(Service([body])).thumbs_up("r", "u")


def test_no_answer_at_all_names_the_address_and_how_to_set_another() -> None:
    service = Service([httpx.ConnectError("refused")])
    with pytest.raises(Unreachable, match=r"http://desk .*LOOPWRIGHT_CONSOLE_URL"):
        client_of(service).status()
    assert len(service.asked) == 3


# --- erasures ---------------------------------------------------------------------------------------------------

ERASURE = {"request_id": "q-1", "subject": "u_1", "status": "in_processor"}
DONE = ERASURE | {"status": "done", "versions": ["assistant@v1-0a1b2c3d"]}


def eraser_of(service: Service) -> Loopwright:
    return Loopwright(erasure_token="the token", retry=AT_ONCE, transport=service.transport())


def test_the_erasure_token_is_shown_where_a_user_is_erased_and_nowhere_else() -> None:
    service = Service([ok(ERASURE, 202), ok(ERASURE), ok(ACCEPTED, 202), ok([])])
    client = eraser_of(service)
    client.erase("alice", "q-1")
    client.erasure("a/b")
    client.thumbs_up("r", "u")
    client.versions()
    shown = [request.headers.get("authorization") for request in service.asked]
    assert shown == ["Bearer the token"] * 2 + [None] * 2
    assert service.asked[1].url.raw_path == b"/v1/erasure/a%2Fb"


def test_an_erasure_is_sent_again_under_the_same_id() -> None:
    service = Service([httpx.ReadError("broke"), refused(503, wait="0"), ok(ERASURE, 202)])
    assert eraser_of(service).erase("alice").status == "in_processor"
    assert len({body["request_id"] for body in service.bodies()}) == 1
    assert len(service.asked) == 3


def test_an_erasure_is_asked_after_until_it_is_done() -> None:
    service = Service([ok(ERASURE), ok(DONE)])
    assert eraser_of(service).wait_for_erasure("q-1", poll=0.0).versions == ("assistant@v1-0a1b2c3d",)
    with pytest.raises(StillRunning, match="erasure q-1"):
        eraser_of(Service([ok(ERASURE)])).wait_for_erasure("q-1", timeout=0.0, poll=0.01)


# --- the mirror -------------------------------------------------------------------------------------------------


async def test_the_async_client_sends_again_under_the_same_id_too() -> None:
    service = Service([httpx.ConnectError("refused"), refused(503, wait="0"), ok(ACCEPTED, 202)])
    async with AsyncLoopwright(
        feedback_url="http://door", retry=AT_ONCE, transport=service.transport()
    ) as client:
        assert (await client.correct("r", "u", "so")).event_id == "e-1"
    assert len({body["event_id"] for body in service.bodies()}) == 1
    assert len(service.asked) == 3


async def test_the_async_client_raises_the_same_errors() -> None:
    async with AsyncLoopwright(retry=AT_ONCE, transport=Service([refused(409)]).transport()) as client:
        with pytest.raises(Conflict):
            await client.thumbs_up("r", "u")
    async with AsyncLoopwright(
        retry=AT_ONCE, transport=Service([httpx.ConnectError("no")]).transport()
    ) as client:
        with pytest.raises(Unreachable):
            await client.status()


async def test_the_async_client_waits_for_results_too() -> None:
    done = {"command_id": "c-1", "status": "refused", "message": "no such version"}
    service = Service([ok({"command_id": "c-1"}, 202), ok({}, 202), ok(done)])
    async with AsyncLoopwright(retry=AT_ONCE, transport=service.transport()) as client:
        given = await client.command("rollback")
        assert (await client.wait_for_result(given.command_id, poll=0.0)).status == "refused"
    service = Service([ok({}, 202)])
    async with AsyncLoopwright(retry=AT_ONCE, transport=service.transport()) as client:
        with pytest.raises(StillRunning):
            await client.wait_for_result("c-1", timeout=0.0, poll=0.01)


def test_both_clients_have_the_same_methods() -> None:
    def surface(of: type) -> dict[str, inspect.Signature]:
        members = inspect.getmembers(of, inspect.isfunction)
        return {name: inspect.signature(function) for name, function in members if not name.startswith("_")}

    assert surface(Loopwright) == surface(AsyncLoopwright)
