"""Table of the kinds of feedback: one row per kind, read by every service.

A row says what a kind looks like, how it is counted, when it is too vague to train on, what it trains, and how the gate
uses it for held-out users. To add a kind, see CONTRIBUTING.md. Pure.

`Retract` has no row: it withdraws feedback and is not itself a signal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

from shared.events import (
    Comment,
    Correction,
    Feedback,
    FeedbackBase,
    Preference,
    Rating,
    Thumbs,
)
from shared.feedback_quality import hint_for_comment

Objective = Literal["sft", "kto", "dpo"]
"""Loss that a signal trains with: imitate an answer, learn from a label, or prefer one of two answers."""


@dataclass(frozen=True, slots=True)
class Matcher:
    """How the gate uses a held-out signal.

    - `item`: the value becomes an evaluation item, a question with its right answer.
    - `pair`: the signal compares two answers, so it is a pair already.
    - `match_labels`: a liked answer and a disliked one, from two signals with the same matcher, become a pair.
    """

    how: Literal["item", "pair", "match_labels"]
    name: str
    """Kind of the pairs in reports, and the prefix of their gate figures. Unused for items."""
    label: str
    """Heading of the figures in reports."""


ITEM: Final = Matcher("item", "correction", "Corrections")
GIVEN_PAIR: Final = Matcher("pair", "preference", "Preferences")
LABELLED_PAIR: Final = Matcher("match_labels", "thumbs", "Liked and disliked answers")
"""Named `thumbs` in reports, but ratings are matched with thumbs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackKind:
    """Everything that the services need to know about one kind of feedback."""

    record: type[FeedbackBase]
    """Class of the record. It defines the name (`kind`) and the type of the value (`value`)."""
    plural: str
    """Name of several signals of this kind in text."""
    value_help: str
    """Allowed values, for the API documentation."""
    counter: str | Mapping[str, str]
    """Counter in `Tally` to which a signal adds 1; or one counter per value."""
    sum_counter: str | None = None
    """Counter in `Tally` to which a signal adds its value, which must be a number."""
    hint: Callable[[Any], str | None] | None = None
    """Returns what to write instead of a vague value, or None. Vague values are counted, but never trained on."""
    objective: Objective
    """Loss that the signal trains with."""
    liked: Mapping[str | int, bool] = field(default_factory=dict)
    """For `kto`: whether a value means that the answer was liked. A value that is missing here is neutral."""
    satisfaction: Callable[[Any], float | None] = lambda _: None
    """Returns how satisfied a value says that the user is, from 0 to 1, or None if it does not say so."""
    is_remark: bool = False
    """For `sft`: the value says how to change the answer instead of giving the right one, so the recipe's
    `comment_mode` decides whether and how it trains."""
    matcher: Matcher | None
    """How the gate uses held-out signals. None: they are left out."""

    @property
    def name(self) -> str:
        """The kind's name in records and in the API."""
        return str(self.record.model_fields["kind"].default)

    @property
    def is_answer(self) -> bool:
        """Whether the value is the answer that the model should have given."""
        return self.objective == "sft" and not self.is_remark

    @property
    def counters(self) -> tuple[str, ...]:
        """All counters in `Tally` that signals of this kind change."""
        counts = (self.counter,) if isinstance(self.counter, str) else tuple(self.counter.values())
        return counts if self.sum_counter is None else (*counts, self.sum_counter)


FEEDBACK_KINDS: Final = (
    FeedbackKind(
        record=Thumbs,
        plural="thumbs",
        value_help='"up" or "down"',
        counter={"up": "up", "down": "down"},
        objective="kto",
        liked={"up": True, "down": False},
        satisfaction=lambda value: float(value == "up"),
        matcher=LABELLED_PAIR,
    ),
    FeedbackKind(
        record=Rating,
        plural="ratings",
        value_help="1 to 5",
        counter="ratings",
        sum_counter="rating_sum",
        objective="kto",
        liked={5: True, 4: True, 2: False, 1: False},
        satisfaction=lambda value: (value - 1) / 4,
        matcher=LABELLED_PAIR,
    ),
    FeedbackKind(
        record=Correction,
        plural="corrections",
        value_help="the corrected answer",
        counter="corrections",
        objective="sft",
        satisfaction=lambda _: 0.0,
        matcher=ITEM,
    ),
    FeedbackKind(
        record=Comment,
        plural="comments",
        value_help="the comment",
        counter="comments",
        hint=hint_for_comment,
        objective="sft",
        is_remark=True,
        matcher=None,
    ),
    FeedbackKind(
        record=Preference,
        plural="preferences",
        value_help='{"over": text or choice} or {"under": text or choice}',
        counter="preferences",
        objective="dpo",
        satisfaction=lambda value: float("over" in value),
        matcher=GIVEN_PAIR,
    ),
)
"""All kinds of feedback, in the order in which they are listed to users."""

KIND_BY_NAME: Final[Mapping[str, FeedbackKind]] = MappingProxyType(
    {kind.name: kind for kind in FEEDBACK_KINDS}
)

VAGUE_KINDS: Final = frozenset(kind.name for kind in FEEDBACK_KINDS if kind.hint is not None)
"""Names of the kinds whose values can be too vague to train on."""

PAIR_MATCHERS: Final = tuple(
    sorted(
        {kind.matcher for kind in FEEDBACK_KINDS if kind.matcher is not None and kind.matcher.how != "item"},
        key=lambda matcher: matcher.name,
    )
)
"""The matchers that give the gate pairs, by name."""


def hint_for(event: Feedback) -> str | None:
    """Return what to write instead, or None if the event can be trained on or retracts another."""
    kind = KIND_BY_NAME.get(event.kind)
    return None if kind is None or kind.hint is None else kind.hint(event.value)


def list_names(names: list[str], conjunction: str) -> str:
    """Return names as a phrase: `a, b or c`."""
    return f" {conjunction} ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
