"""A version is gated again: what the process gets, what is published, and that no copy of users' text remains."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from services.rollout.core.policy import CanaryPolicy
from services.rollout.core.step import RolloutStep
from services.trainer.database import open_read_only
from services.trainer.dataset import batch_table, snapshot_files
from services.trainer.dataset.holdout import is_held_out
from services.trainer.dataset.snapshot import held_out_rows
from services.trainer.dataset.snapshot_files import HELDOUT_ROWS
from services.trainer.erasure.redact_run import stable_run_of
from services.trainer.files import write_whole
from services.trainer.run import run_table
from services.trainer.run.folder import (
    ADAPTER,
    CONFIG,
    CONTROL,
    FAILURE_REASON,
    GATE_REPORT,
    GATE_RESULT,
    ORIGINAL,
    ExitCode,
)
from services.trainer.run.run_table import RunConfig
from shared.adapters.in_memory import InMemoryTransactionalPublisher
from shared.cloudevents import cloudevent
from shared.commands import CommandResult, GateAgain
from shared.errors import BrokerUnavailable, Misconfigured
from shared.records import Output
from shared.stream.state_store import MemoryStore
from shared.stream.write_buffer import WriteBuffer
from shared.topics import MODEL_ROLLOUT, MODEL_VERSIONS, OPERATOR_COMMANDS, OPERATOR_RESULTS
from shared.versions import GateReport, ModelVersion, RolloutRecord, Verdict
from tests.trainer_factories import LINE, NOW, FakeProcess, batch, revision, run_steps
from tests.unit.test_trainer_lineage import BASE, BOB, HELDOUT_USER, NAMES, TrainedLine


def gated(folder: Path, verdict: Verdict = "passed") -> int:
    """Stand for a process that has gated the version against the stable version of its configuration."""
    config = RunConfig.from_json((folder / CONFIG).read_text())
    report = GateReport(
        verdict=verdict, reasons=("measured",), gated_against=config.stable.version, alpha=0.01
    )
    write_whole(folder / GATE_REPORT, b'{"items": []}')
    write_whole(folder / GATE_RESULT, report.model_dump_json().encode())
    return ExitCode.DONE


def still_running(folder: Path) -> None:
    """Stand for a process that has not ended."""


class GateRig:
    """A trainer with two versions gated against the base. The rollout has made the first one stable."""

    def __init__(self, folder: Path) -> None:
        self.line = TrainedLine(folder)
        self.folders: list[Path] = []
        self.process: Callable[[Path], int | None] = gated
        self.trainer = self.line.trainer
        self.trainer.gate_repeater.start_process = self._start  # type: ignore[assignment]
        first, second = self.line.versions()
        self.stable, self.waiting = first, second
        record = RolloutRecord(
            line=LINE, seq=2, action="promote", stable=first.ref, reason="it passed", decided_at=NOW
        )
        self.line.rig.log.append(Output(MODEL_ROLLOUT.name, b"k", record.to_json()))

    def restart(self) -> None:
        """Start a trainer on the same disk and log, as after a crash."""
        self.trainer = self.line.trainer = self.line.rig.trainer(examples=1)
        self.trainer.gate_repeater.start_process = self._start  # type: ignore[assignment]
        self.trainer._stop_tasks()

    def _start(self, folder: Path) -> FakeProcess:
        self.folders.append(folder)
        return FakeProcess(self.process(folder))

    def gate_again(self, *versions: str, steps: int = 4) -> None:
        for version in versions:
            command = GateAgain(
                line=LINE, command_id=f"c-{len(self.commands())}", issued_at=NOW, version=version
            )
            self.line.rig.log.append(
                cloudevent(OPERATOR_COMMANDS, LINE, command, source="console", ce_id="x", at=NOW, partition=0)
            )
        run_steps(self.trainer, steps)

    def commands(self) -> list[object]:
        return list(self.line.rig.log.records(OPERATOR_COMMANDS.name))

    def results(self) -> list[CommandResult]:
        records = self.line.rig.log.records(OPERATOR_RESULTS.name)
        return [CommandResult.from_json(record.value) for record in records]

    def published(self) -> list[ModelVersion]:
        """Return every record of the version that was gated again."""
        records = [ModelVersion.from_json(r.value) for r in self.line.rig.log.records(MODEL_VERSIONS.name)]
        return [record for record in records if record.ref == self.waiting.ref]

    def leftovers(self) -> list[str]:
        return [path.name for path in self.trainer.settings.folder.glob("gates/**/*")]


@pytest.fixture
def rig(tmp_path: Path) -> GateRig:
    return GateRig(tmp_path)


def test_process_gets_the_snapshots_of_both_versions_and_the_artifact(rig: GateRig) -> None:
    seen: dict[str, Any] = {}

    def look(folder: Path) -> int:
        config = RunConfig.from_json((folder / CONFIG).read_text())
        seen["config"] = config
        seen["rows"] = len(snapshot_files.read_rows(folder))
        seen["stable_rows"] = len(snapshot_files.read_rows(folder.parent / str(config.stable_run)))
        seen["original"] = {path.name for path in (folder / ORIGINAL).iterdir()}
        seen["stale"] = (folder / GATE_RESULT).exists()
        return gated(folder)

    rig.process = look
    rig.gate_again(rig.waiting.ref.version)
    config = seen["config"]
    assert (config.run_id, config.stable, config.stable_run) == (
        rig.waiting.run_id,
        rig.stable.ref,
        rig.stable.run_id,
    )
    assert (seen["rows"] - seen["stable_rows"], seen["stale"]) == (1, False)
    assert "loopwright.json" in seen["original"]
    assert rig.leftovers() == []
    assert snapshot_files.is_complete(rig.trainer.settings.runs / str(rig.stable.run_id))


def test_process_reads_what_was_collected_until_now(rig: GateRig) -> None:
    rig.line.send(batch([revision("r8", "Who leads Acme?", "Ida Voss leads it.", HELDOUT_USER)], 3))
    seen: list[RunConfig] = []

    def look(folder: Path) -> int:
        seen.append(RunConfig.from_json((folder / CONFIG).read_text()))
        return gated(folder)

    rig.process = look
    rig.gate_again(rig.waiting.ref.version)
    first = run_table.by_id(rig.trainer.db, str(rig.waiting.run_id))
    assert first is not None
    assert (first.config.through, seen[0].through) == ({"0": 2}, {"0": 3})


def evaluated(folder: Path) -> int:
    """Stand for a process that has read the held-out rows again, and trained a control."""
    config = RunConfig.from_json((folder / CONFIG).read_text())
    with closing(open_read_only(folder.parent.parent)) as db:
        rows = held_out_rows(LINE, batch_table.current_examples(db, config.through, config.released))
    write_whole(folder / HELDOUT_ROWS, snapshot_files.to_parquet(rows))
    (folder / CONTROL / ADAPTER).mkdir(parents=True, exist_ok=True)
    return gated(folder)


def test_evaluated_rows_and_the_control_are_kept_with_the_run(rig: GateRig) -> None:
    rig.line.send(batch([revision("r8", "Who leads Acme?", "Ida Voss leads it.", HELDOUT_USER)], 3))
    folder = rig.trainer.settings.runs / str(rig.waiting.run_id)
    trained = snapshot_files.read_rows(folder)
    rig.process = evaluated
    rig.gate_again(rig.waiting.ref.version)
    assert {one.row.response_id for one in snapshot_files.read_rows(folder, HELDOUT_ROWS)} == {"r2", "r8"}
    assert snapshot_files.read_rows(folder) == trained
    assert (folder / CONTROL / ADAPTER).exists()


def test_erasure_of_a_user_who_evaluates_later_removes_the_texts(rig: GateRig) -> None:
    """I11: the user's feedback is not in the snapshot that the version was trained from."""
    user = next(one for one in NAMES if is_held_out(LINE, one) and one != HELDOUT_USER)
    rig.line.send(batch([revision("r8", "Who leads Acme?", "Ida Voss leads it.", user)], 3))
    rig.process = evaluated
    rig.gate_again(rig.waiting.ref.version)
    folder = rig.trainer.settings.runs / str(rig.waiting.run_id)
    assert (folder / GATE_REPORT).exists()
    rig.line.send(batch([], 3, rewrite=1))
    rig.line.report_erasure(subject=user, batches={f"{LINE}-0-3": 1})
    assert not (folder / GATE_REPORT).exists()
    assert {one.row.user_id for one in snapshot_files.read_rows(folder, HELDOUT_ROWS)} == {HELDOUT_USER}


