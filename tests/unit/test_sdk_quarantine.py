"""`loopwright quarantine`: what it shows and what it sends."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner, Result

from loopwright import AsyncLoopwright, Loopwright
from loopwright.cli import app
from tests.unit.sdk_server import Answer, Service, ok

PERSONAL, SECRET = "personal data: a phone number", "secret: AWS Access Key"
HELD = [
    {"response_id": "r1", "event_id": "e1", "reason": PERSONAL},
    {"response_id": "r2", "event_id": "e2", "reason": SECRET},
    {"response_id": "r3", "event_id": "e3", "reason": PERSONAL},
]
QUARANTINE = ok({"held": HELD, "total": 3, "updated_at": "2026-03-04T00:00:00Z"})
DONE = ok({"command_id": "c-1", "status": "done", "message": "released 1", "executor": "trainer"})


def run(answers: list[Answer], *arguments: str) -> tuple[Service, Result]:
    service = Service(answers)
    return service, CliRunner().invoke(app, ["quarantine", *arguments], obj=service.transport())


def test_the_list_names_responses_and_reasons_and_counts_them() -> None:
    service, result = run([QUARANTINE], "list", "--line", "b")
    assert result.exit_code == 0
    assert all(one["response_id"] in result.stdout for one in HELD)
    assert f"3 of 3: 2 ({PERSONAL}), 1 ({SECRET})" in result.stdout
    assert service.asked[0].url.path == "/api/quarantine"
    assert service.asked[0].url.params["line"] == "b"


def test_the_list_may_be_cut_and_filtered_for_programs() -> None:
    _, result = run([QUARANTINE], "list", "--reason", "personal data", "--json")
    assert [one["response_id"] for one in json.loads(result.stdout)] == ["r1", "r3"]
    _, cut = run([QUARANTINE], "list", "--limit", "1", "--json")
    assert len(json.loads(cut.stdout)) == 1


def test_nothing_held_and_nothing_known_are_told_apart() -> None:
    assert "nothing is held" in run([ok({"held": [], "total": 0})], "list")[1].stdout
    unknown = run([ok({"held": [], "total": None})], "list")[1]
    assert unknown.exit_code == 1
    assert "not known" in unknown.stderr


def test_a_release_names_the_responses_and_says_what_came_of_it() -> None:
    service, result = run([ok({"command_id": "c-1"}, 202), DONE], "release", "r1", "--yes")
    assert (result.exit_code, result.stdout) == (0, "done released 1\n")
    assert service.bodies() == [{"kind": "release", "response_ids": ["r1"]}]


def test_a_release_by_reason_names_all_that_it_holds() -> None:
    answers: list[Answer] = [QUARANTINE, ok({"command_id": "c-1"}, 202)]
    service, result = run(answers, "release", "--reason", "personal data", "--yes", "--no-wait")
    assert result.exit_code == 0
    assert service.bodies() == [{"kind": "release", "response_ids": ["r1", "r3"]}]


def test_a_dry_run_sends_nothing() -> None:
    service, result = run([QUARANTINE], "release", "--reason", "secret", "--dry-run")
    assert f"would be released: 1 ({SECRET})" in result.stdout
    assert service.bodies() == []


@pytest.mark.parametrize("arguments", [[], ["r1", "--reason", "secret"], ["r1"]])
def test_nothing_is_released_unless_it_is_said_what_and_confirmed(arguments: list[str]) -> None:
    service, result = run([QUARANTINE], "release", *arguments)
    assert result.exit_code == 2
    assert service.bodies() == []


async def test_both_clients_ask_alike() -> None:
    def service() -> Service:
        return Service([ok({"held": HELD, "total": 3}), ok({"command_id": "c-1"}, 202)])

    one, other = service(), service()
    with Loopwright(transport=one.transport()) as loop:
        assert [held.reason for held in loop.quarantine("b").held] == [PERSONAL, SECRET, PERSONAL]
        assert loop.release(["r1"], line="b").command_id == "c-1"
    async with AsyncLoopwright(transport=other.transport()) as loop_:
        assert (await loop_.quarantine("b")).total == 3
        assert (await loop_.release(["r1"], line="b")).command_id == "c-1"
    assert one.bodies() == other.bodies() == [{"kind": "release", "line": "b", "response_ids": ["r1"]}]
    asked = [[(request.method, str(request.url)) for request in each.asked] for each in (one, other)]
    assert asked[0] == asked[1]
