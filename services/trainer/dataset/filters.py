"""Rows of feedback, and checks of single rows: which may train, and why the others may not.

Pure and deterministic: the same row gives the same reason (I5). `row_selection.py` compares rows with each other.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from services.trainer.dataset.pii import find_personal_data, find_secret
from services.trainer.dataset.text_changes import is_same_text
from services.trainer.dataset.text_characters import fault_of_characters
from shared.composed_ids import join_ids
from shared.feedback_kinds import Objective
from shared.literal_tokens import any_of

MAX_CHARS_PER_TOKEN: Final = 16
"""More characters than any text has per token: English has 4 to 5, indented code up to 8, Chinese 1 to 2."""
TRAINABLE_ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


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


@dataclass(frozen=True, slots=True)
class GroupedRow:
    """A row that passed agreement, with the number of its question group."""

    row: Row
    group: int


def count_reasons(quarantined: Iterable[QuarantinedRow]) -> dict[str, int]:
    """Return the number of quarantined rows per reason, in order of the reasons."""
    return dict(sorted(Counter(row.reason for row in quarantined).items()))


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
