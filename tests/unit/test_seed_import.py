"""`loopwright import seed`: rows become responses with comments, once, however often they are imported."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from loopwright import Loopwright, Retry
from loopwright.cli import app
from loopwright.seed_import import (
    MAX_ROW_BYTES,
    MAX_TEXT_CHARS,
    Row,
    RowError,
    import_rows,
    read_rows,
    row_ids,
)
from tests.unit.sdk_server import problem_response

MARS = {
    "input": "Tell me about Mars.",
    "response": "Mars is the fourth planet.",
    "feedback": "Include details about its atmosphere.",
}
AI = {
    "input": "What is AI?",
    "response": "AI is automation.",
    "feedback": "Mention machine learning and deep learning.",
}
VAGUE = MARS | {"feedback": "bad answer"}
HINT = "Too vague: say [what] is wrong."


@dataclass
class FakeFeedbackService:
    """Accepts every event once. `rejections` maps the text of a response to the reply for it."""

    rejections: dict[str, httpx.Response] = field(default_factory=dict)
    known: dict[str, Any] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        self.bodies.append(body)
        if request.url.path == "/v1/responses":
            text = body["choices"][0]["text"]
            return self.rejections.get(text) or httpx.Response(
                202, json={"response_id": body["response_id"], "status": "accepted"}
            )
        repeated = body["event_id"] in self.known
        self.known[body["event_id"]] = body
        vague = body["value"] == "bad answer"
        reply = {"event_id": body["event_id"], "status": "duplicate" if repeated else "accepted"}
        reply |= {"actionable": not vague, "hint": HINT if vague else None}
        return httpx.Response(200 if repeated else 202, json=reply)


def jsonl(*rows: dict[str, str]) -> bytes:
    return b"\n".join(json.dumps(row).encode() for row in rows)


def run_import(path: Path, service: FakeFeedbackService, *options: str) -> Result:
    return CliRunner().invoke(
        app, ["import", "seed", str(path), *options], obj=httpx.MockTransport(service), env={"COLUMNS": "200"}
    )


def write_file(folder: Path, content: bytes) -> Path:
    path = folder / "rows.json"
    path.write_bytes(content)
    return path


# --- reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        json.dumps([MARS, AI]).encode(),
        json.dumps([MARS, AI], indent=2).encode(),
        jsonl(MARS, AI),
        jsonl(MARS, AI) + b"\n",
        b"\xef\xbb\xbf" + jsonl(MARS, AI),
        b"\xef\xbb\xbf" + json.dumps([MARS, AI]).encode() + b"\r\n",
        jsonl(MARS, AI).decode().encode("utf-16"),
        json.dumps([MARS | {"when": "noon"}, AI]).encode(),
    ],
    ids=["array", "pretty", "jsonl", "jsonl-end", "jsonl-bom", "array-bom", "utf-16", "more-fields"],
)
def test_all_file_formats_parse_to_the_same_rows(raw: bytes) -> None:
    assert read_rows(raw) == [Row(1, **MARS), Row(2, **AI)]


def test_blank_lines_and_crlf_are_skipped_but_counted() -> None:
    raw = b"\r\n" + json.dumps(MARS).encode() + b"\r\n\r\n   \r\n" + json.dumps(AI).encode() + b"\r\n"
    assert read_rows(raw) == [Row(2, **MARS), Row(5, **AI)]


def test_single_object_on_several_lines_is_one_row() -> None:
    assert read_rows(json.dumps(MARS, indent=2).encode()) == [Row(1, **MARS)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"not json", "not JSON"),
        (b"[1, 2]", "not an object"),
        (b'"text"', "not an object"),
        (b'{"input": "a", "response": "b"}', "feedback is missing"),
        (b'{"input": "a", "response": 5, "feedback": " "}', "response is not a string; feedback is empty"),
        (b'{"input": "\xff", "response": "b", "feedback": "c"}', "not UTF-8"),
        (b'{"input": "\\ud800", "response": "b", "feedback": "c"}', "input is not UTF-8"),
        (b'{"a":' * 100_000, "larger than 256 KiB"),
        (b'{"a":' * 40_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number is too long"),
        (
            json.dumps(MARS | {"input": "a" * (MAX_TEXT_CHARS + 1)}).encode(),
            "input is longer than 32768 characters",
        ),
        (json.dumps(MARS | {"x": "a" * MAX_ROW_BYTES}).encode(), "larger than 256 KiB"),
    ],
    ids=range(12),
)
def test_invalid_line_is_reported_by_number_and_skipped(line: bytes, reason: str) -> None:
    first, bad, last = read_rows(jsonl(MARS) + b"\n" + line + b"\n" + jsonl(AI))
    assert (first, last) == (Row(1, **MARS), Row(3, **AI))
    assert isinstance(bad, RowError)
    assert bad.number == 2
    assert reason in bad.reason


def test_invalid_array_element_is_reported_and_skipped() -> None:
    first, bad, last = read_rows(json.dumps([MARS, {"input": "a"}, AI]).encode())
    assert (first, last) == (Row(1, **MARS), Row(3, **AI))
    assert bad == RowError(2, "response is missing; feedback is missing")


@pytest.mark.parametrize("tail", [b", {broken", b" {}]", b"", b"] more"])
def test_broken_array_is_read_up_to_the_error(tail: bytes) -> None:
    first, bad = read_rows(b"[" + json.dumps(MARS).encode() + tail)
    assert first == Row(1, **MARS)
    assert isinstance(bad, RowError)
    assert "not read" in bad.reason


# --- ids --------------------------------------------------------------------------------------------------------


def test_ids_depend_on_content_and_not_on_position() -> None:
    options: dict[str, Any] = {"user": "u", "line": None, "version": "v"}
    assert row_ids(Row(1, **MARS), **options) == row_ids(Row(9, **MARS), **options)
    others = [
        row_ids(Row(1, **MARS), **options),
        row_ids(Row(1, **AI), **options),
        row_ids(Row(1, **VAGUE), **options),
        row_ids(Row(1, **MARS), **options | {"version": "w"}),
        row_ids(Row(1, **MARS), **options | {"line": "assistant"}),
        row_ids(Row(1, **MARS), **options | {"user": "w"}),
    ]
    assert len({event for _, event in others}) == len(others)
    assert others[0][0] == others[5][0], "another user, same response"


def test_two_comments_on_one_answer_are_two_responses() -> None:
    """On one response, only the newest comment of a user would count."""
    options: dict[str, Any] = {"user": "u", "line": None, "version": "v"}
    other = MARS | {"feedback": "Mention its two moons."}
    assert row_ids(Row(1, **MARS), **options)[0] != row_ids(Row(2, **other), **options)[0]


# --- the command ------------------------------------------------------------------------------------------------


def test_row_is_sent_as_a_response_with_a_comment(tmp_path: Path) -> None:
    service = FakeFeedbackService()
    result = run_import(write_file(tmp_path, jsonl(MARS)), service)
    assert (result.exit_code, result.stdout) == (0, "1 accepted, 0 duplicate, 0 invalid\n")
    response, comment = service.bodies
    assert response["messages"] == [{"role": "user", "content": MARS["input"]}]
    assert (response["choices"], response["version"]) == (
        [{"index": 0, "text": MARS["response"]}],
        "imported",
    )
    assert comment["response_id"] == response["response_id"]
    assert (comment["kind"], comment["value"], comment["user_id"]) == (
        "comment",
        MARS["feedback"],
        "seed-import",
    )
    assert comment["tags"] == ["imported"]


def test_repeated_import_sends_the_same_and_reports_duplicates(tmp_path: Path) -> None:
    service, path = FakeFeedbackService(), write_file(tmp_path, jsonl(MARS, AI))
    run_import(path, service)
    first = list(service.bodies)
    assert run_import(path, service).stdout == "0 accepted, 2 duplicate, 0 invalid\n"
    assert service.bodies[len(first) :] == first


def test_repeated_row_counts_once(tmp_path: Path) -> None:
    result = run_import(write_file(tmp_path, jsonl(MARS, AI, MARS)), FakeFeedbackService())
    assert result.stdout == "2 accepted, 1 duplicate, 0 invalid\n"


def test_invalid_rows_are_reported_and_others_are_sent(tmp_path: Path) -> None:
    service = FakeFeedbackService()
    result = run_import(write_file(tmp_path, jsonl(MARS) + b"\n{}\n" + jsonl(AI)), service)
    assert (result.exit_code, result.stdout) == (1, "2 accepted, 0 duplicate, 1 invalid\n")
    assert "row 2: input is missing; response is missing; feedback is missing" in result.stderr
    assert len(service.known) == 2


def test_rejected_row_does_not_stop_the_import(tmp_path: Path) -> None:
    service = FakeFeedbackService(
        rejections={MARS["response"]: problem_response(422, "malformed", "Say less.")}
    )
    result = run_import(write_file(tmp_path, jsonl(MARS, AI)), service)
    assert (result.exit_code, result.stdout) == (1, "1 accepted, 0 duplicate, 1 invalid\n")
    assert "row 1: rejected: Title: Say less." in result.stderr


def test_hint_on_vague_feedback_is_printed_with_its_row(tmp_path: Path) -> None:
    result = run_import(write_file(tmp_path, jsonl(MARS, VAGUE)), FakeFeedbackService())
    assert (result.exit_code, result.stdout) == (
        0,
        "2 accepted, 0 duplicate, 1 too vague to train on, 0 invalid\n",
    )
    assert f"row 2: {HINT}" in result.stderr


def test_report_is_printed_as_json(tmp_path: Path) -> None:
    result = run_import(write_file(tmp_path, jsonl(MARS, VAGUE) + b"\n{}"), FakeFeedbackService(), "--json")
    report = json.loads(result.stdout)
    assert {name: report[name] for name in ("accepted", "duplicate", "vague", "bad")} == {
        "accepted": 2,
        "duplicate": 0,
        "vague": 1,
        "bad": 1,
    }
    assert [(row["number"], row["hint"]) for row in report["rows"]] == [(1, None), (2, HINT)]
    assert report["faults"][0]["number"] == 3
    assert (result.exit_code, result.stderr) == (1, "")


def test_user_version_and_line_are_sent(tmp_path: Path) -> None:
    service = FakeFeedbackService()
    options = ["--user", "alice", "--version", "llama-2-7b", "--line", "support"]
    run_import(write_file(tmp_path, jsonl(MARS)), service, *options)
    response, comment = service.bodies
    assert (response["version"], response["line"]) == ("llama-2-7b", "support")
    assert (comment["user_id"], comment["line"]) == ("alice", "support")


def test_unreachable_service_ends_the_import() -> None:
    def unreachable(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    loop = Loopwright(retry=Retry(attempts=1), transport=httpx.MockTransport(unreachable))
    with loop, pytest.raises(Exception, match="not reachable"):
        import_rows(loop, [Row(1, **MARS)])


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"[]", b"\xef\xbb\xbf"])
def test_file_without_rows_is_a_usage_error(tmp_path: Path, content: bytes) -> None:
    result = run_import(write_file(tmp_path, content), FakeFeedbackService())
    assert result.exit_code == 2
    assert "no rows" in result.stderr


def test_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    assert run_import(tmp_path / "none.json", FakeFeedbackService()).exit_code == 2


def test_rows_can_be_read_from_stdin() -> None:
    result = CliRunner().invoke(
        app, ["import", "seed", "-"], obj=httpx.MockTransport(FakeFeedbackService()), input=jsonl(MARS)
    )
    assert result.stdout == "1 accepted, 0 duplicate, 0 invalid\n"
