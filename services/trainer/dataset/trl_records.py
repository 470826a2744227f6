"""What an export holds: TRL's conversational records, each with the row that it was made of. Pure.

| format | columns | from |
| --- | --- | --- |
| `sft` | prompt, completion | corrections that train, comments that are appended or were revised |
| `dpo` | prompt, chosen, rejected | the same corrections over the answers they correct; preferences |
| `kto` | prompt, completion, label | thumbs; ratings, 4 and 5 as liked, 1 and 2 as not |

Held-out users' feedback is a split of its own: who trains on it has nothing left to measure with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from services.trainer.core.recipe import CommentMode
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.filters import QuarantinedRow, Row, first_fault_of_original
from services.trainer.dataset.objectives import Objective, dpo_row, kto_row, sft_row
from services.trainer.dataset.rewrite_cache import Rewrite
from services.trainer.dataset.snapshot import build
from shared.events import canonical_json, sha256

Format = Objective
"""A file of each: TRL's trainers read one kind of records each."""
Split = Literal["train", "heldout"]


@dataclass(frozen=True, slots=True)
class TrlRecord:
    """One line of an export. `row.answer` is the completion, or what is chosen over `row.original`."""

    format: Format
    part: Split
    row: Row

    @property
    def file(self) -> str:
        """The name of its file, without what says how it is written."""
        return f"{self.format}-{self.part}"

    def fields(self) -> dict[str, Any]:
        """As TRL takes it."""
        row = self.row
        if self.format == "dpo":
            return dpo_row(row.messages, row.answer, row.original)
        if self.format == "kto":
            return kto_row(row.messages, row.answer, bool(row.label))
        return sft_row(row.messages, row.answer)


@dataclass(frozen=True, slots=True)
class Export:
    """Records in the order of their files, and what is held back."""

    records: tuple[TrlRecord, ...]
    held: tuple[QuarantinedRow, ...]

    def digest(self) -> str:
        """Content hash over all records and the events that they come from."""
        told = (canonical_json([one.file, one.row.identity, one.fields()]) for one in self.records)
        return sha256(b"\n".join(told))


def build_export(
    line: str,
    examples: Sequence[Example],
    *,
    comments: CommentMode = "hold",
    revised: Mapping[str, Rewrite] | None = None,
) -> Export:
    """All that may train, verified as a run verifies it, but for its token limit and its least count for KTO: how many
    are enough is for who trains on it to say. `revised`: what the reviser has made of comments so far. A function of
    its arguments alone, in whatever order the examples come."""
    taken = build(line, examples, {}, comments=comments, revised=revised or {}, kto_least=0)
    held = list(taken.held)
    records: list[TrlRecord] = []
    parts: tuple[Split, Split] = ("train", "heldout")
    for part, rows in zip(parts, (taken.train, taken.measure), strict=True):
        for row in (one.row for one in rows):
            records.append(TrlRecord(row.objective, part, row))
            if row.kind != "correction":
                continue
            # Also over what it corrects, where that, too, may be told.
            reason = first_fault_of_original(row)
            if reason is None:
                records.append(TrlRecord("dpo", part, row))
            else:
                held.append(
                    QuarantinedRow(
                        row.response_id, row.event_id, f"{reason} (in the answer that it corrects)"
                    )
                )
    records.sort(key=lambda one: (one.file, one.row.identity))
    held.sort(key=lambda one: (one.response_id, one.event_id, one.reason))
    return Export(tuple(records), tuple(held))
