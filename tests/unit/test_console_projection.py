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
from shared.versions import GateReport, ModelVersion, RolloutRecord, VersionRef

NOW = datetime(2026, 3, 4, tzinfo=UTC)
BASE = VersionRef(version="assistant@base-00000000", kind="base", digest="0" * 64)
V1 = VersionRef(version="assistant@v1-11111111", kind="lora", uri="file:///v1", digest="1" * 64)
DEAD = (("dl_topic", b"feedback.events"), ("dl_class", b"malformed"), ("dl_message", b"not JSON"))


def record(topic: str, made: LogRecord | bytes | None, headers: tuple[tuple[str, bytes], ...] = ()) -> Record:
    value = made.to_json() if isinstance(made, LogRecord) else made
    return Record(topic, 0, 0, 1_770_000_000_000, b"k", value, headers)


def outcome(kind: OutcomeKind, line: str = "assistant") -> Record:
    made = Outcome(line=line, response_id="r", event_id="e", outcome=kind, decided_at=NOW)
    return record("feedback.outcomes", made)


def batch(number: int, examples: int, rewrite: int = 0) -> Record:
    """A batch on the wire; what its examples say is of no interest here."""
    made = Batch(
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
    wire = json.loads(made.to_json()) | {"examples": [{"response_id": f"r{n}"} for n in range(examples)]}
    return record("training.batches", json.dumps(wire).encode())


def version(ref: VersionRef, number: int | None = None) -> Record:
    gate = (
        GateReport(verdict="passed", reasons=("won 9 of 9",), gated_against=BASE.version) if number else None
    )
    made = ModelVersion(
        line="assistant", ref=ref, number=number, base=BASE.version, base_model="b", gate=gate, created_at=NOW
    )
    return record("model.versions", made)


def decision(seq: int, stable: VersionRef, **more: Any) -> Record:
    made = RolloutRecord(
        line="assistant",
        seq=seq,
        action="promote",
        stable=stable,
        reason=f"decision {seq}",
        decided_at=NOW + timedelta(minutes=seq),
        **more,
    )
    return record("model.rollout", made)


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


def folded(*records: Record) -> Projection:
    state = Projection()
    state.apply(records)
    return state


def status(state: Projection, accepted: int | None = 0) -> dict[str, Any]:
    return responses.status(state, "assistant", accepted=accepted, collected=None, run=None)


def test_an_empty_log_is_an_empty_status() -> None:
    assert status(Projection()) == {
        "line": "assistant",
        "serving": None,
        "ledger": {},
        "accepted": 0,
        "pending": 0,
        "batches": {"count": 0, "examples": 0},
        "collected": None,
        "run": None,
        "versions": 0,
        "dead_letters": 0,
        "unreadable": 0,
    }


def test_the_ledger_closes_over_outcomes_dead_letters_and_pending() -> None:
    kinds = [OutcomeKind.BATCHED, OutcomeKind.BATCHED, OutcomeKind.DUPLICATE]
    state = folded(*[outcome(kind) for kind in kinds], record("dead.letters", b"garbage", DEAD))
    shown = status(state, accepted=7)
    assert shown["ledger"] == {"batched": 2, "duplicate": 1, "dead": 1}
    assert shown["pending"] == 3
    assert sum(shown["ledger"].values()) + shown["pending"] == shown["accepted"]


def replayed(*positions: str, topics: dict[str, int], command_id: str = "c-1") -> Record:
    made = CommandResult(
        line="assistant",
        command_id=command_id,
        status="done",
        message="replayed",
        executor="feedback",
        finished_at=NOW,
        replayed=Replayed(positions=positions, topics=topics),
    )
    return record("operator.results", made)


def test_an_event_that_died_and_was_replayed_counts_once_before_and_after_its_outcome() -> None:
    dead = record("dead.letters", b"?", DEAD)
    state = folded(outcome(OutcomeKind.BATCHED), dead)
    assert (status(state, 2)["ledger"], status(state, 2)["pending"]) == ({"batched": 1, "dead": 1}, 0)
    again = replayed("0-0", topics={"feedback.events": 1, "chat.responses": 1})
    state.apply([again, again])
    assert (status(state, 2)["ledger"], status(state, 2)["pending"]) == ({"batched": 1}, 1)
    assert state.sent_again == {"feedback.events": 1, "chat.responses": 1}
    assert state.replayed == {"0-0": "c-1"}
    died_again = status(folded(outcome(OutcomeKind.BATCHED), dead, again, dead), 2)
    assert (died_again["ledger"], died_again["pending"]) == ({"batched": 1, "dead": 1}, 0)
    state.apply([outcome(OutcomeKind.BATCHED)])
    assert (status(state, 2)["ledger"], status(state, 2)["pending"]) == ({"batched": 2}, 0)


def test_the_result_of_a_replay_says_how_many_went_back() -> None:
    told = responses.command(folded(replayed("0-0", "0-3", topics={"feedback.events": 2})), "c-1")
    assert told is not None
    assert (told["status"], told["replayed"]) == ("done", 2)


def test_a_dead_letter_of_another_topic_is_no_feedback() -> None:
    elsewhere = (("dl_topic", b"chat.responses"),)
    state = folded(record("dead.letters", None, elsewhere), record("dead.letters", b"x", DEAD))
    assert (state.dead_letters, status(state)["ledger"]) == (2, {"dead": 1})


def test_without_kafka_accepted_and_pending_are_unknown() -> None:
    shown = status(folded(outcome(OutcomeKind.BATCHED)), accepted=None)
    assert (shown["accepted"], shown["pending"], shown["ledger"]) == (None, None, {"batched": 1})


def test_a_rewrite_replaces_its_batch_and_an_older_one_does_not_come_back() -> None:
    for order in permutations([batch(1, 64), batch(1, 63, rewrite=1), batch(1, 60, rewrite=2), batch(2, 10)]):
        assert status(folded(*order))["batches"] == {"count": 2, "examples": 70}


def test_the_newest_rollout_record_serves_in_whatever_order_they_are_read() -> None:
    for order in permutations([decision(1, BASE), decision(2, V1), decision(3, BASE)]):
        serving = status(folded(*order))["serving"]
        assert (serving["version"], serving["seq"], serving["reason"]) == (BASE.version, 3, "decision 3")
        assert serving["since"] == (NOW + timedelta(minutes=3)).isoformat()


def test_rollout_is_told_newest_first() -> None:
    state = folded(decision(1, BASE), decision(3, V1), decision(2, BASE))
    assert [told["seq"] for told in responses.rollout(state, "assistant")] == [3, 2, 1]
    assert responses.rollout(state, "other") == []


def test_a_version_that_was_trained_from_what_was_erased_is_told_as_not_reproducible() -> None:
    told = ErasureReport(
        line="assistant",
        request_id="q1",
        subject="somebody",
        service="trainer",
        versions=(V1.version,),
        completed_at=NOW,
    )
    for order in permutations([version(V1, 1), version(BASE), record("erasure.reports", told)]):
        shown = responses.versions(folded(*order), "assistant")
        assert {v["version"]: v["reproducible"] for v in shown} == {BASE.version: True, V1.version: False}


def test_versions_are_told_with_verdict_and_which_one_serves() -> None:
    state = folded(version(V1, 1), version(BASE), decision(1, BASE))
    assert [
        (v["version"], v["kind"], v["verdict"], v["serving"]) for v in responses.versions(state, "assistant")
    ] == [
        (BASE.version, "base", None, True),
        (V1.version, "lora", "passed", False),
    ]
    state.apply([decision(2, BASE, canary=V1, share=0.05)])
    assert [v["serving"] for v in responses.versions(state, "assistant")] == [True, True]
    assert status(state)["versions"] == 2


def test_a_command_is_pending_until_its_result_whichever_is_read_first() -> None:
    assert responses.command(Projection(), "c1") is None
    pending = responses.command(folded(COMMAND), "c1")
    assert pending is not None
    assert pending["status"] == "pending"
    for order in permutations([COMMAND, RESULT]):
        done = responses.command(folded(*order), "c1")
        assert done is not None
        assert (done["status"], done["message"], done["executor"]) == ("refused", "no", "rollout")


def test_reading_a_batch_version_decision_or_command_twice_changes_nothing() -> None:
    records = [batch(1, 64), version(V1, 1), decision(1, BASE), COMMAND, RESULT]
    assert folded(*records, *records) == folded(*records)


def test_what_cannot_be_read_is_counted_and_stops_nothing() -> None:
    state = folded(
        record("feedback.outcomes", b"garbage"),
        record("operator.commands", b'{"kind": "shout"}'),
        record("training.batches", None),
        record("no.such.topic", b"{}"),
        outcome(OutcomeKind.LATE),
    )
    assert (state.unreadable, status(state)["ledger"]) == (2, {"late": 1})


def test_an_outcome_of_a_newer_writer_that_has_no_name_here_is_counted_as_unreadable() -> None:
    made = json.loads(outcome(OutcomeKind.LATE).value or b"") | {"outcome": "teleported"}
    assert folded(record("feedback.outcomes", json.dumps(made).encode())).unreadable == 1


POOL = [
    *[outcome(kind) for kind in OutcomeKind],
    *[batch(n, n + rewrite, rewrite) for n in (1, 2) for rewrite in (0, 1)],
    *[decision(seq, ref) for seq, ref in ((1, BASE), (2, V1), (3, BASE))],
    version(BASE),
    version(V1, 1),
    COMMAND,
    RESULT,
    record("dead.letters", b"x", DEAD),
]


@settings(max_examples=50)
@given(st.permutations(POOL))
def test_the_state_does_not_depend_on_the_order_in_which_topics_are_read(order: list[Record]) -> None:
    assert folded(*order) == folded(*POOL)
