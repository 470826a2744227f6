"""The trainer's loop over the log in memory; a run's process does at once what the test tells it."""

from __future__ import annotations

import json
from pathlib import Path

from services.trainer.dataset.holdout import is_held_out
from services.trainer.dataset.objectives import COMMENT_NOT_TRAINED
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
MEASURING = next(user for user in (f"user-{i}" for i in range(40)) if is_held_out(LINE, user))
TRAINING = [user for user in (f"user-{i}" for i in range(20)) if not is_held_out(LINE, user)]


def corrections(number: int = 1, line: str = LINE) -> Batch:
    examples = [
        revision(f"r{number}-{i}", question, f"The answer is number {i}.", TRAINING[i], line=line)
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


def order(rig: TrainerRig, name: str, line: str = LINE, *, dry_run: bool = False) -> None:
    command = TrainNow(line=line, command_id=name, issued_at=NOW, dry_run=dry_run)
    rig.log.append(
        cloudevent(OPERATOR_COMMANDS, line, command, source="console", ce_id=name, at=NOW, partition=0)
    )


def results(rig: TrainerRig) -> list[CommandResult]:
    return [CommandResult.from_json(record.value) for record in rig.log.records(OPERATOR_RESULTS.name)]


def trained(rig: TrainerRig) -> list[ModelVersion]:
    found = [ModelVersion.from_json(record.value) for record in rig.log.records(MODEL_VERSIONS.name)]
    return [version for version in found if version.ref.kind == "lora"]


def test_enough_corrections_become_a_published_version_once(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    send(rig, corrections())
    trainer = rig.trainer()
    run_steps(trainer)
    run_steps(rig.trainer())
    assert [version.number for version in trained(rig)] == [1]
    assert [run.stage for run in run_table.all_runs(trainer.db)] == ["published"]
    assert len(rig.started) == 1


def test_what_was_trained_is_not_new_and_does_not_train_again_alone(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    send(rig, corrections())
    trainer = rig.trainer()
    run_steps(trainer)
    send(rig, corrections(2))
    run_steps(trainer)
    assert len(trained(rig)) == 2
    second = run_table.all_runs(trainer.db)[1].config
    assert dict(second.through) == {"0": 2}


def test_the_next_run_is_gated_against_the_version_that_serves(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    send(rig, corrections())
    trainer = rig.trainer()
    run_steps(trainer)
    assert run_table.all_runs(trainer.db)[0].config.stable == trainer.base.ref(LINE)


def test_garbage_is_a_dead_letter_and_the_rest_goes_on(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    rig.log.append(Output(TRAINING_BATCHES.name, b"k", b"\xff{not a batch", (), 0))
    send(rig, corrections())
    trainer = rig.trainer()
    run_steps(trainer)
    run_steps(rig.trainer())
    letters = rig.log.records(DEAD_LETTERS.name)
    assert [(letter.key, letter.value) for letter in letters] == [(b"k", b"\xff{not a batch")]
    assert len(trained(rig)) == 1


def test_batches_and_commands_of_another_line_are_left_alone(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    send(rig, corrections(line="other"))
    order(rig, "c1", line="other")
    run_steps(rig.trainer())
    assert trained(rig) == []
    assert results(rig) == []


def test_train_now_with_nothing_usable_is_refused_once_with_the_reason(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    order(rig, "c1")
    run_steps(rig.trainer())
    run_steps(rig.trainer())
    assert [(one.command_id, one.status) for one in results(rig)] == [("c1", "refused")]
    assert "nothing usable" in results(rig)[0].message


def test_train_now_starts_a_run_below_the_threshold_and_is_answered_once(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    send(rig, corrections())
    order(rig, "c1")
    trainer = rig.trainer(examples=100)
    run_steps(trainer)
    run_steps(rig.trainer(examples=100))
    assert [(one.command_id, one.status) for one in results(rig)] == [("c1", "done")]
    assert len(trained(rig)) == 1


def test_commands_answered_before_the_disk_was_lost_are_not_carried_out_again(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path / "one", finish_run)
    send(rig, corrections())
    order(rig, "c1")
    run_steps(rig.trainer(examples=100))
    other = TrainerRig(tmp_path / "two", finish_run, log=rig.log)
    run_steps(other.trainer(examples=100))
    assert [one.command_id for one in results(rig)] == ["c1"]
    assert other.started == []


def test_a_command_during_a_run_is_refused_and_says_which_run(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, lambda folder: -9)
    send(rig, corrections())
    trainer = rig.trainer()
    run_steps(trainer, 2)
    order(rig, "c1")
    run_steps(trainer, 3)
    run = run_table.open_run(trainer.db)
    assert run is not None
    assert [one.status for one in results(rig)] == ["refused"]
    assert run.config.run_id in results(rig)[0].message


def test_quiet_hours_and_the_interval_are_named_to_the_console_and_a_command_overrides_them(
    tmp_path: Path,
) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    send(rig, corrections())
    trainer = rig.trainer(min_interval_hours=6)
    run_steps(trainer)
    send(rig, corrections(2))
    rig.clock.advance(60)
    run_steps(trainer)
    assert len(trained(rig)) == 1
    shown = json.loads(rig.cache.get(redis_keys.collected(LINE)) or b"{}")
    assert "the last run began less than 6 h ago" in shown["reason"]
    order(rig, "c1")
    run_steps(trainer)
    assert [(one.command_id, one.status) for one in results(rig)] == [("c1", "done")]
    assert len(trained(rig)) == 2


def test_a_dry_run_says_what_would_train_and_what_is_missing_and_trains_nothing(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    measured = revision("m1", QUESTIONS[0], "The answer is number 0.", MEASURING)
    send(
        rig, corrections(), batch([measured, revision("t1", "Who?", "Say the year too.", kind="comment")], 2)
    )
    order(rig, "c1", dry_run=True)
    run_steps(rig.trainer(examples=100, users=7))
    assert rig.started == []
    assert [(one.command_id, one.status) for one in results(rig)] == [("c1", "done")]
    told = results(rig)[0].message
    assert "would train 3 examples of 3 users (3 usable are new), measured with 1 of 1 held-out users" in told
    assert "waits for 97 more examples and 4 more users" in told
    assert f"held back: 1 ({COMMENT_NOT_TRAINED})" in told


def test_a_dry_run_with_nothing_new_says_so_and_one_during_a_run_names_it(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, lambda folder: -9)
    order(rig, "c1", dry_run=True)
    trainer = rig.trainer()
    run_steps(trainer, 3)
    assert "would train nothing: nothing usable is new" in results(rig)[0].message
    send(rig, corrections())
    run_steps(trainer, 2)
    order(rig, "c2", dry_run=True)
    run_steps(trainer, 3)
    run = run_table.open_run(trainer.db)
    assert run is not None
    assert f"run {run.config.run_id} is under way" in results(rig)[1].message


def test_a_table_of_an_older_release_goes_on_with_its_commands(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    send(rig, corrections())
    db = rig.trainer().db
    with db:
        db.execute("ALTER TABLE commands DROP COLUMN kind")
        db.execute("INSERT INTO commands (command_id) VALUES ('c1')")
    db.close()
    run_steps(rig.trainer(examples=100))
    assert [(one.command_id, one.status) for one in results(rig)] == [("c1", "done")]


def test_a_killed_process_resumes_the_same_run_with_the_same_config(tmp_path: Path) -> None:
    """I5, I6: after kill -9 of the process, and of the service, the same run comes to its end."""
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


def test_a_process_that_fails_three_times_ends_the_run_with_the_reason(tmp_path: Path) -> None:
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


def test_a_run_whose_data_is_at_fault_is_not_tried_again(tmp_path: Path) -> None:
    def nothing_left(folder: Path) -> int:
        write_whole(folder / FAILURE_REASON, b"nothing is left to train after verification")
        return ExitCode.FAILED

    rig = TrainerRig(tmp_path, nothing_left)
    send(rig, corrections())
    trainer = rig.trainer()
    run_steps(trainer, 12)
    assert len(rig.started) == 1
    assert run_table.all_runs(trainer.db)[0].reason.startswith("nothing is left")
    shown = rig.cache.get(redis_keys.run_progress(LINE))
    assert shown is not None
    assert json.loads(shown)["stage"] == "failed"


def test_the_console_sees_what_is_collected_and_what_is_held(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    send(rig, corrections(), batch([revision("t1", "Who?", "Say the year too.", kind="comment")], 2))
    run_steps(rig.trainer(examples=100))
    shown = json.loads(rig.cache.get(redis_keys.collected(LINE)) or b"{}")
    assert (shown["usable"], shown["needed"], shown["users"], shown["batches"]) == (3, 100, 3, 2)
    assert shown["held"] == {COMMENT_NOT_TRAINED: 1}
    assert "a run needs 100" in shown["reason"]


def test_a_redis_that_is_away_stops_nothing(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    rig.cache.away = True
    send(rig, corrections())
    run_steps(rig.trainer())
    assert len(trained(rig)) == 1


def test_failed_and_inconclusive_versions_are_published_with_their_verdict(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, lambda folder: finish_run(folder, "inconclusive"))
    send(rig, corrections())
    run_steps(rig.trainer())
    assert [version.gate.verdict for version in trained(rig) if version.gate] == ["inconclusive"]


def test_what_a_run_holds_back_is_shown_with_its_reasons(tmp_path: Path) -> None:
    def holding(folder: Path) -> int:
        finish_run(folder)
        mark = json.loads((folder / "snapshot.json").read_bytes())
        mark["quarantine"] = [
            ["r1-0", "e-r1-0", "agreement: outvoted"],
            ["r1-1", "e-r1-1", "agreement: outvoted"],
        ]
        write_whole(folder / "snapshot.json", json.dumps(mark).encode())
        return 0

    rig = TrainerRig(tmp_path, holding)
    send(rig, corrections())
    trainer = rig.trainer()
    run_steps(trainer)
    rig.clock.advance(60)
    run_steps(trainer)
    shown = json.loads(rig.cache.get(redis_keys.collected(LINE)) or b"{}")
    assert shown["held"] == {"agreement: outvoted": 2}
