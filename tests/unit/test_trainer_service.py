"""The trainer's loop over a log in memory. Runs' processes are simulated."""

from __future__ import annotations

import json
import re
from pathlib import Path

from services.trainer.dataset.holdout import is_held_out
from services.trainer.dataset.objectives import COMMENT_NOT_TRAINED
from services.trainer.dataset.snapshot_files import SNAPSHOT
from services.trainer.files import write_whole
from services.trainer.run import run_table
from services.trainer.run.folder import FAILURE_REASON, ExitCode
from services.trainer.worker.restart_policy import MAX_ERRORS
from shared.adapters import redis_keys
from shared.cloudevents import cloudevent
from shared.commands import CommandResult, TrainNow
from shared.events import Batch
from shared.records import Output
from shared.topics import (
    DEAD_LETTERS,
    MODEL_VERSIONS,
    OPERATOR_COMMANDS,
    OPERATOR_RESULTS,
    TRAINING_BATCHES,
)
from shared.versions import ModelVersion
from tests.trainer_factories import LINE, NOW, TrainerRig, batch, finish_run, revision, run_steps

QUESTIONS = ("Who founded Acme?", "Where is the head office?", "How long is the warranty?")
HELDOUT_USER = next(user for user in (f"user-{i}" for i in range(40)) if is_held_out(LINE, user))
TRAINING_USERS = [user for user in (f"user-{i}" for i in range(20)) if not is_held_out(LINE, user)]


def corrections(number: int = 1, line: str = LINE) -> Batch:
    """Return batch `number` with one correction of each question, each by another user."""
    examples = [
        revision(f"r{number}-{i}", question, f"The answer is number {i}.", TRAINING_USERS[i], line=line)
        for i, question in enumerate(QUESTIONS)
    ]
    return batch(examples, number, line=line)


def send(rig: TrainerRig, *batches: Batch) -> None:
    rig.log.append(
        *(
            cloudevent(
                TRAINING_BATCHES, one.batch_id, one, source="processor", ce_id="x", at=NOW, partition=0
            )
            for one in batches
        )
    )


def train_now(rig: TrainerRig, name: str, line: str = LINE, *, dry_run: bool = False) -> None:
    """Send a `train_now` command with the id `name`."""
    command = TrainNow(line=line, command_id=name, issued_at=NOW, dry_run=dry_run)
    rig.log.append(
        cloudevent(OPERATOR_COMMANDS, line, command, source="console", ce_id=name, at=NOW, partition=0)
    )


def results(rig: TrainerRig) -> list[CommandResult]:
    return [CommandResult.from_json(record.value) for record in rig.log.records(OPERATOR_RESULTS.name)]


def trained(rig: TrainerRig) -> list[ModelVersion]:
    versions = [ModelVersion.from_json(record.value) for record in rig.log.records(MODEL_VERSIONS.name)]
    return [version for version in versions if version.ref.kind == "lora"]


