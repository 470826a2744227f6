"""Garbage collection of the artifact store, by operator command.

These artifacts are in use and never deleted:

- of every line, what the newest rollout record names: stable (which includes a pinned version), canary, and the
  former stable versions to which rollbacks return;
- of every line, versions newer than stable that passed the gate, and the newest versions with any verdict;
- of other lines, every version: their own trainers collect them;
- of this line, the version that the open run is compared with.

Artifacts that were put recently are kept as well, because a run may be about to publish them. An artifact that no
version names was left by a run that was never published.

Each artifact is checked again against the log as it is when the artifact is about to be deleted. One that another
process holds is kept (`ArtifactStore.discard`).
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from services.trainer.commands.command_table import CommandKind, CommandTable
from services.trainer.run import run_table
from services.trainer.settings import TrainerSettings
from shared.errors import LoopwrightError
from shared.ports import ArtifactStore, Clock, Stored
from shared.versions import ModelVersion, RolloutRecord, VersionRef

MAX_PER_COMMAND: Final = 50
"""Artifacts that one command deletes at most, because the trainer does nothing else meanwhile."""
MAX_NAMED: Final = 10
"""Deleted artifacts that a command's result names at most."""
log = structlog.get_logger(__name__)
ReadAllLines = Callable[[], tuple[Sequence[ModelVersion], Sequence[RolloutRecord]]]
"""Reads all versions and all rollout records of all lines from the log. Raises `BrokerUnavailable`."""


def artifacts_in_use(
    line: str,
    versions: Sequence[ModelVersion],
    rollouts: Sequence[RolloutRecord],
    compared: Iterable[VersionRef],
    keep: int,
) -> dict[str, str]:
    """Return the digests of artifacts in use, each with the reason to keep it.

    Args:
        line: The line whose artifacts may be collected.
        versions: Versions of all lines.
        rollouts: Rollout records of all lines.
        compared: Versions that open runs of `line` are compared with.
        keep: How many of the newest versions of each line to keep.

    """
    reasons = {version.ref.digest: "of another line" for version in versions if version.line != line}
    for name in {version.line for version in versions}:
        of_line = sorted(
            (version for version in versions if version.line == name), key=lambda version: version.number or 0
        )
        reasons |= {version.ref.digest: "newest" for version in of_line[-keep:]}
        candidates = _candidates(of_line, _newest_record(name, rollouts))
        reasons |= {version.ref.digest: "candidate for rollout" for version in candidates}
    reasons |= {ref.digest: "compared with the open run" for ref in compared}
    for name in {record.line for record in rollouts}:
        record = _newest_record(name, rollouts)
        waiting = [version.ref for version in versions if record and version.ref.version == record.waiting]
        reasons |= {ref.digest: "candidate for rollout" for ref in waiting}
        refs = (*record.history, record.previous, record.canary, record.stable) if record is not None else ()
        reasons |= {ref.digest: "serving or served before" for ref in refs if ref is not None}
    return reasons


def _newest_record(line: str, rollouts: Sequence[RolloutRecord]) -> RolloutRecord | None:
    return max(
        (record for record in rollouts if record.line == line), key=lambda record: record.seq, default=None
    )


def _candidates(versions: Sequence[ModelVersion], record: RolloutRecord | None) -> list[ModelVersion]:
    """Return the versions that passed the gate and are newer than stable, or all that passed if stable is unknown."""
    stable = record.stable.version if record is not None else None
    stable_number = next((v.number or 0 for v in versions if v.ref.version == stable), 0)
    return [v for v in versions if v.gate and v.gate.verdict == "passed" and (v.number or 0) > stable_number]


@dataclass(frozen=True, slots=True)
class ArtifactCollector:
    """Garbage collector of one line's artifacts. Not thread-safe."""

    settings: TrainerSettings
    db: sqlite3.Connection
    commands: CommandTable
    store: ArtifactStore
    read_all_lines: ReadAllLines
    clock: Clock

    def run_commands(self) -> None:
        """Execute the pending garbage collection commands."""
        for kind in (CommandKind.COLLECT_GARBAGE_DRY_RUN, CommandKind.COLLECT_GARBAGE):
            pending = self.commands.pending(kind)
            if not pending:
                continue
            try:
                message = self.collect(dry_run=kind == CommandKind.COLLECT_GARBAGE_DRY_RUN)
            except (LoopwrightError, OSError) as error:
                self.commands.settle(pending, "refused", f"garbage collection stopped: {error}")
            else:
                self.commands.settle(pending, "done", message)

    def collect(self, *, dry_run: bool) -> str:
        """Delete unused artifacts, or only list them. Return the message for the operator.

        Raises `LoopwrightError` if the log or the store is unavailable.
        """
        grace_start_ms = self.clock.now_ms() - round(self.settings.artifact_grace_hours * 3_600_000)
        in_use, stored = self._in_use(), self.store.stored()
        unused = [
            artifact
            for artifact in stored
            if artifact.digest not in in_use and artifact.put_ms < grace_start_ms
        ]
        selected = unused if dry_run else unused[:MAX_PER_COMMAND]
        deleted = [artifact for artifact in selected if dry_run or self._delete(artifact, grace_start_ms)]
        leftovers = 0 if dry_run else self.store.sweep(grace_start_ms)
        verb = "would be deleted" if dry_run else "deleted"
        parts = [f"{len(deleted)} of {len(stored)} artifacts {verb}, {self._size_and_names(deleted)}"]
        if len(unused) > len(selected):
            parts.append(f"{len(unused) - len(selected)} more need another command")
        if len(deleted) < len(selected):
            parts.append(f"{len(selected) - len(deleted)} kept because they are in use again")
        if leftovers:
            parts.append(f"{leftovers} leftovers of interrupted writers deleted")
        parts.append(f"kept: {_kept_counts(stored, in_use, deleted)}")
        return "; ".join(parts)

    def _delete(self, artifact: Stored, grace_start_ms: int) -> bool:
        """Delete an artifact unless it was put, promoted or pinned meanwhile. Return whether it was deleted."""
        deleted = self.store.discard(
            artifact.digest, unless=lambda now: now.put_ms >= grace_start_ms or now.digest in self._in_use()
        )
        if deleted:
            log.info("artifact_deleted", digest=artifact.digest, size=artifact.size)
        return deleted

    def _in_use(self) -> dict[str, str]:
        versions, rollouts = self.read_all_lines()
        run = run_table.open_run(self.db)
        compared = [run.config.stable] if run is not None else []
        return artifacts_in_use(self.settings.line, versions, rollouts, compared, self.settings.artifact_keep)

    def _size_and_names(self, artifacts: Sequence[Stored]) -> str:
        size = f"{sum(artifact.size for artifact in artifacts) / 1e6:.1f} MB"
        if not artifacts:
            return size
        versions = {version.ref.digest: version.ref.version for version in self.read_all_lines()[0]}
        names = [
            versions.get(artifact.digest, f"{artifact.digest[:8]} (of no version)")
            for artifact in artifacts[:MAX_NAMED]
        ]
        return f"{size}: {', '.join(names)}{', ...' if len(artifacts) > MAX_NAMED else ''}"


def _kept_counts(stored: Sequence[Stored], reasons: Mapping[str, str], deleted: Sequence[Stored]) -> str:
    deleted_digests = {artifact.digest for artifact in deleted}
    counts = Counter(
        reasons.get(artifact.digest, "put recently")
        for artifact in stored
        if artifact.digest not in deleted_digests
    )
    return ", ".join(f"{count} ({reason})" for reason, count in sorted(counts.items())) or "none"
