"""Records of an export: TRL's conversational formats, each with the row that it was made from. Pure.

| format | columns | made from |
| --- | --- | --- |
| `sft` | prompt, completion | corrections; comments that are appended or rewritten |
| `dpo` | prompt, chosen, rejected | the same corrections, over the answers they correct; preferences |
| `kto` | prompt, completion, label | thumbs; ratings, 4 and 5 as liked, 1 and 2 as disliked |

Feedback of held-out users is a split of its own, because a model trained on it cannot be evaluated with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from services.trainer.core.recipe import CommentMode
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.filters import Check, QuarantinedRow, Row, first_fault_of_original
from services.trainer.dataset.objectives import TrlRow, dpo_row, kto_row, sft_row
from services.trainer.dataset.rewrite_cache import Rewrite
from services.trainer.dataset.snapshot import build
from services.trainer.dataset.votes import ChangeRule
from shared.events import canonical_json, sha256
from shared.feedback_kinds import KIND_BY_NAME, Objective

Format = Objective
"""Each format has files of its own, since each of TRL's trainers reads one kind of record."""
Split = Literal["train", "heldout"]


@dataclass(frozen=True, slots=True)
class TrlRecord:
    """One record of an export. `row.answer` is the completion, or is chosen over `row.original`."""

    format: Format
    split: Split
    row: Row

    @property
    def file(self) -> str:
        """Name of its file, without the extension."""
        return f"{self.format}-{self.split}"

    def fields(self) -> TrlRow:
        """Return the record as TRL takes it."""
        row = self.row
        if self.format == "dpo":
            return dpo_row(row.messages, row.answer, row.original)
        if self.format == "kto":
            return kto_row(row.messages, row.answer, bool(row.label))
        return sft_row(row.messages, row.answer)


@dataclass(frozen=True, slots=True)
class Export:
    """Records in the order of their files, and what is quarantined."""

    records: tuple[TrlRecord, ...]
    quarantined: tuple[QuarantinedRow, ...]

    def digest(self) -> str:
        """Return the content hash of all records and of the events that they come from."""
        records = (canonical_json([one.file, one.row.identity, one.fields()]) for one in self.records)
        return sha256(b"\n".join(records))


def build_export(
    line: str,
    examples: Iterable[Example],
    *,
    comments: CommentMode = "hold",
    rewrites: Mapping[str, Rewrite] | None = None,
    change_rule: ChangeRule | None = None,
    unfit: Check = lambda row: None,
) -> Export:
    """Return everything that may train, filtered as for a run but without its token limit and its minimum for KTO.

    Whoever trains on an export decides how many rows suffice. `rewrites` are those that exist already, and `unfit` says
    why a row must not train. Depends only on the arguments, and not on the order of the examples.
    """
    snapshot = build(
        line,
        examples,
        {},
        comments=comments,
        rewrites=rewrites or {},
        kto_least=0,
        change_rule=change_rule,
        unfit=unfit,
    )
    quarantined = list(snapshot.quarantined)
    records: list[TrlRecord] = []
    splits: tuple[Split, Split] = ("train", "heldout")
    for split, rows in zip(splits, (snapshot.train, snapshot.heldout), strict=True):
        for row in (one.row for one in rows):
            records.append(TrlRecord(row.objective, split, row))
            if not KIND_BY_NAME[row.kind].is_answer:
                continue
            # A correction is also a pair with the answer that it corrects, if that answer passes the checks.
            reason = first_fault_of_original(row) or unfit(replace(row, objective="dpo"))
            if reason is None:
                records.append(TrlRecord("dpo", split, row))
            else:
                quarantined.append(QuarantinedRow.of(row, f"{reason} (in the corrected answer)"))
    records.sort(key=lambda one: (one.file, one.row.identity))
    quarantined.sort(key=lambda one: (one.response_id, one.event_id, one.reason))
    return Export(tuple(records), tuple(quarantined))
