"""Factories of batches, examples and rows, and a trainer over a log in memory."""

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
from services.trainer.dataset.snapshot_files import Snapshot
from services.trainer.dataset.snapshot_files import write as write_snapshot
from services.trainer.files import write_whole
from services.trainer.run.folder import ADAPTER, ARTIFACT, GATE_RESULT, ExitCode
from services.trainer.service import Trainer
from services.trainer.settings import TrainerSettings
from services.trainer.versions.publish import SERVICE, VersionLog, transactional_id
from services.trainer.worker import dataset_task
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
    """Return a revision of one response with one signal, whose event id is `e-<response_id>`."""
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


def with_finish_reason(revision: ExampleRevision, reason: str | None) -> ExampleRevision:
    """Return the revision with this finish reason of the answer."""
    return revision.model_copy(
        update={"choices": tuple(c.model_copy(update={"finish_reason": reason}) for c in revision.choices)}
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
    """Return a batch. One with `rewrite` > 0 is a rewrite after an erasure."""
    contents = tuple(examples)
    return Batch(
        line=line,
        batch_id=f"{line}-{partition}-{number}",
        partition=partition,
        number=number,
        rewrite=rewrite,
        reason="erasure" if rewrite else "count",
        examples=contents,
        content_hash=Batch.hash_of(contents),
        cut_at=cut_at,
    )


def example(revision: ExampleRevision) -> Example:
    """Return the example of a revision, from batch 1 of partition 0."""
    return Example(revision, 0, 1, 0)


def row(question: str, answer: str, user: str = "u1", name: str = "r1", original: str = NOT_KNOWN) -> Row:
    """Return a row of the response `name`, in which `user` corrected `original` to `answer`."""
    return Row(name, 1, f"e-{name}", user, (("user", question),), original, answer, 0)


def grouped(rows: Sequence[Row]) -> list[GroupedRow]:
    """Return the rows, each in a group of its own."""
    return [GroupedRow(one, i) for i, one in enumerate(rows)]


class FakeProcess:
    """A process that does nothing. It has ended with `status`, or runs if `status` is None."""

    def __init__(self, status: int | None) -> None:
        self.status = status

    def poll(self) -> int | None:
        return self.status

    def terminate(self) -> None:
        self.status = 143

    def wait(self, timeout: float | None = None) -> int | None:
        return self.status


@dataclass
class TrainerRig:
    """A trainer over a log in memory.

    `process` stands for a run's process: it is called with the run's folder, and returns the exit code, or None if the
    process keeps running.
    """

    folder: Path
    process: Callable[[Path], int | None]
    log: InMemoryLog = field(default_factory=InMemoryLog)
    clock: ManualClock = field(default_factory=ManualClock)
    cache: InMemoryCache = field(default_factory=InMemoryCache)
    started: list[Path] = field(default_factory=list)
    """Folders of the processes that were started, in order."""
    processes: list[FakeProcess] = field(default_factory=list)
    dataset_tasks_hang: bool = False
    """Whether processes of exports and dry runs keep running, without a result."""
    dataset_processes: list[FakeProcess] = field(default_factory=list)

    def trainer(self, **overrides: float) -> Trainer:
        """Return a trainer as after a restart: everything is new except the disk and the log."""
        settings = TrainerSettings(
            line=LINE,
            data_dir=self.folder / "data",
            artifacts=self.folder / "artifacts",
            **({"examples": 2, "users": 1, "grow_percent": 0, "require_gate_items": False} | overrides),  # type: ignore[arg-type]
        )
        db = open_database(settings.folder)
        return Trainer(
            settings=settings,
            base=PinnedBase(self.folder, "tiny", "ab" * 32),
            db=db,
            reader=InMemoryLogReader(self.log, TOPICS_READ, batch_table.positions(db)),
            publisher=InMemoryPublisher(self.log, SERVICE),
            versions=VersionLog(
                LINE,
                lambda topic: InMemoryLogReader(self.log, [topic]),
                lambda: InMemoryTransactionalPublisher(self.log, SERVICE, transactional_id(LINE)),
            ),
            store=LocalArtifactStore(settings.artifacts),
            cache=self.cache,
            clock=self.clock,
            start_run=self._start,
            start_dataset_task=lambda folder: self._start_dataset_task(folder, settings),
        )

    def _start_dataset_task(self, folder: Path, settings: TrainerSettings) -> subprocess.Popen[bytes]:
        if not self.dataset_tasks_hang:
            dataset_task.execute(folder, settings)
        self.dataset_processes.append(FakeProcess(None if self.dataset_tasks_hang else 0))
        return self.dataset_processes[-1]  # type: ignore[return-value]

    def _start(self, folder: Path) -> subprocess.Popen[bytes]:
        self.started.append(folder)
        self.processes.append(FakeProcess(self.process(folder)))
        return self.processes[-1]  # type: ignore[return-value]


def run_steps(trainer: Trainer, count: int = 8) -> None:
    """Run the trainer's loop `count` times."""
    for _ in range(count):
        trainer.consume(trainer.reader.poll(0))
        trainer.step()


def finish_run(folder: Path, verdict: str = "passed") -> int:
    """Write what a run's process leaves behind when it succeeds."""
    rows = grouped([row("Who founded Acme?", "Acme was founded by Ida Voss.")])
    write_snapshot(folder, Snapshot(tuple(rows), (), (), {"0": 1}), 10)
    (folder / ADAPTER).mkdir(exist_ok=True)
    (folder / ARTIFACT).mkdir(exist_ok=True)
    write_whole(folder / ARTIFACT / "adapter_config.json", folder.name.encode())
    report = GateReport.model_validate({"verdict": verdict, "gated_against": f"{LINE}@base-{'ab' * 4}"})
    write_whole(folder / GATE_RESULT, report.model_dump_json().encode())
    return ExitCode.DONE


def seconds_later(seconds: float) -> datetime:
    """Return the time `seconds` after `NOW`."""
    return NOW + timedelta(seconds=seconds)


def dataset_ref(digest: str = "0" * 64) -> DatasetRef:
    """Return a reference to a dataset of one example."""
    return DatasetRef(digest=digest, examples=1, users=1, through={"0": 1})
