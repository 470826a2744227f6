"""There is always a way forward: train again by command, and by itself after an erasure that affects stable."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.trainer.dataset.holdout import is_held_out
from services.trainer.files import remove, write_whole
from services.trainer.run import run_table
from services.trainer.run.folder import FAILURE_REASON, GATE_RESULT, ExitCode
from services.trainer.run.run_table import Run
from services.trainer.service import Trainer
from shared.adapters import redis_keys
from shared.cloudevents import cloudevent
from shared.commands import CommandResult, TrainNow
from shared.events import ErasureReport
from shared.live_status import CollectedStatus
from shared.records import Output
from shared.topics import (
    ERASURE_REPORTS,
    MODEL_ROLLOUT,
    MODEL_VERSIONS,
    OPERATOR_COMMANDS,
    OPERATOR_RESULTS,
    TRAINING_BATCHES,
)
from shared.versions import ModelVersion, RolloutRecord
from tests.trainer_factories import LINE, NOW, TrainerRig, batch, finish_run, revision, run_steps

TRAINING = [user for user in (f"user-{i}" for i in range(60)) if not is_held_out(LINE, user)]
HELDOUT = [user for user in (f"user-{i}" for i in range(200)) if is_held_out(LINE, user)]
HOUR_S = 3600.0


def send(rig: TrainerRig, users: list[str], number: int = 1, rewrite: int = 0) -> None:
    examples = [revision(f"r{number}-{user}", f"What is {user}?", f"It is {user}.", user) for user in users]
    one = batch(examples, number, rewrite=rewrite)
    rig.log.append(
        cloudevent(TRAINING_BATCHES, one.batch_id, one, source="processor", ce_id="x", at=NOW, partition=0)
    )


def train(rig: TrainerRig, name: str, *, again: bool = False) -> None:
    command = TrainNow(line=LINE, command_id=name, issued_at=NOW, again=again)
    rig.log.append(
        cloudevent(OPERATOR_COMMANDS, LINE, command, source="console", ce_id=name, at=NOW, partition=0)
    )


def results(rig: TrainerRig) -> dict[str, CommandResult]:
    found = [CommandResult.from_json(record.value) for record in rig.log.records(OPERATOR_RESULTS.name)]
    assert len({one.command_id for one in found}) == len(found)
    return {one.command_id: one for one in found}


def runs(trainer: Trainer) -> list[Run]:
    return run_table.all_runs(trainer.db)


def reason_shown(rig: TrainerRig) -> str:
    status = CollectedStatus.from_json(rig.cache.get(redis_keys.collected(LINE)))
    assert status is not None
    return status.reason


# --- train now --again --------------------------------------------------------------------------------------------


def fail(folder: Path) -> int:
    write_whole(folder / FAILURE_REASON, b"loss is nan: lower LOOPWRIGHT_TRAINER_LEARNING_RATE")
    return ExitCode.FAILED


@pytest.mark.parametrize(
    "first", [fail, lambda f: finish_run(f, "inconclusive"), lambda f: finish_run(f, "failed")]
)
def test_train_again_is_accepted_after_any_end_of_a_run(tmp_path: Path, first: object) -> None:
    rig = TrainerRig(tmp_path, first)  # type: ignore[arg-type]
    send(rig, TRAINING[:3])
    trainer = rig.trainer()
    run_steps(trainer)
    rig.process = finish_run
    train(rig, "c1")
    run_steps(trainer)
    assert results(rig)["c1"].status == "refused"
    assert "use --again" in results(rig)["c1"].message
    train(rig, "c2", again=True)
    run_steps(trainer)
    assert results(rig)["c2"].status == "done"
    assert "commanded again, on 3 usable examples" in results(rig)["c2"].message
    assert [(run.config.again, run.stage) for run in runs(trainer)][1:] == [(True, "published")]


def test_train_again_uses_the_present_settings_and_is_executed_once(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    send(rig, TRAINING[:3])
    run_steps(rig.trainer())
    train(rig, "c1", again=True)
    train(rig, "c1", again=True)
    trainer = rig.trainer(rank=4)
    run_steps(trainer, 12)
    run_steps(rig.trainer(rank=4))
    assert [run.config.recipe.rank for run in runs(trainer)] == [16, 4]
    assert results(rig)["c1"].status == "done"


def test_train_again_without_any_usable_example_is_refused(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    train(rig, "c1", again=True)
    run_steps(rig.trainer())
    assert results(rig)["c1"].status == "refused"
    assert "no usable example" in results(rig)["c1"].message


# --- a gate that cannot decide ------------------------------------------------------------------------------------


def test_no_run_starts_by_itself_if_its_gate_cannot_decide(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    send(rig, [*TRAINING[:5], *HELDOUT[:2]])
    trainer = rig.trainer(require_gate_items=True, gate_items=4)
    run_steps(trainer)
    assert runs(trainer) == []
    assert "the gate would have at most 2 items of 4 needed and 2 held-out users of 8 needed" in reason_shown(
        rig
    )
    send(rig, HELDOUT[2:7], 2)
    run_steps(trainer)
    assert runs(trainer) == []
    assert "the gate would have at most 7 held-out users of 8 needed" in reason_shown(rig)
    send(rig, HELDOUT[7:8], 3)
    run_steps(trainer)
    assert len(runs(trainer)) == 1
    assert "held-out users" in runs(trainer)[0].reason


def test_ordered_run_starts_and_says_that_its_gate_cannot_decide(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    send(rig, TRAINING[:5])
    train(rig, "c1")
    trainer = rig.trainer(require_gate_items=True)
    run_steps(trainer)
    assert results(rig)["c1"].status == "done"
    assert "the gate would have at most 0 items of 30 needed" in results(rig)["c1"].message


# --- relative threshold -------------------------------------------------------------------------------------------


def test_next_run_waits_for_a_share_of_what_the_last_one_trained(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    send(rig, TRAINING[:4])
    trainer = rig.trainer(grow_percent=50)
    run_steps(trainer)
    with trainer.db:
        trainer.db.execute("UPDATE runs SET examples = 12")
    send(rig, TRAINING[4:9], 2)
    run_steps(trainer)
    assert len(runs(trainer)) == 1
    assert "a run needs 6 from 1 (50 % of the 12 that the last run trained on)" in reason_shown(rig)
    send(rig, TRAINING[9:10], 3)
    run_steps(trainer)
    assert len(runs(trainer)) == 2


# --- an erasure that affects stable -------------------------------------------------------------------------------


def serving_rig(tmp_path: Path) -> tuple[TrainerRig, Trainer]:
    """Return a trainer whose first version is stable."""
    rig = TrainerRig(tmp_path, finish_run)
    send(rig, TRAINING[:4])
    trainer = rig.trainer()
    run_steps(trainer)
    promote(rig)
    return rig, trainer


def promote(rig: TrainerRig, seq: int = 2) -> ModelVersion:
    """Make the newest version stable."""
    newest = [ModelVersion.from_json(record.value) for record in rig.log.records(MODEL_VERSIONS.name)][-1]
    record = RolloutRecord(
        line=LINE, seq=seq, action="promote", stable=newest.ref, reason="it passed", decided_at=NOW
    )
    rig.log.append(Output(MODEL_ROLLOUT.name, b"k", record.to_json()))
    return newest


def erase(rig: TrainerRig, erased: list[str], rewrite: int = 1) -> None:
    """Append what the processor writes when it has erased these users of the first batch."""
    send(rig, [user for user in TRAINING[:4] if user not in erased], rewrite=rewrite)
    report = ErasureReport(
        line=LINE,
        request_id=f"q{rewrite}",
        subject=erased[-1],
        service="processor",
        partition=0,
        partitions=1,
        batches={f"{LINE}-0-1": rewrite},
        completed_at=NOW,
    )
    rig.log.append(
        cloudevent(ERASURE_REPORTS, report.request_id, report, source="processor", ce_id="0", at=NOW)
    )


@pytest.fixture(autouse=True)
def _snapshot_names_the_erased_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """`finish_run` writes a snapshot of other rows, so the affected runs are given."""
    monkeypatch.setattr(
        "services.trainer.erasure.redact_run.affected_requests",
        lambda folder, targets, is_current: {target.request_id: True for target in targets},
    )
    monkeypatch.setattr("services.trainer.erasure.redact_run.redact", lambda *arguments: None)
    monkeypatch.setattr(
        "services.trainer.erasure.handler.ErasureHandler.has_erased_rows", lambda self, run_id: False
    )


def test_erasure_that_affects_stable_starts_a_run_without_new_data(tmp_path: Path) -> None:
    rig, trainer = serving_rig(tmp_path)
    stable = trainer.versions.stable(trainer.base.ref(LINE)).version
    erase(rig, TRAINING[:1])
    run_steps(trainer, 12)
    first, second = runs(trainer)
    assert second.config.replaces == "erasure"
    assert second.reason == f"an erasure affects stable {stable}: training again on 3 usable examples"
    assert first.config.replaces is None
    rig.clock.advance(48 * HOUR_S)
    run_steps(rig.trainer(), 12)
    assert len(runs(trainer)) == 2, "once"


def test_erasure_of_a_held_out_user_ends_the_replacement_and_starts_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, trainer = serving_rig(tmp_path)

    def stay_in_training(folder: Path) -> None:
        finish_run(folder)
        remove(folder / GATE_RESULT)

    rig.process = stay_in_training
    erase(rig, TRAINING[:1])
    run_steps(trainer, 12)
    monkeypatch.setattr(
        "services.trainer.erasure.redact_run.affected_requests",
        lambda folder, targets, is_current: {target.request_id: False for target in targets},
    )
    rig.process = finish_run
    erase(rig, TRAINING[:2], rewrite=2)
    run_steps(trainer, 12)
    assert [(run.stage, run.config.replaces) for run in runs(trainer)] == [
        ("published", None),
        ("erased", "erasure"),
        ("published", "erasure"),
    ]


def test_erasure_that_affects_another_version_starts_no_run(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    send(rig, TRAINING[:4])
    trainer = rig.trainer()
    run_steps(trainer)
    erase(rig, TRAINING[:1])
    run_steps(trainer, 12)
    assert len(runs(trainer)) == 1
    promote(rig)
    rig.clock.advance(60)
    run_steps(trainer, 4)
    assert len(runs(trainer)) == 2, "but once that version becomes stable, it is replaced"


def test_erasures_within_the_interval_are_joined_into_one_run(tmp_path: Path) -> None:
    rig, trainer = serving_rig(tmp_path)
    erase(rig, TRAINING[:1])
    run_steps(trainer, 12)
    for count in (2, 3):
        erase(rig, TRAINING[:count], rewrite=count)
        rig.clock.advance(60)
        run_steps(trainer, 12)
    assert len(runs(trainer)) == 2
    assert "the last run for this reason began less than 24 h ago" in reason_shown(rig)
    rig.clock.advance(24 * HOUR_S)
    run_steps(trainer, 12)
    assert len(runs(trainer)) == 3
    assert runs(trainer)[2].reason.endswith("on 1 usable examples")


def test_run_after_an_erasure_waits_for_the_end_of_quiet_hours(tmp_path: Path) -> None:
    rig, trainer = serving_rig(tmp_path)
    trainer.db.close()
    hour = (rig.clock.now_ms() // 3_600_000) % 24
    quiet = {"quiet_hours": f"{hour:02d}:00-{(hour + 2) % 24:02d}:00"}
    trainer = rig.trainer(**quiet)  # type: ignore[arg-type]
    erase(rig, TRAINING[:1])
    run_steps(trainer, 12)
    assert len(runs(trainer)) == 1
    assert "waiting for the end of quiet hours" in reason_shown(rig)
    rig.clock.advance(2 * HOUR_S)
    run_steps(trainer, 12)
    assert len(runs(trainer)) == 2


def test_training_after_an_erasure_can_be_turned_off(tmp_path: Path) -> None:
    rig, trainer = serving_rig(tmp_path)
    trainer.db.close()
    trainer = rig.trainer(retrain_after_erasure=False)
    erase(rig, TRAINING[:1])
    run_steps(trainer, 12)
    assert len(runs(trainer)) == 1
