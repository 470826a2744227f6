"""Which feedback may train, and why the rest may not: checks of single rows, agreement of users, a share per user.

Pure and deterministic: the same examples give the same rows and the same reasons (I5).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from services.trainer.core.recipe import CommentMode
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.holdout import hash_fraction, is_held_out
from services.trainer.dataset.objectives import (
    COMMENT_NOT_TRAINED,
    TRUNCATING_FINISH_REASONS,
    append_comment,
)
from services.trainer.dataset.pii import find_personal_data, find_secret
from services.trainer.dataset.text_changes import is_same_text
from services.trainer.dataset.text_characters import fault_of_characters
from services.trainer.dataset.votes import ChangeRule
from services.trainer.dataset.words import normalised
from shared.composed_ids import join_ids
from shared.events import ExampleRevision, Over, Signal, Under
from shared.feedback_kinds import FEEDBACK_KINDS, KIND_BY_NAME, Objective
from shared.literal_tokens import any_of

MAX_CHARS_PER_TOKEN: Final = 16
"""More characters than any text has per token: English has 4 to 5, indented code up to 8, Chinese 1 to 2."""
TRAINABLE_ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
IMPORTED: Final = "imported"
"""Tag of imported feedback, which has one user id whoever gave it (`loopwright.seed_import.IMPORT_TAG`)."""
MIN_SHARE: Final = 0.02
SHARE_FACTOR: Final = 3
"""The maximum share of one user in a dataset is max(`MIN_SHARE`, `SHARE_FACTOR` / number of users)."""


@dataclass(frozen=True, slots=True)
class Row:
    """One user's feedback on one answer: the conversation before it, the model's answer and the better one.

    For a thumb or a rating, `answer` is the judged answer and `original` is empty. For a preference, `answer` was
    preferred over `original`.
    """

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
    """Whether it was imported, not given by a user of the app."""
    asked_by: str | None = None
    """User who asked the question, if known. An erasure of that user deletes the row as well."""
    released: frozenset[str] = frozenset()
    """Checks from which an operator released it."""
    objective: Objective = "sft"
    label: bool | None = None
    """For a thumb or a rating, whether the answer was liked."""
    unended: bool = False
    """Whether `answer` was truncated, so that it trains without an end of turn (`training/rows.py`)."""
    original_unended: bool = False
    """Whether `original` was truncated."""

    @property
    def question(self) -> str:
        """All user messages of the conversation: what agreement and near-duplicates compare."""
        return " ".join(content for role, content in self.messages if role == "user")

    @property
    def identity(self) -> str:
        """Identity of the event: response and event id."""
        return join_ids(self.response_id, self.event_id)


@dataclass(frozen=True, slots=True)
class QuarantinedRow:
    """An event that does not train, and why. Contains no user text."""

    response_id: str
    event_id: str
    reason: str
    """`<check>` or `<check>: <detail>`."""

    @classmethod
    def of(cls, row: Row, reason: str) -> QuarantinedRow:
        """Return the quarantine entry of a row."""
        return cls(row.response_id, row.event_id, reason)


Check = Callable[[Row], str | None]
"""Returns None, or the reason why the row must not train. The part before the colon names the check."""
RELEASABLE: Final = frozenset({"secret", "personal data", "length", "control characters", "agreement"})
"""Checks that an operator may overrule for an event. The other checks hold back what cannot train, what evaluates
versions, or what would exceed a user's share."""


def check_of(reason: str) -> str:
    """Return the check that a reason names."""
    return reason.partition(":")[0]


# --- checks of one row ------------------------------------------------------------------------------------------


def has_a_question(row: Row) -> str | None:
    """Check that the conversation has a user message."""
    return None if row.question.strip() else "schema: no question in the conversation"


def has_an_original(row: Row) -> str | None:
    """Check that the corrected answer is present."""
    return None if row.original.strip() else "schema: the corrected answer is missing"


