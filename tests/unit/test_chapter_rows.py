"""The chapter's rows, rule, settings and tag match the trainer and the import."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from examples.chapter.rows import read_rows, targets
from examples.chapter.stack import DEFAULTS, FIXED, model_folder, settings
from loopwright.seed_import import IMPORT_TAG
from services.processor.settings import ProcessorSettings
from services.trainer.core.recipe import CommentMode
from services.trainer.dataset import snapshot, snapshot_files
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.filters import count_reasons
from services.trainer.dataset.holdout import is_held_out
from services.trainer.dataset.signal_rows import IMPORTED
from services.trainer.settings import TrainerSettings
from shared.events import Choice, ExampleRevision, Message, Signal

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
LINE = "assistant"
HELD_OUT = next(f"u{n}" for n in range(100) if is_held_out(LINE, f"u{n}"))
TRAINING = next(f"u{n}" for n in range(100) if not is_held_out(LINE, f"u{n}"))


def example(number: int, row: dict[str, str], user: str, tags: tuple[str, ...] = (IMPORT_TAG,)) -> Example:
    """Return a row as an example in a batch."""
    signal = Signal(
        event_id=f"e-{number}",
        kind="comment",
        user_id=user,
        value=row["feedback"],
        tags=tags,
        occurred_at=AT,
    )
    revision = ExampleRevision(
        line=LINE,
        response_id=f"r-{number}",
        revision=1,
        op="upsert",
        version="imported",
        messages=(Message(role="user", content=row["input"]),),
        choices=(Choice(index=0, text=row["response"]),),
        signals=(signal,),
        responded_at=AT,
        revised_at=AT,
    )
    return Example(revision, 0, 1, 0)


def build(
    *examples: Example, comments: CommentMode = "append", line: str = LINE
) -> tuple[dict[str, str], dict[str, int]]:
    """Return question -> target, and quarantine reason -> number of examples."""
    built = snapshot.build(line, examples, {}, comments=comments)
    return {row.row.question: row.row.answer for row in built.train}, count_reasons(built.quarantined)


@pytest.mark.parametrize("user", [TRAINING, HELD_OUT])
def test_append_mode_trains_response_plus_feedback(user: str) -> None:
    examples = [example(number, row, user) for number, row in enumerate(read_rows())]
    assert build(*examples) == (targets(read_rows()), {})


def test_comments_are_quarantined_by_default_with_a_remedy() -> None:
    trained, quarantined = build(
        *[example(n, row, TRAINING) for n, row in enumerate(read_rows())], comments="hold"
    )
    assert trained == {}
    ((reason, count),) = quarantined.items()
    assert count == 3
    assert reason.startswith("comment: ")
    assert "comment_mode append" in reason


def test_comments_on_one_question_do_not_compete() -> None:
    """Comments extend an answer. Corrections that differ as much would be disputed."""
    first, second = dict(read_rows()[0]), read_rows()[0] | {"feedback": "Mention its two moons."}
    built = snapshot.build(
        LINE, [example(1, first, TRAINING), example(2, second, TRAINING)], {}, comments="append"
    )
    assert {row.row.answer.removeprefix("Mars is the fourth planet. ") for row in built.train} == {
        "Include details about its atmosphere.",
        "Mention its two moons.",
    }
    assert len({row.group for row in built.train}) == 2


def test_comment_of_a_held_out_user_is_not_trained() -> None:
    trained, quarantined = build(example(1, read_rows()[0], HELD_OUT, tags=()))
    assert trained == {}
    assert list(quarantined) == ["held out: a comment cannot evaluate versions"]


def test_rows_of_a_single_user_are_not_capped() -> None:
    """A user's share is limited to max(2 %, 3 / users), which has no effect with fewer than four users."""
    many = [
        example(
            n,
            {"input": f"What is thing {n}?", "response": f"It is {n}.", "feedback": f"Say why {n}."},
            TRAINING,
        )
        for n in range(20)
    ]
    trained, quarantined = build(*many)
    assert (len(trained), quarantined) == (20, {})


def test_snapshot_of_appended_comments_round_trips() -> None:
    built = snapshot.build(LINE, [example(1, read_rows()[0], TRAINING)], {}, comments="append")
    (row,) = built.train
    restored = snapshot_files.row_from_fields(snapshot_files.fields_of(row))
    assert (restored.row.answer, restored.row.kind) == (
        targets(read_rows())[read_rows()[0]["input"]],
        "comment",
    )


def test_import_and_trainer_use_the_same_tag() -> None:
    assert IMPORT_TAG == IMPORTED


def test_chapter_sets_only_existing_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in settings({}).items():
        monkeypatch.setenv(name, value)
    trainer, processor = TrainerSettings(), ProcessorSettings()
    assert (trainer.comment_mode, trainer.recipe().comment_mode) == ("append", "append")
    assert (trainer.tokens_per_step, processor.batch_age_s) == (160, 1.0)
    unread = [
        name
        for name in FIXED | DEFAULTS
        if name.startswith("LOOPWRIGHT_TRAINER_")
        and name.removeprefix("LOOPWRIGHT_TRAINER_").lower() not in TrainerSettings.model_fields
    ]
    assert unread == []


def test_environment_overrides_the_chapters_defaults() -> None:
    merged = settings({"LOOPWRIGHT_TRAINER_EPOCHS": "1", "LOOPWRIGHT_TRAINER_COMMENT_MODE": "hold"})
    assert merged["LOOPWRIGHT_TRAINER_EPOCHS"] == "1"
    assert merged["LOOPWRIGHT_TRAINER_COMMENT_MODE"] == "append", "without it there is no chapter"


def test_version_folder_is_found_by_version_name(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("root")
    folder = root / "artifacts" / ("0a1b2c3d" * 8)
    folder.mkdir(parents=True)
    assert model_folder(root, "my-line@v12-0a1b2c3d") == folder
