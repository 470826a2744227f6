"""What became of one feedback event, from the facts on the log."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import permutations

import pytest

from services.feedback.core.receipts import Receipt, make_receipt, pending_receipt
from shared.events import Outcome, OutcomeKind
from shared.versions import DatasetRef, GateReport, ModelVersion, RolloutRecord, Verdict, VersionRef

NOW = datetime(2026, 3, 4, tzinfo=UTC)
BASE = VersionRef(version="assistant@base-00000000", kind="base", digest="0" * 64)


def outcome(kind: OutcomeKind = OutcomeKind.BATCHED, batch_id: str | None = "assistant-2-17") -> Outcome:
    return Outcome(
        line="assistant", response_id="r", event_id="e", outcome=kind, batch_id=batch_id, decided_at=NOW
    )


def version(number: int, verdict: Verdict = "passed", through: int = 17) -> ModelVersion:
    digest = f"{number:064x}"[::-1]
    name = f"assistant@v{number}-{digest[:8]}"
    return ModelVersion(
        line="assistant",
        ref=VersionRef(version=name, kind="lora", uri=f"file:///{digest}", digest=digest),
        number=number,
        base=BASE.version,
        base_model="base",
        run_id=f"run-{number}",
        dataset=DatasetRef(digest=digest, examples=9, users=3, through={"2": through}),
        gate=GateReport(verdict=verdict, reasons=("lost 3 of 4",), gated_against=BASE.version),
        created_at=NOW,
    )


def serves(stable: VersionRef, canary: VersionRef | None = None, seq: int = 2) -> RolloutRecord:
    return RolloutRecord(
        line="assistant",
        seq=seq,
        action="canary" if canary else "promote",
        stable=stable,
        canary=canary,
        share=0.25 if canary else 0,
        reason="because",
        decided_at=NOW,
    )


def told(receipt: Receipt) -> tuple[str, str | None, str | None, bool]:
    return receipt.stage, receipt.version, receipt.verdict, receipt.serving


def test_without_an_outcome_it_is_pending() -> None:
    receipt = pending_receipt("r", "e")
    assert (receipt.outcome, receipt.stage, receipt.serving) == ("pending", "pending", False)


def test_in_a_batch_that_no_version_has_read_it_is_batched() -> None:
    receipt = make_receipt(outcome(), [version(1, through=16)], serves(BASE))
    assert told(receipt) == ("batched", None, None, False)
    assert receipt.batch_id == "assistant-2-17"


def test_it_is_followed_to_the_first_version_that_read_its_batch() -> None:
    v1, v2, v3 = version(1, through=16), version(2), version(3)
    receipt = make_receipt(outcome(), [v1, v2, v3], serves(v2.ref))
    assert told(receipt) == ("serving", v2.ref.version, "passed", True)
    assert (receipt.run_id, receipt.serving_version) == ("run-2", v2.ref.version)


def test_a_later_version_that_read_the_batch_serves_it_too() -> None:
    v1, v2 = version(1), version(2, through=40)
    receipt = make_receipt(outcome(), [v1, v2], serves(v2.ref))
    assert told(receipt) == ("serving", v1.ref.version, "passed", True)
    assert receipt.serving_version == v2.ref.version


def test_a_version_that_failed_gives_way_to_the_first_that_passed() -> None:
    failed, passed = version(1, "failed"), version(2, through=40)
    assert told(make_receipt(outcome(), [failed], serves(BASE))) == (
        "trained",
        failed.ref.version,
        "failed",
        False,
    )
    receipt = make_receipt(outcome(), [failed, passed], serves(passed.ref))
    assert told(receipt) == ("serving", passed.ref.version, "passed", True)


def test_passed_but_not_serving_is_published_and_says_what_serves() -> None:
    v1 = version(1)
    receipt = make_receipt(outcome(), [v1], serves(BASE))
    assert told(receipt) == ("published", v1.ref.version, "passed", False)
    assert BASE.version in receipt.detail
    assert told(make_receipt(outcome(), [v1], None)) == ("published", v1.ref.version, "passed", False)


def test_a_rollback_ends_the_serving() -> None:
    v1 = version(1)
    assert make_receipt(outcome(), [v1], serves(v1.ref)).serving
    assert not make_receipt(outcome(), [v1], serves(BASE, seq=3)).serving


def test_as_a_canary_it_serves_a_share() -> None:
    v1 = version(1)
    receipt = make_receipt(outcome(), [v1], serves(BASE, canary=v1.ref))
    assert told(receipt) == ("canary", v1.ref.version, "passed", True)
    assert "25%" in receipt.detail


def test_a_failed_version_that_a_person_pinned_serves() -> None:
    failed = version(1, "failed")
    assert told(make_receipt(outcome(), [failed], serves(failed.ref))) == (
        "serving",
        failed.ref.version,
        "failed",
        True,
    )


def test_the_base_holds_no_feedback() -> None:
    base = ModelVersion(line="assistant", ref=BASE, base=BASE.version, base_model="base", created_at=NOW)
    assert told(make_receipt(outcome(), [base], serves(BASE))) == ("batched", None, None, False)


def test_the_order_in_which_versions_came_does_not_matter() -> None:
    versions = [version(1, through=16), version(2, "failed"), version(3), version(10, through=99)]
    receipts = {make_receipt(outcome(), order, serves(versions[3].ref)) for order in permutations(versions)}
    assert {told(receipt) for receipt in receipts} == {("serving", versions[2].ref.version, "passed", True)}
    assert len(receipts) == 1


@pytest.mark.parametrize("kind", [kind for kind in OutcomeKind if kind != OutcomeKind.BATCHED])
def test_every_other_outcome_is_the_end_and_says_so(kind: OutcomeKind) -> None:
    receipt = make_receipt(outcome(kind, batch_id=None), [version(1)], serves(version(1).ref))
    assert (receipt.outcome, receipt.stage, receipt.serving, receipt.version) == (kind, kind, False, None)
    assert len(receipt.detail) > 20
