"""`loopwright import seed`: a notebook's rows become responses with comments, once, however often they are imported."""

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
from loopwright.seed_import import MAX_ROW_BYTES, MAX_TEXT, Fault, Row, ids_of, import_rows, read_rows
from tests.unit.sdk_server import refused

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
class Door:
    """Takes everything once; `odd` answers come before its own, by the text that they are for."""

    odd: dict[str, httpx.Response] = field(default_factory=dict)
    known: dict[str, Any] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        self.bodies.append(body)
        if request.url.path == "/v1/responses":
            text = body["choices"][0]["text"]
            return self.odd.get(text) or httpx.Response(
                202, json={"response_id": body["response_id"], "status": "accepted"}
            )
        again = body["event_id"] in self.known
        self.known[body["event_id"]] = body
        vague = body["value"] == "bad answer"
        answer = {"event_id": body["event_id"], "status": "duplicate" if again else "accepted"}
        answer |= {"actionable": not vague, "hint": HINT if vague else None}
        return httpx.Response(200 if again else 202, json=answer)


def jsonl(*rows: dict[str, str]) -> bytes:
    return b"\n".join(json.dumps(row).encode() for row in rows)


def imported(path: Path, door: Door, *options: str) -> Result:
    return CliRunner().invoke(
        app, ["import", "seed", str(path), *options], obj=httpx.MockTransport(door), env={"COLUMNS": "200"}
    )


def file_with(folder: Path, content: bytes) -> Path:
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
def test_the_forms_in_which_notebooks_keep_rows_all_read_alike(raw: bytes) -> None:
    assert read_rows(raw) == [Row(1, **MARS), Row(2, **AI)]


def test_blank_lines_and_windows_line_ends_mean_nothing_but_lines_keep_their_numbers() -> None:
    raw = b"\r\n" + json.dumps(MARS).encode() + b"\r\n\r\n   \r\n" + json.dumps(AI).encode() + b"\r\n"
    assert read_rows(raw) == [Row(2, **MARS), Row(5, **AI)]


def test_one_object_over_several_lines_is_one_row() -> None:
    assert read_rows(json.dumps(MARS, indent=2).encode()) == [Row(1, **MARS)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"not json", "not JSON"),
        (b"[1, 2]", "not an object"),
        (b'"text"', "not an object"),
        (b'{"input": "a", "response": "b"}', "feedback is missing"),
        (b'{"input": "a", "response": 5, "feedback": " "}', "response is not a text; feedback is empty"),
        (b'{"input": "\xff", "response": "b", "feedback": "c"}', "not UTF-8"),
        (b'{"input": "\\ud800", "response": "b", "feedback": "c"}', "input is not UTF-8"),
        (b'{"a":' * 100_000, "larger than 256 KiB"),
        (b'{"a":' * 40_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number that is too long"),
        (
            json.dumps(MARS | {"input": "a" * (MAX_TEXT + 1)}).encode(),
            "input is longer than 32768 characters",
        ),
        (json.dumps(MARS | {"x": "a" * MAX_ROW_BYTES}).encode(), "larger than 256 KiB"),
    ],
    ids=range(12),
)
def test_a_bad_line_is_told_by_number_and_spoils_no_other(line: bytes, reason: str) -> None:
    first, bad, last = read_rows(jsonl(MARS) + b"\n" + line + b"\n" + jsonl(AI))
    assert (first, last) == (Row(1, **MARS), Row(3, **AI))
    assert isinstance(bad, Fault)
    assert bad.number == 2
    assert reason in bad.reason


def test_a_bad_element_of_an_array_spoils_no_other() -> None:
    first, bad, last = read_rows(json.dumps([MARS, {"input": "a"}, AI]).encode())
    assert (first, last) == (Row(1, **MARS), Row(3, **AI))
    assert bad == Fault(2, "response is missing; feedback is missing")


@pytest.mark.parametrize("tail", [b", {broken", b" {}]", b"", b"] more"])
def test_an_array_is_read_as_far_as_it_is_one(tail: bytes) -> None:
    first, bad = read_rows(b"[" + json.dumps(MARS).encode() + tail)
    assert first == Row(1, **MARS)
    assert isinstance(bad, Fault)
    assert "not read" in bad.reason


# --- ids --------------------------------------------------------------------------------------------------------


def test_ids_are_made_from_what_a_row_says_not_from_where_it_stands() -> None:
    told: dict[str, Any] = {"user": "u", "line": None, "version": "v"}
    assert ids_of(Row(1, **MARS), **told) == ids_of(Row(9, **MARS), **told)
    others = [
        ids_of(Row(1, **MARS), **told),
        ids_of(Row(1, **AI), **told),
        ids_of(Row(1, **VAGUE), **told),
        ids_of(Row(1, **MARS), **told | {"version": "w"}),
        ids_of(Row(1, **MARS), **told | {"line": "assistant"}),
        ids_of(Row(1, **MARS), **told | {"user": "w"}),
    ]
    assert len({event for _, event in others}) == len(others)
    assert others[0][0] == others[5][0], "another user says the same of the same response"


