"""Which artifacts nothing needs any more, and the order to take them out of the store.

Kept are, of every line: what the newest rollout record names (stable, the one before it, canary; a pinned version is
stable), what passed the gate since stable was made and may take over, and the newest versions whatever their verdict;
of this line what its open run is compared with; and everything that was put lately, whatever it is: a run that is about
to publish it may have put it. Other lines' versions are theirs to collect. What no version names is of a run that never
came to publish it.

Each is looked at once more when it is about to go, against the log as it is then; who holds it keeps it (`ports.py`).
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from services.trainer.commands.command_table import COLLECT, LOOK_FOR_GARBAGE, CommandTable
from services.trainer.run import run_table
from services.trainer.settings import TrainerSettings
from shared.errors import LoopwrightError
from shared.ports import ArtifactStore, Clock, Stored
from shared.versions import ModelVersion, RolloutRecord, VersionRef

MAX_PER_COMMAND: Final = 50
"""Taken out by one order: collecting stands still meanwhile."""
MAX_NAMED: Final = 10
log = structlog.get_logger(__name__)
ReadAllLines = Callable[[], tuple[Sequence[ModelVersion], Sequence[RolloutRecord]]]
"""All versions and all rollout records of all lines, as the log has them now. Raises `BrokerUnavailable`."""


def artifacts_in_use(
    line: str,
    versions: Sequence[ModelVersion],
    rollouts: Sequence[RolloutRecord],
    comparing: Iterable[VersionRef],
    keep: int,
) -> dict[str, str]:
    """Digest -> why it is kept. `comparing`: with what open runs of `line` are compared. `keep`: of the newest."""
    kept = {version.ref.digest: "of another line" for version in versions if version.line != line}
    for name in {version.line for version in versions}:
        ours = sorted(
            (version for version in versions if version.line == name), key=lambda version: version.number or 0
        )
        kept |= {version.ref.digest: "newest" for version in ours[-keep:]}
        kept |= {
            version.ref.digest: "may take over" for version in _candidates(ours, _newest(name, rollouts))
        }
    kept |= {ref.digest: "a run is compared with it" for ref in comparing}
    for name in {record.line for record in rollouts}:
        record = _newest(name, rollouts)
        refs = (record.previous, record.canary, record.stable) if record is not None else ()
        kept |= {ref.digest: "serves, or did before" for ref in refs if ref is not None}
    return kept


def _newest(line: str, rollouts: Sequence[RolloutRecord]) -> RolloutRecord | None:
    return max((one for one in rollouts if one.line == line), key=lambda one: one.seq, default=None)


def _candidates(versions: Sequence[ModelVersion], record: RolloutRecord | None) -> list[ModelVersion]:
    """Passed, and newer than what serves: all that passed where nothing is known to serve."""
    stable = record.stable.version if record is not None else None
    serving = next((one.number or 0 for one in versions if one.ref.version == stable), 0)
    return [
        one for one in versions if one.gate and one.gate.verdict == "passed" and (one.number or 0) > serving
    ]


@dataclass(frozen=True, slots=True)
class ArtifactCollector:
    """Of one line's trainer. One thread."""

    settings: TrainerSettings
    db: sqlite3.Connection
    orders: CommandTable
    store: ArtifactStore
    logged: ReadAllLines
    clock: Clock

    def turn(self) -> None:
        """Carries out what is asked for."""
        for kind in (LOOK_FOR_GARBAGE, COLLECT):
            asked = self.orders.undecided(kind)
            if not asked:
                continue
            try:
                told = self.collect(dry=kind == LOOK_FOR_GARBAGE)
            except (LoopwrightError, OSError) as error:
                self.orders.settle(asked, "refused", f"nothing more was collected: {error}")
            else:
                self.orders.settle(asked, "done", told)

    def collect(self, *, dry: bool) -> str:
        """Returns what to say of it. Raises `LoopwrightError` where log or store are away."""
        young_ms = self.clock.now_ms() - round(self.settings.artifact_grace_hours * 3_600_000)
        kept, stored = self._wanted(), self.store.stored()
        old = [one for one in stored if one.digest not in kept and one.put_ms < young_ms]
        gone = old if dry else [one for one in old[:MAX_PER_COMMAND] if self._went(one, young_ms)]
        pieces = 0 if dry else self.store.sweep(young_ms)
        told = [_of(gone, "would go" if dry else "went", len(stored), self._names())]
        if len(old) > MAX_PER_COMMAND and not dry:
            told.append(f"{len(old) - MAX_PER_COMMAND} more wait for another order")
        if len(gone) < len(old[:MAX_PER_COMMAND]):
            told.append(f"{len(old[:MAX_PER_COMMAND]) - len(gone)} were held or needed again")
        if pieces:
            told.append(f"{pieces} pieces left by interrupted writers went too")
        told.append(f"kept: {_why(stored, kept, gone)}")
        return "; ".join(told)

    def _went(self, one: Stored, young_ms: int) -> bool:
        """Looks once more, when nobody can put it: it may have been put, promoted or pinned since."""
        went = self.store.discard(
            one.digest, unless=lambda now: now.put_ms >= young_ms or now.digest in self._wanted()
        )
        if went:
            log.info("artifact_collected", digest=one.digest, size=one.size)
        return went

    def _wanted(self) -> dict[str, str]:
        versions, rollouts = self.logged()
        run = run_table.open_run(self.db)
        comparing = [run.config.stable] if run is not None else []
        return artifacts_in_use(
            self.settings.line, versions, rollouts, comparing, self.settings.artifact_keep
        )

    def _names(self) -> dict[str, str]:
        return {version.ref.digest: version.ref.version for version in self.logged()[0]}


def _of(gone: Sequence[Stored], verb: str, of: int, names: Mapping[str, str]) -> str:
    size = sum(one.size for one in gone) / 1e6
    told = f"{len(gone)} of {of} artifacts {verb}, {size:.1f} MB"
    if not gone:
        return told
    named = [names.get(one.digest, f"{one.digest[:8]}, which no version names") for one in gone[:MAX_NAMED]]
    return f"{told}: {', '.join(named)}{', ...' if len(gone) > MAX_NAMED else ''}"


def _why(stored: Sequence[Stored], kept: Mapping[str, str], gone: Sequence[Stored]) -> str:
    away = {one.digest for one in gone}
    counts = Counter(kept.get(one.digest, "put lately") for one in stored if one.digest not in away)
    return ", ".join(f"{count} ({reason})" for reason, count in sorted(counts.items())) or "none"
