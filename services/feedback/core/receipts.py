"""Receipts: the outcome of a feedback event, followed to its batch, version and serving state.

A `batched` event is followed to the first version whose dataset includes its batch, to that version's verdict, and to
whether any version whose dataset includes the batch is serving now.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from shared.events import Outcome, OutcomeKind, RefusalReason
from shared.serving import ServingReport, canary_versions, describe_refusals, stable_versions
from shared.versions import ModelVersion, RolloutRecord

PENDING: Final = "pending"

_DETAILS: Final[dict[OutcomeKind, str]] = {
    OutcomeKind.SUPERSEDED: "A newer signal from the same user replaced it.",
    OutcomeKind.DUPLICATE: "It repeats feedback that was already recorded, so it is counted once.",
    OutcomeKind.RETRACTED: "The user retracted it before it became part of a batch.",
    OutcomeKind.APPLIED_RETRACT: "It retracted the event that it names.",
    OutcomeKind.TALLY_ONLY: "It is counted, but it contains nothing to train on.",
    OutcomeKind.UNMATCHED: "The response that it refers to never arrived.",
    OutcomeKind.LATE: "It arrived after the feedback window of its response had closed.",
    OutcomeKind.REFUSED: "It was refused and changes nothing.",
    OutcomeKind.DEAD: "It could not be processed. It is kept as a dead letter and can be replayed.",
    OutcomeKind.ERASED: "It was erased at the user's request.",
}


_REMEDIES: Final[dict[RefusalReason, str]] = {
    RefusalReason.CONFLICT: "The first record with this id stands. Send the change under a new id.",
    RefusalReason.NOT_YOURS: "Only the user who sent an event can retract it, and a retraction cannot be retracted.",
    RefusalReason.TOO_MANY: "Retract earlier feedback on this response, or send feedback on another one.",
    RefusalReason.TOO_LARGE: "Send shorter feedback, or record shorter conversations.",
    RefusalReason.RESPONSE_LATE: "Record responses within 30 days of the feedback on them.",
    RefusalReason.UNUSABLE: "Send the feedback again under a new id, and report the case to the operator.",
}


class NoOutcome(Enum):
    """Reason why a lookup returns no outcome."""

    PENDING = "pending"
    """The event is in the log and has no outcome yet."""
    NOT_FOUND = "not_found"
    """The place that was searched has no record of the event."""


class Receipt(BaseModel):
    """Response body of `GET /v1/feedback/{response_id}/{event_id}`."""

    model_config = ConfigDict(frozen=True)
    response_id: str
    event_id: str
    outcome: str = Field(description="The event's outcome, or `pending`.")
    batch_id: str | None = Field(None, description="The batch that contains the event's example.")
    run_id: str | None = Field(None, description="The run that trained `version`.")
    version: str | None = Field(
        None,
        description="The first version whose dataset includes the batch and that passed the gate; if none passed, the "
        "first one.",
    )
    verdict: str | None = Field(None, description="The gate's verdict on `version`.")
    serving: bool = Field(
        False,
        description="Whether a replica of inference reports that it serves a version whose dataset includes the batch.",
    )
    serving_version: str | None = Field(None, description="That serving version.")
    reason: RefusalReason | None = Field(None, description="Why it was refused, if the outcome is `refused`.")
    remedy: str | None = Field(None, description="What to do about the outcome, if anything can be done.")
    stage: str = Field(
        description="The outcome. A batched event moves on from `batched` to `trained` (the gate passed no version "
        "with it), `published`, `ordered` (by rollout, but no replica serves it yet), `canary` and `serving`; a canary "
        "that was rolled back is `rolled_back` until the next decision."
    )
    detail: str = Field(description="The same in a sentence.")


def pending_receipt(response_id: str, event_id: str) -> Receipt:
    """Return the receipt of an event that is in the log and has no outcome yet."""
    return Receipt(
        response_id=response_id,
        event_id=event_id,
        outcome=PENDING,
        stage=PENDING,
        detail="It is in the log, waiting for its response or for its batch to be cut.",
    )


def make_receipt(
    outcome: Outcome,
    versions: Iterable[ModelVersion],
    rollout: RolloutRecord | None,
    live: Sequence[ServingReport],
) -> Receipt:
    """Return the receipt of an event with this outcome.

    Args:
        outcome: the event's outcome.
        versions: all versions of the outcome's line.
        rollout: the newest rollout record of that line.
        live: the reports of that line's replicas that run now.

    """
    if outcome.outcome != OutcomeKind.BATCHED or outcome.batch_id is None:
        return _final(outcome)
    batch_id = outcome.batch_id
    trained = sorted(
        (v for v in versions if v.ref.kind == "lora" and v.dataset is not None and v.dataset.holds(batch_id)),
        key=lambda v: v.number or 0,
    )
    return _trained(outcome, trained, rollout, live) if trained else _batched(outcome)


def _event_id(outcome: Outcome) -> str:
    assert outcome.event_id is not None, "the outcome of a response has no receipt"
    return outcome.event_id


def _final(outcome: Outcome) -> Receipt:
    detail = _DETAILS.get(outcome.outcome, "")
    return Receipt(
        response_id=outcome.response_id,
        event_id=_event_id(outcome),
        outcome=outcome.outcome,
        batch_id=outcome.batch_id,
        reason=outcome.reason,
        remedy=_REMEDIES.get(outcome.reason) if outcome.reason is not None else None,
        stage=outcome.outcome,
        detail=f"{detail} {outcome.detail}" if outcome.detail else detail,
    )


def _batched(outcome: Outcome) -> Receipt:
    return Receipt(
        response_id=outcome.response_id,
        event_id=_event_id(outcome),
        outcome=outcome.outcome,
        batch_id=outcome.batch_id,
        stage="batched",
        detail=f"It is in batch {outcome.batch_id}. No dataset includes that batch yet.",
    )


def _trained(
    outcome: Outcome,
    trained: Sequence[ModelVersion],
    rollout: RolloutRecord | None,
    live: Sequence[ServingReport],
) -> Receipt:
    version = next((v for v in trained if _verdict(v) == "passed"), trained[0])
    names = [v.ref.version for v in trained]
    stable, canary = stable_versions(live), canary_versions(live)
    serving = next((name for found in (stable, canary) for name in reversed(names) if name in found), None)
    if serving is not None:
        stage, detail = _serving_stage(serving, live)
    else:
        stage, detail = _stage(version, set(names), rollout, live)
    return Receipt(
        response_id=outcome.response_id,
        event_id=_event_id(outcome),
        outcome=outcome.outcome,
        batch_id=outcome.batch_id,
        run_id=version.run_id,
        version=version.ref.version,
        verdict=_verdict(version),
        serving=serving is not None,
        serving_version=serving,
        stage=stage,
        detail=f"The dataset of {version.ref.version} includes its batch {outcome.batch_id}. {detail}",
    )


def _serving_stage(serving: str, live: Sequence[ServingReport]) -> tuple[str, str]:
    """Return the stage of a version that replicas serve."""
    count = sum(report.stable == serving for report in live)
    if count:
        return "serving", f"{serving} is serving now, on {count} of {len(live)} replicas."
    share = max(report.share for report in live if report.canary == serving)
    return "canary", f"{serving} is the canary and serves {share:.0%} of the users."


def _stage(
    version: ModelVersion, names: set[str], rollout: RolloutRecord | None, live: Sequence[ServingReport]
) -> tuple[str, str]:
    """Return the stage of a version that no replica serves, although the dataset of all `names` has the batch."""
    refs = (rollout.stable, rollout.canary) if rollout is not None else ()
    ordered = next((ref.version for ref in refs if ref is not None and ref.version in names), None)
    if ordered is not None:
        refusals = describe_refusals(ordered, live)
        return (
            "ordered",
            f"Rollout has ordered {ordered}, but no replica reports that it serves it.{refusals}",
        )
    others = f"; {', '.join(sorted(stable_versions(live)))} is" if live else ""
    if rollout is not None and _was_rolled_back(version, rollout):
        return "rolled_back", f"It was rolled back: {rollout.reason}."
    if _verdict(version) == "passed":
        return "published", f"It passed the gate but is not serving{others}."
    reasons = "; ".join(version.gate.reasons) if version.gate is not None else ""
    return (
        "trained",
        f"The gate's verdict is {_verdict(version)}{f' ({reasons})' if reasons else ''}, so it does not serve.",
    )


def _was_rolled_back(version: ModelVersion, rollout: RolloutRecord) -> bool:
    """Return whether the newest decision about a canary rolled back this version."""
    return (
        rollout.action == "rollback"
        and rollout.test is not None
        and rollout.test.canary.version == version.ref.version
    )


def _verdict(version: ModelVersion) -> str | None:
    return version.gate.verdict if version.gate is not None else None
