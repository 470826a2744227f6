"""The trainer's loop: collect, erase, decide, run, publish. One thread; a run trains in a process of its own.

Whatever is interrupted, the next start goes on with: the table says which run is open, the run's folder what it has
made, and the log whether it was published.
"""

from __future__ import annotations

import sqlite3
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from uuid6 import uuid7

from services.trainer.commands import quarantine_release
from services.trainer.commands.artifact_gc import ArtifactCollector
from services.trainer.commands.command_table import EXPORT, LOOK, TRAIN, CommandTable
from services.trainer.commands.dry_run import dry_run_message
from services.trainer.commands.export import NEVER_TRAINS, Exporter
from services.trainer.commands.reproduce import Reproducer
from services.trainer.commands.reproduce import start as start_reproduction
from services.trainer.console_status import board
from services.trainer.consumer import Intake
from services.trainer.core.trigger import Decision, Waiting, decide
from services.trainer.dataset import batch_table, snapshot
from services.trainer.dataset.erasure_target import Target
from services.trainer.erasure.handler import Eraser
from services.trainer.files import remove
from services.trainer.new_data import count
from services.trainer.progress import Progress
from services.trainer.run import disk_space, run_table
from services.trainer.run.folder import ADAPTER, ARTIFACT, GATE_RESULT
from services.trainer.run.run_table import Run, RunConfig
from services.trainer.settings import TrainerSettings
from services.trainer.versions.publish import VersionLog
from services.trainer.worker.launcher import pause_for_fault_test
from services.trainer.worker.supervisor import RunSupervisor
from shared.adapters import redis_keys
from shared.adapters.base_model import PinnedBase
from shared.dead_letters import DeadLetterLimit, DeadLetterRate
from shared.errors import Retryable
from shared.events import from_ms
from shared.ports import ArtifactStore, Cache, Clock, LogReader, Publisher
from shared.records import Record
from shared.telemetry import TRAINED_TOKENS, TRAINING_RUNS, USABLE_EXAMPLES
from shared.versions import GateReport

