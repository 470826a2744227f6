"""I5, I11: erased content leaves the trainer's database, snapshots, work files and open runs."""

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
from services.trainer.dataset import batch_table, rewrite_cache, snapshot, snapshot_files
from services.trainer.dataset.holdout import is_held_out
from services.trainer.erasure import requests
from services.trainer.erasure.redact_run import rows_of
from services.trainer.files import write_whole
from services.trainer.run import run_table
from services.trainer.run.folder import ARTIFACT, GATE_ANSWERS, GATE_RESULT
from services.trainer.run.run_table import RunConfig
from services.trainer.service import Trainer
from shared.cloudevents import cloudevent
from shared.errors import BrokerUnavailable
from shared.events import Batch, ErasureReport, ExampleRevision, sha256
from shared.records import Output
from shared.topics import ERASURE_REPORTS, MODEL_VERSIONS, TRAINING_BATCHES
from shared.versions import GateReport, ModelVersion
from tests.trainer_factories import LINE, NOW, TrainerRig, batch, grouped, revision, row, run_steps

SECRET = "Zanzibarquux"
P = 2
USERS = [user for user in (f"user-{i}" for i in range(40)) if not is_held_out(LINE, user)]
HELDOUT = next(user for user in (f"user-{i}" for i in range(40)) if is_held_out(LINE, user))
ANN, BOB, CAL = USERS[:3]
QUESTIONS = ("Who founded Acme?", "Where is the head office?", "How long is the warranty?")


def correction(
    name: str, question: int, user: str, answer: str | None = None, **more: Any
) -> ExampleRevision:
    return revision(name, QUESTIONS[question], answer or f"The answer is number {question}.", user, **more)


SECRETS = (
    correction("r0", 0, ANN, f"It was {SECRET} who did."),
    correction("r1", 1, BOB),
    correction("r2", 2, CAL),
)
REMAINING = SECRETS[1:]


def retracted(one: ExampleRevision) -> ExampleRevision:
    """Return an example as the processor rewrites it after an erasure of its asker: without content."""
    removed: dict[str, Any] = {"op": "retract", "messages": (), "choices": (), "signals": (), "user_id": None}
    return one.model_copy(update=removed)


def send(rig: TrainerRig, *batches: Batch) -> None:
    rig.log.append(
        *(
            cloudevent(
                TRAINING_BATCHES, one.batch_id, one, source="processor", ce_id="x", at=NOW, partition=0
            )
            for one in batches
        )
    )


def report(rig: TrainerRig, partitions: Iterable[int] = range(P), subject: str = ANN, **more: Any) -> None:
    """Append the processor's reports; only partition 0 has batches."""
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


def erase(rig: TrainerRig, remaining: Sequence[ExampleRevision] = REMAINING, **more: Any) -> None:
    """Append everything the processor writes: the rewritten batch, and a report of each partition."""
    send(rig, batch(remaining, 1, rewrite=1))
    report(rig, **more)


def reports(rig: TrainerRig) -> list[ErasureReport]:
    found = [ErasureReport.from_json(record.value) for record in rig.log.records(ERASURE_REPORTS.name)]
    return sorted((one for one in found if one.service == "trainer"), key=lambda one: one.request_id)


def trained(rig: TrainerRig) -> list[ModelVersion]:
    found = [ModelVersion.from_json(record.value) for record in rig.log.records(MODEL_VERSIONS.name)]
    return [version for version in found if version.ref.kind == "lora"]


def take_snapshot(folder: Path) -> None:
    """Take the snapshot as the run's process does, from the database on disk."""
    config = RunConfig.from_json((folder / "config.json").read_text())
    with closing(sqlite3.connect(folder.parent.parent / "trainer.sqlite3")) as db:
        taken = snapshot.build(LINE, batch_table.current_examples(db, config.through), config.through)
    snapshot_files.write(folder, taken, 10)


def write_work_files(folder: Path) -> None:
    """Write files that a run's process leaves next to its snapshot, with text of its rows."""
    (folder / "adapter").mkdir(exist_ok=True)
    (folder / ARTIFACT).mkdir(exist_ok=True)
    write_whole(folder / ARTIFACT / "adapter_config.json", folder.name.encode())
    for name in (GATE_ANSWERS, "checkpoints/checkpoint-2/state.json", "run.log", ".train.parquet.99"):
        write_whole(folder / name, repr(list(rows_of(folder))).encode())
    for one in rows_of(folder):
        rewrite = rewrite_cache.Rewrite(one.row.answer)
        rewrite_cache.store(folder.parent.parent / rewrite_cache.FOLDER, one.row, "strong", rewrite)


