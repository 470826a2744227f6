"""Batches, examples and a trainer over the log in memory, as the trainer's tests need them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from services.trainer.consumer import TOPICS_READ
from services.trainer.database import open_database
from services.trainer.dataset import batch_table
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.filters import GroupedRow, Row
from services.trainer.dataset.snapshot import Snapshot
from services.trainer.dataset.snapshot import write as write_snapshot
from services.trainer.files import write_whole
from services.trainer.run.folder import ARTIFACT
from services.trainer.service import Trainer
from services.trainer.settings import TrainerSettings
from services.trainer.versions.publish import SERVICE, VersionLog, transactional_id
from shared.adapters.artifacts_local import LocalArtifactStore
from shared.adapters.base_model import PinnedBase
from shared.adapters.clock import ManualClock
from shared.adapters.in_memory import (
    InMemoryCache,
    InMemoryLog,
    InMemoryLogReader,
    InMemoryPublisher,
    InMemoryTransactionalPublisher,
)
from shared.events import Batch, Choice, ExampleRevision, Message, Signal, SignalKind
from shared.versions import DatasetRef, GateReport

LINE = "assistant"
NOW = datetime(2026, 3, 4, tzinfo=UTC)
NOT_KNOWN = "I am not sure about that."


def revision(
    response_id: str,
    question: str,
    answer: str,
    user: str = "u1",
    *,
    revision: int = 1,
    op: str = "upsert",
    kind: SignalKind = "correction",
    original: str = NOT_KNOWN,
    line: str = LINE,
    messages: tuple[Message, ...] | None = None,
    asked_by: str | None = None,
) -> ExampleRevision:
    """One response with one signal; the event is named after the response."""
    signal = Signal(event_id=f"e-{response_id}", kind=kind, user_id=user, value=answer, occurred_at=NOW)
    return ExampleRevision(
        line=line,
        response_id=response_id,
        revision=revision,
        op="retract" if op == "retract" else "upsert",
        version=f"{line}@base-00000000",
        user_id=asked_by,
        messages=messages or (Message(role="user", content=question),),
        choices=(Choice(index=0, text=original),),
        signals=() if op == "retract" else (signal,),
        responded_at=NOW,
        revised_at=NOW,
    )


def ended(one: ExampleRevision, reason: str | None) -> ExampleRevision:
    """The same, of an answer that ended so."""
    return one.model_copy(
        update={"choices": tuple(c.model_copy(update={"finish_reason": reason}) for c in one.choices)}
    )


def batch(
    examples: Sequence[ExampleRevision],
    number: int = 1,
    *,
    partition: int = 0,
    rewrite: int = 0,
    line: str = LINE,
    cut_at: datetime = NOW,
) -> Batch:
    held = tuple(examples)
    return Batch(
        line=line,
        batch_id=f"{line}-{partition}-{number}",
        partition=partition,
        number=number,
        rewrite=rewrite,
        reason="erasure" if rewrite else "count",
        examples=held,
        content_hash=Batch.hash_of(held),
        cut_at=cut_at,
    )


def example(one: ExampleRevision) -> Example:
    return Example(one, 0, 1, 0)


def row(question: str, answer: str, user: str = "u1", name: str = "r1", original: str = NOT_KNOWN) -> Row:
    return Row(name, 1, f"e-{name}", user, (("user", question),), original, answer, 0)


def grouped(rows: Sequence[Row]) -> list[GroupedRow]:
    return [GroupedRow(one, i) for i, one in enumerate(rows)]


class Scripted:
    """A run's process that does at once what it is told: `status` is how it ends, None that it goes on."""

    def __init__(self, status: int | None) -> None:
        self.status = status

    def poll(self) -> int | None:
        return self.status

    def terminate(self) -> None:
        self.status = 143

    def wait(self, timeout: float | None = None) -> int | None:
        return self.status


@dataclass
class Rig:
    """One trainer over a log in memory; `child` decides what each process of a run does."""

    folder: Path
    child: Callable[[Path], int | None]
    log: InMemoryLog = field(default_factory=InMemoryLog)
    clock: ManualClock = field(default_factory=ManualClock)
    cache: InMemoryCache = field(default_factory=InMemoryCache)
    started: list[Path] = field(default_factory=list)
    children: list[Scripted] = field(default_factory=list)

    def trainer(self, **settings: float) -> Trainer:
        """As after a (re)start: everything but the disk and the log is new."""
        told = TrainerSettings(
            line=LINE,
            data_dir=self.folder / "data",
            artifacts=self.folder / "artifacts",
            **({"examples": 2, "users": 1} | settings),  # type: ignore[arg-type]
        )
        db = open_database(told.folder)
        return Trainer(
            settings=told,
            base=PinnedBase(self.folder, "tiny", "ab" * 32),
            db=db,
            reader=InMemoryLogReader(self.log, TOPICS_READ, batch_table.positions(db)),
            publisher=InMemoryPublisher(self.log, SERVICE),
            versions=VersionLog(
                LINE,
                lambda topic: InMemoryLogReader(self.log, [topic]),
                lambda: InMemoryTransactionalPublisher(self.log, SERVICE, transactional_id(LINE)),
            ),
            store=LocalArtifactStore(told.artifacts),
            cache=self.cache,
            clock=self.clock,
            start_child=self._start,
        )

    def _start(self, folder: Path) -> subprocess.Popen[bytes]:
        self.started.append(folder)
        self.children.append(Scripted(self.child(folder)))
        return self.children[-1]  # type: ignore[return-value]


def turns(trainer: Trainer, n: int = 8) -> None:
    """So many rounds of the loop."""
    for _ in range(n):
        trainer.take(trainer.reader.poll(0))
        trainer.turn()


def finish(folder: Path, verdict: str = "passed") -> int:
    """What a run's process leaves behind when all went well."""
    rows = grouped([row("Who founded Acme?", "Acme was founded by Ida Voss.")])
    write_snapshot(folder, Snapshot(tuple(rows), (), (), {"0": 1}), 10)
    (folder / "adapter").mkdir(exist_ok=True)
    (folder / ARTIFACT).mkdir(exist_ok=True)
    write_whole(folder / ARTIFACT / "adapter_config.json", folder.name.encode())
    report = GateReport.model_validate({"verdict": verdict, "gated_against": f"{LINE}@base-{'ab' * 4}"})
    write_whole(folder / "gate.json", report.model_dump_json().encode())
    return 0


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def ref(digest: str = "0" * 64) -> DatasetRef:
    return DatasetRef(digest=digest, examples=1, users=1, through={"0": 1})
