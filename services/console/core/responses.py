"""Response bodies of the console's API, from its state. They are plain JSON values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from services.console.core.ledger import LedgerCounts
from services.console.core.projection import Projection
from shared.events import from_ms
from shared.live_status import CollectedStatus, LiveStatus, QuarantineStatus, RunProgress
from shared.serving import ServingReport, canary_versions, describe_refusals, stable_versions
from shared.versions import ModelVersion, RolloutRecord

Json = dict[str, Any]
MAX_ROLLOUT_RECORDS: Final = 200


def status(
    state: Projection,
    line: str,
    counts: LedgerCounts,
    *,
    records: int | None,
    since_ms: int | None = None,
    collected: CollectedStatus | None,
    run: RunProgress | None,
    live: Sequence[ServingReport] = (),
) -> Json:
    """Return the body of `GET /api/status`.

    Args:
        state: the console's state.
        line: the line. Only `accepted`, `pending`, the ledger and the dead letters are over all lines.
        counts: the ledger since `since_ms`.
        records: number of records of `feedback.events` since `since_ms`. None if Kafka is not reachable; then
            `accepted` and `pending` are unknown.
        since_ms: start of the ledger, or None if the log still has everything.
        collected: the trainer's progress towards the next run, or None if it is not known.
        run: the progress of the newest run, or None if it is not known.
        live: the reports of the line's replicas that run now.

    """
    batches = state.batches.get(line, {})
    return {
        "line": line,
        "serving": _serving(state.newest_rollout(line), live),
        "ledger": _counts(counts.outcomes),
        "ledger_since": None if since_ms is None else from_ms(since_ms).isoformat(),
        "refused": _counts(counts.refusals),
        "refused_responses": _counts(counts.refused_responses),
        "accepted": None if records is None else counts.accepted(records),
        "pending": None if records is None else counts.pending(records),
        "batches": {"count": len(batches), "examples": sum(examples for _, examples in batches.values())},
        "collected": _live(collected),
        "run": _live(run),
        "versions": len(state.versions.get(line, {})),
        "dead_letters": state.dead_letters,
        "unreadable": state.unreadable,
    }


def versions(state: Projection, line: str, live: Sequence[ServingReport] = ()) -> list[Json]:
    """Return the body of `GET /api/versions`: the base, then the other versions by number.

    A version serves if one of the replicas in `live` reports that.
    """
    serving = stable_versions(live) | canary_versions(live)
    ordered = sorted(state.versions.get(line, {}).values(), key=lambda v: (v.number or 0, v.created_at))
    return [
        _version(
            version,
            serving=version.ref.version in serving,
            erased=version.ref.version in state.erased_versions,
        )
        for version in ordered
    ]


def rollout(state: Projection, line: str) -> list[Json]:
    """Return the body of `GET /api/rollout`: the newest records that the compacted topic still has, newest first."""
    records = state.rollout.get(line, {})
    newest = sorted(records, reverse=True)[:MAX_ROLLOUT_RECORDS]
    return [records[seq].model_dump(mode="json") for seq in newest]


def rollout_state(state: Projection, line: str, live: Sequence[ServingReport] = ()) -> Json | None:
    """Return the body of `GET /api/rollout/{line}`: the decision, and the canary or the last one with its intervals.

    `replicas` says how many of those in `live` serve the stable version.
    None before the line's base is adopted. `test` has the figures of the present step or, after a canary, those of
    the decision that ended it; `points` the intervals of that canary over time.
    """
    record = state.newest_rollout(line)
    if record is None:
        return None
    status, test = state.canaries.get(line), None
    if record.canary is not None:
        is_of_canary = status is not None and status.test.canary.version == record.canary.version
        test = status.test if status is not None and is_of_canary else record.test
    else:
        records = state.rollout[line]
        test = next((records[seq].test for seq in sorted(records, reverse=True) if records[seq].test), None)
    points = () if status is None or test is None else status.points
    if status is not None and test is not None and status.test.canary.version != test.canary.version:
        points = ()
    return {
        "line": line,
        "seq": record.seq,
        "action": record.action,
        "reason": record.reason,
        "decided_at": record.decided_at.isoformat(),
        "stable": record.stable.version,
        "canary": None if record.canary is None else record.canary.version,
        "share": record.share,
        "paused": record.paused,
        "waiting": record.waiting,
        "replicas": _replicas(record, live),
        "waits_for": [] if record.canary is None or test is None else list(test.waits_for),
        "test": None if test is None else test.model_dump(mode="json"),
        "points": [point.model_dump(mode="json") for point in points],
    }


def dead_letters(state: Projection) -> list[Json]:
    """Return the newest dead letters, newest first: where each came from and why it failed, without its content."""
    newest = sorted(state.newest_dead_letters, key=lambda letter: letter[0], reverse=True)
    return [
        {
            "topic": origin.topic,
            "code": origin.error_class,
            "message": origin.message,
            "service": origin.service,
            "at": from_ms(appended_ms).isoformat(),
        }
        for appended_ms, origin in newest
    ]


def command(state: Projection, command_id: str) -> Json | None:
    """Return the body of `GET /api/commands/{command_id}`, or None if the command is unknown."""
    result, sent = state.results.get(command_id), state.commands.get(command_id)
    issued_by = sent.issued_by if sent is not None else None
    if result is not None:
        body: Json = {
            "command_id": command_id,
            "issued_by": issued_by,
            "status": result.status,
            "message": result.message,
            "executor": result.executor,
            "finished_at": result.finished_at.isoformat(),
        }
        return body if result.replayed is None else body | {"replayed": len(result.replayed.positions)}
    if sent is None:
        return None
    message = f"{sent.kind} for line {sent.line} has not been executed yet"
    return {"command_id": command_id, "issued_by": issued_by, "status": "pending", "message": message}


def quarantine(known: QuarantineStatus | None) -> Json:
    """Return the body of `GET /api/quarantine`. `total` is null while the trainer's status is not known."""
    if known is None:
        return {"held": [], "total": None, "updated_at": None}
    return {
        "held": [event._asdict() for event in known.held],
        "total": known.total,
        "updated_at": known.updated_at.isoformat(),
    }


