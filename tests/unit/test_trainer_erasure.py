"""I5, I11: what is erased leaves the trainer's table, snapshots, work files and open runs, byte for byte."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.trainer.database import open_database, scrub
from services.trainer.dataset import batch_table, rewrite_cache, snapshot
from services.trainer.dataset.erasure_target import ErasureTarget
from services.trainer.dataset.holdout import is_held_out
from services.trainer.erasure import requests
from services.trainer.erasure.redact_run import find_affected, redact, rows_of
from services.trainer.files import write_whole
from services.trainer.run import run_table
from services.trainer.run.folder import ARTIFACT, GATE_ANSWERS, GATE_RESULT
from services.trainer.run.run_table import RunConfig
from services.trainer.service import Trainer
from shared.cloudevents import cloudevent
from shared.errors import BrokerUnavailable
from shared.events import Batch, ErasureReport, ExampleRevision
from shared.records import Output
from shared.topics import ERASURE_REPORTS, MODEL_VERSIONS, TRAINING_BATCHES
from shared.versions import GateReport, ModelVersion
from tests.trainer_factories import LINE, NOW, Rig, batch, grouped, revision, row, turns

SECRET = "Zanzibarquux"
P = 2
USERS = [user for user in (f"user-{i}" for i in range(40)) if not is_held_out(LINE, user)]
MEASURING = next(user for user in (f"user-{i}" for i in range(40)) if is_held_out(LINE, user))
ANN, BOB, CAL = USERS[:3]
QUESTIONS = ("Who founded Acme?", "Where is the head office?", "How long is the warranty?")


def said(name: str, question: int, user: str, answer: str | None = None, **more: Any) -> ExampleRevision:
    return revision(name, QUESTIONS[question], answer or f"The answer is number {question}.", user, **more)


SECRETS = (said("r0", 0, ANN, f"It was {SECRET} who did."), said("r1", 1, BOB), said("r2", 2, CAL))
WITHOUT = SECRETS[1:]


def retracted(one: ExampleRevision) -> ExampleRevision:
    """What the processor leaves of an example whose asker is erased: no content."""
    gone: dict[str, Any] = {"op": "retract", "messages": (), "choices": (), "signals": (), "user_id": None}
    return one.model_copy(update=gone)


def send(rig: Rig, *batches: Batch) -> None:
    rig.log.append(
        *(
            cloudevent(
                TRAINING_BATCHES, one.batch_id, one, source="processor", ce_id="x", at=NOW, partition=0
            )
            for one in batches
        )
    )


def report(rig: Rig, partitions: Iterable[int] = range(P), subject: str = ANN, **more: Any) -> None:
    """What the processor reports; partition 0 is the one with batches."""
    batches = more.pop("batches", {f"{LINE}-0-1": 1})
    for partition in partitions:
        fields = {
            "line": LINE,
            "request_id": "q1",
            "subject": subject,
            "service": "processor",
            "partition": partition,
            "partitions": P,
            "batches": batches if partition == 0 else {},
            "completed_at": NOW,
        }
        made = ErasureReport.model_validate(fields | more)
        rig.log.append(
            cloudevent(
                ERASURE_REPORTS, made.request_id, made, source="processor", ce_id=f"{partition}", at=NOW
            )
        )


def erase(rig: Rig, left: Sequence[ExampleRevision] = WITHOUT, **more: Any) -> None:
    """The processor's whole part: the batch without what goes, and a report of each partition."""
    send(rig, batch(left, 1, rewrite=1))
    report(rig, **more)


def reports(rig: Rig) -> list[ErasureReport]:
    found = [ErasureReport.from_json(record.value) for record in rig.log.records(ERASURE_REPORTS.name)]
    return sorted((one for one in found if one.service == "trainer"), key=lambda one: one.request_id)


def trained(rig: Rig) -> list[ModelVersion]:
    found = [ModelVersion.from_json(record.value) for record in rig.log.records(MODEL_VERSIONS.name)]
    return [version for version in found if version.ref.kind == "lora"]


def take_snapshot(folder: Path) -> None:
    """As the run's process does, from the table on the disk."""
    config = RunConfig.from_json((folder / "config.json").read_text())
    with closing(sqlite3.connect(folder.parent.parent / "trainer.sqlite3")) as db:
        taken = snapshot.build(LINE, batch_table.current_examples(db, config.through), config.through)
    snapshot.write(folder, taken, 10)


