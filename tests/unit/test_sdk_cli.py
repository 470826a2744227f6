"""The command `loopwright`: what it prints, and the exit status that scripts go by."""

from __future__ import annotations

import json

import httpx
import pytest
from typer.testing import CliRunner, Result

from loopwright import Retry
from loopwright.cli import app, common
from tests.unit.sdk_server import Answer, Service, ok, refused

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
    "rollout promote",
    "rollout rollback",
    "rollout pin",
    "rollout pause",
    "rollout resume",
    "train now",
    "dead-letters list",
    "dead-letters show",
    "dead-letters replay",
    "quarantine list",
    "quarantine release",
]


def loopwright(*arguments: str, answers: list[Answer] | None = None, stdin: str | None = None) -> Result:
    return run(Service(answers or [ok({})]), *arguments, stdin=stdin)


def run(service: Service, *arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), obj=service.transport(), input=stdin)


def test_send_says_that_it_was_accepted_and_under_which_id() -> None:
    service = Service([ok(ACCEPTED, 202)])
    result = run(service, "send", "chat-1", "correction", "Wellington.", "--user", "alice", "--tag", "geo")
    assert (result.exit_code, result.stdout) == (0, "accepted e-1\n")
    (body,) = service.bodies()
    assert (body["value"], body["tags"]) == ("Wellington.", ["geo"])


def test_a_hint_is_shown_as_it_was_given() -> None:
    vague = ACCEPTED | {"actionable": False, "hint": "Say [what] is wrong."}
    result = loopwright("send", "chat-1", "comment", "bad", "-u", "alice", answers=[ok(vague, 202)])
    assert "Say [what] is wrong." in result.stdout


def test_a_long_correction_may_come_from_another_program() -> None:
    service = Service([ok(ACCEPTED, 202)])
    run(service, "send", "chat-1", "correction", "-", "-u", "alice", stdin="first\nsecond\n")
    assert service.bodies()[0]["value"] == "first\nsecond"


def test_a_preference_is_given_by_the_other_text() -> None:
    service = Service([ok(ACCEPTED, 202)])
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
def test_wrong_usage_is_found_before_anything_is_sent(arguments: list[str]) -> None:
    service = Service([ok(ACCEPTED, 202)])
    assert run(service, "send", "chat-1", *arguments, "-u", "alice").exit_code == 2
    assert service.asked == []


def test_a_refusal_is_one_line_on_stderr_and_status_1() -> None:
    answers: list[Answer] = [refused(409, "conflict", "Send it under a new id.")]
    result = loopwright("send", "chat-1", "thumbs", "up", "-u", "alice", answers=answers)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "loopwright: Title: Send it under a new id.\n"


def test_a_refusal_is_json_for_programs() -> None:
    answers: list[Answer] = [refused(409, "conflict", "Send it under a new id.")]
    result = loopwright("send", "chat-1", "thumbs", "up", "-u", "alice", "--json", answers=answers)
    assert result.exit_code == 1
    assert json.loads(result.stderr)["error"]["code"] == "conflict"


def test_no_answer_is_status_3_and_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPWRIGHT_CONSOLE_URL", "http://desk:1")
    monkeypatch.setattr(common, "RETRY", Retry(attempts=2, first_wait_s=0.0))
    result = loopwright("status", answers=[httpx.ConnectError("refused")])
    assert result.exit_code == 3
    assert "http://desk:1 is not reachable" in result.stderr
    assert "LOOPWRIGHT_CONSOLE_URL" in result.stderr


def test_a_service_that_fails_is_status_3() -> None:
    assert loopwright("status", answers=[httpx.Response(500)]).exit_code == 3


def test_a_receipt_shows_the_stage_first() -> None:
    told = {"response_id": "r", "event_id": "e", "outcome": "batched", "batch_id": "p0-7", "serving": False}
    result = loopwright(
        "receipt", "r", "e", answers=[ok(told | {"stage": "training", "detail": "Run r1 has it."})]
    )
    assert result.stdout.splitlines()[0] == "training Run r1 has it."
    assert "batch_id        p0-7" in result.stdout
    assert "verdict" not in result.stdout


def test_status_shows_all_that_the_console_says() -> None:
    told = {"line": "assistant", "ledger": {"batched": 2}, "accepted": 5, "pending": 3, "run": {"step": 4}}
    shown = loopwright("status", answers=[ok(told)]).stdout
    assert all(part in shown for part in ("line: assistant", "batched: 2", "pending: 3", "step: 4"))
    as_json = json.loads(loopwright("status", "--json", answers=[ok(told)]).stdout)
    assert {name: as_json[name] for name in told} == told


def test_versions_mark_the_one_that_serves() -> None:
    told = [
        {"version": "assistant@base-0a1b2c3d", "serving": False},
        {"version": "assistant@v1-1a1b2c3d", "verdict": "passed", "serving": True},
    ]
    lines = loopwright("versions", answers=[ok(told)]).stdout.splitlines()
    assert [("yes" in line, "passed" in line) for line in lines[1:]] == [(False, False), (True, True)]
    as_json = json.loads(loopwright("versions", "--json", answers=[ok(told)]).stdout)
    assert [version["serving"] for version in as_json] == [False, True]


