"""Objectives of thumbs, ratings and preferences in a run's dataset, and when KTO trains them."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.database import open_database
from services.trainer.dataset import batch_table, snapshot, snapshot_files
from services.trainer.dataset.holdout import is_held_out
from services.trainer.dataset.objectives import (
    dpo_row,
    enough_for_kto,
    kto_row,
    kto_weights,
    objective_of,
    sft_row,
)
from services.trainer.dataset.snapshot_files import Snapshot
from services.trainer.dataset.trl_records import build_export
from services.trainer.new_data import count_new_data
from services.trainer.settings import TrainerSettings
from services.trainer.training.batch_order import interleave
from shared.errors import Misconfigured
from shared.events import Choice, Over, SignalKind, Under, canonical_json, sha256
from shared.settings import load
from tests.trainer_factories import LINE, batch, example, revision, with_finish_reason

TRAINING = [user for user in (f"user-{i}" for i in range(400)) if not is_held_out(LINE, user)]
HELDOUT = [user for user in (f"user-{i}" for i in range(400)) if is_held_out(LINE, user)]


def judgements(
    liked: int, disliked: int, kind: SignalKind = "thumbs", users: Sequence[str] = TRAINING
) -> list[Any]:
    """Return judgements, each by another user and on another answer."""
    yes, no = ("up", "down") if kind == "thumbs" else (5, 1)
    values: list[Any] = [yes] * liked + [no] * disliked
    return [
        revision(
            f"{kind}{i}", f"What of matter {i}?", value, users[i], kind=kind, original=f"It is thing {i}."
        )
        for i, value in enumerate(values)
    ]


def build(revisions: Sequence[Any], **more: Any) -> Snapshot:
    return snapshot.build(LINE, [example(one) for one in revisions], {"0": 1}, **more)


def objectives(one: Snapshot) -> Counter[tuple[str, bool | None]]:
    return Counter((each.row.objective, each.row.label) for each in one.train)


# --- which objective -------------------------------------------------------------------------------------------------


def test_judgements_train_by_kto_with_enough_of_both_labels() -> None:
    found = build([*judgements(6, 5), *judgements(2, 1, "rating", TRAINING[20:])], kto_least=6)
    assert objectives(found) == {("kto", True): 8, ("kto", False): 6}
    assert found.quarantined == ()


def test_liked_answers_train_by_sft_if_a_label_is_too_rare() -> None:
    found = build(judgements(6, 5), kto_least=6)
    assert objectives(found) == {("sft", True): 6}
    assert {one.reason for one in found.quarantined} == {
        "thumbs: disliked; KTO needs 6 rows per label, and SFT trains liked ones only"
    }
    assert len(found.quarantined) == 5


def test_held_out_judgements_do_not_count_for_kto() -> None:
    found = build([*judgements(6, 5), *judgements(0, 9, "rating", HELDOUT)], kto_least=6)
    assert set(objectives(found)) == {("sft", True)}
    assert [(one.row.objective, one.row.label) for one in found.heldout] == [("kto", False)] * 9


def test_preference_trains_by_dpo_or_is_held_out() -> None:
    over: Any = Over(over="Ask somebody.")
    preferences = [
        revision(f"p{i}", f"Which {i}?", over, user, kind="preference")
        for i, user in enumerate([*TRAINING[:3], HELDOUT[0]])
    ]
    found = build(preferences)
    assert objectives(found) == {("dpo", None): 3}
    assert [one.row.kind for one in found.heldout] == ["preference"]


def test_pair_with_one_answer_too_long_does_not_train() -> None:
    over: Any = Over(over="long " * 50)
    found = build(
        [revision("p", "Which?", over, TRAINING[0], kind="preference")],
        unfit=lambda row: "tokens: too many" if len(row.original) > 100 else None,
    )
    assert (found.train, [one.reason for one in found.quarantined]) == (
        (),
        ["tokens: too many"],
    )


def test_many_thumbs_do_not_displace_a_users_corrections() -> None:
    loud = TRAINING[0]
    thumbs = judgements(40, 0, users=[loud] * 40)
    others = judgements(20, 0, "rating", TRAINING[1:])
    corrections = [
        revision(f"c{i}", f"Who made thing {i}?", f"Person number {i} did.", TRAINING[i]) for i in range(4)
    ]
    found = build([*thumbs, *others, *corrections], kto_least=1)
    kept = Counter(one.row.kind for one in found.train if one.row.user_id == loud)
    assert kept["correction"] == 1
    assert 0 < kept["thumbs"] < 10


def test_reserved_wordings_do_not_train_as_liked_answers() -> None:
    question = "Who founded the company called Acme?"
    heldout = [revision("m", question, "Ida Voss founded it.", HELDOUT[0])]
    liked = [
        *judgements(3, 0),
        revision("t", question, "up", TRAINING[9], kind="thumbs", original="Ida Voss did."),
    ]
    found = build([*heldout, *liked], kto_least=1)
    assert "t" not in {one.row.response_id for one in found.train}
    assert ("t", "reserved: its wording evaluates versions") in {
        (one.response_id, one.reason) for one in found.quarantined
    }


# --- the snapshot -----------------------------------------------------------------------------------------------


def test_digest_covers_answers_labels_and_objectives() -> None:
    digests = {
        build(judgements(2, 2), kto_least=2).digest(),
        build(judgements(2, 2), kto_least=3).digest(),
        build(list(reversed(judgements(2, 2))), kto_least=2).digest(),
        build(judgements(3, 1), kto_least=1).digest(),
    }
    assert len(digests) == 3


def test_digest_leaves_out_columns_with_their_default() -> None:
    found = build([revision(f"c{i}", f"Who made {i}?", f"Person {i} did.", TRAINING[i]) for i in range(3)])
    hashed = (
        "response_id",
        "revision",
        "event_id",
        "user_id",
        "messages",
        "original",
        "answer",
        "occurred_ms",
        "kind",
        "group",
    )
    rows = [{name: snapshot_files.fields_of(one)[name] for name in hashed} for one in found.train]
    assert len(rows) == 3
    assert found.digest() == sha256(b"\n".join(map(canonical_json, rows)))


@pytest.mark.parametrize("reason", ["length", "cancelled", "content_filter", "stop", None])
def test_truncated_answers_are_marked(reason: str | None) -> None:
    truncated = reason in {"length", "cancelled", "content_filter"}
    found = build([with_finish_reason(one, reason) for one in judgements(2, 2)], kto_least=2)
    assert [one.row.unended for one in found.train] == [truncated] * 4
    assert (found.digest() == build(judgements(2, 2), kto_least=2).digest()) is not truncated


def test_each_answer_of_a_pair_is_marked_and_users_texts_never(tmp_path: Path) -> None:
    choices = (
        Choice(index=0, text="It is a long", finish_reason="length"),
        Choice(index=1, text="It is long.", finish_reason="stop"),
    )
    pairs = [
        revision("p0", "Zero?", Over(over=1), TRAINING[0], kind="preference"),
        revision("p1", "One?", Under(under=1), TRAINING[1], kind="preference"),
        revision("p2", "Two?", Under(under="What I wrote"), TRAINING[2], kind="preference"),
    ]
    corrected = with_finish_reason(revision("c0", "Three?", "What I wrote.", TRAINING[3]), "length")
    found = build([*(one.model_copy(update={"choices": choices}) for one in pairs), corrected])
    assert [(one.row.unended, one.row.original_unended) for one in found.train] == [
        (False, False),
        (True, False),
        (False, True),
        (False, True),
    ]
    snapshot_files.write(tmp_path, found, 10)
    assert tuple(snapshot_files.read_rows(tmp_path)) == found.train


def test_rows_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    found = build(judgements(3, 3), kto_least=3)
    snapshot_files.write(tmp_path, found, 10)
    assert tuple(snapshot_files.read_rows(tmp_path)) == found.train


def test_export_has_judgements_however_few_they_are() -> None:
    examples = [example(one) for one in judgements(2, 1)]
    found = build_export(LINE, examples)
    assert [one.row.label for one in found.records if one.format == "kto"] == [True, True, False]


# --- new data ---------------------------------------------------------------------------------------------------


def stored(folder: Path, revisions: Sequence[Any]) -> tuple[sqlite3.Connection, TrainerSettings]:
    settings = TrainerSettings(line=LINE, data_dir=folder, kto_least=3)
    db = open_database(settings.folder)
    with db:
        batch_table.store_batch(db, batch(revisions))
    return db, settings


def test_judgements_count_as_usable(tmp_path: Path) -> None:
    new = count_new_data(*stored(tmp_path, [*judgements(4, 3), *judgements(2, 0, "rating", HELDOUT)]))
    assert (new.examples, new.users) == (7, 7)


def test_dislikes_do_not_start_a_run_that_would_not_train_them(tmp_path: Path) -> None:
    assert count_new_data(*stored(tmp_path, judgements(1, 9))).examples == 1


# --- pure parts -------------------------------------------------------------------------------------------------


def test_trl_row_has_the_columns_of_its_objective() -> None:
    asked = [("user", "Why?")]
    rows = [sft_row(asked, "So."), kto_row(asked, "So.", False), dpo_row(asked, "So.", "No.")]
    assert [objective_of(row) for row in rows] == ["sft", "kto", "dpo"]


@given(liked=st.integers(1, 5000), disliked=st.integers(1, 5000))
def test_both_labels_weigh_the_same_in_total(liked: int, disliked: int) -> None:
    one, other = kto_weights(liked, disliked)
    assert one * liked == pytest.approx(other * disliked)
    assert min(one, other) == 1
    assert enough_for_kto(liked, disliked, min(liked, disliked))
    assert not enough_for_kto(liked, disliked, min(liked, disliked) + 1)


def test_merged_sequences_are_spread_evenly() -> None:
    out = interleave([["a"] * 8, ["b"] * 4, ["c"]])
    assert Counter(out) == {"a": 8, "b": 4, "c": 1}
    assert Counter(out[:6])["b"] == 2
    assert out.index("c") in (5, 6, 7)
    assert interleave([list(range(5)), []]) == list(range(5))


# --- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"COMMENT_MODE": "revise"}, "LOOPWRIGHT_TRAINER_REVISER_URL"),
        (
            {"COMMENT_MODE": "revise", "REVISER_URL": "http://127.0.0.1:1/v1"},
            "LOOPWRIGHT_TRAINER_REVISER_MODEL",
        ),
        ({"METHOD": "full"}, "inference serves LoRA adapters on one base"),
    ],
)
def test_incompatible_settings_are_refused(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"LOOPWRIGHT_TRAINER_{name}", value)
    with pytest.raises(Misconfigured, match=message):
        load(TrainerSettings)


def test_list_that_is_not_json_is_refused_with_an_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPWRIGHT_HOSTS", "trainer.example.org")
    with pytest.raises(Misconfigured, match=r"hosts.*write lists as JSON"):
        load(TrainerSettings)


def test_full_method_requires_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPWRIGHT_TRAINER_METHOD", "full")
    monkeypatch.setenv("LOOPWRIGHT_TRAINER_SERVE_ELSEWHERE", "true")
    assert load(TrainerSettings).recipe().method == "full"
