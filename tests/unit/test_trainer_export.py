"""Exports: their records and files, when they are written, and their erasure."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import pytest

from services.trainer.dataset import export_files
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.erasure_target import ErasureTarget
from services.trainer.dataset.filters import mark_check
from services.trainer.dataset.holdout import is_held_out
from services.trainer.dataset.trl_records import Export, build_export
from services.trainer.run import run_table
from services.trainer.worker import dataset_task, launcher
from services.trainer.worker.dataset_task import DatasetTask
from shared.adapters import redis_keys
from shared.cloudevents import cloudevent
from shared.commands import CommandResult, ExportDataset, TrainNow
from shared.events import Batch, Choice, ErasureReport, ExampleRevision, Over, SignalKind, Under
from shared.topics import ERASURE_REPORTS, OPERATOR_COMMANDS, OPERATOR_RESULTS, TRAINING_BATCHES
from tests.trainer_factories import (
    LINE,
    NOT_KNOWN,
    NOW,
    TrainerRig,
    batch,
    example,
    finish_run,
    revision,
    run_steps,
    seconds_later,
)

USERS = [user for user in (f"user-{i}" for i in range(60)) if not is_held_out(LINE, user)]
HELDOUT = next(user for user in (f"user-{i}" for i in range(60)) if is_held_out(LINE, user))
QUESTIONS = ("Who founded Acme?", "Where is the head office?", "How long is the warranty?")
SECRET = "Zanzibarquux"


def correction(i: int, user: str, answer: str | None = None) -> ExampleRevision:
    return revision(
        f"r{i}", QUESTIONS[i % 3], answer or f"The answer is number {i % 3}.", user, asked_by=user
    )


def feedback(name: str, kind: SignalKind, value: Any, user: str = "", **more: Any) -> ExampleRevision:
    """Return a response with two choices and one signal."""
    one = revision(name, f"What of {name}?", "-", user or USERS[0], original=f"Take {name}.")
    choices = (*one.choices, Choice(index=1, text=f"Leave {name}."))
    signals = (one.signals[0].model_copy(update={"kind": kind, "value": value} | more),)
    return one.model_copy(update={"choices": choices, "signals": signals})


def export_of(examples: Sequence[ExampleRevision]) -> Export:
    return build_export(LINE, [example(one) for one in examples], unfit=mark_check({"<end_of_turn>"}))


def files(found: Export) -> dict[str, list[Any]]:
    records: dict[str, list[Any]] = {}
    for one in found.records:
        records.setdefault(one.file, []).append(one.fields())
    return records


def reasons(found: Export) -> list[str]:
    return [one.reason for one in found.quarantined]


def test_secret_in_a_corrected_answer_is_not_exported() -> None:
    correction_of_secret = revision(
        "r0", QUESTIONS[0], "I may not tell.", USERS[0], original="Use AKIA" + "IOSFODNN7EXAMPLE"
    )
    found = export_of([correction_of_secret])
    assert [one.file.partition("-")[0] for one in found.records] == ["sft"]
    assert reasons(found) == ["secret: AWS Access Key (in the corrected answer)"]


def test_released_thumb_is_exported() -> None:
    one = feedback("r0", "thumbs", "up")
    text = "Ask anna.meier@pellworth.com"
    one = one.model_copy(update={"choices": (one.choices[0].model_copy(update={"text": text}),)})
    event = one.signals[0].event_id
    assert reasons(export_of([one])) == ["personal data: an e-mail address"]
    released = build_export(LINE, [Example(one, 0, 1, 0, {event: frozenset({"personal data"})})])
    assert [record.file.partition("-")[0] for record in released.records] == ["kto"]


def chat(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


# --- content ----------------------------------------------------------------------------------------------


def test_correction_is_a_completion_and_a_preference() -> None:
    found = files(export_of([correction(0, USERS[0])]))
    prompt, better = chat("user", QUESTIONS[0]), chat("assistant", "The answer is number 0.")
    assert found == {
        "sft-train": [{"prompt": prompt, "completion": better}],
        "dpo-train": [{"prompt": prompt, "chosen": better, "rejected": chat("assistant", NOT_KNOWN)}],
    }


@pytest.mark.parametrize("value", ["up", "down", 5, 4, 2, 1])
def test_thumb_or_rating_labels_its_answer(value: Any) -> None:
    kind: SignalKind = "thumbs" if isinstance(value, str) else "rating"
    label = value in ("up", 5, 4)
    prompt = chat("user", "What of x?")
    assert files(export_of([feedback("x", kind, value)])) == {
        "kto-train": [{"prompt": prompt, "completion": chat("assistant", "Take x."), "label": label}]
    }
    other = files(export_of([feedback("x", kind, value, choice=1)]))["kto-train"]
    assert other[0]["completion"] == chat("assistant", "Leave x.")


def test_neutral_rating_is_not_exported() -> None:
    found = export_of([feedback("x", "rating", 3)])
    assert (found.records, reasons(found)) == (
        (),
        ["rating: neutral, so neither liked nor disliked"],
    )


@pytest.mark.parametrize(
    ("value", "chosen", "rejected"),
    [
        (Over(over=1), "Take x.", "Leave x."),
        (Under(under=1), "Leave x.", "Take x."),
        (Over(over="Ask someone."), "Take x.", "Ask someone."),
        (Under(under="Ask someone."), "Ask someone.", "Take x."),
    ],
)
def test_preference_is_a_pair_in_its_direction(value: Any, chosen: str, rejected: str) -> None:
    pair = files(export_of([feedback("x", "preference", value)]))["dpo-train"][0]
    assert (pair["chosen"], pair["rejected"]) == (chat("assistant", chosen), chat("assistant", rejected))


@pytest.mark.parametrize("value", [Over(over=5), Over(over="Take x."), Under(under="marks <|im_end|> here")])
def test_invalid_preference_is_quarantined(value: Any) -> None:
    found = export_of([feedback("x", "preference", value)])
    assert found.records == ()
    assert len(found.quarantined) == 1


def test_corrected_answer_with_marks_is_no_rejected_one() -> None:
    marked = correction(0, USERS[0])
    choices = tuple(one.model_copy(update={"text": "Ada.<end_of_turn>"}) for one in marked.choices)
    found = export_of([marked.model_copy(update={"choices": choices})])
    assert [one.file for one in found.records] == ["sft-train"]
    assert reasons(found) == ["chat template: the text contains <end_of_turn> (in the corrected answer)"]


def test_marks_of_the_base_are_not_exported() -> None:
    found = export_of([feedback("x", "preference", Over(over="marks <end_of_turn> here"))])
    assert (found.records, reasons(found)) == ((), ["chat template: the text contains <end_of_turn>"])


def test_template_tokens_in_a_rejected_answer_are_found() -> None:
    found = export_of([feedback("x", "preference", Over(over="marks <|im_end|> here"))])
    assert reasons(found) == ["chat template: the text contains special tokens"]


def test_newest_feedback_of_a_user_on_an_answer_counts() -> None:
    old, new = (
        feedback("x", "thumbs", "up"),
        feedback("x", "thumbs", "down", occurred_at=seconds_later(60), event_id="e-2"),
    )
    both = old.model_copy(update={"signals": (*new.signals, *old.signals)})
    found = export_of([both])
    assert [one.row.label for one in found.records] == [False]
    assert [one.event_id for one in found.quarantined] == ["e-x"]


def test_held_out_users_are_a_split() -> None:
    found = files(
        export_of([correction(0, USERS[0]), correction(1, HELDOUT), feedback("x", "thumbs", "up", HELDOUT)])
    )
    assert sorted(found) == ["dpo-heldout", "dpo-train", "kto-heldout", "sft-heldout", "sft-train"]


def test_share_of_one_users_thumbs_is_limited() -> None:
    many = [feedback(f"m{i}", "thumbs", "up", USERS[0]) for i in range(30)]
    others = [feedback(f"o{i}", "thumbs", "up", USERS[i]) for i in range(1, 12)]
    users = [one.row.user_id for one in export_of(many + others).records]
    assert users.count(USERS[0]) < 30
    assert len(set(users)) == 12


def test_token_limit_and_kto_minimum_do_not_apply() -> None:
    assert reasons(
        export_of([feedback("x", "thumbs", "up"), feedback("c", "comment", "Be brief, please.")])
    ) == [
        "comment: says what to change, not what to answer (comment_mode append or revise would train on it)"
    ]


def test_digest_does_not_depend_on_order() -> None:
    all_of_it = [
        *(correction(i, USERS[i]) for i in range(8)),
        feedback("x", "thumbs", "up"),
        feedback("y", "rating", 1),
    ]
    shuffled = random.Random(3).sample(all_of_it, len(all_of_it))
    assert export_of(shuffled).digest() == export_of(all_of_it).digest()
    assert export_of(all_of_it[1:]).digest() != export_of(all_of_it).digest()


# --- files ------------------------------------------------------------------------------------------


ALL = (
    correction(0, USERS[0], f"It was {SECRET}."),
    correction(1, USERS[1]),
    feedback("x", "thumbs", "up", USERS[2]),
)
ERASED = ErasureTarget("q1", "erasure", USERS[0])


def test_jsonl_and_parquet_have_the_same_records(tmp_path: Path) -> None:
    found = export_of(ALL)
    folder = export_files.save(tmp_path, found, {"0": 1}, NOW)
    for name, records in files(found).items():
        lines = (folder / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == records
        assert pq.read_table(folder / f"{name}.parquet").to_pylist() == records
    summary = json.loads((folder / export_files.EXPORT).read_text())
    assert summary["files"] == {name: len(records) for name, records in files(found).items()}
    assert [fields for _, fields in export_files.load(folder)] == [one.fields() for one in found.records]


def test_export_is_written_once_and_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(export_files, "write_whole", full)
        with pytest.raises(OSError, match="No space"):
            export_files.save(tmp_path, export_of(ALL), {}, NOW)
    assert export_files.remove_unfinished(tmp_path) == []
    folder = export_files.save(tmp_path, export_of(ALL), {}, NOW)
    before = (folder / export_files.EXPORT).read_bytes()
    assert export_files.save(tmp_path, export_of(ALL), {}, seconds_later(9)) == folder
    assert (folder / export_files.EXPORT).read_bytes() == before
    assert export_files.remove_unfinished(tmp_path) == [folder]


def full(path: Path, data: bytes) -> None:
    """Fail as a full disk does."""
    raise OSError(28, "No space left on device")


def text_of(folder: Path) -> str:
    texts = [repr(pq.read_table(path).to_pylist()) for path in folder.rglob("*.parquet")]
    return "".join([*texts, *(path.read_text() for path in folder.rglob("*.json*"))])


def test_erasure_deletes_records_from_all_files(tmp_path: Path) -> None:
    folder = export_files.save(tmp_path, export_of(ALL), {"0": 1}, NOW)
    assert export_files.affected_requests(folder, [ERASED], lambda row: False) == {"q1"}
    export_files.redact(folder, [ERASED], lambda row: False)
    assert SECRET not in text_of(folder)
    assert USERS[0] not in text_of(folder)
    left = files(export_of(ALL[1:]))
    for name, records in left.items():
        lines = (folder / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == records
        assert pq.read_table(folder / f"{name}.parquet").to_pylist() == records
    summary = json.loads((folder / export_files.EXPORT).read_text())
    assert (summary["erased"], summary["files"]) == (2, {name: len(rows) for name, rows in left.items()})
    assert export_files.affected_requests(folder, [ERASED], lambda row: False) == set()


def test_current_rows_and_those_of_others_stay(tmp_path: Path) -> None:
    folder = export_files.save(tmp_path, export_of(ALL), {"0": 1}, NOW)
    other = ErasureTarget("q2", "erasure", "another-user")
    assert export_files.affected_requests(folder, [ERASED], lambda row: True) == set()
    export_files.redact(folder, [ERASED], lambda row: True)
    export_files.redact(folder, [other], lambda row: False)
    assert [fields for _, fields in export_files.load(folder)] == [
        one.fields() for one in export_of(ALL).records
    ]


def test_export_without_other_records_is_removed(tmp_path: Path) -> None:
    folder = export_files.save(tmp_path, export_of(ALL[:1]), {"0": 1}, NOW)
    export_files.redact(folder, [ERASED], lambda row: False)
    assert list(tmp_path.iterdir()) == []


# --- commands and triggers --------------------------------------------------------------------------------


def send(rig: TrainerRig, *batches: Batch) -> None:
    rig.log.append(
        *(
            cloudevent(
                TRAINING_BATCHES, one.batch_id, one, source="processor", ce_id="x", at=NOW, partition=0
            )
            for one in batches
        )
    )


def command(rig: TrainerRig, name: str, kind: type[ExportDataset] | type[TrainNow] = ExportDataset) -> None:
    message = kind(line=LINE, command_id=name, issued_at=NOW)
    rig.log.append(
        cloudevent(OPERATOR_COMMANDS, LINE, message, source="console", ce_id=name, at=NOW, partition=0)
    )


def results(rig: TrainerRig) -> list[CommandResult]:
    return [CommandResult.from_json(record.value) for record in rig.log.records(OPERATOR_RESULTS.name)]


def exports_of(rig: TrainerRig) -> list[Path]:
    return sorted((rig.folder / "data" / "trainer" / LINE / "exports").glob("*"))


def test_command_writes_one_export_and_reports_its_folder(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    send(rig, batch(ALL))
    command(rig, "c1")
    run_steps(rig.trainer(examples=100))
    run_steps(rig.trainer(examples=100))
    (folder,) = exports_of(rig)
    assert [(one.command_id, one.status) for one in results(rig)] == [("c1", "done")]
    assert str(folder.resolve()) in results(rig)[0].message
    assert "sft-train 2" in results(rig)[0].message


def test_exported_data_still_trains(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, lambda folder: None)
    send(rig, batch(ALL))
    command(rig, "c1")
    trainer = rig.trainer()
    run_steps(trainer)
    assert len(exports_of(rig)) == 1
    assert run_table.open_run(trainer.db) is not None
    command(rig, "c2")
    run_steps(trainer)
    assert [one.status for one in results(rig)] == ["done", "done"]


def test_command_without_data_is_refused_with_the_reasons(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    send(rig, batch([feedback("x", "rating", 3)]))
    command(rig, "c1")
    run_steps(rig.trainer())
    assert [one.status for one in results(rig)] == ["refused"]
    assert "nothing to export; quarantined: 1 (rating: neutral" in results(rig)[0].message
    assert exports_of(rig) == []


def test_full_disk_refuses_the_command_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    monkeypatch.setattr(export_files, "write_whole", full)
    send(rig, batch(ALL))
    command(rig, "c1")
    run_steps(rig.trainer(examples=100))
    assert [one.status for one in results(rig)] == ["refused"]
    assert "No space left" in results(rig)[0].message


EXPORTING = cast("dict[str, float]", {"mode": "export"})


def test_export_mode_writes_exports_instead_of_runs(
    tmp_path: Path,
) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    send(rig, batch(ALL))
    trainer = rig.trainer(**EXPORTING)
    run_steps(trainer)
    assert len(exports_of(rig)) == 1
    run_steps(rig.trainer(**EXPORTING))
    assert len(exports_of(rig)) == 1
    send(rig, batch([correction(2, USERS[3]), correction(4, USERS[4])], 2))
    run_steps(rig.trainer(**EXPORTING))
    assert len(exports_of(rig)) == 2
    assert run_table.all_runs(trainer.db) == []


def test_export_mode_considers_unusable_data_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    considered = []

    def build_nothing(line: str, examples: Iterable[Any], **more: Any) -> Export:
        considered.append(len(list(examples)))
        return Export((), ())

    monkeypatch.setattr("services.trainer.dataset.trl_records.build_export", build_nothing)
    rig = TrainerRig(tmp_path, finish_run)
    send(rig, batch(ALL))
    run_steps(rig.trainer(**EXPORTING))
    assert considered == [3]


def test_export_mode_refuses_train_now_with_the_reason(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    send(rig, batch(ALL))
    command(rig, "c1", TrainNow)
    dry = TrainNow(line=LINE, command_id="c2", issued_at=NOW, dry_run=True)
    rig.log.append(
        cloudevent(OPERATOR_COMMANDS, LINE, dry, source="console", ce_id="c2", at=NOW, partition=0)
    )
    run_steps(rig.trainer(**EXPORTING | {"examples": 100}))
    results_by_id = {one.command_id: (one.status, one.message) for one in results(rig)}
    assert results_by_id["c1"][0] == "refused"
    assert "loopwright dataset export" in results_by_id["c1"][1]
    assert "this trainer never trains (mode: export)" in results_by_id["c2"][1]
    shown = json.loads(rig.cache.get(redis_keys.collected(LINE)) or b"{}")
    assert shown["reason"].startswith("exports datasets and never trains; ")
    assert rig.started == []


def test_open_run_waits_while_in_export_mode(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, lambda folder: -9)
    send(rig, batch(ALL))
    run_steps(rig.trainer(), 3)
    began = len(rig.started)
    run_steps(rig.trainer(**EXPORTING))
    assert len(rig.started) == began
    rig.process = finish_run
    trainer = rig.trainer()
    run_steps(trainer)
    assert [run.stage for run in run_table.all_runs(trainer.db)] == ["published"]


def test_exports_are_redacted_before_the_erasure_is_reported(tmp_path: Path) -> None:
    """I11: no file below the trainer's folder has the text once the report is out."""
    rig = TrainerRig(tmp_path, finish_run)
    send(rig, batch(ALL))
    command(rig, "c1")
    trainer = rig.trainer(examples=100)
    run_steps(trainer)
    (folder,) = exports_of(rig)
    (folder.with_name(".0123.incoming")).mkdir()
    (folder.with_name(".0123.incoming") / "sft-train.jsonl").write_text(SECRET)
    assert SECRET in text_of(folder)
    send(rig, batch(ALL[1:], 1, rewrite=1))
    report = ErasureReport(
        line=LINE, request_id="q1", subject=USERS[0], service="processor", partition=0, partitions=1,
        batches={f"{LINE}-0-1": 1}, completed_at=NOW,
    )  # fmt: skip
    rig.log.append(cloudevent(ERASURE_REPORTS, "q1", report, source="processor", ce_id="0", at=NOW))
    run_steps(trainer)
    assert exports_of(rig) == [folder]
    assert SECRET not in text_of(folder.parent)
    made = [ErasureReport.from_json(record.value) for record in rig.log.records(ERASURE_REPORTS.name)]
    assert [one.snapshots for one in made if one.service == "trainer"] == [1]


