"""The command `loopwright`: what it sends and prints, and its exit statuses."""

from __future__ import annotations

import json

import httpx
import pytest
from typer.testing import CliRunner, Result

from loopwright import Retry, __version__
from loopwright.cli import app, common
from tests.canary_factories import canary_test
from tests.unit.sdk_server import FakeService, Reply, json_response, problem_response

ACCEPTED = {"event_id": "e-1", "status": "accepted", "actionable": True}
COMMAND = {"command_id": "c-1"}
COMMANDS = [
    "send",
    "import seed",
    "receipt",
    "erase",
    "status",
    "watch",
    "versions",
    "lineage",
    "diff",
    "gate",
    "rollout promote",
    "rollout rollback",
    "rollout pin",
    "rollout pause",
    "rollout resume",
    "train now",
    "train reproduce",
    "artifacts gc",
    "dataset export",
    "dead-letters list",
    "dead-letters show",
    "dead-letters replay",
    "dead-letters skip",
    "quarantine list",
    "quarantine release",
]


def loopwright(*arguments: str, answers: list[Reply] | None = None, stdin: str | None = None) -> Result:
    return run(FakeService(answers or [json_response({})]), *arguments, stdin=stdin)


def run(service: FakeService, *arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), obj=service.transport(), input=stdin)


def test_send_prints_status_and_event_id() -> None:
    service = FakeService([json_response(ACCEPTED, 202)])
    result = run(service, "send", "chat-1", "correction", "Wellington.", "--user", "alice", "--tag", "geo")
    assert (result.exit_code, result.stdout) == (0, "accepted e-1\n")
    (body,) = service.bodies()
    assert (body["value"], body["tags"]) == ("Wellington.", ["geo"])


def test_hint_is_printed_verbatim() -> None:
    vague = ACCEPTED | {"actionable": False, "hint": "Say [what] is [/] wrong."}
    result = loopwright(
        "send", "chat-1", "comment", "bad", "-u", "alice", answers=[json_response(vague, 202)]
    )
    assert "Say [what] is [/] wrong." in result.stdout


def test_correction_can_be_read_from_stdin() -> None:
    service = FakeService([json_response(ACCEPTED, 202)])
    run(service, "send", "chat-1", "correction", "-", "-u", "alice", stdin="first\nsecond\n")
    assert service.bodies()[0]["value"] == "first\nsecond"


def test_preference_sends_the_other_text() -> None:
    service = FakeService([json_response(ACCEPTED, 202)])
    assert run(service, "send", "chat-1", "preference", "--over", "worse", "-u", "alice").exit_code == 0
    assert service.bodies()[0]["value"] == {"over": "worse"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["thumbs", "sideways"],
        ["thumbs"],
        ["rating", "6"],
        ["rating", "many"],
        ["preference"],
        ["preference", "text"],
        ["preference", "--over", "a", "--under", "b"],
        ["correction", "so", "--over", "a"],
        ["applause", "loud"],
    ],
)
def test_usage_error_is_detected_before_sending(arguments: list[str]) -> None:
    service = FakeService([json_response(ACCEPTED, 202)])
    assert run(service, "send", "chat-1", *arguments, "-u", "alice").exit_code == 2
    assert service.requests == []


def test_problem_is_one_line_on_stderr_and_exit_status_1() -> None:
    answers: list[Reply] = [problem_response(409, "conflict", "Send it under a new id.")]
    result = loopwright("send", "chat-1", "thumbs", "up", "-u", "alice", answers=answers)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "loopwright: Title: Send it under a new id.\n"


def test_problem_is_printed_as_json() -> None:
    answers: list[Reply] = [problem_response(409, "conflict", "Send it under a new id.")]
    result = loopwright("send", "chat-1", "thumbs", "up", "-u", "alice", "--json", answers=answers)
    assert result.exit_code == 1
    assert json.loads(result.stderr)["error"]["code"] == "conflict"