def work(folder: Path) -> None:
    """What a run's process leaves about beside its snapshot, with texts of it."""
    (folder / "adapter").mkdir(exist_ok=True)
    (folder / ARTIFACT).mkdir(exist_ok=True)
    write_whole(folder / ARTIFACT / "adapter_config.json", folder.name.encode())
    for name in (GATE_ANSWERS, "checkpoints/checkpoint-2/state.json", "run.log", ".train.parquet.99"):
        write_whole(folder / name, repr(list(rows_of(folder))).encode())
    for one in rows_of(folder):
        kept = rewrite_cache.Rewrite(one.row.answer)
        rewrite_cache.store(folder.parent.parent / rewrite_cache.FOLDER, one.row, "strong", kept)


def finish(folder: Path) -> int:
    take_snapshot(folder)
    work(folder)
    verdict = GateReport.model_validate({"verdict": "passed", "gated_against": f"{LINE}@base-{'ab' * 4}"})
    write_whole(folder / GATE_RESULT, verdict.model_dump_json().encode())
    return 0


def files_with(folder: Path, text: str = SECRET) -> list[str]:
    """Files below `folder` that hold the text: as bytes, or in a Parquet that has to be decompressed to see it."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        told = path.read_bytes()
        if path.suffix == ".parquet":
            told += repr(pq.read_table(path).to_pylist()).encode()
        found += [path.name] if text.encode() in told else []
    return found


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, finish)


def published(rig: Rig, examples: Sequence[ExampleRevision] = SECRETS) -> Trainer:
    """A trainer that has published a version from these."""
    send(rig, batch(examples))
    trainer = rig.trainer()
    turns(trainer)
    assert len(trained(rig)) == 1
    return trainer


# --- what is published already ----------------------------------------------------------------------------------


def test_no_file_of_the_trainer_holds_the_text_after_its_report_and_the_version_is_named(rig: Rig) -> None:
    trainer = published(rig)
    data = rig.folder / "data"
    before = files_with(data)
    assert {"train.parquet", GATE_ANSWERS, "run.log", "state.json", ".train.parquet.99"} < set(before)
    assert [path.name in before for path in data.rglob("revisions/*.json")].count(True) == 1
    assert any(name.startswith("trainer.sqlite3") for name in before), "the search would find it"
    erase(rig)
    turns(trainer)
    assert files_with(data) == []
    (told,) = reports(rig)
    (version,) = trained(rig)
    assert (told.request_id, told.subject, told.versions, told.snapshots) == (
        "q1",
        ANN,
        (version.ref.version,),
        1,
    )
    folder = rig.started[0]
    assert {one.row.user_id for one in snapshot.read_rows(folder)} == {BOB, CAL}
    assert snapshot.read_ref(folder) == version.dataset, "the lineage still names what was trained"


def test_it_is_reported_once_however_often_the_trainer_begins_again(rig: Rig) -> None:
    trainer = published(rig)
    erase(rig)
    turns(trainer)
    with trainer.db:
        trainer.db.execute("UPDATE erasures SET reported = 0")  # as after a crash before this was noted
    turns(rig.trainer())
    other = Rig(rig.folder / "another disk", finish, log=rig.log)
    turns(other.trainer(examples=100))
    assert len(reports(rig)) == 1


@pytest.mark.parametrize("arrives", [False, True])
def test_a_report_whose_answer_was_lost_is_there_once(rig: Rig, arrives: bool) -> None:
    trainer = published(rig)
    publisher: Any = trainer.versions._publisher
    through = publisher.publish_all

    def lost(records: list[Output]) -> None:
        if arrives:
            through(records)
        raise BrokerUnavailable("the connection broke")

    publisher.publish_all = lost
    erase(rig)
    turns(trainer)
    assert len(reports(rig)) == 1


def test_a_crash_after_the_rows_were_taken_out_forgets_neither_version_nor_files(rig: Rig) -> None:
    trainer = published(rig)
    erase(rig)
    trainer.take(trainer.reader.poll(0))
    folder = rig.started[0]
    due = trainer.eraser.due()
    assert trainer.eraser.concerns(folder.name, due)
    for name in ("train.parquet", "heldout.parquet"):  # the crash: rows are out, work files still lie there
        rows = [one for one in snapshot.read_rows(folder, name) if one.row.user_id != ANN]
        write_whole(folder / name, snapshot.to_parquet(rows))
    turns(rig.trainer())
    assert files_with(rig.folder / "data") == []
    assert [len(one.versions) for one in reports(rig)] == [1]


def test_a_correction_of_somebody_else_goes_with_who_asked(rig: Rig) -> None:
    asked = said("r0", 0, BOB, f"It was {SECRET} who did.", asked_by=ANN)
    trainer = published(rig, (asked, *WITHOUT))
    erase(rig, (retracted(asked), *WITHOUT))
    turns(trainer)
    assert files_with(rig.folder / "data") == []
    assert [one.snapshots for one in reports(rig)] == [1]


def test_a_version_that_was_only_measured_by_it_is_not_named(rig: Rig) -> None:
    trainer = published(rig, (said("r0", 0, MEASURING, f"It was {SECRET}."), *WITHOUT))
    erase(rig, subject=MEASURING)
    turns(trainer)
    assert files_with(rig.folder / "data") == []
    assert [(one.versions, one.snapshots) for one in reports(rig)] == [((), 1)]


def test_what_the_subject_said_after_the_request_stays(rig: Rig) -> None:
    trainer = published(rig)
    erase(rig)
    send(rig, batch([said("r9", 0, ANN, "Ida Voss founded it."), said("r8", 1, BOB)], 2))
    turns(trainer, 16)
    assert len(trained(rig)) == 2
    assert ANN in {one.row.user_id for one in snapshot.read_rows(rig.started[-1])}
    assert [len(one.versions) for one in reports(rig)] == [1]


def test_who_is_erased_again_later_loses_what_came_between(rig: Rig) -> None:
    trainer = published(rig, WITHOUT)
    erase(rig)
    turns(trainer)
    send(rig, batch([said("r9", 0, ANN, f"It was {SECRET}."), said("r8", 1, BOB)], 2))
    turns(trainer)
    send(rig, batch([said("r8", 1, BOB)], 2, rewrite=1))
    report(rig, request_id="q2", batches={f"{LINE}-0-2": 1})
    turns(trainer)
    assert files_with(rig.folder / "data") == []
    names = [version.ref.version for version in trained(rig)]
    assert [one.versions for one in reports(rig)] == [(), (names[1],)]


def test_a_late_retraction_takes_its_event_and_no_other_of_the_same_user(rig: Rig) -> None:
    other = said("r5", 2, ANN, "Two years.")
    trainer = published(rig, (*SECRETS, other))
    send(rig, batch((*WITHOUT, other), 1, rewrite=1))
    made = ErasureReport(
        line=LINE,
        request_id="retract:r0/e-r0",
        kind="retraction",
        subject=ANN,
        response_id="r0",
        event_id="e-r0",
        service="processor",
        partition=0,
        partitions=1,
        batches={f"{LINE}-0-1": 1},
        completed_at=NOW,
    )
    rig.log.append(Output(ERASURE_REPORTS.name, b"k", made.to_json()))
    turns(trainer)
    assert files_with(rig.folder / "data") == []
    assert "r5" in {one.row.response_id for one in snapshot.read_rows(rig.started[0])}
    (told,) = reports(rig)
    assert (told.kind, told.event_id, len(told.versions)) == ("retraction", "e-r0", 1)


# --- when it is due -------------------------------------------------------------------------------------------


def test_it_waits_for_every_partition_and_for_every_batch_as_it_was_left(rig: Rig) -> None:
    trainer = published(rig)
    report(rig, partitions=[0])
    send(rig, batch(WITHOUT, 1, rewrite=1))
    turns(trainer)
    assert reports(rig) == [], "a partition is missing"
    report(rig, request_id="q2", batches={f"{LINE}-0-1": 2})
    turns(trainer)
    assert reports(rig) == [], "the batch has not come as it was left"
    report(rig, partitions=[1])
    turns(trainer)
    assert [one.request_id for one in reports(rig)] == ["q1"]
    send(rig, batch([], 1, rewrite=2))
    turns(trainer)
    assert [one.request_id for one in reports(rig)] == ["q1", "q2"]


def test_a_request_that_concerns_nothing_here_is_reported_all_the_same(rig: Rig) -> None:
    trainer = published(rig, WITHOUT)
    report(rig, batches={"another-0-1": 1})
    turns(trainer)
    assert [(one.line, one.versions, one.snapshots) for one in reports(rig)] == [(LINE, (), 0)]


def test_a_request_made_in_another_line_takes_the_user_out_of_this_one_too(rig: Rig) -> None:
    trainer = published(rig)
    erase(rig, line="support")
    turns(trainer)
    assert files_with(rig.folder / "data") == []
    assert [(one.line, len(one.versions)) for one in reports(rig)] == [(LINE, 1)]


def test_where_a_snapshot_is_lost_the_versions_that_read_the_batch_are_named(rig: Rig) -> None:
    published(rig)
    erase(rig)
    other = Rig(rig.folder / "another disk", finish, log=rig.log)
    turns(other.trainer(examples=100))
    (version,) = trained(rig)
    assert [(one.versions, one.snapshots) for one in reports(rig)] == [((version.ref.version,), 0)]


# --- the open run ----------------------------------------------------------------------------------------------


def test_a_run_that_holds_it_begins_anew_on_the_dataset_of_the_rewritten_batches_alone(rig: Rig) -> None:
    """I5."""
    first = True

    def child(folder: Path) -> int | None:
        nonlocal first
        if not first:
            return finish(folder)
        first = False
        take_snapshot(folder)
        work(folder)
        return None

    rig.child = child
    send(rig, batch(SECRETS))
    trainer = rig.trainer(examples=3)
    turns(trainer)
    assert files_with(rig.started[0])
    erase(rig)
    turns(trainer, 12)
    assert rig.children[0].status == 143, "its process was stopped"
    assert not rig.started[0].exists()
    # Two examples are less than a run needs, but this one had been decided on.
    assert [run.stage for run in run_table.all_runs(trainer.db)] == ["erased", "published"]
    assert files_with(rig.folder / "data") == []
    fresh = Rig(rig.folder / "fresh", finish)
    send(fresh, batch(WITHOUT, 1, rewrite=1))
    turns(fresh.trainer())
    digests = [one.dataset.digest for one in (*trained(rig), *trained(fresh)) if one.dataset]
    assert len(digests) == 2
    assert digests[0] == digests[1]
    assert [(one.versions, one.snapshots) for one in reports(rig)] == [((), 1)]


def test_a_run_that_may_be_reading_the_table_reads_it_again(rig: Rig) -> None:
    """Its process may have read the rows before they were rewritten, and write them after everything was swept."""
    first = True

    def child(folder: Path) -> int | None:
        nonlocal first
        if not first:
            return finish(folder)
        first = False
        write_whole(folder / ".train.parquet.7", SECRET.encode())
        return None

    rig.child = child
    send(rig, batch(SECRETS))
    trainer = rig.trainer()
    turns(trainer)
    erase(rig)
    turns(trainer, 12)
    assert rig.children[0].status == 143
    assert [folder.name for folder in rig.started] == [rig.started[0].name] * 2, "it is the same run"
    assert files_with(rig.folder / "data") == []
    assert [one.versions for one in reports(rig)] == [()]
    assert len(trained(rig)) == 1


def test_a_run_that_does_not_hold_it_goes_on(rig: Rig) -> None:
    def child(folder: Path) -> int | None:
        take_snapshot(folder)
        return None

    rig.child = child
    send(rig, batch(WITHOUT))
    trainer = rig.trainer()
    turns(trainer)
    report(rig, batches={})
    turns(trainer)
    assert rig.children[0].status is None
    assert [run.stage for run in run_table.all_runs(trainer.db)] == ["snapshot"]
    assert len(reports(rig)) == 1


def test_a_run_begun_on_rows_that_were_erased_is_never_published(rig: Rig) -> None:
    """Also where the request is not due yet: one partition has rewritten, another has not reported."""

    def child(folder: Path) -> int:
        finish(folder)
        if len(rig.started) == 1:
            send(rig, batch(WITHOUT, 1, rewrite=1))  # while it ran
            report(rig, partitions=[0])
        return 0

    rig.child = child
    send(rig, batch(SECRETS))
    trainer = rig.trainer()
    turns(trainer, 12)
    assert [run.stage for run in run_table.all_runs(trainer.db)] == ["erased", "published"]
    (version,) = trained(rig)
    assert version.run_id == rig.started[1].name
    report(rig, partitions=[1])
    turns(trainer)
    assert files_with(rig.folder / "data") == []
    assert [(one.versions, one.snapshots) for one in reports(rig)] == [((), 1)]


def test_a_run_that_was_published_before_a_crash_is_named_and_not_begun_anew(rig: Rig) -> None:
    trainer = published(rig)
    run_table.set_stage(trainer.db, rig.started[0].name, "gated")  # as after a crash before this was noted
    erase(rig)
    again = rig.trainer()
    turns(again)
    assert [run.stage for run in run_table.all_runs(again.db)] == ["published"]
    assert [one.versions for one in reports(rig)] == [(trained(rig)[0].ref.version,)]
    assert files_with(rig.folder / "data") == []


def test_what_the_gate_heard_from_a_version_trained_on_it_goes_too(rig: Rig) -> None:
    trainer = published(rig)
    first = rig.started[0].name
    send(rig, batch([said("r8", 1, BOB, "At the harbour."), said("r7", 2, CAL, "Ten years.")], 2))
    turns(trainer)
    second = rig.started[1]
    config = (second / "config.json").read_text()
    write_whole(
        second / "config.json", config.replace('"stable_run": null', f'"stable_run": "{first}"').encode()
    )
    erase(rig)
    turns(trainer)
    assert (rig.started[1] / "train.parquet").exists()
    assert not (rig.started[1] / GATE_ANSWERS).exists()


def test_a_wrong_order_is_caught_by_the_same_search(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: a trainer that looks at open runs no more leaves the text behind."""

    def child(folder: Path) -> int | None:
        take_snapshot(folder)
        return None

    rig.child = child
    send(rig, batch(SECRETS))
    trainer = rig.trainer()
    monkeypatch.setattr(Trainer, "_yield_to", lambda self, due: None)
    turns(trainer)
    erase(rig)
    turns(trainer)
    assert len(reports(rig)) == 1
    assert files_with(rig.folder / "data") == ["train.parquet"]


