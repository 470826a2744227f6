"""The trainer's loop: read, run commands, erase, start a run, supervise it, publish its version.

The loop has one thread, and each run trains in a separate process. A restart resumes interrupted work: the database
names the open run, the run's folder holds its results so far, and the log says whether it was published.
"""

from __future__ import annotations

import sqlite3
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

import structlog
from uuid6 import uuid7

from services.trainer.commands import quarantine_release
from services.trainer.commands.artifact_gc import ArtifactCollector
from services.trainer.commands.command_table import CommandKind, CommandTable
from services.trainer.commands.dataset_tasks import NEVER_TRAINS, DatasetTasks
from services.trainer.commands.gate_again import GateRepeater
from services.trainer.commands.reproduce import Reproducer
from services.trainer.commands.version_task import VersionTask
from services.trainer.commands.way_forward import Outlook, WayForwardReader
from services.trainer.console_status import StatusReader
from services.trainer.consumer import TrainerConsumer
from services.trainer.core.trigger import Decision, NewData, decide, pauses
from services.trainer.dataset import batch_table, snapshot_files
from services.trainer.dataset.erasure_target import ErasureTarget
from services.trainer.erasure import requests
from services.trainer.erasure.handler import ErasureHandler
from services.trainer.files import remove
from services.trainer.new_data import NewDataCounter
from services.trainer.progress import Progress
from services.trainer.run import disk_space, run_quarantine, run_table
from services.trainer.run.folder import (
    ADAPTER,
    ARTIFACT,
    ATTEMPTS,
    EVAL_BATCH,
    FAILURE_REASON,
    GATE_RESULT,
)
from services.trainer.run.run_table import Run, RunConfig
from services.trainer.settings import TrainerSettings
from services.trainer.versions.publish import VersionLog
from services.trainer.worker import launcher
from services.trainer.worker.device_monitor import DeviceMonitor
from services.trainer.worker.supervisor import RunSupervisor
from shared.adapters import redis_keys
from shared.adapters.base_model import PinnedBase
from shared.dead_letters import DeadLetterLimit, DeadLetterRate
from shared.errors import Retryable
from shared.events import from_ms
from shared.ports import ArtifactStore, Cache, Clock, LogReader, Publisher
from shared.records import Record
from shared.run_stage import RunStage
from shared.telemetry import TRAINED_TOKENS, TRAINING_RUNS, USABLE_EXAMPLES
from shared.versions import GateReport