POLL_S = 0.2
SHOW_S = 5.0
SHOWN_TTL_S = 3600.0
NO_ROOM_S = 5.0
"""Between two looks whether a full disk has room again."""
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Trainer:
    """All parts of one line's trainer, as `__main__` builds them. `start_child(folder)` runs a run's process."""

    settings: TrainerSettings
    base: PinnedBase
    db: sqlite3.Connection
    reader: LogReader
    publisher: Publisher
    versions: VersionLog
    store: ArtifactStore
    cache: Cache
    clock: Clock
    start_child: Callable[[Path], subprocess.Popen[bytes]]
    start_again: Callable[[Path], subprocess.Popen[bytes]] = start_reproduction
    rate: DeadLetterRate = field(default_factory=lambda: DeadLetterRate(DeadLetterLimit()))
    waiting: Waiting | None = None
    """What is new since the last run; None where it must be counted again."""
    shown_ms: int = 0
    eraser: Eraser = field(init=False)
    exporter: Exporter = field(init=False)
    orders: CommandTable = field(init=False)
    intake: Intake = field(init=False)
    process: RunSupervisor = field(init=False)
    reproducer: Reproducer = field(init=False)
    collector: ArtifactCollector = field(init=False)

    def __post_init__(self) -> None:
        line = self.settings.line
        self.eraser = Eraser(line, self.db, self._runs, self.settings.exports, self.versions, self.clock)
        self.exporter = Exporter(self.settings, self.db, self.clock)
        self.orders = CommandTable(line, self.db, self.versions, self.publisher, self.clock)
        self.intake = Intake(line, self.db, self.reader, self.publisher, self.orders, self.rate)
        self.process = RunSupervisor(self.db, self.clock, self.start_child)
        self.reproducer = Reproducer(
            self.settings,
            self.base,
            self.db,
            self.orders,
            self.store,
            self.versions.published,
            self.start_again,
        )
        self.collector = ArtifactCollector(
            self.settings, self.db, self.orders, self.store, self.versions.of_all_lines, self.clock
        )

    def run(self, stopping: threading.Event) -> None:
        """Until `stopping`: then the run's process is stopped too, and goes on at the next start."""
        self.versions.announce_base(self.base, self.clock.now_ms())
        self.reproducer.stop()  # what a crash left of one
        try:
            while not stopping.is_set():
                if not self.round():
                    stopping.wait(NO_ROOM_S)
        finally:
            self.process.stop()
            self.reproducer.stop()

    def round(self) -> bool:
        """Reads what is new and goes one step on. False where the disk is full: nothing is lost by that, it is to be
        tried again."""
        try:
            self.take(self.intake.poll(POLL_S))
            self.turn()
        except Exception as error:
            if not disk_space.is_disk_full_error(error):
                raise
            self._tell_full(error)
            return False
        return True

    def turn(self) -> None:
        """One step on, whatever is next. A log or a store that is away is no failure of a run: it is tried again."""
        try:
            self.orders.answer()
            self._erase()
            run = run_table.open_run(self.db)
            self._release()
            self._look(run)
            if self.reader.at_end():
                self.reproducer.turn(free=run is None)
                self.collector.turn()
            if self.settings.mode == "export":
                # A run that an earlier setting left open rests until there is training again.
                self._consider_export()
            elif run is None:
                self._consider()
            elif run.stage == "gated":
                self._publish(run)
            else:
                self._watch(run)
                self._refuse_commands(
                    f"run {run.config.run_id} is under way: what is new is for the next one"
                )
        except Retryable as error:
            log.warning("away", code=error.code, error=str(error))

    def take(self, records: Sequence[Record]) -> None:
        """Keeps what was read (`consumer.py`)."""
        if self.intake.take(records):
            self.waiting = None

    def _tell_full(self, error: Exception) -> None:
        reason = disk_space.disk_full_message(self.settings.folder)
        log.error("disk_full", reason=reason, error=str(error))
        run = run_table.open_run(self.db)
        if run is not None:
            self._progress(run).tell("waiting", reason=reason)

    # --- erasing ---

    def _erase(self) -> None:
        """Follows the erasures that are due (`handler.py` says what holds then). Only when all is read that was there
        at the start: until then a row that stands may look as if it had been erased."""
        due = self.eraser.due() if self.reader.at_end() else []
        if due:
            self.reproducer.stop()
            self._yield_to(due)
            run = run_table.open_run(self.db)
            self.eraser.follow(due, run.config.run_id if run is not None else None)

    def _yield_to(self, due: Sequence[Target]) -> None:
        """Sees to it that the open run neither holds nor gets rows that are to go."""
        run = run_table.open_run(self.db)
        if run is None:
            return
        folder = self._folder(run)
        if not snapshot.is_complete(folder):
            self.process.stop()
        if not snapshot.is_complete(folder):
            remove(folder)
        elif self.eraser.concerns(run.config.run_id, due):
            self._begin_anew(run)

    def _begin_anew(self, run: Run) -> None:
        """Ends a run whose snapshot holds what was erased, unless it was published: another begins in its place."""
        self.process.stop()
        version = self.versions.made_by(run.config.run_id)
        if version is not None:
            run_table.set_stage(self.db, run.config.run_id, "published", version.ref.version)
            return
        run_table.set_stage(self.db, run.config.run_id, "erased")
        self.waiting = None
        self._progress(run).tell(
            "erased", reason="rows of its snapshot were erased; another begins in its place"
        )

    # --- deciding ---

    def _consider(self) -> None:
        """Begins a run if there is reason to; commands are answered either way. Only when all is read that was there
        at the start: a decision on half the log would be another one. What is trained again goes first."""
        if not self.reader.at_end() or self.reproducer.busy:
            return
        asked = self.orders.undecided(TRAIN)
        decision = self._decide(commanded=bool(asked))
        self._show(decision)
        if not decision.start:
            self.orders.settle(asked, "refused", decision.reason)
            return
        config = self._plan()
        with self.db:
            run_table.begin(self.db, config, decision.reason)
            self.orders.decide(asked, "done", f"run {config.run_id} began: {decision.reason}")
        self.waiting = None
        log.info("run_began", run_id=config.run_id, reason=decision.reason, against=config.stable.version)

    def _consider_export(self) -> None:
        """As `_consider`, where nothing ever trains: what would begin a run writes a dataset."""
        if not self.reader.at_end():
            return
        decision = self._decide()
        self._show(Decision(decision.start, f"writes datasets and never trains; {decision.reason}"))
        self._refuse_commands(NEVER_TRAINS)
        if decision.start:
            written = self.exporter.write()
            log.info("export_by_itself", reason=decision.reason, done=written.done)
            self.waiting = None

    def _decide(self, *, commanded: bool = False) -> Decision:
        trains = self.settings.mode == "train"
        return decide(
            self._count(),
            self.settings.thresholds(),
            self.clock.now_ms(),
            commanded=commanded,
            anew=trains and run_table.newest_is_erased(self.db),
            began_ms=run_table.newest_start_ms(self.db) if trains else run_table.newest_export(self.db)[1],
        )

    def _release(self) -> None:
        """Lets train from the next run on what operators release."""
        if self.reader.at_end() and self.orders.release(self.settings.comment_mode):
            self.waiting = None

    def _look(self, run: Run | None) -> None:
        """Writes datasets and answers dry runs where they are asked for, whether or not a run is under way."""
        if not self.reader.at_end():
            return
        if asked := self.orders.undecided(EXPORT):
            written = self.exporter.write_for_command()
            self.orders.settle(asked, "done" if written.done else "refused", written.message)
            self.waiting = None
        asked = self.orders.undecided(LOOK)
        if not asked:
            return
        through = batch_table.through(self.db)
        told = dry_run_message(
            self.settings.line,
            batch_table.dataset(self.db, through),
            through,
            self._count(),
            self._decide(),
            comments=self.settings.comment_mode,
            kto_least=self.settings.kto_least,
            under_way=run.config.run_id if run is not None else None,
            trains=self.settings.mode == "train",
        )
        self.orders.settle(asked, "done", told)

    def _count(self) -> Waiting:
        if self.waiting is None:
            self.waiting = count(self.db, self.settings)
            USABLE_EXAMPLES.labels(self.settings.line).set(self.waiting.examples)
            self.shown_ms = 0
        return self.waiting

    def _plan(self) -> RunConfig:
        stable = self.versions.stable(self.base.ref(self.settings.line))
        version = self.versions.run_of(stable)
        return RunConfig(
            run_id=str(uuid7()),
            line=self.settings.line,
            through=batch_table.through(self.db),
            recipe=self.settings.recipe(),
            base=str(self.base.path),
            base_name=self.base.name,
            base_digest=self.base.digest,
            stable=stable,
            stable_run=version.run_id if version else None,
            created_ms=self.clock.now_ms(),
            released=quarantine_release.newest_release(self.db),
        )

    def _refuse_commands(self, reason: str) -> None:
        if self.reader.at_end():
            self.orders.settle(self.orders.undecided(TRAIN), "refused", reason)

    # --- running ---

    @property
    def _runs(self) -> Path:
        return self.settings.folder / "runs"

    def _folder(self, run: Run) -> Path:
        return self._runs / run.config.run_id

    def _watch(self, run: Run) -> None:
        """Starts the run's process, or notes how far it is, or takes its end."""
        folder = self._folder(run)
        self._note_stage(run, folder)
        found = self.process.follow(run, folder)
        if found.done:
            run_table.set_stage(self.db, run.config.run_id, "gated")
        elif found.failed is not None:
            self._fail(run, found.failed)
        elif found.told is not None:
            self._progress(run).tell("waiting", reason=found.told)

    def _note_stage(self, run: Run, folder: Path) -> None:
        if run.stage == "begun" and snapshot.is_complete(folder):
            run_table.store_quarantine(self.db, run.config.run_id, snapshot.read_quarantine(folder))
            run_table.set_stage(self.db, run.config.run_id, "snapshot")
        elif run.stage == "snapshot" and (folder / ADAPTER).exists():
            run_table.set_stage(self.db, run.config.run_id, "trained")
            tokens = snapshot.read_ref(folder).tokens * run.config.recipe.epochs
            TRAINED_TOKENS.labels(self.settings.line).inc(tokens)

    def _fail(self, run: Run, reason: str) -> None:
        """The line is free again. Of all that failed, the newest keeps its checkpoints, as evidence."""
        run_table.mark_failed(self.db, run.config.run_id, reason)
        TRAINING_RUNS.labels(self.settings.line, "none").inc()
        self._progress(run).tell("failed", reason=reason)
        log.error("run_failed", run_id=run.config.run_id, reason=reason)
        disk_space.remove_checkpoints_of_other_runs(self._runs, but_of=run.config.run_id)

    def _publish(self, run: Run) -> None:
        folder = self._folder(run)
        if self.eraser.outdated(run.config.run_id):
            self._begin_anew(run)
            return
        report = GateReport.model_validate_json((folder / GATE_RESULT).read_bytes())
        pause_for_fault_test("gated")
        version = self.versions.publish(
            run.config, snapshot.read_ref(folder), report, folder / ARTIFACT, self.store
        )
        pause_for_fault_test("published")
        run_table.set_stage(self.db, run.config.run_id, "published", version.ref.version)
        TRAINING_RUNS.labels(self.settings.line, report.verdict).inc()
        self._progress(run).tell("published", 1, 1, verdict=report.verdict, version=version.ref.version)

    def _progress(self, run: Run) -> Progress:
        return Progress(
            self.cache, self.settings.line, run.config.run_id, lambda: from_ms(self.clock.now_ms())
        )

    # --- telling ---

    def _show(self, decision: Decision) -> None:
        """The threshold bar of the console: again when it changed, and often enough to outlive a wiped Redis."""
        now_ms = self.clock.now_ms()
        if now_ms - self.shown_ms < SHOW_S * 1000:
            return
        self.shown_ms = now_ms
        line = self.settings.line
        collected, quarantine = board(
            self.db,
            self._count(),
            self.settings.thresholds(),
            self.settings.comment_mode,
            decision.reason,
            from_ms(now_ms),
        )
        self.cache.put(redis_keys.collected(line), collected.to_json(), ttl_s=SHOWN_TTL_S)
        self.cache.put(redis_keys.quarantine(line), quarantine.to_json(), ttl_s=SHOWN_TTL_S)