# --- the files -------------------------------------------------------------------------------------------------


def old_file(folder: Path) -> None:
    """A snapshot as it was written before its rows said who asked."""
    snapshot.write(
        folder,
        snapshot.Snapshot(
            tuple(
                grouped(
                    [row("Who?", f"{SECRET} {i}.", user, f"r{i}") for i, user in enumerate((ANN, BOB, CAL))]
                )
            ),
            (),
            (),
        ),
        1,
    )
    for name in (snapshot.TRAIN_ROWS, snapshot.HELDOUT_ROWS):
        pq.write_table(pq.read_table(folder / name).drop_columns([snapshot.ASKED_BY]), folder / name)


def test_snapshots_from_before_it_was_known_who_asked_still_read(tmp_path: Path) -> None:
    old_file(tmp_path)
    assert not snapshot.names_askers(tmp_path)
    assert [one.row.asked_by for one in snapshot.read_rows(tmp_path)] == [None] * 3


def test_of_an_old_snapshot_goes_whatever_the_table_lost(tmp_path: Path) -> None:
    """Who asked is not known, so each request takes what is not in the table any more, also after one before it."""
    old_file(tmp_path)
    standing = {"r1", "r2"}
    first, second = (
        ErasureTarget("q1", "erasure", ANN),
        ErasureTarget("q2", "erasure", "somebody who asked r1"),
    )
    redact(tmp_path, [first], lambda one: one.response_id in standing)
    assert [one.row.response_id for one in snapshot.read_rows(tmp_path)] == ["r1", "r2"]
    standing.remove("r1")
    assert find_affected(tmp_path, [second], lambda one: one.response_id in standing).trained == {"q2"}
    redact(tmp_path, [second], lambda one: one.response_id in standing)
    assert [one.row.response_id for one in snapshot.read_rows(tmp_path)] == ["r2"]


