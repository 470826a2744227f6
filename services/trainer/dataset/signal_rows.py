"""The rows of an example: one for each of its signals that may train. Pure and deterministic (I5)."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from services.trainer.core.recipe import CommentMode
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.filters import TRAINABLE_ROLES, QuarantinedRow, Row
from services.trainer.dataset.objectives import (
    COMMENT_NOT_TRAINED,
    TRUNCATING_FINISH_REASONS,
    append_comment,
)
from shared.events import ExampleRevision, Over, Signal, Under
from shared.feedback_kinds import KIND_BY_NAME

IMPORTED: Final = "imported"
"""Tag of imported feedback, which has one user id whoever gave it (`loopwright.seed_import.IMPORT_TAG`)."""
TOOL_CALLS_NOT_TRAINED: Final = "tool calls: conversations and answers with tool calls do not train"


def rows_of(example: Example, comments: CommentMode = "hold") -> tuple[list[Row], list[QuarantinedRow]]:
    """Return the rows of an example's signals, and the signals that never train.

    A comment that a stronger model will follow has the comment as its answer until `rewrite_cache.apply_rewrites`.
    """
    rows, quarantined = [], []
    for signal in example.revision.signals:
        kind = KIND_BY_NAME[signal.kind]
        if _has_tool_calls(example.revision, signal):
            quarantined.append(
                QuarantinedRow(example.revision.response_id, signal.event_id, TOOL_CALLS_NOT_TRAINED)
            )
        elif kind.is_remark and comments == "hold":
            quarantined.append(
                QuarantinedRow(example.revision.response_id, signal.event_id, COMMENT_NOT_TRAINED)
            )
        elif kind.objective == "kto" and signal.value not in kind.liked:
            reason = f"{kind.name}: neutral, so neither liked nor disliked"
            quarantined.append(QuarantinedRow(example.revision.response_id, signal.event_id, reason))
        else:
            rows.append(_row_of_signal(example, signal, comments))
    return rows, quarantined


def _has_tool_calls(revision: ExampleRevision, signal: Signal) -> bool:
    """Return whether the conversation, or an answer that the signal is about, has tool calls.

    A row has only texts: without the calls, the model would learn to answer with nothing.
    """
    match signal.value:
        case Over(over=int(other)) | Under(under=int(other)):
            judged = {signal.choice, other}
        case _:
            judged = {signal.choice}
    return any(message.tool_calls for message in revision.messages) or any(
        choice.tool_calls for choice in revision.choices if choice.index in judged
    )


def _row_of_signal(example: Example, signal: Signal, comments: CommentMode) -> Row:
    revision, kind = example.revision, KIND_BY_NAME[signal.kind]
    own, truncated = _text(revision, signal.choice), _is_truncated(revision, signal.choice)
    match signal.value:
        case str() | int() as value if kind.objective == "kto":
            row = row_of(example, signal, original="", answer=own)
            return replace(row, label=kind.liked[value], unended=truncated)
        case Over(over=other):
            row = row_of(example, signal, original=_text(revision, other), answer=own)
            return replace(row, unended=truncated, original_unended=_is_truncated(revision, other))
        case Under(under=other):
            row = row_of(example, signal, original=own, answer=_text(revision, other))
            return replace(row, unended=_is_truncated(revision, other), original_unended=truncated)
        case value:
            text = str(value)
            append = kind.is_remark and comments == "append"
            answer = append_comment(own, text) if append else text.strip()
            return row_of(example, signal, original=own, answer=answer)


def _text(revision: ExampleRevision, choice: str | int) -> str:
    """Return a text as it is, and for a number the text of that choice, or an empty one if it does not exist."""
    if isinstance(choice, str):
        return choice
    return next((one.text for one in revision.choices if one.index == choice), "")


def _is_truncated(revision: ExampleRevision, choice: str | int) -> bool:
    return any(
        one.index == choice and one.finish_reason in TRUNCATING_FINISH_REASONS for one in revision.choices
    )


def row_of(example: Example, signal: Signal, *, original: str, answer: str) -> Row:
    """Return a row of a signal with the given answers."""
    revision = example.revision
    return Row(
        response_id=revision.response_id,
        revision=revision.revision,
        event_id=signal.event_id,
        user_id=signal.user_id,
        messages=tuple((TRAINABLE_ROLES.get(m.role, m.role), m.content) for m in revision.messages),
        original=original,
        answer=answer,
        occurred_ms=round(signal.occurred_at.timestamp() * 1000),
        kind=signal.kind,
        imported=IMPORTED in signal.tags,
        asked_by=revision.user_id,
        released=example.released.get(signal.event_id, frozenset()),
        objective=KIND_BY_NAME[signal.kind].objective,
    )
