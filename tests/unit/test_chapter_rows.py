"""The chapter's example against the code that it stands for: same rows, same rule, settings and tag that exist."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from examples.chapter.rows import read, targets
from examples.chapter.stack import DEFAULTS, FIXED, model_folder, settings
from loopwright.seed_import import IMPORT_TAG
from services.processor.settings import ProcessorSettings
from services.trainer.core.recipe import CommentMode
from services.trainer.dataset import snapshot
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.filters import IMPORTED, count_reasons
from services.trainer.dataset.holdout import is_held_out
from services.trainer.settings import TrainerSettings
from shared.events import Choice, ExampleRevision, Message, Signal

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
LINE = "assistant"
HELD_OUT = next(f"u{n}" for n in range(100) if is_held_out(LINE, f"u{n}"))
TRAINING = next(f"u{n}" for n in range(100) if not is_held_out(LINE, f"u{n}"))


def example(number: int, row: dict[str, str], user: str, tags: tuple[str, ...] = (IMPORT_TAG,)) -> Example:
    """A row as the processor hands it over."""
    said = Signal(
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
        signals=(said,),
        responded_at=AT,
        revised_at=AT,
    )
    return Example(revision, 0, 1, 0)


def taken(
    *examples: Example, comments: CommentMode = "append", line: str = LINE
) -> tuple[dict[str, str], dict[str, int]]:
    """(question -> target, reason -> how many are held for it)"""
    found = snapshot.build(line, examples, {}, comments=comments)
    return {one.row.question: one.row.answer for one in found.train}, count_reasons(found.quarantined)


@pytest.mark.parametrize("user", [TRAINING, HELD_OUT])
def test_append_trains_the_response_and_the_feedback_behind_it_whoever_imported_it(user: str) -> None:
    examples = [example(number, row, user) for number, row in enumerate(read())]
    assert taken(*examples) == (targets(read()), {})


def test_by_default_a_comment_is_held_and_the_reason_says_why_and_what_would_train_it() -> None:
    trained, held = taken(*[example(n, row, TRAINING) for n, row in enumerate(read())], comments="hold")
    assert trained == {}
    ((reason, count),) = held.items()
    assert count == 3
    assert reason.startswith("comment: ")
    assert "comment_mode: append" in reason


def test_two_comments_on_one_question_do_not_outvote_each_other() -> None:
    """They add to an answer, so they contradict nobody; corrections so unlike each other would be disputed."""
    first, second = dict(read()[0]), read()[0] | {"feedback": "Mention its two moons."}
    found = snapshot.build(
        LINE, [example(1, first, TRAINING), example(2, second, TRAINING)], {}, comments="append"
    )
    assert {one.row.answer.removeprefix("Mars is the fourth planet. ") for one in found.train} == {
        "Include details about its atmosphere.",
        "Mention its two moons.",
    }
    assert len({one.group for one in found.train}) == 2


def test_what_a_held_out_user_of_the_app_says_never_trains() -> None:
    trained, held = taken(example(1, read()[0], HELD_OUT, tags=()))
    assert trained == {}
    assert list(held) == ["held out: a comment measures nothing"]


def test_one_user_s_rows_are_not_bounded_where_nobody_else_said_anything() -> None:
    """The share bound is max(2 %, 3 / users): it begins to bind with the fourth user."""
    many = [
        example(
            n,
            {"input": f"What is thing {n}?", "response": f"It is {n}.", "feedback": f"Say why {n}."},
            TRAINING,
        )
        for n in range(20)
    ]
    trained, held = taken(*many)
    assert (len(trained), held) == (20, {})


def test_the_snapshot_of_appended_comments_is_read_as_it_was_written() -> None:
    found = snapshot.build(LINE, [example(1, read()[0], TRAINING)], {}, comments="append")
    (one,) = found.train
    again = snapshot.row_from_fields(snapshot.fields_of(one))
    assert (again.row.answer, again.row.kind) == (targets(read())[read()[0]["input"]], "comment")


def test_the_import_and_the_trainer_mean_the_same_tag() -> None:
    assert IMPORT_TAG == IMPORTED


def test_every_setting_of_the_chapter_is_one_that_its_service_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in settings({}).items():
        monkeypatch.setenv(name, value)
    trainer, processor = TrainerSettings(), ProcessorSettings()
    assert (trainer.comment_mode, trainer.recipe().comment_mode) == ("append", "append")
    assert (trainer.batch_size, processor.batch_age_s) == (2, 1.0)
    unread = [
        name
        for name in FIXED | DEFAULTS
        if name.startswith("LOOPWRIGHT_TRAINER_")
        and name.removeprefix("LOOPWRIGHT_TRAINER_").lower() not in TrainerSettings.model_fields
    ]
    assert unread == []


def test_what_the_caller_s_environment_says_goes_before_the_chapter_s_defaults() -> None:
    asked = settings({"LOOPWRIGHT_TRAINER_EPOCHS": "1", "LOOPWRIGHT_TRAINER_COMMENT_MODE": "hold"})
    assert asked["LOOPWRIGHT_TRAINER_EPOCHS"] == "1"
    assert asked["LOOPWRIGHT_TRAINER_COMMENT_MODE"] == "append", "without it there is no chapter"


def test_a_version_s_folder_is_found_by_its_name(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("root")
    folder = root / "artifacts" / ("0a1b2c3d" * 8)
    folder.mkdir(parents=True)
    assert model_folder(root, "my-line@v12-0a1b2c3d") == folder