POLL_TIMEOUT_S: Final = 0.2
STATUS_INTERVAL_S: Final = 5.0
"""Time between two writes of the console's status, which also restore it after Redis lost it."""
STATUS_TTL_S: Final = 3600.0
STABLE_INTERVAL_S: Final = 30.0
"""Time between two reads of the stable version while erased versions have no successor."""
TRAIN_KINDS: Final = (CommandKind.TRAIN_NOW, CommandKind.TRAIN_AGAIN)
ANNOUNCE_RETRY_S: Final = 1.0
DISK_FULL_WAIT_S: Final = 5.0
"""Time between two attempts while the disk is full."""
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Trainer:
    """The trainer of one line. `__main__` builds it with real adapters, tests with adapters in memory.

    `start_run` starts the process of the run whose folder it is given, and `start_dataset_task` that of an export or a
    dry run.
    """

    settings: TrainerSettings
    base: PinnedBase
    db: sqlite3.Connection
    reader: LogReader
    publisher: Publisher
    versions: VersionLog
    store: ArtifactStore
    cache: Cache
    clock: Clock
    start_run: Callable[[Path], subprocess.Popen[bytes]]
    start_dataset_task: Callable[[Path], subprocess.Popen[bytes]] = launcher.start_dataset_task
    marks: frozenset[str] | None = frozenset()
    """Texts by which the base's prompts separate turns: no row with one of them is exported. None: not known yet."""
    dead_letters: DeadLetterRate = field(default_factory=lambda: DeadLetterRate(DeadLetterLimit()))
    problem: str | None = None
    """Why the log cannot be read at the moment, or None."""
    may_take_up: bool = True
    """Whether a run that failed at its gate is taken up by itself: once after each start of the trainer."""
    stable_read: tuple[int, str] | None = None
    """When the stable version was read last, to learn whether an erasure affects it, and its name."""
    status_written: tuple[int, str, NewData] | None = None
    """When the console's status was last written, and with what."""
    commands: CommandTable = field(init=False)
    counter: NewDataCounter = field(init=False)
    console: StatusReader = field(init=False)
    consumer: TrainerConsumer = field(init=False)
    erasures: ErasureHandler = field(init=False)
    dataset_tasks: DatasetTasks = field(init=False)
    reproducer: Reproducer = field(init=False)
    gate_repeater: GateRepeater = field(init=False)
    way_forward: WayForwardReader = field(init=False)
    artifact_collector: ArtifactCollector = field(init=False)
    supervisor: RunSupervisor = field(init=False)
    device: DeviceMonitor = field(init=False)

    def __post_init__(self) -> None:
        settings, db, line = self.settings, self.db, self.settings.line
        self.commands = CommandTable(line, db, self.versions, self.publisher, self.clock)
        self.counter = NewDataCounter(db, settings)
        self.console = StatusReader(db, self.counter, settings.thresholds())
        self.consumer = TrainerConsumer(
            line, db, self.reader, self.publisher, self.commands, self.counter, self.dead_letters
        )
        self.erasures = ErasureHandler(line, db, settings.runs, settings.exports, self.versions, self.clock)
        self.dataset_tasks = DatasetTasks(
            settings, db, self.commands, self.clock, self.start_dataset_task, self.marks
        )
        shared = (settings, self.base, db, self.commands, self.store, self.versions.line_records)
        self.reproducer = Reproducer(*shared, partial(launcher.start_reproduction, device=settings.device))
        self.gate_repeater = GateRepeater(
            *shared,
            partial(launcher.start_gate_again, device=settings.device),
            stable=lambda: self.versions.stable(self.base.ref(line)),
            publish=self.versions.publish_gate,
        )
        self.way_forward = WayForwardReader(
            settings,
            db,
            self.versions,
            self.publisher,
            self.clock,
            lambda: self.versions.stable(self.base.ref(line)),
        )
        self.artifact_collector = ArtifactCollector(
            settings, db, self.commands, self.store, self.versions.all_lines, self.clock
        )
        self.device = DeviceMonitor(settings.device, settings.folder, self.clock)
        self.supervisor = RunSupervisor(db, self.clock, self.start_run, lambda: self.device.problem)

    def use_marks(self, marks: frozenset[str]) -> None:
        """Set the base's marks, for which exports and dry runs wait. Can be called from any thread."""
        self.dataset_tasks.marks = marks

    def run(self, stopping: threading.Event) -> None:
        """Run until `stopping` is set. Then stop the run's process, which the next start resumes."""
        self._announce_base(stopping)
        self._stop_tasks()  # removes the folders that a crash may have left
        try:
            while not stopping.is_set():
                if not self.run_once():
                    stopping.wait(DISK_FULL_WAIT_S)
        finally:
            self.device.stop()
            self.supervisor.stop()
            self._stop_tasks()

    @property
    def version_tasks(self) -> tuple[VersionTask, ...]:
        """What works on published versions, one at a time."""
        return (self.gate_repeater, self.reproducer)

    def _stop_tasks(self) -> None:
        self.dataset_tasks.stop()
        for task in self.version_tasks:
            task.stop()

    def _announce_base(self, stopping: threading.Event) -> None:
        """Publish the base unless it is published. Waits while Kafka cannot take it; `problem` then says why."""
        while not stopping.is_set():
            try:
                self.versions.announce_base(self.base, self.clock.now_ms())
            except Retryable as error:
                log.warning("base_not_announced", code=error.code, error=str(error))
                self.problem = str(error)
                stopping.wait(ANNOUNCE_RETRY_S)
            else:
                self.problem = None
                return

    def run_once(self) -> bool:
        """Read new records and take one step.

        Returns False if the disk is full. Nothing is lost then, and the caller should try again later.
        """
        try:
            self.device.poll()
            self.consume(self._poll())
            self.step()
        except Exception as error:
            if not disk_space.is_disk_full_error(error):
                raise
            self._report_full_disk(error)
            return False
        return True

    def _poll(self) -> Sequence[Record]:
        """Return the next records; none while the log cannot be read, which `problem` then explains."""
        try:
            records = self.consumer.poll(POLL_TIMEOUT_S)
        except Retryable as error:
            log.warning("log_unreadable", code=error.code, error=str(error))
            self.problem = str(error)
            return []
        if self.reader.at_end():
            self.problem = None
        return records

    def consume(self, records: Sequence[Record]) -> None:
        """Store records read from the log."""
        self.consumer.store(records)

    def step(self) -> None:
        """Take the next step. If the log or the artifact store is unavailable, the next call tries again.

        Commands, erasures and decisions wait until everything is read that was on the log at the start, and counted:
        with part of the log, a row may look as if it had been erased, and other runs would start.
        """
        try:
            self.commands.publish_results()
            uncounted = self.counter.count_portion()
            caught_up = self.reader.at_end() and not uncounted
            if uncounted:
                self._write_status(
                    Decision(False, f"counting the collected feedback: {uncounted:,} responses are left")
                )
            if caught_up:
                self._erase()
            run = run_table.open_run(self.db)
            if caught_up:
                self._run_commands(run)
            if self.settings.mode == "export":
                # A run that was open before the mode was changed rests until the trainer trains again.
                if caught_up:
                    self._maybe_export()
            elif run is None:
                busy = any(task.busy for task in self.version_tasks)
                if caught_up and not busy:
                    self._maybe_start_run()
                elif busy:
                    self._write_status(Decision(False, "a published version is gated again or reproduced"))
            elif run.stage == RunStage.GATED:
                self._publish(run)
            else:
                self._watch(run)
                if caught_up and not self._drop_blocked(run):
                    self._refuse_train_now(
                        f"run {run.config.run_id} is in progress: new data is for the next run"
                    )
                    self._write_status(Decision(False, f"run {run.config.run_id} is in progress"))
        except Retryable as error:
            log.warning("unavailable", code=error.code, error=str(error))

    # --- erasures ---

    def _erase(self) -> None:
        """Apply the erasures that are due. `erasure/handler.py` states what holds afterwards."""
        due = self.erasures.due_targets()
        if due:
            self._stop_tasks()
            self._abort_for_erasure(due)
            run = run_table.open_run(self.db)
            self.erasures.apply(due, run.config.run_id if run is not None else None)

    def _abort_for_erasure(self, due: Sequence[ErasureTarget]) -> None:
        """End the open run if its snapshot contains rows to erase. Restart it if its snapshot is not complete."""
        run = run_table.open_run(self.db)
        if run is None:
            return
        folder = self._folder(run)
        if not snapshot_files.is_complete(folder):
            self.supervisor.stop()
        if not snapshot_files.is_complete(folder):
            remove(folder)
        elif self.erasures.affects(run.config.run_id, due):
            self._end_erased_run(run)

    def _end_erased_run(self, run: Run) -> None:
        """End a run whose snapshot contains erased rows, so that another run replaces it. A published run stays."""
        self.supervisor.stop()
        version = self.versions.version_of_run(run.config.run_id)
        if version is not None:
            self._set_stage(run, RunStage.PUBLISHED, version.ref.version)
            return
        self._set_stage(run, RunStage.ERASED)
        requests.reopen_versions(self.db, run.config.run_id)
        self._progress(run).report(
            RunStage.ERASED, reason="an erasure removed rows of its snapshot; a new run replaces it"
        )

    # --- commands ---

    def _run_commands(self, run: Run | None) -> None:
        """Execute the pending commands, except `train_now`, which is part of the decision to start a run."""
        quarantine_release.run_commands(self.commands, self.counter)
        self.dataset_tasks.step(lambda: self._prospects(run))
        for task in self.version_tasks:
            idle = not any(other.busy for other in self.version_tasks if other is not task)
            task.step(may_start=run is None and idle)
        self.artifact_collector.run_commands()

    def _prospects(self, run: Run | None) -> tuple[int, str]:
        """Return the number of new usable examples, and whether a run starts without a command, for a dry run."""
        decision = self._decide()
        if self.settings.mode == "export":
            starts = "a dataset is exported automatically" if decision.start else "no dataset is exported yet"
            prospects = f"but this trainer never trains (mode: export); {starts}: {decision.reason}"
        elif run is not None:
            prospects = f"run {run.config.run_id} is in progress: new data is for the next run"
        else:
            starts = "a run starts" if decision.start else "no run starts"
            prospects = f"{starts} automatically: {decision.reason}"
        return self.counter.read().examples, prospects

    def _refuse_train_now(self, reason: str) -> None:
        for kind in TRAIN_KINDS:
            self.commands.settle(self.commands.pending(kind), "refused", reason)

    # --- starting a run ---

    def _maybe_start_run(self) -> None:
        """Start a run if there is a reason to. Pending `train_now` commands are answered either way."""
        again, pending = (
            self.commands.pending(kind) for kind in (CommandKind.TRAIN_AGAIN, CommandKind.TRAIN_NOW)
        )
        pending += again
        may_take_up, self.may_take_up = self.may_take_up, False
        if may_take_up and not again and self._take_up_gate("the trainer was started again"):
            return
        decision = self._decide(commanded=bool(pending), again=bool(again))
        outlook = self.way_forward.read()
        self._write_status(_with_outlook(decision, outlook))
        if not decision.start:
            if not pending and outlook is not None:
                self._go_forward(outlook)
            elif pending and (message := self._take_up_gate("commanded")):
                self.commands.settle(pending, "done", message)
            else:
                self.commands.settle(pending, "refused", decision.reason)
            return
        erased = run_table.newest_if_erased(self.db)
        config = self._new_run_config(again=bool(again) or (erased is not None and erased.again))
        self._begin_run(config, decision.reason, pending)

    def _begin_run(self, config: RunConfig, reason: str, commands: Sequence[str] = ()) -> None:
        self._remove_failed_adapters()
        with self.db:
            run_table.begin(self.db, config, reason)
            requests.answer_versions(self.db, config.run_id)
            self.commands.decide(commands, "done", f"run {config.run_id} started: {reason}")
        log.info("run_started", run_id=config.run_id, reason=reason, compared_with=config.stable.version)

    def _go_forward(self, outlook: Outlook) -> None:
        """Gate the newest version again, or train its data again, if its verdict asks for that (`core/way_forward.py`).

        Not in quiet hours, and not against another version than that of its last gate.
        """
        forward, thresholds = outlook.forward, self.settings.thresholds()
        last_run_ms = run_table.newest_start_ms(self.db) if forward.action == "train_again" else None
        if forward.action is None or pauses(thresholds, self.clock.now_ms(), last_run_ms):
            return
        if not self.way_forward.is_current(outlook):
            return
        if forward.action == "gate_again":
            self.way_forward.request_gate(outlook)
        elif forward.recipe is not None:
            trained = outlook.run.config
            config = replace(
                self._new_run_config(again=True),
                through=trained.through,
                released=trained.released,
                recipe=forward.recipe,
                retry_of=trained.run_id,
            )
            self._begin_run(config, forward.reason)

    def _maybe_export(self) -> None:
        """Export a dataset if this trainer would start a run, were it not set to export only."""
        decision = self._decide()
        self._write_status(Decision(decision.start, f"exports datasets and never trains; {decision.reason}"))
        self._refuse_train_now(NEVER_TRAINS)
        if decision.start:
            self.dataset_tasks.export_automatically(decision.reason)

    def _decide(self, *, commanded: bool = False, again: bool = False) -> Decision:
        trains = self.settings.mode == "train"
        erased = run_table.newest_if_erased(self.db) if trains else None
        return decide(
            self.counter.read(),
            self.settings.thresholds(),
            self.clock.now_ms(),
            commanded=commanded,
            again=again or (not commanded and erased is not None and erased.again),
            after_erasure=erased is not None,
            erased_stable=self._erased_stable() if trains else None,
            last_run_ms=run_table.newest_start_ms(self.db) if trains else run_table.newest_export(self.db)[1],
            last_replacement_ms=run_table.newest_replacement_ms(self.db),
        )

    def _erased_stable(self) -> str | None:
        """Return the stable version if an erasure affects it and no run has begun since. Reads the log, rarely."""
        versions = requests.unanswered_versions(self.db) if self.settings.retrain_after_erasure else set()
        if not versions:
            return None
        now_ms = self.clock.now_ms()
        if self.stable_read is None or not 0 <= now_ms - self.stable_read[0] < STABLE_INTERVAL_S * 1000:
            self.stable_read = (now_ms, self.versions.stable(self.base.ref(self.settings.line)).version)
        stable = self.stable_read[1]
        return stable if stable in versions else None

    def _new_run_config(self, *, again: bool) -> RunConfig:
        stable = self.versions.stable(self.base.ref(self.settings.line))
        version = self.versions.find(stable)
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
            chat_template_kwargs=self.settings.chat_template_kwargs,
            again=again,
            replaces="erasure" if requests.is_erased_version(self.db, stable.version) else None,
            gate_look=self.versions.next_look(stable),
        )

    # --- a run that failed at its gate ---

    def _take_up_gate(self, reason: str) -> str | None:
        """Open the newest run again if it failed after training. Return what was done, or None if it did not.

        Its adapter is gated against the version that is stable now. What made the gate fail (memory, a golden set, a
        file) has often been changed meanwhile, and training again would cost far more.
        """
        run = run_table.newest(self.db)
        if run is None or run.stage != RunStage.FAILED or run.config.base_digest != self.base.digest:
            return None
        folder, run_id = self._folder(run), run.config.run_id
        if not (folder / ADAPTER).exists() or not snapshot_files.is_complete(folder):
            return None
        if self.erasures.has_erased_rows(run_id):
            return None
        stable = self.versions.stable(self.base.ref(self.settings.line))
        version = self.versions.find(stable)
        config = replace(
            run.config,
            base=str(self.base.path),
            stable=stable,
            stable_run=version.run_id if version else None,
            replaces="erasure" if requests.is_erased_version(self.db, stable.version) else None,
            gate_look=self.versions.next_look(stable),
        )
        # Smaller batches and counts of early ends belong to the conditions in which it failed.
        for name in (FAILURE_REASON, ATTEMPTS, EVAL_BATCH):
            (folder / name).unlink(missing_ok=True)
        self.supervisor.not_before_ms = 0
        run_table.take_up(self.db, config, reason)
        log.info("run_taken_up", run_id=run_id, reason=reason, compared_with=stable.version)
        return f"run {run_id} goes on at its gate, where it failed: new data is for the next run"

    def _remove_failed_adapters(self) -> None:
        """Delete what failed runs have trained: a new run replaces them."""
        for run in run_table.all_runs(self.db):
            if run.stage == RunStage.FAILED:
                remove(self._folder(run) / ADAPTER)

    # --- the open run ---

    def _watch(self, run: Run) -> None:
        """Store how far the run has come, and supervise its process."""
        folder = self._folder(run)
        self._advance_stage(run, folder)
        status = self.supervisor.poll(run, folder)
        if status.done:
            self._set_stage(run, RunStage.GATED)
        elif status.failure is not None:
            self._fail(run, status.failure)
        elif status.note is not None:
            self._progress(run).report(RunStage.WAITING, reason=status.note)

    def _drop_blocked(self, run: Run) -> bool:
        """End a run that waits for other settings, if `train now --again` asks for a new one. Return whether it did."""
        blocked = self.supervisor.blocked
        if blocked is None or not self.commands.pending(CommandKind.TRAIN_AGAIN):
            return False
        self._fail(run, f"replaced by `loopwright train now --again`: {blocked}")
        self.supervisor.blocked, self.supervisor.not_before_ms = None, 0
        return True

    def _advance_stage(self, run: Run, folder: Path) -> None:
        if run.stage == RunStage.BEGUN and snapshot_files.is_complete(folder):
            run_quarantine.store(self.db, run.config.run_id, snapshot_files.read_quarantine(folder))
            run_table.set_dataset_size(self.db, run.config.run_id, snapshot_files.read_ref(folder).examples)
            self._set_stage(run, RunStage.SNAPSHOT)
        elif run.stage == RunStage.SNAPSHOT and (folder / ADAPTER).exists():
            self._set_stage(run, RunStage.TRAINED)
            tokens = snapshot_files.read_ref(folder).tokens * run.config.recipe.epochs
            TRAINED_TOKENS.labels(self.settings.line).inc(tokens)

    def _fail(self, run: Run, reason: str) -> None:
        """End the run without a version. Only the newest failed run keeps its checkpoints, for diagnosis."""
        run_table.mark_failed(self.db, run.config.run_id, reason)
        TRAINING_RUNS.labels(self.settings.line, "none").inc()
        self._progress(run).report(RunStage.FAILED, reason=reason)
        log.error("run_failed", run_id=run.config.run_id, reason=reason)
        disk_space.remove_checkpoints_of_other_runs(self.settings.runs, keep=run.config.run_id)

    def _publish(self, run: Run) -> None:
        """Publish the run's version, unless an erasure removed rows of its snapshot meanwhile."""
        folder = self._folder(run)
        if self.erasures.has_erased_rows(run.config.run_id):
            self._end_erased_run(run)
            return
        report = GateReport.model_validate_json((folder / GATE_RESULT).read_bytes())
        launcher.pause_for_fault_test(RunStage.GATED)
        version = self.versions.publish(
            run.config, snapshot_files.read_ref(folder), report, folder / ARTIFACT, self.store
        )
        launcher.pause_for_fault_test(RunStage.PUBLISHED)
        self._set_stage(run, RunStage.PUBLISHED, version.ref.version)
        TRAINING_RUNS.labels(self.settings.line, report.verdict).inc()
        self._progress(run).report(
            RunStage.PUBLISHED, 1, 1, verdict=report.verdict, version=version.ref.version
        )

    def _set_stage(self, run: Run, stage: RunStage, version: str | None = None) -> None:
        run_table.set_stage(self.db, run.config.run_id, stage, version)

    def _folder(self, run: Run) -> Path:
        return self.settings.runs / run.config.run_id

    # --- status ---

    def _progress(self, run: Run) -> Progress:
        return Progress(
            self.cache, self.settings.line, run.config.run_id, lambda: from_ms(self.clock.now_ms())
        )

    def _report_full_disk(self, error: Exception) -> None:
        reason = disk_space.disk_full_message(self.settings.folder)
        log.error("disk_full", reason=reason, error=str(error))
        run = run_table.open_run(self.db)
        if run is not None:
            self._progress(run).report(RunStage.WAITING, reason=reason)

    def _write_status(self, decision: Decision) -> None:
        """Write the collected data and the quarantine for the console, after changes and every `STATUS_INTERVAL_S`."""
        line, now_ms, new = self.settings.line, self.clock.now_ms(), self.counter.read()
        reason = "; ".join(filter(None, (decision.reason, self.dataset_tasks.status())))
        if self.status_written is not None:
            written_ms, *written = self.status_written
            is_due = now_ms - written_ms >= STATUS_INTERVAL_S * 1000
            if not is_due and written == [reason, new]:
                return
        self.status_written = (now_ms, reason, new)
        collected, quarantine = self.console.read(reason, from_ms(now_ms))
        USABLE_EXAMPLES.labels(line).set(collected.usable)
        if (device := self.device.report) is not None:
            collected = collected.model_copy(update={"device": device.text, "device_problem": device.problem})
        self.cache.put(redis_keys.collected(line), collected.to_json(), ttl_s=STATUS_TTL_S)
        self.cache.put(redis_keys.quarantine(line), quarantine.to_json(), ttl_s=STATUS_TTL_S)


def _with_outlook(decision: Decision, outlook: Outlook | None) -> Decision:
    """Return the decision with what follows from the newest version's verdict, for the console."""
    said = outlook.forward.reason if outlook is not None else ""
    return Decision(decision.start, "; ".join(filter(None, (decision.reason, said))))