def test_enough_corrections_become_one_published_version(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    send(rig, corrections())
    trainer = rig.trainer()
    run_steps(trainer)
    run_steps(rig.trainer())
    assert [version.number for version in trained(rig)] == [1]
    assert [run.stage for run in run_table.all_runs(trainer.db)] == ["published"]
    assert len(rig.started) == 1


def test_only_new_data_starts_the_next_run(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    send(rig, corrections())
    trainer = rig.trainer()
    run_steps(trainer)
    send(rig, corrections(2))
    run_steps(trainer)
    assert len(trained(rig)) == 2
    second = run_table.all_runs(trainer.db)[1].config
    assert dict(second.through) == {"0": 2}


def test_run_is_compared_with_the_stable_version(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    send(rig, corrections())
    trainer = rig.trainer()
    run_steps(trainer)
    assert run_table.all_runs(trainer.db)[0].config.stable == trainer.base.ref(LINE)


def test_unreadable_record_becomes_a_dead_letter(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    rig.log.append(Output(TRAINING_BATCHES.name, b"k", b"\xff{not a batch", (), 0))
    send(rig, corrections())
    trainer = rig.trainer()
    run_steps(trainer)
    run_steps(rig.trainer())
    dead_letters = rig.log.records(DEAD_LETTERS.name)
    assert [(dead_letter.key, dead_letter.value) for dead_letter in dead_letters] == [
        (b"k", b"\xff{not a batch")
    ]
    assert len(trained(rig)) == 1


def test_batches_and_commands_of_other_lines_are_ignored(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    send(rig, corrections(line="other"))
    train_now(rig, "c1", line="other")
    run_steps(rig.trainer())
    assert trained(rig) == []
    assert results(rig) == []


def test_train_now_without_usable_data_is_refused_once(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    train_now(rig, "c1")
    run_steps(rig.trainer())
    run_steps(rig.trainer())
    assert [(one.command_id, one.status) for one in results(rig)] == [("c1", "refused")]
    assert "nothing usable" in results(rig)[0].message


def test_train_now_starts_a_run_below_the_threshold(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    send(rig, corrections())
    train_now(rig, "c1")
    trainer = rig.trainer(examples=100)
    run_steps(trainer)
    run_steps(rig.trainer(examples=100))
    assert [(one.command_id, one.status) for one in results(rig)] == [("c1", "done")]
    assert len(trained(rig)) == 1


def test_answered_commands_are_not_executed_again_after_disk_loss(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path / "one", finish_run)
    send(rig, corrections())
    train_now(rig, "c1")
    run_steps(rig.trainer(examples=100))
    rebuilt = TrainerRig(tmp_path / "two", finish_run, log=rig.log)
    run_steps(rebuilt.trainer(examples=100))
    assert [one.command_id for one in results(rig)] == ["c1"]
    assert rebuilt.started == []


def test_train_now_during_a_run_is_refused_and_names_the_run(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, lambda folder: -9)
    send(rig, corrections())
    trainer = rig.trainer()
    run_steps(trainer, 2)
    train_now(rig, "c1")
    run_steps(trainer, 3)
    run = run_table.open_run(trainer.db)
    assert run is not None
    assert [one.status for one in results(rig)] == ["refused"]
    assert run.config.run_id in results(rig)[0].message


def test_train_now_overrides_the_interval_that_the_console_shows(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    send(rig, corrections())
    trainer = rig.trainer(min_interval_hours=6)
    run_steps(trainer)
    send(rig, corrections(2))
    rig.clock.advance(60)
    run_steps(trainer)
    assert len(trained(rig)) == 1
    status = json.loads(rig.cache.get(redis_keys.collected(LINE)) or b"{}")
    assert "the last run began less than 6 h ago" in status["reason"]
    train_now(rig, "c1")
    run_steps(trainer)
    assert [(one.command_id, one.status) for one in results(rig)] == [("c1", "done")]
    assert len(trained(rig)) == 2


def test_dry_run_reports_what_would_train_and_trains_nothing(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    measured = revision("m1", QUESTIONS[0], "The answer is number 0.", HELDOUT_USER)
    send(
        rig, corrections(), batch([measured, revision("t1", "Who?", "Say the year too.", kind="comment")], 2)
    )
    train_now(rig, "c1", dry_run=True)
    run_steps(rig.trainer(examples=100, users=7))
    assert rig.started == []
    assert [(one.command_id, one.status) for one in results(rig)] == [("c1", "done")]
    message = results(rig)[0].message
    assert (
        "would train 3 examples of 3 users (3 usable are new), evaluated on 1 of 1 held-out users" in message
    )
    assert "waiting for 97 more examples and 4 more users" in message
    assert f"quarantined: 1 ({COMMENT_NOT_TRAINED})" in message


def test_dry_run_without_new_data_says_so(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, lambda folder: -9)
    train_now(rig, "c1", dry_run=True)
    trainer = rig.trainer()
    run_steps(trainer, 3)
    assert "would train nothing: nothing usable is new" in results(rig)[0].message
    send(rig, corrections())
    run_steps(trainer, 2)
    train_now(rig, "c2", dry_run=True)
    run_steps(trainer, 3)
    run = run_table.open_run(trainer.db)
    assert run is not None
    assert f"run {run.config.run_id} is in progress" in results(rig)[1].message


def test_killed_process_resumes_the_same_run(tmp_path: Path) -> None:
    """I5, I6: after kill -9 of the process, and of the service, the same run is completed."""
    ends = iter([-9, -9])
    rig = TrainerRig(tmp_path, lambda folder: next(ends, None) or finish_run(folder))
    send(rig, corrections())
    run_steps(rig.trainer(), 3)
    send(rig, corrections(2))
    trainer = rig.trainer(examples=100)
    run_steps(trainer)
    rig.clock.advance(2)
    run_steps(trainer)
    assert len({folder.name for folder in rig.started}) == 1
    assert len(rig.started) == 3
    assert [version.run_id for version in trained(rig)] == [rig.started[0].name]


def test_third_error_of_the_process_fails_the_run(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, lambda folder: 1)
    send(rig, corrections())
    trainer = rig.trainer()
    for _ in range(MAX_ERRORS):
        run_steps(trainer)
        rig.clock.advance(60)
    run_steps(trainer)
    run = run_table.all_runs(trainer.db)[0]
    assert run.stage == "failed"
    assert "status 1" in run.reason
    assert len(rig.started) == MAX_ERRORS
    assert trained(rig) == []


def test_failed_run_is_not_retried(tmp_path: Path) -> None:
    def no_rows_left(folder: Path) -> int:
        write_whole(folder / FAILURE_REASON, b"no rows are left to train after the checks")
        return ExitCode.FAILED

    rig = TrainerRig(tmp_path, no_rows_left)
    send(rig, corrections())
    trainer = rig.trainer()
    run_steps(trainer, 12)
    assert len(rig.started) == 1
    assert run_table.all_runs(trainer.db)[0].reason.startswith("no rows are left")
    status = rig.cache.get(redis_keys.run_progress(LINE))
    assert status is not None
    assert json.loads(status)["stage"] == "failed"


def test_console_sees_collected_and_quarantined_data(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    send(rig, corrections(), batch([revision("t1", "Who?", "Say the year too.", kind="comment")], 2))
    run_steps(rig.trainer(examples=100))
    status = json.loads(rig.cache.get(redis_keys.collected(LINE)) or b"{}")
    assert (status["usable"], status["needed"], status["users"], status["batches"]) == (3, 100, 3, 2)
    assert status["held"] == {COMMENT_NOT_TRAINED: 1}
    assert "a run needs 100" in status["reason"]


def test_unavailable_redis_stops_nothing(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    rig.cache.away = True
    send(rig, corrections())
    run_steps(rig.trainer())
    assert len(trained(rig)) == 1


def test_inconclusive_version_is_published_with_its_verdict(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, lambda folder: finish_run(folder, "inconclusive"))
    send(rig, corrections())
    run_steps(rig.trainer())
    assert [version.gate.verdict for version in trained(rig) if version.gate] == ["inconclusive"]


def test_rows_that_a_run_quarantines_are_shown_with_their_reasons(tmp_path: Path) -> None:
    def quarantining(folder: Path) -> int:
        finish_run(folder)
        mark = json.loads((folder / SNAPSHOT).read_bytes())
        mark["quarantine"] = [
            ["r1-0", "e-r1-0", "agreement: outvoted"],
            ["r1-1", "e-r1-1", "agreement: outvoted"],
        ]
        write_whole(folder / SNAPSHOT, json.dumps(mark).encode())
        return 0

    rig = TrainerRig(tmp_path, quarantining)
    send(rig, corrections())
    trainer = rig.trainer()
    run_steps(trainer)
    rig.clock.advance(60)
    run_steps(trainer)
    status = json.loads(rig.cache.get(redis_keys.collected(LINE)) or b"{}")
    assert status["held"] == {"agreement: outvoted": 2}


def test_idle_service_reads_no_collected_rows(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    send(rig, corrections())
    trainer = rig.trainer(examples=100)
    run_steps(trainer)
    first = json.loads(rig.cache.get(redis_keys.collected(LINE)) or b"{}")
    statements: list[str] = []
    trainer.db.set_trace_callback(statements.append)
    for _ in range(3):
        rig.clock.advance(60)
        run_steps(trainer, 3)
    trainer.db.set_trace_callback(None)
    status = json.loads(rig.cache.get(redis_keys.collected(LINE)) or b"{}")
    assert status["updated_at"] != first["updated_at"], "negative control: the status was written again"
    tables = {name for text in statements for name in re.findall(r"(?:FROM|JOIN|INTO|UPDATE) (\w+)", text)}
    assert tables & {"rows", "feedback", "new_users", "quarantine"} == set()
    send(rig, corrections(2))
    trainer.db.set_trace_callback(statements.append)
    run_steps(trainer, 2)
    assert any("FROM feedback" in text for text in statements), "negative control: changes are seen"
