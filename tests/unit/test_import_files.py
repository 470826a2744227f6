"""`loopwright import`: files reach the real feedback service once, bad rows stop no other, and it can be continued."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from loopwright import Loopwright, Retry
from loopwright.cli import app, import_run
from loopwright.imports import importer as importer_module
from loopwright.imports.fine_tuning import read_fine_tuning
from loopwright.imports.importer import Importer, RowOutcome
from loopwright.imports.rows import Defaults
from tests.http_apis import Feedback, authorization, served
from tests.unit.test_import_langfuse import SCORE, TRACE
from tests.unit.test_import_readers import PAIR, TUNING, lines_of

Json = dict[str, Any]
KEY = authorization()["Authorization"].removeprefix("Bearer ")
QUICK = Retry(attempts=2, first_wait_s=0.0)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with Feedback().running() as feedback, served(feedback.app) as url:
        _LOGS[url] = feedback
        httpx.get(f"{url}/readyz", headers=authorization())  # the first request logs that keys were read
        yield url


_LOGS: dict[str, Feedback] = {}


def written(url: str, topic: str = "feedback.events", *, before: list[Json] = []) -> list[Json]:  # noqa: B006
    records = [json.loads(record.value or b"") for record in _LOGS[url].log.records(topic)]
    return [record for record in records if record not in before]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Checkpoints are kept below here, and no test waits long for a service."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(import_run, "RETRY", QUICK)
    return tmp_path / "home"


def run(
    url: str, *arguments: str, transport: httpx.BaseTransport | None = None, stdin: bytes = b""
) -> Result:
    environment = {"COLUMNS": "300", "LOOPWRIGHT_FEEDBACK_URL": url, "LOOPWRIGHT_API_KEY": KEY}
    return CliRunner().invoke(app, ["import", *arguments], obj=transport, env=environment, input=stdin)


def write(path: Path, *rows: Json | str) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def tuning(answer: str, **fields: Any) -> Json:
    messages = [TUNING["messages"][0], {"role": "assistant", "content": answer}]
    return {"messages": messages} | fields


# --- formats, against the real service ------------------------------------------------------------------------------


def test_file_is_imported_once_however_often_it_is_sent(url: str, tmp_path: Path) -> None:
    rows: list[Json | str] = [
        tuning("Once."),
        "{broken",
        tuning("Twice.", original="Never."),
        {"messages": []},
    ]
    path = write(tmp_path / "rows.jsonl", *rows)
    before = written(url)
    first = run(url, "openai", path, "--json")
    assert first.exit_code == 1, first.output
    report = json.loads(first.stdout)
    assert {name: report[name] for name in ("rows", "accepted", "duplicate", "refused")} == {
        "rows": 4,
        "accepted": 2,
        "duplicate": 0,
        "refused": 2,
    }
    assert [refusal["line"] for refusal in report["refusals"]] == [2, 4]
    again = json.loads(run(url, "openai", path, "--json").stdout)
    assert (again["accepted"], again["duplicate"], again["refused"]) == (0, 2, 2)
    assert sorted((event["kind"], event["value"]) for event in written(url, before=before)) == [
        ("correction", "Twice."),
        ("thumbs", "up"),
    ]


def test_every_format_reaches_the_log(url: str, tmp_path: Path) -> None:
    before, responses = written(url), written(url, "chat.responses")
    pairs = write(tmp_path / "pairs.jsonl", PAIR)
    table = write(tmp_path / "table.csv", "question,answer,helpful", "Capital?,Auckland.,no")
    scores, traces = (
        write(tmp_path / "scores.json", SCORE),
        write(tmp_path / "traces.json", json.dumps([TRACE])),
    )
    for arguments in (
        ("preferences", pairs),
        ("csv", table, "--thumbs", "helpful"),
        ("langfuse", scores, "--traces", traces),
    ):
        result = run(url, *arguments)
        assert (result.exit_code, result.stderr) == (0, ""), result.output
    assert sorted(event["kind"] for event in written(url, before=before)) == [
        "preference",
        "thumbs",
        "thumbs",
    ]
    recorded = [each["response_id"] for each in written(url, "chat.responses", before=responses)]
    assert len(recorded) == 3 and "t1" in recorded


def test_dry_run_lets_the_service_check_and_writes_nothing(url: str, tmp_path: Path) -> None:
    before = len(written(url)), len(written(url, "chat.responses"))
    long = tuning("x" * 500_000)
    path = write(tmp_path / "rows.jsonl", tuning("Dry."), long)
    result = run(url, "openai", path, "--dry-run")
    assert "1 valid (dry run: nothing was written)" in result.stdout
    assert "row 2: the response takes" in result.stderr
    assert (len(written(url)), len(written(url, "chat.responses"))) == before


def test_refused_rows_are_written_with_their_reasons(url: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", "{broken", tuning("Kept."), {"messages": 5})
    refused = tmp_path / "refused.jsonl"
    run(url, "openai", path, "--refused", str(refused))
    entries = [json.loads(line) for line in refused.read_text().splitlines()]
    assert [(entry["line"], entry["row"]) for entry in entries] == [(1, "{broken"), (3, {"messages": 5})]
    assert all(entry["reason"] for entry in entries)


def test_vague_comments_are_accepted_and_named(url: str, tmp_path: Path) -> None:
    path = write(tmp_path / "table.csv", "input,response,comment", "Capital?,Auckland.,bad")
    result = run(url, "csv", path)
    assert result.exit_code == 0
    assert "1 too vague to train on" in result.stdout and "row 2:" in result.stderr


def test_stdin_is_read(url: str) -> None:
    result = run(url, "openai", "-", stdin=json.dumps(tuning("From stdin.")).encode())
    assert "1 rows, 1 accepted" in result.stdout, result.output


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_anything_gets_one_outcome_from_the_real_service(url: str, data: st.DataObject) -> None:
    lines = data.draw(st.lists(lines_of("openai"), max_size=5))
    raw = "\n".join(lines).encode("utf-8", "surrogatepass")
    rows = list(read_fine_tuning(io.BytesIO(raw), Defaults()))
    outcomes: list[RowOutcome] = []
    with Loopwright(feedback_url=url, api_key=KEY, retry=QUICK) as loop:
        importer = Importer(loop, on_row=outcomes.append)
        assert sum(importer.send(rows)) == len(rows)
    assert [outcome.row for outcome in outcomes] == rows
    assert importer.report.rows == len(rows)


# --- outages --------------------------------------------------------------------------------------------------------


class Breaking(httpx.BaseTransport):
    """Passes some requests to the service, then fails with an error each time."""

    def __init__(self, requests: int, error: BaseException) -> None:
        self._left, self._error = requests, error
        self._network = httpx.HTTPTransport()
        self.rows = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self._left -= 1
        if self._left < 0:
            raise self._error
        self.rows += request.read().count(b"\n")
        return self._network.handle_request(request)

    def close(self) -> None:
        self._network.close()


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (httpx.ConnectError("refused"), 3, "not reachable"),
        (KeyboardInterrupt(), 130, "interrupted after 4 rows"),
    ],
)
def test_same_command_continues_after_an_interruption(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, message: str
) -> None:
    monkeypatch.setattr(importer_module, "ROWS_AT_ONCE", 2)
    rows = [tuning(f"{type(error).__name__} {number}.") for number in range(6)]
    path = write(tmp_path / "rows.jsonl", *rows[:3], "{broken", *rows[3:])
    refused = tmp_path / "refused.jsonl"
    arguments = ("openai", path, "--refused", str(refused))
    stopped = run(url, *arguments, transport=Breaking(4, error))
    assert stopped.exit_code == status, stopped.output
    assert message in stopped.stderr and "continues" in stopped.stderr
    network = Breaking(100, error)
    continued = run(url, *arguments, transport=network)
    assert "continuing after 4 rows" in continued.stderr
    assert continued.stdout == "7 rows, 6 accepted, 0 duplicate, 1 refused\n"
    assert network.rows == 6, "responses and feedback of three rows"
    assert len(refused.read_text().splitlines()) == 1
    assert "7 rows, 0 accepted, 6 duplicate" in run(url, *arguments).stdout, "a complete import starts over"


def test_other_options_do_not_continue_an_import(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer_module, "ROWS_AT_ONCE", 1)
    path = write(tmp_path / "rows.jsonl", tuning("Other 1."), tuning("Other 2."))
    assert run(url, "openai", path, transport=Breaking(2, httpx.ConnectError("refused"))).exit_code == 3
    assert "2 rows, 2 accepted" in run(url, "openai", path, "--user", "ann").stdout


def test_service_that_takes_no_rows_stops_the_import(tmp_path: Path) -> None:
    busy = {"line": 1, "status_code": 429, "code": "overloaded", "detail": "send this row in 30 s"}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text=json.dumps(busy)))
    result = run("http://feedback", "openai", write(tmp_path / "rows.jsonl", TUNING), transport=transport)
    assert result.exit_code == 1
    assert "send this row in 30 s" in result.stderr


def test_wrong_key_is_reported_once(url: str, tmp_path: Path) -> None:
    denied = httpx.MockTransport(
        lambda _: httpx.Response(401, json={"title": "No", "detail": "no key", "code": "x"})
    )
    result = run(url, "openai", write(tmp_path / "rows.jsonl", TUNING, TUNING), transport=denied)
    assert (result.exit_code, result.stderr.count("no key")) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("csv", "FILE", "--delimiter", "ab"), "expected one character"),
        (("langfuse", "FILE", "--score", "mine=good"), "expected NAME=USE"),
        (("openai", "FILE", "--refused", "FILE/below"), "cannot write"),
        (("openai", "missing.jsonl"), "No such file"),
    ],
)
def test_wrong_option_is_a_usage_error(
    url: str, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    path = write(tmp_path / "rows.jsonl", TUNING)
    result = run(url, *(each.replace("FILE", path) for each in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