def has_trainable_roles(row: Row) -> str | None:
    """Check that every message has a role that chat templates train."""
    unknown = sorted({role for role, _ in row.messages} - TRAINABLE_ROLES.keys())
    return f"schema: messages of role {unknown[0]} do not train" if unknown else None


def has_an_answer(row: Row) -> str | None:
    """Check that the answer is not empty."""
    return None if row.answer.strip() else "integrity: empty"


def changes_something(row: Row) -> str | None:
    """Check that the answer differs from the original in more than its layout."""
    return "integrity: same as the answer it corrects" if is_same_text(row.answer, row.original) else None


def is_not_too_long(row: Row, max_tokens: int) -> str | None:
    """Check that answer and conversation can be within a run's limit, before slower checks read them.

    A run counts the tokens, by the tokenizer of its base; this check does without, and lets in doubt.
    """
    limit = max_tokens * MAX_CHARS_PER_TOKEN
    too_long = len(row.answer) + sum(len(content) for _, content in row.messages) > limit
    return f"length: longer than {limit} characters" if too_long else None


def has_no_control_characters(row: Row) -> str | None:
    """Check for control characters, and for invisible characters that hide text."""
    faults = (fault_of_characters(text) for text in _texts(row))
    return next((f"control characters: {fault}" for fault in faults if fault is not None), None)


def has_no_template_tokens(row: Row) -> str | None:
    """Check for what looks like a special token of any base. `mark_check` knows those of one base."""
    has_tokens = any(_TEMPLATE_TOKEN.search(text) for text in _texts(row))
    return "chat template: the text contains special tokens" if has_tokens else None


_TEMPLATE_TOKEN: Final = re.compile(r"<[|｜][^\s<>|｜]{1,64}[|｜]>")
"""Not the operators `|>` and `<|` of F#, R, Elixir and others."""


def mark_check(marks: Collection[str]) -> Check:
    """Return a check for texts by which a base's prompts separate turns (`ChatFormat.marks`).

    In a row they are ordinary text. But an answer with them would teach the model to write them, and a person who
    trains on an export may turn them into special tokens again.
    """
    pattern = any_of(marks)

    def has_no_marks(row: Row) -> str | None:
        texts = (*_texts(row), row.original) if row.objective == "dpo" else _texts(row)
        found = next((match[0].strip() for text in texts if (match := pattern.search(text))), None)
        return None if found is None else f"chat template: the text contains {found}"

    return has_no_marks


def has_no_secrets(row: Row) -> str | None:
    """Check for secrets, in the operator's system prompt as well: it is trained like the rest."""
    return next((f"secret: {kind}" for kind in map(find_secret, _texts(row)) if kind is not None), None)


def has_no_personal_data(row: Row) -> str | None:
    """Check for personal data, except for what the operator's system prompt contains, such as a support address."""
    system = [content for role, content in row.messages if role == "system"]
    public = {text for content in system for _, text in find_personal_data(content)}
    texts = (row.answer, *(content for role, content in row.messages if role != "system"))
    for text in texts:
        for kind, found in find_personal_data(text):
            if found not in public:
                return f"personal data: {kind}"
    return None


def _texts(row: Row) -> tuple[str, ...]:
    return (row.answer, *(content for _, content in row.messages))


CHECKS: Final[tuple[Check, ...]] = (
    has_a_question,
    has_an_original,
    has_trainable_roles,
    has_an_answer,
    changes_something,
    has_no_control_characters,
    has_no_template_tokens,
    has_no_secrets,
    has_no_personal_data,
)
"""Checks of an answer that replaces another, in order; the first that fails gives the reason."""
JUDGED_CHECKS: Final = tuple(check for check in CHECKS if check not in (has_an_original, changes_something))
"""Checks of an answer that was only judged, so there is no other one."""