def test_unreachable_service_is_exit_status_3_and_names_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPWRIGHT_CONSOLE_URL", "http://console:1")
    monkeypatch.setattr(common, "RETRY", Retry(attempts=2, first_wait_s=0.0))
    result = loopwright("status", answers=[httpx.ConnectError("refused")])
    assert result.exit_code == 3
    assert "http://console:1 is not reachable" in result.stderr
    assert "LOOPWRIGHT_CONSOLE_URL" in result.stderr


def test_failing_service_is_exit_status_3() -> None:
    assert loopwright("status", answers=[httpx.Response(500)]).exit_code == 3


def test_receipt_prints_the_stage_first() -> None:
    body = {"response_id": "r", "event_id": "e", "outcome": "batched", "batch_id": "p0-7", "serving": False}
    result = loopwright(
        "receipt", "r", "e", answers=[json_response(body | {"stage": "training", "detail": "Run r1 has it."})]
    )
    assert result.stdout.splitlines()[0] == "training Run r1 has it."
    assert "batch_id        p0-7" in result.stdout
    assert "verdict" not in result.stdout


def test_receipt_of_a_refused_event_says_why_and_what_to_do() -> None:
    body = {
        "response_id": "r",
        "event_id": "e",
        "outcome": "refused",
        "stage": "refused",
        "detail": "It was refused and changes nothing.",
        "reason": "too_many",
        "remedy": "Retract earlier feedback.",
    }
    text = loopwright("receipt", "r", "e", answers=[json_response(body)]).stdout
    assert "too_many" in text
    assert "Retract earlier feedback." in text


def test_status_prints_all_fields() -> None:
    body = {"line": "assistant", "ledger": {"batched": 2}, "accepted": 5, "pending": 3, "run": {"step": 4}}
    text = loopwright("status", answers=[json_response(body)]).stdout
    assert all(part in text for part in ("line: assistant", "batched: 2", "pending: 3", "step: 4"))
    as_json = json.loads(loopwright("status", "--json", answers=[json_response(body)]).stdout)
    assert {name: as_json[name] for name in body} == body


def test_versions_mark_the_serving_version() -> None:
    body = [
        {"version": "assistant@base-0a1b2c3d", "serving": False},
        {"version": "assistant@v1-1a1b2c3d", "verdict": "passed", "serving": True},
    ]
    lines = loopwright("versions", answers=[json_response(body)]).stdout.splitlines()
    assert [("yes" in line, "passed" in line) for line in lines[1:]] == [(False, False), (True, True)]
    as_json = json.loads(loopwright("versions", "--json", answers=[json_response(body)]).stdout)
    assert [version["serving"] for version in as_json] == [False, True]


def test_line_can_be_set_by_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPWRIGHT_LINE", "support")
    service = FakeService([json_response([])])
    run(service, "versions")
    assert service.requests[0].url.query == b"line=support"


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (["rollout", "promote", "v1"], {"kind": "promote", "version": "v1"}),
        (["rollout", "rollback", "--from", "v2"], {"kind": "rollback", "leaving": "v2"}),
        (
            ["rollout", "rollback", "v0", "--from", "v2", "--line", "b"],
            {"kind": "rollback", "line": "b", "version": "v0", "leaving": "v2"},
        ),
        (["rollout", "pin", "v1"], {"kind": "pin", "version": "v1"}),
        (["rollout", "pause"], {"kind": "pause"}),
        (["rollout", "resume", "--line", "b"], {"kind": "resume", "line": "b"}),
        (["train", "now"], {"kind": "train_now"}),
        (["train", "now", "--again"], {"kind": "train_now", "again": True}),
        (["dataset", "export"], {"kind": "export_dataset"}),
        (["train", "now", "--dry-run"], {"kind": "train_now", "dry_run": True}),
    ],
)
def test_command_waits_for_its_result(arguments: list[str], body: dict[str, object]) -> None:
    service = FakeService(
        [json_response(COMMAND, 202), json_response(COMMAND | {"status": "done", "message": "Executed."})]
    )
    result = run(service, *arguments)
    assert (result.exit_code, result.stdout) == (0, "done Executed.\n")
    sent = json.loads(service.requests[0].content)
    assert sent.pop("command_id") != ""
    assert sent == body
    assert service.requests[1].url.path == "/api/commands/c-1"
    assert result.stderr.startswith("command c-1\n")