def test_two_comments_on_one_answer_do_not_replace_each_other() -> None:
    """The newest comment of a user on a response wins, so they must be two responses."""
    told: dict[str, Any] = {"user": "u", "line": None, "version": "v"}
    other = MARS | {"feedback": "Mention its two moons."}
    assert ids_of(Row(1, **MARS), **told)[0] != ids_of(Row(2, **other), **told)[0]


# --- the command ------------------------------------------------------------------------------------------------


def test_a_row_is_sent_as_a_response_and_a_comment_on_it(tmp_path: Path) -> None:
    door = Door()
    result = imported(file_with(tmp_path, jsonl(MARS)), door)
    assert (result.exit_code, result.stdout) == (0, "1 accepted, 0 duplicate, 0 bad\n")
    response, comment = door.bodies
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


def test_the_same_import_again_sends_the_same_and_says_so(tmp_path: Path) -> None:
    door, path = Door(), file_with(tmp_path, jsonl(MARS, AI))
    imported(path, door)
    first = list(door.bodies)
    assert imported(path, door).stdout == "0 accepted, 2 duplicate, 0 bad\n"
    assert door.bodies[len(first) :] == first


def test_a_row_twice_in_one_file_counts_once(tmp_path: Path) -> None:
    result = imported(file_with(tmp_path, jsonl(MARS, AI, MARS)), Door())
    assert result.stdout == "2 accepted, 1 duplicate, 0 bad\n"


def test_bad_rows_are_named_and_the_others_are_sent(tmp_path: Path) -> None:
    door = Door()
    result = imported(file_with(tmp_path, jsonl(MARS) + b"\n{}\n" + jsonl(AI)), door)
    assert (result.exit_code, result.stdout) == (1, "2 accepted, 0 duplicate, 1 bad\n")
    assert "row 2: input is missing; response is missing; feedback is missing" in result.stderr
    assert len(door.known) == 2


def test_what_the_door_refuses_about_a_row_stops_nothing(tmp_path: Path) -> None:
    door = Door(odd={MARS["response"]: refused(422, "malformed", "Say less.")})
    result = imported(file_with(tmp_path, jsonl(MARS, AI)), door)
    assert (result.exit_code, result.stdout) == (1, "1 accepted, 0 duplicate, 1 bad\n")
    assert "row 1: refused: Title: Say less." in result.stderr


def test_vague_feedback_gets_the_door_s_hint_with_its_row(tmp_path: Path) -> None:
    result = imported(file_with(tmp_path, jsonl(MARS, VAGUE)), Door())
    assert (result.exit_code, result.stdout) == (
        0,
        "2 accepted, 0 duplicate, 1 too vague to learn from, 0 bad\n",
    )
    assert f"row 2: {HINT}" in result.stderr


def test_the_result_is_json_for_programs(tmp_path: Path) -> None:
    result = imported(file_with(tmp_path, jsonl(MARS, VAGUE) + b"\n{}"), Door(), "--json")
    told = json.loads(result.stdout)
    assert {name: told[name] for name in ("accepted", "duplicate", "vague", "bad")} == {
        "accepted": 2,
        "duplicate": 0,
        "vague": 1,
        "bad": 1,
    }
    assert [(row["number"], row["hint"]) for row in told["rows"]] == [(1, None), (2, HINT)]
    assert told["faults"][0]["number"] == 3
    assert (result.exit_code, result.stderr) == (1, "")


def test_user_version_and_line_can_be_named(tmp_path: Path) -> None:
    door = Door()
    options = ["--user", "alice", "--version", "llama-2-7b", "--line", "support"]
    imported(file_with(tmp_path, jsonl(MARS)), door, *options)
    response, comment = door.bodies
    assert (response["version"], response["line"]) == ("llama-2-7b", "support")
    assert (comment["user_id"], comment["line"]) == ("alice", "support")


def test_a_door_that_is_away_ends_the_import_for_it_can_be_repeated() -> None:
    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    loop = Loopwright(retry=Retry(attempts=1), transport=httpx.MockTransport(away))
    with loop, pytest.raises(Exception, match="not reachable"):
        import_rows(loop, [Row(1, **MARS)])


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"[]", b"\xef\xbb\xbf"])
def test_a_file_without_rows_is_wrong_usage(tmp_path: Path, content: bytes) -> None:
    result = imported(file_with(tmp_path, content), Door())
    assert result.exit_code == 2
    assert "no rows" in result.stderr


def test_a_file_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    assert imported(tmp_path / "none.json", Door()).exit_code == 2


def test_rows_may_come_from_another_program() -> None:
    result = CliRunner().invoke(
        app, ["import", "seed", "-"], obj=httpx.MockTransport(Door()), input=jsonl(MARS)
    )
    assert result.stdout == "1 accepted, 0 duplicate, 0 bad\n"
