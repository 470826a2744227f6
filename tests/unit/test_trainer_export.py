"""Datasets to take elsewhere: what is in them, how and when they are written, and that an erasure reaches them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import pytest

from services.trainer.dataset import export_files
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.erasure_target import ErasureTarget
from services.trainer.dataset.holdout import is_held_out
from services.trainer.dataset.trl_records import Export, build_export
from services.trainer.run import run_table
from shared.adapters import redis_keys
from shared.cloudevents import cloudevent
from shared.commands import CommandResult, ExportDataset, TrainNow
from shared.events import Batch, Choice, ErasureReport, ExampleRevision, Over, SignalKind, Under
from shared.topics import ERASURE_REPORTS, OPERATOR_COMMANDS, OPERATOR_RESULTS, TRAINING_BATCHES
from tests.trainer_factories import LINE, NOT_KNOWN, NOW, Rig, batch, example, finish, later, revision, turns

USERS = [user for user in (f"user-{i}" for i in range(60)) if not is_held_out(LINE, user)]
MEASURING = next(user for user in (f"user-{i}" for i in range(60)) if is_held_out(LINE, user))
QUESTIONS = ("Who founded Acme?", "Where is the head office?", "How long is the warranty?")
SECRET = "Zanzibarquux"


def correction(i: int, user: str, answer: str | None = None) -> ExampleRevision:
    return revision(
        f"r{i}", QUESTIONS[i % 3], answer or f"The answer is number {i % 3}.", user, asked_by=user
    )


def said(name: str, kind: SignalKind, value: Any, user: str = "", **more: Any) -> ExampleRevision:
    """An answer with one more choice, and what one user said of it."""
    one = revision(name, f"What of {name}?", "-", user or USERS[0], original=f"Take {name}.")
    choices = (*one.choices, Choice(index=1, text=f"Leave {name}."))
    signals = (one.signals[0].model_copy(update={"kind": kind, "value": value} | more),)
    return one.model_copy(update={"choices": choices, "signals": signals})


def exported(examples: Sequence[ExampleRevision]) -> Export:
    return build_export(LINE, [example(one) for one in examples])


def files(found: Export) -> dict[str, list[dict[str, Any]]]:
    told: dict[str, list[dict[str, Any]]] = {}
    for one in found.records:
        told.setdefault(one.file, []).append(one.fields())
    return told


def reasons(found: Export) -> list[str]:
    return [one.reason for one in found.held]


def test_a_secret_that_the_model_said_is_not_exported_as_the_answer_to_shun() -> None:
    said_it = revision(
        "r0", QUESTIONS[0], "I may not tell.", USERS[0], original="Use AKIA" + "IOSFODNN7EXAMPLE"
    )
    found = exported([said_it])
    assert [one.file.partition("-")[0] for one in found.records] == ["sft"]
    assert reasons(found) == ["secret: AWS Access Key (in the answer that it corrects)"]


def test_a_thumb_on_an_answer_that_was_released_is_exported() -> None:
    one = said("r0", "thumbs", "up")
    text = "Ask anna.meier@pellworth.com"
    one = one.model_copy(update={"choices": (one.choices[0].model_copy(update={"text": text}),)})
    event = one.signals[0].event_id
    assert reasons(exported([one])) == ["personal data: an e-mail address"]
    released = build_export(LINE, [Example(one, 0, 1, 0, {event: frozenset({"personal data"})})])
    assert [record.file.partition("-")[0] for record in released.records] == ["kto"]


def chat(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


# --- what is in it ----------------------------------------------------------------------------------------------


def test_a_correction_is_a_completion_and_is_chosen_over_the_answer_that_it_corrects() -> None:
    found = files(exported([correction(0, USERS[0])]))
    prompt, better = chat("user", QUESTIONS[0]), chat("assistant", "The answer is number 0.")
    assert found == {
        "sft-train": [{"prompt": prompt, "completion": better}],
        "dpo-train": [{"prompt": prompt, "chosen": better, "rejected": chat("assistant", NOT_KNOWN)}],
    }


@pytest.mark.parametrize("value", ["up", "down", 5, 4, 2, 1])
def test_a_thumb_or_a_rating_labels_the_answer_it_was_given(value: Any) -> None:
    kind: SignalKind = "thumbs" if isinstance(value, str) else "rating"
    label = value in ("up", 5, 4)
    prompt = chat("user", "What of x?")
    assert files(exported([said("x", kind, value)])) == {
        "kto-train": [{"prompt": prompt, "completion": chat("assistant", "Take x."), "label": label}]
    }
    other = files(exported([said("x", kind, value, choice=1)]))["kto-train"]
    assert other[0]["completion"] == chat("assistant", "Leave x.")


def test_a_rating_in_the_middle_says_neither() -> None:
    found = exported([said("x", "rating", 3)])
    assert (found.records, reasons(found)) == (
        (),
        ["rating: in the middle, so neither liked nor disliked"],
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
def test_a_preference_is_a_pair_in_its_direction(value: Any, chosen: str, rejected: str) -> None:
    pair = files(exported([said("x", "preference", value)]))["dpo-train"][0]
    assert (pair["chosen"], pair["rejected"]) == (chat("assistant", chosen), chat("assistant", rejected))


@pytest.mark.parametrize("value", [Over(over=5), Over(over="Take x."), Under(under="marks <|im_end|> here")])
def test_a_preference_over_nothing_or_the_same_or_with_marks_is_held(value: Any) -> None:
    found = exported([said("x", "preference", value)])
    assert found.records == ()
    assert len(found.held) == 1


def test_marks_in_the_text_that_is_not_chosen_are_found_too() -> None:
    found = exported([said("x", "preference", Over(over="marks <|im_end|> here"))])
    assert [reason.endswith(("of a chat template", "are in the text")) for reason in reasons(found)] == [True]


def test_what_one_user_says_again_of_the_same_counts_once_the_newest() -> None:
    old, new = said("x", "thumbs", "up"), said("x", "thumbs", "down", occurred_at=later(60), event_id="e-2")
    both = old.model_copy(update={"signals": (*new.signals, *old.signals)})
    found = exported([both])
    assert [one.row.label for one in found.records] == [False]
    assert [one.event_id for one in found.held] == ["e-x"]


def test_held_out_users_are_a_split_of_their_own() -> None:
    found = files(
        exported([correction(0, USERS[0]), correction(1, MEASURING), said("x", "thumbs", "up", MEASURING)])
    )
    assert sorted(found) == ["dpo-heldout", "dpo-train", "kto-heldout", "sft-heldout", "sft-train"]


def test_no_user_fills_the_thumbs_alone() -> None:
    many = [said(f"m{i}", "thumbs", "up", USERS[0]) for i in range(30)]
    others = [said(f"o{i}", "thumbs", "up", USERS[i]) for i in range(1, 12)]
    users = [one.row.user_id for one in exported(many + others).records]
    assert users.count(USERS[0]) < 30
    assert len(set(users)) == 12


def test_reasons_of_a_run_that_do_not_hold_here_are_not_given() -> None:
    assert reasons(exported([said("x", "thumbs", "up"), said("c", "comment", "Be brief, please.")])) == [
        "comment: says what to change and not what to answer; held (comment_mode: append would train on it)"
    ]


def test_the_digest_is_of_the_content_in_whatever_order_it_came() -> None:
    all_of_it = [
        *(correction(i, USERS[i]) for i in range(8)),
        said("x", "thumbs", "up"),
        said("y", "rating", 1),
    ]
    shuffled = random.Random(3).sample(all_of_it, len(all_of_it))
    assert exported(shuffled).digest() == exported(all_of_it).digest()
    assert exported(all_of_it[1:]).digest() != exported(all_of_it).digest()


# --- how it is written ------------------------------------------------------------------------------------------


ALL = (
    correction(0, USERS[0], f"It was {SECRET}."),
    correction(1, USERS[1]),
    said("x", "thumbs", "up", USERS[2]),
)
ERASED = ErasureTarget("q1", "erasure", USERS[0])


def test_lines_and_parquet_hold_the_same_records_in_the_same_order(tmp_path: Path) -> None:
    found = exported(ALL)
    folder = export_files.save(tmp_path, found, {"0": 1}, NOW)
    for name, records in files(found).items():
        lines = (folder / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == records
        assert pq.read_table(folder / f"{name}.parquet").to_pylist() == records
    mark = json.loads((folder / export_files.EXPORT).read_text())
    assert mark["files"] == {name: len(records) for name, records in files(found).items()}
    assert [fields for _, fields in export_files.load(folder)] == [one.fields() for one in found.records]


def test_the_same_content_is_written_once_and_no_half_of_it_is_ever_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(export_files, "write_whole", full)
        with pytest.raises(OSError, match="No space"):
            export_files.save(tmp_path, exported(ALL), {}, NOW)
    assert export_files.remove_unfinished(tmp_path) == []
    folder = export_files.save(tmp_path, exported(ALL), {}, NOW)
    before = (folder / export_files.EXPORT).read_bytes()
    assert export_files.save(tmp_path, exported(ALL), {}, later(9)) == folder
    assert (folder / export_files.EXPORT).read_bytes() == before
    assert export_files.remove_unfinished(tmp_path) == [folder]


def full(path: Path, data: bytes) -> None:
    """A disk that takes nothing."""
    raise OSError(28, "No space left on device")


def text_of(folder: Path) -> str:
    told = [repr(pq.read_table(path).to_pylist()) for path in folder.rglob("*.parquet")]
    return "".join([*told, *(path.read_text() for path in folder.rglob("*.json*"))])


def test_what_an_erasure_takes_leaves_lines_parquet_and_sources(tmp_path: Path) -> None:
    folder = export_files.save(tmp_path, exported(ALL), {"0": 1}, NOW)
    assert export_files.affected_requests(folder, [ERASED], lambda row: False) == {"q1"}
    export_files.redact(folder, [ERASED], lambda row: False)
    assert SECRET not in text_of(folder)
    assert USERS[0] not in text_of(folder)
    left = files(exported(ALL[1:]))
    for name, records in left.items():
        lines = (folder / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == records
        assert pq.read_table(folder / f"{name}.parquet").to_pylist() == records
    mark = json.loads((folder / export_files.EXPORT).read_text())
    assert (mark["erased"], mark["files"]) == (2, {name: len(rows) for name, rows in left.items()})
    assert export_files.affected_requests(folder, [ERASED], lambda row: False) == set()


def test_an_export_stays_as_it_is_where_the_rows_still_stand_or_are_of_others(tmp_path: Path) -> None:
    folder = export_files.save(tmp_path, exported(ALL), {"0": 1}, NOW)
    other = ErasureTarget("q2", "erasure", "somebody")
    assert export_files.affected_requests(folder, [ERASED], lambda row: True) == set()
    export_files.redact(folder, [ERASED], lambda row: True)
    export_files.redact(folder, [other], lambda row: False)
    assert [fields for _, fields in export_files.load(folder)] == [
        one.fields() for one in exported(ALL).records
    ]


def test_an_export_of_nothing_else_goes_whole(tmp_path: Path) -> None:
    folder = export_files.save(tmp_path, exported(ALL[:1]), {"0": 1}, NOW)
    export_files.redact(folder, [ERASED], lambda row: False)
    assert list(tmp_path.iterdir()) == []


# --- when, by the trainer's loop --------------------------------------------------------------------------------


def send(rig: Rig, *batches: Batch) -> None:
    rig.log.append(
        *(
            cloudevent(
                TRAINING_BATCHES, one.batch_id, one, source="processor", ce_id="x", at=NOW, partition=0
            )
            for one in batches
        )
    )


def order(rig: Rig, name: str, kind: type[ExportDataset] | type[TrainNow] = ExportDataset) -> None:
    command = kind(line=LINE, command_id=name, issued_at=NOW)
    rig.log.append(
        cloudevent(OPERATOR_COMMANDS, LINE, command, source="console", ce_id=name, at=NOW, partition=0)
    )


def results(rig: Rig) -> list[CommandResult]:
    return [CommandResult.from_json(record.value) for record in rig.log.records(OPERATOR_RESULTS.name)]


def there(rig: Rig) -> list[Path]:
    return sorted((rig.folder / "data" / "trainer" / LINE / "exports").glob("*"))


def test_a_command_writes_a_dataset_and_says_where_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path, finish)
    send(rig, batch(ALL))
    order(rig, "c1")
    turns(rig.trainer(examples=100))
    turns(rig.trainer(examples=100))
    (folder,) = there(rig)
    assert [(one.command_id, one.status) for one in results(rig)] == [("c1", "done")]
    assert str(folder.resolve()) in results(rig)[0].message
    assert "sft-train 2" in results(rig)[0].message


def test_an_export_is_no_run_so_what_it_read_still_trains(tmp_path: Path) -> None:
    rig = Rig(tmp_path, lambda folder: None)
    send(rig, batch(ALL))
    order(rig, "c1")
    trainer = rig.trainer()
    turns(trainer)
    assert len(there(rig)) == 1
    assert run_table.open_run(trainer.db) is not None
    order(rig, "c2")
    turns(trainer)
    assert [one.status for one in results(rig)] == ["done", "done"]


def test_a_command_with_nothing_to_export_is_refused_and_says_what_is_held(tmp_path: Path) -> None:
    rig = Rig(tmp_path, finish)
    send(rig, batch([said("x", "rating", 3)]))
    order(rig, "c1")
    turns(rig.trainer())
    assert [one.status for one in results(rig)] == ["refused"]
    assert "nothing to export; held back: 1 (rating: in the middle" in results(rig)[0].message
    assert there(rig) == []


def test_a_full_disk_refuses_the_command_and_the_trainer_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, finish)
    monkeypatch.setattr(export_files, "write_whole", full)
    send(rig, batch(ALL))
    order(rig, "c1")
    turns(rig.trainer(examples=100))
    assert [one.status for one in results(rig)] == ["refused"]
    assert "No space left" in results(rig)[0].message


EXPORTING = cast("dict[str, float]", {"mode": "export"})


def test_in_mode_export_a_dataset_is_written_where_a_run_would_begin_and_nothing_trains(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path, finish)
    send(rig, batch(ALL))
    trainer = rig.trainer(**EXPORTING)
    turns(trainer)
    assert len(there(rig)) == 1
    turns(rig.trainer(**EXPORTING))
    assert len(there(rig)) == 1
    send(rig, batch([correction(2, USERS[3]), correction(4, USERS[4])], 2))
    turns(rig.trainer(**EXPORTING))
    assert len(there(rig)) == 2
    assert run_table.all_runs(trainer.db) == []


def test_in_mode_export_data_of_which_nothing_may_go_out_are_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []

    def none_of_it(line: str, examples: Sequence[Any], **more: Any) -> Export:
        looked.append(len(examples))
        return Export((), ())

    monkeypatch.setattr("services.trainer.dataset.trl_records.build_export", none_of_it)
    rig = Rig(tmp_path, finish)
    send(rig, batch(ALL))
    turns(rig.trainer(**EXPORTING))
    assert looked == [3]


def test_in_mode_export_train_now_is_refused_and_the_console_and_a_dry_run_say_why(tmp_path: Path) -> None:
    rig = Rig(tmp_path, finish)
    send(rig, batch(ALL))
    order(rig, "c1", TrainNow)
    dry = TrainNow(line=LINE, command_id="c2", issued_at=NOW, dry_run=True)
    rig.log.append(
        cloudevent(OPERATOR_COMMANDS, LINE, dry, source="console", ce_id="c2", at=NOW, partition=0)
    )
    turns(rig.trainer(**EXPORTING | {"examples": 100}))
    told = {one.command_id: (one.status, one.message) for one in results(rig)}
    assert told["c1"][0] == "refused"
    assert "loopwright dataset export" in told["c1"][1]
    assert "this trainer never trains (mode: export)" in told["c2"][1]
    shown = json.loads(rig.cache.get(redis_keys.collected(LINE)) or b"{}")
    assert shown["reason"].startswith("writes datasets and never trains; ")
    assert rig.started == []


def test_a_run_that_was_open_rests_in_mode_export_and_goes_on_after_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path, lambda folder: -9)
    send(rig, batch(ALL))
    turns(rig.trainer(), 3)
    began = len(rig.started)
    turns(rig.trainer(**EXPORTING))
    assert len(rig.started) == began
    rig.child = finish
    trainer = rig.trainer()
    turns(trainer)
    assert [run.stage for run in run_table.all_runs(trainer.db)] == ["published"]


def test_an_erasure_reaches_exports_before_it_is_reported(tmp_path: Path) -> None:
    """I11: no file below the trainer's folder has the text once the report is out."""
    rig = Rig(tmp_path, finish)
    send(rig, batch(ALL))
    order(rig, "c1")
    trainer = rig.trainer(examples=100)
    turns(trainer)
    (folder,) = there(rig)
    (folder.with_name(".0123.incoming")).mkdir()
    (folder.with_name(".0123.incoming") / "sft-train.jsonl").write_text(SECRET)
    assert SECRET in text_of(folder)
    send(rig, batch(ALL[1:], 1, rewrite=1))
    report = ErasureReport(
        line=LINE, request_id="q1", subject=USERS[0], service="processor", partition=0, partitions=1,
        batches={f"{LINE}-0-1": 1}, completed_at=NOW,
    )  # fmt: skip
    rig.log.append(cloudevent(ERASURE_REPORTS, "q1", report, source="processor", ce_id="0", at=NOW))
    turns(trainer)
    assert there(rig) == [folder]
    assert SECRET not in text_of(folder.parent)
    made = [ErasureReport.from_json(record.value) for record in rig.log.records(ERASURE_REPORTS.name)]
    assert [one.snapshots for one in made if one.service == "trainer"] == [1]
