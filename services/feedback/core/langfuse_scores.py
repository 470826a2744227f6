"""Langfuse scores as feedback: the table that maps them, and the bodies that its API defines. Pure.

| score | signal |
| --- | --- |
| named as thumbs: BOOLEAN or NUMERIC, 1 or 0 (or -1) | `thumbs` up or down |
| named as thumbs: CATEGORICAL, a label of `UP` or `DOWN` | `thumbs` up or down |
| named as a rating: NUMERIC or CATEGORICAL, 1 to 5 | `rating` |
| named as a comment, or TEXT with any name that is known: the text | `comment` |
| CORRECTION with any name: the text | `correction` |
| `comment` of any of these | also a `comment` |

Other names are refused, because most scores are measurements of a program: a user did not say that
`hallucination = 0`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter

from shared.errors import Malformed, Rejected

ScoreUse = Literal["thumbs", "rating", "comment", "ignore"]
"""What scores of one name are: a kind of feedback, or nothing that a user said."""
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
"""Names that mean feedback without a setting. LibreChat uses `user-feedback`."""
UP: Final = frozenset({"up", "thumbsup", "positive", "good", "like", "liked", "helpful", "yes", "true", "1"})
DOWN: Final = frozenset(
    {"down", "thumbsdown", "negative", "bad", "dislike", "disliked", "unhelpful", "no", "false", "0", "-1"}
)
MAX_SCORE_ID: Final = 256
MAX_SCORES: Final = 1_000
USER_FIELDS: Final = ("userId", "user_id", "user")
RESPONSE_FIELDS: Final = ("response_id", "responseId")
DataType = Literal["NUMERIC", "BOOLEAN", "CATEGORICAL", "TEXT", "CORRECTION"]


class ScoreBody(BaseModel):
    """A score as `POST /api/public/scores` and the event `score-create` take it. Other fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    id: Annotated[str, Field(max_length=MAX_SCORE_ID)] | None = None
    trace_id: Annotated[str, Field(max_length=MAX_SCORE_ID)] | None = Field(None, alias="traceId")
    name: str = Field(min_length=1, max_length=256)
    value: bool | int | float | str
    data_type: DataType | None = Field(None, alias="dataType")
    comment: str | None = None
    metadata: JsonValue = None


SCORE_BODY: Final = TypeAdapter(ScoreBody)
SCORES_BODY: Final = TypeAdapter(Annotated[list[dict[str, Any]], Field(max_length=MAX_SCORES)])
"""Several scores in one request, as Langfuse's SDK for Python sends them from version 5 on."""


@dataclass(frozen=True, slots=True)
class Signal:
    """One signal of a score."""

    kind: Literal["thumbs", "rating", "comment", "correction"]
    value: str | int


def signals_of(score: ScoreBody, uses: Mapping[str, ScoreUse]) -> tuple[Signal, ...]:
    """Return what a user said by a score, at most one signal per kind; none if the use of its name is `ignore`.

    Args:
        score: the score.
        uses: the deployment's own uses by score name, which come before `DEFAULT_USES`.

    Raises:
        Rejected: if the score cannot be understood as feedback.

    """
    use = uses.get(score.name) or DEFAULT_USES.get(score.name)
    if use == "ignore":
        return ()
    said = _remark(score.comment)
    if score.data_type == "CORRECTION":
        return (Signal("correction", _text(score.value)), *said)
    if use is None:
        raise Rejected(
            "the name of this score is not known as feedback of users: use `user-feedback` or `user-rating`, or say "
            'what it means with LOOPWRIGHT_FEEDBACK_LANGFUSE_SCORES, for example \'{"my-score": "thumbs"}\''
        )
    if score.data_type == "TEXT" or use == "comment":
        return _remark("\n".join([_text(score.value), *(str(signal.value) for signal in said)]))
    return (_thumbs(score) if use == "thumbs" else _rating(score), *said)


def response_id_of(score: ScoreBody) -> str:
    """Return the response that a score is about: `response_id` of its metadata, else its trace id.

    Raises:
        Malformed: if it has neither.

    """
    found = _metadata_text(score.metadata, RESPONSE_FIELDS) or score.trace_id
    if not found:
        raise Malformed(
            "the score names no response: send traceId, or response_id in its metadata. Scores of sessions and of "
            "dataset runs are not about one response, so they cannot be used"
        )
    return found


def user_of(score: ScoreBody) -> str | None:
    """Return the user that a score's metadata names, or None."""
    return _metadata_text(score.metadata, USER_FIELDS)


def _metadata_text(metadata: JsonValue, names: tuple[str, ...]) -> str | None:
    if not isinstance(metadata, dict):
        return None
    return next((value for name in names if isinstance(value := metadata.get(name), str) and value), None)


def _remark(text: str | None) -> tuple[Signal, ...]:
    return (Signal("comment", text.strip()),) if text and text.strip() else ()


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Malformed("value: scores of this type need a text: send a string that is not empty")
    return value


def _number(score: ScoreBody) -> float | None:
    """Return the score's value as a number, or None if it is a label."""
    value = score.value
    if score.data_type in {"NUMERIC", "BOOLEAN"} and isinstance(value, str):
        raise Malformed("value: NUMERIC and BOOLEAN scores need a number: send it without quotes")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _thumbs(score: ScoreBody) -> Signal:
    number = _number(score)
    label = "".join(char for char in str(score.value).lower() if char not in " _-") if number is None else ""
    if number == 1 or label in UP:
        return Signal("thumbs", "up")
    if number in {0, -1} or label in DOWN:
        return Signal("thumbs", "down")
    raise Malformed(
        "value: a score for thumbs is 1 or 0 (or -1), or a label like `positive` or `negative`: for 1 to 5, use a name "
        "like `user-rating`"
    )


def _rating(score: ScoreBody) -> Signal:
    number = _number(score)
    if number is None or number not in {1, 2, 3, 4, 5}:
        raise Malformed("value: a rating is a whole number from 1 (bad) to 5 (good): convert other scales")
    return Signal("rating", int(number))
