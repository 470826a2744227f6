"""What an export holds: TRL's conversational records, each with the row that it was made of. Pure.

| format | columns | from |
| --- | --- | --- |
| `sft` | prompt, completion | corrections that train, comments that are appended |
| `dpo` | prompt, chosen, rejected | the same corrections over the answers they correct; preferences |
| `kto` | prompt, completion, label | thumbs; ratings, 4 and 5 as liked, 1 and 2 as not |

Held-out users' feedback is a split of its own: who trains on it has nothing left to measure with.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from services.trainer.collect import Example
from services.trainer.objectives import HELD_KINDS, CommentMode, as_chat
from services.trainer.snapshot import Snapshot, take
from services.trainer.verify import (
    CHECKS,
    Grouped,
    Held,
    Row,
    changes_something,
    fair_shares,
    fault_of,
    has_an_original,
    row_of,
    split,
)
from shared.events import ExampleRevision, Over, Signal, Under, canonical_json, sha256

Format = Literal["sft", "dpo", "kto"]
Part = Literal["train", "heldout"]
LIKED: Final[dict[str | int, bool]] = {"up": True, "down": False, 5: True, 4: True, 2: False, 1: False}
JUDGED: Final = tuple(check for check in CHECKS if check not in (has_an_original, changes_something))
"""What is asked of an answer that somebody judged: there is no other beside it."""
EXPORTED_HERE: Final = frozenset(HELD_KINDS[kind] for kind in ("thumbs", "rating", "preference"))
"""A run's reasons that do not hold for an export."""


@dataclass(frozen=True, slots=True)
class Record:
    """One line of an export. `row.answer` is the completion, or what is chosen over `row.original`."""

    format: Format
    part: Part
    row: Row
    label: bool | None = None

    @property
    def file(self) -> str:
        """The name of its file, without what says how it is written."""
        return f"{self.format}-{self.part}"

    def fields(self) -> dict[str, Any]:
        """As TRL takes it."""
        row = self.row
        answer = as_chat([("assistant", row.answer)])
        fields: dict[str, Any] = {"prompt": as_chat(row.messages)}
        if self.format == "dpo":
            return fields | {"chosen": answer, "rejected": as_chat([("assistant", row.original)])}
        fields["completion"] = answer
        return fields | {"label": self.label} if self.format == "kto" else fields


@dataclass(frozen=True, slots=True)
class Export:
    """Records in the order of their files, and what is held back."""

    records: tuple[Record, ...]
    held: tuple[Held, ...]

    def digest(self) -> str:
        """Content hash over all records and the events that they come from."""
        told = (canonical_json([one.file, one.row.identity, one.fields()]) for one in self.records)
        return sha256(b"\n".join(told))


def export(line: str, examples: Sequence[Example], *, comments: CommentMode = "hold") -> Export:
    """All that may train, verified as a run verifies it, but for its token limit. A function of its arguments alone,
    in whatever order the examples come."""
    taken = take(line, examples, {}, comments=comments)
    preferred, doubted = _spoken(line, examples, ("preference",))
    judged, doubtful = _spoken(line, examples, ("thumbs", "rating"))
    corrected, unfit = _of_snapshot(taken)
    held = [one for one in taken.held if one.reason not in EXPORTED_HERE] + doubted + doubtful + unfit
    records = [*corrected, *preferred, *judged]
    records.sort(key=lambda one: (one.file, one.row.identity))
    held.sort(key=lambda one: (one.response_id, one.event_id, one.reason))
    return Export(tuple(records), tuple(held))


def _of_snapshot(taken: Snapshot) -> tuple[list[Record], list[Held]]:
    """Each for SFT; over what it corrects where that, too, may be told: a model may have said a secret itself."""
    parts: tuple[tuple[Part, Sequence[Grouped]], ...] = (("train", taken.train), ("heldout", taken.measure))
    records: list[Record] = []
    held: list[Held] = []
    for part, row in ((part, one.row) for part, rows in parts for one in rows):
        records.append(Record("sft", part, row))
        if row.kind != "correction":
            continue
        reason = _fault_of_other(row)
        if reason is None:
            records.append(Record("dpo", part, row))
        else:
            held.append(Held(row.response_id, row.event_id, f"{reason} (in the answer that it corrects)"))
    return records, held


def _fault_of_other(row: Row) -> str | None:
    return fault_of(replace(row, answer=row.original), JUDGED)


def _spoken(
    line: str, examples: Iterable[Example], kinds: Collection[str]
) -> tuple[list[Record], list[Held]]:
    """The signals of these kinds that pass the checks, one of each user on the same (the newest), within each user's
    share."""
    rows: dict[tuple[str, str, frozenset[str]], Row] = {}
    labels: dict[str, bool] = {}
    held: list[Held] = []
    said = [(s, one) for one in examples for s in one.revision.signals if s.kind in kinds]
    for signal, example in sorted(said, key=lambda told: (told[0].occurred_at, told[0].event_id)):
        row = _row(example, signal)
        reason = _fault(row, signal)
        if reason is not None:
            held.append(Held(row.response_id, row.event_id, reason))
            continue
        key = (row.user_id, row.response_id, frozenset((row.answer, row.original)))
        if key in rows:
            why = "duplicate: the same user said something newer of the same"
            held.append(Held(rows[key].response_id, rows[key].event_id, why))
        rows[key] = row
        labels[row.identity] = (
            LIKED.get(signal.value, False) if isinstance(signal.value, int | str) else False
        )
    training, measuring = split(line, rows.values())
    kept, over = fair_shares([Grouped(row, group) for group, row in enumerate(training)], line)
    parts: tuple[tuple[Part, list[Row]], ...] = (("train", [one.row for one in kept]), ("heldout", measuring))
    records = [_record(part, row, labels[row.identity]) for part, found in parts for row in found]
    return records, held + over


def _record(part: Part, row: Row, label: bool) -> Record:
    return Record("dpo", part, row) if row.kind == "preference" else Record("kto", part, row, label)


def _fault(row: Row, signal: Signal) -> str | None:
    """What keeps it out. Of a preference both answers are looked at: either may be a user's words."""
    if signal.kind == "rating" and signal.value not in LIKED:
        return "rating: in the middle, so neither liked nor disliked"
    if signal.kind != "preference":
        return fault_of(row, JUDGED)
    return fault_of(row) or _fault_of_other(row)


def _row(example: Example, signal: Signal) -> Row:
    """The answer that was judged, and no other; or the chosen one over the other."""
    revision = example.revision
    own = _text(revision, signal.choice)
    match signal.value:
        case Over(over=which):
            return row_of(example, signal, original=_text(revision, which), answer=own)
        case Under(under=which):
            return row_of(example, signal, original=own, answer=_text(revision, which))
        case _:
            return row_of(example, signal, original="", answer=own)


def _text(revision: ExampleRevision, which: str | int) -> str:
    """A text is itself; a number is that choice of the response, empty if there is none."""
    if isinstance(which, str):
        return which
    return next((choice.text for choice in revision.choices if choice.index == which), "")
