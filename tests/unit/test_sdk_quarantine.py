"""`loopwright quarantine`: requests and output."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner, Result

from loopwright import AsyncLoopwright, Loopwright
from loopwright.cli import app
from tests.unit.sdk_server import FakeService, Reply, json_response

PERSONAL, SECRET = "personal data: a phone number", "secret: AWS Access Key"
EVENTS = [
    {"response_id": "r1", "event_id": "e1", "reason": PERSONAL},
    {"response_id": "r2", "event_id": "e2", "reason": SECRET},
    {"response_id": "r3", "event_id": "e3", "reason": PERSONAL},
]
QUARANTINE = json_response({"held": EVENTS, "total": 3, "updated_at": "2026-03-04T00:00:00Z"})
DONE = json_response({"command_id": "c-1", "status": "done", "message": "released 1", "executor": "trainer"})


def run(answers: list[Reply], *arguments: str) -> tuple[FakeService, Result]:
    service = FakeService(answers)
    return service, CliRunner().invoke(app, ["quarantine", *arguments], obj=service.transport())


def test_list_prints_events_and_counts_by_reason() -> None:
    service, result = run([QUARANTINE], "list", "--line", "b")
    assert result.exit_code == 0
    assert all(event["response_id"] in result.stdout for event in EVENTS)
    assert f"3 of 3: 2 ({PERSONAL}), 1 ({SECRET})" in result.stdout
    assert service.requests[0].url.path == "/api/quarantine"
    assert service.requests[0].url.params["line"] == "b"


def test_list_json_is_limited_and_filtered() -> None:
    _, result = run([QUARANTINE], "list", "--reason", "personal data", "--json")
    assert [event["response_id"] for event in json.loads(result.stdout)] == ["r1", "r3"]
    _, limited = run([QUARANTINE], "list", "--limit", "1", "--json")
    assert len(json.loads(limited.stdout)) == 1


def test_empty_and_unknown_quarantine_differ() -> None:
    assert "no quarantined events" in run([json_response({"held": [], "total": 0})], "list")[1].stdout
    unknown = run([json_response({"held": [], "total": None})], "list")[1]
    assert unknown.exit_code == 1
    assert "not known" in unknown.stderr


def test_release_sends_response_ids_and_prints_the_result() -> None:
    service, result = run(
        [json_response({"command_id": "c-1"}, 202), DONE], "release", "r1", "--yes", "--command-id", "c-1"
    )
    assert (result.exit_code, result.stdout) == (0, "done released 1\n")
    assert service.bodies() == [{"kind": "release", "response_ids": ["r1"], "command_id": "c-1"}]


def test_release_by_reason_sends_all_matching_responses() -> None:
    answers: list[Reply] = [QUARANTINE, json_response({"command_id": "c-1"}, 202)]
    service, result = run(
        answers, "release", "--reason", "personal data", "--yes", "--no-wait", "--command-id", "c"
    )
    assert result.exit_code == 0
    assert service.bodies() == [{"kind": "release", "response_ids": ["r1", "r3"], "command_id": "c"}]


def test_dry_run_releases_nothing() -> None:
    service, result = run([QUARANTINE], "release", "--reason", "secret", "--dry-run")
    assert f"would be released: 1 ({SECRET})" in result.stdout
    assert service.bodies() == []


@pytest.mark.parametrize("arguments", [[], ["r1", "--reason", "secret"], ["r1"]])
def test_release_needs_a_selection_and_confirmation(arguments: list[str]) -> None:
    service, result = run([QUARANTINE], "release", *arguments)
    assert result.exit_code == 2
    assert service.bodies() == []


async def test_both_clients_send_the_same_requests() -> None:
    def service() -> FakeService:
        return FakeService(
            [json_response({"held": EVENTS, "total": 3}), json_response({"command_id": "c-1"}, 202)]
        )

    sync_service, async_service = service(), service()
    with Loopwright(transport=sync_service.transport()) as loop:
        assert [event.reason for event in loop.quarantine("b").held] == [PERSONAL, SECRET, PERSONAL]
        assert loop.release(["r1"], line="b", command_id="c").command_id == "c-1"
    async with AsyncLoopwright(transport=async_service.transport()) as loop_:
        assert (await loop_.quarantine("b")).total == 3
        assert (await loop_.release(["r1"], line="b", command_id="c")).command_id == "c-1"
    assert (
        sync_service.bodies()
        == async_service.bodies()
        == [{"kind": "release", "line": "b", "response_ids": ["r1"], "command_id": "c"}]
    )
    requests = [(request.method, str(request.url)) for request in sync_service.requests]
    assert requests == [(request.method, str(request.url)) for request in async_service.requests]