def test_erasure_is_applied_while_an_export_is_made(tmp_path: Path) -> None:
    """I11: an export that an erasure meets while it is made is made again, without the erased user."""
    rig = TrainerRig(tmp_path, finish_run, dataset_tasks_hang=True)
    send(rig, batch(ALL))
    command(rig, "c1")
    trainer = rig.trainer(examples=100)
    run_steps(trainer, 3)
    (hanging,) = rig.dataset_processes
    task_folder = trainer.dataset_tasks.folder
    (task_folder / "partial").write_text(SECRET)
    unfinished = trainer.settings.exports / ".0123.incoming"
    unfinished.mkdir(parents=True)
    (unfinished / "sft-train.jsonl").write_text(SECRET)
    rig.dataset_tasks_hang = False
    send(rig, batch(ALL[1:], 1, rewrite=1))
    report = ErasureReport(
        line=LINE, request_id="q1", subject=USERS[0], service="processor", partition=0, partitions=1,
        batches={f"{LINE}-0-1": 1}, completed_at=NOW,
    )  # fmt: skip
    rig.log.append(cloudevent(ERASURE_REPORTS, "q1", report, source="processor", ce_id="0", at=NOW))
    run_steps(trainer)
    made = [ErasureReport.from_json(record.value) for record in rig.log.records(ERASURE_REPORTS.name)]
    assert [one.request_id for one in made if one.service == "trainer"] == ["q1"]
    assert hanging.status == 143, "the process was stopped"
    assert not task_folder.exists()
    assert [one.status for one in results(rig)] == ["done"]
    (folder,) = exports_of(rig)
    assert SECRET not in text_of(folder.parent)


