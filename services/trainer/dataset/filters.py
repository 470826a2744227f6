"""What may be trained on, and why the rest may not: small checks, then agreement by meaning, then fair shares.

Everything here is pure and deterministic: the same examples give the same rows and the same reasons (I5).
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from services.trainer.core.recipe import CommentMode
from services.trainer.dataset.agreement import Agreement, corrections_of, find_agreement
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.holdout import hash_fraction, is_held_out
from services.trainer.dataset.objectives import (
    COMMENT_NOT_TRAINED,
    LIKED,
    NEUTRAL_RATING,
    OBJECTIVE_OF,
    TRUNCATING_FINISH_REASONS,
    Objective,
    append_comment,
)
from services.trainer.dataset.pii import find_personal_data, find_secret
from services.trainer.dataset.similarity import normalised
from shared.events import ExampleRevision, Over, Signal, Under

MAX_ANSWER_CHARS: Final = 4000
MAX_PROMPT_CHARS: Final = 8000
TRAINABLE_ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
IMPORTED: Final = "imported"
"""The tag of feedback that an import sends under one name, whoever said it (`loopwright.seed_import.TAG`)."""
LEAST_SHARE = 0.02
SHARE_OF_USERS = 3
"""One user's share of a dataset is at most max(2 %, 3 / distinct users)."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one user said of one answer: the conversation up to it, what the model said, what it should have said.

    Of a thumb or a rating `answer` is what was judged, and there is no original; of a preference it is what was
    preferred, over `original`."""

    response_id: str
    revision: int
    event_id: str
    user_id: str
    messages: tuple[tuple[str, str], ...]
    original: str
    answer: str
    occurred_ms: int
    kind: str = "correction"
    imported: bool = False
    """Whether it came by an import and not from a user of the app."""
    asked_by: str | None = None
    """Who asked what it corrects, where that is known: an erasure of theirs takes it too."""
    released: frozenset[str] = frozenset()
    """The checks that an operator lets it pass."""
    objective: Objective = "sft"
    """What it trains by."""
    label: bool | None = None
    """Of a thumb or a rating: whether the answer was liked."""
    unended: bool = False
    """Whether the model was stopped before it had ended `answer` (`truncated_answers.py`)."""
    original_unended: bool = False
    """The same of `original`."""

    @property
    def question(self) -> str:
        """What agreement and near-duplicates look at: all that the user asked in the conversation."""
        return " ".join(content for role, content in self.messages if role == "user")

    @property
    def identity(self) -> str:
        return f"{self.response_id}/{self.event_id}"


@dataclass(frozen=True, slots=True)
class QuarantinedRow:
    """What does not train, and why. No text."""

    response_id: str
    event_id: str
    reason: str


Check = Callable[[Row], str | None]
"""None, or the reason that keeps the row from training. What stands before its colon names the check."""
RELEASABLE: Final = frozenset({"secret", "personal data", "length", "control characters", "agreement"})
"""Checks that a person may overrule for an example. The others hold what cannot be trained, what measures, or what
would give one user more than their share."""


def check_of(reason: str) -> str:
    """The check that a reason names."""
    return reason.partition(":")[0]


def has_a_question(row: Row) -> str | None:
    return None if row.question.strip() else "schema: no question in the conversation"


def has_an_original(row: Row) -> str | None:
    return None if row.original.strip() else "schema: the answer it corrects is not there"


def has_trainable_roles(row: Row) -> str | None:
    unknown = sorted({role for role, _ in row.messages} - TRAINABLE_ROLES.keys())
    return f"schema: messages of role {unknown[0]} are not trained" if unknown else None


def says_something(row: Row) -> str | None:
    return None if row.answer.strip() else "integrity: empty"


def changes_something(row: Row) -> str | None:
    same = normalised(row.answer) == normalised(row.original) and bool(normalised(row.answer))
    return "integrity: the same as the answer it corrects" if same else None


def is_not_too_long(row: Row) -> str | None:
    if len(row.answer) > MAX_ANSWER_CHARS:
        return f"length: the correction is longer than {MAX_ANSWER_CHARS} characters"
    if sum(len(content) for _, content in row.messages) > MAX_PROMPT_CHARS:
        return f"length: the conversation is longer than {MAX_PROMPT_CHARS} characters"
    return None


def has_no_control_characters(row: Row) -> str | None:
    for text in (row.answer, *(content for _, content in row.messages)):
        if any(
            unicodedata.category(letter) in {"Cc", "Cf"} and letter not in "\n\t\r\u200d" for letter in text
        ):
            return "control characters"
    return None


def has_no_template_tokens(row: Row) -> str | None:
    """Marks of a chat template in a text would end the turn, or begin another speaker's."""
    texts = (row.answer, *(content for _, content in row.messages))
    return "chat template: its marks are in the text" if any("<|" in t or "|>" in t for t in texts) else None


