"""`loopwright lineage`, `diff`, `train reproduce` and `artifacts gc`: requests, output and exit status."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from loopwright import AsyncLoopwright, Loopwright, Retry
from loopwright.cli import app, common
from tests.unit.sdk_server import FakeService, Reply, json_response, problem_response

V1, V2 = "assistant@v1-0a1b2c3d", "assistant@v2-1f2e3d4c"
RESPONSES = [
    {
        "response_id": f"r{n}",
        "revision": 1,
        "events": [{"event_id": f"e{n}", "kind": "correction", "user": "f" * 64}],
    }
    for n in range(3)
]
LINEAGE = {
    "version": V1,
    "verdict": "passed",
    "role": "stable",
    "base": "assistant@base-0a1b2c3d",
    "base_model": "tiny",
    "reproducible": False,
    "why_not_reproducible": ["rows that it was trained on were erased (erasure 1)"],
    "run": {"run_id": "run-1", "stage": "published"},
    "dataset": {"digest": "ab" * 32, "examples": 4, "users": 2, "tokens": 90},
    "counts": {"events": 3, "responses": 3, "users": 1, "kinds": {"correction": 3}},
    "batches": [{"batch_id": "assistant-0-1", "users": 1, "events": 3, "responses": RESPONSES}],
}
RUNS = [
    {"run_id": "run-1", "stage": "published", "state": "trained", "version": V1, "verdict": "passed"},
    {
        "run_id": "run-2",
        "stage": "published",
        "state": "held",
        "reason": "agreement: outvoted",
        "version": V2,
    },
]
TRACE = {
    "event_id": "e0",
    "responses": [{"response_id": "r0", "kind": "correction", "now": "usable: it may train", "runs": RUNS}],
}
NO_ROWS = {"count": 0, "ids": []}
DIFF = {
    "one": {"version": V1, "verdict": "failed", "base": "b"},
    "other": {"version": V2, "verdict": "passed", "base": "b"},
    "same_base": True,
    "recipe": {"epochs": [4.0, 2.0]},
    "software": {"torch": ["2.6", "2.7"]},
    "rows": {"complete": True, "same": 7, "added": {"count": 3, "ids": []}, "removed": NO_ROWS},
    "figures": [{"name": "win_rate", "one": {"n": 30, "value": 0.5, "low": 0.4, "high": 0.6}, "other": None}],
}


def run(answers: list[Reply], *arguments: str) -> tuple[FakeService, Result]:
    service = FakeService(answers)
    return service, CliRunner().invoke(app, list(arguments), obj=service.transport())


def test_lineage_is_printed_as_a_tree_down_to_the_events() -> None:
    service, result = run([json_response(LINEAGE)], "lineage", V1, "--limit", "2")
    assert result.exit_code == 0
    for part in ("run run-1", "snapshot abababab: 4 rows of 2 users", "batch assistant-0-1", "correction e1"):
        assert part in result.stdout
    assert "reproducible: no" in result.stdout and "were erased" in result.stdout
    assert "e2" not in result.stdout and "1 more" in result.stdout
    assert "f" * 20 not in result.stdout, "pseudonyms are shortened"
    assert (service.requests[0].url.path, dict(service.requests[0].url.params)) == (
        "/api/lineage",
        {"version": V1},
    )


def test_lineage_json_is_complete() -> None:
    printed = json.loads(run([json_response(LINEAGE)], "lineage", V1, "--json")[1].stdout)
    assert [response["response_id"] for response in printed["batches"][0]["responses"]] == ["r0", "r1", "r2"]
    assert printed["dataset"] == LINEAGE["dataset"]


def test_trace_prints_what_each_run_did_with_the_event() -> None:
    service, result = run([json_response(TRACE)], "lineage", "--up", "e0", "--response", "r0")
    assert f"run run-1 -> {V1} passed: trained" in result.stdout
    assert "held (agreement: outvoted)" in result.stdout
    assert dict(service.requests[0].url.params) == {"event_id": "e0", "response_id": "r0"}


def test_trace_of_unknown_event_prints_the_detail() -> None:
    _, result = run(
        [json_response({"event_id": "e", "responses": [], "detail": "see loopwright receipt"})],
        "lineage",
        "--up",
        "e",
    )
    assert (result.exit_code, "see loopwright receipt" in result.stdout) == (0, True)


@pytest.mark.parametrize("arguments", [[], [V1, "--up", "e0"], [V1, "--response", "r0"]])
def test_lineage_needs_either_a_version_or_an_event(arguments: list[str]) -> None:
    service, result = run([json_response(LINEAGE)], "lineage", *arguments)
    assert (result.exit_code, service.requests) == (2, [])


def test_diff_prints_both_versions_side_by_side() -> None:
    service, result = run([json_response(DIFF)], "diff", V1, V2)
    text = " ".join(result.stdout.split())
    for part in ("recipe: epochs 4.0 2.0", "software: torch 2.6 2.7", "0.500 (0.400 to 0.600) n 30 -"):
        assert part in text
    assert "rows: 7 the same, 3 added, 0 removed" in text
    assert dict(service.requests[0].url.params) == {"one": V1, "other": V2}


def test_unknown_version_exits_with_1_and_unreachable_trainer_with_3(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, unknown = run([problem_response(404, "unknown_version", "The newest: v2.")], "lineage", V1)
    assert (unknown.exit_code, "The newest: v2." in unknown.stderr) == (1, True)
    monkeypatch.setattr(common, "RETRY", Retry(attempts=1))
    _, unreachable = run([httpx.ConnectError("refused")], "diff", V1, V2, "--trainer-url", "http://trainer:1")
    assert (unreachable.exit_code, "LOOPWRIGHT_TRAINER_URL" in unreachable.stderr) == (3, True)


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (["train", "reproduce", V1], {"kind": "reproduce", "version": V1}),
        (["artifacts", "gc"], {"kind": "collect_garbage"}),
        (["artifacts", "gc", "--dry-run"], {"kind": "collect_garbage", "dry_run": True}),
    ],
)
@pytest.mark.parametrize(("status", "exit_code"), [("done", 0), ("refused", 1), ("failed", 1)])
def test_command_is_sent_and_its_result_is_the_exit_status(
    arguments: list[str], body: dict[str, Any], status: str, exit_code: int
) -> None:
    outcome = {"command_id": "c-1", "status": status, "message": "the message", "executor": "trainer"}
    service, result = run([json_response({"command_id": "c-1"}, 202), json_response(outcome)], *arguments)
    assert (result.exit_code, result.stdout) == (exit_code, f"{status} the message\n")
    [sent] = service.bodies()
    assert sent.pop("command_id"), "a repeated request must not be a second command"
    assert sent == body


async def test_both_clients_send_the_same_requests_to_the_trainer() -> None:
    def service() -> FakeService:
        return FakeService([json_response(LINEAGE), json_response(TRACE), json_response(DIFF)])

    sync_service, async_service = service(), service()
    with Loopwright(transport=sync_service.transport(), trainer_url="http://trainer") as loop:
        assert loop.lineage(V1).batches[0].responses[2].events[0].event_id == "e2"
        assert loop.trace("e0").responses[0].runs[1].state == "held"
        assert loop.diff(V1, V2).recipe == {"epochs": [4.0, 2.0]}
    async with AsyncLoopwright(transport=async_service.transport(), trainer_url="http://trainer") as loop_:
        assert (await loop_.lineage(V1)).reproducible is False
        assert (await loop_.trace("e0")).event_id == "e0"
        assert (await loop_.diff(V1, V2)).same_base is True
    requests = [(request.method, str(request.url)) for request in sync_service.requests]
    assert requests == [(request.method, str(request.url)) for request in async_service.requests]
    assert all(url.startswith("http://trainer/api/") for _, url in requests)
