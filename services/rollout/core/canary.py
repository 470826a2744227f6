"""Rules of a canary: how it starts, and what a finding about it changes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.rollout.core.decision import (
    Decision,
    KnownVersion,
    LineState,
    Lookup,
    extend,
    history_after,
    is_allowed,
    keep_serving,
    publish,
    was_paused_by_person,
)
from services.rollout.core.finding import Finding
from services.rollout.core.policy import CanaryPolicy
from shared.versions import RolloutRecord

ROLLED_BACK = "the version is never promoted automatically again, and promotion of the same data is paused"


def start(
    state: LineState,
    record: RolloutRecord,
    version: KnownVersion,
    why: str,
    policy: CanaryPolicy,
    now_ms: int,
    command_id: str | None = None,
) -> Decision:
    """Give a version that passed its gate against the stable version to the first share of users."""
    share = policy.shares[0]
    reason = f"{version.ref.version} passed its gate against {record.stable.version}; {why}: canary for {share:.0%}"
    return publish(
        state.model_copy(update={"waiting": None, "excluded": None}),
        "canary",
        record.stable,
        record.history,
        reason,
        now_ms,
        command_id,
        canary=version.ref,
        share=share,
    )


def on_finding(
    state: LineState,
    record: RolloutRecord,
    finding: Finding,
    lookup: Lookup,
    policy: CanaryPolicy,
    now_ms: int,
) -> Decision:
    """Carry out what a finding about the canary of `record` says. Waiting changes nothing."""
    canary = record.canary
    known = None if canary is None else lookup(canary.version)
    if canary is None or known is None or finding.what == "wait":
        return Decision(state)
    if finding.what == "roll_back":
        return roll_back(state, record, known, finding.reason, lookup, policy, now_ms)
    if finding.what == "promote":
        history = history_after(record, canary, stable_may_serve=is_allowed(record.stable, lookup))
        done = publish(state, "promote", canary, history, finding.reason, now_ms)
        return extend(done, gate_again=state.waiting)
    if finding.what == "advance":
        share = policy.next_share(record.share) or record.share
        reason = f"{finding.reason}: canary for {share:.0%}"
        return publish(
            state, "canary", record.stable, record.history, reason, now_ms, canary=canary, share=share
        )
    if finding.what == "pause":
        reason = (
            f"{canary.version} is {finding.reason}. It keeps its {record.share:.0%}; decide with `loopwright rollout "
            f"promote {canary.version}` or `rollback`, or let it go on with `resume`"
        )
        return keep_serving(state, record, "pause", reason, now_ms, paused=True)
    return keep_serving(state, record, "hold", finding.reason, now_ms, paused=record.paused)


def roll_back(
    state: LineState,
    record: RolloutRecord,
    canary: KnownVersion,
    reason: str,
    lookup: Lookup,
    policy: CanaryPolicy,
    now_ms: int,
    command_id: str | None = None,
) -> Decision:
    """Take the canary from its users. The stable version serves everyone, as before it."""
    name, paused_by_person = canary.ref.version, was_paused_by_person(state, record)
    stable = lookup(record.stable.version)
    parts = [state.excluded or {}, canary.through, {} if stable is None else stable.through]
    state = state.model_copy(
        update={
            "waiting": None if state.waiting == name else state.waiting,
            "excluded": None if paused_by_person else highest(parts),
            "cool_until_ms": now_ms + policy.cooldown_ms,
        }
    )
    decision = publish(
        state,
        "rollback",
        record.stable,
        record.history,
        f"{reason}; {ROLLED_BACK}",
        now_ms,
        command_id,
        paused=True,
    )
    return extend(decision, versions=(canary.model_copy(update={"rolled_back": True}),))


def highest(parts: Sequence[Mapping[int, int]]) -> dict[int, int]:
    """Return the highest batch number of each partition."""
    return {
        partition: max(part.get(partition, 0) for part in parts)
        for partition in sorted({partition for part in parts for partition in part})
    }