def test_who_asked_is_kept_with_the_row_and_is_no_part_of_the_digest(tmp_path: Path) -> None:
    unknown = row("q", "a")
    known = replace(unknown, asked_by=ANN)
    one, other = (snapshot.Snapshot(tuple(grouped([each])), (), ()) for each in (unknown, known))
    assert one.digest() == other.digest()
    snapshot.write(tmp_path, other, 1)
    assert [each.row.asked_by for each in snapshot.read_rows(tmp_path)] == [ANN]
    assert pq.read_schema(tmp_path / snapshot.TRAIN_ROWS).field(snapshot.ASKED_BY).type == pa.string()


def churn(folder: Path, seed: int, connect: Callable[[Path], sqlite3.Connection]) -> int:
    """Batches of all sizes come and are rewritten, then those with the text lose it; how often it is still there."""
    dice, folder = random.Random(seed), folder / str(seed)
    db = connect(folder)
    numbers = range(1, 40)
    for number in numbers:
        names = [f"r{number}-{i}" for i in range(dice.randint(1, 9))]
        text = SECRET if number % 3 == 0 else "plain"
        with db:
            batch_table.store_batch(
                db, batch([said(name, 0, ANN, f"{text} " * dice.randint(1, 400)) for name in names], number)
            )
    for number in dice.sample(numbers, len(numbers)):
        if number % 3 == 0:
            with db:
                batch_table.store_batch(
                    db, batch([said("left", 0, BOB)] * dice.randint(0, 1), number, rewrite=1)
                )
    assert scrub(db)
    found = sum(path.read_bytes().count(SECRET.encode()) for path in folder.iterdir())
    db.close()
    return found