def has_no_secrets(row: Row) -> str | None:
    """Neither in what was said nor in the operator's own system prompt: it would be learned all the same."""
    texts = (row.answer, *(content for _, content in row.messages))
    return next((f"secret: {kind}" for kind in map(find_secret, texts) if kind is not None), None)


def has_no_personal_data(row: Row) -> str | None:
    """What the operator's system prompt says itself (where to reach support, say) is no secret of anybody."""
    system = [content for role, content in row.messages if role == "system"]
    public = {found for content in system for _, found in find_personal_data(content)}
    texts = (row.answer, *(content for role, content in row.messages if role != "system"))
    for text in texts:
        for kind, found in find_personal_data(text):
            if found not in public:
                return f"personal data: {kind}"
    return None


CHECKS: tuple[Check, ...] = (
    has_a_question,
    has_an_original,
    has_trainable_roles,
    says_something,
    changes_something,
    is_not_too_long,
    has_no_control_characters,
    has_no_template_tokens,
    has_no_secrets,
    has_no_personal_data,
)
"""In this order; the first that fails names the reason. Those of lengths come before those that read every letter."""
JUDGED: Final = tuple(check for check in CHECKS if check not in (has_an_original, changes_something))
"""What is asked of an answer that somebody judged: there is no other beside it."""
JUDGEMENTS: Final = ("thumbs", "rating")


def first_fault(row: Row, checks: Sequence[Check] = CHECKS) -> str | None:
    """The first reason against it that no operator has released it from."""
    found = (reason for check in checks if (reason := check(row)) is not None)
    return next((reason for reason in found if check_of(reason) not in row.released), None)


def first_fault_of_original(row: Row) -> str | None:
    """The same of the other answer, which a pair trains too: a model may have said a secret itself."""
    return first_fault(replace(row, answer=row.original), JUDGED)


def _fault(row: Row) -> str | None:
    """By what the row trains: of a preference both answers are looked at, for either may be a user's words."""
    if row.objective == "kto":
        return first_fault(row, JUDGED)
    return first_fault(row) or (first_fault_of_original(row) if row.objective == "dpo" else None)


def rows_of(example: Example, comments: CommentMode = "hold") -> tuple[list[Row], list[QuarantinedRow]]:
    """What an example's signals say, and those that say nothing to train with their reason. Of a comment that is to be
    revised the answer is the comment, until its revision takes its place (`snapshot.take`)."""
    rows, held = [], []
    for signal in example.revision.signals:
        if signal.kind == "comment" and comments == "hold":
            held.append(QuarantinedRow(example.revision.response_id, signal.event_id, COMMENT_NOT_TRAINED))
        elif signal.kind in JUDGEMENTS and signal.value not in LIKED:
            held.append(QuarantinedRow(example.revision.response_id, signal.event_id, NEUTRAL_RATING))
        else:
            rows.append(_row(example, signal, comments))
    return rows, held


def _row(example: Example, signal: Signal, comments: CommentMode) -> Row:
    revision = example.revision
    own, stopped = _text(revision, signal.choice), _stopped(revision, signal.choice)
    match signal.value:
        case str() | int() as value if signal.kind in JUDGEMENTS:
            row = row_of(example, signal, original="", answer=own)
            return replace(row, label=LIKED[value], unended=stopped)
        case Over(over=which):
            row = row_of(example, signal, original=_text(revision, which), answer=own)
            return replace(row, unended=stopped, original_unended=_stopped(revision, which))
        case Under(under=which):
            row = row_of(example, signal, original=own, answer=_text(revision, which))
            return replace(row, unended=_stopped(revision, which), original_unended=stopped)
        case value:
            said = str(value)
            joined = signal.kind == "comment" and comments == "append"
            return row_of(
                example, signal, original=own, answer=append_comment(own, said) if joined else said.strip()
            )


def _text(revision: ExampleRevision, which: str | int) -> str:
    """A text is itself; a number is that choice of the response, empty if there is none."""
    if isinstance(which, str):
        return which
    return next((choice.text for choice in revision.choices if choice.index == which), "")


def _stopped(revision: ExampleRevision, which: str | int) -> bool:
    return any(
        choice.index == which and choice.finish_reason in TRUNCATING_FINISH_REASONS
        for choice in revision.choices
    )


def row_of(example: Example, signal: Signal, *, original: str, answer: str) -> Row:
    """The conversation that the signal speaks of, with what it says of the answer."""
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
        objective=OBJECTIVE_OF[signal.kind],
    )