def first_fault(row: Row, checks: Sequence[Check] = CHECKS, *, max_tokens: int | None = None) -> str | None:
    """Return the first reason against a row from which no operator released it, or None.

    `max_tokens`: the limit of a run (`is_not_too_long`); None for no limit.
    """
    if max_tokens is not None:
        checks = (partial(is_not_too_long, max_tokens=max_tokens), *checks)
    reasons = (reason for check in checks if (reason := check(row)) is not None)
    return next((reason for reason in reasons if check_of(reason) not in row.released), None)


def first_fault_of_original(row: Row, *, max_tokens: int | None = None) -> str | None:
    """Return the same for the original, which a pair trains as well: a model may have written a secret itself."""
    return first_fault(replace(row, answer=row.original), JUDGED_CHECKS, max_tokens=max_tokens)


def first_fault_by_objective(row: Row, *, max_tokens: int | None = None) -> str | None:
    """Check what the row trains: both answers of a preference, since a user may have written either."""
    if row.objective == "kto":
        return first_fault(row, JUDGED_CHECKS, max_tokens=max_tokens)
    reason = first_fault(row, max_tokens=max_tokens)
    if reason is None and row.objective == "dpo":
        return first_fault_of_original(row, max_tokens=max_tokens)
    return reason


# --- rows of an example -----------------------------------------------------------------------------------------


def rows_of(example: Example, comments: CommentMode = "hold") -> tuple[list[Row], list[QuarantinedRow]]:
    """Return the rows of an example's signals, and the signals that never train.

    A comment that a stronger model will follow has the comment as its answer until `rewrite_cache.apply_rewrites`.
    """
    rows, quarantined = [], []
    for signal in example.revision.signals:
        kind = KIND_BY_NAME[signal.kind]
        if kind.is_remark and comments == "hold":
            quarantined.append(
                QuarantinedRow(example.revision.response_id, signal.event_id, COMMENT_NOT_TRAINED)
            )
        elif kind.objective == "kto" and signal.value not in kind.liked:
            reason = f"{kind.name}: neutral, so neither liked nor disliked"
            quarantined.append(QuarantinedRow(example.revision.response_id, signal.event_id, reason))
        else:
            rows.append(_row_of_signal(example, signal, comments))
    return rows, quarantined


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


# --- filters of all rows ----------------------------------------------------------------------------------------


def usable_rows(
    examples: Iterable[Example], comments: CommentMode = "hold", *, max_tokens: int | None = None
) -> tuple[list[Row], list[QuarantinedRow]]:
    """Return the rows that pass all checks, and the others. What one user gives twice counts once, the newest."""
    rows: dict[tuple[object, ...], Row] = {}
    quarantined: list[QuarantinedRow] = []
    for example in examples:
        found, never_train = rows_of(example, comments)
        quarantined += never_train
        for row in found:
            reason = first_fault_by_objective(row, max_tokens=max_tokens)
            if reason is not None:
                quarantined.append(QuarantinedRow.of(row, reason))
                continue
            key = content_key(row)
            newest = row
            if key in rows:
                older, newest = sorted((rows[key], row), key=lambda r: (r.occurred_ms, r.identity))
                quarantined.append(QuarantinedRow.of(older, repeat_reason(row.objective)))
            rows[key] = newest
    return sorted(rows.values(), key=lambda row: row.identity), quarantined


def repeat_reason(objective: Objective) -> str:
    """Return why a row does not train if its user gave newer feedback with the same `content_key`."""
    again = "the same again" if objective == "sft" else "newer feedback on the same"
    return f"duplicate: this user gave {again}"


def content_key(row: Row) -> tuple[object, ...]:
    """Return what two rows of a user share if they repeat: question and answer, or the judged answers."""
    if row.objective == "sft":
        return row.user_id, row.kind, normalised(row.question), normalised(row.answer)
    return row.user_id, row.response_id, frozenset((row.answer, row.original))