def test_the_line_may_be_set_once_for_all_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPWRIGHT_LINE", "support")
    service = Service([ok([])])
    run(service, "versions")
    assert service.asked[0].url.query == b"line=support"


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (["rollout", "promote", "v1"], {"kind": "promote", "version": "v1"}),
        (["rollout", "rollback"], {"kind": "rollback"}),
        (["rollout", "rollback", "v0", "--line", "b"], {"kind": "rollback", "line": "b", "version": "v0"}),
        (["rollout", "pin", "v1"], {"kind": "pin", "version": "v1"}),
        (["rollout", "pause"], {"kind": "pause"}),
        (["rollout", "resume", "--line", "b"], {"kind": "resume", "line": "b"}),
        (["train", "now"], {"kind": "train_now"}),
        (["dataset", "export"], {"kind": "export_dataset"}),
        (["train", "now", "--dry-run"], {"kind": "train_now", "dry_run": True}),
    ],
)
def test_an_order_waits_for_what_comes_of_it(arguments: list[str], body: dict[str, object]) -> None:
    service = Service([ok(COMMAND, 202), ok(COMMAND | {"status": "done", "message": "As ordered."})])
    result = run(service, *arguments)
    assert (result.exit_code, result.stdout) == (0, "done As ordered.\n")
    assert json.loads(service.asked[0].content) == body
    assert service.asked[1].url.path == "/api/commands/c-1"


def test_an_order_that_is_refused_later_is_status_1() -> None:
    late = ok(COMMAND | {"status": "refused", "message": "No such version."})
    result = loopwright("rollout", "promote", "v9", "--json", answers=[ok(COMMAND, 202), late])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["message"] == "No such version."


def test_an_order_need_not_be_waited_for() -> None:
    service = Service([ok(COMMAND, 202)])
    assert run(service, "train", "now", "--no-wait").stdout == "accepted c-1\n"
    assert json.loads(run(service, "train", "now", "--no-wait", "--json").stdout) == COMMAND
    assert {request.method for request in service.asked} == {"POST"}


ERASURE = {"request_id": "q-1", "subject": "u_1", "status": "requested", "detail": "It is in the log."}
DONE = ERASURE | {"status": "done", "detail": "Gone.", "versions": ["assistant@v1-0a1b2c3d"], "snapshots": 2}


def test_an_erasure_is_asked_for_with_the_token_and_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOOPWRIGHT_FEEDBACK_ERASURE_TOKEN", "the token")
    service = Service([ok(ERASURE, 202)])
    result = run(service, "erase", "alice", "--request-id", "q-1", "--line", "b")
    assert result.exit_code == 0
    assert result.stdout.startswith("requested It is in the log.\n")
    assert service.bodies() == [{"user_id": "alice", "request_id": "q-1", "line": "b"}]
    assert service.asked[0].headers["authorization"] == "Bearer the token"


def test_an_erasure_can_be_waited_for_or_asked_after_later() -> None:
    service = Service([ok(ERASURE, 202), ok(DONE)])
    waited = json.loads(run(service, "erase", "alice", "--wait", "--json").stdout)
    assert DONE.items() <= waited.items()
    assert [request.method for request in service.asked] == ["POST", "GET"]
    later = loopwright("erase", "--status", "q-1", answers=[ok(DONE)])
    assert "done Gone." in later.stdout
    assert "trained    assistant@v1-0a1b2c3d" in later.stdout


@pytest.mark.parametrize(
    "arguments", [[], ["alice", "--status", "q-1"], ["--status", "q-1", "--request-id", "q-2"]]
)
def test_an_erasure_names_a_user_or_an_erasure(arguments: list[str]) -> None:
    service = Service([ok(ERASURE, 202)])
    assert run(service, "erase", *arguments).exit_code == 2
    assert service.asked == []


@pytest.mark.parametrize("said", ["n\n", "y\n"])
def test_at_a_terminal_a_person_is_asked_before_a_user_is_erased(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loopwright.cli.erase.at_terminal", lambda: True)
    service = Service([ok(ERASURE, 202)])
    result = CliRunner().invoke(app, ["erase", "alice"], obj=service.transport(), input=said)
    assert "Erase all that alice said and asked?" in result.stderr
    assert len(service.asked) == (said == "y\n")
    assert (result.exit_code == 0) == (said == "y\n")


def test_a_door_that_erases_nobody_says_which_setting_is_missing() -> None:
    answers: list[Answer] = [refused(403, "erasure_not_configured", "Set LOOPWRIGHT_FEEDBACK_ERASURE_TOKEN.")]
    result = loopwright("erase", "alice", answers=answers)
    assert result.exit_code == 1
    assert "LOOPWRIGHT_FEEDBACK_ERASURE_TOKEN" in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_shows_an_example(command: str) -> None:
    text = loopwright(*command.split(), "--help").stdout
    assert f"Example: loopwright {command}" in text
    assert "--json" in text
