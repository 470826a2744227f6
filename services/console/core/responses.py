"""What the console answers, from its state. Pure: plain JSON values."""

from __future__ import annotations

from typing import Any

from services.console.core.projection import Projection
from shared.events import from_ms
from shared.versions import ModelVersion, RolloutRecord

Json = dict[str, Any]
MAX_RECORDS = 200


def status(
    state: Projection, line: str, *, accepted: int | None, collected: Json | None, run: Json | None
) -> Json:
    """The answer to `GET /api/status`. `accepted` and the ledger are over all lines, the rest is of this line.

    `accepted` is None where Kafka does not answer; then `pending` is unknown too.
    """
    batches = state.batches.get(line, {})
    decided = state.decided()
    return {
        "line": line,
        "serving": _serving(state.serving(line)),
        "ledger": {str(outcome): count for outcome, count in sorted(state.ledger.items()) if count},
        "accepted": accepted,
        "pending": None if accepted is None else max(0, accepted - decided),
        "batches": {"count": len(batches), "examples": sum(examples for _, examples in batches.values())},
        "collected": collected,
        "run": run,
        "versions": len(state.versions.get(line, {})),
        "dead_letters": state.dead_letters,
        "unreadable": state.unreadable,
    }


def _serving(record: RolloutRecord | None) -> Json | None:
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
    }


def versions(state: Projection, line: str) -> list[Json]:
    """The answer to `GET /api/versions`: the base, then by number."""
    record = state.serving(line)
    serving = {ref.version for ref in (record.stable, record.canary) if ref is not None} if record else set()
    known = sorted(state.versions.get(line, {}).values(), key=lambda v: (v.number or 0, v.created_at))
    return [
        _version(version, version.ref.version in serving, whole=version.ref.version not in state.erased)
        for version in known
    ]


def _version(version: ModelVersion, serving: bool, *, whole: bool) -> Json:
    """`whole`: nothing that it was trained from was erased. A published record never changes, so it cannot say so."""
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
        "reproducible": version.reproducible and whole,
        "created_at": version.created_at.isoformat(),
        "serving": serving,
    }


def rollout(state: Projection, line: str) -> list[Json]:
    """The answer to `GET /api/rollout`: newest first, as many as the compacted topic still holds, at most 200."""
    records = state.rollout.get(line, {})
    return [records[seq].model_dump(mode="json") for seq in sorted(records, reverse=True)[:MAX_RECORDS]]


def dead_letters(state: Projection) -> list[Json]:
    """The last dead letters, newest first: why each, never what it held."""
    newest = sorted(state.letters, key=lambda letter: letter[0], reverse=True)
    return [
        {
            "topic": origin.topic,
            "code": origin.error_class,
            "message": origin.message,
            "service": origin.service,
            "at": from_ms(at_ms).isoformat(),
        }
        for at_ms, origin in newest
    ]


def command(state: Projection, command_id: str) -> Json | None:
    """The answer to `GET /api/commands/{command_id}`; None where nothing is known of it."""
    result = state.results.get(command_id)
    told: Json
    if result is not None:
        told = {
            "command_id": command_id,
            "status": result.status,
            "message": result.message,
            "executor": result.executor,
            "finished_at": result.finished_at.isoformat(),
        }
        return told if result.replayed is None else told | {"replayed": len(result.replayed.positions)}
    known = state.commands.get(command_id)
    if known is None:
        return None
    message = f"{known.kind} for {known.line} waits to be carried out"
    return {"command_id": command_id, "status": "pending", "message": message}
