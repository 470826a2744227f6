"""`loopwright connect openwebui`: whatever happens to feedback in Open WebUI, Loopwright's follows."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from loopwright import Loopwright, Retry, RowResult, Unavailable
from loopwright.cli import app
from loopwright.connectors import openwebui as connector
from loopwright.connectors.openwebui import ExportFailed, ExportUnavailable, OpenWebui, Sync, SyncReport
from loopwright.connectors.openwebui_feedback import RESPONSE_PREFIX, Unusable, parse_feedback
from loopwright.connectors.openwebui_state import SentStore
from services.inference.core import openwebui_headers
from tests.http_apis import Feedback, authorization, served

Json = dict[str, Any]
QUICK = Retry(attempts=2, first_wait_s=0.0)


def feedback(feedback_id: str = "f1", **changes: Any) -> Json:
    """A feedback object as Open WebUI stores it: `FeedbackModel`, with what `ResponseMessage.svelte` sends."""
    data = {
        "rating": 1,
        "model_id": "assistant",
        "reason": "accurate_information",
        "comment": "",
        "tags": ["geography"],
        "details": {"rating": 9},
    }
    found = {
        "id": feedback_id,
        "user_id": "u-17",
        "version": 0,
        "type": "rating",
        "data": data | changes.pop("data", {}),
        "meta": {
            "arena": False,
            "model_id": "assistant",
            "message_id": f"m-{feedback_id}",
            "message_index": 2,
            "chat_id": "c1",
            "base_models": {"assistant": None},
        }
        | changes.pop("meta", {}),
        "snapshot": {"chat": {"title": "Capitals", "history": {"messages": {}, "currentId": "m1"}}},
        "created_at": 1_772_366_400,
        "updated_at": 1_772_366_400,
    }
    return found | changes


class Webui:
    """Open WebUI with these feedback objects."""

    def __init__(self, objects: Iterable[Json] = (), routes: tuple[str, ...] = connector.EXPORTS) -> None:
        self.objects = {each["id"]: each for each in objects}
        self.routes, self.reply = routes, cast("httpx.Response | Exception | None", None)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if isinstance(self.reply, Exception):
            raise self.reply
        if self.reply is not None:
            return self.reply
        if request.url.path not in self.routes:
            return httpx.Response(404, json={"detail": "Not Found"})
        return httpx.Response(200, json=list(self.objects.values()))

    def client(self) -> OpenWebui:
        return OpenWebui("http://webui/", "sk-admin", httpx.MockTransport(self))


class Log:
    """Takes events as the feedback service does, and knows which signals are present."""

    def __init__(self) -> None:
        self.events: dict[tuple[str, str], Json] = {}
        self.sent = 0
        self.fail_after: int | None = None

    def send_many(self, rows: Iterable[Mapping[str, Any]]) -> list[RowResult]:
        results = []
        for at, row in enumerate(rows, 1):
            if self.fail_after is not None and self.sent >= self.fail_after:
                raise Unavailable(503, "x", "down", "later")
            self.sent += 1
            known = (row["response_id"], row["event_id"]) in self.events
            self.events.setdefault((row["response_id"], row["event_id"]), dict(row))
            results.append(RowResult(line=at, status_code=200, status="duplicate" if known else "accepted"))
        return results

    def present(self) -> dict[tuple[str, str, str], str]:
        """Return the newest signal of each response, user and kind, without those that were retracted."""
        gone = {(e["response_id"], e["value"]) for e in self.events.values() if e["kind"] == "retract"}
        newest: dict[tuple[str, str, str], Json] = {}
        for event in self.events.values():
            slot = (event["response_id"], event["user_id"], event["kind"])
            if event["kind"] != "retract" and (
                slot not in newest or newest[slot]["occurred_at"] <= event["occurred_at"]
            ):
                newest[slot] = event
        return {
            slot: event["value"]
            for slot, event in newest.items()
            if (event["response_id"], event["event_id"]) not in gone
        }


def wanted(objects: Iterable[Json]) -> dict[tuple[str, str, str], str]:
    """Return the signals that these objects hold."""
    found = {}
    for each in objects:
        slot = (f"openwebui-{each['meta']['message_id']}", each["user_id"])
        if each["data"]["rating"] is not None:
            found[*slot, "thumbs"] = {1: "up", -1: "down"}[each["data"]["rating"]]
        if each["data"]["comment"]:
            found[*slot, "comment"] = each["data"]["comment"]
    return found


@contextmanager
def syncing(webui: Webui, log: Log, **options: Any) -> Iterator[Callable[[], SyncReport]]:
    database = sqlite3.connect(":memory:")
    try:
        store = SentStore(database)
        yield lambda: Sync(webui.client(), cast("Loopwright", log), store, **options).run()
    finally:
        database.close()


# --- what feedback becomes --------------------------------------------------------------------------------------------


def test_ids_are_those_that_inference_records() -> None:
    assert RESPONSE_PREFIX == openwebui_headers.RESPONSE_PREFIX
    ids = openwebui_headers.openwebui_ids({openwebui_headers.MESSAGE_HEADER: "m-f1"}, streamed=True)
    assert parse_feedback(feedback()).response_id == ids.response_id


def test_rating_reason_and_comment_become_thumbs_tag_and_comment() -> None:
    given = parse_feedback(feedback(data={"rating": -1, "comment": " Wrong capital. ", "reason": "other"}))
    thumbs, comment = (given.event(kind, "assistant") for kind in given.signals)
    assert {name: thumbs[name] for name in ("kind", "value", "user_id", "tags", "occurred_at", "line")} == {
        "kind": "thumbs",
        "value": "down",
        "user_id": "u-17",
        "tags": ["reason=other"],
        "occurred_at": "2026-03-01T12:00:00+00:00",
        "line": "assistant",
    }
    assert (comment["kind"], comment["value"]) == ("comment", "Wrong capital.")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"meta": {"message_id": None}}, "message_id"),
        ({"user_id": None}, "user_id"),
        ({"data": {"rating": 5}}, "rating"),
        ({"data": {"rating": True}}, "rating"),
        ({"data": {"comment": 5}}, "comment"),
        ({"updated_at": "now"}, "updated_at"),
        ({"id": ""}, "no id"),
    ],
)
def test_feedback_that_cannot_be_used_says_why(changes: Json, fault: str) -> None:
    with pytest.raises(Unusable, match=fault):
        parse_feedback(feedback(**changes))


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@given(
    st.sampled_from(
        ["id", "user_id", "data", "meta", "updated_at", "rating", "comment", "reason", "message_id"]
    ),
    ANY,
)
@settings(max_examples=200)
def test_any_object_is_used_or_refused(name: str, value: Any) -> None:
    changed = feedback()
    target = next((part for part in (changed["data"], changed["meta"]) if name in part), changed)
    target[name] = value
    try:
        found = parse_feedback(changed)
    except Unusable:
        return
    for kind in found.signals:
        json.dumps(found.event(kind, None), allow_nan=False)


# --- keeping in step ------------------------------------------------------------------------------------------------


CHANGE = st.tuples(
    st.sampled_from(["put", "put", "put", "delete", "sync"]),
    st.sampled_from(["f1", "f2", "f3"]),
    st.sampled_from([1, -1, None]),
    st.sampled_from(["", "Too long.", "Wrong."]),
    st.sampled_from(["m1", "m2"]),
)


@given(st.lists(CHANGE, max_size=25), st.integers(0, 12))
@settings(max_examples=150, deadline=None)
def test_any_sequence_of_edits_and_deletions_is_followed(changes: list[Any], failing: int) -> None:
    """Also if the service fails in between: the next round repeats what was not remembered."""
    webui, log = Webui(), Log()
    with syncing(webui, log) as sync:
        for time, (action, feedback_id, rating, comment, message) in enumerate(changes):
            if action == "delete":
                webui.objects.pop(feedback_id, None)
            elif action == "put":
                webui.objects[feedback_id] = feedback(
                    feedback_id,
                    data={"rating": rating, "comment": comment},
                    meta={"message_id": f"{message}-{feedback_id}"},
                    updated_at=1_772_366_400 + time,
                )
            else:
                log.fail_after = log.sent + failing
                with suppress(Unavailable):
                    sync()
                log.fail_after = None
        sync()
        assert log.present() == wanted(webui.objects.values())
        sent = log.sent
        assert sync().unchanged == len(webui.objects)
        assert log.sent == sent, "a round without changes sends nothing"


def test_lost_state_sends_the_same_events_again() -> None:
    webui, log = Webui([feedback("f1"), feedback("f2")]), Log()
    for _ in range(2):
        with syncing(webui, log) as sync:
            assert sync().sent == 2
    assert len(log.events) == 2


def test_list_that_breaks_off_retracts_nothing() -> None:
    webui, log = Webui([feedback("f1"), feedback("f2")]), Log()
    with syncing(webui, log) as sync:
        sync()
        cut = json.dumps(list(webui.objects.values()))[:-40]
        webui.reply = httpx.Response(200, text=cut, headers={"content-type": "application/json"})
        with pytest.raises(ExportFailed):
            sync()
        assert len(log.present()) == 2


def test_object_that_cannot_be_read_is_reported_and_not_retracted() -> None:
    webui, log = Webui([feedback("f1")]), Log()
    with syncing(webui, log) as sync:
        sync()
        webui.objects["f1"]["data"]["rating"] = "excellent"
        report = sync()
        assert (report.refused, report.retracted) == (1, 0)
        assert report.refusals[0].startswith("f1: data.rating")
        assert len(log.present()) == 1


def test_feedback_on_other_models_is_left_out() -> None:
    webui, log = Webui([feedback("f1"), feedback("f2", data={"model_id": "gpt-x"})]), Log()
    with syncing(webui, log, models=["assistant"]) as sync:
        report = sync()
    assert (report.sent, report.other_models) == (1, 1)


def test_many_objects_are_sent_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connector, "OBJECTS_AT_ONCE", 2)
    webui, log = Webui([feedback(f"f{number}") for number in range(5)]), Log()
    with syncing(webui, log) as sync:
        assert sync().sent == 5
        webui.objects.clear()
        assert sync().retracted == 5
    assert log.present() == {}


def test_older_versions_are_asked_by_their_route() -> None:
    webui, log = Webui([feedback("f1")], routes=connector.EXPORTS[1:]), Log()
    with syncing(webui, log) as sync:
        assert sync().sent == 1
    assert webui.requests[0].headers["authorization"] == "Bearer sk-admin"


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (httpx.Response(401, json={}), ExportFailed, "API key of an administrator"),
        (httpx.Response(404, json={}), ExportFailed, "status 404"),
        (httpx.Response(502, text=""), ExportUnavailable, "status 502"),
        (httpx.Response(200, text="<html>"), ExportFailed, "does not answer with JSON"),
        (httpx.Response(200, json={"detail": "no"}), ExportFailed, "list of feedback"),
        (httpx.ConnectError("refused"), ExportUnavailable, "not reachable"),
    ],
)
def test_failures_say_what_to_do(reply: Any, kind: type[ExportFailed], message: str) -> None:
    webui = Webui()
    webui.reply = reply
    with syncing(webui, Log()) as sync, pytest.raises(kind, match=message) as caught:
        sync()
    assert type(caught.value) is kind


# --- the command ------------------------------------------------------------------------------------------------------


class Network(httpx.BaseTransport):
    """Open WebUI, and the real feedback service."""

    def __init__(self, webui: Webui) -> None:
        self._webui, self._network = webui, httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._webui(request) if request.url.host == "webui" else self._network.handle_request(request)

    def close(self) -> None:
        self._network.close()


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[str, Feedback]]:
    with Feedback().running() as running, served(running.app) as url:
        httpx.get(f"{url}/readyz", headers=authorization())  # the first request logs that keys were read
        yield url, running


def run(url: str, webui: Webui, *arguments: str) -> Result:
    environment = {
        "COLUMNS": "300",
        "LOOPWRIGHT_FEEDBACK_URL": url,
        "LOOPWRIGHT_API_KEY": authorization()["Authorization"].removeprefix("Bearer "),
        "OPENWEBUI_API_KEY": "sk-admin",
    }
    command = ["connect", "openwebui", "--url", "http://webui", *arguments]
    return CliRunner().invoke(app, command, obj=Network(webui), env=environment)


def test_command_keeps_the_real_service_in_step(service: tuple[str, Feedback], tmp_path: Path) -> None:
    url, running = service
    webui = Webui([feedback("f1", data={"comment": "Say the year, too."})])
    arguments = ("--once", "--json", "--state", str(tmp_path / "state" / "webui.sqlite"))
    first = run(url, webui, *arguments)
    assert (first.exit_code, json.loads(first.stdout)["sent"]) == (0, 2), first.output
    webui.objects["f1"] = feedback("f1", data={"rating": -1}, updated_at=1_772_366_460)
    second = json.loads(run(url, webui, *arguments).stdout)
    assert (second["sent"], second["retracted"]) == (1, 1)
    webui.objects.clear()
    assert json.loads(run(url, webui, *arguments).stdout)["retracted"] == 1
    kinds = [json.loads(record.value or b"")["kind"] for record in running.log.records("feedback.events")]
    assert kinds == ["thumbs", "comment", "thumbs", "retract", "retract"]


def test_signal_ends_polling_with_what_was_sent_remembered(
    service: tuple[str, Feedback], tmp_path: Path
) -> None:
    webui = Webui([feedback("g1")])

    class Interrupting(Webui):
        def __call__(self, request: httpx.Request) -> httpx.Response:
            signal.raise_signal(signal.SIGINT)
            return webui(request)

    state = str(tmp_path / "webui.sqlite")
    before = signal.getsignal(signal.SIGINT)
    result = run(service[0], Interrupting(), "--interval", "600", "--state", state)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    assert "1 feedback objects, 1 events sent" in result.stdout
    assert "0 events sent" in run(service[0], webui, "--once", "--state", state).stdout
    assert signal.getsignal(signal.SIGINT) is before


def test_outage_ends_one_fetch_and_not_polling(service: tuple[str, Feedback], tmp_path: Path) -> None:
    broken = httpx.ConnectError("refused")

    class Recovering(Webui):
        def __call__(self, request: httpx.Request) -> httpx.Response:
            self.reply = None if self.requests else broken
            if self.requests:
                signal.raise_signal(signal.SIGTERM)
            return super().__call__(request)

    state = ("--state", str(tmp_path / "webui.sqlite"))
    once = run(service[0], Recovering(), "--once", *state)
    assert once.exit_code == 1 and "not reachable" in once.stderr
    polling = run(service[0], Recovering(), "--interval", "1", *state)
    assert polling.exit_code == 0, polling.output
    assert "Trying again in 1 s" in polling.stderr and "0 feedback objects" in polling.stdout


def test_wrong_key_ends_polling(service: tuple[str, Feedback], tmp_path: Path) -> None:
    webui = Webui()
    webui.reply = httpx.Response(403, json={})
    result = run(service[0], webui, "--state", str(tmp_path / "webui.sqlite"))
    assert result.exit_code == 1
    assert "administrator" in result.stderr


def test_state_that_cannot_be_used_is_a_usage_error(service: tuple[str, Feedback], tmp_path: Path) -> None:
    broken = tmp_path / "state.sqlite"
    broken.write_text("not a database" * 100)
    result = run(service[0], Webui(), "--once", "--state", str(broken))
    assert result.exit_code == 2
    assert "cannot use" in result.stderr