def test_rollback_leaves_the_version_that_it_showed() -> None:
    serving = {"version": "v2", "seq": 3, "since": "2026-03-04T00:00:00Z", "reason": "r"}
    status = json_response({"line": "a", "serving": serving})
    done = json_response(COMMAND | {"status": "done", "message": "Executed."})
    service = FakeService([status, json_response(COMMAND, 202), done])
    result = run(service, "rollout", "rollback", "--command-id", "mine")
    assert result.exit_code == 0
    assert "rolling back from v2" in result.stderr
    sent = json.loads(service.requests[1].content)
    assert sent == {"kind": "rollback", "leaving": "v2", "command_id": "mine"}


def test_rollback_leaves_the_canary_first() -> None:
    serving = {"version": "v2", "canary": "v3", "seq": 3, "since": "2026-03-04T00:00:00Z", "reason": "r"}
    done = json_response(COMMAND | {"status": "done", "message": "Executed."})
    for arguments, leaving in (((), "v3"), (("v1",), "v2")):
        status = json_response({"line": "a", "serving": serving})
        service = FakeService([status, json_response(COMMAND, 202), done])
        assert run(service, "rollout", "rollback", *arguments).exit_code == 0
        assert json.loads(service.requests[1].content)["leaving"] == leaving


def test_rollout_status_shows_both_arms_and_what_is_missing() -> None:
    body = {
        "line": "a", "seq": 7, "action": "canary", "reason": "v3 passed", "decided_at": "2026-03-04T00:00:00Z",
        "stable": "v2", "canary": "v3", "share": 0.05, "waits_for": ["12 more users with feedback on the canary"],
        "test": canary_test().model_dump(mode="json"),
        "replicas": {"live": 2, "serving": 1, "canary": 1, "refused": "Replica b refuses it: altered."},
    }  # fmt: skip
    line = json_response({"line": "a"})
    text = " ".join(loopwright("rollout", "status", answers=[line, json_response(body)]).stdout.split())
    assert "v3 is the canary of 5% of the users" in text
    assert "v2 serves on 1 of 2 replicas" in text
    assert "Replica b refuses it: altered." in text
    assert "74% (55% to 88%)" in text and "waits for 12 more users" in text
    service = FakeService([json_response(body)])
    as_json = json.loads(run(service, "rollout", "status", "--line", "a", "--json").stdout)
    assert (service.requests[0].url.path, as_json["test"]["canary"]["users"]) == ("/api/rollout/a", 31)


def test_command_that_may_have_been_accepted_prints_how_to_repeat_it() -> None:
    result = loopwright("rollout", "pause", "--command-id", "mine", answers=[httpx.ReadTimeout("slow")])
    assert result.exit_code == 3
    assert "add --command-id mine" in result.stderr
    as_json = loopwright(
        "rollout", "pause", "--command-id", "mine", "--json", answers=[httpx.ReadTimeout("slow")]
    )
    assert json.loads(as_json.stderr)["error"]["command_id"] == "mine"


def test_gate_can_be_repeated_before_its_report_is_shown() -> None:
    done = json_response(COMMAND | {"status": "done", "message": "passed"})
    report = json_response({"line": "a", "version": "v2", "report": {"verdict": "passed"}})
    service = FakeService([json_response(COMMAND, 202), done, report])
    result = run(service, "gate", "v2", "--again")
    assert result.exit_code == 0, result.stderr
    sent = json.loads(service.requests[0].content)
    assert (sent["kind"], sent["version"]) == ("gate_again", "v2")