def split_by_holdout(line: str, rows: Iterable[Row]) -> tuple[list[Row], list[Row]]:
    """Return the rows that may train, and those of held-out users.

    Imported rows always train: an import has one user id for many people who are not users of the line, and the hash of
    that id must not decide about all of it.
    """
    training: list[Row] = []
    heldout: list[Row] = []
    for row in rows:
        is_heldout = is_held_out(line, row.user_id) and not row.imported
        (heldout if is_heldout else training).append(row)
    return training, heldout


@dataclass(frozen=True, slots=True)
class GroupedRow:
    """A row that passed agreement, with the number of its question group."""

    row: Row
    group: int


def apply_agreement(
    rows: Sequence[Row], comments: CommentMode = "hold", rule: ChangeRule | None = None
) -> tuple[list[GroupedRow], list[QuarantinedRow]]:
    """Return the rows whose claim leads (`agreement.py`), and the others.

    Corrections and rewritten comments make claims. An appended comment adds to an answer of the model, and a judgement
    is about one, so they contradict no claim: each passes, with a group of its own.
    """
    claiming = {
        kind.name for kind in FEEDBACK_KINDS if kind.is_answer or (kind.is_remark and comments == "revise")
    }
    kept, quarantined = _leading([row for row in rows if row.kind in claiming], rule)
    first = max((one.group for one in kept), default=-1) + 1
    others = [row for row in rows if row.kind not in claiming]
    kept += [GroupedRow(row, group) for group, row in enumerate(others, first)]
    return sorted(kept, key=lambda one: one.row.identity), quarantined


def _leading(rows: Sequence[Row], rule: ChangeRule | None) -> tuple[list[GroupedRow], list[QuarantinedRow]]:
    from services.trainer.dataset.agreement import (  # noqa: PLC0415 - imports SciPy; the service checks single rows
        corrections_of,
        find_agreement,
    )

    said = corrections_of(
        [(row.user_id, row.question, row.answer) for row in rows], [row.occurred_ms for row in rows]
    )
    agreement = find_agreement(said, rule)
    kept, quarantined = [], []
    for row, group, verdict in zip(rows, agreement.group, agreement.verdict, strict=True):
        if verdict is None or "agreement" in row.released:
            kept.append(GroupedRow(row, group))
        else:
            quarantined.append(QuarantinedRow.of(row, f"agreement: {verdict}"))
    return kept, quarantined


def limit_per_user(rows: Sequence[GroupedRow], line: str) -> tuple[list[GroupedRow], list[QuarantinedRow]]:
    """Trim each user to the maximum share of the rows that are left.

    A keyed hash of its identity decides whether a row stays, so order and time of arrival do not matter.
    """
    per_user: dict[str, list[GroupedRow]] = defaultdict(list)
    for one in sorted(rows, key=lambda one: hash_fraction(line, one.row.identity)):
        per_user[one.row.user_id].append(one)
    cap = cap_per_user({user: len(theirs) for user, theirs in per_user.items()})
    kept = [one for theirs in per_user.values() for one in theirs[:cap]]
    over = [one.row for theirs in per_user.values() for one in theirs[cap:]]
    quarantined = [QuarantinedRow.of(row, "share: this user has many rows already") for row in over]
    return sorted(kept, key=lambda one: one.row.identity), quarantined


def cap_per_user(counts: Mapping[str, int]) -> int:
    """Return the most rows that one user may have: the maximum share of the rows then left, and at least 1."""
    if not counts:
        return 0
    share = max(MIN_SHARE, SHARE_FACTOR / len(counts))
    cap = max(counts.values())
    while cap > 1 and cap > share * sum(min(cap, n) for n in counts.values()):
        cap -= 1
    return cap


def count_reasons(quarantined: Iterable[QuarantinedRow]) -> dict[str, int]:
    """Return the number of quarantined rows per reason, in order of the reasons."""
    return dict(sorted(Counter(row.reason for row in quarantined).items()))