def test_erasure_removes_answers_of_the_version_it_was_compared_with_last(rig: GateRig) -> None:
    """I11: stable, which became stable after the run, may have answered with a row that it was trained on."""
    rig.process = evaluated
    rig.gate_again(rig.waiting.ref.version)
    folder = rig.trainer.settings.runs / str(rig.waiting.run_id)
    assert (folder / GATE_REPORT).exists()
    assert stable_run_of(folder) is None
    assert rig.trainer.erasures._compared_runs(folder) == {None, rig.stable.run_id}


# --- a crash at any point ---


class Crash(BaseException):
    """The trainer ends here, as by SIGKILL."""


POINTS = (
    "before the process",
    "before publishing",
    "after publishing",
    "after the report is kept",
    "before the result",
)


@pytest.mark.parametrize("point", POINTS)
def test_crash_publishes_one_report_and_counts_one_look(
    rig: GateRig, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_at(rig, point, monkeypatch)
    with pytest.raises(Crash):
        rig.gate_again(rig.waiting.ref.version)
    monkeypatch.undo()
    rig.restart()
    run_steps(rig.trainer, 8)
    assert [result.status for result in rig.results()] == ["done"]
    numbers = [record.gate.number for record in rig.published() if record.gate]
    assert numbers == [1, 2]
    assert rig.trainer.versions.next_look(rig.stable.ref) == 2, "the first gate had too little to test"
    kept = GateReport.model_validate_json(
        (rig.trainer.settings.runs / str(rig.waiting.run_id) / GATE_RESULT).read_bytes()
    )
    assert kept.number == 2
    assert rig.leftovers() == []


def crash_at(rig: GateRig, point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    repeater, commands = rig.trainer.gate_repeater, rig.trainer.commands
    publish = repeater.publish

    def end(*_: object, **__: object) -> None:
        raise Crash(point)

    def publish_and_end(version: str, report: GateReport) -> GateReport:
        publish(version, report)
        raise Crash(point)

    if point == "before the process":
        monkeypatch.setattr(repeater, "start_process", end)
    elif point == "before publishing":
        monkeypatch.setattr(repeater, "publish", end)
    elif point == "after publishing":
        monkeypatch.setattr(repeater, "publish", publish_and_end)
    elif point == "after the report is kept":
        monkeypatch.setattr(type(commands), "settle", end)
    else:
        monkeypatch.setattr(type(commands), "_publish", end)


def test_new_report_is_published_with_the_unchanged_version(rig: GateRig) -> None:
    rig.gate_again(rig.waiting.ref.version)
    before, after = rig.published()
    assert after.gate is not None
    assert (after.gate.number, after.gate.gated_against) == (2, rig.stable.ref.version)
    assert after.model_copy(update={"gate": before.gate}) == before
    (result,) = rig.results()
    assert (result.status, "passed against" in result.message) == ("done", True)
    stored = GateReport.model_validate_json(
        (rig.trainer.settings.runs / str(rig.waiting.run_id) / GATE_RESULT).read_bytes()
    )
    assert stored == after.gate
    assert [v.gate.number for v in rig.trainer.versions.versions() if v.gate] == [1, 2]


def test_rollout_promotes_a_version_after_its_new_gate(rig: GateRig) -> None:
    """The request that the rollout publishes for a stale version reaches the trainer, and its report the rollout."""
    state, log = MemoryStore(), rig.line.rig.log
    records: list[RolloutRecord] = []
    done = {MODEL_VERSIONS.name: 0, OPERATOR_COMMANDS.name: 0}

    def run_rollout() -> None:
        for topic in done:
            for record in log.records(topic)[done[topic] :]:
                buffer = WriteBuffer(state, 1_000_000)
                buffer.savepoint()
                outputs = list(RolloutStep(CanaryPolicy())(buffer, record))
                state.apply(buffer.writes, 0)
                records.extend(
                    RolloutRecord.from_json(o.value) for o in outputs if o.topic == MODEL_ROLLOUT.name
                )
                log.append(*(o for o in outputs if o.topic != MODEL_ROLLOUT.name))
                done[topic] += 1

    run_rollout()
    assert (records[-1].stable, records[-1].waiting) == (rig.stable.ref, rig.waiting.ref.version)
    run_steps(rig.trainer, 4)
    run_rollout()
    assert (records[-1].action, records[-1].stable) == ("promote", rig.waiting.ref)


def test_commands_for_one_version_share_a_gate(rig: GateRig) -> None:
    rig.gate_again(rig.waiting.ref.version, rig.waiting.ref.version)
    assert [result.status for result in rig.results()] == ["done", "done"]
    assert (len(rig.folders), len(rig.published())) == (1, 2)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (BASE, "does not evaluate"),
        (f"{LINE}@v9-00000000", "has no version"),
        ("stable", "is the stable version"),
    ],
)
def test_versions_without_anything_to_compare_are_refused(rig: GateRig, name: str, why: str) -> None:
    rig.gate_again(rig.stable.ref.version if name == "stable" else name)
    (result,) = rig.results()
    assert (result.status, why in result.message, rig.folders) == ("refused", True, [])


