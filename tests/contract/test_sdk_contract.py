"""The SDK and the services, which share no code, agree on request and response bodies."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from typer.testing import CliRunner

from loopwright import CommandResult, GateResult, Loopwright, Receipt, Status, Version
from loopwright import GateTest as SdkGateTest
from loopwright.cli import app
from loopwright.feedback_kinds import VALUES, FeedbackKind
from services.console.core import responses
from services.console.core.command_requests import parse_command_request
from services.console.core.projection import Projection
from services.feedback.core.receipts import Receipt as ServedReceipt
from services.feedback.core.schemas import FEEDBACK_BODY, RESPONSE_BODY, parse_body, to_event, to_response
from shared.commands import CommandResult as LoggedResult
from shared.events import Outcome, OutcomeKind, RefusalReason, Retract
from shared.feedback_kinds import FEEDBACK_KINDS
from shared.records import Record
from shared.serving import ServingReport
from shared.versions import Figure, GateReport, GateTest, ModelVersion, RolloutRecord, VersionRef

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
RECORDS = Path(__file__).resolve().parents[1] / "data" / "records"
GOLDEN_VALUES: dict[str, Any] = {
    record.model_fields["kind"].default: json.loads((RECORDS / f"{record.__name__}.json").read_text())[
        "value"
    ]
    for record in (*(kind.record for kind in FEEDBACK_KINDS), Retract)
}
"""A value of each kind of feedback, from its golden record."""
DIGEST = "0a1b2c3d" * 8
BASE = VersionRef(version="assistant@base-0a1b2c3d", kind="base", digest=DIGEST)
FIRST = VersionRef(version="assistant@v1-0a1b2c3d", kind="lora", uri="v1", digest=DIGEST)


def state() -> Projection:
    """Return the state of a line whose first version was just promoted."""
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


def sent_body(**call: Any) -> bytes:
    """Return the body that the client sends for a call, given as method name and arguments."""
    bodies: list[bytes] = []

    def accept(request: httpx.Request) -> httpx.Response:
        bodies.append(request.content)
        return httpx.Response(
            202, json={"event_id": "e", "status": "accepted", "command_id": "c", "response_id": "r"}
        )

    with Loopwright(transport=httpx.MockTransport(accept)) as client:
        getattr(client, call.pop("method"))(**call)
    return bodies[0]


def body_of_command(*arguments: str) -> bytes:
    """Return the body that the command `loopwright` sends."""
    bodies: list[bytes] = []

    def accept(request: httpx.Request) -> httpx.Response:
        bodies.append(request.content)
        return httpx.Response(202, json={"event_id": "e", "status": "accepted"})

    result = CliRunner().invoke(app, list(arguments), obj=httpx.MockTransport(accept))
    assert result.exit_code == 0, result.output
    return bodies[0]


def over_the_wire(body: Any) -> Any:
    """Return a body as the client receives it."""
    return json.loads(json.dumps(body))


def test_console_status_is_parsed() -> None:
    known = state()
    for event_id, reason in (("e", RefusalReason.TOO_MANY), (None, RefusalReason.CONFLICT)):
        refused = Outcome(
            line="assistant",
            response_id="r",
            event_id=event_id,
            outcome=OutcomeKind.REFUSED,
            reason=reason,
            decided_at=AT,
        )
        known.apply([Record("feedback.outcomes", 0, 0, 86_400_000, b"r", refused.to_json())])
    counts = known.ledger.counts(0)
    live = [ServingReport(line="assistant", replica="one", seq=2, stable=FIRST.version, reported_at=AT)]
    body = responses.status(
        known, "assistant", counts, records=4, since_ms=0, collected=None, run=None, live=live
    )
    status = Status.model_validate(over_the_wire(body))
    assert status.serving is not None
    assert (status.serving.version, status.serving.reason, status.serving.since) == (
        FIRST.version,
        "It passed.",
        AT,
    )
    assert (status.serving.replicas.live, status.serving.replicas.serving) == (1, 1)
    assert (status.accepted, status.pending, status.ledger) == (4, 3, {"refused": 1})
    assert (status.refused, status.refused_responses) == ({"too_many": 1}, {"conflict": 1})
    assert status.ledger_since == datetime(1970, 1, 1, tzinfo=UTC)


def test_console_versions_are_parsed_with_gate_figures() -> None:
    live = [ServingReport(line="assistant", replica="one", seq=2, stable=FIRST.version, reported_at=AT)]
    found = responses.versions(state(), "assistant", live)
    base, first = (Version.model_validate(over_the_wire(version)) for version in found)
    assert (base.version, base.verdict, base.serving) == (BASE.version, None, False)
    assert (first.verdict, first.reasons, first.number, first.serving) == ("passed", ("it wins",), 1, True)
    assert (first.figures[0].name, first.figures[0].low, first.created_at) == ("wins", 0.7, AT)


def test_gate_tests_have_the_fields_of_the_record() -> None:
    assert set(SdkGateTest.model_fields) == set(GateTest.model_fields)
    assert {"look", "alpha", "test", "control_state", "control"} <= set(GateResult.model_fields)


def test_console_command_result_is_parsed() -> None:
    result = CommandResult.model_validate(over_the_wire(responses.command(state(), "c-1")))
    assert (result.status, result.message, result.executor, result.finished_at) == (
        "done",
        "Done.",
        "rollout",
        AT,
    )


def test_receipt_models_have_the_same_fields() -> None:
    assert set(ServedReceipt.model_fields) == set(Receipt.model_fields)


@pytest.mark.parametrize(
    "call",
    [
        {"method": "thumbs_up"},
        {"method": "thumbs_down", "choice": 1},
        {"method": "rate", "stars": 5},
        {"method": "correct", "text": "Wellington."},
        {"method": "comment", "text": "Say where it is."},
        {"method": "prefer", "over": "worse"},
        {"method": "prefer", "under": 1},
        {"method": "retract", "retracted_event_id": "e-1"},
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
def test_feedback_service_accepts_every_kind_of_feedback(call: dict[str, Any]) -> None:
    body = parse_body(FEEDBACK_BODY, sent_body(response_id="r-1", user_id="alice", **call))
    assert (body.response_id, body.user_id) == ("r-1", "alice")
    assert body.event_id is not None
    event = to_event(body, event_id=body.event_id, line="assistant", pseudonym="p-1", now=AT)
    assert event.kind == body.kind


def test_sdk_lists_the_kinds_of_the_services() -> None:
    assert list(get_args(FeedbackKind)) == list(VALUES) == list(GOLDEN_VALUES)


@pytest.mark.parametrize("kind", GOLDEN_VALUES)
def test_client_sends_every_kind(kind: str) -> None:
    value = GOLDEN_VALUES[kind]
    call = {"method": "send", "response_id": "r-1", "user_id": "alice", "kind": kind, "value": value}
    body = parse_body(FEEDBACK_BODY, sent_body(**call))
    event = to_event(body, event_id="e-1", line="assistant", pseudonym="p-1", now=AT)
    assert (event.kind, json.loads(event.to_json())["value"]) == (kind, value)


@pytest.mark.parametrize("kind", GOLDEN_VALUES)
def test_command_line_sends_every_kind(kind: str) -> None:
    value = GOLDEN_VALUES[kind]
    by_option = isinstance(value, dict)
    arguments = [f"--{name}={text}" for name, text in value.items()] if by_option else [str(value)]
    body = parse_body(FEEDBACK_BODY, body_of_command("send", "r-1", kind, *arguments, "-u", "alice"))
    event = to_event(body, event_id="e-1", line="assistant", pseudonym="p-1", now=AT)
    assert (event.kind, json.loads(event.to_json())["value"]) == (kind, value)


@pytest.mark.parametrize(
    ("kind", "value"), [(kind, value) for kind in VALUES for value in VALUES[kind].choices]
)
def test_service_accepts_every_choice_of_the_command_line(kind: str, value: str | int) -> None:
    body = parse_body(FEEDBACK_BODY, body_of_command("send", "r-1", kind, str(value), "-u", "alice"))
    event = to_event(body, event_id="e-1", line="assistant", pseudonym="p-1", now=AT)
    assert (event.kind, json.loads(event.to_json())["value"]) == (kind, value)


def test_feedback_service_accepts_recorded_responses() -> None:
    messages = [{"role": "user", "content": "Tell me about Mars."}]
    call = {"method": "record_response", "response_id": "r-1", "messages": messages, "version": "mine"}
    details: dict[str, Any] = {
        "metadata": {"page": "7"},
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
        "latency_ms": 12.5,
        "created_at": AT,
    }
    sent = sent_body(**call, text="A planet.", finish_reason="length", user_id="alice", **details)
    body = parse_body(RESPONSE_BODY, sent)
    assert body.user_id == "alice", "else an erasure would not find the response"
    response = to_response(body, line="assistant", pseudonym="u_1", now=AT)
    assert response.choices[0].finish_reason == "length"
    assert {name: response.model_dump()[name] for name in details} == details
    assert (response.text_of(0), response.version, response.messages[0].content) == (
        "A planet.",
        "mine",
        "Tell me about Mars.",
    )


@pytest.mark.parametrize(
    "call", [{"kind": "train_now"}, {"kind": "promote", "version": FIRST.version, "line": "assistant"}]
)
def test_console_accepts_commands(call: dict[str, Any]) -> None:
    request = parse_command_request(sent_body(method="command", **call))
    assert {"kind": request.kind, "line": request.line, "version": request.version} == {
        "line": None,
        "version": None,
    } | call
