"""What a user said by a Langfuse score: the feedback service's table, for scores as Langfuse's API gives them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from loopwright.imports.rows import BadRow, Json

ScoreUse = Literal["thumbs", "rating", "comment", "ignore"]
"""What scores of one name are: a kind of feedback, or nothing that a user said."""
USES: Final[tuple[str, ...]] = get_args(ScoreUse)
DEFAULT_USES: Final[Mapping[str, ScoreUse]] = {
    "user-feedback": "thumbs",
    "user_feedback": "thumbs",
    "user-explicit-feedback": "thumbs",
    "feedback": "thumbs",
    "thumbs": "thumbs",
    "user-rating": "rating",
    "user_rating": "rating",
    "rating": "rating",
    "stars": "rating",
    "user-comment": "comment",
    "user_comment": "comment",
    "comment": "comment",
}
UP: Final = frozenset({"up", "thumbsup", "positive", "good", "like", "liked", "helpful", "yes", "true", "1"})
DOWN: Final = frozenset(
    {"down", "thumbsdown", "negative", "bad", "dislike", "disliked", "unhelpful", "no", "false", "0", "-1"}
)
TEXT_TYPES: Final = ("CATEGORICAL", "TEXT", "CORRECTION")
"""Types whose value the API gives as `stringValue`."""


@dataclass(frozen=True, slots=True)
class Signal:
    """One signal of a score."""

    kind: Literal["thumbs", "rating", "comment", "correction"]
    value: str | int


def signals_of(score: Json, uses: Mapping[str, ScoreUse]) -> tuple[Signal, ...]:
    """Return what a user said by a score; nothing if the use of its name is `ignore`.

    Args:
        score: The score.
        uses: Uses by score name, which come before `DEFAULT_USES`.

    Raises:
        BadRow: The score cannot be understood as feedback.

    """
    name, data_type, value = score.get("name"), score.get("dataType"), _value(score)
    if not isinstance(name, str) or not name:
        raise BadRow("the score has no name")
    use = uses.get(name) or DEFAULT_USES.get(name)
    if use == "ignore":
        return ()
    remark = _remark(score.get("comment"))
    if data_type == "CORRECTION":
        return (Signal("correction", _text(value)), *remark)
    if use is None:
        raise BadRow(
            "the name of this score is not known as feedback of users: say what it means, for example "
            "--score my-score=thumbs, or --score accuracy=ignore for measurements of a program"
        )
    if data_type == "TEXT" or use == "comment":
        return _remark("\n".join([_text(value), *(str(signal.value) for signal in remark)]))
    return (_thumbs(value, data_type) if use == "thumbs" else _rating(value, data_type), *remark)


def _value(score: Json) -> Any:
    value = score.get("value")
    if score.get("dataType") in TEXT_TYPES and not isinstance(value, str):
        return score.get("stringValue") or score.get("longStringValue") or value
    return value


def _remark(text: Any) -> tuple[Signal, ...]:
    if text is not None and not isinstance(text, str):
        raise BadRow("comment is not a text")
    return (Signal("comment", text.strip()),) if text and text.strip() else ()


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadRow("value is not a text, or empty: scores of this type need one")
    return value


def _number(value: Any, data_type: Any) -> float | None:
    """Return the value as a number, or None if it is a label."""
    if value is None or isinstance(value, list | dict):
        raise BadRow("value is missing, or neither a number nor a text")
    if data_type in ("NUMERIC", "BOOLEAN") and isinstance(value, str):
        raise BadRow("value is not a number, which scores of this type need")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _thumbs(value: Any, data_type: Any) -> Signal:
    number = _number(value, data_type)
    label = "".join(char for char in str(value).lower() if char not in " _-") if number is None else ""
    if number == 1 or label in UP:
        return Signal("thumbs", "up")
    if number in {0, -1} or label in DOWN:
        return Signal("thumbs", "down")
    raise BadRow("value is not 1 or 0 (or -1), or a label like positive or negative")


def _rating(value: Any, data_type: Any) -> Signal:
    number = _number(value, data_type)
    if number is None or number not in {1, 2, 3, 4, 5}:
        raise BadRow("value is not a whole number from 1 to 5: convert other scales")
    return Signal("rating", int(number))