def finish(folder: Path) -> int:
    take_snapshot(folder)
    write_work_files(folder)
    verdict = GateReport.model_validate({"verdict": "passed", "gated_against": f"{LINE}@base-{'ab' * 4}"})
    write_whole(folder / GATE_RESULT, verdict.model_dump_json().encode())
    return 0


def files_with(folder: Path, text: str = SECRET) -> list[str]:
    """Return the files below `folder` that contain the text, as bytes or within a compressed Parquet file."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.suffix == ".parquet":
            content += repr(pq.read_table(path).to_pylist()).encode()
        found += [path.name] if text.encode() in content else []
    return found


@pytest.fixture
def rig(tmp_path: Path) -> TrainerRig:
    return TrainerRig(tmp_path, finish)


def published(rig: TrainerRig, examples: Sequence[ExampleRevision] = SECRETS) -> Trainer:
    """Return a trainer that has published a version trained on these."""
    send(rig, batch(examples))
    trainer = rig.trainer()
    run_steps(trainer)
    assert len(trained(rig)) == 1
    return trainer


# --- published versions ----------------------------------------------------------------------------------


def test_no_file_contains_the_text_once_the_erasure_is_reported(rig: TrainerRig) -> None:
    trainer = published(rig)
    data = rig.folder / "data"
    before = files_with(data)
    assert {"train.parquet", GATE_ANSWERS, "run.log", "state.json", ".train.parquet.99"} < set(before)
    assert [path.name in before for path in data.rglob("revisions/*.json")].count(True) == 1
    assert any(name.startswith("trainer.sqlite3") for name in before), "negative control: the search finds it"
    erase(rig)
    run_steps(trainer)
    assert files_with(data) == []
    (found,) = reports(rig)
    (version,) = trained(rig)
    assert (found.request_id, found.subject, found.versions, found.snapshots) == (
        "q1",
        ANN,
        (version.ref.version,),
        1,
    )
    folder = rig.started[0]
    assert {one.row.user_id for one in snapshot_files.read_rows(folder)} == {BOB, CAL}
    assert snapshot_files.read_ref(folder) == version.dataset, "the lineage still names what was trained"


def test_erasure_is_reported_once_across_restarts(rig: TrainerRig) -> None:
    trainer = published(rig)
    erase(rig)
    run_steps(trainer)
    with trainer.db:
        trainer.db.execute("UPDATE erasures SET reported = 0")  # as after a crash before this was recorded
    run_steps(rig.trainer())
    other = TrainerRig(rig.folder / "another disk", finish, log=rig.log)
    run_steps(other.trainer(examples=100))
    assert len(reports(rig)) == 1


@pytest.mark.parametrize("arrives", [False, True])
def test_report_with_a_lost_acknowledgement_is_published_once(rig: TrainerRig, arrives: bool) -> None:
    trainer = published(rig)
    publisher: Any = trainer.versions._publisher
    through = publisher.publish_all

    def lost(records: list[Output]) -> None:
        if arrives:
            through(records)
        raise BrokerUnavailable("the connection broke")

    publisher.publish_all = lost
    erase(rig)
    run_steps(trainer)
    assert len(reports(rig)) == 1


def test_crash_while_deleting_loses_neither_version_nor_files(rig: TrainerRig) -> None:
    trainer = published(rig)
    erase(rig)
    trainer.consume(trainer.reader.poll(0))
    folder = rig.started[0]
    due = trainer.erasures.due_targets()
    assert trainer.erasures.affects(folder.name, due)
    for name in ("train.parquet", "heldout.parquet"):  # the crash: rows are deleted, work files are not
        rows = [one for one in snapshot_files.read_rows(folder, name) if one.row.user_id != ANN]
        write_whole(folder / name, snapshot_files.to_parquet(rows))
    run_steps(rig.trainer())
    assert files_with(rig.folder / "data") == []
    assert [len(one.versions) for one in reports(rig)] == [1]


def test_correction_by_another_user_is_erased_with_the_asker(rig: TrainerRig) -> None:
    corrected = correction("r0", 0, BOB, f"It was {SECRET} who did.", asked_by=ANN)
    trainer = published(rig, (corrected, *REMAINING))
    erase(rig, (retracted(corrected), *REMAINING))
    run_steps(trainer)
    assert files_with(rig.folder / "data") == []
    assert [one.snapshots for one in reports(rig)] == [1]


def test_version_evaluated_with_erased_rows_is_not_named(rig: TrainerRig) -> None:
    trainer = published(rig, (correction("r0", 0, HELDOUT, f"It was {SECRET}."), *REMAINING))
    erase(rig, subject=HELDOUT)
    run_steps(trainer)
    assert files_with(rig.folder / "data") == []
    assert [(one.versions, one.snapshots) for one in reports(rig)] == [((), 1)]


def test_feedback_after_the_request_stays(rig: TrainerRig) -> None:
    trainer = published(rig)
    erase(rig)
    send(rig, batch([correction("r9", 0, ANN, "Ida Voss founded it."), correction("r8", 1, BOB)], 2))
    run_steps(trainer, 16)
    assert len(trained(rig)) == 2
    assert ANN in {one.row.user_id for one in snapshot_files.read_rows(rig.started[-1])}
    assert [len(one.versions) for one in reports(rig)] == [1]


def test_second_erasure_deletes_what_came_in_between(rig: TrainerRig) -> None:
    trainer = published(rig, REMAINING)
    erase(rig)
    run_steps(trainer)
    send(rig, batch([correction("r9", 0, ANN, f"It was {SECRET}."), correction("r8", 1, BOB)], 2))
    run_steps(trainer)
    send(rig, batch([correction("r8", 1, BOB)], 2, rewrite=1))
    report(rig, request_id="q2", batches={f"{LINE}-0-2": 1})
    run_steps(trainer)
    assert files_with(rig.folder / "data") == []
    names = [version.ref.version for version in trained(rig)]
    assert [one.versions for one in reports(rig)] == [(), (names[1],)]


def test_retraction_deletes_only_its_event(rig: TrainerRig) -> None:
    other = correction("r5", 2, ANN, "Two years.")
    trainer = published(rig, (*SECRETS, other))
    send(rig, batch((*REMAINING, other), 1, rewrite=1))
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
    run_steps(trainer)
    assert files_with(rig.folder / "data") == []
    assert "r5" in {one.row.response_id for one in snapshot_files.read_rows(rig.started[0])}
    (found,) = reports(rig)
    assert (found.kind, found.event_id, len(found.versions)) == ("retraction", "e-r0", 1)


# --- due requests -------------------------------------------------------------------------------------------


def test_request_is_due_after_all_partitions_and_rewrites(rig: TrainerRig) -> None:
    trainer = published(rig)
    report(rig, partitions=[0])
    send(rig, batch(REMAINING, 1, rewrite=1))
    run_steps(trainer)
    assert reports(rig) == [], "a partition is missing"
    report(rig, request_id="q2", batches={f"{LINE}-0-1": 2})
    run_steps(trainer)
    assert reports(rig) == [], "the rewritten batch is missing"
    report(rig, partitions=[1])
    run_steps(trainer)
    assert [one.request_id for one in reports(rig)] == ["q1"]
    send(rig, batch([], 1, rewrite=2))
    run_steps(trainer)
    assert [one.request_id for one in reports(rig)] == ["q1", "q2"]


def test_request_without_affected_rows_is_reported(rig: TrainerRig) -> None:
    trainer = published(rig, REMAINING)
    report(rig, batches={"another-0-1": 1})
    run_steps(trainer)
    assert [(one.line, one.versions, one.snapshots) for one in reports(rig)] == [(LINE, (), 0)]


def test_request_of_another_line_erases_the_user_here_too(rig: TrainerRig) -> None:
    trainer = published(rig)
    erase(rig, line="support")
    run_steps(trainer)
    assert files_with(rig.folder / "data") == []
    assert [(one.line, len(one.versions)) for one in reports(rig)] == [(LINE, 1)]


def test_version_with_a_lost_snapshot_is_named_if_it_read_a_batch(rig: TrainerRig) -> None:
    published(rig)
    erase(rig)
    other = TrainerRig(rig.folder / "another disk", finish, log=rig.log)
    run_steps(other.trainer(examples=100))
    (version,) = trained(rig)
    assert [(one.versions, one.snapshots) for one in reports(rig)] == [((version.ref.version,), 0)]


# --- open runs ----------------------------------------------------------------------------------------------


def test_affected_run_is_replaced_by_one_on_the_rewritten_batches(rig: TrainerRig) -> None:
    """I5."""
    first = True

    def child(folder: Path) -> int | None:
        nonlocal first
        if not first:
            return finish(folder)
        first = False
        take_snapshot(folder)
        write_work_files(folder)
        return None

    rig.process = child
    send(rig, batch(SECRETS))
    trainer = rig.trainer(examples=3)
    run_steps(trainer)
    assert files_with(rig.started[0])
    erase(rig)
    run_steps(trainer, 12)
    assert rig.processes[0].status == 143, "its process was stopped"
    assert not rig.started[0].exists()
    # Two examples do not start a run, but this one replaces a run that was already decided.
    assert [run.stage for run in run_table.all_runs(trainer.db)] == ["erased", "published"]
    assert files_with(rig.folder / "data") == []
    fresh = TrainerRig(rig.folder / "fresh", finish)
    send(fresh, batch(REMAINING, 1, rewrite=1))
    run_steps(fresh.trainer())
    digests = [one.dataset.digest for one in (*trained(rig), *trained(fresh)) if one.dataset]
    assert len(digests) == 2
    assert digests[0] == digests[1]
    assert [(one.versions, one.snapshots) for one in reports(rig)] == [((), 1)]


def test_run_without_a_snapshot_reads_the_table_again(rig: TrainerRig) -> None:
    """Its process may have read the rows before the rewrite, and would write them after everything was deleted."""
    first = True

    def child(folder: Path) -> int | None:
        nonlocal first
        if not first:
            return finish(folder)
        first = False
        write_whole(folder / ".train.parquet.7", SECRET.encode())
        return None

    rig.process = child
    send(rig, batch(SECRETS))
    trainer = rig.trainer()
    run_steps(trainer)
    erase(rig)
    run_steps(trainer, 12)
    assert rig.processes[0].status == 143
    assert [folder.name for folder in rig.started] == [rig.started[0].name] * 2, "it is the same run"
    assert files_with(rig.folder / "data") == []
    assert [one.versions for one in reports(rig)] == [()]
    assert len(trained(rig)) == 1


def test_run_without_affected_rows_continues(rig: TrainerRig) -> None:
    def child(folder: Path) -> int | None:
        take_snapshot(folder)
        return None

    rig.process = child
    send(rig, batch(REMAINING))
    trainer = rig.trainer()
    run_steps(trainer)
    report(rig, batches={})
    run_steps(trainer)
    assert rig.processes[0].status is None
    assert [run.stage for run in run_table.all_runs(trainer.db)] == ["snapshot"]
    assert len(reports(rig)) == 1


def test_run_on_erased_rows_is_never_published(rig: TrainerRig) -> None:
    """Also before the request is due: one partition has rewritten, another has not reported."""

    def child(folder: Path) -> int:
        finish(folder)
        if len(rig.started) == 1:
            send(rig, batch(REMAINING, 1, rewrite=1))  # while it ran
            report(rig, partitions=[0])
        return 0

    rig.process = child
    send(rig, batch(SECRETS))
    trainer = rig.trainer()
    run_steps(trainer, 12)
    assert [run.stage for run in run_table.all_runs(trainer.db)] == ["erased", "published"]
    (version,) = trained(rig)
    assert version.run_id == rig.started[1].name
    report(rig, partitions=[1])
    run_steps(trainer)
    assert files_with(rig.folder / "data") == []
    assert [(one.versions, one.snapshots) for one in reports(rig)] == [((), 1)]


def test_run_published_before_a_crash_is_named_and_not_replaced(rig: TrainerRig) -> None:
    trainer = published(rig)
    run_table.set_stage(trainer.db, rig.started[0].name, "gated")  # as after a crash before this was recorded
    erase(rig)
    again = rig.trainer()
    run_steps(again)
    assert [run.stage for run in run_table.all_runs(again.db)] == ["published"]
    assert [one.versions for one in reports(rig)] == [(trained(rig)[0].ref.version,)]
    assert files_with(rig.folder / "data") == []


def test_gate_answers_of_an_affected_version_are_deleted(rig: TrainerRig) -> None:
    trainer = published(rig)
    first = rig.started[0].name
    send(rig, batch([correction("r8", 1, BOB, "At the harbour."), correction("r7", 2, CAL, "Ten years.")], 2))
    run_steps(trainer)
    second = rig.started[1]
    config = (second / "config.json").read_text()
    write_whole(
        second / "config.json", config.replace('"stable_run": null', f'"stable_run": "{first}"').encode()
    )
    erase(rig)
    run_steps(trainer)
    assert (rig.started[1] / "train.parquet").exists()
    assert not (rig.started[1] / GATE_ANSWERS).exists()


def test_replies_of_a_judge_model_are_deleted(rig: TrainerRig) -> None:
    trainer = published(rig)
    reply = trainer.settings.judge_replies / sha256(SECRET.encode())
    write_whole(reply, b"1")
    erase(rig)
    run_steps(trainer)
    assert len(reports(rig)) == 1
    assert not reply.parent.exists()
    assert list(trainer.settings.folder.glob(".*")) == []


def test_search_catches_a_trainer_that_ignores_open_runs(
    rig: TrainerRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: without ending open runs, the text stays on disk."""

    def child(folder: Path) -> int | None:
        take_snapshot(folder)
        return None

    rig.process = child
    send(rig, batch(SECRETS))
    trainer = rig.trainer()
    monkeypatch.setattr(Trainer, "_abort_for_erasure", lambda self, due: None)
    run_steps(trainer)
    erase(rig)
    run_steps(trainer)
    assert len(reports(rig)) == 1
    assert files_with(rig.folder / "data") == ["train.parquet"]


