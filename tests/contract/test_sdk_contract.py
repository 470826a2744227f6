"""The SDK and the services, which share no code, mean the same by each answer and each body."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from loopwright import CommandResult, Loopwright, Receipt, Status, Version
from services.console.core import responses
from services.console.core.command_requests import parse_command_request
from services.console.core.projection import Projection
from services.feedback.core.receipts import Receipt as ServedReceipt
from services.feedback.core.schemas import FEEDBACK_BODY, RESPONSE_BODY, parse_body, to_event, to_response
from shared.commands import CommandResult as LoggedResult
from shared.versions import Figure, GateReport, ModelVersion, RolloutRecord, VersionRef

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
DIGEST = "0a1b2c3d" * 8
BASE = VersionRef(version="assistant@base-0a1b2c3d", kind="base", digest=DIGEST)
FIRST = VersionRef(version="assistant@v1-0a1b2c3d", kind="lora", uri="v1", digest=DIGEST)


def state() -> Projection:
    """A line whose first version has just taken over from its base."""
    figure = Figure(name="wins", n=40, value=0.9, low=0.7, high=1.0, bound=0.5, passed=True)
    gate = GateReport(verdict="passed", reasons=("it wins",), figures=(figure,), gated_against=BASE.version)
    base = ModelVersion(line="assistant", ref=BASE, base=BASE.version, base_model="tiny", created_at=AT)
    first = base.model_copy(update={"ref": FIRST, "number": 1, "run_id": "run-1", "gate": gate})
    record = RolloutRecord(
        line="assistant",
        seq=2,
        action="promote",
        stable=FIRST,
        previous=BASE,
        reason="It passed.",
        decided_at=AT,
    )
    result = LoggedResult(
        line="assistant", command_id="c-1", status="done", message="Done.", executor="rollout", finished_at=AT
    )
    return Projection(
        versions={"assistant": {FIRST.version: first, BASE.version: base}},
        rollout={"assistant": {2: record}},
        results={"c-1": result},
    )


def sent(**request: Any) -> bytes:
    """What the SDK puts on the wire for a call: the method's name and its arguments."""
    bodies: list[bytes] = []

    def answer(asked: httpx.Request) -> httpx.Response:
        bodies.append(asked.content)
        return httpx.Response(
            202, json={"event_id": "e", "status": "accepted", "command_id": "c", "response_id": "r"}
        )

    with Loopwright(transport=httpx.MockTransport(answer)) as client:
        getattr(client, request.pop("method"))(**request)
    return bodies[0]


def told(answer: Any) -> Any:
    """As it comes over the wire."""
    return json.loads(json.dumps(answer))


def test_the_console_s_status_is_read_whole() -> None:
    status = Status.model_validate(
        told(responses.status(state(), "assistant", accepted=4, collected=None, run=None))
    )
    assert status.serving is not None
    assert (status.serving.version, status.serving.reason, status.serving.since) == (
        FIRST.version,
        "It passed.",
        AT,
    )
    assert (status.accepted, status.pending, status.ledger) == (4, 4, {})


def test_the_console_s_versions_are_read_with_the_gate_s_figures() -> None:
    base, first = (Version.model_validate(told(v)) for v in responses.versions(state(), "assistant"))
    assert (base.version, base.verdict, base.serving) == (BASE.version, None, False)
    assert (first.verdict, first.reasons, first.number, first.serving) == ("passed", ("it wins",), 1, True)
    assert (first.figures[0].name, first.figures[0].low, first.created_at) == ("wins", 0.7, AT)


def test_the_console_s_result_of_a_command_is_read() -> None:
    result = CommandResult.model_validate(told(responses.command(state(), "c-1")))
    assert (result.status, result.message, result.executor, result.finished_at) == (
        "done",
        "Done.",
        "rollout",
        AT,
    )


def test_every_field_of_a_receipt_has_its_place() -> None:
    assert set(ServedReceipt.model_fields) == set(Receipt.model_fields)


@pytest.mark.parametrize(
    "call",
    [
        {"method": "thumbs_up"},
        {"method": "thumbs_down", "choice": 1},
        {"method": "rate", "stars": 5},
        {"method": "correct", "text": "Wellington."},
        {"method": "comment", "text": "Say where it lies."},
        {"method": "prefer", "over": "worse"},
        {"method": "prefer", "under": 1},
        {"method": "retract", "retracted": "e-1"},
        {
            "method": "send",
            "kind": "thumbs",
            "value": "up",
            "tags": ["a"],
            "occurred_at": AT,
            "line": "assistant",
        },
    ],
    ids=lambda call: call["method"],
)
def test_the_door_takes_all_that_the_sdk_can_say(call: dict[str, Any]) -> None:
    body = parse_body(FEEDBACK_BODY, sent(response_id="r-1", user_id="alice", **call))
    assert (body.response_id, body.user_id) == ("r-1", "alice")
    assert body.event_id is not None
    event = to_event(body, event_id=body.event_id, line="assistant", pseudonym="p-1", now=AT)
    assert event.kind == body.kind


def test_the_door_takes_the_sdk_s_responses() -> None:
    asked = [{"role": "user", "content": "Tell me about Mars."}]
    call = {"method": "record_response", "response_id": "r-1", "messages": asked, "version": "mine"}
    body = parse_body(RESPONSE_BODY, sent(**call, text="A planet.", finish_reason="length"))
    response = to_response(body, line="assistant", pseudonym=None, now=AT)
    assert response.choices[0].finish_reason == "length"
    assert (response.text_of(0), response.version, response.messages[0].content) == (
        "A planet.",
        "mine",
        "Tell me about Mars.",
    )


@pytest.mark.parametrize(
    "call", [{"kind": "train_now"}, {"kind": "promote", "version": FIRST.version, "line": "assistant"}]
)
def test_the_console_takes_the_sdk_s_commands(call: dict[str, Any]) -> None:
    order = parse_command_request(sent(method="command", **call))
    assert {"kind": order.kind, "line": order.line, "version": order.version} == {
        "line": None,
        "version": None,
    } | call
