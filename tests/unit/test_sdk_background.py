"""Sending in the background: the app never waits, and nothing is lost that found space."""

from __future__ import annotations

import math
import multiprocessing
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwright import BackgroundLoopwright, RowResult, Unreachable, background
from loopwright.retry import Retry

Rows = Sequence[Mapping[str, Any]]


class Service:
    """Takes rows, with the status that `status_of` returns for the so-and-so-many-th row, or is away."""

    def __init__(self, status_of: Callable[[int], int] = lambda _: 202) -> None:
        self.status_of = status_of
        self.away = False
        self.seen = 0
        self.accepted: list[Mapping[str, Any]] = []
        self.may_answer = threading.Event()
        self.may_answer.set()

    def send_many(self, rows: Rows) -> list[RowResult]:
        self.may_answer.wait(20)
        if self.away:
            raise Unreachable("http://127.0.0.1:9", "LOOPWRIGHT_FEEDBACK_URL", "away")
        results = []
        for line, row in enumerate(rows, 1):
            status = self.status_of(self.seen)
            self.seen += 1
            if status < 400:
                self.accepted.append(row)
            results.append(RowResult(line=line, status_code=status, code="some_code", detail="Do this."))
        return results

    record_many = send_many


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Retry, "backoff", lambda *_: 0.01)
    monkeypatch.setattr(background, "IDLE_S", 0.05)


@pytest.fixture(params=["memory", "spool"])
def spool(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "spool.db" if request.param == "spool" else None


def test_all_kinds_are_sent_in_order_with_ids(spool: Path | None) -> None:
    service = Service()
    with BackgroundLoopwright(service, spool=spool) as loop:
        ids = [
            loop.thumbs_up("r", "u"),
            loop.thumbs_down("r", "u"),
            loop.rate("r", "u", 4),
            loop.correct("r", "u", "It is Wellington."),
            loop.comment("r", "u", "Too long."),
            loop.prefer("r", "u", over="other"),
            loop.send("r", "u", "thumbs", "up", "my-id", choice=1, tags=["a"], line="assistant"),
        ]
        ids.append(loop.retract("r", "u", ids[0]))
        assert loop.flush(10)
        assert loop.counts == background.Counts(sent=8)
    assert [row["event_id"] for row in service.accepted] == ids
    assert [row["kind"] for row in service.accepted] == [
        "thumbs", "thumbs", "rating", "correction", "comment", "preference", "thumbs", "retract",
    ]  # fmt: skip
    assert service.accepted[6] == service.accepted[6] | {"choice": 1, "tags": ["a"], "line": "assistant"}
    assert all(row["occurred_at"] for row in service.accepted)


def test_responses_are_recorded_with_text_or_choices(spool: Path | None) -> None:
    service = Service()
    with BackgroundLoopwright(service, spool=spool) as loop:
        loop.record_response("r1", [{"role": "user", "content": "Hi"}], "Hello.", version="m", user_id="u")
        loop.record_response(
            "r2", [{"role": "user", "content": "Hi"}], version="m", choices=[{"index": 0, "text": "Hello."}],
            usage={"prompt_tokens": 3}, latency_ms=5.0, metadata={"a": "b"},
        )  # fmt: skip
        with pytest.raises(ValueError, match="either text or choices"):
            loop.record_response("r3", [], version="m")
    assert [row["response_id"] for row in service.accepted] == ["r1", "r2"]
    assert service.accepted[1]["usage"] == {"prompt_tokens": 3}


def test_what_waits_during_an_outage_arrives_once_after_it(spool: Path | None) -> None:
    service = Service()
    service.away = True
    with BackgroundLoopwright(service, spool=spool) as loop:
        ids = [loop.thumbs_up(f"r{number}", "u") for number in range(500)]
        assert not loop.flush(0.05)
        assert loop.waiting() == 500
        service.away = False
        assert loop.flush(20)
    assert [row["event_id"] for row in service.accepted] == ids


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([202, 202, 422, 409, 429, 503, 408]), min_size=1, max_size=30))
def test_refused_rows_are_kept_with_the_reason_and_others_sent_until_they_are_taken(
    statuses: list[int],
) -> None:
    service = Service(lambda seen: statuses[seen] if seen < len(statuses) else 202)
    with BackgroundLoopwright(service) as loop:
        ids = [loop.thumbs_up("r", "u") for _ in statuses]
        assert loop.flush(20)
        refused = [refusal.row["event_id"] for refusal in loop.refused()]
        counts = loop.counts
    accepted = [row["event_id"] for row in service.accepted]
    assert sorted(accepted + refused) == sorted(ids)
    assert (counts.sent, counts.refused, counts.dropped) == (len(accepted), len(refused), 0)
    assert all(refusal.reason == "some_code: Do this." for refusal in loop.refused())


def test_app_does_not_wait_while_the_service_hangs(spool: Path | None) -> None:
    service = Service()
    service.may_answer.clear()
    loop = BackgroundLoopwright(service, spool=spool)
    began = time.monotonic()
    for _ in range(200):
        loop.thumbs_up("r", "u")
    assert time.monotonic() - began < 5, "200 events while the service hangs"
    service.may_answer.set()
    assert loop.close(20)
    assert len(service.accepted) == 200


def test_full_memory_drops_and_counts(caplog: pytest.LogCaptureFixture) -> None:
    service = Service()
    service.away = True
    loop = BackgroundLoopwright(service, max_waiting=5)
    for _ in range(8):
        loop.thumbs_up("r", "u")
    assert loop.counts.dropped == 3
    assert [record.message for record in caplog.records].count(
        "feedback for Loopwright is dropped: 5 rows wait to be sent"
    ) == 1
    assert not loop.close(0.05)
    assert "5 rows were not sent to Loopwright and are lost" in caplog.text


def test_spool_is_sent_by_the_next_process(tmp_path: Path) -> None:
    away, service = Service(), Service()
    away.away = True
    first = BackgroundLoopwright(away, spool=tmp_path / "spool.db")
    event_id = first.thumbs_up("r", "u")
    assert not first.close(0.1)
    with BackgroundLoopwright(service, spool=tmp_path / "spool.db") as second:
        assert second.flush(20)
    assert [row["event_id"] for row in service.accepted] == [event_id]


def test_forked_process_sends_its_own_rows(tmp_path: Path, spool: Path | None) -> None:
    service = Service()
    loop = BackgroundLoopwright(service, spool=spool)
    loop.thumbs_up("parent", "u")
    assert loop.flush(20)
    found = tmp_path / "found"

    def in_child() -> None:
        service.accepted.clear()
        loop.thumbs_up("child", "u")
        assert loop.flush(20)
        found.write_text(" ".join(row["response_id"] for row in service.accepted))

    child = multiprocessing.get_context("fork").Process(target=in_child)
    child.start()
    child.join(30)
    assert (child.exitcode, found.read_text()) == (0, "child")
    loop.thumbs_up("parent again", "u")
    assert loop.close(20)
    assert [row["response_id"] for row in service.accepted] == ["parent", "parent again"]


def test_what_no_service_could_read_is_an_error_at_once() -> None:
    with BackgroundLoopwright(Service()) as loop, pytest.raises(ValueError, match="JSON"):
        loop.send("r", "u", "rating", math.nan)  # type: ignore[arg-type]