# --- database files -------------------------------------------------------------------------------------------------


def test_asker_is_stored_but_not_part_of_the_digest(tmp_path: Path) -> None:
    unknown = row("q", "a")
    known = replace(unknown, asked_by=ANN)
    one, other = (snapshot_files.Snapshot(tuple(grouped([each])), (), ()) for each in (unknown, known))
    assert one.digest() == other.digest()
    snapshot_files.write(tmp_path, other, 1)
    assert [each.row.asked_by for each in snapshot_files.read_rows(tmp_path)] == [ANN]
    assert (
        pq.read_schema(tmp_path / snapshot_files.TRAIN_ROWS).field(snapshot_files.ASKED_BY).type
        == pa.string()
    )


def churn(folder: Path, seed: int, connect: Callable[[Path], sqlite3.Connection]) -> int:
    """Store batches of many sizes, rewrite those with the text, and count how often it is still in the files."""
    dice, folder = random.Random(seed), folder / str(seed)
    db = connect(folder)
    numbers = range(1, 40)
    for number in numbers:
        names = [f"r{number}-{i}" for i in range(dice.randint(1, 9))]
        text = SECRET if number % 3 == 0 else "plain"
        with db:
            batch_table.store_batch(
                db,
                batch(
                    [correction(name, 0, ANN, f"{text} " * dice.randint(1, 400)) for name in names], number
                ),
            )
    for number in dice.sample(numbers, len(numbers)):
        if number % 3 == 0:
            with db:
                batch_table.store_batch(
                    db, batch([correction("left", 0, BOB)] * dice.randint(0, 1), number, rewrite=1)
                )
    assert scrub(db)
    found = sum(path.read_bytes().count(SECRET.encode()) for path in folder.iterdir())
    db.close()
    return found


def open_without_secure_delete(folder: Path) -> sqlite3.Connection:
    db = open_database(folder)
    db.execute("PRAGMA secure_delete=OFF")
    return db


def test_no_deleted_byte_is_left_in_the_database_files(tmp_path: Path) -> None:
    assert [churn(tmp_path, seed, open_database) for seed in range(5)] == [0] * 5
    assert churn(tmp_path, 99, open_without_secure_delete) > 0, "negative control: SQLite's default leaves it"


def test_erasure_is_not_reported_while_another_process_reads(rig: TrainerRig) -> None:
    trainer = published(rig)
    trainer.db.execute("PRAGMA busy_timeout=10")
    file = trainer.settings.folder / "trainer.sqlite3"
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN")
        assert other.execute("SELECT COUNT(*) FROM rows").fetchone() == (3,)
        erase(rig)
        run_steps(trainer, 3)
        assert reports(rig) == []
    run_steps(trainer, 2)
    assert len(reports(rig)) == 1
    assert files_with(rig.folder / "data") == []


def test_report_read_twice_changes_nothing(tmp_path: Path) -> None:
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
        requests.mark_reported(db, ["q1"], [])
        assert requests.due_targets(db) == []