def test_gate_shows_votes_level_and_that_no_control_was_run() -> None:
    test = {"wins": 9, "losses": 1, "ties": 4, "users": 11, "groups": 12, "p_users": 0.004, "p_groups": 0.006}
    result = {"verdict": "passed", "look": 3, "alpha": 0.0048, "test": test}
    without = loopwright("gate", "v2", answers=[json_response({"version": "v2", "report": result})])
    shown = " ".join(without.stdout.split())
    assert "against stable: 9 won, 1 lost, 4 ties; 11 users (p = 0.004), 12 questions (p = 0.006)" in shown
    assert "control: not run gate 3 since the last promotion: a p-value up to 0.0048 is allowed" in shown
    both = {**result, "control": test, "control_state": "passed"}
    controlled = loopwright("gate", "v2", answers=[json_response({"version": "v2", "report": both})])
    assert "against control: 9 won" in " ".join(controlled.stdout.split())
    assert "not run" not in controlled.stdout


def test_refused_command_is_exit_status_1() -> None:
    refusal = json_response(COMMAND | {"status": "refused", "message": "No such version."})
    result = loopwright("rollout", "promote", "v9", "--json", answers=[json_response(COMMAND, 202), refusal])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["message"] == "No such version."


def test_command_with_no_wait_prints_its_id() -> None:
    service = FakeService([json_response(COMMAND, 202)])
    assert run(service, "train", "now", "--no-wait").stdout == "accepted c-1\n"
    assert json.loads(run(service, "train", "now", "--no-wait", "--json").stdout) == COMMAND
    assert {request.method for request in service.requests} == {"POST"}


ERASURE = {"request_id": "q-1", "subject": "u_1", "status": "requested", "detail": "It is in the log."}
DONE = ERASURE | {
    "status": "done",
    "detail": "Erased.",
    "versions": ["assistant@v1-0a1b2c3d"],
    "snapshots": 2,
}


def test_erasure_is_sent_with_the_key_and_prints_its_status(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOOPWRIGHT_API_KEY", "lw_the_key")
    service = FakeService([json_response(ERASURE, 202)])
    result = run(service, "erase", "alice", "--request-id", "q-1", "--line", "b")
    assert result.exit_code == 0
    assert result.stdout.startswith("requested It is in the log.\n")
    assert service.bodies() == [{"user_id": "alice", "request_id": "q-1", "line": "b"}]
    assert service.requests[0].headers["authorization"] == "Bearer lw_the_key"


def test_erasure_can_be_awaited_or_queried_later() -> None:
    service = FakeService([json_response(ERASURE, 202), json_response(DONE)])
    erasure = json.loads(run(service, "erase", "alice", "--wait", "--json").stdout)
    assert DONE.items() <= erasure.items()
    assert [request.method for request in service.requests] == ["POST", "GET"]
    later = loopwright("erase", "--status", "q-1", answers=[json_response(DONE)])
    assert "done Erased." in later.stdout
    assert "trained    assistant@v1-0a1b2c3d" in later.stdout


@pytest.mark.parametrize(
    "arguments", [[], ["alice", "--status", "q-1"], ["--status", "q-1", "--request-id", "q-2"]]
)
def test_erase_needs_either_a_user_or_a_request_id(arguments: list[str]) -> None:
    service = FakeService([json_response(ERASURE, 202)])
    assert run(service, "erase", *arguments).exit_code == 2
    assert service.requests == []


@pytest.mark.parametrize("reply", ["n\n", "y\n"])
def test_erase_asks_for_confirmation_on_a_terminal(reply: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopwright.cli.erase.is_interactive", lambda: True)
    service = FakeService([json_response(ERASURE, 202)])
    result = CliRunner().invoke(app, ["erase", "alice"], obj=service.transport(), input=reply)
    assert "Erase all data of alice?" in result.stderr
    assert len(service.requests) == (reply == "y\n")
    assert (result.exit_code == 0) == (reply == "y\n")


def test_refused_erasure_names_the_missing_scope() -> None:
    answers: list[Reply] = [problem_response(403, "missing_scope", "The key lacks the scope `erase`.")]
    result = loopwright("erase", "alice", answers=answers)
    assert result.exit_code == 1
    assert "scope `erase`" in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(command: str) -> None:
    text = loopwright(*command.split(), "--help").stdout
    assert f"Example: loopwright {command}" in text
    assert "--json" in text


def test_version_is_that_of_the_package() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"loopwright {__version__}\n")