def careless(folder: Path) -> sqlite3.Connection:
    db = open_database(folder)
    db.execute("PRAGMA secure_delete=OFF")
    return db


def test_no_byte_of_what_a_rewrite_took_is_left_in_the_table_s_files(tmp_path: Path) -> None:
    assert [churn(tmp_path, seed, open_database) for seed in range(5)] == [0] * 5
    assert churn(tmp_path, 99, careless) > 0, "the negative control: SQLite's own way leaves it there"


def test_a_table_from_before_is_freed_of_what_was_deleted_then(tmp_path: Path) -> None:
    with closing(careless(tmp_path)) as db:
        with db:
            batch_table.store_batch(
                db, batch([said(f"r{i}", 0, ANN, f"{SECRET} {'x' * 900}") for i in range(50)])
            )
        with db:
            batch_table.store_batch(db, batch([], 1, rewrite=1))
        db.execute("PRAGMA user_version=0")
        scrub(db)
    assert files_with(tmp_path) == ["trainer.sqlite3"]
    with closing(open_database(tmp_path)) as db:
        assert scrub(db)
    assert files_with(tmp_path) == []


def test_it_is_not_reported_while_somebody_reads_the_old_table(rig: Rig) -> None:
    trainer = published(rig)
    trainer.db.execute("PRAGMA busy_timeout=10")
    file = trainer.settings.folder / "trainer.sqlite3"
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN")
        assert other.execute("SELECT COUNT(*) FROM rows").fetchone() == (3,)
        erase(rig)
        turns(trainer, 3)
        assert reports(rig) == []
    turns(trainer, 2)
    assert len(reports(rig)) == 1
    assert files_with(rig.folder / "data") == []


def test_a_report_read_again_changes_nothing(tmp_path: Path) -> None:
    made = ErasureReport(
        line=LINE,
        request_id="q1",
        subject=ANN,
        service="processor",
        partition=0,
        partitions=1,
        batches={f"{LINE}-0-1": 2},
        completed_at=NOW,
    )
    with closing(open_database(tmp_path)) as db:
        for one in (made, made, made.model_copy(update={"batches": {f"{LINE}-0-1": 1}})):
            with db:
                requests.store_report(db, one, LINE)
        assert requests.due_targets(db) == []
        with db:
            batch_table.store_batch(db, batch([], 1, rewrite=2))
        assert [target.request_id for target in requests.due_targets(db)] == ["q1"]
        requests.mark_reported(db, ["q1"])
        assert requests.due_targets(db) == []
