"""What an operator releases trains from the next run on, passes that one check alone, and ends with its event."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from services.trainer.commands import quarantine_release
from services.trainer.database import open_database
from services.trainer.dataset import batch_table, snapshot
from services.trainer.dataset.filters import RELEASABLE, apply_agreement, check_of, first_fault, usable_rows
from services.trainer.dataset.holdout import is_held_out
from services.trainer.run import run_table
from services.trainer.run.run_table import RunConfig
from services.trainer.service import Trainer
from shared.adapters import redis_keys
from shared.cloudevents import cloudevent
from shared.commands import EXECUTORS, CommandResult, Release, TrainNow
from shared.events import ErasureReport, ExampleRevision
from shared.topics import ERASURE_REPORTS, OPERATOR_COMMANDS, OPERATOR_RESULTS, TRAINING_BATCHES
from tests.trainer_factories import LINE, NOW, Rig, batch, finish, revision, row, turns

USERS = [user for user in (f"user-{i}" for i in range(40)) if not is_held_out(LINE, user)]
ANN, BOB = USERS[:2]
KEY = "AKIA" + "IOSFODNN7EXAMPLE"
SECRETS = (
    revision("r1", "Who founded Acme?", "Write to anna.meier@pellworth.com.", ANN),
    revision("r2", "How do I log in?", f"Use {KEY}.", BOB),
    revision("r3", "How long is the warranty?", "I am not sure about that.", BOB),
)
"""Held for personal data, for a secret, and for saying nothing new (which cannot be released)."""
PERSONAL, SECRET = "personal data: an e-mail address", "secret: AWS Access Key"


def send(rig: Rig, *examples: ExampleRevision, rewrite: int = 0) -> None:
    one = batch(examples, rewrite=rewrite)
    rig.log.append(
        cloudevent(TRAINING_BATCHES, one.batch_id, one, source="processor", ce_id="x", at=NOW, partition=0)
    )


def order(rig: Rig, command: Release | TrainNow) -> None:
    rig.log.append(
        cloudevent(
            OPERATOR_COMMANDS, LINE, command, source="console", ce_id=command.command_id, at=NOW, partition=0
        )
    )


def release(rig: Rig, *response_ids: str, name: str = "c1") -> None:
    order(rig, Release(line=LINE, command_id=name, issued_at=NOW, response_ids=response_ids))


def results(rig: Rig) -> dict[str, tuple[str, str]]:
    """command -> (status, message); each has one."""
    found = [CommandResult.from_json(record.value) for record in rig.log.records(OPERATOR_RESULTS.name)]
    assert len({one.command_id for one in found}) == len(found)
    return {one.command_id: (one.status, one.message) for one in found}


def listed(rig: Rig) -> list[list[str]]:
    shown = json.loads(rig.cache.get(redis_keys.quarantine(LINE)) or b"{}")
    assert shown["total"] == len(shown["held"])
    return list(shown["held"])


def trainable(trainer: Trainer) -> set[str]:
    rows, _ = usable_rows(batch_table.current_examples(trainer.db, batch_table.through(trainer.db)))
    return {one.response_id for one in rows}


def shown_again(rig: Rig, trainer: Trainer) -> None:
    rig.clock.advance(60_000)
    turns(trainer, 1)


def test_what_is_held_is_listed_without_its_text_and_trains_once_it_is_released(tmp_path: Path) -> None:
    rig = Rig(tmp_path, lambda _: None)
    send(rig, *SECRETS)
    trainer = rig.trainer()
    turns(trainer, 3)
    assert listed(rig) == [["r1", "e-r1", PERSONAL], ["r2", "e-r2", SECRET]]
    assert b"anna" not in (rig.cache.get(redis_keys.quarantine(LINE)) or b"")
    assert trainable(trainer) == set()
    release(rig, "r1")
    turns(trainer, 3)
    told = f"released 1 ({PERSONAL}), of 1 of 1 responses; they count from the next run on"
    assert results(rig) == {"c1": ("done", told)}
    assert trainable(trainer) == {"r1"}
    shown_again(rig, trainer)
    assert listed(rig) == [["r2", "e-r2", SECRET]]


def test_what_cannot_be_released_is_refused_and_says_so(tmp_path: Path) -> None:
    rig = Rig(tmp_path, lambda _: None)
    send(rig, *SECRETS)
    trainer = rig.trainer()
    release(rig, "r3", "nobody")
    turns(trainer, 3)
    told = "none of these 2 responses has anything held that can be released"
    assert results(rig) == {"c1": ("refused", told)}
    assert trainable(trainer) == set()
    assert EXECUTORS["release"] == "trainer"


def test_a_release_is_of_one_check_and_leaves_the_others() -> None:
    both = row("Who?", f"Use {KEY} or anna.meier@pellworth.com")
    assert first_fault(both) == SECRET
    passed = replace(both, released=frozenset({"secret"}))
    assert first_fault(passed) == PERSONAL
    marked = row("Who?", "Ida\x00 <|im_end|>")
    assert first_fault(marked) == "control characters"
    let = replace(marked, released=RELEASABLE)
    assert check_of(str(first_fault(let))) == "chat template"


def test_a_disputed_correction_that_is_released_trains() -> None:
    claims = [
        row("Who founded Acme?", f"It was {who}.", user, user) for user, who in (("u1", "Ida"), ("u2", "Kim"))
    ]
    kept, held = apply_agreement(claims)
    assert kept == []
    assert {one.reason for one in held} == {"agreement: disputed"}
    one, other = claims
    let = replace(one, released=frozenset({"agreement"}))
    assert [found.row for found in apply_agreement([let, other])[0]] == [let]


def test_a_run_that_has_begun_takes_no_later_release_and_the_next_one_does(tmp_path: Path) -> None:
    rig = Rig(tmp_path, lambda _: None)
    good = [revision(f"g{i}", f"Where is shop {i}?", f"In street number {i}.", USERS[i]) for i in range(3)]
    send(rig, *SECRETS, *good)
    trainer = rig.trainer()
    turns(trainer, 3)
    first = run_table.all_runs(trainer.db)[0].config
    release(rig, "r1", "r2")
    turns(trainer, 3)
    assert results(rig)["c1"][0] == "done"

    def trains(config: RunConfig) -> set[str]:
        examples = batch_table.current_examples(trainer.db, config.through, config.released)
        return {one.row.response_id for one in snapshot.build(LINE, examples, config.through).train}

    assert trains(RunConfig.from_json(first.to_json())).isdisjoint({"r1", "r2"})
    rig.children[-1].status = finish(rig.started[-1])
    turns(trainer, 8)
    second = run_table.all_runs(trainer.db)[1].config
    assert second.released == quarantine_release.newest_release(trainer.db) == 2
    assert {"r1", "r2"} <= trains(second)


def test_what_was_released_counts_as_new_though_its_batch_was_read_before(tmp_path: Path) -> None:
    rig = Rig(tmp_path, finish)
    good = [revision(f"g{i}", f"Where is shop {i}?", f"In street number {i}.", USERS[i]) for i in range(3)]
    send(rig, *SECRETS, *good)
    trainer = rig.trainer()
    turns(trainer)
    order(rig, TrainNow(line=LINE, command_id="t1", issued_at=NOW))
    turns(trainer)
    assert results(rig)["t1"][0] == "refused"
    release(rig, "r1")
    turns(trainer)
    order(rig, TrainNow(line=LINE, command_id="t2", issued_at=NOW))
    turns(trainer)
    assert results(rig)["t2"][0] == "done"
    assert len(run_table.all_runs(trainer.db)) == 2


def test_what_users_dispute_is_known_since_the_newest_run_and_is_no_more_held_once_released(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path, finish)
    good = [revision(f"g{i}", f"Where is shop {i}?", f"In street number {i}.", USERS[i]) for i in range(3)]
    send(rig, *SECRETS, *good)
    trainer = rig.trainer(examples=3)
    turns(trainer)
    (run,) = run_table.all_runs(trainer.db)
    share, disputed = "share: this user has said much already", "agreement: disputed"
    found = [
        ("g0", "e-g0", disputed),
        ("g1", "e-g1", share),
        ("r1", "e-r1", PERSONAL),
        ("x", "e-x", disputed),
    ]
    run_table.store_quarantine(trainer.db, run.config.run_id, found)

    def counts() -> dict[str, int]:
        shown_again(rig, trainer)
        held = json.loads(rig.cache.get(redis_keys.collected(LINE)) or b"{}")["held"]
        return {reason: held[reason] for reason in held if reason in {share, disputed, PERSONAL}}

    assert counts() == {share: 1, disputed: 1, PERSONAL: 1}, "what no longer stands is not held"
    release(rig, "g0", "g1", "r1")
    turns(trainer)
    assert results(rig)["c1"][1].startswith(f"released 1 ({disputed}), 1 ({PERSONAL}), of 2 of 3 responses")
    assert counts() == {share: 1}
    assert listed(rig) == [["r2", "e-r2", SECRET]]


def test_a_release_is_kept_over_restarts_and_over_the_loss_of_the_table(tmp_path: Path) -> None:
    rig = Rig(tmp_path, lambda _: None)
    send(rig, *SECRETS)
    release(rig, "r1")
    trainer = rig.trainer()
    turns(trainer, 3)
    trainer.db.close()
    again = rig.trainer()
    turns(again, 3)
    assert trainable(again) == {"r1"}
    again.db.close()
    for file in rig.folder.rglob("trainer.sqlite3*"):
        file.unlink()
    anew = rig.trainer()
    turns(anew, 3)
    assert trainable(anew) == {"r1"}
    assert list(results(rig)) == ["c1"]


def test_an_erasure_ends_the_releases_of_what_it_takes(tmp_path: Path) -> None:
    rig = Rig(tmp_path, lambda _: None)
    send(rig, *SECRETS)
    trainer = rig.trainer()
    release(rig, "r1", "r2")
    turns(trainer, 3)
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
    turns(trainer)
    left = trainer.db.execute("SELECT response_id FROM releases").fetchall()
    assert left == [("r2",)]
    send(rig, *SECRETS, rewrite=2)
    turns(trainer, 3)
    assert trainable(trainer) == {"r2"}, "what comes again is held again"


def test_numbers_of_releases_are_never_given_twice(tmp_path: Path) -> None:
    with closing(open_database(tmp_path)) as db:
        batch_table.store_batch(db, batch(SECRETS))
        quarantine_release.release(db, ["r2"], quarantine_release.releasable_now(db, "hold"))
        batch_table.store_batch(db, batch(SECRETS[:1], rewrite=1))
        assert quarantine_release.remove_orphaned(db) == 1
        quarantine_release.release(db, ["r1"], quarantine_release.releasable_now(db, "hold"))
        assert quarantine_release.newest_release(db) == 2
