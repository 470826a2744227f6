"""From facts to a receipt: what became of one feedback event. Pure.

A `batched` event is followed on: batch -> the first version whose dataset read that batch -> its verdict -> whether
that version, or another that read the batch too, answers users now.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from shared.events import Outcome, OutcomeKind
from shared.versions import ModelVersion, RolloutRecord

PENDING = "pending"

_SAYS: dict[OutcomeKind, str] = {
    OutcomeKind.SUPERSEDED: "A newer signal of the same user took its place.",
    OutcomeKind.DUPLICATE: "It said again what was already there, and counts once.",
    OutcomeKind.RETRACTED: "It was taken back before it was in a batch.",
    OutcomeKind.APPLIED_RETRACT: "It took back the event that it names.",
    OutcomeKind.TALLY_ONLY: "It is counted, but nothing can be trained from it.",
    OutcomeKind.UNMATCHED: "The response that it is about never came.",
    OutcomeKind.LATE: "It came after the response's window had closed.",
    OutcomeKind.DEAD: "It could not be processed and lies in the dead letters, from where it can be replayed.",
    OutcomeKind.ERASED: "It was erased at its user's request.",
}


class Receipt(BaseModel):
    """The answer to `GET /v1/feedback/{response_id}/{event_id}`.

    `version` is the first that read the event's batch (the first that passed, if one did); `serving_version` the one
    with it that answers users now. `stage` is the outcome, and for `batched` how far it came: `batched`, `trained`
    (the gate let no version with it pass), `published`, `canary`, `serving`.
    """

    model_config = ConfigDict(frozen=True)
    response_id: str
    event_id: str
    outcome: str
    batch_id: str | None = None
    run_id: str | None = None
    version: str | None = None
    verdict: str | None = None
    serving: bool = False
    serving_version: str | None = None
    stage: str
    detail: str


def pending_receipt(response_id: str, event_id: str) -> Receipt:
    """In the log, without an outcome: waiting for its response, or in a batch that is still open."""
    return Receipt(
        response_id=response_id,
        event_id=event_id,
        outcome=PENDING,
        stage=PENDING,
        detail="It is in the log and waits for its response, or for its batch to be cut.",
    )


def make_receipt(
    outcome: Outcome, versions: Iterable[ModelVersion], rollout: RolloutRecord | None
) -> Receipt:
    """`versions` and `rollout` (the newest record) are those of the outcome's line."""
    if outcome.outcome != OutcomeKind.BATCHED or outcome.batch_id is None:
        return _ended(outcome)
    batch_id = outcome.batch_id
    holding = [
        v for v in versions if v.ref.kind == "lora" and v.dataset is not None and v.dataset.holds(batch_id)
    ]
    holding.sort(key=lambda v: v.number or 0)
    if not holding:
        return _batched(outcome)
    return _trained(outcome, holding, rollout)


def _ended(outcome: Outcome) -> Receipt:
    says = _SAYS.get(outcome.outcome, "")
    return Receipt(
        response_id=outcome.response_id,
        event_id=outcome.event_id,
        outcome=outcome.outcome,
        batch_id=outcome.batch_id,
        stage=outcome.outcome,
        detail=f"{says} {outcome.detail}" if outcome.detail else says,
    )


def _batched(outcome: Outcome) -> Receipt:
    return Receipt(
        response_id=outcome.response_id,
        event_id=outcome.event_id,
        outcome=outcome.outcome,
        batch_id=outcome.batch_id,
        stage="batched",
        detail=f"It is in batch {outcome.batch_id}; no version has been trained since.",
    )


def _trained(outcome: Outcome, holding: list[ModelVersion], rollout: RolloutRecord | None) -> Receipt:
    first = next((v for v in holding if _verdict(v) == "passed"), holding[0])
    names = {v.ref.version for v in holding}
    stable = rollout.stable.version if rollout is not None else None
    canary = rollout.canary.version if rollout is not None and rollout.canary is not None else None
    serving = next((name for name in (stable, canary) if name in names), None)
    stage, says = _stage(first, serving, stable, rollout)
    return Receipt(
        response_id=outcome.response_id,
        event_id=outcome.event_id,
        outcome=outcome.outcome,
        batch_id=outcome.batch_id,
        run_id=first.run_id,
        version=first.ref.version,
        verdict=_verdict(first),
        serving=serving is not None,
        serving_version=serving,
        stage=stage,
        detail=f"Its batch {outcome.batch_id} was read for {first.ref.version}. {says}",
    )


def _stage(
    first: ModelVersion, serving: str | None, stable: str | None, rollout: RolloutRecord | None
) -> tuple[str, str]:
    if serving is not None and serving == stable:
        return "serving", f"{serving} answers users now."
    if serving is not None and rollout is not None:
        return "canary", f"{serving} is tried on {rollout.share:.0%} of the users."
    if _verdict(first) == "passed":
        return "published", f"It passed the gate and does not serve{f'; {stable} does' if stable else ''}."
    why = "; ".join(first.gate.reasons) if first.gate is not None else ""
    return (
        "trained",
        f"The gate's verdict is {_verdict(first)}{f' ({why})' if why else ''}: it does not serve.",
    )


def _verdict(version: ModelVersion) -> str | None:
    return version.gate.verdict if version.gate is not None else None