def test_service_works_while_an_export_is_made(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run, dataset_tasks_hang=True)
    send(rig, batch(ALL))
    command(rig, "c1")
    command(rig, "c2", TrainNow)
    trainer = rig.trainer(examples=100)
    run_steps(trainer)
    assert [(one.command_id, one.status) for one in results(rig)] == [("c2", "done")]
    assert [run.stage for run in run_table.all_runs(trainer.db)] == ["published"]
    rig.clock.advance(10)
    run_steps(trainer, 1)
    shown = json.loads(rig.cache.get(redis_keys.collected(LINE)) or b"{}")
    assert shown["reason"].endswith("; export: starting")


def test_export_whose_process_ends_early_is_refused_with_its_last_line(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run, dataset_tasks_hang=True)
    send(rig, batch(ALL))
    command(rig, "c1")
    trainer = rig.trainer(examples=100)
    run_steps(trainer, 3)
    (trainer.dataset_tasks.folder / "dataset_task.log").write_text("Traceback\nMemoryError\n")
    rig.dataset_processes[0].status = 1
    run_steps(trainer)
    (result,) = results(rig)
    assert (result.status, result.message) == ("refused", "its process ended with status 1: MemoryError")


def test_export_by_a_real_process_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    send(rig, batch(ALL))
    trainer = rig.trainer(examples=100)
    for name, value in {
        "LOOPWRIGHT_LINE": LINE,
        "LOOPWRIGHT_DATA_DIR": str(trainer.settings.data_dir),
        "LOOPWRIGHT_ARTIFACTS": trainer.settings.artifacts,
    }.items():
        monkeypatch.setenv(name, value)
    run_steps(trainer)
    task = DatasetTask("export", {"0": 1}, rig.clock.now_ms(), marks=("<end_of_turn>",))
    folders = []
    for name in ("inline", "process"):
        folder = tmp_path / name
        task.write(folder)
        if name == "inline":
            dataset_task.execute(folder, trainer.settings)
        else:
            assert launcher.start_dataset_task(folder).wait(100) == 0
        folders.append(dataset_task.read_result(folder))
    assert folders[0] == folders[1]
    assert folders[0] is not None
    assert folders[0].records == 5
