"""Receipts: what became of one feedback event, according to the log."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import permutations
from typing import Any

import pytest

from services.feedback.core.receipts import Receipt, make_receipt, pending_receipt
from shared.events import Outcome, OutcomeKind
from shared.serving import RefusedVersion, ServingReport
from shared.versions import DatasetRef, GateReport, ModelVersion, RolloutRecord, Verdict, VersionRef
from tests.canary_factories import canary_test

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


def rollout(stable: VersionRef, canary: VersionRef | None = None, seq: int = 2) -> RolloutRecord:
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


def report(stable: VersionRef, canary: VersionRef | None = None, **fields: Any) -> ServingReport:
    return ServingReport(
        line="assistant",
        replica=fields.pop("replica", "one"),
        seq=2,
        stable=stable.version,
        canary=canary.version if canary else None,
        share=0.25 if canary else 0,
        reported_at=NOW,
        **fields,
    )


def receipt_of(found: Outcome, versions: Iterable[ModelVersion], decision: RolloutRecord | None) -> Receipt:
    """Return the receipt if the one replica serves what rollout decided."""
    live = [] if decision is None else [report(decision.stable, decision.canary)]
    return make_receipt(found, versions, decision, live)


def summary(receipt: Receipt) -> tuple[str, str | None, str | None, bool]:
    return receipt.stage, receipt.version, receipt.verdict, receipt.serving


def test_event_without_outcome_is_pending() -> None:
    receipt = pending_receipt("r", "e")
    assert (receipt.outcome, receipt.stage, receipt.serving) == ("pending", "pending", False)


def test_event_is_batched_if_no_dataset_includes_its_batch() -> None:
    receipt = receipt_of(outcome(), [version(1, through=16)], rollout(BASE))
    assert summary(receipt) == ("batched", None, None, False)
    assert receipt.batch_id == "assistant-2-17"


def test_receipt_names_the_first_version_with_the_batch() -> None:
    v1, v2, v3 = version(1, through=16), version(2), version(3)
    receipt = receipt_of(outcome(), [v1, v2, v3], rollout(v2.ref))
    assert summary(receipt) == ("serving", v2.ref.version, "passed", True)
    assert (receipt.run_id, receipt.serving_version) == ("run-2", v2.ref.version)


def test_receipt_names_a_later_version_with_the_batch_as_serving() -> None:
    v1, v2 = version(1), version(2, through=40)
    receipt = receipt_of(outcome(), [v1, v2], rollout(v2.ref))
    assert summary(receipt) == ("serving", v1.ref.version, "passed", True)
    assert receipt.serving_version == v2.ref.version


def test_passed_version_takes_precedence_over_failed_one() -> None:
    failed, passed = version(1, "failed"), version(2, through=40)
    assert summary(receipt_of(outcome(), [failed], rollout(BASE))) == (
        "trained",
        failed.ref.version,
        "failed",
        False,
    )
    receipt = receipt_of(outcome(), [failed, passed], rollout(passed.ref))
    assert summary(receipt) == ("serving", passed.ref.version, "passed", True)


def test_passed_version_that_does_not_serve_is_published() -> None:
    v1 = version(1)
    receipt = receipt_of(outcome(), [v1], rollout(BASE))
    assert summary(receipt) == ("published", v1.ref.version, "passed", False)
    assert BASE.version in receipt.detail
    assert summary(receipt_of(outcome(), [v1], None)) == ("published", v1.ref.version, "passed", False)


def test_rollback_ends_serving() -> None:
    v1 = version(1)
    assert receipt_of(outcome(), [v1], rollout(v1.ref)).serving
    assert not receipt_of(outcome(), [v1], rollout(BASE, seq=3)).serving


def test_canary_serves_a_share() -> None:
    v1 = version(1)
    receipt = receipt_of(outcome(), [v1], rollout(BASE, canary=v1.ref))
    assert summary(receipt) == ("canary", v1.ref.version, "passed", True)
    assert "25%" in receipt.detail


def test_failed_version_serves_if_it_was_pinned() -> None:
    failed = version(1, "failed")
    assert summary(receipt_of(outcome(), [failed], rollout(failed.ref))) == (
        "serving",
        failed.ref.version,
        "failed",
        True,
    )


def test_base_contains_no_feedback() -> None:
    base = ModelVersion(line="assistant", ref=BASE, base=BASE.version, base_model="base", created_at=NOW)
    assert summary(receipt_of(outcome(), [base], rollout(BASE))) == ("batched", None, None, False)


def test_receipt_does_not_depend_on_the_order_of_versions() -> None:
    versions = [version(1, through=16), version(2, "failed"), version(3), version(10, through=99)]
    receipts = {receipt_of(outcome(), order, rollout(versions[3].ref)) for order in permutations(versions)}
    assert {summary(receipt) for receipt in receipts} == {
        ("serving", versions[2].ref.version, "passed", True)
    }
    assert len(receipts) == 1


@pytest.mark.parametrize("kind", [kind for kind in OutcomeKind if kind != OutcomeKind.BATCHED])
def test_every_other_outcome_is_final_and_explained(kind: OutcomeKind) -> None:
    receipt = receipt_of(outcome(kind, batch_id=None), [version(1)], rollout(version(1).ref))
    assert (receipt.outcome, receipt.stage, receipt.serving, receipt.version) == (kind, kind, False, None)
    assert len(receipt.detail) > 20


def test_receipt_says_that_a_canary_was_rolled_back() -> None:
    v1 = version(1, through=17)
    end = rollout(BASE).model_copy(
        update={"action": "rollback", "test": canary_test(v1.ref.version), "reason": "v1 is worse"}
    )
    receipt = receipt_of(outcome(), [v1], end)
    assert (receipt.stage, receipt.serving) == ("rolled_back", False)
    assert "v1 is worse" in receipt.detail
    other = end.model_copy(update={"test": canary_test()})
    assert receipt_of(outcome(), [v1], other).stage == "published"


def test_version_that_no_replica_reports_is_ordered_and_not_serving() -> None:
    v1 = version(1)
    for live in ([], [report(BASE)]):
        receipt = make_receipt(outcome(), [v1], rollout(v1.ref), live)
        assert summary(receipt) == ("ordered", v1.ref.version, "passed", False)
        assert "no replica reports" in receipt.detail
    canary = make_receipt(outcome(), [v1], rollout(BASE, canary=v1.ref), [report(BASE)])
    assert (canary.stage, canary.serving) == ("ordered", False)


def test_receipt_has_the_reason_why_a_replica_refuses_the_version() -> None:
    v1 = version(1)
    refused = RefusedVersion(version=v1.ref.version, seq=2, code="bad_artifact", message="it was altered")
    receipt = make_receipt(outcome(), [v1], rollout(v1.ref), [report(BASE, refused=(refused,))])
    assert (receipt.stage, receipt.serving) == ("ordered", False)
    assert "it was altered" in receipt.detail


def test_version_serves_while_replicas_have_not_left_it() -> None:
    v1 = version(1)
    live = [report(v1.ref), report(BASE, replica="two")]
    receipt = make_receipt(outcome(), [v1], rollout(BASE, seq=3), live)
    assert (receipt.stage, receipt.serving_version) == ("serving", v1.ref.version)
    assert "1 of 2 replicas" in receipt.detail
