"""Releases from quarantine: they apply from the next run on, to one check of one event, and end with the event."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from services.trainer.commands import quarantine_release
from services.trainer.database import open_database
from services.trainer.dataset import batch_table, snapshot
from services.trainer.dataset.filters import RELEASABLE, check_of, first_fault
from services.trainer.dataset.holdout import is_held_out
from services.trainer.dataset.row_selection import apply_agreement, usable_rows
from services.trainer.new_data import NewDataCounter
from services.trainer.run import run_quarantine, run_table
from services.trainer.run.run_table import RunConfig
from services.trainer.service import Trainer
from services.trainer.settings import TrainerSettings
from shared.adapters import redis_keys
from shared.cloudevents import cloudevent
from shared.commands import EXECUTORS, CommandResult, Release, TrainNow
from shared.events import ErasureReport, ExampleRevision
from shared.topics import ERASURE_REPORTS, OPERATOR_COMMANDS, OPERATOR_RESULTS, TRAINING_BATCHES
from tests.trainer_factories import LINE, NOW, TrainerRig, batch, finish_run, revision, row, run_steps

USERS = [user for user in (f"user-{i}" for i in range(40)) if not is_held_out(LINE, user)]
ANN, BOB = USERS[:2]
KEY = "AKIA" + "IOSFODNN7EXAMPLE"
SECRETS = (
    revision("r1", "Who founded Acme?", "Write to anna.meier@pellworth.com.", ANN),
    revision("r2", "How do I log in?", f"Use {KEY}.", BOB),
    revision("r3", "How long is the warranty?", "I am not sure about that.", BOB),
)
"""Quarantined for personal data, for a secret, and for changing nothing (which cannot be released)."""
PERSONAL, SECRET = "personal data: an e-mail address", "secret: AWS Access Key"


def send(rig: TrainerRig, *examples: ExampleRevision, rewrite: int = 0) -> None:
    one = batch(examples, rewrite=rewrite)
    rig.log.append(
        cloudevent(TRAINING_BATCHES, one.batch_id, one, source="processor", ce_id="x", at=NOW, partition=0)
    )


def command(rig: TrainerRig, message: Release | TrainNow) -> None:
    rig.log.append(
        cloudevent(
            OPERATOR_COMMANDS, LINE, message, source="console", ce_id=message.command_id, at=NOW, partition=0
        )
    )


def release(rig: TrainerRig, *response_ids: str, name: str = "c1") -> None:
    command(rig, Release(line=LINE, command_id=name, issued_at=NOW, response_ids=response_ids))


def results(rig: TrainerRig) -> dict[str, tuple[str, str]]:
    """Return command -> (status, message), of which each command has one."""
    found = [CommandResult.from_json(record.value) for record in rig.log.records(OPERATOR_RESULTS.name)]
    assert len({one.command_id for one in found}) == len(found)
    return {one.command_id: (one.status, one.message) for one in found}


def listed(rig: TrainerRig) -> list[list[str]]:
    shown = json.loads(rig.cache.get(redis_keys.quarantine(LINE)) or b"{}")
    assert shown["total"] == len(shown["held"])
    return list(shown["held"])


def trainable(trainer: Trainer) -> set[str]:
    rows, _ = usable_rows(batch_table.current_examples(trainer.db, batch_table.through(trainer.db)))
    return {one.response_id for one in rows}


def refresh_console(rig: TrainerRig, trainer: Trainer) -> None:
    rig.clock.advance(60_000)
    run_steps(trainer, 1)


def test_quarantine_is_listed_without_text_and_released_row_trains(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, lambda _: None)
    send(rig, *SECRETS)
    trainer = rig.trainer()
    run_steps(trainer, 3)
    assert listed(rig) == [["r1", "e-r1", PERSONAL], ["r2", "e-r2", SECRET]]
    assert b"anna" not in (rig.cache.get(redis_keys.quarantine(LINE)) or b"")
    assert trainable(trainer) == set()
    release(rig, "r1")
    run_steps(trainer, 3)
    message = f"released 1 ({PERSONAL}), of 1 of 1 responses; they train from the next run on"
    assert results(rig) == {"c1": ("done", message)}
    assert trainable(trainer) == {"r1"}
    refresh_console(rig, trainer)
    assert listed(rig) == [["r2", "e-r2", SECRET]]


def test_release_without_releasable_rows_is_refused(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, lambda _: None)
    send(rig, *SECRETS)
    trainer = rig.trainer()
    release(rig, "r3", "nobody")
    run_steps(trainer, 3)
    message = "none of these 2 responses has a quarantined row that can be released"
    assert results(rig) == {"c1": ("refused", message)}
    assert trainable(trainer) == set()
    assert EXECUTORS["release"] == "trainer"


def test_release_covers_one_check_only() -> None:
    both = row("Who?", f"Use {KEY} or anna.meier@pellworth.com")
    assert first_fault(both) == SECRET
    released = replace(both, released=frozenset({"secret"}))
    assert first_fault(released) == PERSONAL
    marked = row("Who?", "Ida\x00 <|im_end|>")
    assert first_fault(marked) == "control characters: U+0000"
    all_released = replace(marked, released=RELEASABLE)
    assert check_of(str(first_fault(all_released))) == "chat template"


def test_released_disputed_correction_trains() -> None:
    claims = [
        row("Who founded Acme?", f"It was {who}.", user, user) for user, who in (("u1", "Ida"), ("u2", "Kim"))
    ]
    kept, quarantined = apply_agreement(claims)
    assert kept == []
    assert {one.reason for one in quarantined} == {"agreement: disputed"}
    one, other = claims
    released = replace(one, released=frozenset({"agreement"}))
    assert [found.row for found in apply_agreement([released, other])[0]] == [released]


def test_release_applies_from_the_next_run_on(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, lambda _: None)
    good = [revision(f"g{i}", f"Where is shop {i}?", f"In street number {i}.", USERS[i]) for i in range(3)]
    send(rig, *SECRETS, *good)
    trainer = rig.trainer()
    run_steps(trainer, 3)
    first = run_table.all_runs(trainer.db)[0].config
    release(rig, "r1", "r2")
    run_steps(trainer, 3)
    assert results(rig)["c1"][0] == "done"

    def trains(config: RunConfig) -> set[str]:
        examples = batch_table.current_examples(trainer.db, config.through, config.released)
        return {one.row.response_id for one in snapshot.build(LINE, examples, config.through).train}

    assert trains(RunConfig.from_json(first.to_json())).isdisjoint({"r1", "r2"})
    rig.processes[-1].status = finish_run(rig.started[-1])
    run_steps(trainer, 8)
    second = run_table.all_runs(trainer.db)[1].config
    assert second.released == quarantine_release.newest_release(trainer.db) == 2
    assert {"r1", "r2"} <= trains(second)


def test_released_rows_count_as_new_data(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    good = [revision(f"g{i}", f"Where is shop {i}?", f"In street number {i}.", USERS[i]) for i in range(3)]
    send(rig, *SECRETS, *good)
    trainer = rig.trainer()
    run_steps(trainer)
    command(rig, TrainNow(line=LINE, command_id="t1", issued_at=NOW))
    run_steps(trainer)
    assert results(rig)["t1"][0] == "refused"
    release(rig, "r1")
    run_steps(trainer)
    command(rig, TrainNow(line=LINE, command_id="t2", issued_at=NOW))
    run_steps(trainer)
    assert results(rig)["t2"][0] == "done"
    assert len(run_table.all_runs(trainer.db)) == 2


def test_disputed_rows_of_the_newest_run_can_be_released(
    tmp_path: Path,
) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    good = [revision(f"g{i}", f"Where is shop {i}?", f"In street number {i}.", USERS[i]) for i in range(3)]
    send(rig, *SECRETS, *good)
    trainer = rig.trainer(examples=3)
    run_steps(trainer)
    (run,) = run_table.all_runs(trainer.db)
    share, disputed = "share: this user has many rows already", "agreement: disputed"
    found = [
        ("g0", "e-g0", disputed),
        ("g1", "e-g1", share),
        ("r1", "e-r1", PERSONAL),
        ("x", "e-x", disputed),
    ]
    run_quarantine.store(trainer.db, run.config.run_id, found)

    def counts() -> dict[str, int]:
        refresh_console(rig, trainer)
        held = json.loads(rig.cache.get(redis_keys.collected(LINE)) or b"{}")["held"]
        return {reason: held[reason] for reason in held if reason in {share, disputed, PERSONAL}}

    assert counts() == {share: 1, disputed: 1, PERSONAL: 1}, "a row that no longer exists is not listed"
    release(rig, "g0", "g1", "r1")
    run_steps(trainer)
    assert results(rig)["c1"][1].startswith(f"released 1 ({disputed}), 1 ({PERSONAL}), of 2 of 3 responses")
    assert counts() == {share: 1}
    assert listed(rig) == [["r2", "e-r2", SECRET]]


def test_release_survives_restarts_and_the_loss_of_the_database(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, lambda _: None)
    send(rig, *SECRETS)
    release(rig, "r1")
    trainer = rig.trainer()
    run_steps(trainer, 3)
    trainer.db.close()
    again = rig.trainer()
    run_steps(again, 3)
    assert trainable(again) == {"r1"}
    again.db.close()
    for file in rig.folder.rglob("trainer.sqlite3*"):
        file.unlink()
    rebuilt = rig.trainer()
    run_steps(rebuilt, 3)
    assert trainable(rebuilt) == {"r1"}
    assert list(results(rig)) == ["c1"]


def test_erasure_removes_the_releases_of_its_events(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, lambda _: None)
    send(rig, *SECRETS)
    trainer = rig.trainer()
    release(rig, "r1", "r2")
    run_steps(trainer, 3)
    assert quarantine_release.newest_release(trainer.db) == 2
    send(rig, *SECRETS[1:], rewrite=1)
    report = ErasureReport(
        line=LINE,
        request_id="q1",
        kind="erasure",
        subject=ANN,
        service="processor",
        partition=0,
        partitions=1,
        batches={f"{LINE}-0-1": 1},
        completed_at=NOW,
    )
    rig.log.append(cloudevent(ERASURE_REPORTS, "q1", report, source="processor", ce_id="q1", at=NOW))
    run_steps(trainer)
    left = trainer.db.execute("SELECT response_id FROM releases").fetchall()
    assert left == [("r2",)]
    send(rig, *SECRETS, rewrite=2)
    run_steps(trainer, 3)
    assert trainable(trainer) == {"r2"}, "a new event is quarantined again"


def test_release_numbers_are_never_reused(tmp_path: Path) -> None:
    with closing(open_database(tmp_path)) as db:
        counter = NewDataCounter(db, TrainerSettings(line=LINE))
        with counter.counting():
            batch_table.store_batch(db, batch(SECRETS))
        with counter.counting():
            quarantine_release.release(db, ["r2"])
        with counter.counting():
            batch_table.store_batch(db, batch(SECRETS[:1], rewrite=1))
        assert quarantine_release.remove_orphaned(db) == 1
        quarantine_release.release(db, ["r1"])
        assert quarantine_release.newest_release(db) == 2