def _counts(counter: Counter[str]) -> dict[str, int]:
    return {str(name): count for name, count in sorted(counter.items()) if count}


def _live(record: LiveStatus | None) -> Json | None:
    return None if record is None else record.model_dump(mode="json", exclude_none=True)


def _replicas(record: RolloutRecord, live: Sequence[ServingReport]) -> Json:
    """Return how many replicas run, how many serve the record's versions, and why others refuse it."""
    version = record.stable.version
    return {
        "live": len(live),
        "serving": sum(report.stable == version for report in live),
        "canary": sum(
            record.canary is not None and report.canary == record.canary.version for report in live
        ),
        "refused": "".join(
            describe_refusals(ref.version, live) for ref in (record.stable, record.canary) if ref is not None
        ).strip()
        or None,
    }


def _serving(record: RolloutRecord | None, live: Sequence[ServingReport]) -> Json | None:
    if record is None:
        return None
    return {
        "version": record.stable.version,
        "seq": record.seq,
        "since": record.decided_at.isoformat(),
        "reason": record.reason,
        "canary": record.canary.version if record.canary is not None else None,
        "share": record.share,
        "paused": record.paused,
        "waiting": record.waiting,
        "earlier": [ref.version for ref in record.history],
        "replicas": _replicas(record, live),
    }


def _version(version: ModelVersion, *, serving: bool, erased: bool) -> Json:
    """Return one version. `erased`: some of its data was erased since, which its immutable record does not know."""
    gate = version.gate
    return {
        "version": version.ref.version,
        "kind": version.ref.kind,
        "number": version.number,
        "verdict": gate.verdict if gate else None,
        "reasons": list(gate.reasons) if gate else [],
        "gated_against": gate.gated_against if gate else None,
        "figures": [figure.model_dump(mode="json") for figure in gate.figures] if gate else [],
        "dataset": version.dataset.model_dump(mode="json") if version.dataset else None,
        "run_id": version.run_id,
        "base": version.base,
        "base_model": version.base_model,
        "reproducible": version.reproducible and not erased,
        "created_at": version.created_at.isoformat(),
        "serving": serving,
    }