def test_version_with_erased_rows_is_refused(rig: GateRig) -> None:
    rig.line.erase()
    rig.gate_again(rig.waiting.ref.version)
    assert [(r.status, "erased" in r.message) for r in rig.results()] == [("refused", True)]


def test_erasure_ends_a_gate_and_removes_its_folder(rig: GateRig) -> None:
    """I11: the folder holds a copy of users' text."""
    rig.process = still_running
    rig.gate_again(rig.waiting.ref.version)
    assert rig.leftovers() and rig.results() == []
    rig.line.erase()
    assert rig.leftovers() == []
    assert [result.status for result in rig.results()] == ["refused"]


def test_report_is_published_once_however_often_it_is_tried(
    rig: GateRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt reaches the log, but is not acknowledged."""
    publish_all, attempts = InMemoryTransactionalPublisher.publish_all, []

    def unacknowledged(publisher: InMemoryTransactionalPublisher, records: list[Output]) -> None:
        publish_all(publisher, records)
        attempts.append(records)
        if len(attempts) == 1:
            raise BrokerUnavailable("no answer")

    monkeypatch.setattr(InMemoryTransactionalPublisher, "publish_all", unacknowledged)
    rig.gate_again(rig.waiting.ref.version, steps=8)
    assert ([result.status for result in rig.results()], len(rig.published())) == (["done"], 2)


def test_no_run_starts_during_a_gate(rig: GateRig) -> None:
    rig.process = still_running
    rig.gate_again(rig.waiting.ref.version)
    started = len(rig.line.rig.started)
    rig.line.send(batch([revision("r7", "Who is the head of Acme?", "It is Ida Voss who leads.", BOB)], 3))
    assert len(rig.line.rig.started) == started
    rig.trainer.gate_repeater.process.status = gated(rig.folders[-1])  # type: ignore[union-attr]
    run_steps(rig.trainer, 6)
    assert len(rig.line.rig.started) == started + 1


def test_failed_gate_publishes_nothing_and_gives_its_reason(rig: GateRig) -> None:
    def fail(folder: Path) -> int:
        write_whole(folder / FAILURE_REASON, b"out of memory")
        return ExitCode.FAILED

    rig.process = fail
    rig.gate_again(rig.waiting.ref.version)
    (result,) = rig.results()
    assert (result.status, result.message.endswith("out of memory")) == ("failed", True)
    assert len(rig.published()) == 1


def test_gate_that_runs_out_of_memory_is_started_again_with_smaller_batches(rig: GateRig) -> None:
    ends = iter([int(ExitCode.OUT_OF_MEMORY)] * 3)
    rig.process = lambda folder: next(ends, None) or gated(folder)
    rig.gate_again(rig.waiting.ref.version, steps=8)
    assert [result.status for result in rig.results()] == ["done"]
    assert (len(rig.folders), len(set(rig.folders))) == (4, 1)


def test_gate_without_enough_memory_fails_with_a_remedy(rig: GateRig) -> None:
    rig.process = lambda _: int(ExitCode.MEMORY_EXHAUSTED)
    rig.gate_again(rig.waiting.ref.version)
    (result,) = rig.results()
    assert (result.status, "give the trainer more memory" in result.message) == ("failed", True)


def test_command_is_refused_if_the_gpu_is_gone_when_its_gate_starts_again(rig: GateRig) -> None:
    def lose_gpu(folder: Path) -> int:
        if len(rig.folders) > 1:
            raise Misconfigured("no NVIDIA GPU is visible here")
        return int(ExitCode.OUT_OF_MEMORY)

    rig.process = lose_gpu
    rig.gate_again(rig.waiting.ref.version, steps=8)
    (result,) = rig.results()
    assert (result.status, "no NVIDIA GPU is visible" in result.message) == ("refused", True)
    assert rig.leftovers() == []