def usable_rows(
    examples: Iterable[Example], comments: CommentMode = "hold"
) -> tuple[list[Row], list[QuarantinedRow]]:
    """All that passes the checks, merged by content: what one user says twice of the same counts once (the newest)."""
    rows: dict[tuple[object, ...], Row] = {}
    held: list[QuarantinedRow] = []
    for example in examples:
        found, other = rows_of(example, comments)
        held += other
        for row in found:
            reason = _fault(row)
            if reason is not None:
                held.append(QuarantinedRow(row.response_id, row.event_id, reason))
                continue
            key = _said_of(row)
            before = rows.get(key)
            if before is not None:
                older, row = sorted((before, row), key=lambda r: (r.occurred_ms, r.identity))  # noqa: PLW2901
                again = "the same again" if row.objective == "sft" else "something newer of the same"
                held.append(
                    QuarantinedRow(
                        older.response_id, older.event_id, f"duplicate: the same user said {again}"
                    )
                )
            rows[key] = row
    return sorted(rows.values(), key=lambda row: row.identity), held


def _said_of(row: Row) -> tuple[object, ...]:
    """What is the same if one user says it twice: an answer to a question, or a judgement on the same answers."""
    if row.objective == "sft":
        return row.user_id, row.kind, normalised(row.question), normalised(row.answer)
    return row.user_id, row.response_id, frozenset((row.answer, row.original))


def split_by_holdout(line: str, rows: Iterable[Row]) -> tuple[list[Row], list[Row]]:
    """(those that may train, those of held-out users). What was imported trains: an import speaks under one name for
    people who are none of the line's users, and that name's place in the hash must not decide over all of it."""
    training: list[Row] = []
    measuring: list[Row] = []
    for row in rows:
        measures = is_held_out(line, row.user_id) and not row.imported
        (measuring if measures else training).append(row)
    return training, measuring


def agreement(rows: Sequence[Row]) -> Agreement:
    return find_agreement(corrections_of([(row.user_id, row.question, row.answer) for row in rows]))


@dataclass(frozen=True, slots=True)
class GroupedRow:
    """A row that agreement lets through, with its question group."""

    row: Row
    group: int


def apply_agreement(
    rows: Sequence[Row], comments: CommentMode = "hold"
) -> tuple[list[GroupedRow], list[QuarantinedRow]]:
    """Those whose claim leads, and the others with their reason. A comment that was revised claims something, as a
    correction does. An appended one adds to an answer that the model gave, and a judgement is on what the model said:
    they contradict nobody's claim, need no agreement, and are a group of their own each."""
    claiming = {"correction", "comment"} if comments == "revise" else {"correction"}
    kept, held = _led([row for row in rows if row.kind in claiming])
    first = max((one.group for one in kept), default=-1) + 1
    others = [row for row in rows if row.kind not in claiming]
    kept += [GroupedRow(row, group) for group, row in enumerate(others, first)]
    return sorted(kept, key=lambda one: one.row.identity), held


def _led(rows: Sequence[Row]) -> tuple[list[GroupedRow], list[QuarantinedRow]]:
    found = agreement(rows)
    users: dict[int, set[str]] = defaultdict(set)
    for row, claim in zip(rows, found.claim, strict=True):
        users[claim].add(row.user_id)
    kept, held = [], []
    for row, group, claim, other in zip(rows, found.group, found.claim, found.opponent, strict=True):
        if other is None or "agreement" in row.released:
            kept.append(GroupedRow(row, group))
            continue
        word = "outvoted" if len(users[other]) > len(users[claim]) else "disputed"
        reason = f"agreement: {word}"
        held.append(QuarantinedRow(row.response_id, row.event_id, reason))
    return kept, held


def limit_per_user(rows: Sequence[GroupedRow], line: str) -> tuple[list[GroupedRow], list[QuarantinedRow]]:
    """Trims each user to the allowed share of what is left after trimming. Which rows stay is fixed by a keyed hash
    of their identity, so neither order nor time of arrival matters."""
    per_user: dict[str, list[GroupedRow]] = defaultdict(list)
    for one in sorted(rows, key=lambda one: hash_fraction(line, one.row.identity)):
        per_user[one.row.user_id].append(one)
    cap = cap_per_user({user: len(theirs) for user, theirs in per_user.items()})
    kept = [one for theirs in per_user.values() for one in theirs[:cap]]
    over = [one.row for theirs in per_user.values() for one in theirs[cap:]]
    held = [
        QuarantinedRow(row.response_id, row.event_id, "share: this user has said much already")
        for row in over
    ]
    return sorted(kept, key=lambda one: one.row.identity), held


def cap_per_user(counts: Mapping[str, int]) -> int:
    """The most rows one user may have: within the share of the rows then left, and at least 1."""
    if not counts:
        return 0
    share = max(LEAST_SHARE, SHARE_OF_USERS / len(counts))
    cap = max(counts.values())
    while cap > 1 and cap > share * sum(min(cap, n) for n in counts.values()):
        cap -= 1
    return cap


def count_reasons(held: Iterable[QuarantinedRow]) -> dict[str, int]:
    """How many are held for each reason."""
    return dict(sorted(Counter(one.reason for one in held).items()))
