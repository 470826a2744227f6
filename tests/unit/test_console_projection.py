"""The console's state, folded from the log."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from services.console.core import responses
from services.console.core.projection import Projection
from shared.commands import CommandResult, Promote, Replayed
from shared.events import Batch, ErasureReport, LogRecord, Outcome, OutcomeKind
from shared.records import Record
from shared.serving import ServingReport
from shared.versions import GateReport, ModelVersion, RolloutRecord, VersionRef
from tests.canary_factories import CANARY, canary_status, canary_test

NOW = datetime(2026, 3, 4, tzinfo=UTC)
BASE = VersionRef(version="assistant@base-00000000", kind="base", digest="0" * 64)
V1 = VersionRef(version="assistant@v1-11111111", kind="lora", uri="file:///v1", digest="1" * 64)
DEAD = (("dl_topic", b"feedback.events"), ("dl_class", b"malformed"), ("dl_message", b"not JSON"))


def record(
    topic: str,
    content: LogRecord | bytes | None,
    headers: tuple[tuple[str, bytes], ...] = (),
    offset: int = 0,
) -> Record:
    value = content.to_json() if isinstance(content, LogRecord) else content
    return Record(topic, 0, offset, 1_770_000_000_000, b"k", value, headers)


def outcome(kind: OutcomeKind, line: str = "assistant", event_id: str | None = "e") -> Record:
    content = Outcome(line=line, response_id="r", event_id=event_id, outcome=kind, decided_at=NOW)
    return record("feedback.outcomes", content)


def batch(number: int, examples: int, rewrite: int = 0) -> Record:
    """Return a batch with placeholders for its examples, which the console only counts."""
    content = Batch(
        line="assistant",
        batch_id=f"assistant-0-{number}",
        partition=0,
        number=number,
        rewrite=rewrite,
        reason="count",
        examples=(),
        content_hash="0" * 64,
        cut_at=NOW,
    )
    fields = json.loads(content.to_json()) | {"examples": [{"response_id": f"r{n}"} for n in range(examples)]}
    return record("training.batches", json.dumps(fields).encode())


def version(ref: VersionRef, number: int | None = None) -> Record:
    gate = (
        GateReport(verdict="passed", reasons=("won 9 of 9",), gated_against=BASE.version) if number else None
    )
    content = ModelVersion(
        line="assistant", ref=ref, number=number, base=BASE.version, base_model="b", gate=gate, created_at=NOW
    )
    return record("model.versions", content)


def rollout(seq: int, stable: VersionRef, **fields: Any) -> Record:
    content = RolloutRecord(
        line="assistant",
        seq=seq,
        action="promote",
        stable=stable,
        reason=f"decision {seq}",
        decided_at=NOW + timedelta(minutes=seq),
        **fields,
    )
    return record("model.rollout", content)


def serving_report(stable: VersionRef, canary: VersionRef | None = None) -> Record:
    content = ServingReport(
        line="assistant",
        replica="one",
        stable=stable.version,
        canary=canary.version if canary else None,
        reported_at=NOW,
    )
    return record("model.serving", content)


COMMAND = record(
    "operator.commands",
    Promote(line="assistant", command_id="c1", issued_at=NOW, version="assistant@v1-11111111"),
)
RESULT = record(
    "operator.results",
    CommandResult(
        line="assistant", command_id="c1", status="refused", message="no", executor="rollout", finished_at=NOW
    ),
)


def projection(*records: Record) -> Projection:
    state = Projection()
    state.apply(records)
    return state


def status(state: Projection, accepted: int | None = 0) -> dict[str, Any]:
    counts = state.ledger.counts()
    return responses.status(state, "assistant", counts, records=accepted, collected=None, run=None)


def test_empty_log_has_an_empty_status() -> None:
    assert status(Projection()) == {
        "line": "assistant",
        "serving": None,
        "ledger": {},
        "ledger_since": None,
        "refused": {},
        "refused_responses": {},
        "accepted": 0,
        "pending": 0,
        "batches": {"count": 0, "examples": 0},
        "collected": None,
        "run": None,
        "versions": 0,
        "dead_letters": 0,
        "unreadable": 0,
    }


def test_outcomes_dead_letters_and_pending_add_up_to_accepted() -> None:
    kinds = [OutcomeKind.BATCHED, OutcomeKind.BATCHED, OutcomeKind.DUPLICATE]
    refused_response = outcome(OutcomeKind.REFUSED, event_id=None)
    state = projection(
        *[outcome(kind) for kind in kinds], refused_response, record("dead.letters", b"garbage", DEAD)
    )
    body = status(state, accepted=7)
    assert body["ledger"] == {"batched": 2, "duplicate": 1, "dead": 1}
    assert body["pending"] == 3
    assert sum(body["ledger"].values()) + body["pending"] == body["accepted"]


def replay_result(*positions: str, topics: dict[str, int], command_id: str = "c-1") -> Record:
    content = CommandResult(
        line="assistant",
        command_id=command_id,
        status="done",
        message="replayed",
        executor="feedback",
        finished_at=NOW,
        replayed=Replayed(positions=positions, topics=topics),
    )
    return record("operator.results", content)


def test_replayed_event_counts_once_before_and_after_its_outcome() -> None:
    dead, dead_again = (record("dead.letters", b"?", DEAD, offset) for offset in (0, 1))
    state = projection(outcome(OutcomeKind.BATCHED), dead)
    assert (status(state, 2)["ledger"], status(state, 2)["pending"]) == ({"batched": 1, "dead": 1}, 0)
    again = replay_result("0-0", topics={"feedback.events": 1, "chat.responses": 1})
    state.apply([again, again])
    assert (status(state, 3)["ledger"], status(state, 3)["pending"]) == ({"batched": 1}, 1)
    assert status(state, 3)["accepted"] == 2, "the replay is a second record of the same event"
    assert state.replayed_by_topic == {"feedback.events": 1, "chat.responses": 1}
    assert state.replayed == {"0-0": "c-1"}
    died_again = status(projection(outcome(OutcomeKind.BATCHED), dead, again, dead_again), 3)
    assert (died_again["ledger"], died_again["pending"]) == ({"batched": 1, "dead": 1}, 0)
    state.apply([outcome(OutcomeKind.BATCHED)])
    assert (status(state, 3)["ledger"], status(state, 3)["pending"]) == ({"batched": 2}, 0)


def test_replay_result_has_the_number_of_replayed_letters() -> None:
    command = responses.command(projection(replay_result("0-0", "0-3", topics={"feedback.events": 2})), "c-1")
    assert command is not None
    assert (command["status"], command["replayed"]) == ("done", 2)


def test_dead_letter_of_another_topic_is_not_in_the_ledger() -> None:
    elsewhere = (("dl_topic", b"chat.responses"),)
    state = projection(record("dead.letters", None, elsewhere), record("dead.letters", b"x", DEAD))
    assert (state.dead_letters, status(state)["ledger"]) == (2, {"dead": 1})


def test_without_kafka_accepted_and_pending_are_unknown() -> None:
    body = status(projection(outcome(OutcomeKind.BATCHED)), accepted=None)
    assert (body["accepted"], body["pending"], body["ledger"]) == (None, None, {"batched": 1})


def test_rewrite_replaces_its_batch_in_any_order() -> None:
    for order in permutations([batch(1, 64), batch(1, 63, rewrite=1), batch(1, 60, rewrite=2), batch(2, 10)]):
        assert status(projection(*order))["batches"] == {"count": 2, "examples": 70}


def test_newest_rollout_record_counts_in_any_order() -> None:
    for order in permutations([rollout(1, BASE), rollout(2, V1), rollout(3, BASE)]):
        serving = status(projection(*order))["serving"]
        assert (serving["version"], serving["seq"], serving["reason"]) == (BASE.version, 3, "decision 3")
        assert serving["since"] == (NOW + timedelta(minutes=3)).isoformat()


def canary_progress(*args: Any, **fields: Any) -> Record:
    return record("model.canary", canary_status(*args, **fields))


def test_rollout_state_shows_the_canary_and_what_it_waits_for() -> None:
    canary = VersionRef(version=CANARY, kind="lora", uri="file:///v2", digest="2" * 64)
    records = [rollout(1, V1), rollout(2, V1, canary=canary, share=0.05), canary_progress()]
    for order in permutations([*records, canary_progress(2, 10)]):
        body = responses.rollout_state(projection(*order), "assistant")
        assert body is not None
        assert (body["canary"], body["share"], body["stable"]) == (CANARY, 0.05, V1.version)
        assert body["waits_for"] == ["29 min more in this step"]
        assert len(body["points"]) == 3, "the newest progress counts"
        assert body["test"]["canary"]["users"] == 31
    assert responses.rollout_state(projection(*records), "other") is None


def test_rollout_state_after_a_canary_shows_the_figures_of_its_end() -> None:
    end = rollout(3, V1, test=canary_test(harm_p=0.004))
    body = responses.rollout_state(projection(rollout(1, V1), canary_progress(), end), "assistant")
    assert body is not None
    assert (body["canary"], body["waits_for"], body["test"]["harm_p"]) == (None, [], 0.004)
    assert len(body["points"]) == 3
    newer = rollout(4, V1, test=canary_test("assistant@v3-33333333"))
    body = responses.rollout_state(projection(rollout(1, V1), canary_progress(), newer), "assistant")
    assert body is not None and body["points"] == [], "the intervals are those of another canary"


def test_rollout_is_listed_newest_first() -> None:
    state = projection(rollout(1, BASE), rollout(3, V1), rollout(2, BASE))
    assert [body["seq"] for body in responses.rollout(state, "assistant")] == [3, 2, 1]
    assert responses.rollout(state, "other") == []


def test_version_with_erased_data_is_not_reproducible() -> None:
    report = ErasureReport(
        line="assistant",
        request_id="q1",
        subject="u_1",
        service="trainer",
        versions=(V1.version,),
        completed_at=NOW,
    )
    for order in permutations([version(V1, 1), version(BASE), record("erasure.reports", report)]):
        versions = responses.versions(projection(*order), "assistant")
        assert {v["version"]: v["reproducible"] for v in versions} == {BASE.version: True, V1.version: False}


def test_versions_have_their_verdict_and_whether_they_serve() -> None:
    state = projection(version(V1, 1), version(BASE), rollout(1, BASE))
    assert [v["serving"] for v in responses.versions(state, "assistant")] == [False, False], "only ordered"
    state.apply([serving_report(BASE)])
    live = state.replicas.live("assistant", 0)
    assert [
        (v["version"], v["kind"], v["verdict"], v["serving"])
        for v in responses.versions(state, "assistant", live)
    ] == [
        (BASE.version, "base", None, True),
        (V1.version, "lora", "passed", False),
    ]
    state.apply([rollout(2, BASE, canary=V1, share=0.05)])
    assert [v["serving"] for v in responses.versions(state, "assistant", live)] == [True, False]
    state.apply([serving_report(BASE, canary=V1)])
    live = state.replicas.live("assistant", 0)
    assert [v["serving"] for v in responses.versions(state, "assistant", live)] == [True, True]
    decision = responses.rollout_state(state, "assistant", live)
    assert decision is not None
    assert decision["replicas"] == {"live": 1, "serving": 1, "canary": 1, "refused": None}
    state.apply([Record("model.serving", 0, 9, 0, b"assistant/one", None, ())])
    assert state.replicas.live("assistant", 0) == []
    assert status(state)["versions"] == 2


def test_command_is_pending_until_its_result() -> None:
    assert responses.command(Projection(), "c1") is None
    pending = responses.command(projection(COMMAND), "c1")
    assert pending is not None
    assert pending["status"] == "pending"
    for order in permutations([COMMAND, RESULT]):
        done = responses.command(projection(*order), "c1")
        assert done is not None
        assert (done["status"], done["message"], done["executor"]) == ("refused", "no", "rollout")


def test_reading_records_twice_changes_nothing() -> None:
    records = [batch(1, 64), version(V1, 1), rollout(1, BASE), COMMAND, RESULT]
    assert projection(*records, *records) == projection(*records)


def test_unreadable_records_are_counted_and_stop_nothing() -> None:
    state = projection(
        record("feedback.outcomes", b"garbage"),
        record("operator.commands", b'{"kind": "shout"}'),
        record("training.batches", None),
        record("no.such.topic", b"{}"),
        outcome(OutcomeKind.LATE),
    )
    assert (state.unreadable, status(state)["ledger"]) == (2, {"late": 1})


def test_unknown_outcome_is_counted_as_unreadable() -> None:
    content = json.loads(outcome(OutcomeKind.LATE).value or b"") | {"outcome": "teleported"}
    assert projection(record("feedback.outcomes", json.dumps(content).encode())).unreadable == 1


def test_newest_dead_letters_are_kept_without_their_content() -> None:
    state = Projection()
    for offset in range(70):
        headers = (
            ("dl_topic", b"feedback.events"),
            ("dl_class", b"malformed"),
            ("dl_message", str(offset).encode()),
            ("dl_service", b"processor"),
        )
        state.apply(
            [Record("dead.letters", 0, offset, 1_770_000_000_000 + offset, b"k", b"a secret", headers)]
        )
    newest = responses.dead_letters(state)
    assert (state.dead_letters, len(newest)) == (70, 50)
    assert newest[0] == {
        "topic": "feedback.events",
        "code": "malformed",
        "message": "69",
        "service": "processor",
        "at": "2026-02-02T02:40:00.069000+00:00",
    }
    assert "secret" not in str(newest)


POOL = [
    *[outcome(kind) for kind in OutcomeKind],
    *[batch(n, n + rewrite, rewrite) for n in (1, 2) for rewrite in (0, 1)],
    *[rollout(seq, ref) for seq, ref in ((1, BASE), (2, V1), (3, BASE))],
    version(BASE),
    version(V1, 1),
    COMMAND,
    RESULT,
    record("dead.letters", b"x", DEAD),
]


@settings(max_examples=50)
@given(st.permutations(POOL))
def test_state_does_not_depend_on_the_order_of_topics(order: list[Record]) -> None:
    assert projection(*order) == projection(*POOL)
